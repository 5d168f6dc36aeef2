"""Calling a generator, and calling it again for the same items: randomness replayed, what it gives compared.

The second call must give the items of the first but for rounding, which differs where kernels are chosen by whether a
gradient is wanted. Rows are compared by their products with fixed random directions, far fewer numbers than the items.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.data.condition import Condition, check_condition, rows_of
from rdm.data.feed import portion
from rdm.data.inputs import Inputs
from rdm.distributed import gather, largest, rank
from rdm.errors import InputError
from rdm.matching.autocast import own_types, refuse_gradient
from rdm.matching.statistic import checked_weights
from rdm.randomness import stream
from rdm.timing.reads import usual
from rdm.timing.regions import region

Generate = Callable[..., Tensor]
DIRECTIONS = 4
SPREAD, ROUNDING = 2**-5, 2**-7  # of the items' spread and of their size: how far apart the two passes may be
OUTSIDE = 0.1  # share of the first values outside an encoder's range that is warned of
REMEDY = (
    "a step of several chunks computes each twice; put batch norm into eval() or take GroupNorm, draw from torch's "
    "global random state alone (and from no other thread meanwhile), or give chunk=None"
)


class Chunk(NamedTuple):
    """Inputs of one forward pass and the random state that it started from.

    An idle one is computed because other ranks compute one, for which a sharded generator waits; it counts for nothing.
    A still one counts for the population and gets no gradient.
    """

    noise: Tensor
    condition: Condition | None
    weights: Tensor | None
    random: list[Tensor]
    idle: bool = False
    still: bool = False

    def part(self, rows: slice | Tensor) -> "Chunk":
        """Some of its rows."""
        return self._replace(
            noise=self.noise[rows], condition=rows_of(self.condition, rows), weights=rows_of(self.weights, rows)
        )


class Live(NamedTuple):
    """So many rows, over all ranks and drawn anew each turn, that get a gradient."""

    rows: int
    turn: int


def chunked(
    noise: Tensor, condition: Condition | None, weights: Tensor | None, size: int | None, live: Live | None = None
) -> list[Chunk]:
    """Chunks of so many rows, all in one for None; as many on every rank, smaller ones where there are fewer rows.

    Those of live rows come first, the still ones after them.

    Raises:
        InputError: noise that is no tensor or has no row; a condition or weights of another length.
    """
    if not isinstance(noise, Tensor) or noise.ndim == 0:
        raise InputError(f"noise must be a tensor, one row an item; got {type(noise).__name__}")
    if len(noise) == 0:
        raise InputError("expected at least one row of noise; got none; give every rank a share of the population")
    check_condition(condition, len(noise), "the noise")
    if weights is not None:
        refuse_gradient(weights, "weights of the population", "detach them, or take rdm.distance, which learns weights")
        weights = checked_weights(weights, len(noise), side="the population").detach().to(noise.device)
    rows = Chunk(noise, condition, weights, [])
    if live is None:
        return _pieces(rows, size, rows)
    is_live = _drawn(len(noise), live).to(noise.device)
    moving, still = (rows.part(each.nonzero()[:, 0]) for each in (is_live, ~is_live))
    return _pieces(moving, size, rows) + _pieces(still._replace(still=True), size, rows)


def _drawn(rows: int, live: Live) -> Tensor:
    """Which of this rank's rows are live; the same of all rows on any number of ranks."""
    counts = [int(n) for n in gather(torch.tensor(rows))]
    chosen = torch.randperm(sum(counts), generator=stream(0, "live rows", live.turn))
    before = sum(counts[: rank()])
    return chosen[before : before + rows] < live.rows


def _pieces(rows: Chunk, size: int | None, spare: Chunk) -> list[Chunk]:
    """Pieces of so many rows; idle ones, of the `spare` rows if need be, where other ranks have more pieces."""
    n = len(rows.noise)
    size = size or max(n, 1)
    parts = [range(start, min(start + size, n)) for start in range(0, n, size)]
    (count,) = largest(len(parts))
    if count > len(parts):
        parts = [portion(n, k, min(count, n)) for k in range(min(count, n))]
    chunks = [rows.part(slice(p.start, p.stop)) for p in parts] if len(parts) > 1 else [rows] * len(parts)
    first = chunks[0] if chunks else spare.part(slice(0, 1))
    return chunks + [first._replace(idle=True, still=rows.still)] * (count - len(chunks))


def generated(generate: Generate, chunk: Chunk) -> Tensor:
    """One item a row of noise, in float32 or better where they are no whole numbers.

    Raises:
        InputError: something else than a tensor, or other items than rows.
    """
    if not callable(generate):
        raise InputError(f"generate must be called as generate(noise); got {type(generate).__name__}")
    with region("generator, forward" if torch.is_grad_enabled() else "generator, first pass"):
        items = generate(chunk.noise) if chunk.condition is None else generate(chunk.noise, chunk.condition)
    if not isinstance(items, Tensor):
        raise InputError(f"generate() must return a tensor of items; got {type(items).__name__}")
    rows = len(chunk.noise)
    if items.ndim < 2 or len(items) != rows:
        raise InputError(f"generate() must give one item a row of noise, {rows}; got shape {tuple(items.shape)}")
    return items.to(torch.promote_types(items.dtype, torch.float32)) if items.is_floating_point() else items


def warn_of_range(items: Tensor, inputs: Mapping[str, Inputs]) -> None:
    """Warn where many of the items' values lie outside what an encoder takes."""
    for name, taken in inputs.items():
        if (share := taken.outside(items)) > OUTSIDE:
            low, high = (float(v) for v in items.detach().aminmax())
            warnings.warn(
                f"generated items reach from {low:.3g} to {high:.3g}, {share:.0%} of their values outside those of "
                f"{taken}, which representation {name!r} takes; map them, (x + 1) / 2 from [-1, 1], or cut them off by "
                "battery.running(clamp=True)",
                stacklevel=2,
            )
            return


def check_differentiable(items: Tensor) -> None:
    """Refuse items without a graph."""
    if not items.requires_grad:
        raise InputError("generate() gave items without gradient; call it on parameters that require one")


def graph(items: Tensor) -> Iterator[Any]:
    """The nodes of the items' graph, each once, in an order that follows from the graph alone."""
    nodes, seen = [items.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            nodes += [following for following, _ in node.next_functions]


def check_rows_apart(items: Tensor) -> None:
    """Refuse items whose graph has a batch norm over statistics of several rows: an item depends on its chunk then.

    One row's statistics, as of an instance norm, are its own.
    """
    for node in graph(items):
        if "BatchNorm" in node.name() and getattr(node, "_saved_training", "Sync" in node.name()):
            if node._input_metadata[0].shape[0] > 1:
                raise InputError(
                    f"generate() takes statistics of the rows of a chunk (batch norm in train()); {REMEDY}"
                )


def sketch(items: Tensor) -> Tensor:
    """Each row's products with a few fixed directions, "n 4": their squares sum to about the row's."""
    rows = items.detach().flatten(1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    with own_types():
        return rows @ _directions(rows.shape[1], rows.dtype, rows.device)


def check_same(items: Tensor, chunk: slice, first: Tensor) -> None:
    """Refuse items of a chunk that are not those of the first pass, of which `first` is the sketch of all rows.

    The graph of the first chunk is looked at as well (`check_rows_apart`).

    Raises:
        InputError: how far apart they are, and what may have changed.
    """
    if chunk.start == 0:
        check_rows_apart(items)
    size, spread = _root_mean_square(first), _root_mean_square(first - first.mean(0))
    apart = _root_mean_square(sketch(items) - first[chunk])
    if not usual(apart <= SPREAD * spread + ROUNDING * size):
        raise InputError(
            f"generate() gave other items in the second pass, {float(apart):.3g} apart at a spread of "
            f"{float(spread):.3g}, for the same noise; {REMEDY}"
        )


def _root_mean_square(rows: Tensor) -> Tensor:
    return rows.norm() / len(rows) ** 0.5


@lru_cache(maxsize=4)
def _directions(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    normal = torch.randn(size, DIRECTIONS, generator=torch.Generator().manual_seed(0))
    return normal.to(device, dtype) / DIRECTIONS**0.5


def random_state(device: torch.device) -> list[Tensor]:
    """The global random states that a generator on the device may draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def restore_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Take back what `random_state` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """A block after which the global random states are what they were before."""
    states = random_state(device)
    try:
        yield
    finally:
        restore_random_state(device, states)
