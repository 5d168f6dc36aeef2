"""Generalisation gap of the feature likelihood divergence: training against unseen rows under generated Gaussians."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdm.api import Count, Measure, Metric, Positive, Real, between, generated, metrics, thin
from rdm.judging.metrics._training import training_rows, unseen_rows

BATCH = 10_000  # training rows a step
TILE = 2**21  # pairs at a time
NEAR = 1e-3  # added to the squared distance that a width starts from
ORIGIN = 0.9**2  # of squared distances to the training rows' mean, in the component there
LEAST, MOST = -40.0, 40.0  # of a logarithm of variance
STILL, LAST = 5e-4, 5  # the fit ends where the last losses are so near each other


@metrics.register("fld_gap")
@dataclass(frozen=True)
class GeneralizationGap(Measure):
    r"""100 times the excess of unseen rows' likelihood over training rows', by dimension, under a mixture.

    .. math:: \frac{100}{d} \Big( \frac1h \sum_{y} \log p(y) - \frac1t \sum_{t} \log p(t) \Big), \quad
              p = \frac1n \sum_j N(x_j, \sigma_j^2 I)

    The mixture sits at the generated rows; its widths are fitted to the training rows, so that a copy, whose width
    falls to 0, explains a training row and no other. Source: Jiralerspong et al. (2023), "Feature Likelihood
    Divergence", section 4.2, and its code ("gap"): Adam, a rate of 0.5, 50 epochs in steps of 10,000 rows, features
    standardised by the unseen rows, one component at the training rows' mean while it is fitted. Far below 0: copies
    (-1,000 is called completely memorised there); about 0: as new data. Unseen are the fresh split's rows, or of a
    reference without one its own. At most `rows` of each of the three (the source takes all real ones). Interval: over
    new training and unseen rows, given the mixture.

    Shapes: features n d, training rows t d, unseen rows h d. Units: hundredths of a nat a dimension. Cost: epochs n t
    exponentials and (t + h) n d; memory 8 n t bytes.

    Raises:
        InputError: no training rows or no unseen ones; fewer than 2 rows.
    """

    trained: ClassVar[bool] = True
    rows: Count = 10_000
    epochs: Count = 50
    rate: Positive = 0.5

    def __call__(self, x: Tensor, real: Real, *, seed: int = 0) -> Metric:  # noqa: D102
        x = thin(generated(x, real, least=2, user="fld_gap"), self.rows, seed, "generated").double()
        train = training_rows(real, x)
        unseen = unseen_rows(real, train, self.rows, seed, "fld_gap")
        train = thin(train, self.rows, seed, "training")
        mean, spread = unseen.mean(0), unseen.std(0, correction=int(len(unseen) > 1))
        spread = torch.where(spread > 0, spread, 1.0)
        x, train, unseen = ((side - mean) / spread for side in (x, train, unseen))
        squared = _squared(train, x)
        widths = self._fitted(squared, (train - train.mean(0)).square().sum(1) * ORIGIN, x.shape[1])
        sides = [_log_likelihoods(s, widths, x.shape[1]) * 100 / x.shape[1] for s in (squared, _squared(unseen, x))]
        noise = sum(float(side.var(correction=int(len(side) > 1))) / len(side) for side in sides)
        return between(float(sides[1].mean() - sides[0].mean()), noise, len(x), seed)

    def _fitted(self, squared: Tensor, origin: Tensor, d: int) -> Tensor:
        """Logarithms of the components' variances, "n", that make the training rows likely."""
        start = ((squared.amin(0) + NEAR) / d).log()
        held = torch.cat([start, start.new_zeros(1)]).requires_grad_()  # the last: the component at the mean
        optimizer, losses = torch.optim.Adam([held], lr=self.rate), list[float]()
        for epoch in range(self.epochs):
            found = []
            for rows, far in zip(squared.split(BATCH), origin.split(BATCH), strict=True):
                loss, held.grad = _loss(rows, far, held.detach(), d)
                optimizer.step()
                with torch.no_grad():
                    held[:-1].clamp_(LEAST, MOST)
                found.append(loss)
            losses.append(math.fsum(found) / len(found))
            if epoch > LAST and max(losses[-LAST:]) - losses[-1] < STILL and losses[-1] - min(losses[-LAST:]) < STILL:
                break
        return held.detach()[:-1]


def _squared(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared distances "rows centres", about the centres' mean."""
    middle = centres.mean(0)
    rows, centres = rows - middle, centres - middle
    norms = rows.square().sum(1)[:, None] + centres.square().sum(1)
    return torch.addmm(norms, rows, centres.T, alpha=-2).clamp_min_(0)


def _terms(squared: Tensor, widths: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Logarithms of the densities N(x_j, e^w_j I) without (2 pi)^(-d/2), and squared distances in units of variance."""
    scaled = squared * (-widths).exp()
    return (scaled + d * widths) / -2, scaled


def _log_likelihoods(squared: Tensor, widths: Tensor, d: int) -> Tensor:
    parts = [_terms(some, widths, d)[0].logsumexp(1) for some in squared.split(max(1, TILE // len(widths)))]
    return torch.cat(parts) - math.log(len(widths)) - d / 2 * math.log(2 * math.pi)


def _loss(squared: Tensor, origin: Tensor, held: Tensor, d: int) -> tuple[float, Tensor]:
    """The mean negative log-likelihood by dimension, and its gradient in all logarithms of variance."""
    n, total, slope = len(held) - 1, 0.0, torch.zeros_like(held)
    size = max(1, TILE // n)
    for some, far in zip(squared.split(size), origin.split(size), strict=True):
        logs, scaled = _terms(torch.cat([some, far[:, None]], 1), held, d)
        logs[:, :-1] -= math.log(n)
        mixed = logs.logsumexp(1, keepdim=True)
        total -= float(mixed.sum())
        slope -= ((logs - mixed).exp_() * (scaled - d)).sum(0) / 2
    count = len(squared) * d
    return total / count + math.log(2 * math.pi) / 2, slope / count
