"""What a population keeps from step to step, by the usual names; checked before any of it is taken back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from rdm.data.condition import Condition, moved
from rdm.errors import InputError, MismatchError
from rdm.files.schema import Check, anything, expect, finite, mapped, maybe, number, record, tensor, text
from rdm.matching.balance import Balance
from rdm.matching.memory import Memory
from rdm.matching.representation import Battery
from rdm.numbers import check
from rdm.population.remembered import moved as moved_to
from rdm.population.term import Term, Weighing, kinds

P = TypeVar("P", bound="Stateful")
BALANCE = "balance", "pulls"  # what a population keeps for its balance, a number a member


class Stateful:
    """The part of a population that is kept, moved and shown."""

    battery: Battery
    terms: list[Term]
    weighing: Weighing
    memory: Memory
    balance: Balance
    condition: Condition | None
    chunk: int | None
    reference: str
    _writes: int

    def __repr__(self) -> str:
        """Objective, memory, balance and chunk; then a line a member."""
        objectives = [f", {term.objective}" if self._several else "" for term in self.terms]
        weights = [f", weight {term.weight:g}" for term in self.terms]
        lines = [f"{t.representation}{w}{o}" for t, w, o in zip(self.terms, weights, objectives, strict=True)]
        first = "several objectives" if self._several else str(self.terms[0].objective)
        head = f"Population by {first}, {self.memory}, {self.balance}, chunk {self.chunk or 'of all'}, under"
        return "\n  ".join([head, *lines])

    @property
    def _several(self) -> bool:
        return any(term.objective != self.terms[0].objective for term in self.terms)

    def to(self: P, device: torch.device | str) -> P:
        """The same population, moved to a device: encoders (which are yours as well), targets and what it remembers."""
        try:
            place = torch.device(device)
        except (TypeError, RuntimeError) as error:
            raise InputError(f"a population is moved to a device, .to('cuda'); got {device!r}") from error
        self.battery.to(place)
        self.terms[:] = [term.to(place) for term in self.terms]
        self.condition = None if self.condition is None else moved(self.condition, place)
        return self

    def state(self) -> dict[str, Any]:
        """What changes from step to step, for a checkpoint (see `rdm.files.store.pack`)."""
        made_by = {name: type(each).__name__ for name, each in (("memory", self.memory), ("balance", self.balance))}
        made_by |= {"objective": kinds(self.terms)} | ({"reference": self.reference} if self.reference else {})
        balance = dict(zip(BALANCE, (self.weighing.state, self.weighing.pulls), strict=True))
        return {**kept(self.terms), **balance, "made_by": made_by, "writes": self._writes}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CorruptFileError, MismatchError: damaged, or of other encoders, another objective or another memory.
        """
        check("state", state, dict)
        pasts = {t.representation.name: self.memory.held(t.row, t.statistic) for t in self.terms}
        check_population(state, self.state(), pasts)
        self.terms[:] = [restored(term, state) for term in self.terms]
        self.weighing.state, self.weighing.pulls = (state.get(key) for key in BALANCE)
        self._writes = state.get("writes", 0)

    def state_dict(self) -> dict[str, Any]:
        """`state`, by the name that checkpoints know; `torch.load(..., weights_only=True)` reads it."""
        return self.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """`restore`, by the name that checkpoints know; whatever device it was saved on."""
        self.restore(state_dict)


def check_population(state: Any, mine: Mapping[str, Any], pasts: Mapping[str, Check]) -> None:
    """Refuse the state of a population other than `mine`, or with other memories than `pasts` describe.

    Raises:
        CorruptFileError: damaged or forged.
        MismatchError: of other encoders, another objective or another memory.
    """
    name, remedy = "the state of a population", "give that of one like it"
    balance = maybe(tensor("float32 float64", str(len(mine["pasts"]))))
    later = {
        **dict.fromkeys(BALANCE, balance),
        "made_by": mapped(text()),
        "writes": number(int, low=0),
        "solvers": mapped(maybe(mapped(finite(any_type=True)))),
    }  # which older ones do not say
    expect(state, record({"pasts": mapped(anything)}, later), name, remedy)
    sides = (state["pasts"], state.get("made_by", mine["made_by"])), (mine["pasts"], mine["made_by"])
    given, own = ({"encoders": sorted(encoders), **made_by} for encoders, made_by in sides)
    given.setdefault("balance", own["balance"])
    if given != own:
        raise MismatchError(f"{name} of {given} cannot be restored into one of {own}")
    empty = state.get("writes", 0) == 0  # only then has a memory that keeps a past none
    held = record({name: maybe(check) if empty else check for name, check in pasts.items()})
    expect(state["pasts"], held, "the memories of a population", remedy)


def kept(terms: Sequence[Term]) -> dict[str, Any]:
    """What terms remember, by member."""
    pasts = {term.representation.name: term.packed() for term in terms}
    solvers = {term.representation.name: term.solved for term in terms if term.solver is not None}
    return {"pasts": pasts, **({"solvers": solvers} if solvers else {})}


def restored(term: Term, state: Mapping[str, Any]) -> Term:
    """A term that remembers what was kept, which `check_population` has looked at.

    Raises:
        CorruptFileError: sums or a solver's basis that are not of the rows.
    """
    name, found = term.representation.name, replace(term)
    found.restore(*moved_to([state["pasts"][name], state.get("solvers", {}).get(name)], term.row.device))
    return found
