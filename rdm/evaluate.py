"""Judges of generators, and the general one: distances as ratios to a fresh real split, accuracy, collapse monitors.

It shares objectives and representations with training, but imports nothing of the trainer. Every generated set has as
many items as the fresh split, so that the bias of a distance in n is the same above and below the line.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rdm.data import Dataset
from rdm.errors import InputError
from rdm.generator import Generator
from rdm.metric import Metric, between, of_share, signed_halves
from rdm.objective import Objective
from rdm.pictures import grid_png
from rdm.randomness import stream
from rdm.ratio import quotient
from rdm.reference import Reference
from rdm.representation import Battery, Representation
from rdm.statistic import checked


class Samples(NamedTuple):
    """Items to judge, with the classes they were asked for."""

    images: Tensor
    labels: Tensor | None


class Judge(ABC):
    """What `rdm.train.evaluation` may be: measures a generator and may draw what it makes.

    `goals` says what a metric strives for, which sweeps mark the best by: infinity for the most, a number for the
    nearest to it. A metric that is not listed is a distance: the least is best.
    """

    goals: ClassVar[Mapping[str, float]] = {}

    @abstractmethod
    def __call__(self, generator: Generator) -> dict[str, Metric]:
        """Metrics by name; "name: metric" for a metric of something that is compared with the generator."""

    def pictures(self, generator: Generator) -> dict[str, bytes]:
        """PNG files by title; none by default."""
        return {}


@dataclass(frozen=True)
class Evaluation(Judge):
    """What to measure on generated items.

    Args:
        reference, fresh: disjoint real splits; a distance to the first, divided by the fresh split's distance to it.
        battery: every member and every held-out representation is a column.
        metrics: objectives by the name they get in tables.
        judge: representation whose features are class logits, for the accuracy; None for none.
        compare: other generators measured on the same noise, by name.
        resamples: pairs of reweightings an interval follows from.
        seed: of noise and resampling.
    """

    goals: ClassVar[Mapping[str, float]] = {"accuracy": math.inf, "spread": 1.0}

    reference: Dataset
    fresh: Dataset
    battery: Battery
    metrics: Mapping[str, Objective]
    judge: Representation | None = None
    compare: Mapping[str, Generator] | None = None
    resamples: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 2:
            raise InputError(f"expected resamples >= 2 for an interval; got {self.resamples}")
        if signed := [name for name, objective in self.metrics.items() if not objective.traits.nonnegative]:
            raise InputError(
                f"a ratio to real data needs distances that are never negative; metric {signed[0]!r} is an unbiased "
                "estimator; take a biased one"
            )

    def __call__(self, generator: Generator) -> dict[str, Metric]:
        """All metrics of `generator` (bare names), of each in `compare` and of the fresh split ("name: metric")."""
        judged = {name: self.sample(other) for name, other in {"": generator, **(self.compare or {})}.items()}
        judged["fresh real"] = Samples(self.fresh.images, self.fresh.labels)
        found: dict[str, Metric] = {}
        ratios = list(self._ratios())
        for name, samples in judged.items():
            prefix = f"{name}: " if name else ""
            for metric, measure in ratios:
                found[prefix + metric] = measure(samples)
            for metric, value in self._monitors(samples):
                found[prefix + metric] = value
        return found

    def pictures(self, generator: Generator) -> dict[str, bytes]:
        """Six rows, a column a class: fresh real, each compared generator and this one on the same noise."""
        rows = [torch.nonzero(self.fresh.labels.cpu() == c)[:6, 0] for c in range(self.fresh.classes)]
        order = torch.stack([r for r in rows if len(r) == 6], 1).flatten()
        found = {"fresh real": self.fresh.images}
        for name, candidate in {**(self.compare or {}), "this run": generator}.items():
            found[name] = self.sample(candidate).images
        columns = self.fresh.classes
        return {name: grid_png(images.cpu()[order], columns=columns) for name, images in found.items()}

    def sample(self, generator: Generator) -> Samples:
        """As many items as the fresh split has, with its labels, from noise fixed by the seed."""
        n = len(self.fresh.images)
        noise, condition = generator.draw(n, stream(self.seed, "evaluation"))
        condition = None if condition is None else self.fresh.labels.cpu()
        device = next(generator.parameters()).device
        pieces = []
        with torch.no_grad():
            for rows in torch.arange(n).split(500):
                labels = None if condition is None else condition[rows].to(device)
                pieces.append(generator.eval()(noise[rows].to(device), labels).clamp(0, 1))
        return Samples(torch.cat(pieces).to(self.fresh.images), condition)

    def _ratios(self) -> Iterator[tuple[str, Callable[[Samples], Metric]]]:
        """One measure a metric and representation; references and the fresh split's distances are made once."""
        battery = self.battery.fitted(self.reference.images, self.reference.labels).to(self.reference.images.device)
        for representation in (*battery.members, *battery.held_out):
            reference = Reference.measure(self.reference.images, representation, condition=self.reference.labels)
            fresh = _features(representation, Samples(self.fresh.images, self.fresh.labels))
            for name, objective in self.metrics.items():
                measure = _Ratio(objective, reference, representation, fresh, self.seed, self.resamples)
                yield f"{name}/{representation.name}", measure

    def _monitors(self, samples: Samples) -> Iterator[tuple[str, Metric]]:
        if self.judge is not None and samples.labels is not None:
            logits = _features(self.judge.to(samples.images.device), samples)
            yield "accuracy", self._share(logits.argmax(1).cpu() == samples.labels.cpu())
        yield "spread", self._spread(samples)
        yield "copies", self._share(self._copies(samples.images))

    def _spread(self, samples: Samples) -> Metric:
        """Mean distance between items of one class, over that of the reference's: 1 for real data, 0 in collapse."""
        real = _within_class_distances(self.reference.images, self.reference.labels)
        labels = samples.labels if samples.labels is not None else torch.zeros(len(samples.images)).long()
        if samples.labels is None:
            real = _within_class_distances(self.reference.images, torch.zeros_like(self.reference.labels))
        rows = _within_class_distances(samples.images, labels)
        return self._mean(rows / real.mean())

    def _copies(self, images: Tensor) -> Tensor:
        """1 where an item is nearer to its nearest reference item than 99 % of the fresh split is to its own."""
        reference = self.reference.images.flatten(1)
        nearest = torch.cdist(images.flatten(1), reference).amin(1)
        usual = torch.cdist(self.fresh.images.flatten(1), reference).amin(1)
        return nearest < usual.double().quantile(0.01)

    def _share(self, hits: Tensor) -> Metric:
        value, n = float(hits.double().mean()), len(hits)
        return of_share(value, value * (1 - value) / n, n, self.seed)

    def _mean(self, values: Tensor) -> Metric:
        value, n = float(values.mean()), len(values)
        return between(value, float(values.var()) / n, n, self.seed)


class _Ratio:
    """D(generated, reference) / D(fresh, reference) under one representation, with a log-normal interval.

    The interval is that of new draws of both sets of rows, given the reference (see `rdm.metric`).
    """

    def __init__(
        self,
        objective: Objective,
        reference: Reference,
        representation: Representation,
        fresh: Tensor,
        seed: int,
        pairs: int,
    ):
        self.objective, self.representation, self.seed, self.pairs = objective, representation, seed, pairs
        self.statistic, self.target = objective.bind(reference)
        self.below = self._distance(fresh, "fresh")

    def __call__(self, samples: Samples) -> Metric:
        features = _features(self.representation, samples)
        above = self._distance(features, "generated")
        return quotient(above, self.below, len(features), self.seed)

    def _distance(self, features: Tensor, side: str) -> tuple[float, float]:
        """Value and variance."""
        rows, ones = checked(features, side=f"{side} features of {self.representation.name!r}")

        def value(weights: Tensor) -> float:
            summary = self.statistic.measure(rows, weights.to(ones))
            return float(self.objective.distance(summary, self.target))

        with torch.no_grad():
            return signed_halves(value, len(rows), self.pairs, stream(self.seed, "interval", side))


def _features(representation: Representation, samples: Samples) -> Tensor:
    representation.check(samples.images)
    with torch.no_grad():
        return torch.cat(
            [
                representation(images, None if samples.labels is None else samples.labels[rows])
                for rows, images in zip(
                    torch.arange(len(samples.images)).split(500), samples.images.split(500), strict=True
                )
            ]
        )


def _within_class_distances(images: Tensor, labels: Tensor) -> Tensor:
    """One number an item, whose mean is that of the distances between items of one class, and their spread its error.

    Twice the item's mean distance to the others of its class, since it is in each pair of its own and of theirs, less
    the class's mean. Classes of one item are left out.
    """
    shares = []
    for label in labels.unique():
        rows = images[(labels == label).to(images.device)].flatten(1).double()
        if len(rows) > 1:
            means = torch.cdist(rows, rows).sum(1) / (len(rows) - 1)
            shares.append(2 * means - means.mean())
    return torch.cat(shares)


def _cell(metric: Metric) -> str:
    """Value and what it may be off by: a sum, or a factor where the interval is log-normal (0.5 to 2 is 1 ×÷2)."""
    half = (metric.high - metric.low) / 2
    if 0 < metric.low < metric.high and math.isclose(metric.low * metric.high, metric.value**2, rel_tol=1e-6):
        return f"{metric.value:.3g} ×÷{metric.high / metric.value:.2g}"
    return f"{metric.value:.3g}±{half:.2g}" if half >= 0.01 else f"{metric.value:.3g}±{half:.1g}"


def table(metrics: Mapping[str, Metric], columns: Sequence[str]) -> list[list[str]]:
    """Rows of text: metric, then one cell a column ("" is the judged generator), "-" where nothing was measured."""
    bare = [name for name in metrics if ": " not in name]
    rows = []
    for name in bare:
        cells = []
        for column in columns:
            metric = metrics.get(f"{column}: {name}" if column else name)
            cells.append("-" if metric is None else _cell(metric))
        rows.append([name, *cells])
    return rows
