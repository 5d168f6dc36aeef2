"""The two sides that a generator is judged against: real items in memory, and a measured reference."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rdm.data.condition import Conditions
from rdm.data.dataset import Dataset
from rdm.errors import InputError
from rdm.files.pictures import grid_png
from rdm.generators.protocol import Generator
from rdm.judging.drawing import Drawing, Samples, classes_of
from rdm.judging.monitors import accuracy, copies, spread
from rdm.judging.samples import encode, judge
from rdm.judging.training_set import channels_of, training_features
from rdm.matching.metric import Measure, Metric
from rdm.matching.representation import Battery, Representation
from rdm.matching.statistic import checked
from rdm.references.encoded import encoded
from rdm.references.file import Reference
from rdm.references.measure import Encoders
from rdm.references.pairing import battery_of, paired

REAL = "fresh real"
DRAWN = 16_384  # items drawn where nothing says how many
SHOWN = 60  # pictures of a grid
REMEDY = "give rdm.evaluation.battery, as your own configuration may"


@dataclass(frozen=True)
class AgainstItems:
    """Disjoint real splits: metrics against the first, ratios to the second's, and the monitors that look at items.

    Every generated set has as many items as the fresh split, so that a distance's bias in n is the same above and below
    the line.
    """

    reference: Dataset
    fresh: Dataset
    battery: Battery
    measures: Mapping[str, Measure]
    judge: Representation | None
    seed: int

    def check(self) -> None:
        """Refuse splits that the monitors cannot look at."""
        for side in (self.reference, self.fresh):
            if len(side.labels) == len(side.labels.unique()):
                raise InputError(f"evaluation needs two items of some class; {side.name} has {len(side.labels)} in all")
        classes = (
            self.reference.images[self.reference.labels.cpu() == c] for c in self.reference.labels.unique().cpu()
        )
        if all(bool((items == items[:1]).all()) for items in classes):
            raise InputError(f"{self.reference.name}: the items of a class are all equal; spread is a share of theirs")

    def judged(self, sets: Mapping[str, Samples]) -> dict[str, Metric]:
        """Every metric of every set, and of the fresh split."""
        everything = {**sets, REAL: Samples(self.fresh.images, self.fresh.labels)}
        battery = self.battery.fitted(self.reference.images, self.reference.labels).to(self.reference.images.device)
        found: dict[str, Metric] = {}
        for representation in (*battery.members, *battery.held_out):
            found |= self._under(representation, everything)
        for name, samples in everything.items():
            found |= {key(name, monitor): metric for monitor, metric in self._monitors(samples)}
        return found

    def columns(self) -> tuple[Tensor, int]:
        """Rows of the fresh split in the order of a grid, a column a class, six rows or fewer; and how many columns."""
        rows = [torch.nonzero(self.fresh.labels.cpu() == c)[:6, 0] for c in range(self.fresh.classes)]
        most = max(len(row) for row in rows)
        order = torch.stack([row for row in rows if len(row) == most], 1).flatten()
        return order, len(order) // most

    def _under(self, representation: Representation, sets: Mapping[str, Samples]) -> dict[str, Metric]:
        """Every metric of every set under one representation."""
        features = {name: _features(representation, samples) for name, samples in sets.items()}
        real = encoded(self.reference.images, representation, condition=self.reference.labels)
        real = replace(real, fresh=features[REAL], train=real.rows if isinstance(real.rows, Tensor) else None)
        found = {}
        for metric, measure in self.measures.items():
            value = measure.bound(real, seed=self.seed)
            for name, samples in sets.items():
                found[key(name, f"{metric}/{representation.name}")] = value(features[name], samples.labels)
        return found

    def _monitors(self, samples: Samples) -> Iterator[tuple[str, Metric]]:
        if self.judge is not None and samples.labels is not None:
            logits = _features(self.judge.to(samples.images.device), samples)
            yield "accuracy", accuracy(logits, samples.labels, self.seed)
        yield "spread", spread(samples, Samples(self.reference.images, self.reference.labels), self.seed)
        yield "copies", copies(samples.images, self.reference.images, self.fresh.images, self.seed)


@dataclass(frozen=True)
class AgainstFile:
    """A measured reference: items drawn and encoded as they come, judged as `rdm evaluate` judges samples."""

    file: Reference
    battery: Battery | None
    measures: Mapping[str, Measure] | None
    judge: Representation | None
    seed: int
    n: int | None
    conditions: Conditions | None
    train: str | Reference | None = None
    condition: str | None = None  # classes to ask for in turn

    def check(self) -> None:
        """Refuse a reference whose encoders nobody says."""
        if self.battery is None and self.file.description.get("battery", {}).get("name") is None:
            raise InputError(f"{self.file.name} holds features without their encoder; give rdm.evaluation.battery")

    @property
    def goals(self) -> dict[str, float]:
        """What the metrics strive for, where that is not the least."""
        known = (self.measures or {}).items()
        nearest = {name: measure.best for name, measure in known if measure.best or measure.lowest < 0}
        return {f"{name}/{m}": best for name, best in nearest.items() for m in self.file.members}

    def judged(self, generators: Mapping[str, Generator]) -> dict[str, Metric]:
        """Every metric of every generator, drawn alike; alarms of the first are warnings."""
        found: dict[str, Metric] = {}
        for name, generator in generators.items():
            encoders = self._encoders(next(generator.parameters()).device)
            rows = encode(self._drawing(generator), encoders)
            train = None if self.train is None else training_features(self.train, self.file, encoders)
            verdict = judge(rows, self.file, self.measures, seed=self.seed, train=train)
            found |= {key(name, metric): value for metric, value in verdict.metrics.items()}
            if self.judge is not None and rows.labels is not None and bool((rows.labels >= 0).all()):
                found[key(name, "accuracy")] = accuracy(rows.features[self.judge.name], rows.labels, self.seed)
            for line in () if name else verdict.alarms:
                warnings.warn(line, stacklevel=2)
        return found

    def pictures(self, generators: Mapping[str, Generator]) -> dict[str, bytes]:
        """The first items of each, where they are pictures."""
        found = {}
        for name, generator in generators.items():
            images = replace(self._drawing(generator), total=SHOWN).block(0).images
            if images.ndim == 4 and images.shape[1] in (1, 3):
                found[name] = grid_png(images, columns=10)
        return found

    def _drawing(self, generator: Generator) -> Drawing:
        classes = classes_of(self.condition, generator)
        drawing = drawing_for(self.file, generator, n=self.n, seed=self.seed, condition=classes)
        return replace(drawing, conditions=self.conditions)

    def _encoders(self, device: torch.device) -> Encoders:
        if self.battery is None:
            battery = battery_of(self.file, self.file.name, device, remedy=REMEDY)
        else:
            battery = paired(self.battery, self.file, self.file.name, "rdm.evaluation.battery").to(device)
        names = {m.name for m in (*battery.members, *battery.held_out)}
        judges = () if self.judge is None or self.judge.name in names else (self.judge.to(device),)
        return Encoders(replace(battery, held_out=(*battery.held_out, *judges)), device=device)


def drawing_for(
    file: Reference,
    generator: Generator,
    *,
    n: int | None,
    seed: int,
    condition: list[int] | None = None,
    batch: int = 32,
    conditions: Conditions | None = None,
) -> Drawing:
    """Items of a generator to judge against a reference: by default as many as its fresh split has, in its channels."""
    held = file.description
    n = n or min(DRAWN, held.get("n_fresh") or held.get("n") or DRAWN)
    return Drawing(generator, n, seed, condition, batch, channels_of(file), conditions)


def key(name: str, metric: str) -> str:
    """What a metric of a compared set is called; of the judged generator, "", its bare name."""
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
