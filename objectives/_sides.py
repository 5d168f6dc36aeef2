"""Sides of a double sum: rows as its matrix products take them, in their own dtype or in bfloat16."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from rdm.api import InputError, usual

Products = Literal["float32", "bfloat16"]  # float32: in the rows' own dtype
PADDED = 32  # columns: a multiple that matrix units like
BLOCK = 1024
LARGEST = 3e38  # that bfloat16 holds


@dataclass(eq=False)
class Side:
    """Rows "n d" of one side. In bfloat16 they are rounded to it, and squared distances are of the rounded rows."""

    rows: Tensor
    products: Products = "float32"

    @classmethod
    def of(cls, rows: Tensor, products: Products = "float32") -> "Side":
        """Rows as they are, or in float32 as bfloat16 holds them.

        Raises:
            InputError: float64 rows beyond float32's range, for products in bfloat16.
        """
        if products == "float32":
            return cls(rows)
        if rows.dtype == torch.float64 and not usual((rows.abs() < LARGEST).all()):
            largest = float(rows.abs().max())
            raise InputError(
                f'products "bfloat16" need features below {LARGEST:.0e}; got {largest:.1e}; scale them down'
            )
        return cls(rows.bfloat16().float(), products)

    def like(self, rows: Tensor) -> "Side":
        """Other rows for the same products."""
        return Side.of(rows, self.products)

    def to(self, dtype: torch.dtype) -> "Side":
        """The same rows, in products of a dtype; itself where that is so."""
        return self if self.rows.dtype == dtype else Side(self.rows.to(dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Of what the products make."""
        return torch.bfloat16 if self.products == "bfloat16" else self.rows.dtype

    @cached_property
    def norms(self) -> Tensor:
        """Squared lengths "n"."""
        return torch.cat([block.square().sum(1) for block in self.rows.split(BLOCK)])

    @cached_property
    def farthest(self) -> float:
        """The largest squared length."""
        return float(self.norms.max())

    @cached_property
    def left(self) -> Tensor:
        """-2 x, |x|^2, 1: its product with `right` is |x|^2 - 2 x.y + |y|^2, summed in float32 and rounded once."""
        ones = self._lengths.new_ones(len(self.rows), 3)
        return self._joined(-2 * self.rows.bfloat16(), self._lengths, ones)

    @cached_property
    def right(self) -> Tensor:
        """y, 1, |y|^2."""
        ones = self._lengths.new_ones(len(self.rows), 3)
        return self._joined(self.rows.bfloat16(), ones, self._lengths)

    @cached_property
    def _lengths(self) -> Tensor:
        """Squared lengths as sums of three bfloat16 numbers, which hold all bits of float32."""
        rest, parts = self.norms.clone(), []
        for _ in range(3):
            parts.append(rest.bfloat16())
            rest -= parts[-1]
        return torch.stack(parts, 1)

    def _joined(self, *columns: Tensor) -> Tensor:
        width = sum(each.shape[1] for each in columns)
        return torch.cat([*columns, columns[0].new_zeros(len(self.rows), -width % PADDED)], 1)


def squared_pairs(x: Side, i: slice, y: Side, j: slice, out: Tensor) -> Tensor:
    """|x_i - y_j|^2 in `out`, up to rounding; in bfloat16 to within 2^-8 of itself, that of near pairs too."""
    if x.products == "bfloat16":
        return torch.mm(x.left[i], y.right[j].T, out=out)
    return torch.add(x.norms[i][:, None], y.norms[j], out=out).addmm_(x.rows[i], y.rows[j].T, alpha=-2)


def draw(into: Tensor, weights: Tensor, y: Side, j: slice) -> None:
    """into_i += sum_j w_ij y_j."""
    if y.products == "bfloat16":
        into += (weights @ y.right[j, : y.rows.shape[1]]).to(into.dtype)
    else:
        into.addmm_(weights, y.rows[j])
