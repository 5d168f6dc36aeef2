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

from rdm.data.condition import Conditions, moved
from rdm.data.dataset import Dataset
from rdm.errors import InputError
from rdm.escape import check_file_names
from rdm.files.pictures import grid_png
from rdm.generators.protocol import Generator
from rdm.judging.ratio import quotient
from rdm.matching.autocast import own_types
from rdm.matching.metric import Metric, between, of_share, reweighted
from rdm.matching.objective import Objective
from rdm.matching.real import Real
from rdm.matching.representation import Battery, Representation
from rdm.matching.statistic import checked
from rdm.numbers import Seed, Several, validated
from rdm.randomness import stream
from rdm.references.encoded import encoded

REAL, THIS = "fresh real", "this run"


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


@validated
@dataclass(frozen=True)
class Evaluation(Judge):
    """What to measure on generated items.

    Args:
        reference, fresh: disjoint real splits; a distance to the first, divided by the fresh split's distance to it.
        battery: every member and every held-out representation is a column.
        metrics: objectives by the name they get in tables.
        judge: representation whose features are class logits, for the accuracy; None for none.
        compare: other generators measured on the same noise, by name.
        resamples: reweightings there and back that an interval follows from.
        seed: of noise and resampling.
        conditions: what generators are given for the fresh split's conditions; None for these themselves.
    """

    goals: ClassVar[Mapping[str, float]] = {"accuracy": math.inf, "spread": 1.0}

    reference: Dataset
    fresh: Dataset
    battery: Battery
    metrics: Mapping[str, Objective]
    judge: Representation | None = None
    compare: Mapping[str, Generator] | None = None
    resamples: Several = 40
    seed: Seed = 0
    conditions: Conditions | None = None

    def __post_init__(self) -> None:
        check_file_names(self.compare or {}, what="compare", taken=(REAL, THIS))  # each is a column and a picture
        if strange := [name for name in self.metrics if ": " in name or not name]:
            raise InputError(f"metrics: a name may not be empty nor hold ': '; got {strange[0]!r}")
        for side in (self.reference, self.fresh):
            if len(side.labels) == len(side.labels.unique()):
                raise InputError(f"evaluation needs two items of some class; {side.name} has {len(side.labels)} in all")
        classes = (
            self.reference.images[self.reference.labels.cpu() == c] for c in self.reference.labels.unique().cpu()
        )
        if all(bool((items == items[:1]).all()) for items in classes):
            raise InputError(f"{self.reference.name}: the items of a class are all equal; spread is a share of theirs")
        if signed := [name for name, objective in self.metrics.items() if not objective.traits.nonnegative]:
            raise InputError(
                f"a ratio to real data needs distances that are never negative; metric {signed[0]!r} is an unbiased "
                "estimator; take a biased one"
            )

    @own_types()
    def __call__(self, generator: Generator) -> dict[str, Metric]:
        """All metrics of `generator` (bare names), of each in `compare` and of the fresh split ("name: metric")."""
        judged = {name: self.sample(other) for name, other in {"": generator, **(self.compare or {})}.items()}
        judged[REAL] = Samples(self.fresh.images, self.fresh.labels)
        battery = self.battery.fitted(self.reference.images, self.reference.labels).to(self.reference.images.device)
        found: dict[str, Metric] = {}
        for representation in (*battery.members, *battery.held_out):
            found |= self._ratios(representation, judged)
        for name, samples in judged.items():
            found |= {_key(name, monitor): metric for monitor, metric in self._monitors(samples)}
        return found

    def pictures(self, generator: Generator) -> dict[str, bytes]:
        """Six rows or fewer, a column a class: fresh real, each compared generator and this one on the same noise."""
        rows = [torch.nonzero(self.fresh.labels.cpu() == c)[:6, 0] for c in range(self.fresh.classes)]
        most = max(len(row) for row in rows)
        order = torch.stack([row for row in rows if len(row) == most], 1).flatten()
        found = {REAL: self.fresh.images}
        for name, candidate in {**(self.compare or {}), THIS: generator}.items():
            found[name] = self.sample(candidate).images
        columns = len(order) // most
        return {name: grid_png(images.cpu()[order], columns=columns) for name, images in found.items()}

    def sample(self, generator: Generator) -> Samples:
        """As many items as the fresh split has, with its labels, from noise fixed by the seed."""
        n = len(self.fresh.images)
        noise = generator.noise(n, stream(self.seed, "evaluation"))
        asked = self.conditions is not None or generator.conditions is not None
        condition = self.fresh.labels.cpu() if asked else None
        device = next(generator.parameters()).device
        pieces = []
        with torch.no_grad():
            for rows in torch.arange(n).split(500):
                given = None if condition is None else condition[rows]
                if self.conditions is not None and given is not None:
                    given = self.conditions.read(given)
                pieces.append(generator.eval()(noise[rows].to(device), moved(given, device)).clamp(0, 1))
        return Samples(torch.cat(pieces).to(self.fresh.images), condition)

    def _ratios(self, representation: Representation, judged: Mapping[str, Samples]) -> dict[str, Metric]:
        """Distances to the reference over the fresh split's, of every metric and every judged set.

        Intervals are those of new draws of both sets, with the labels that a generator was asked for.
        """
        reference = encoded(self.reference.images, representation, condition=self.reference.labels)
        features = {name: _features(representation, samples) for name, samples in judged.items()}
        labelled = {samples.labels is not None for samples in judged.values()}
        found = {}
        for metric, objective in self.metrics.items():
            distance = self._bound(objective, reference)
            below = {given: distance(features[REAL], judged[REAL].labels if given else None) for given in labelled}
            for name, samples in judged.items():
                given = samples.labels is not None
                above = below[given] if name == REAL else distance(features[name], samples.labels)
                ratio = quotient(above, below[given], len(features[name]), self.seed)
                found[_key(name, f"{metric}/{representation.name}")] = ratio
        return found

    def _bound(self, objective: Objective, reference: Real) -> Callable[[Tensor, Tensor | None], tuple[float, float]]:
        """Distance of rows to the reference, and its variance over new draws of them, of these labels."""
        statistic, target = objective.bind(reference)

        def distance(rows: Tensor, labels: Tensor | None) -> tuple[float, float]:
            def value(weights: Tensor) -> float:
                return float(objective.distance(statistic.measure(rows, weights.to(rows.device)), target))

            with torch.no_grad():
                return reweighted(value, len(rows), self.resamples, stream(self.seed, "interval"), strata=labels)

        return distance

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
        return between(value, float(values.var()) / n, n, self.seed, least=0.0)


def _key(name: str, metric: str) -> str:
    return f"{name}: {metric}" if name else metric


def _features(representation: Representation, samples: Samples) -> Tensor:
    representation.check(samples.images)
    rows = torch.arange(len(samples.images)).split(500)
    with torch.no_grad():
        parts = [
            representation(images, None if samples.labels is None else samples.labels[k])
            for k, images in zip(rows, samples.images.split(500), strict=True)
        ]
    return checked(torch.cat(parts), side=f"features of {representation.name!r}")[0]


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
