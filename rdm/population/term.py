"""Terms: what a population keeps of each member of its battery, and how their balance weighs them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rdm.distributed import agree, gather, rank, summed, together, world_size
from rdm.errors import InputError, NonFiniteError
from rdm.matching.autocast import in_own_types, own_types
from rdm.matching.balance import Balance, Terms
from rdm.matching.objective import Objective
from rdm.matching.representation import Representation
from rdm.matching.statistic import Cat, Factor, Summary, checked
from rdm.population.remembered import Remembered, moved
from rdm.population.replay import Chunk
from rdm.randomness import stream
from rdm.timing.reads import read
from rdm.timing.regions import region

FLOOR_DRAWS = 8
TINY = 1e-300


@dataclass(kw_only=True)
class Term(Remembered):
    """One representation's part of the loss."""

    representation: Representation
    weight: float
    fresh: Tensor | None = None  # real rows that are in no reference, "f d"

    def to(self, device: torch.device) -> "Term":
        """The same on a device, but for its encoder; fresh rows stay in the machine's memory."""
        held = "row", "statistic", "target", "past", "solved", "solver"
        return replace(self, **{name: moved(getattr(self, name), device) for name in held})

    def encode(self, items: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Checked features, and the chunk's weights."""
        with region(f"encoder {self.representation.name}"):
            features = self.representation(self.wide(items), chunk.condition)
        features, equal = checked(features, side=f"generated features of {self.representation.name!r}")
        if (found := features.shape[1]) != (wanted := self.row.shape[1]):
            raise InputError(
                f"generated items of shape {tuple(items.shape[1:])} have {found} features under "
                f"{self.representation.name!r}, the reference's {wanted}; make items of the real ones' shape, or "
                "measure the reference with the same representation"
            )
        return features, equal if chunk.weights is None else chunk.weights

    def wide(self, items: Tensor) -> Tensor:
        """The items in float32 or more, but for an encoder whose weights are of the items' own type."""
        module, wide = self.representation.module, torch.promote_types(items.dtype, torch.float32)
        if wide == items.dtype or (module is not None and any(p.dtype == items.dtype for p in module.parameters())):
            return items
        return items.to(wide)

    def leaf(self, items: Tensor) -> Tensor:
        """The items for the encoder alone, to take its gradient in.

        A gradient in float16 would lose what is small before a trainer's loss scale reaches it.
        """
        return self.wide(items.detach()).requires_grad_()

    @own_types()
    @torch.no_grad()
    def floor(self, rows: int) -> float:
        """Mean distance of so many fresh real rows from the reference, over draws without replacement.

        Source: Feng et al. (2026), "Representation Distribution Matching", the floors of its controller.

        Raises:
            InputError: the reference holds none, or fewer.
        """
        held = 0 if self.fresh is None else len(self.fresh)
        if self.fresh is None or held < rows:
            raise InputError(
                f"the floor of a population of {rows} under {self.representation.name!r} needs as many fresh real "
                f"rows; the reference holds {held}; make one by rdm reference with --fresh or --split, and --sample"
            )
        values = []
        for draw in range(1 if rows == held else FLOOR_DRAWS):
            chosen = torch.randperm(held, generator=stream(0, "floor", draw))[:rows].to(self.fresh.device)
            features, weights = checked(self.fresh[chosen].to(self.row.device), side="fresh rows")
            summary, directions = self.statistic.measure(features, weights), stream(0, "floor directions", draw)
            values.append(float(self.objective.distance(summary, self.target, generator=directions)))
        return sum(values) / len(values)

    @own_types()
    def measure(self, items: Tensor, chunk: Chunk) -> tuple[Cat, Summary] | tuple[None, NonFiniteError]:
        """The chunk's rows and their summary; or why there are none, of which every rank is told before any goes on."""
        try:
            features, weights = self.encode(items, chunk)
            return Cat(features, weights), self._measured(features, weights)
        except NonFiniteError as error:
            return None, error

    @own_types()
    def backward(self, items: Tensor, chunk: Chunk, cotangent: Tensor) -> Tensor:
        """The chunk's cotangent pulled back to its items, one micro-batch of the encoder at a time."""
        leaf = self.leaf(items)
        slices = self.representation.slices(len(leaf))
        parts = self.live.kind.split(cotangent, [rows.stop - rows.start for rows in slices])
        for rows, part in zip(slices, parts, strict=True):
            with region(f"encoder {self.representation.name}"):
                self._measured(*self.encode(leaf[rows], chunk.part(rows))).value.backward(part)
        return gradient(leaf)

    def _measured(self, features: Tensor, weights: Tensor) -> Summary:
        """The statistic, and its gradient, with all bits of its numbers; an encoder may run with fewer."""
        held: list[Tensor] = []

        def value(features: Tensor, weights: Tensor) -> Tensor:
            found = self.live.measure(features, weights)
            held.append(found.weight)
            return found.value

        with region("statistics"):
            return self.live.kind(in_own_types(value, features, weights), held[0])


class Step(NamedTuple):
    """What one step measured."""

    loss: Tensor  # the balanced sum, detached
    distances: dict[str, Tensor]  # raw distance by representation, detached
    coefficients: dict[str, float]  # what the balance multiplies it by
    shares: dict[str, float]  # share of the gradient that the memory leaves to the live batch
    dropped: dict[str, float]  # share of its mass that the memory lacks, dropped to stay bounded
    solvers: dict[str, dict[str, float]] = {}  # what solvers say of their error, where there are any

    def known(self) -> "Step":
        """The same, numbers in the place of tensors that hold one."""
        said = {name: read(report) for name, report in self.solvers.items()}
        parts = {name: read(getattr(self, name)) for name in ("coefficients", "shares", "dropped")}
        return self._replace(solvers=said, **parts)


class Pull(NamedTuple):
    """One member's distance, its gradient in this rank's summary, and the batch of all ranks."""

    distance: Tensor
    cotangent: Tensor
    share: Factor
    mass: Factor
    batch: Summary
    report: dict[str, float]
    left: dict[str, Tensor] | None


class Weighing:
    """The balance of some terms, and what it remembers."""

    def __init__(self, balance: Balance, terms: list[Term]):
        self.balance, self.terms = balance, terms
        self.state: Tensor | None = None
        self.pulls: Tensor | None = None
        self._floors: dict[tuple[str, int], float] = {}  # by member and size

    def check(self) -> None:
        """Refuse a balance by floors where there are no fresh rows.

        Raises:
            InputError: so it is.
        """
        if self.balance.needs_floors and any(term.fresh is None for term in self.terms):
            raise InputError(
                f"{type(self.balance).__name__} needs fresh real rows for its floors and the reference holds none; "
                "make one by rdm reference with --fresh or --split"
            )

    def __call__(self, values: Tensor, sizes: Callable[[], Sequence[int]]) -> Tensor:
        """Coefficients of distances of populations of these sizes, which are asked for where they matter."""
        floors = None
        if self.balance.needs_floors:
            floors = torch.tensor(self._floors_at(sizes()), dtype=values.dtype).to(values.device, non_blocking=True)
        pulls, state = (None if each is None else each.to(values) for each in (self.pulls, self.state))
        found, self.state = self.balance.coefficients(Terms(values, floors, pulls), state)
        sized = [term.objective.traits.normalize for term in self.terms]
        if self.balance.uses_values and not all(sized):
            found = torch.stack([c if each else torch.ones_like(c) for c, each in zip(found, sized, strict=True)])
        return found

    @property
    def kept(self) -> tuple[Tensor | None, Tensor | None]:
        """What it remembers, which a step that is not taken leaves as it was."""
        return self.state, self.pulls

    @kept.setter
    def kept(self, kept: tuple[Tensor | None, Tensor | None]) -> None:
        self.state, self.pulls = kept

    @property
    def wants_pulls(self) -> bool:
        """Whether pulls must be measured before the first coefficients."""
        return self.balance.needs_pulls and self.pulls is None

    def keep(self, norms: Tensor | None, units: Tensor) -> None:
        """Keep the pulls on the items of all ranks, times `units`, for the next step, but for those not finite."""
        if norms is not None:
            found = torch.linalg.vector_norm(torch.stack(gather(norms * units)), dim=0)
            self.pulls = found if self.pulls is None else torch.where(found.isfinite(), found, self.pulls.to(found))

    def _floors_at(self, sizes: Sequence[int]) -> list[float]:
        """Every term's floor, measured where the size is new, by one of the ranks."""
        keys = [(term.representation.name, size) for term, size in zip(self.terms, sizes, strict=True)]
        missing = [(term, key) for term, key in zip(self.terms, keys, strict=True) if key not in self._floors]
        if missing:
            with together():
                turns = (k % world_size() == rank() for k in range(len(missing)))
                mine = [term.floor(key[1]) if turn else 0.0 for (term, key), turn in zip(missing, turns, strict=True)]
            found = summed(torch.tensor(mine, dtype=torch.float64)).tolist()
            self._floors |= {key: value for (_, key), value in zip(missing, found, strict=True)}
            self._floors = {key: self._floors[key] for key in keys}
        return [self._floors[key] for key in keys]


def refuse_signed(balance: Balance, objectives: Iterable[Objective]) -> None:
    """Refuse a balance that divides by distances over an objective that may be negative.

    Raises:
        InputError: so it is.
    """
    for each in objectives:
        if balance.needs_nonnegative and not each.traits.nonnegative:
            raise InputError(
                f"{balance} divides by the distance and needs a non-negative objective; got {each}; "
                "use Uniform() or a biased estimator"
            )


def kinds(terms: Sequence[Term]) -> str:
    """What made the terms: the objective's class, or one a member where they differ."""
    found = {term.representation.name: type(term.objective).__name__ for term in terms}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{name}: {kind}" for name, kind in found.items())


def finite(summary: Summary | NonFiniteError) -> Summary:
    """A summary; what one rank could not measure fails on every rank."""
    agree(summary if isinstance(summary, NonFiniteError) else None)
    assert isinstance(summary, Summary)
    return summary


def gradient(leaf: Tensor) -> Tensor:
    """What was back-propagated to a leaf, zero where nothing was."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def norm(pull: Tensor) -> Tensor:
    """Norm of a gradient in items, in float64."""
    return torch.linalg.vector_norm(pull, dtype=torch.float64)
