"""Landmarks: a few rows that stand for a reference, the same whatever the order of its rows."""

import torch
from torch import Tensor

from rdm.randomness import stream

BLOCK = 512  # rows assigned at a time: with 4,096 centres 8 MiB of float32, which stay in cache
BATCH = 8192  # rows that centres move by at a time, or twice their number where that is more
ROUNDS = 20  # of Lloyd's, where one batch is all there is; else so many batches, or two passes
SAMPLE = 65_536  # rows that k-means needs to see of a large reference, or `count` where that is more


def landmarks(rows: Tensor, weights: Tensor, count: int, *, method: str, seed: int) -> Tensor:
    """`count` landmarks of weighted rows in their dtype: rows drawn without replacement, or k-means centres from there.

    All rows where there are no more than `count`. A function of rows and seed alone, not of their order; no global
    random state is touched.
    """
    if len(rows) <= count:
        return rows
    source = stream(seed, "landmarks")
    direction = torch.randn(rows.shape[1], generator=source, dtype=torch.float64).to(rows.device)
    along = torch.cat([block.double() @ direction for block in rows.split(BATCH)])
    order = along.argsort()  # of the rows' values, so that the draw below does not see their order
    drawn = order[torch.randperm(len(rows), generator=source).to(rows.device)]
    if method == "random":
        return rows[drawn[:count]]
    return _k_means(rows[drawn], weights[drawn], count)


def _k_means(rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """From the first `count` rows, by batches in turn (Sculley 2010); one batch of all rows is Lloyd's round.

    A centre is the mean of all that it was given in this pass over the rows and, the less the further the pass is, in
    the one before. One that was given nothing restarts, at the end of the pass, at a row far from its centre.
    """
    size = max(BATCH, 2 * count)
    batches = list(zip(rows.split(size), weights.split(size), strict=True))
    centres = rows[:count].double()
    past, past_mass = torch.zeros_like(centres), torch.zeros(count, dtype=torch.float64, device=rows.device)
    for _ in range(max(2, ROUNDS // len(batches))):
        sums, mass, before, distances = torch.zeros_like(past), torch.zeros_like(past_mass), centres, []
        for k, (some, masses) in enumerate(batches, 1):
            gaps, labels = _nearest(some, centres.to(rows.dtype))
            distances.append(gaps)
            mass.index_add_(0, labels, masses)
            sums.index_add_(0, labels, some.double() * masses[:, None])
            rest = 1 - k / len(batches)
            total = (mass + rest * past_mass)[:, None]
            centres = torch.where(total > 0, (sums + rest * past) / torch.where(total > 0, total, 1.0), centres)
        past, past_mass = sums, mass
        empty = mass == 0
        centres[empty] = rows[torch.cat(distances).topk(int(empty.sum())).indices].double()
        if torch.equal(centres, before):
            break
    return centres.to(rows.dtype)


def _nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance of each row from its nearest centre, and which that is."""
    norms = centres.square().sum(1)
    parts = [torch.addmm(norms, block, centres.T, alpha=-2).min(1) for block in rows.split(BLOCK)]
    least, labels = (torch.cat([part[k] for part in parts]) for k in (0, 1))
    return least + rows.square().sum(1), labels
