"""What the state of a population must hold to be restored, checked before any of it is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rdm.errors import MismatchError
from rdm.files.schema import Check, anything, expect, finite, mapped, maybe, number, record, tensor, text
from rdm.population.term import Term

BALANCE = "balance", "pulls"  # what a population keeps for its balance, a number a member


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
    found.restore(state["pasts"][name], state.get("solvers", {}).get(name))
    return found
