"""Test of data-copying: whether generated rows are nearer to the training set than real rows are."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdm.api import Count, InputError, Measure, Metric, Real, between, generated, landmarks, metrics, thin
from rdm.judging.metrics._training import nearest, training_rows, unseen_rows

FEWEST = 20  # generated rows of a cell that counts: more than these
COPIES = -3.0  # standard deviations


@metrics.register("c_t")
@dataclass(frozen=True)
class DataCopying(Measure):
    r"""Mean over cells of the standardised rank sum of distances to the training set, generated against unseen real.

    .. math:: C_T = \frac{\sum_\pi P(\pi) Z_\pi}{\sum_\pi P(\pi)}, \quad
              Z_\pi = \frac{U_\pi - n_\pi m_\pi / 2}{\sqrt{n_\pi m_\pi (n_\pi + m_\pi + 1) / 12}}

    U counts the pairs in cell π whose generated row is farther from the training rows of the cell than the unseen real
    row is (Mann and Whitney 1947; ties are half), P(π) is the share of the unseen rows. Source: Meehan et al. (2020),
    "A Non-Parametric Test to Detect Data-Copying", section 4. Far below 0 (-3, say): copies; about 0: as new data; far
    above: apart from the data. Cells are those of k-means of the training rows, and a cell counts with more than 20
    generated rows, as in its code; 3 cells and rows on the training set's first 64 principal components are those of
    Jiralerspong et al. (2023). Unseen are the fresh split's rows, or of a reference without one its own. At most 10,000
    generated and unseen rows, and all training rows. It grows as the root of their numbers: compare equal ones.
    Interval: of the mean over new generated rows given the training and the unseen rows.

    Shapes: features n d, training rows t d. Units: standard deviations. Cost: (n + m) t d, and t d^2 + d^3 where d is
    above `components`, in float64.

    Raises:
        InputError: no training rows or no unseen ones; a cell without one of them; none with enough generated rows.
    """

    trained: ClassVar[bool] = True
    cells: Count = 3
    components: Count = 64
    rows: Count = 10_000

    def alarm(self, found: Metric) -> str:
        """Where the whole interval is below what one of 700 tests of new data gives."""
        nearer = "generated items are nearer to the training set than unseen real ones are: look for copies"
        return nearer if found.high < COPIES else ""

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        x = thin(generated(x, real, least=2, user="c_t"), self.rows, seed, "generated").double()
        train = training_rows(real, x)
        unseen = unseen_rows(real, train, self.rows, seed, "c_t")
        middle, axes = train.mean(0), _axes(train, self.components)
        x, unseen, train = ((side - middle) @ axes for side in (x, unseen, train))
        ones = torch.ones(len(train), dtype=torch.float64, device=train.device)
        centres = landmarks(train, ones, self.cells, method="k-means", seed=seed)
        where = [nearest(side, centres)[1] for side in (x, unseen, train)]
        value = variance = weight = 0.0
        for cell in range(len(centres)):
            mine, theirs, known = (side[at == cell] for side, at in zip((x, unseen, train), where, strict=True))
            if len(mine) <= FEWEST:
                continue
            if min(len(theirs), len(known)) == 0:
                missing = "unseen" if len(known) else "training"
                raise InputError(f"c_t: a cell has no {missing} rows; give fewer cells than {self.cells}")
            z, spread = _rank_sum(nearest(mine, known)[0], nearest(theirs, known)[0])
            share = len(theirs) / len(unseen)
            value, variance, weight = value + share * z, variance + share**2 * spread, weight + share
        if weight == 0:
            raise InputError(
                f"c_t needs more than {FEWEST} generated rows in some of {self.cells} cells; got {len(x)} in all; "
                "give more rows or fewer cells"
            )
        return between(value / weight, variance / weight**2, len(x), seed)


def _axes(train: Tensor, components: int) -> Tensor:
    """The training rows' first principal axes, "d k"; all where there are no more."""
    if train.shape[1] <= components:
        return torch.eye(train.shape[1], dtype=train.dtype, device=train.device)
    rows = train - train.mean(0)
    return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -components:]


def _rank_sum(mine: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Z of the generated rows' distances against the others', and its variance over new ones of the former."""
    n, m = len(theirs), len(mine)
    ordered = theirs.sort().values
    below, upto = (torch.searchsorted(ordered, mine, right=right).double() for right in (False, True))
    placed = (below + upto) / (2 * n)  # the share of the others that are nearer
    scale = n * m / math.sqrt(n * m * (n + m + 1) / 12)
    return float(placed.mean() - 0.5) * scale, float(placed.var()) / m * scale**2
