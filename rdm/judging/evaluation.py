"""Judges of generators, and the general one: distances to real data, ratios to a fresh split, collapse monitors.

It shares objectives and representations with training, but imports nothing of the trainer.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch

from rdm.data.condition import Conditions, moved
from rdm.data.dataset import Dataset
from rdm.errors import InputError
from rdm.escape import check_file_names
from rdm.files.pictures import grid_png
from rdm.generators.protocol import Generator
from rdm.judging.against import REAL, AgainstFile, AgainstItems
from rdm.judging.drawing import Samples
from rdm.judging.measures import measures
from rdm.matching.autocast import own_types
from rdm.matching.metric import Measure, Metric
from rdm.matching.objective import Objective
from rdm.matching.representation import Battery, Representation
from rdm.numbers import Count, Seed, Several, validated
from rdm.randomness import stream
from rdm.references.file import Reference
from rdm.references.pairing import as_reference

THIS = "this run"


class Judge(ABC):
    """What `rdm.train.evaluation` may be: measures a generator and may draw what it makes.

    `goals` says what a metric strives for, which sweeps mark the best by: infinity for the most, a number for the
    nearest to it, NaN for none. A metric that is not listed is a distance: the least is best.
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
    """What to measure on generated items, against real items in memory or against a measured reference.

    Of a reference in memory every generator is asked for what the fresh split's items are, and monitors of spread and
    copies look at the items; of a file it is drawn from as by `rdm sample` and `rdm evaluate`, with their numbers.

    Args:
        reference: real items; or a reference as `rdm reference` makes it, its path, or a mapping of paths, such as of
            FD-loss' .npz of moments, by encoder.
        fresh: real items apart, by whose distance ratios divide; a file has its own.
        battery: every member and every held-out representation is a column; of a file by default the one it was made
            with, whose encoders another one's must be.
        metrics: metrics by name, such as "fdr" or "precision(k=3)"; or a mapping of the names in tables to these, to
            built ones, or to objectives, which are divided by the fresh split's distance. All of a file's by default.
        judge: representation whose features are class logits, for the accuracy; None for none.
        compare: other generators measured on the same noise, by name.
        resamples: reweightings there and back that the interval of an objective follows from.
        seed: of noise and resampling.
        conditions: what generators are given for the fresh split's conditions; None for these themselves. Against a
            file, what they are asked for; None for their own.
        n: items to draw against a file; by default as many as its fresh split has.
        train: what the generator was trained on, for metrics that look for copies: items, or a reference that keeps
            every row. Of items in memory the reference is.
        condition: classes that generators are asked for in turn against a file, as text: "3,5", or "all" of their own.
    """

    reference: Dataset | Reference | str | Mapping[str, str]
    fresh: Dataset | None = None
    battery: Battery | None = None
    metrics: Mapping[str, str | Measure | Objective] | Sequence[str] | None = None
    judge: Representation | None = None
    compare: Mapping[str, Generator] | None = None
    resamples: Several = 40
    seed: Seed = 0
    conditions: Conditions | None = None
    n: Count | None = None
    train: Reference | str | None = None
    condition: str | None = None

    def __post_init__(self) -> None:
        check_file_names(self.compare or {}, what="compare", taken=(REAL, THIS))  # each is a column and a picture
        if strange := [name for name in self.metrics or () if ": " in name or not name]:
            raise InputError(f"metrics: a name may not be empty nor hold ': '; got {strange[0]!r}")
        if isinstance(self.reference, Dataset):
            self._items.check()
        else:
            self._measured.check()

    @property
    def goals(self) -> Mapping[str, float]:  # type: ignore[override]
        """The most accuracy, all of the spread, no best of copies; of a file's metrics what real data strives for."""
        watched = {"accuracy": math.inf, "spread": 1.0, "copies": math.nan}
        return watched if isinstance(self.reference, Dataset) else watched | self._measured.goals

    @own_types()
    def __call__(self, generator: Generator) -> dict[str, Metric]:
        """All metrics of `generator` (bare names), of each in `compare` and of the fresh split ("name: metric")."""
        generators = {"": generator, **(self.compare or {})}
        if not isinstance(self.reference, Dataset):
            return self._measured.judged(generators)
        here = self._on(next(generator.parameters()).device)
        return here._items.judged({name: here.sample(other) for name, other in generators.items()})

    def pictures(self, generator: Generator) -> dict[str, bytes]:
        """Fresh real items, each compared generator and this one on the same noise; a column a class, six rows at most.

        Against a file the first 60 items, without real ones.
        """
        generators = {**(self.compare or {}), THIS: generator}
        if not isinstance(self.reference, Dataset):
            return self._measured.pictures(generators)
        assert self.fresh is not None
        order, columns = self._items.columns()
        found = {REAL: self.fresh.images} | {name: self.sample(each).images for name, each in generators.items()}
        return {name: grid_png(images.cpu()[order], columns=columns) for name, images in found.items()}

    @property
    def _items(self) -> AgainstItems:
        """The judge against items in memory."""
        if self.fresh is None or self.battery is None or self.metrics is None:
            missing = next(name for name in ("fresh", "battery", "metrics") if getattr(self, name) is None)
            raise InputError(f"an evaluation against items in memory needs {missing}; give it, or a reference's path")
        assert isinstance(self.reference, Dataset)
        if self.n is not None:
            raise InputError("n is of items drawn against a file; in memory they are as many as the fresh split's")
        if self.condition is not None:
            raise InputError("condition is of items drawn against a file; in memory it is the fresh split's")
        if self.train is not None:
            raise InputError(
                "train is of a file; of items in memory the reference is what the generator was trained on"
            )
        named = measures(self.metrics, resamples=self.resamples)
        return AgainstItems(self.reference, self.fresh, self.battery, named, self.judge, self.seed)

    @cached_property
    def _measured(self) -> AgainstFile:
        """The judge against a measured reference."""
        if self.fresh is not None:
            raise InputError("a measured reference has its own fresh split; leave fresh out")
        asked = None if self.metrics is None else measures(self.metrics, resamples=self.resamples)
        assert not isinstance(self.reference, Dataset)
        file = as_reference(self.reference)
        options = {"n": self.n, "conditions": self.conditions, "train": self.train, "condition": self.condition}
        return AgainstFile(file, self.battery, asked, self.judge, self.seed, **options)

    def _on(self, device: torch.device) -> "Evaluation":
        """The same with its items on a device."""
        assert isinstance(self.reference, Dataset) and self.fresh is not None
        return replace(self, reference=self.reference.to(device), fresh=self.fresh.to(device))

    def sample(self, generator: Generator) -> Samples:
        """As many items as the fresh split has, with its labels, from noise fixed by the seed."""
        assert self.fresh is not None
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


def table(metrics: Mapping[str, Metric], columns: Sequence[str]) -> list[list[str]]:
    """Rows of text: metric, then one cell a column ("" is the judged generator), "-" where nothing was measured."""
    bare = [name for name in metrics if ": " not in name]
    rows = []
    for name in bare:
        cells = []
        for column in columns:
            metric = metrics.get(f"{column}: {name}" if column else name)
            cells.append("-" if metric is None else str(metric))
        rows.append([name, *cells])
    return rows
