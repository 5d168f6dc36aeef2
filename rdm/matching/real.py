"""The real side under one representation, as objectives and metrics see it: rows, a sample of them, or moments."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rdm.distributed import concatenated, rank, summed, together, world_size
from rdm.errors import InputError
from rdm.escape import brief
from rdm.files.store import digest
from rdm.matching.autocast import refuse_gradient
from rdm.matching.statistic import Statistic, Summary, checked
from rdm.numbers import Float
from rdm.randomness import stream

HELD = 65_536  # rows that an objective of rows keeps in memory
CHUNK = 4096  # rows read at a time
UNIT = 512  # rows; chunks that are summed over are multiples of it, so that float32 sums are over the same blocks


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance (unbiased) of `n` rows, in float64: all that a Fréchet distance needs of the real side.

    n is 0 where a file does not say it.
    """

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]
    n: int

    __repr__ = brief

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None = None) -> "Gaussian":
        """The fit of some rows; of weighted ones unbiased as of Kish's effective number of them."""
        rows = rows.double()
        if len(rows) < 2:
            raise InputError(f"a covariance needs at least 2 rows; got {len(rows)}")
        if weights is None:
            mean = rows.mean(0)
            return cls(mean, (rows - mean).T @ (rows - mean) / (len(rows) - 1), len(rows))
        shares = weights.double() / weights.double().sum()
        single = float(shares.square().sum())
        if single >= 1:
            raise InputError("a covariance needs at least 2 rows of weight above 0; got 1")
        mean = shares @ rows
        return cls(mean, (rows - mean).T * shares @ (rows - mean) / (1 - single), len(rows))

    def to(self, device: torch.device | str) -> "Gaussian":
        """The same on a device."""
        return Gaussian(self.mean.to(device), self.covariance.to(device), self.n)


class Rows(ABC):
    """Feature rows that are not in memory: a number names the same row at every call."""

    @property
    def identity(self) -> str | None:
        """A hash of all rows, by which what is made of them may be kept; None: nothing is kept."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Number of features, d."""

    @abstractmethod
    def take(self, numbers: Tensor) -> Tensor:
        """The rows "k d" of these numbers, in their order."""

    @abstractmethod
    def span(self, start: int, stop: int) -> Tensor:
        """Rows start to stop."""


@dataclass(frozen=True)
class Real:
    """What `bind` and metrics may ask of the real side.

    Args:
        rows: features of the reference: all of them, or a uniform sample; in memory or on disk; None for moments alone.
        gaussian: fit of the whole reference; by default that of `rows`.
        fresh: features of real items that are in no reference: what ratios divide by.
        train: features of what the generator was trained on, all of them, where copies are looked for.
        bandwidth: median distance within the reference; by default that of `rows`.
        weights: one a row, in float64; equal by default.
        whole: whether `rows` are all of the reference.
        origin: what the features were made from: representation, fingerprint, items or file.
        device: where rows are computed with; that of `rows` in memory by default.
        chunk: rows read at a time, as a multiple of 512.
        shared: every rank holds this reference and asks the same of it at the same time: each then reads its share of
            the rows. What is taken into memory is shared no more.
    """

    rows: Float[Tensor, "m d"] | Rows | None
    gaussian: Gaussian | None = None
    fresh: Float[Tensor, "f d"] | None = None
    train: Float[Tensor, "t d"] | None = None
    bandwidth: float | None = None
    weights: Float[Tensor, " m"] | None = None
    whole: bool = True
    origin: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device | None = None
    chunk: int = CHUNK
    shared: bool = False

    __repr__ = brief

    @classmethod
    def of(cls, features: Tensor, weights: Tensor | None = None, **origin: Any) -> "Real":
        """Rows in memory, checked (see `rdm.matching.statistic.checked`)."""
        side = f"reference {origin['representation']!r}" if "representation" in origin else "reference"
        refuse_gradient(weights, f"weights of {side}", "detach them")
        rows, checked_weights = checked(features, weights, side=side)
        return cls(rows.detach(), weights=None if weights is None else checked_weights, origin=origin)

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.origin.get("path") or self.origin.get("representation") or "the reference")

    @property
    def known(self) -> bool:
        """Whether there is anything of the reference, rows or moments."""
        return self.rows is not None or self.gaussian is not None

    @property
    def dimension(self) -> int:
        """Number of features, d."""
        if isinstance(self.rows, Tensor):
            return self.rows.shape[1]
        return self.rows.dimension if self.rows is not None else len(self.fit().mean)

    @property
    def place(self) -> torch.device:
        """The device that rows are computed with on."""
        held = self.rows if isinstance(self.rows, Tensor) else None if self.gaussian is None else self.gaussian.mean
        return self.device or (torch.device("cpu") if held is None else held.device)

    def to(self, device: torch.device | str) -> "Real":
        """The same on a device; rows on disk are read to it."""
        names = "rows", "fresh", "train", "weights"
        sides = {n: each.to(device) for n in names if isinstance(each := getattr(self, n), Tensor)}
        gaussian = None if self.gaussian is None else self.gaussian.to(device)
        given = torch.device(device)
        return replace(self, **sides, gaussian=gaussian, device=given)

    @cached_property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the whole reference as far as it is known, weighted, in float64."""
        if self.gaussian is not None and not self._rules:
            return self.gaussian.mean
        total = self.total(lambda rows, weights: weights @ rows.double())
        return total / self.masses.sum()

    @cached_property
    def identity(self) -> str | None:
        """A hash of all that `bind` may see; None where rows elsewhere do not say theirs."""
        said = {"rows": None, "n": None, "bandwidth": self.bandwidth, "whole": self.whole}
        parts = {} if self.weights is None else {"weights": self.weights}
        if isinstance(self.rows, Tensor):
            parts["rows"] = self.rows
        elif self.rows is not None:
            said["rows"] = self.rows.identity
            if said["rows"] is None:
                return None
        if self.gaussian is not None:
            said["n"] = self.gaussian.n
            parts |= {"mean": self.gaussian.mean, "covariance": self.gaussian.covariance}
        return digest(parts, said)

    @property
    def _rules(self) -> bool:
        """Whether everything follows from rows in memory, to the bit, whatever a file says beside them."""
        return isinstance(self.rows, Tensor) and self.whole

    def fit(self) -> Gaussian:
        """The Gaussian fit of the whole reference."""
        if self.gaussian is not None:
            return self.gaussian
        held = self.held("a Gaussian fit", None if isinstance(self.rows, Tensor) else HELD)
        return Gaussian.of(checked(held.features, side="reference features")[0], held.weights)

    def required_rows(self, user: str) -> Tensor:
        """The rows at hand, checked and in memory, or an error that says who needs them, and all alike."""
        if self.weights is not None:
            raise InputError(f"{user} takes a reference whose rows weigh alike; {self.name} has weights; draw by them")
        most = None if isinstance(self.rows, Tensor) else HELD
        return checked(self.held(user, most).features, side="reference features")[0]

    @property
    def features(self) -> Tensor:
        """Rows in memory."""
        assert isinstance(self.rows, Tensor), "take held() first"
        return self.rows

    @property
    def masses(self) -> Tensor:
        """Weights "m" in float64, ones where none are given."""
        count = 0 if self.rows is None else len(self.rows)
        ones = torch.ones(count, dtype=torch.float64, device=self.place)
        return ones if self.weights is None else self.weights

    def held(self, user: str, most: int | None = HELD, *, seed: int = 0) -> "Real":
        """At most `most` rows in memory, drawn uniformly without replacement; without those of weight 0.

        Raises:
            InputError: the reference holds moments alone.
        """
        if self.rows is None:
            raise InputError(
                f"{user} needs rows of the reference; {self.name} holds moments only; make it by rdm reference"
            )
        present = torch.nonzero(self.masses.cpu() > 0)[:, 0]
        whole = self.whole and (most is None or most >= len(present))
        if most is not None and most < len(present):
            present = present[torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))[:most]]
        elif len(present) == len(self.rows) and isinstance(self.rows, Tensor):
            return replace(self, rows=widened(self.rows, self.place), shared=False)
        return replace(self.taken(present), whole=whole)

    def taken(self, numbers: Tensor) -> "Real":
        """These rows alone, in memory."""
        assert self.rows is not None
        rows = self.rows[numbers.to(self.place)] if isinstance(self.rows, Tensor) else self.rows.take(numbers)
        weights = None if self.weights is None else self.weights[numbers.to(self.weights.device)]
        return replace(self, rows=widened(rows, self.place), weights=weights, whole=False, shared=False)

    def every(self, user: str) -> "Real":
        """This reference, where all of its rows are at hand.

        Raises:
            InputError: it holds a sample or moments; with the command that keeps every row.
        """
        if self.rows is None or not self.whole:
            kept = "moments only" if self.rows is None else f"a sample of {len(self.rows)} of them"
            raise InputError(
                f"{user} needs every row of the reference; {self.name} holds {kept}; "
                "make it by rdm reference DATA --rows all"
            )
        return self

    def chunks(self, size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows in float32 or better, and weights, `size` at a time."""
        assert self.rows is not None, "ask for every() or held() first"
        return self._spans(0, len(self.rows), size or self.chunk)

    def _spans(self, first: int, last: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        rows, weights = self.rows, self.masses
        assert rows is not None
        for start in range(first, last, size):
            stop = min(start + size, last)
            some = rows[start:stop] if isinstance(rows, Tensor) else rows.span(start, stop)
            yield widened(some, self.place), weights[start:stop]

    def _share(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The chunks of this rank, of which there is at least one; of a rank without rows it is one of weight 0."""
        assert self.rows is not None
        count, ranks, size = len(self.rows), world_size() if self.shared else 1, max(UNIT, self.chunk // UNIT * UNIT)
        here = rank() if self.shared else 0
        first, last = (min(count, -(-count // UNIT) * k // ranks * UNIT) for k in (here, here + 1))
        yield from self._spans(first, last, size)
        if first == last:
            rows, weights = next(self.chunks(1))
            yield rows, torch.zeros_like(weights)

    def total(self, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum over all chunks of a function of rows and weights, which must be linear in the weights."""
        assert self.rows is not None, "ask for every() or held() first"
        with together() if self.shared else nullcontext():
            parts = (of(rows, weights) for rows, weights in self._share())
            found = next(parts)
            for part in parts:
                found = found + part
        return summed(found) if self.shared else found

    def summarize(self, statistic: Statistic, *, user: str = "this objective") -> Summary:
        """The statistic of the whole reference: from its moments where they say it, else measured in chunks.

        Raises:
            InputError: it takes rows, and the reference does not hold all of them.
        """
        if self.gaussian is not None and not self._rules:
            found = statistic.of_moments(self.gaussian.mean, self.gaussian.covariance, self.gaussian.n)
            if found is not None:
                return found
        whole = self.every(user)
        parts: list[Summary] = []
        with together() if self.shared else nullcontext():
            for rows, weights in whole._share():
                parts = statistic.kind.compact([*parts, statistic.measure(rows, weights)])
        found = statistic.kind.merge(parts)
        combine = {"sum": summed, "cat": concatenated}[found.reduction]
        return type(found)(combine(found.value), combine(found.weight)) if self.shared else found

    def thinned(self, size: int, seed: int) -> "Real":
        """At most `size` rows a side, drawn uniformly; the fit stays that of the whole reference."""
        rows = None if self.rows is None else thin(self.required_rows("a metric"), size, seed, "reference")
        fresh = None if self.fresh is None else thin(self.fresh, size, seed, "fresh")
        return replace(self, rows=rows, fresh=fresh, weights=None, whole=False, shared=False)


def widened(rows: Tensor, device: torch.device) -> Tensor:
    """Rows on a device, in float32 or better."""
    return rows.to(device, torch.promote_types(rows.dtype, torch.float32))


def thin(rows: Tensor, size: int | None, seed: int, side: str) -> Tensor:
    """At most `size` rows, drawn uniformly without replacement; the same draw for every representation of one side."""
    if size is None or size >= len(rows):
        return rows
    return rows[draw(len(rows), size, seed, side).to(rows.device)]


def draw(n: int, size: int, seed: int, side: str) -> Tensor:
    """`size` of n row numbers, without replacement."""
    return torch.randperm(n, generator=stream(seed, "thin", side))[:size]
