"""Pass 2 on one rank or several: work that is the same on all of them is shared out.

Every rank has the summaries of all rows. A distance that is a sum (`Objective.divisible`) is taken by all ranks, a
summand each; of the others each is taken by one rank, costs evened out. Every distance, its gradient in the summary
and what a solver leaves then come to all ranks.

Terms that are asked for together are taken at the same time. In a single chunk (`passes.Once`) one encoder's graph is
held at a time, and so the others wait for who takes its distance.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.distributed import active, from_rank, merge_across_ranks, rank, sum_over_ranks, together, words, world_size
from rdm.errors import NonFiniteError
from rdm.matching.autocast import exact
from rdm.matching.objective import Portion
from rdm.matching.statistic import Cat, Summary
from rdm.population.remembered import Read
from rdm.population.term import Pull, Term, finite, gradient
from rdm.surviving.ranks import alone
from rdm.timing.regions import region

LEFT = "left "
Owner = int | None  # the rank that takes a distance; None: all, in parts


class _Taken(NamedTuple):
    """A distance and its gradient in the summary of all rows; a part of both, where all ranks take it."""

    read: Read
    cotangent: Tensor


@exact()
def pulled(
    terms: Sequence[Term],
    summaries: Sequence[Summary | NonFiniteError],
    live: int,
    generator: torch.Generator | None,
) -> list[Pull]:
    """The distances of the populations that ranks and memory make of some summaries, and their cotangents.

    There are none, zero, where the caller asks for no gradient.

    Raises:
        NonFiniteError: on all ranks, with the term's name, where one finds it.
    """
    mine, batches = list[Tensor](), list[Summary]()
    for each in summaries:
        summary = finite(each)
        mine.append(summary.value.detach().requires_grad_(torch.is_grad_enabled()))
        batches.append(merge_across_ranks(type(summary)(mine[-1], summary.weight)))
    owners = owned(terms, batches, generator)
    with together(), alone("distances"):
        asked = [(k, None if owner is not None else Portion(rank(), world_size())) for k, owner in enumerate(owners)]
        asked = [(k, portion) for k, portion in asked if owners[k] in (None, rank())]
        found = {k: _taken(terms[k], batches[k].detach(), live, generator, portion) for k, portion in asked}
    if active():
        found = _exchanged(terms, batches, owners, found)
        _agree_on(generator, terms, owners)
    pulls = []
    for k, leaf in enumerate(mine):
        read, cotangent = found[k]
        if leaf.requires_grad and active():  # on a single process the rows of all ranks are its own
            batches[k].value.backward(cotangent)
            cotangent = gradient(leaf)
        pulls.append(Pull(read.value, cotangent, *read[1:]))
    return pulls


def owned(terms: Sequence[Term], batches: Sequence[Summary], generator: torch.Generator | None) -> list[Owner]:
    """Who takes each distance, the same on every rank: the dearest first, each to the rank that has least to do.

    Distances that draw from one generator do so one after the other, on one rank, but where all of them are taken by
    all.
    """
    if not active():
        return [0 for _ in terms]
    draws = [generator is not None and term.objective.traits.randomized for term in terms]
    parts = [term.solver is None and term.objective.divisible and world_size() > 1 for term in terms]
    if any(drawing and not part for drawing, part in zip(draws, parts, strict=True)):
        parts = [part and not drawing for drawing, part in zip(draws, parts, strict=True)]
    whole = [k for k, part in enumerate(parts) if not part]
    in_turn = [k for k in whole if draws[k]]
    jobs = [*([k] for k in whole if not draws[k]), *([in_turn] if in_turn else [])]
    costs = [sum(_cost(batches[k]) for k in job) for job in jobs]
    owners: list[Owner] = [None for _ in terms]
    loads = [0.0] * world_size()
    for number in sorted(range(len(jobs)), key=lambda j: -costs[j]):
        owner = loads.index(min(loads))
        loads[owner] += costs[number]
        for k in jobs[number]:
            owners[k] = owner
    return owners


def _cost(batch: Summary) -> float:
    """About how much a distance takes: all pairs of n rows, n^2 d; the third power of a d x d sum's d."""
    size = batch.value.numel()
    return float(size * len(batch.value) if isinstance(batch, Cat) else size**1.5)


@region("distances")
def _taken(term: Term, batch: Summary, live: int, generator: torch.Generator | None, portion: Portion | None) -> _Taken:
    """What one rank takes, and its gradient in the summary of all rows."""
    leaf = batch.value.requires_grad_(torch.is_grad_enabled())
    try:
        read = term.read(type(batch)(leaf, batch.weight), live, generator, portion)
        if leaf.requires_grad:
            read.value.backward()
    except NonFiniteError as error:
        raise NonFiniteError(f"the distance under {term.representation.name!r}: {error}") from error
    return _Taken(read._replace(value=read.value.detach()), gradient(leaf))


def _exchanged(
    terms: Sequence[Term], batches: Sequence[Summary], owners: Sequence[Owner], found: dict[int, _Taken]
) -> dict[int, _Taken]:
    """What all ranks have taken, the same on every one."""
    own = {k: _packed(terms[k], taken) for k, taken in found.items() if owners[k] is not None}
    forms: dict[str, Any] = {}
    for said in words(json.dumps({k: [plain, _forms(tensors)] for k, (plain, tensors) in own.items()})):
        forms |= json.loads(said)
    every = dict[int, _Taken]()
    for k, owner in enumerate(owners):
        if owner is None:
            every[k] = _summed(terms[k], found[k])
            continue
        plain, form = forms[str(k)]
        tensors = own[k][1] if k in own else _like(form, batches[k].value.device)
        every[k] = _unpacked(terms[k], batches[k], plain, {name: from_rank(owner, t) for name, t in tensors.items()})
    return every


def _summed(term: Term, taken: _Taken) -> _Taken:
    """The sum of the parts."""
    value = taken.read.value.clone()
    sum_over_ranks([value, taken.cotangent])
    if term.objective.traits.nonnegative:
        value.clamp_min_(0)
    return taken._replace(read=taken.read._replace(value=value))


def _packed(term: Term, taken: _Taken) -> tuple[list[Any], dict[str, Tensor]]:
    """Numbers and tensors of what was taken, without what every rank has."""
    read, tensors = taken.read, {"value": taken.read.value, "cotangent": taken.cotangent}
    if term.solver is not None and isinstance(read.batch, term.statistic.kind):
        tensors |= {"batch": read.batch.value, "weight": read.batch.weight}
    tensors |= {f"{LEFT}{name}": each for name, each in (read.left or {}).items()}
    return [float(read.share), float(read.mass), read.report], tensors


def _unpacked(term: Term, batch: Summary, plain: list[Any], tensors: dict[str, Tensor]) -> _Taken:
    """Inverse of `_packed`."""
    if "batch" in tensors:
        batch = term.statistic.kind(tensors["batch"], tensors["weight"])
    left = {name.removeprefix(LEFT): each for name, each in tensors.items() if name.startswith(LEFT)}
    share, mass, report = plain
    return _Taken(Read(tensors["value"], share, mass, batch.detach(), report, left or None), tensors["cotangent"])


def _forms(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What says how to make room for some tensors."""
    return {
        name: [list(each.shape), str(each.dtype).removeprefix("torch."), each.device.type == "cpu"]
        for name, each in tensors.items()
    }


def _like(forms: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Room for what another rank's tensors hold."""
    return {
        name: torch.empty(shape, dtype=getattr(torch, kind), device="cpu" if host else device)
        for name, (shape, kind, host) in forms.items()
    }


def _agree_on(generator: torch.Generator | None, terms: Sequence[Term], owners: Sequence[Owner]) -> None:
    """Leave the generator on every rank as it is where the distances drew from it."""
    drawn = [owner for owner, term in zip(owners, terms, strict=True) if term.objective.traits.randomized]
    if generator is not None and (source := next((o for o in drawn if o is not None), None)) is not None:
        generator.set_state(from_rank(source, generator.get_state()))
