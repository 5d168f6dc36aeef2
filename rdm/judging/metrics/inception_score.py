"""Inception score of class logits."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdm.api import Count, Measure, Metric, Real, generated, metrics, of_groups, stream


@metrics.register("inception_score")
@dataclass(frozen=True)
class InceptionScore(Measure):
    r"""Exponential of the mean divergence of an item's class law from the mean class law; mean over disjoint splits.

    .. math:: \exp \Big( \frac{1}{N} \sum_i \sum_c p(c | x_i) \log \frac{p(c | x_i)}{p(c)} \Big)

    Source: Salimans et al. (2016), section 4, with its 10 splits, of rows in random order; softmax in float64. Takes
    logits, of any classifier. Biased downwards in the number of rows a split, so compare equal n. Interval: of the
    mean over new splits of that size, by Student's law over the disjoint splits; none of one split.

    Shapes: logits n classes. Units: number of classes. Cost: n classes.

    Raises:
        InputError: fewer rows than splits.
    """

    logits: ClassVar[bool] = True
    best: ClassVar[float] = math.inf
    lowest: ClassVar[float] = 1.0
    splits: Count = 10
    shuffle: bool = True

    def __call__(self, x: Tensor, real: Real | None = None, *, seed: int = 0) -> Metric:  # noqa: D102
        x = generated(x, least=self.splits, user="inception_score")
        if self.shuffle:
            x = x[torch.randperm(len(x), generator=stream(seed, "splits")).to(x.device)]
        edges = [len(x) * k // self.splits for k in range(self.splits + 1)]
        scores = [_score(x[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
        return of_groups(scores, len(x), seed, least=self.lowest, most=float(x.shape[1]))


def _score(logits: Tensor) -> float:
    log = logits.double().log_softmax(1)
    mean = log.exp().mean(0)
    divergence = (log.exp() * (log - mean.clamp_min(1e-300).log())).sum(1)
    return math.exp(float(divergence.mean()))
