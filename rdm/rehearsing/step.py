"""A population's step without values: what `Population` does, in its order, on tensors of sizes alone.

For `rdm.planning`, which counts what is held meanwhile; only the order, the copies and the sizes matter.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.data.condition import Condition, Conditions, mapped
from rdm.data.feed import portion
from rdm.errors import InputError, first_line
from rdm.generators.protocol import Generator
from rdm.matching.autocast import own_types
from rdm.matching.memory import Memory
from rdm.matching.objective import Objective
from rdm.matching.real import HELD
from rdm.matching.representation import Battery, Representation
from rdm.matching.statistic import Cat, Summary
from rdm.population.replay import Chunk
from rdm.population.term import Term, gradient
from rdm.randomness import stream
from rdm.rehearsing.bound import Bound, bound, tensors, valued
from rdm.scaling.sharding import is_sharded
from rdm.scaling.sums import Passes, alone

FITTED_ON = 512, 2**24  # random items, and numbers of them all, for the form of an encoder estimated on data


class Keeps(NamedTuple):
    """A thing that is held from step to step: bytes, None where nobody knows them; why, or what it is."""

    name: str
    bytes: int | None
    note: str = ""


class Does(NamedTuple):
    """A thing that has just been done, and how often it is done a step."""

    name: str
    times: int = 1
    note: str = ""


class Side(NamedTuple):
    """Sizes of the real side under one encoder."""

    rows: int | None  # that an objective may have; None: moments alone
    fresh: int = 0  # rows


Done = Iterator[Keeps | Does]


@dataclass
class Rehearsal:
    """One rank's step of a population, with what `Population` is given and the sizes of the real sides.

    Args:
        model, conditions, battery, objectives, memory, chunk, live: as of the population; objectives by encoder.
        size: images a step, over all ranks.
        sides: by encoder; None for one whose reference nobody knows, of which moments are assumed.
        passes: as `rdm.training.loss.Setting` has it.
    """

    model: Generator
    conditions: Conditions | None
    battery: Battery
    objectives: Mapping[str, Objective]
    memory: Memory
    chunk: int | None
    live: int | None
    size: int
    sides: Mapping[str, Side | None]
    passes: Passes = alone
    terms: list[Term] = field(default_factory=list)

    def step(self, ranks: int) -> Done:
        """The step, with a word after each part of it; what is held is held meanwhile."""
        mine = len(portion(self.size, 0, ranks))
        live = min(mine, math.ceil((self.live or self.size) / ranks))
        rows, moving = (min(self.chunk or every, every) for every in (max(live, mine - live), live))
        chunks = math.ceil(live / moving) + (math.ceil((mine - live) / rows) if live < mine else 0)
        chunk = Chunk(self.model.noise(rows, torch.Generator()), self._condition(rows), None, [])
        yield Does("inputs", 1)
        with torch.set_grad_enabled(chunks == 1):
            items = self._generated(chunk)
        yield Does("generator, first pass" if chunks > 1 else "generator, forward", chunks)
        yield from self._prepare(items, chunk.condition)
        if chunks == 1:
            yield from self._at_once(items, chunk)
        else:
            yield from self._in_chunks(items, chunk, chunks, chunk.part(slice(0, moving)), math.ceil(live / moving))

    def _generated(self, chunk: Chunk) -> Tensor:
        return self.model(chunk.noise) if chunk.condition is None else self.model(chunk.noise, chunk.condition)

    def _condition(self, rows: int) -> Condition | None:
        """What the generator is asked for; it may lie in a file, whose rows have values."""
        if self.conditions is None:
            return None
        with valued():
            known = self.conditions.fitted(torch.arange(self.conditions.count or 1))
            given = known.read(known.draw(rows, stream(0, "rehearsal")))
        return mapped(given, lambda tensor: torch.empty_like(tensor))

    def _prepare(self, items: Tensor, condition: Condition | None) -> Done:
        """Encoders, and what the objectives and the memory keep."""
        for each in (*self.battery.members, *self.battery.held_out):
            member = _fitted(each, items)
            if member.module is None:
                yield Keeps(f"encoder {member.name}", None, "its sizes come with its weights")
                continue
            held = sum(t.nbytes for t in (*member.module.parameters(), *member.module.buffers()))
            numbers = sum(t.numel() for t in member.module.parameters())
            yield Keeps(f"encoder {member.name}", held, f"{numbers:,} parameters")
            if each in self.battery.held_out:
                continue
            with torch.no_grad():
                width = member(items[:1], None if condition is None else mapped(condition, lambda t: t[:1])).shape[1]
            yield Does(f"{member.name}: one item", 0, f"{width} features")
            yield from self._bind(member, width)

    def _bind(self, member: Representation, width: int) -> Done:
        objective, side = self.objectives[member.name], self.sides[member.name]
        try:
            small, note = _assumed(objective, width) if side is None else (bound(objective, side.rows, width), "")
        except InputError as error:
            yield Keeps(f"target under {member.name}", None, f"not known: {first_line(error)}")
            return
        statistic, target = small.made()
        row = torch.zeros(1, width, dtype=torch.float64)
        term = Term(objective, row, statistic, target, self.memory, representation=member, weight=1.0)
        if side is not None and side.fresh:
            term.fresh = torch.zeros(side.fresh, width)
        yield Keeps(f"target under {member.name}", _bytes(statistic, target, row, term.fresh), note)
        yield self._remember(term, width)
        self.terms.append(term)

    def _remember(self, term: Term, width: int) -> Keeps:
        """Give a term the past that it has when the run has gone on for long."""
        name, rows = f"memory of {term.representation.name}", self.memory.most_rows(self.size)
        if rows is None:
            return Keeps(name, None, f"{type(self.memory).__name__} does not say its rows")
        grows = self.memory.keeps_rows or term.statistic.kind is Cat
        features = Cat(torch.zeros(rows if grows else 1, width), torch.zeros(rows if grows else 1).double())
        measured = term.statistic.measure(features.value, features.weight)
        kept = features if self.memory.keeps_rows else measured
        term.past, _ = self.memory.write(None, kept, term.statistic, measured)
        held = self.memory.packed(term.past) or []
        return Keeps(name, _bytes(held), f"{rows:,} rows" if grows and rows else "")

    def _at_once(self, items: Tensor, chunk: Chunk) -> Done:
        """All in one pass, as `Population` does a single chunk."""
        gradients = []
        for term in self.terms:
            name = term.representation.name
            leaf = term.leaf(items)
            _, summary = term.measure(leaf, chunk)
            assert isinstance(summary, Summary)
            yield Does(f"{name}, forward")
            cotangent, note = self._distance(term, self._of_all(summary))
            yield Does(f"distance under {name}", 1, note)
            with own_types():
                summary.value.backward(torch.zeros_like(summary.value) if cotangent is None else summary.value.detach())
            gradients.append(gradient(leaf))
            yield Does(f"{name}, backward")
        items.backward(sum(gradients, torch.zeros_like(items)))
        yield Does("generator, backward")

    def _in_chunks(self, items: Tensor, chunk: Chunk, chunks: int, moving: Chunk, live: int) -> Done:
        """In two passes, as `Population` does several chunks, the second one for the live chunks alone."""
        parts: list[Summary] = []
        with torch.no_grad():
            for term in self.terms:
                found, summary = term.measure(items, chunk)
                yield Does(f"{term.representation.name}, first pass", chunks)
                assert isinstance(summary, Summary) and found is not None
                parts.append(self._of_all(summary))
                del found, summary
            yield Does("features of the population")
        del items
        cotangents = []
        for term, part in zip(self.terms, parts, strict=True):
            cotangent, note = self._distance(term, part)
            cotangents.append(cotangent)
            yield Does(f"distance under {term.representation.name}", 1, note)
        self._earlier_chunks(moving)
        yield Does("gradients", 0)
        items = self._generated(moving)
        yield Does("generator, second pass", live)
        pulls = [torch.zeros_like(items)]
        for term in self.terms:
            shape = term.statistic.measure(torch.zeros(len(items), term.row.shape[1]), torch.zeros(len(items)))
            pulls.append(term.backward(items, moving, torch.zeros_like(shape.value)))
            yield Does(f"{term.representation.name}, second pass", live)
        items.backward(sum(pulls))
        yield Does("generator, backward", live)

    def _earlier_chunks(self, chunk: Chunk) -> None:
        """Leave the gradients that chunks before the last one do: of sharded modules whole ones."""
        if is_sharded(self.model):
            with self.passes(last=False):
                items = self._generated(chunk)
                items.backward(torch.zeros_like(items))
            return
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def _of_all(self, summary: Summary) -> Summary:
        """The summary of the population of all ranks, of which one is that of a chunk's rows."""
        if not isinstance(summary, Cat):
            return summary.detach()
        return Cat(summary.value.new_zeros(self.size, *summary.value.shape[1:]), summary.weight.new_zeros(self.size))

    @own_types()
    def _distance(self, term: Term, batch: Summary) -> tuple[Tensor | None, str]:
        """The cotangent of the batch, and what is not counted."""
        leaf = batch.value.detach().requires_grad_()
        try:
            term.read(type(batch)(leaf, batch.weight), self.size, torch.Generator()).value.backward()
        except Exception as error:  # whatever cannot be done without values
            return torch.zeros_like(leaf), f"its own working memory is not counted ({type(error).__name__})"
        return leaf.grad, ""


def _fitted(member: Representation, items: Tensor) -> Representation:
    """An encoder that is estimated on data, on random items: its form is the same."""
    if member.module is not None or member.fit is None:
        return member
    shape = tuple(items.shape[1:])
    with valued():
        count = max(2, min(FITTED_ON[0], FITTED_ON[1] // math.prod(shape)))
        random = torch.rand(count, *shape, generator=stream(0, "rehearsal"))
        return member.fitted(random, torch.zeros(count).long())


def _assumed(objective: Objective, width: int) -> tuple[Bound, str]:
    """What is bound to a reference that nobody knows: to moments, or to rows where the objective needs them."""
    try:
        return bound(objective, None, width), "the reference is not here: moments are assumed"
    except InputError:
        return bound(objective, HELD, width), f"the reference is not here: {HELD:,} rows are assumed"


def _bytes(*trees: Any) -> int:
    """Of the distinct storages in some trees."""
    found = {id(s): s for tree in trees for t in tensors(tree) if (s := t.untyped_storage())}
    return sum(storage.nbytes() for storage in found.values())
