"""Share of generated rows that are not nearer to a training row than that is to its own neighbour."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rdm.api import Count, InputError, Measure, Metric, Real, generated, metrics, of_share, thin
from rdm.judging.metrics._training import nearest, training_rows


@metrics.register("authenticity")
@dataclass(frozen=True)
class Authenticity(Measure):
    r"""Share of generated rows farther from their nearest training row than that one is from its nearest other.

    .. math:: \frac1n \sum_j 1[ |x_j - t_{(j)}| > \min_{t \ne t_{(j)}} |t_{(j)} - t| ], \quad
              t_{(j)} = \arg\min_t |x_j - t|

    Source: Alaa et al. (2022), "How Faithful is your Synthetic Data?", section 4.3; AuthPct of Jiralerspong et al.
    (2023) is 100 times this less 50. Copies have 0. New rows of the training set's law have 1/3 on a line, 0.38 in a
    plane and more in many dimensions (0.74 of 300 Gaussian rows in 24): compare with what unseen real rows have. What
    lies apart from the data has 1, so read it beside a distance. At most 10,000 generated rows, and all training rows.
    Interval: of the mean over new generated rows given the training rows, whose terms are independent (Wilson's).

    Shapes: features n d, training rows t d. Units: share. Cost: 2 n t d in float64.

    Raises:
        InputError: no training rows, or fewer than 2.

    >>> import torch
    >>> from rdm.api import Real
    >>> train = torch.tensor([[0.0], [1.0], [4.0]])
    >>> round(Authenticity()(torch.tensor([[0.1], [2.4], [9.0]]), Real(None, train=train)).value, 4)
    0.6667
    """

    trained: ClassVar[bool] = True
    best: ClassVar[float] = math.inf
    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    rows: Count = 10_000

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        x = thin(generated(x, real, least=2, user="authenticity"), self.rows, seed, "generated").double()
        train = training_rows(real, x)
        if len(train) < 2:
            raise InputError(f"authenticity needs at least 2 training rows; got {len(train)}")
        gaps, which = nearest(x, train)
        asked, back = which.unique(return_inverse=True)
        theirs = nearest(train[asked], train, apart=asked)[0]
        new = (gaps > theirs[back]).double()
        return of_share(float(new.mean()), float(new.var()) / len(x), len(x), seed)
