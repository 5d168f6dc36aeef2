"""A spiral in a plane of a space of many dimensions, and the judge of what a generator makes of it."""

import io
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
    InputError,
    Judge,
    Metric,
    Nonnegative,
    Positive,
    Seed,
    Several,
    datasets,
    evaluations,
    stream,
)


@datasets.register("spiral")
def spiral(n: Count = 2000, noise: Nonnegative = 0.05, dimension: Several = 64, seed: Seed = 0) -> Dataset:
    """Points on two turns of a spiral (radius 0.5 to 2.5) with Gaussian noise in its plane, without classes.

    Source: the toy study of Feng et al. (2026), "Representation Distribution Matching", figure 3. Items are
    "n dimension": the plane lies in the space as two orthonormal directions, the same for every seed.
    """
    source = stream(seed, "spiral")
    points = _curve(torch.rand(n, generator=source)) + noise * torch.randn(n, 2, generator=source)
    return Dataset("spiral", points @ _plane(dimension).T, torch.zeros(n, dtype=torch.long), classes=1)


@evaluations.register("spiral", needs="items of the data set spiral")
@dataclass(frozen=True)
class SpiralScore(Judge):
    """Recall of the spiral and median distance to it, both within its plane, and the distance from that plane.

    recall: share of `anchors` on the curve with a sample within `radius`. distance: median over the samples of the
    distance to the nearest point of the curve; real data score noise times 0.674, 0.033 by default. Both are those of
    Feng et al. (2026), whose code projects samples to the plane first. off plane: what that leaves out, the median
    distance of the samples from the plane, 0 for real data. The interval is 1.96 standard deviations over resamples of
    the samples, without the bias that resampling has.
    """

    goals: ClassVar[Mapping[str, float]] = {"recall": math.inf}

    samples: Count = 4000
    anchors: Count = 60
    radius: Positive = 0.15
    resamples: Several = 40
    seed: Seed = 0

    def __call__(self, generator: Generator) -> dict[str, Metric]:
        """All metrics of the generator's samples."""
        return self.measure(self.draw(generator))

    def measure(self, items: Tensor) -> dict[str, Metric]:
        """All metrics of items "n d"."""
        n = len(items)
        inside, beside = _split(items)
        hits = _distances(inside, self.anchors) <= self.radius
        distances = _distances(inside, 5000).amin(1)
        source = stream(self.seed, "bootstrap")
        draws = [torch.arange(n), *(torch.randint(n, (n,), generator=source) for _ in range(self.resamples))]
        recall = torch.stack([hits[draw].any(0).double().mean() for draw in draws])
        median, height = (torch.stack([each[draw].median() for draw in draws]) for each in (distances, beside))
        distance, off_plane = self._metric(median, n), self._metric(height, n)
        return {"recall": self._metric(recall, n, most=1.0), "distance": distance, "off plane": off_plane}

    def pictures(self, generator: Generator) -> dict[str, bytes]:
        """Samples projected to the plane of the spiral, over the curve; none without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            return {}
        figure = Figure(figsize=(5, 5), layout="constrained")
        axis = figure.subplots()
        items = self.draw(generator)
        axis.plot(*_curve(torch.linspace(0, 1, 400)).T, color="0.6", linewidth=1)
        axis.scatter(*(items @ _plane(items.shape[1])).T, s=2, alpha=0.4, linewidths=0)
        axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        return {"samples in the plane": buffer.getvalue()}

    def draw(self, generator: Generator) -> Tensor:
        """Samples from noise fixed by the seed."""
        noise = generator.noise(self.samples, stream(self.seed, "evaluation"))
        with torch.no_grad():
            items = generator.eval()(noise.to(next(generator.parameters()).device))
        if items.ndim != 2:
            raise InputError(f'the spiral\'s items are points "n d"; got {tuple(items.shape)}; judge them otherwise')
        return items.cpu().float()

    def _metric(self, values: Tensor, n: int, most: float = math.inf) -> Metric:
        value, half = float(values[0]), 1.96 * float(values[1:].std())
        return Metric(value, max(value - half, 0.0), min(value + half, most), n, self.seed)


def _split(items: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates "n 2" in the spiral's plane and distances "n" from it, in float64."""
    items, plane = items.double(), _plane(items.shape[1]).double()
    inside = items @ plane
    return inside, (items - inside @ plane.T).norm(dim=1)


def _distances(inside: Tensor, points: int) -> Tensor:
    """Distances "n points", within the plane, to points on the curve; by differences, since squares would cancel."""
    curve = _curve(torch.linspace(0, 1, points, dtype=inside.dtype))
    return torch.cdist(inside, curve, compute_mode="donot_use_mm_for_euclid_dist")


def _curve(t: Tensor) -> Tensor:
    """Points "n 2" of the noiseless spiral at t in [0, 1]: radius 0.5 + 2 t, angle 4 pi t."""
    radius, angle = 0.5 + 2 * t, 4 * math.pi * t
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _plane(dimension: int) -> Tensor:
    """Two orthonormal directions "dimension 2"."""
    return torch.linalg.qr(torch.randn(dimension, 2, generator=stream(0, "plane of the spiral"))).Q
