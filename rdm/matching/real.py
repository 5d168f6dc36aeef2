"""The real side under one representation, as distances and metrics see it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rdm.errors import InputError
from rdm.matching.statistic import checked
from rdm.randomness import stream


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance (unbiased) of `n` rows, in float64: all that a Fréchet distance needs of the real side."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]
    n: int

    @classmethod
    def of(cls, rows: Tensor) -> "Gaussian":
        """The fit of some rows."""
        rows = rows.double()
        if len(rows) < 2:
            raise InputError(f"a covariance needs at least 2 rows; got {len(rows)}")
        mean = rows.mean(0)
        return cls(mean, (rows - mean).T @ (rows - mean) / (len(rows) - 1), len(rows))


@dataclass(frozen=True)
class Real:
    """The real side of a metric: sampled rows, the Gaussian fit of all rows, and rows of a disjoint real split.

    Args:
        rows: uniform sample of the reference's features; None where a file holds moments only.
        gaussian: fit of the whole reference; by default that of `rows`.
        fresh: features of real items that are in no reference: what ratios divide by.
        bandwidth: median distance within the reference; by default that of `rows`.
    """

    rows: Float[Tensor, "m d"] | None
    gaussian: Gaussian | None = None
    fresh: Float[Tensor, "f d"] | None = None
    bandwidth: float | None = None

    @property
    def dimension(self) -> int | None:
        """Number of features, where anything says it."""
        if self.gaussian is not None:
            return len(self.gaussian.mean)
        return None if self.rows is None else self.rows.shape[-1]

    def required_rows(self, user: str) -> Tensor:
        """The rows, checked, or an error that says who needs them."""
        if self.rows is None:
            raise InputError(
                f"{user} needs rows of the reference; this one holds moments only; make it by rdm reference"
            )
        return checked(self.rows.detach(), side="reference features")[0]

    def fit(self) -> Gaussian:
        """The Gaussian fit of the whole reference."""
        return self.gaussian or Gaussian.of(self.required_rows("a Gaussian fit"))

    def thinned(self, size: int, seed: int) -> "Real":
        """At most `size` rows a side, drawn uniformly; the fit stays that of the whole reference."""
        rows = None if self.rows is None else thin(self.rows, size, seed, "reference")
        fresh = None if self.fresh is None else thin(self.fresh, size, seed, "fresh")
        return replace(self, rows=rows, fresh=fresh)


def thin(rows: Tensor, size: int | None, seed: int, side: str) -> Tensor:
    """At most `size` rows, drawn uniformly without replacement; the same draw for every representation of one side."""
    if size is None or size >= len(rows):
        return rows
    return rows[draw(len(rows), size, seed, side).to(rows.device)]


def draw(n: int, size: int, seed: int, side: str) -> Tensor:
    """`size` of n row numbers, without replacement."""
    return torch.randperm(n, generator=stream(seed, "thin", side))[:size]
