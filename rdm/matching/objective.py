"""The interface of an objective."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.matching.queued import Change
from rdm.matching.real import Real
from rdm.matching.statistic import Cat, Factor, Statistic, Summary
from rdm.numbers import check_fields
from rdm.registry import by_name, objectives


class Traits(NamedTuple):
    """What an objective promises; read by the tests and by the balance of a battery."""

    nonnegative: bool = True  # value >= 0 whatever the samples
    zero_at_identity: bool = True  # value 0 when both sides are the same weighted rows
    symmetric: bool = True  # value unchanged when the sides are exchanged
    translation_invariant: bool = True  # value unchanged when both sides move together
    randomized: bool = False  # value depends on the `generator` given to `distance`
    exhaustive: bool = (
        True  # every reference row takes part in every value; which ones a draw takes depends on their order
    )
    normalize: bool = True  # a balance may divide the term by its own value
    # value depends on the weighted measures alone, so that weight 2 equals a duplicated row; estimators that correct
    # for the number of rows do not: a duplicate claims an independent draw
    plug_in: bool = True
    conservative: bool = True  # the gradient is that of the value; a frozen goal's is not
    # no set of rows makes the value as negative as you like; an unbiased estimator of an unbounded kernel lets one row
    # run off, since it leaves out what that row costs by itself: a judge, and a loss for a few steps only
    bounded_below: bool = True
    waits: bool = False  # on an accelerator a step waits for numbers: it is solved or chosen by them on the CPU
    learned_weights: bool = True  # the gradient in the generated rows' weights is given too


class Portion(NamedTuple):
    """Which of several summands: the `number`th of `of`, from 0."""

    number: int
    of: int

    def rows(self, n: int) -> slice:
        """Its share of n equal pieces of work."""
        return slice(n * self.number // self.of, n * (self.number + 1) // self.of)

    @property
    def mirrored(self) -> "Portion":
        """That from the other end, for work that would come to one side if there were few pieces of every kind."""
        return Portion(self.of - 1 - self.number, self.of)


UNDIVIDED = Portion(0, 1)


class Transport(NamedTuple):
    """A transport plan with its dual solution, and how far it was solved; all in float64."""

    value: Tensor  # (): what was minimised, differentiable in the cost and in both sides' weights
    plan: Tensor  # n m: mass moved from row i to reference row j, sums to 1 where it is balanced
    f: Tensor  # n: dual potential of the generated rows
    g: Tensor  # m: of the reference rows
    error: float  # sum_i |sum_j P_ij - a_i| + sum_j |sum_i P_ij - b_j|; unbalanced: to what f and g say they are
    iterations: int | None  # at the last temperature; None of a solver that does not say
    converged: bool  # error within the tolerance, before the iterations ran out


class Objective(ABC):
    """A distance (or training signal) between a generated population and a reference.

    A member is a frozen dataclass of hyperparameters, checked against their annotations (`rdm.numbers`); it holds no
    tensors and knows no rank, chunk or memory.
    """

    def __post_init__(self) -> None:  # noqa: D105
        check_fields(self)

    @property
    @abstractmethod
    def traits(self) -> Traits:
        """What this objective promises, with these hyperparameters."""

    @abstractmethod
    def bind(self, reference: Real) -> tuple[Statistic, Any]:
        """Fit to the reference, once: the statistic to measure, and the target (one NamedTuple an objective)."""

    @abstractmethod
    def distance(self, summary: Summary, target: Any, *, generator: torch.Generator | None = None) -> Tensor:
        """The formula: a float64 scalar from the generated summary and the target, differentiable in the former."""

    @property
    def divisible(self) -> bool:
        """Whether the distance is a sum whose summands `part` gives, so that ranks can share it out."""
        return False

    def part(
        self, summary: Summary, target: Any, portion: Portion, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """One summand of a `divisible` distance, differentiable as it is; all together are `distance`.

        Every rank gives the same population and draws the same from its `generator`. Where rounding puts the sum of a
        non-negative objective below 0, it counts as 0, as the distance itself must see to.
        """
        raise NotImplementedError(f"{type(self).__name__} says that it is divisible and has no part")

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        """What moving mass costs between each pair of rows, "n m" in float64, differentiable.

        Raises:
            InputError: this objective moves no mass.
        """
        raise InputError(f"{type(self).__name__} moves no mass, and has no cost of it; take one that has a plan")

    def transport(
        self,
        cost: Tensor,
        a: Tensor,
        b: Tensor,
        *,
        reference: Tensor | None = None,
        tolerance: float = 1e-6,
        iterations: int | None = None,
    ) -> Transport:
        """The plan under a matrix of costs between weights that sum to 1; see `rdm.transport`.

        `reference` are the rows of b, where they are known, for hyperparameters that are fitted to them.

        Raises:
            InputError: this objective moves no mass.
        """
        raise InputError(f"{type(self).__name__} moves no mass, and has no plan of it; take one that has")

    def solver(self, tolerance: float) -> "Follower | Starter":
        """What solves a step by what the step before left, its gradient within a relative tolerance.

        Raises:
            InputError: this objective has none.
        """
        raise InputError(f"{type(self).__name__} has no solver that follows a memory; leave the tolerance out")


class Seen(NamedTuple):
    """What a solver sees of a step."""

    live: Cat  # the batch of all ranks, with gradient
    population: Callable[[], Summary]  # that the memory makes of it, detached; measured when it is asked for
    share: Factor  # of the population's mass that the batch is
    change: Change | None  # since the population before; None where that is not known


class Solved(NamedTuple):
    """What it gives: the distance, differentiable in the live rows, what it wants back, and what to log."""

    value: Tensor
    state: dict[str, Tensor] | None
    report: dict[str, float]


class Follower(ABC):
    """How an objective follows a population through a memory, faster than anew at each step and within a tolerance.

    It is a frozen dataclass, as the objective is: what it keeps goes in and out as its state, which whoever has the
    memory holds beside the past.
    """

    @abstractmethod
    def solve(self, seen: Seen, statistic: Statistic, target: Any, state: dict[str, Tensor] | None) -> Solved:
        """One step, from the state that the step before left; None: there is none, or the population is another."""

    @abstractmethod
    def check(self, state: dict[str, Tensor], past: Summary, statistic: Statistic, target: Any) -> None:
        """Refuse a state that is not of this population.

        Raises:
            CorruptFileError: so it is.
        """


class Starter(ABC):
    """How an objective that is solved anew at each step starts from where the step before ended.

    It is a frozen dataclass, as a `Follower` is, whose state is held in the same place. It is for any population, with
    a memory or without.
    """

    @abstractmethod
    def distance(self, summary: Summary, target: Any, state: dict[str, Tensor] | None) -> Solved:
        """The distance, differentiable in the summary as the objective's is; None: there was no step before."""

    @abstractmethod
    def check(self, state: dict[str, Tensor], target: Any) -> None:
        """Refuse a state that is not of this reference.

        Raises:
            CorruptFileError: so it is.
        """


def by_member(given: Objective | str | Mapping[str, Objective | str], names: Iterable[str]) -> dict[str, Objective]:
    """The objective of every member of a battery: one for all, or a mapping that names each.

    Raises:
        InputError: the mapping names no member, or not all of them.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, objectives.take(given, Objective))
    return {name: objectives.take(each, Objective) for name, each in by_name("objective", given, names).items()}
