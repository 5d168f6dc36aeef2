"""The passes of a population's step: measured, pulled at by the distances, computed again with gradient.

None has a branch on objective, memory or representation. What the last pass does with the gradient in the items is its
caller's: `Hand`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from rdm.distributed import active, summed
from rdm.errors import InputError, NonFiniteError
from rdm.matching.autocast import Casting, own_types
from rdm.matching.memory import Memory
from rdm.matching.statistic import Cat, Summary
from rdm.population.replay import (
    Chunk,
    Generate,
    check_differentiable,
    check_same,
    generated,
    random_state,
    restore_random_state,
    sketch,
)
from rdm.population.sharing import pulled
from rdm.population.term import TINY, Pull, Step, Term, gradient, norm
from rdm.timing.reads import pending, postponed, undone_by
from rdm.timing.regions import region

Look = Callable[[Tensor], None]  # what sees the first items


@runtime_checkable
class Hand(Protocol):
    """What takes the items of a chunk with their graph, and the gradient in them."""

    def __call__(self, items: Tensor, pull: Tensor, *, last: bool) -> None:
        """Let the gradient go on to the generator; whether this is the step's last chunk."""
        ...


class Measured(NamedTuple):
    """What pass 1 leaves."""

    chunks: list[Chunk]
    summaries: list[Summary | NonFiniteError]  # one a term, of this rank's rows, or why there is none
    rows: list[Cat]  # one a term where the memory keeps rows and all is finite, else empty
    seen: Tensor  # sketch of the items, by which the second pass is compared


def measure(
    terms: Sequence[Term],
    generate: Generate,
    chunks: Sequence[Chunk],
    look: Look,
    *,
    rows: bool = False,
    graph: bool = False,
) -> Measured:
    """Pass 1: summaries of this rank's rows, without gradient, and the rows themselves if asked for.

    `look` sees the items of the first chunk, with their graph if asked for.
    """
    parts: list[list[Summary]] = [[] for _ in terms]
    found: list[list[Cat]] = [[] for _ in terms]
    states, seen, problems = [], [], dict[int, Any]()
    for number, chunk in enumerate(chunks):
        states.append(random_state(chunk.noise.device))
        with torch.set_grad_enabled(graph and number == 0):
            items = generated(generate, chunk)
        if number == 0:
            look(items)
        if chunk.idle:
            continue
        items = items.detach()
        seen.append(sketch(items))
        for k, term in enumerate(terms):
            with torch.no_grad():
                cat, part = term.measure(items, chunk)
                if not isinstance(part, Summary) or cat is None:
                    problems.setdefault(k, part)
                    continue
                parts[k] = term.live.kind.compact([*parts[k], part])
            if rows:
                found[k].append(cat)
    merged = (problems.get(k) or term.live.kind.merge(parts[k]) for k, term in enumerate(terms))
    summaries = list[Summary | NonFiniteError](merged)
    replayable = [chunk._replace(random=random) for chunk, random in zip(chunks, states, strict=True)]
    return Measured(replayable, summaries, [Cat.merge(r) for r in found if r], torch.cat(seen))


class Once:
    """A single chunk, computed once; its graph is kept until the gradient goes on to the generator.

    Each member's gradient is pulled back to the items before the next member is encoded, and weighed when the
    distances of all are known.
    """

    def __init__(self, terms: Sequence[Term], generate: Generate, chunk: Chunk, look: Look, memory: Memory):
        self.terms, self.memory, self.chunk = terms, memory, chunk
        self.items = generated(generate, chunk)
        check_differentiable(self.items)
        look(self.items)

    def pulled(self, live: int, generator: torch.Generator | None) -> list[Pull]:
        """Pass 2, with what each term's pull is on the items."""
        pulls, self.gradients, self.rows = [], list[Tensor](), list[Cat]()
        for term in self.terms:
            leaf = term.leaf(self.items)
            found, summary = term.measure(leaf, self.chunk)
            pulls += pulled([term], [summary], live, generator)
            assert found is not None and isinstance(summary, Summary)
            with own_types(), region(f"encoder {term.representation.name}"):
                summary.value.backward(pulls[-1].cotangent)
            self.gradients.append(gradient(leaf))
            if self.memory.keeps_rows:
                self.rows.append(Cat(found.value.detach(), found.weight))
        return pulls

    def back(self, pulls: Sequence[Pull], scales: Tensor, hand: Hand | None, *, norms: bool) -> Tensor | None:
        """The scaled pulls, handed on if anywhere; the norms of the unscaled ones on this rank's items, if wanted."""
        if hand is not None:
            items = self.items
            del self.items
            whole = _sum([scale.to(g) * g for scale, g in zip(scales, self.gradients, strict=True)])
            with region("generator, backward"):
                hand(items, whole, last=True)
        return torch.stack([norm(each) for each in self.gradients]) if norms else None


class Twice:
    """Several chunks, measured without gradient and computed again with it; one encoder's graph at a time."""

    def __init__(
        self,
        terms: Sequence[Term],
        generate: Generate,
        chunks: Sequence[Chunk],
        look: Look,
        memory: Memory,
        *,
        graph: bool,
    ):
        self.terms, self.generate, self.memory = terms, generate, memory
        self.measured = measure(terms, generate, chunks, look, rows=memory.keeps_rows, graph=graph)
        self.rows, self.casting = self.measured.rows, Casting()
        self.moving = [chunk for chunk in self.measured.chunks if not chunk.still]
        self.times = 1.0  # what the gradient of a live row stands for
        if len(self.moving) < len(self.measured.chunks):
            counts = [_rows(self.measured.chunks), _rows(self.moving)]
            every, live = summed(torch.tensor(counts, dtype=torch.float64)).tolist()
            self.times = every / live

    def pulled(self, live: int, generator: torch.Generator | None) -> list[Pull]:
        """Pass 2."""
        return pulled(self.terms, self.measured.summaries, live, generator)

    def back(self, pulls: Sequence[Pull], scales: Tensor, hand: Hand | None, *, norms: bool) -> Tensor | None:
        """Pass 3: each live chunk again, with gradient and its randomness replayed; returns as `Once` does."""
        chunks, device, start = self.moving, self.moving[0].noise.device, 0
        after = random_state(device)
        rows = [len(chunk.noise) for chunk in self.measured.chunks if not chunk.idle]  # the live come first
        cotangents = [self.times * scale * each.cotangent for scale, each in zip(scales, pulls, strict=True)]
        shares = [t.live.kind.split(c, rows) for t, c in zip(self.terms, cotangents, strict=True)]
        sizes, problem = list[Tensor](), None
        for i, chunk in enumerate(chunks):
            restore_random_state(device, chunk.random)
            with torch.set_grad_enabled(hand is not None), self.casting.again():
                items = generated(self.generate, chunk)
            if hand is not None:
                check_differentiable(items)
            found = [torch.zeros_like(items)]
            if not chunk.idle:
                here = slice(start, start := start + rows[i])
                try:
                    found = self._pulled_back(items, chunk, here, [share[i] for share in shares])
                    if norms:
                        sizes.append(torch.stack([norm(each) for each in found]))
                except (InputError, NonFiniteError) as error:
                    problem = problem or error  # told when all is computed, as other ranks compute
            if hand is not None:
                with region("generator, backward"):
                    hand(items, _sum(found), last=i + 1 == len(chunks))
        restore_random_state(device, after)
        if problem is not None:
            raise problem
        if not norms:
            return None
        sizes = sizes or [scales.new_zeros(len(scales))]
        return torch.linalg.vector_norm(torch.stack(sizes), dim=0) / (self.times**0.5 * scales).clamp_min(TINY)

    def _pulled_back(self, items: Tensor, chunk: Chunk, rows: slice, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Every term's gradient in the items of a chunk, which must be those of the first pass."""
        check_same(items, rows, self.measured.seen)
        with torch.enable_grad():
            return [term.backward(items, chunk, each) for term, each in zip(self.terms, cotangents, strict=True)]


class Taken(NamedTuple):
    """A step whose gradient has not gone on to the generator yet."""

    step: Step
    passes: Once | Twice
    pulls: list[Pull]
    scales: Tensor  # what each member's cotangent is multiplied by
    units: Tensor  # what it is multiplied by at weight and coefficient 1
    kept: tuple[Tensor | None, Tensor | None]  # of the balance, if the step is taken


T = TypeVar("T", Step, Taken)


def read_at_end(run: Callable[[], T], device: torch.device, generator: torch.Generator | None = None) -> T:
    """run(), whose numbers are read at its end, all together; or by a block around it, if there is one.

    What it changes beside random states is taken back by `undone_by`, as it may run a second time.
    """
    if device.type == "cpu" or pending() or active():
        return run()

    def block() -> T:
        undone_by(partial(restore_random_state, device, random_state(device)))
        if generator is not None:
            undone_by(partial(generator.set_state, generator.get_state()))
        found = run()
        return found.known() if isinstance(found, Step) else found._replace(step=found.step.known())

    return postponed(block, device)[0]


def _rows(chunks: Sequence[Chunk]) -> int:
    return sum(len(chunk.noise) for chunk in chunks if not chunk.idle)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return sum(tensors[1:], tensors[0])
