"""Populations: the exact gradient of a distance over more images than one forward pass holds.

One step has no branch on objective, memory or representation:

1. measure each chunk without gradient; merge over chunks;
2. make the merged summary a leaf; merge over ranks, read the memory, take the distances, back-propagate to the leaf;
3. compute each chunk again with gradient, randomness replayed, and back-propagate the leaf's cotangent through it;
4. sum parameter gradients over ranks; write the memory.

`Population.loss` takes 3 and 4 in its backward pass.

A single chunk is computed once; either way, the graph of one encoder is held at a time.

Source of the two passes: gradient caching, Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under
Memory Limited Setup", here for every statistic: a `Sum` caches its value, not its rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rdm.data.condition import Condition
from rdm.distributed import merge_across_ranks, sum_over_ranks, together, total
from rdm.errors import InputError, NonFiniteError
from rdm.matching.autocast import own_types
from rdm.matching.balance import Balance, Uniform
from rdm.matching.memory import Memory, NoMemory
from rdm.matching.objective import Objective, by_member
from rdm.matching.representation import Battery, Representation
from rdm.matching.statistic import Cat, Summary
from rdm.numbers import Count, check
from rdm.population.adding import Added, AddedLoss, Passes, Watch
from rdm.population.handing import Handed, Sums, check_equal_on_ranks, check_given, reached
from rdm.population.passes import Hand, Look, Measured, Once, Taken, Twice, measure, read_at_end
from rdm.population.remembered import followed
from rdm.population.replay import (
    Chunk,
    Generate,
    Live,
    check_differentiable,
    check_rows_apart,
    chunked,
    same_random_state,
    warn_of_range,
)
from rdm.population.state import Stateful
from rdm.population.term import Pull, Step, Term, Weighing, finite, refuse_signed
from rdm.references.file import Reference
from rdm.references.pairing import as_reference, real_sides
from rdm.references.targets import bound
from rdm.registry import balances, memories
from rdm.timing.reads import numbers, undone_by, usual
from rdm.timing.regions import region


class Population(Stateful):
    """Distances of a generated population from a reference, under every member of a battery.

    The reference is given as items, or as what was measured of them, and then needs no items.

    Args:
        objective: bound once to the reference under each member; or its registered name. A mapping by the names of
            the members gives each its own, with its own bandwidth, landmarks, ...
        battery: representations with weights; one or a list of them; registered names and modules do as well. By
            default the one that the reference's file names.
        items: reference items (images "n c h w" in [0, 1], or what the representations take).
        condition: the items' conditions, for conditional representations.
        reference: a `Reference`, its file (of `rdm reference`, or FD-loss' .npz of mu and sigma), or a mapping that
            gives one by the name of each member. Its encoders must be those of the battery.
        device: where to compute, without items.
        chunk: images in one forward pass; None for all at once.
        live: images of all ranks, drawn anew each step, whose gradient stands for that of all, unbiased; None: all.
        memory: what of the past joins the live batch (`NoMemory`, `EMA`, `Queue`), or its registered name.
        balance: how the members' terms are weighed against each other, or its registered name.
        normalize_gradient: divide the gradient by the share that the memory leaves to the live batch.
        tolerance: relative error of the gradient, for a step to be solved by what the step before left, which follows a
            memory's population (frechet) or starts from its potentials (sinkhorn; `Step.solvers`); or None.
        cache: folder for encoded reference features and for what objectives make of the reference.
        shared: every rank builds this population at the same time: each then reads its share of a reference's rows.

    The generator runs in the caller's autocast, if any; encoders in their own types, distances in all bits of theirs.

    Raises:
        InputError: chunk below 1; arguments of other types; a condition that is not one row an item; a balance that
            needs non-negative terms over an objective that is not; a reference that lacks what an objective needs.
        MismatchError: a reference of other encoders, or of items of another shape.
    """

    @own_types()
    def __init__(
        self,
        objective: Objective | str | Mapping[str, Objective | str],
        battery: Battery | Representation | nn.Module | str | Sequence[Representation | nn.Module | str] | None = None,
        items: Tensor | None = None,
        *,
        condition: Condition | None = None,
        reference: Reference | Path | str | Mapping[str, Reference | Path | str] | None = None,
        device: torch.device | str | None = None,
        chunk: int | None = None,
        live: int | None = None,
        memory: Memory | str | None = None,
        balance: Balance | str | None = None,
        normalize_gradient: bool = False,
        tolerance: float | None = None,
        cache: Path | None = None,
        shared: bool = False,
    ):
        for name, count in {"chunk": chunk, "live": live}.items():
            check(name, count, Count | None)
        file = None if reference is None else as_reference(reference)
        self.battery, reals = real_sides(battery, items, condition, reference=file, device=device, cache=cache)
        self.reference = "" if file is None else file.fingerprint
        self.condition = condition if file is None else file.labels  # of real items
        chosen = by_member(objective, [representation.name for representation in self.battery.members])
        self.balance = Uniform() if balance is None else balances.take(balance, Balance)
        self.memory = NoMemory() if memory is None else memories.take(memory, Memory)
        self.chunk, self.live, self.normalize_gradient = chunk, live, normalize_gradient
        refuse_signed(self.balance, chosen.values())
        self.terms: list[Term] = []
        self.weighing = Weighing(self.balance, self.terms)
        self._looked, self._writes, self._watch = False, 0, Watch()  # at the range of what is generated; of the memory
        self.latest: Step | None = None  # what the newest step measured
        for member, weight, real in zip(self.battery.members, self.battery.member_weights, reals, strict=True):
            each, fresh = chosen[member.name], None if real.fresh is None else real.fresh.cpu()
            bind, solver = bound(each, replace(real, shared=shared), cache), followed(each, self.memory, tolerance)
            made = (each, real.mean[None], *bind, self.memory, solver)
            self.terms.append(Term(*made, representation=member, weight=weight, fresh=fresh))
        self.weighing.check()

    def loss(
        self,
        generate: Generate,
        noise: Tensor,
        condition: Condition | None = None,
        *,
        weights: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of generate(noise, condition) as a number for any trainer; its backward() gives the exact gradient.

        What `backward` says of the arguments holds here. The gradient is the whole population's times the incoming
        one, whatever loss scale, other loss or micro-batches divide it. On several ranks all get the gradient of all
        rows, summed inside: nothing is left to be done for a plain module, and an average over ranks, as
        DistributedDataParallel, Accelerate and Lightning take, leaves it as it is. Several chunks are computed again by
        the backward pass, in the autocast of this call. The backward pass runs once, and writes the memory; a loss
        without one, as in validation under `torch.no_grad()`, changes nothing. `latest` has what the step measured.

        Shapes:
            noise: n *z, weights: n, result: ().

        Cost:
            that of `backward`, the graph of one more chunk, and another set of gradients.

        Raises:
            NonFiniteError, InputError: as `backward`; noise that requires a gradient; parameters that one chunk or rank
                reaches and others do not, or that are sharded.
        """
        chunks = self._chunks(noise, condition, weights, generator)
        if not torch.is_grad_enabled():
            self.latest = self._forward(generate, chunks, generator, self._look).step
            return self.latest.loss
        check_given(noise, condition)
        parameters: list[Tensor] = []

        def look(items: Tensor) -> None:
            self._look(items)
            check_differentiable(items)
            if len(chunks) > 1:
                check_rows_apart(items)
            parameters[:] = reached(items)

        def back(given: Sequence[Tensor], incoming: Tensor) -> list[Tensor]:
            sums = Sums(given, incoming)
            self._take(taken, sums)
            sum_over_ranks(sums.gradients)
            return sums.gradients

        taken = self._forward(generate, chunks, generator, look, graph=True)
        check_equal_on_ranks(parameters, values=self.latest is None)
        self.latest = taken.step
        return Handed.apply(back, taken.step.loss, *parameters)

    def backward(
        self,
        generate: Generate,
        noise: Tensor,
        condition: Condition | None = None,
        *,
        weights: Tensor | None = None,
        generator: torch.Generator | None = None,
        scale: float = 1.0,
        passes: Passes | None = None,
    ) -> Step:
        """Add the gradient of the loss over generate(noise, condition), times `scale`, to the parameters' `.grad`.

        `generate` is called as generate(noise) where no condition is given, and gives an item a row; a condition of
        several tensors (a tuple or mapping, with a row an item each) comes to it as it is, in chunks. With chunks it is
        called twice for each: it may use torch's global randomness (dropout, crops), which is replayed as long as no
        other thread draws, but nothing else that differs between two calls or chunks, such as batch statistics: other
        items in the second pass (by more than rounding) end the step with an error. `weights` weighs
        the rows against each other, equally by default; `generator` draws what a randomized objective needs. On
        several ranks, each gives its own rows (any number) and the same `generator`; sum the parameters' gradients
        after the call with `rdm.distributed.sum_gradients`. A trainer that calls backward() itself, or averages over
        ranks, takes `loss`. `passes` is entered for each chunk's backward pass (see `rdm.scaling.sums`).

        Raises:
            NonFiniteError: NaN or infinity in features (which representation, how many rows) or in a distance.
            InputError: generate() gives not one item a row, no gradient, or not the same again.
        """
        with torch.enable_grad():
            hand, chunks = Added(passes, self._watch, scale), self._chunks(noise, condition, weights, generator)
            step = self._take(self._forward(generate, chunks, generator, self._look), hand)
        return step._replace(loss=AddedLoss.of(step.loss))

    def warm_up(self, generate: Generate, noise: Tensor, condition: Condition | None = None) -> None:
        """Write one batch of any size to the memory, chunk by chunk and without gradient, before the first step."""
        measured = self._measure(generate, noise, condition)
        self._write([(merge_across_ranks(finite(each)), None) for each in measured.summaries], measured.rows)

    def try_out(self, generate: Generate, noise: Tensor, condition: Condition | None = None) -> None:
        """Refuse items that the encoders do not take, or features of another width; nothing changes."""
        with same_random_state(noise.device):
            self._measure(generate, noise, condition)

    @own_types()
    def floors(self, rows: int) -> dict[str, float]:
        """What a perfect generator scores, by member: the distance of so many fresh real rows from the reference."""
        return {term.representation.name: term.floor(rows) for term in self.terms}

    def _chunks(
        self, noise: Tensor, condition: Condition | None, weights: Tensor | None, generator: torch.Generator | None
    ) -> list[Chunk]:
        check("generator", generator, torch.Generator | None)
        live = None if self.live is None or not torch.is_grad_enabled() else Live(self.live, self._writes)
        return chunked(noise, condition, weights, self.chunk, live)

    def _measure(self, generate: Generate, noise: Tensor, condition: Condition | None) -> Measured:
        chunks, rows = chunked(noise, condition, None, self.chunk), self.memory.keeps_rows
        return measure(self.terms, generate, chunks, self._look, rows=rows)

    def _forward(
        self,
        generate: Generate,
        chunks: list[Chunk],
        generator: torch.Generator | None,
        look: Look,
        *,
        graph: bool = False,
    ) -> Taken:
        """Passes 1 and 2, of which nothing is kept; `look` sees the first items, with their graph if asked for."""
        run = partial(self._pulled, generate, chunks, generator, look, graph=graph)
        return read_at_end(run, chunks[0].noise.device, generator)

    def _pulled(
        self, generate: Generate, chunks: list[Chunk], generator: torch.Generator | None, look: Look, *, graph: bool
    ) -> Taken:
        learn, before = torch.is_grad_enabled(), self.weighing.kept
        rows = int(total(sum(len(chunk.noise) for chunk in chunks if not chunk.idle)))
        with together():
            if len(chunks) == 1 and learn:
                passes = Once(self.terms, generate, chunks[0], look, self.memory)
            else:
                passes = Twice(self.terms, generate, chunks, look, self.memory, graph=graph)
        try:
            pulls = passes.pulled(rows, generator)
            units = self._units(pulls)
            if self.weighing.wants_pulls:
                if not learn:
                    raise InputError(f"{self.balance} weighs by gradients and has none yet; take a step first")
                self.weighing.keep(passes.back(pulls, units, None, norms=True), units)
            step, scales = self._weigh(pulls, rows, units)
            return Taken(step, passes, pulls, scales, units, self.weighing.kept)
        finally:
            self.weighing.kept = before

    def _take(self, taken: Taken, hand: Hand) -> Step:
        """Passes 3 and 4: the gradient goes on to the generator, and balance and memory take the step."""
        with together():
            norms = taken.passes.back(taken.pulls, taken.scales, hand, norms=self.weighing.balance.needs_pulls)
        undone_by(partial(setattr, self.weighing, "kept", self.weighing.kept))
        self.weighing.kept = taken.kept
        self.weighing.keep(norms, taken.units)
        written = [(pull.batch, pull.left) for pull in taken.pulls]
        step = lambda: taken.step._replace(dropped=self._write(written, taken.passes.rows))  # noqa: E731
        self.latest = read_at_end(step, taken.scales.device)
        return self.latest

    def _weigh(self, pulls: Sequence[Pull], rows: int, units: Tensor) -> tuple[Step, Tensor]:
        """The balanced loss, and what each member's cotangent is multiplied by."""
        names = [term.representation.name for term in self.terms]
        distances = {name: pull.distance for name, pull in zip(names, pulls, strict=True)}
        raw = torch.stack(list(distances.values()))
        if not usual(raw.abs().max() < torch.inf):
            bad = [name for name, value in distances.items() if not bool(torch.isfinite(value))]
            raise NonFiniteError(f"the distance under {', '.join(bad)} is not finite; the step was not taken")
        coefficients = self.weighing(raw, lambda: [self.memory.effective(rows, float(pull.mass)) for pull in pulls])
        weights = torch.stack([c * term.weight for c, term in zip(coefficients, self.terms, strict=True)])
        applied, shares = numbers(names, coefficients), numbers(names, [pull.share for pull in pulls])
        said = {name: pull.report for name, pull in zip(names, pulls, strict=True) if pull.report}
        return Step((weights * raw).sum(), distances, applied, shares, {}, said), weights * units

    def _units(self, pulls: Sequence[Pull]) -> Tensor:
        """What a term of weight and coefficient 1 is multiplied by."""
        ones = pulls[0].distance.new_ones(len(pulls))
        if not self.normalize_gradient:
            return ones
        return torch.stack([one / pull.share for one, pull in zip(ones, pulls, strict=True)])

    def _look(self, items: Tensor) -> None:
        """At the first items that are generated."""
        if not self._looked:
            warn_of_range(items, {term.representation.name: term.representation.inputs for term in self.terms})
        self._looked = True

    @region("memory")
    def _write(self, read: list[tuple[Summary, dict[str, Tensor] | None]], rows: list[Cat]) -> dict[str, float]:
        """Pass 4: the memory takes each batch of all ranks, and what reading it left; returns the shares dropped."""
        undone_by(partial(setattr, self, "_writes", self._writes))
        self._writes += 1
        merged = [merge_across_ranks(r) for r in rows] or [None for _ in read]
        triples = zip(self.terms, read, merged, strict=True)
        dropped = [term.write(batch, r, left) for term, (batch, left), r in triples]
        return numbers([term.representation.name for term in self.terms], dropped)
