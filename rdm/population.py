"""Populations: the exact gradient of a distance over more images than one forward pass holds.

One step has no branch on objective, memory or representation:

1. measure each chunk without gradient; merge over chunks;
2. make the merged summary a leaf; merge over ranks, read the memory, take the distances, back-propagate to the leaf;
3. compute each chunk again with gradient, randomness replayed, and back-propagate the leaf's cotangent through it;
4. sum parameter gradients over ranks; write the memory.

A single chunk is computed once; either way, the graph of one encoder is held at a time.

Source of the two passes: gradient caching, Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under
Memory Limited Setup", here for every statistic: a `Sum` caches its value, not its rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.autocast import own_types
from rdm.balance import Balance, Uniform
from rdm.distributed import merge_across_ranks, total
from rdm.errors import InputError, NonFiniteError
from rdm.memory import Memory, NoMemory
from rdm.objective import Objective
from rdm.reference import Reference
from rdm.representation import Battery, Representation
from rdm.statistic import Cat, Statistic, Summary, checked, checked_weights

Generate = Callable[..., Tensor]


class Step(NamedTuple):
    """What one step measured."""

    loss: Tensor  # the balanced sum, detached
    distances: dict[str, Tensor]  # raw distance by representation, detached
    shares: dict[str, float]  # share of the gradient that the memory leaves to the live batch
    dropped: dict[str, float]  # share of its mass that the memory lacks, dropped to stay bounded


@dataclass
class _Term:
    """One representation's part of the loss; `past` is the only thing that changes."""

    representation: Representation
    weight: float
    statistic: Statistic
    target: Any
    past: Summary | None = None

    def encode(self, items: Tensor, chunk: "_Chunk") -> tuple[Tensor, Tensor]:
        """Checked features, and the chunk's weights."""
        features = self.representation(items, chunk.condition)
        features, equal = checked(features, side=f"generated features of {self.representation.name!r}")
        return features, equal if chunk.weights is None else chunk.weights

    @own_types()
    def backward(self, leaf: Tensor, chunk: "_Chunk", cotangent: Tensor) -> None:
        """Back-propagate the chunk's cotangent to its items, one micro-batch of the encoder at a time."""
        slices = self.representation.slices(len(leaf))
        parts = self.statistic.kind.split(cotangent, [rows.stop - rows.start for rows in slices])
        for rows, part in zip(slices, parts, strict=True):
            self.statistic.measure(*self.encode(leaf[rows], chunk.part(rows))).value.backward(part)


class _Chunk(NamedTuple):
    """Inputs of one forward pass and the random state that it started from."""

    noise: Tensor
    condition: Tensor | None
    weights: Tensor | None
    random: list[Tensor]

    def part(self, rows: slice) -> "_Chunk":
        """Some of its rows."""
        condition, weights = (None if each is None else each[rows] for each in (self.condition, self.weights))
        return _Chunk(self.noise[rows], condition, weights, self.random)


class Population:
    """Distances of a generated population from reference items, under every member of a battery.

    Args:
        objective: bound once to the reference under each member.
        battery: representations with weights, or one representation.
        items: reference items (images "n c h w" in [0, 1], or what the representations take).
        condition: the items' conditions, for conditional representations.
        chunk: images in one forward pass; None for all at once.
        memory: what of the past joins the live batch (`NoMemory`, `EMA`, `Queue`).
        balance: how the members' terms are weighed against each other.
        normalize_gradient: divide the gradient by the share that the memory leaves to the live batch.
        cache: folder for encoded reference features.

    The generator runs in the caller's autocast, if any; encoders and distances in their own types.

    Raises:
        InputError: chunk below 1; a balance that needs non-negative terms over an objective that is not.
    """

    @own_types()
    def __init__(
        self,
        objective: Objective,
        battery: Battery | Representation,
        items: Tensor,
        *,
        condition: Tensor | None = None,
        chunk: int | None = None,
        memory: Memory | None = None,
        balance: Balance | None = None,
        normalize_gradient: bool = False,
        cache: Path | None = None,
    ):
        battery = Battery((battery,)) if isinstance(battery, Representation) else battery
        self.objective, self.memory, self.balance = objective, memory or NoMemory(), balance or Uniform()
        self.chunk, self.normalize_gradient = chunk, normalize_gradient
        if chunk is not None and chunk < 1:
            raise InputError(f"expected chunk >= 1 images a forward pass; got {chunk}")
        if self.balance.needs_nonnegative and not objective.traits.nonnegative:
            raise InputError(
                f"{self.balance} divides by the distance and needs a non-negative objective; got {objective}; "
                "use Uniform() or a biased estimator"
            )
        self.terms: list[_Term] = []
        self.balance_state: Tensor | None = None
        self.battery = battery.fitted(items, condition).to(items.device)
        for representation, weight in zip(self.battery.members, self.battery.member_weights, strict=True):
            reference = Reference.measure(items, representation, condition=condition, cache=cache)
            self.terms.append(_Term(representation, weight, *objective.bind(reference)))

    def backward(
        self,
        generate: Generate,
        noise: Tensor,
        condition: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Step:
        """Add the gradient of the loss over generate(noise, condition) to the parameters' `.grad`.

        `generate` is called as generate(noise) where no condition is given. It may use randomness (dropout, crops),
        which is replayed, but nothing else that differs between two calls, such as batch statistics. `weights` weighs
        the rows against each other, equally by default; `generator` draws what a randomized objective needs. On
        several ranks, each gives its own rows (any number) and the same `generator`; sum the parameters' gradients
        after the call with `rdm.distributed.sum_gradients`.

        Raises:
            NonFiniteError: NaN or infinity in features (which representation, how many rows) or in a distance.
        """
        chunks = _chunks(noise, condition, weights, self.chunk)
        if len(chunks) == 1:
            step, batches, rows = self._in_one_pass(generate, chunks[0], generator)
        else:
            measured = self._measure(generate, chunks)
            live = int(total(len(noise)))
            pulls = [self._pull(t, s, live, generator) for t, s in zip(self.terms, measured.summaries, strict=True)]
            step, scales = self._weigh(pulls)
            self._recompute(generate, measured.chunks, [s * p.cotangent for s, p in zip(scales, pulls, strict=True)])
            batches, rows = [pull.batch for pull in pulls], measured.rows
        return step._replace(dropped=self._write(batches, rows))

    def warm_up(self, generate: Generate, noise: Tensor, condition: Tensor | None = None) -> None:
        """Write one batch of any size to the memory, chunk by chunk and without gradient, before the first step."""
        measured = self._measure(generate, _chunks(noise, condition, None, self.chunk))
        self._write([merge_across_ranks(summary) for summary in measured.summaries], measured.rows)

    def state(self) -> dict[str, Any]:
        """What changes from step to step, for a checkpoint (see `rdm.store.pack`)."""
        pasts = {t.representation.name: None if t.past is None else [t.past.value, t.past.weight] for t in self.terms}
        return {"pasts": pasts, "balance": self.balance_state}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        for term in self.terms:
            past = state["pasts"][term.representation.name]
            kind = Cat if self.memory.keeps_rows else term.statistic.kind
            term.past = None if past is None else kind(*past)
        self.balance_state = state["balance"]

    def _measure(self, generate: Generate, chunks: Sequence["_Chunk"]) -> "_Measured":
        """Pass 1: summaries of this rank's rows, without gradient."""
        parts: list[list[Summary]] = [[] for _ in self.terms]
        rows: list[list[Cat]] = [[] for _ in self.terms]
        states = []
        with torch.no_grad():
            for chunk in chunks:
                states.append(_random_state(chunk.noise.device))
                items = _generate(generate, chunk)
                for k, term in enumerate(self.terms):
                    with own_types():
                        features, weights = term.encode(items, chunk)
                        part = term.statistic.measure(features, weights)
                    parts[k] = term.statistic.kind.compact([*parts[k], part])
                    if self.memory.keeps_rows:
                        rows[k].append(Cat(features, weights))
            summaries = [term.statistic.kind.merge(p) for term, p in zip(self.terms, parts, strict=True)]
        replayable = [chunk._replace(random=random) for chunk, random in zip(chunks, states, strict=True)]
        return _Measured(replayable, summaries, [Cat.merge(r) for r in rows if r])

    def _in_one_pass(
        self, generate: Generate, chunk: "_Chunk", generator: torch.Generator | None
    ) -> tuple[Step, list[Summary], list[Cat]]:
        """All passes for a single chunk, which is computed once; one encoder's graph at a time.

        Each member's gradient is pulled back to the items before the next member is encoded, and weighed when the
        distances of all are known.
        """
        items, live = _generate(generate, chunk), int(total(len(chunk.noise)))
        _check_differentiable(items)
        pulls, gradients, rows = [], [], []
        for term in self.terms:
            leaf = items.detach().requires_grad_()
            with own_types():
                features, weights = term.encode(leaf, chunk)
                summary = term.statistic.measure(features, weights)
                pulls.append(self._pull(term, summary, live, generator))
                summary.value.backward(pulls[-1].cotangent)
            gradients.append(_gradient(leaf))
            if self.memory.keeps_rows:
                rows.append(Cat(features.detach(), weights))
        step, scales = self._weigh(pulls)
        items.backward(sum(scale.to(items) * g for scale, g in zip(scales, gradients, strict=True)))
        return step, [pull.batch for pull in pulls], rows

    @own_types()
    def _pull(self, term: _Term, summary: Summary, live: int, generator: torch.Generator | None) -> "_Pull":
        """Pass 2: the distance of the population that ranks and memory make of a summary, and its cotangent."""
        leaf = summary.value.detach().requires_grad_()
        batch = merge_across_ranks(type(summary)(leaf, summary.weight))
        population, share = self.memory.read(term.past, batch, live, term.statistic)
        value = self.objective.distance(population, term.target, generator=generator)
        value.backward()
        return _Pull(value.detach(), _gradient(leaf), share, batch.detach())

    def _weigh(self, pulls: Sequence["_Pull"]) -> tuple[Step, list[Tensor]]:
        """The balanced loss, and what each member's cotangent is multiplied by."""
        names = [term.representation.name for term in self.terms]
        distances = {name: pull.distance for name, pull in zip(names, pulls, strict=True)}
        if bad := [name for name, value in distances.items() if not bool(torch.isfinite(value))]:
            raise NonFiniteError(f"the distance under {', '.join(bad)} is not finite; the step was not taken")
        raw = torch.stack(list(distances.values()))
        coefficients, self.balance_state = self.balance.coefficients(raw, self.balance_state)
        if not self.objective.traits.normalize:
            coefficients = torch.ones_like(coefficients)
        weights = coefficients * raw.new_tensor([term.weight for term in self.terms])
        shares = {name: pull.share for name, pull in zip(names, pulls, strict=True)}
        scales = list(weights / raw.new_tensor(list(shares.values()))) if self.normalize_gradient else list(weights)
        return Step((weights * raw).sum(), distances, shares, {}), scales

    def _recompute(self, generate: Generate, chunks: Sequence["_Chunk"], cotangents: list[Tensor]) -> None:
        """Pass 3: each chunk again, with gradient and its randomness replayed; one encoder's graph at a time."""
        device = chunks[0].noise.device
        after = _random_state(device)
        rows = [len(chunk.noise) for chunk in chunks]
        shares = [t.statistic.kind.split(c, rows) for t, c in zip(self.terms, cotangents, strict=True)]
        for i, chunk in enumerate(chunks):
            _restore_random_state(device, chunk.random)
            items = _generate(generate, chunk)
            _check_differentiable(items)
            leaf = items.detach().requires_grad_()
            for term, share in zip(self.terms, shares, strict=True):
                term.backward(leaf, chunk, share[i])
            items.backward(leaf.grad)
        _restore_random_state(device, after)

    def _write(self, batches: list[Summary], rows: list[Cat]) -> dict[str, float]:
        """Pass 4: the memory takes this step's batch, of all ranks; returns the shares of mass that it dropped."""
        dropped = {}
        written = [merge_across_ranks(r) for r in rows] if self.memory.keeps_rows else batches
        for term, batch in zip(self.terms, written, strict=True):
            term.past, dropped[term.representation.name] = self.memory.write(term.past, batch)
        return dropped


class _Pull(NamedTuple):
    """One member's distance, its gradient in this rank's summary, and the batch of all ranks."""

    distance: Tensor
    cotangent: Tensor
    share: float
    batch: Summary


class _Measured(NamedTuple):
    """What pass 1 leaves."""

    chunks: list[_Chunk]
    summaries: list[Summary]  # one a term, of this rank's rows
    rows: list[Cat]  # one a term where the memory keeps rows, else empty


def _chunks(noise: Tensor, condition: Tensor | None, weights: Tensor | None, size: int | None) -> list[_Chunk]:
    if len(noise) == 0:
        raise InputError("expected at least one row of noise; got none; give every rank a share of the population")
    if weights is not None:
        weights = checked_weights(weights, len(noise), side="the population").to(noise.device)
    pieces = noise.split(size or len(noise))
    rows = [len(piece) for piece in pieces]
    others = [[None] * len(pieces) if each is None else each.split(rows) for each in (condition, weights)]
    return [_Chunk(z, c, w, []) for z, c, w in zip(pieces, *others, strict=True)]


def _generate(generate: Generate, chunk: _Chunk) -> Tensor:
    return generate(chunk.noise) if chunk.condition is None else generate(chunk.noise, chunk.condition)


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _check_differentiable(tensor: Tensor) -> None:
    if not tensor.requires_grad:
        raise InputError("generate() gave items without gradient; call it on parameters that require one")


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _restore_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
