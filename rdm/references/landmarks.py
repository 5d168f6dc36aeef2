"""Landmarks: a few rows that stand for a reference, the same whatever the order of its rows."""

import torch
from torch import Tensor

from rdm.matching.distances import squared_distances
from rdm.randomness import stream

BLOCK = 2048  # rows assigned at a time
SAMPLE = 200_000  # rows that k-means sees
ROUNDS = 20  # of Lloyd's


def landmarks(rows: Tensor, weights: Tensor, count: int, *, method: str, seed: int) -> Tensor:
    """`count` landmarks of weighted rows in float64: rows drawn without replacement, or the k-means centres from there.

    All rows where there are no more than `count`. No global random state is touched.
    """
    if len(rows) <= count:
        return rows
    source = stream(seed, "landmarks")
    direction = torch.randn(rows.shape[1], generator=source, dtype=torch.float64).to(rows)
    order = (rows @ direction).argsort()  # of the rows' values, so that the draw below does not see their order
    drawn = order[torch.randperm(len(rows), generator=source).to(rows.device)]
    if method == "random":
        return rows[drawn[:count]]
    sample = drawn[:SAMPLE]
    return _k_means(rows[sample], weights[sample], count)


def _k_means(rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """Lloyd's rounds from the first `count` rows; an empty cluster restarts at a row far from its centre."""
    centres = rows[:count]
    for _ in range(ROUNDS):
        nearest = [squared_distances(block, centres).min(1) for block in rows.split(BLOCK)]
        distances, labels = (torch.cat([part[k] for part in nearest]) for k in (0, 1))
        mass = torch.zeros(count, dtype=rows.dtype, device=rows.device).index_add_(0, labels, weights)
        sums = torch.zeros_like(centres).index_add_(0, labels, rows * weights[:, None])
        empty = mass == 0
        moved = sums / torch.where(empty, 1.0, mass)[:, None]
        moved[empty] = rows[distances.topk(int(empty.sum())).indices]
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
