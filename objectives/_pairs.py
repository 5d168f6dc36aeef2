"""What kernels share: tiles of pairs of rows in strips of values and slopes, and how rows are pulled along those.

A distance of measures of mass 1 does not see constants, so radial kernels are counted from k(0) where distances are
below the bandwidth and from 0 where they are above, which keeps the digits of either
(test: test_float32_values_beside_float64_for_any_bandwidth). Kernels with a cusp at 0 see near pairs in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from objectives._sides import Side, squared_pairs
from rdm.api import squared_distances, usual

STRIP = 2**17  # pairs whose values and slopes are formed at a time: .5 MiB each in float32
NEAR = 2**15  # epsilons of the squared distance from the mean below which a pair's own is too rough for a cusp
ROUGH = 2**11  # the same where products are rounded to bfloat16


class Strip(NamedTuple):
    """Some rows of a tile of pairs."""

    rows: slice  # of the tile
    values: Tensor  # until `slopes` is called, which may put them in their place
    slopes: Callable[[], Tensor]
    shared: bool  # values are slopes
    exact: bool  # in float64, where the tile is not


class Kernel(ABC):
    """A symmetric kernel k(x, y), up to a constant."""

    centred: ClassVar[bool]  # translation invariant, so that rows may be taken about the reference's mean
    exact: ClassVar[bool]  # computed in float64 whatever the rows' dtype

    @abstractmethod
    def strips(self, x: Side, i: slice, y: Side, j: slice, *, same: bool, out: Tensor) -> Iterator[Strip]:
        """Values, in units of `value_unit`, and slopes, in the kernel's own; `same`: both are the same rows."""

    @abstractmethod
    def pulled(self, reach: Tensor, x: Tensor, drawn: Tensor, times: Tensor | float) -> Tensor:
        """`times` sum_j dk(x_i, y_j)/dx_i of weighted slopes, from their sums (`reach`) and those of y (`drawn`)."""

    @abstractmethod
    def diagonal(self, rows: Tensor) -> Tensor:
        """k(x_i, x_i) as `tile` counts it, in float64."""

    @property
    def value_unit(self) -> float:
        """What values in strips are to be multiplied by."""
        return 1.0

    def tile(self, x: Tensor, y: Tensor, *, same: bool) -> Tensor:
        """Values of the pairs of rows of x and y; `same` says that both are the same rows."""
        i, j, out = slice(0, len(x)), slice(0, len(y)), x.new_empty(len(x), len(y))
        parts = [strip.values.to(x.dtype) for strip in self.strips(Side(x), i, Side(y), j, same=same, out=out)]
        return torch.cat(parts).mul_(self.value_unit)

    def fitted(self, rows: Tensor, weights: Tensor) -> "Kernel":
        """The same kernel, knowing the reference's rows about their mean and their weights, of sum 1."""
        return self


class Radial(Kernel):
    """A kernel k(s) of the squared distance s."""

    centred: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    singular: ClassVar[bool] = False  # dk/ds is infinite at s = 0; there the pull is 0

    def fitted(self, rows: Tensor, weights: Tensor) -> "Radial":  # noqa: D102
        return self

    @property
    @abstractmethod
    def at_zero(self) -> float:
        """k(0)."""

    @property
    def origin(self) -> float:
        """The constant that `profile` leaves out: k(0), less what is counted from 0."""
        return self.at_zero

    @property
    def finest(self) -> float:
        """The squared distance over which it varies, of the narrowest bandwidth."""
        return 0.0

    @property
    def slope_unit(self) -> float:
        """What slopes in strips are to be multiplied by."""
        return 1.0

    @property
    def in_place(self) -> bool:
        """Whether `profile` and `slopes` need no room beside what they are given."""
        return False

    @property
    def shared(self) -> bool:
        """Whether its values are its slopes."""
        return False

    def values(self, squared: Tensor) -> Tensor:
        """k(s) itself, elementwise."""
        return self.profile(squared.clone()).mul_(self.value_unit).add_(self.origin)

    def diagonal(self, rows: Tensor) -> Tensor:  # noqa: D102
        return torch.full((len(rows),), self.at_zero - self.origin, dtype=torch.float64, device=rows.device)

    @abstractmethod
    def profile(self, squared: Tensor) -> Tensor:
        """k(s) - origin, elementwise, in units of `value_unit`; what `slopes` takes is left in place of s."""

    def slopes(self, left: Tensor) -> Tensor:
        """dk/ds, in place, of what `profile` left."""
        return left

    def strips(self, x: Side, i: slice, y: Side, j: slice, *, same: bool, out: Tensor) -> Iterator[Strip]:
        """In float32 or float64, and in float64 where a cusp needs it."""
        negative, close, limit = not self.singular and self._sees(x, y), self.singular, None
        if not (self.singular and x.dtype == torch.float64):
            squared_pairs(x, i, y, j, out)
            if self.singular:
                if same:
                    out.diagonal().fill_(torch.inf)
                limit = _limit(x, i, y, j)
                close = usual(out.amin() < limit, False)
        room = None if out.dtype == x.rows.dtype else x.rows.new_empty(out.shape)
        for rows in parts(out, whole=self.in_place and room is None and not close):
            work = out[rows] if room is None else room[: rows.stop - rows.start].copy_(out[rows])
            own = slice(i.start + rows.start, i.start + rows.stop)
            exact = close and (limit is None or usual(work.amin() < limit, False))
            if exact:
                work = squared_distances(x.rows[own].double(), y.rows[j].double(), coinciding=True)
            elif negative:
                work.clamp_min_(0)
            if same:  # 0 only up to rounding otherwise
                work.diagonal(rows.start).zero_()
            zero = work == 0 if exact else None
            values = self.profile(work)
            finished = partial(self._finished, work, zero, rows.start if same else None)
            yield Strip(rows, values, finished, self.shared and not same, exact and limit is not None)

    def _finished(self, left: Tensor, zero: Tensor | None, start: int | None) -> Tensor:
        """Slopes, which must vanish exactly for a row and itself, and for rows that coincide."""
        slopes = self.slopes(left)
        if zero is not None:
            slopes.masked_fill_(zero, 0.0)
        if start is not None:
            slopes.diagonal(start).zero_()
        return slopes

    def _sees(self, x: Side, y: Side) -> bool:
        """Whether rounding may leave squared distances so far below 0 that it matters; an accelerator is not asked."""
        if x.rows.device.type != "cpu":
            return True
        return 64 * torch.finfo(x.rows.dtype).eps * (x.farthest + y.farthest) > 1e-3 * self.finest

    def pulled(self, reach: Tensor, x: Tensor, drawn: Tensor, times: Tensor | float) -> Tensor:  # noqa: D102
        return drawn.addcmul_(reach[:, None].to(drawn.dtype), x, value=-1).mul_(-2 * self.slope_unit * times)


def parts(tile: Tensor, *, whole: bool = False) -> Iterator[slice]:
    """Strips of a tile that stay in a processor's cache; or the whole, as always on an accelerator."""
    height = len(tile) if whole or tile.device.type != "cpu" else max(1, STRIP // tile.shape[1])
    return (slice(start, min(start + height, len(tile))) for start in range(0, len(tile), height))


def _limit(x: Side, i: slice, y: Side, j: slice) -> Tensor:
    """Squared distance below which a pair's own has lost the digits that a cusp needs."""
    near = NEAR if x.products == "float32" else ROUGH
    return near * torch.finfo(x.rows.dtype).eps * (x.norms[i].max() + y.norms[j].max())
