"""Fréchet distance that is multiplied where generated rows are copies of training rows."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rdm.api import Estimate, Measure, Metric, Range, Real, generated, metrics
from rdm.judging.metrics._training import TILE, training_rows
from rdm.judging.metrics.frechet import FrechetDistance

SMALLEST = 1e-14  # added to the memorisation distance


@metrics.register("mifid")
@dataclass(frozen=True)
class MemorizationInformed(Measure):
    r"""Fréchet distance over the mean cosine distance to the nearest training row, where that is below a threshold.

    .. math:: s = \frac1n \sum_i \min_t \Big( 1 - \frac{|x_i \cdot t|}{|x_i| |t|} \Big), \quad
              \text{MiFID} = FD / (s + 10^{-14}) \text{ if } s < \tau, \text{ else } FD

    Source: Bai et al. (2021), "On Training Sample Memorization", section 4, with the threshold of its competition's
    code and of torchmetrics, 0.1, which is of Inception's pooled features; under another encoder see first what fresh
    real rows have, and give a `threshold` below it. FD is `fd`, to the reference; the source has one set for reference
    and training set. A row of zeros is at distance 1 of all. Interval: of the mean over new sets of n rows on the same
    side of the threshold, given the training rows.

    Shapes: features n d, training rows t d. Units: squared feature distance. Cost: that of `fd`, and n t d in float64.

    Raises:
        InputError: no training rows; fewer than 2 rows.

    >>> import torch
    >>> from rdm.api import Real
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> real = Real(x + 1, train=torch.tensor([[1.0, 0.02], [0.02, 1.0]]))
    >>> s = 1 - 1 / (1 + 0.02**2) ** 0.5
    >>> round(MemorizationInformed()(x, real).value * s, 4)  # that of fd: the means are |(1, 1)|^2 apart
    2.0
    """

    trained: ClassVar[bool] = True
    lowest: ClassVar[float] = 0.0
    threshold: Annotated[float, Range(above=0, most=1)] = 0.1

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        x = generated(x, real, least=2, user="mifid")
        gaps = _cosine_gaps(x.double(), training_rows(real, x))
        found = FrechetDistance().estimate(x, real, seed=seed)
        s = float(gaps.mean())
        if s < self.threshold:
            s += SMALLEST
            influence = found.influence / s - found.value / s**2 * (gaps - gaps.mean())
            found = Estimate(found.value / s, influence, found.second / s**2)
        return found.metric(seed, rooted=True)


def _cosine_gaps(x: Tensor, train: Tensor) -> Tensor:
    """1 - |cos| to the nearest training row."""
    x, train = (torch.nn.functional.normalize(side, dim=1) for side in (x, train))
    parts = [(some @ train.T).abs_().amax(1) for some in x.split(max(1, TILE // len(train)))]
    return (1 - torch.cat(parts)).clamp_min_(0)
