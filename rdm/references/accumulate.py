"""Sums and samples that do not depend on the order of their parts: exact addition, and a keyed reservoir.

Both merge, so that workers, ranks and interrupted runs end with the same bits (test: test_reference_file.py).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.matching.real import Gaussian

HIGH, LOW = 2.0**-20, 2.0**-62  # units of the two limbs
LIMIT = 2.0**40


class ExactSum:
    """A sum of float64 tensors as two 64-bit integers an entry: addition of integers is associative.

    Each addend is rounded once, to 2^-62; entries must stay below 2^40, in units that make the data's spread about 1.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device | str = "cpu"):
        self.high, self.low = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
        self._added = 0

    def add(self, value: Tensor) -> None:
        """Add a float64 tensor."""
        if not bool((value.abs() < LIMIT).all()):
            raise InputError("features are not finite, or a million times wider than the first ones; check the encoder")
        high = (value / HIGH).round()
        self.high += high.long()
        self.low += ((value - high * HIGH) / LOW).round().long()
        self._added += 1
        if self._added % 2**16 == 0:
            self._carry()

    def merge(self, high: Tensor, low: Tensor) -> None:
        """Add another sum's limbs."""
        self._carry()
        self.high += high.to(self.high.device)
        self.low += low.to(self.low.device)

    def limbs(self) -> tuple[Tensor, Tensor]:
        """Both limbs in their one canonical form."""
        self._carry()
        return self.high, self.low

    def value(self) -> Tensor:
        """The sum in float64."""
        self._carry()
        return self.high.double() * HIGH + self.low.double() * LOW

    def _carry(self) -> None:
        carry = (self.low + 2**41) >> 42
        self.low -= carry << 42
        self.high += carry


class MomentSums:
    """Count, first and second moments of rows about a shift, in units that are powers of two; exact."""

    def __init__(self, shift: Tensor, unit: Tensor):
        self.shift, self.unit, self.count = shift, unit, 0
        d = len(shift)
        self.sums = ExactSum((d + 1, d), shift.device)

    @classmethod
    def like(cls, rows: Tensor) -> "MomentSums":
        """Shift and units from a few first rows: their mean, and the power of two above each spread.

        Where the first rows coincide, up to rounding, they say nothing of the others' spread, and their size serves.
        """
        rows = rows.double()
        spread = rows.std(0) if len(rows) > 1 else torch.zeros_like(rows[0])
        widest, size = float(spread.max()), float(rows.abs().max())
        if widest <= size * 2.0**-20:
            widest = size * 2.0**-4 or 1.0
        unit = torch.exp2(spread.clamp_min(widest * 2.0**-6).log2().ceil())
        return cls(rows.mean(0), unit)

    def add(self, rows: Tensor) -> None:
        """Add rows "n d"."""
        if len(rows) == 0:
            return
        y = (rows.double() - self.shift) / self.unit
        self.sums.add(torch.cat([y.sum(0, keepdim=True), y.T @ y]))
        self.count += len(rows)

    def state(self) -> dict[str, Tensor]:
        """Tensors that hold everything."""
        high, low = self.sums.limbs()
        return {"shift": self.shift, "unit": self.unit, "high": high, "low": low, "count": torch.tensor(self.count)}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add another's state, of the same shift and units."""
        self.sums.merge(state["high"], state["low"])
        self.count += int(state["count"])

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance."""
        if self.count < 2:
            raise InputError(f"moments need at least 2 items; got {self.count}")
        sums = self.sums.value()
        mean = sums[0] / self.count
        covariance = (sums[1:] / self.count - mean[:, None] * mean) * (self.count / (self.count - 1))
        return Gaussian(self.shift + mean * self.unit, covariance * self.unit[:, None] * self.unit, self.count)


def merged(a: Gaussian, b: Gaussian) -> Gaussian:
    """The fit of the union of disjoint rows (Chan, Golub and LeVeque 1983), in float64."""
    n, gap = a.n + b.n, b.mean - a.mean
    scatter = a.covariance * (a.n - 1) + b.covariance * (b.n - 1) + gap[:, None] * gap * (a.n * b.n / n)
    return Gaussian(a.mean + gap * (b.n / n), scatter / (n - 1), n)


class Reservoir:
    """A uniform random sample of rows: those with the smallest keys, whatever the order they came in.

    Keys are hashes of the items, so that the sample is a function of the set of items and the seed. Rows are named
    tensors with one entry an item; sorted by key, so that a first part of the sample is uniform too.
    """

    def __init__(self, size: int):
        self.size = size
        self._parts: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._held = 0

    def add(self, keys: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Offer items."""
        if len(keys) == 0:
            return
        self._parts.append((keys, {name: value.cpu() for name, value in rows.items()}))
        self._held += len(keys)
        if self._held > 2 * self.size:
            self._prune()

    def state(self) -> dict[str, Tensor]:
        """Keys and rows of the sample, sorted by key."""
        if not self._parts:
            return {}
        self._prune()
        keys, rows = self._parts[0]
        return {"keys": keys, **rows}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Offer another's sample."""
        if state:
            self.add(state["keys"], {name: value for name, value in state.items() if name != "keys"})

    def _prune(self) -> None:
        keys = torch.cat([part[0] for part in self._parts])
        kept = keys.argsort(stable=True)[: self.size]
        rows = {name: torch.cat([part[1][name] for part in self._parts])[kept] for name in self._parts[0][1]}
        self._parts, self._held = [(keys[kept], rows)], len(kept)


class Blocks:
    """Cuts a stream of batches into blocks of `size` items: the same blocks, bit for bit, whatever the batches.

    Items of another shape or type than the one before close the block.

    >>> blocks = Blocks(3)
    >>> [block.tolist() for batch in torch.arange(8).split(2) for block in blocks.add(batch)], blocks.close()
    ([[0, 1, 2], [3, 4, 5]], [tensor([6, 7])])
    """

    def __init__(self, size: int):
        self.size = size
        self._held: list[Tensor] = []

    def add(self, batch: Tensor) -> list[Tensor]:
        """The blocks that are full now; the batch is not kept, copies of its items are."""
        closed = self.close() if self._held and _form(self._held[0]) != _form(batch) else []
        waiting = sum(map(len, self._held))
        if waiting + len(batch) < self.size:
            self._held.append(batch.clone())
            return closed
        pieces = [piece.clone() for piece in torch.cat([*self._held, batch]).split(self.size)]
        self._held = [pieces.pop()] if len(pieces[-1]) < self.size else []
        return closed + pieces

    def close(self) -> list[Tensor]:
        """The unfinished block, if there is one."""
        rest, self._held = [torch.cat(self._held)] if self._held else [], []
        return rest


def _form(items: Tensor) -> tuple[object, ...]:
    return items.shape[1:], items.dtype, items.device
