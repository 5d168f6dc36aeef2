"""A metric fed batch by batch, as torchmetrics' users expect: update, compute, reset, merges over ranks."""

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdm.data.inputs import Inputs
from rdm.distributed import concatenated, gather, rank
from rdm.errors import InputError
from rdm.judging.measures import named
from rdm.judging.ratio import Ratio
from rdm.matching.metric import Measure, Metric
from rdm.matching.real import Gaussian, Real
from rdm.matching.representation import Battery, Representation
from rdm.matching.statistic import checked
from rdm.numbers import Count, Seed, check
from rdm.randomness import stream
from rdm.references.accumulate import Blocks, Reservoir, merged
from rdm.references.file import Reference
from rdm.references.pairing import as_reference, paired
from rdm.registry import metrics as registry
from rdm.registry import representations

SIDES = "generated", "real"
ENCODED, FOLDED = 64, 256  # items encoded, and rows taken into moments and sample, at a time


class Streaming:
    """Metrics of everything seen so far: float64 moments and a uniform sample of rows, whatever the number of items.

    Items are encoded and added up in blocks of a fixed size, and an item's place in the sample follows from its number,
    so that the results are the same bits whatever the batches. What does not fill a block waits for more; `compute`
    takes it in for the time being. Threads may share one object; the order of their items is then that of arrival.

    Args:
        representation: the encoder, or its registered name (a torch module is copied), on images "n c h w" as uint8
            or float in [0, 1], or on what it says that it takes; None for rows "n d" as they are.
        metrics: metrics that compare two sides, by name, "kid" or "precision(k=3)", or built,
            `rdm.metric("kid", size=100)`; a mapping gives them names of your own.
        reference: the real side, where it is known beforehand: a `rdm.Reference` or its file, whose encoder must be
            this one (and gives an encoder that is fitted on data its weights); or a `rdm.api.Real`, which may hold a
            fresh split and a training set for the metrics that need them. Then only generated items are fed.
        rows: sampled rows kept a side. The moments are of all items, so `fd` is exact; others are of the sample.
        seed: of the sample; objects that will merge draw apart with seeds of their own.

    Raises:
        InputError: no representation, not fitted or conditional; no metric, or one that needs a fresh split or a
            training set which no reference gives.
        MismatchError: the reference is of another encoder.

    >>> import torch
    >>> metric = Streaming(None, ["fd"])
    >>> metric.update(torch.tensor([[0.0], [2.0]]), real=True)
    >>> metric.update(torch.tensor([[3.0]]), real=False)
    >>> metric.update(torch.tensor([[5.0]]), real=False)
    >>> metric.compute()["fd"].value
    9.0
    """

    def __init__(
        self,
        representation: Representation | nn.Module | str | None,
        metrics: Sequence[str | Measure] | Mapping[str, str | Measure],
        *,
        reference: Real | Reference | Path | str | None = None,
        rows: int = 4096,
        seed: int = 0,
    ):
        check("rows", rows, Count)
        check("seed", seed, Seed)
        self.rows, self.seed = rows, seed
        self.representation, self.reference = _known_side(representation, reference)
        self._measures = _measures(metrics, self.reference)
        self.names = tuple(self._measures)
        self._lock = threading.RLock()
        self._sides: dict[str, _Side] = {}
        self.reset(real=True)

    def __repr__(self) -> str:
        """The metrics, and what they see."""
        return f"Streaming {', '.join(self.names)} of {self.representation or 'features'}"

    def reset(self, *, real: bool = False) -> None:
        """Forget the generated side; the real one too where asked for."""
        with self._lock:
            for side in SIDES if real else SIDES[:1]:
                self._sides[side] = _Side(side, self.representation, self.rows, self.seed)

    def update(self, images: Tensor, *, real: bool) -> None:
        """Take in a batch of one side.

        Raises:
            InputError: no batch, values or a shape that the representation does not take, features that are not finite.
        """
        if real and self.reference is not None:
            raise InputError("the real side is the reference's; feed generated items, or leave the reference out")
        with self._lock:
            self._sides[SIDES[real]].add(images)

    def merge(self, other: "Streaming") -> None:
        """Take in what another object of other items has seen."""
        with other._lock:
            theirs = {side: other._sides[side].finished() for side in SIDES}
        with self._lock:
            for side in SIDES:
                self._sides[side].take(theirs[side])

    def compute(self) -> dict[str, Metric]:
        """Every metric with its interval, of all ranks' items; equal on every rank."""
        with self._lock:
            real, made = self.reference, self._whole(SIDES[0])
            if real is None:
                fit, sample = self._whole(SIDES[1])
                real = Real(sample, fit)
            return {name: m.streamed(*made, real, seed=self.seed) for name, m in self._measures.items()}

    def _whole(self, side: str) -> tuple[Gaussian, Tensor]:
        """Fit and sample of one side over all ranks, of which some may have seen nothing."""
        here = self._sides[side].finished()
        fit = here.fit
        shapes = gather(torch.tensor([0, 0] if fit is None else [fit.n, len(fit.mean)]))
        n, d = sum(int(shape[0]) for shape in shapes), max(int(shape[1]) for shape in shapes)
        if n < 2:
            raise InputError(f"compute needs at least 2 {side} items; got {n}; update first")
        if fit is None:
            fit = Gaussian(torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64), 0)
        parts = zip(gather(fit.mean), gather(fit.covariance), shapes, strict=True)
        fits = [Gaussian(mean, covariance, int(shape[0])) for mean, covariance, shape in parts if shape[0] > 0]
        none = {"keys": torch.zeros(0, dtype=torch.int64), "rows": torch.zeros(0, d)}
        state = here.sample.state() or none
        keys, rows = concatenated(state["keys"]), concatenated(state["rows"])
        return reduce(merged, fits), rows[keys.argsort(stable=True)[: self.rows]]

    def __getstate__(self) -> dict[str, Any]:  # noqa: D105
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:  # noqa: D105
        vars(self).update(state, _lock=threading.RLock())


class _Side:
    """One side's moments and sample, and what waits for its block to fill."""

    def __init__(self, name: str, representation: Representation | None, rows: int, seed: int):
        self.name, self.representation, self.seed = name, representation, seed
        self.fit: Gaussian | None = None
        self.sample = Reservoir(rows)
        self.folded = 0  # own rows in moments and sample
        self.items, self.features = Blocks(ENCODED), Blocks(FOLDED)
        self.width: int | None = None

    def add(self, items: Tensor) -> None:
        """Check a batch and take in the blocks that it fills."""
        if self.representation is None:
            self._check_rows(items)
            self._fold(self.features.add(items.detach()))
        else:
            self._check_items(self.representation, items)
            self._encode(self.representation, self.items.add(items.detach()))

    def take(self, other: "_Side") -> None:
        """Another's moments and sample."""
        if other.fit is not None:
            self.fit = other.fit if self.fit is None else merged(self.fit, other.fit)
        self.sample.merge(other.sample.state())

    def finished(self) -> "_Side":
        """A copy that has taken in what waits."""
        found = copy.copy(self)
        found.sample, found.items = copy.deepcopy(self.sample), copy.deepcopy(self.items)
        found.features = copy.deepcopy(self.features)
        if self.representation is not None:
            found._encode(self.representation, found.items.close())
        found._fold(found.features.close())
        return found

    def _check_rows(self, rows: Any) -> None:
        if not isinstance(rows, Tensor):
            raise InputError(f"{self.name} rows must be a tensor (n, d); got {type(rows).__name__}; convert it")
        checked(rows.detach(), side=f"{self.name} rows")
        if self.width not in (None, rows.shape[1]):
            raise InputError(f"{self.name} rows must have {self.width} columns as those before; got {rows.shape[1]}")
        self.width = rows.shape[1]

    def _check_items(self, representation: Representation, items: Any) -> None:
        inputs = representation.inputs
        if inputs.low is None and not inputs.integer:
            inputs = replace(inputs, low=0.0, high=1.0)
        inputs.check_values(_floating(items, inputs), f"representation {representation.name!r} ({self.name} side)")

    def _encode(self, representation: Representation, blocks: Sequence[Tensor]) -> None:
        for items in blocks:
            with torch.no_grad():
                features = representation(_floating(items, representation.inputs))
            self._fold(self.features.add(checked(features, side=f"{self.name} features")[0].cpu()))

    def _fold(self, blocks: Sequence[Tensor]) -> None:
        """Blocks of rows into moments and sample; a row's key follows from its number."""
        for rows in blocks:
            rows = checked(rows, side=f"{self.name} rows")[0].cpu()
            fit = _fit(rows)
            self.fit = fit if self.fit is None else merged(self.fit, fit)
            keys = torch.randint(2**62, (FOLDED,), generator=stream(self.seed, self.name, rank(), self.folded))
            self.sample.add(keys[: len(rows)], {"rows": rows.float()})
            self.folded += len(rows)


def _floating(items: Any, inputs: Inputs) -> Any:
    """8-bit items in [0, 1], for encoders of floating-point numbers."""
    scaled = isinstance(items, Tensor) and items.dtype == torch.uint8 and not inputs.integer
    return items.float() / 255 if scaled else items


def _encoder(given: Any) -> Representation | None:
    """What encodes items, checked."""
    if given is None:
        return None
    if isinstance(given, nn.Module):
        return Representation(type(given).__name__, copy.deepcopy(given))  # it is frozen, and the caller's may train
    if isinstance(given, str):
        given = representations.take(given, Representation)
    if not isinstance(given, Representation):
        raise InputError(
            "Streaming takes a representation, its name, a torch module, or None for rows; "
            f"got {type(given).__name__}; of a battery give one member"
        )
    if given.conditional or given.module is None:
        what = "takes conditions, which Streaming has not" if given.conditional else "is not fitted"
        raise InputError(f"representation {given.name!r} {what}; encode the items yourself and give None")
    return given


def _known_side(given: Any, reference: Any) -> tuple[Representation | None, Real | None]:
    """The encoder and, where it is known beforehand, the real side."""
    if reference is None or isinstance(reference, Real):
        return _encoder(given), reference
    if given is None:
        return None, as_reference(reference).real()
    encoder = Representation(type(given).__name__, copy.deepcopy(given)) if isinstance(given, nn.Module) else given
    if not isinstance(encoder, Representation):
        return _encoder(encoder), None  # which refuses it
    file = as_reference({encoder.name: reference})
    (encoder,) = paired(Battery((encoder,)), file, file.name, "the representation").members
    return _encoder(encoder), file.members[encoder.name].sampled()


def _measures(given: Any, reference: Real | None = None) -> dict[str, Measure]:
    """Metrics by the name that their results get."""
    if isinstance(given, str | Measure):
        given = [given]
    if not isinstance(given, Mapping):
        names = [_name(each) for each in given]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"names of metrics must differ; {repeated} occur more than once; give a mapping")
        given = dict(zip(names, given, strict=True))
    if not given:
        raise InputError("Streaming needs at least one metric; got none")
    found = {name: named(each) if isinstance(each, str) else each for name, each in given.items()}
    for name, measure in found.items():
        if not isinstance(measure, Measure):
            raise InputError(f"metric {name!r} must be a name or built by rdm.metric; got {type(measure).__name__}")
        if isinstance(measure, Ratio) and (reference is None or reference.fresh is None):
            raise InputError(f"{name} divides by a fresh real split's distance; give a reference that holds one")
        if measure.trained and (reference is None or reference.train is None):
            raise InputError(
                f"{name} looks for copies of the training set; give reference=rdm.api.Real(..., train=...)"
            )
    return found


def _name(measure: str | Measure) -> str:
    """The registered name."""
    if isinstance(measure, str):
        return measure
    known = (name for name, entry in registry.items() if entry.build is type(measure))
    return next(known, type(measure).__name__)


def _fit(rows: Tensor) -> Gaussian:
    """Of a block, which may be one row."""
    if len(rows) > 1:
        return Gaussian.of(rows)
    return Gaussian(rows[0].double(), torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64), 1)
