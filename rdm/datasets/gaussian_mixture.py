"""Five Gaussians on a circle, and the judge of what a generator makes of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdm.api import (
    Count,
    Dataset,
    Generator,
    Judge,
    Metric,
    Positive,
    Seed,
    Several,
    datasets,
    evaluations,
    generators,
    stream,
)


@datasets.register("gaussian_mixture")
def gaussian_mixture(n: Count = 20_000, deviation: Positive = 0.05, seed: Seed = 0) -> Dataset:
    """Points "n 2" of the five-mode mixture whose exact velocity is the generator of that name, without classes."""
    items = _draw(n, deviation, stream(seed, "gaussian mixture"))
    return Dataset("gaussian_mixture", items, torch.zeros(n, dtype=torch.long), classes=1)


@evaluations.register("gaussian_mixture", needs="items of the data set gaussian_mixture")
@dataclass(frozen=True)
class MixtureScore(Judge):
    """Sliced Wasserstein distance (order 2, the root) to fresh data, and the share of samples between the modes.

    The distance is over `projections` equal angles, in units of the deviation of a mode; two samples of the data are
    at about 1.4 / sqrt(samples) times the data's own spread, printed as "floor". between: share of samples farther
    than three deviations from every centre (real data: .011). Intervals are 1.96 standard deviations over resamples.
    """

    goals: ClassVar[Mapping[str, float]] = {}

    samples: Several = 4096
    deviation: Positive = 0.05
    projections: Count = 64
    resamples: Several = 20
    seed: Seed = 0

    def __call__(self, generator: Generator) -> dict[str, Metric]:
        """All metrics of the generator's samples."""
        noise = generator.noise(self.samples, stream(self.seed, "evaluation"))
        with torch.no_grad():
            items = generator.eval()(noise.to(next(generator.parameters()).device)).cpu().double()
        return self.measure(items)

    def measure(self, items: Tensor) -> dict[str, Metric]:
        """All metrics of items "n 2"."""
        fresh, other = (_draw(self.samples, self.deviation, stream(self.seed, k)).double() for k in ("fresh", "other"))
        source, n = stream(self.seed, "bootstrap"), len(items)
        draws = [torch.arange(n), *(torch.randint(n, (n,), generator=source) for _ in range(self.resamples))]
        far = torch.cdist(items, _centres()).amin(1) > 3 * self.deviation
        return {
            "sliced distance": self._metric([self._distance(items[draw], fresh) for draw in draws], n),
            "floor": self._metric([self._distance(other[draw % len(other)], fresh) for draw in draws], n),
            "between": self._metric([float(far[draw].double().mean()) for draw in draws], n),
        }

    def _distance(self, x: Tensor, y: Tensor) -> float:
        angles = torch.arange(self.projections, dtype=torch.float64) * math.pi / self.projections
        directions = torch.stack([angles.cos(), angles.sin()])
        at = (torch.arange(self.samples, dtype=torch.float64) + 0.5) / self.samples
        ends = [torch.quantile(side @ directions, at, dim=0) for side in (x, y)]
        return float((ends[0] - ends[1]).square().mean().sqrt()) / self.deviation

    def _metric(self, values: list[float], n: int) -> Metric:
        half = 1.96 * float(torch.tensor(values[1:]).std())
        return Metric(values[0], max(values[0] - half, 0.0), values[0] + half, n, self.seed)


def _centres() -> Tensor:
    """Of the items "5 2"."""
    field = generators.build("gaussian_mixture")
    return field.decode(field.centres).double()


def _draw(n: int, deviation: float, source: torch.Generator) -> Tensor:
    which = torch.randint(5, (n,), generator=source)
    return _centres().float()[which] + deviation * torch.randn(n, 2, generator=source)
