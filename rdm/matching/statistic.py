"""What an objective consumes: a statistic of a weighted set of features, and the summaries it yields.

A `Statistic` measures features into a `Summary`. Summaries come in two kinds, by how the parts of a population combine:
`Sum` (parts are added: an unnormalised mean embedding) and `Cat` (parts are concatenated: weighted rows). Chunks,
ranks and memories all follow from `merge`, `split` and `scale`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor

from rdm.errors import InputError, NonFiniteError
from rdm.matching.autocast import all_finite, dense
from rdm.numbers import EDGE, Float
from rdm.timing.reads import at_once, usual

Factor = float | Tensor


@dataclass(frozen=True)
class Summary(ABC):
    """The value of a statistic on a weighted set of rows, and the weight of that set."""

    value: Tensor
    weight: Tensor

    reduction: ClassVar[str]  # how parts combine, over chunks and over ranks: "sum" or "cat"

    @property
    @abstractmethod
    def mass(self) -> Tensor:
        """Total weight, sum of w_i."""

    @property
    @abstractmethod
    def count(self) -> Tensor:
        """Kish's effective number of rows, (sum w)^2 / sum w^2 (Kish 1965); n for equal weights."""

    @abstractmethod
    def scale(self, factor: Factor) -> "Summary":
        """Multiply every row's weight by `factor`."""

    @abstractmethod
    def mixed(self, mine: Factor, other: "Summary", theirs: Factor, drop: Factor | None = None) -> "Summary":
        """The union with `other`, both with their rows' weights multiplied.

        Of these rows the first, which are the oldest, are dropped as far as they weigh at most `drop`, where that frees
        memory.
        """

    @classmethod
    @abstractmethod
    def merge(cls, parts: Sequence["Summary"]) -> "Summary":
        """The summary of the union of disjoint parts."""

    @classmethod
    @abstractmethod
    def compact(cls, parts: Sequence["Summary"]) -> list["Summary"]:
        """The same parts in the least memory that still lets them be merged."""

    @classmethod
    @abstractmethod
    def split(cls, cotangent: Tensor, rows: Sequence[int]) -> Sequence[Tensor]:
        """Adjoint of `merge`: the cotangent of each part's value, for parts of so many rows."""

    def detach(self) -> "Summary":
        """The same summary outside the autograd graph."""
        return type(self)(self.value.detach(), self.weight.detach())


@dataclass(frozen=True)
class Sum(Summary):
    """value: sum_i w_i psi(x_i), of any shape; weight: (sum_i w_i, sum_i w_i^2)."""

    reduction: ClassVar[str] = "sum"

    @property
    def mass(self) -> Tensor:  # noqa: D102
        return self.weight[0]

    @property
    def count(self) -> Tensor:  # noqa: D102
        return self.weight[0].square() / self.weight[1]

    def scale(self, factor: Factor) -> "Sum":  # noqa: D102
        return type(self)(self.value * factor, torch.stack([self.weight[0] * factor, self.weight[1] * factor**2]))

    def mixed(self, mine: Factor, other: Summary, theirs: Factor, drop: Factor | None = None) -> "Sum":  # noqa: D102
        factor = torch.as_tensor(theirs).to(other.value)
        value = (self.value * mine).addcmul_(other.value, factor)  # one copy of what may be large
        mass, squares = self.weight * mine + other.weight * theirs, self.weight * mine**2 + other.weight * theirs**2
        return type(self)(value, torch.stack([mass[0], squares[1]]))

    @classmethod
    def merge(cls, parts: Sequence[Summary]) -> "Sum":  # noqa: D102
        return cls(reduce(add, (p.value for p in parts)), reduce(add, (p.weight for p in parts)))

    @classmethod
    def compact(cls, parts: Sequence[Summary]) -> list[Summary]:  # noqa: D102
        return [cls.merge(parts)]

    @classmethod
    def split(cls, cotangent: Tensor, rows: Sequence[int]) -> Sequence[Tensor]:  # noqa: D102
        return [cotangent] * len(rows)


@dataclass(frozen=True)
class Cat(Summary):
    """value: rows "n *k"; weight: one number a row, "n"."""

    reduction: ClassVar[str] = "cat"

    @property
    def mass(self) -> Tensor:  # noqa: D102
        return self.weight.sum()

    @property
    def count(self) -> Tensor:  # noqa: D102
        return self.weight.sum().square() / self.weight.square().sum()

    def scale(self, factor: Factor) -> "Cat":  # noqa: D102
        return type(self)(self.value, self.weight * factor)

    def mixed(self, mine: Factor, other: Summary, theirs: Factor, drop: Factor | None = None) -> "Cat":  # noqa: D102
        own = self.scale(mine)
        return Cat.merge([own if drop is None else own.prune(drop), other.scale(theirs)])

    def prune(self, mass: Factor) -> "Cat":
        """Drop the first rows, which are the oldest, as far as they weigh at most `mass`.

        Where their number is not known yet (`rdm.timing.reads`), they weigh nothing.
        """
        keep = (self.weight.cumsum(0) > mass) & (self.weight > 0)
        if not at_once(keep):
            return type(self)(self.value, self.weight.where(keep, 0))
        return type(self)(self.value[keep], self.weight[keep])

    @classmethod
    def merge(cls, parts: Sequence[Summary]) -> "Cat":  # noqa: D102
        return cls(torch.cat([p.value for p in parts]), torch.cat([p.weight for p in parts]))

    @classmethod
    def compact(cls, parts: Sequence[Summary]) -> list[Summary]:  # noqa: D102
        return list(parts)

    @classmethod
    def split(cls, cotangent: Tensor, rows: Sequence[int]) -> Sequence[Tensor]:  # noqa: D102
        return cotangent.split(list(rows))


class Statistic(ABC):
    """A deterministic functional of weighted features, linear in the weights; `kind` says how its parts combine."""

    kind: ClassVar[type[Summary]]

    @abstractmethod
    def measure(self, features: Float[Tensor, "n d"], weights: Float[Tensor, " n"]) -> Summary:
        """Measure checked features (see `checked`), with gradient."""

    def run_on(self, value: Tensor, changes: Sequence[tuple[float, Cat]]) -> Tensor:
        """A sum's value after changes, one by one: factors, and rows to add; the same however calls divide them."""
        for kept, rows in changes:
            value = self.measure(rows.value, rows.weight).value.add_(value, alpha=kept)
        return value

    def translated(self, summary: Summary, shift: Float[Tensor, " d"]) -> Summary:
        """The summary of the same rows, all moved: by a vector of features, or for rows of their values."""
        if self.kind.reduction == "cat":
            return type(summary)(summary.value + shift.to(summary.value), summary.weight)
        name = f"{type(self).__name__}.translated"
        raise InputError(f"riding needs to know how a sum moves with its rows; define {name}, or leave riding out")

    def of_moments(self, mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"], n: int) -> Summary | None:
        """The summary of `n` rows of this mean and unbiased covariance, where it follows from them; n = 0: not said."""
        return None


@dataclass(frozen=True)
class Moments(Statistic):
    """First and second moments about `shift`, in float64: value (d+1, d) = [sum w y ; sum w y y^T] with y = x - shift.

    Shifting by the reference's mean keeps E[yy^T] - E[y]E[y]^T from cancelling; the sum stays additive over chunks,
    ranks and time, and the rows y y^T are never formed.
    """

    shift: Float[Tensor, " d"]
    kind: ClassVar[type[Summary]] = Sum

    def measure(self, features: Float[Tensor, "n d"], weights: Float[Tensor, " n"]) -> Sum:  # noqa: D102
        same_dimension(features, self.shift)
        value = _MomentSums.apply(features, weights, self.shift)
        return Sum(value, torch.stack([weights.sum(), weights.square().sum()]))

    def run_on(self, value: Tensor, changes: Sequence[tuple[float, Cat]]) -> Tensor:  # noqa: D102
        return _mirrored(_add_moments(value.clone(), changes, self.shift))

    def translated(self, summary: Summary, shift: Float[Tensor, " d"]) -> Sum:  # noqa: D102
        first, moved = summary.value[0], summary.value[0] + summary.mass * shift
        second = summary.value[1:] + torch.outer(shift, first) + torch.outer(moved, shift)
        return Sum(torch.cat([moved[None], second]), summary.weight)

    def of_moments(  # noqa: D102
        self, mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"], n: int
    ) -> Sum:
        first = mean - self.shift
        second = covariance * ((n - 1) / n if n else 1.0) + first[:, None] * first
        weight = first.new_tensor([1.0, 1 / n if n else 0.0])
        return Sum(torch.cat([first[None], second]), weight)


class _MomentSums(torch.autograd.Function):
    """[sum w y ; sum w y y^T] in blocks of 4 MiB: no float64 copy of all rows is held, nor kept for the gradient.

    The gradient in a row, w (g + (G + G^T) y), takes one matrix product, that in its weight, g y + y^T G y, no other.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weights: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(features, weights, shift)
        value = torch.zeros(len(shift) + 1, len(shift), dtype=torch.float64, device=features.device)
        return _mirrored(_add_moments(value, [(1.0, Cat(features, weights))], shift))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor, None]:
        features, weights, shift = ctx.saved_tensors
        first, second = cotangents[0][0], cotangents[0][1:] + cotangents[0][1:].T
        gradient, of_weights = torch.empty_like(features), torch.empty_like(weights)
        for k in _blocks(len(features), max(64, 2**19 // features.shape[1])):
            y = features[k] - shift
            pull = torch.addmm(first, y, second)
            of_weights[k] = torch.einsum("nd,nd->n", y, pull + first) / 2
            gradient[k] = pull.mul_(weights[k, None])
        return gradient, of_weights, None


def _add_moments(value: Tensor, changes: Sequence[tuple[float, Cat]], shift: Tensor) -> Tensor:
    """In place a factor, then [sum w y ; sum w y y^T] of rows, of which the lower half; some changes at a time."""
    size = max(64, 2**19 // len(shift))
    each = ((kept if k.start == 0 else 1.0, rows, k) for kept, rows in changes for k in _blocks(len(rows.weight), size))
    while some := list(islice(each, 2)):
        wide = [(kept, y := rows.value[k] - shift, y * rows.weight[k, None]) for kept, rows, k in some]
        for kept, _, scaled in wide:
            value[0].mul_(kept).add_(scaled.sum(0))
        for part in _blocks(len(shift), max(256, -(-len(shift) // 8))):
            for kept, y, scaled in wide:
                value[1:][part, : part.stop].addmm_(scaled[:, part].T, y[:, : part.stop], beta=kept)
    return value


def _mirrored(value: Tensor) -> Tensor:
    """The lower half copied to the upper."""
    for rows in _blocks(value.shape[1], 256):
        value[1:][: rows.start, rows] = value[1:][rows, : rows.start].T
    return value


def _blocks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def same_dimension(features: Tensor, shift: Tensor) -> None:
    """Refuse rows that the reference's mean is not one of."""
    if features.shape[1] != len(shift):
        wanted = f"features must have the reference's dimension d={len(shift)}; got d={features.shape[1]}"
        raise InputError(f"{wanted}; encode both sides with the same representation")


def checked(
    features: Tensor, weights: Tensor | None = None, *, side: str = "features"
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Validate one side: features (n, d) in float32 or better, weights (n,) in float64 (ones by default).

    Raises:
        InputError: not two-dimensional, empty, or weights negative, all zero, non-finite or of another length.
        NonFiniteError: NaN or infinity, with the side and the number of rows.
    """
    if not isinstance(features, Tensor) or features.ndim != 2:
        got, remedy = type(features).__name__, "torch.as_tensor makes one of numbers"
        if isinstance(features, Tensor):
            got, remedy = f"shape {tuple(features.shape)}", "flatten or pool each item to one row"
        raise InputError(f"{side} must be a tensor of shape (n, d); got {got}; {remedy}")
    dense(features, side)
    if features.shape[0] == 0 or features.shape[1] == 0:
        raise InputError(f"{side} is empty: shape {tuple(features.shape)}; at least one row and one column are needed")
    if not features.is_floating_point() or features.dtype.itemsize == 1:
        got = f"{features.dtype}; convert it, images to [0, 1]"
        raise InputError(f"{side} must be floating point of 16 bits or more; got {got}")
    if not all_finite(features.detach()):
        bad = int((~torch.isfinite(features.detach())).any(1).sum())
        raise NonFiniteError(f"{side}: NaN or infinity in {bad} of {len(features)} rows; expected finite features")
    if features.dtype == torch.float64 and usual(torch.stack(features.detach().aminmax()).abs().max() > EDGE, False):
        raise NonFiniteError(f"{side}: values beyond {EDGE:.0e}, whose powers leave float64; scale them down")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if weights is None:
        return features, torch.ones(len(features), dtype=torch.float64, device=features.device)
    return features, checked_weights(weights, len(features), side=side).to(features.device)


def checked_weights(weights: Tensor, n: int, *, side: str) -> Float[Tensor, " n"]:
    """Validate n weights: float64, finite, not negative, not all zero; their gradient is kept."""
    try:
        weights = torch.as_tensor(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"weights of {side} must be {n} numbers, one a row; got {type(weights).__name__}") from error
    dense(weights, f"weights of {side}")
    if weights.is_complex():
        raise InputError(f"weights of {side} must be real numbers; got {weights.dtype}")
    weights = weights.to(torch.float64)
    if weights.shape != (n,):
        raise InputError(f"weights of {side} must have shape ({n},), one a row; got {tuple(weights.shape)}")
    values = weights.detach()
    if not usual(torch.isfinite(values).all()):
        raise NonFiniteError(f"weights of {side}: NaN or infinity in {int((~torch.isfinite(values)).sum())} of {n}")
    if usual((values < 0).any(), False):
        raise InputError(
            f"weights of {side} must not be negative; got {int((values < 0).sum())} negative of {n}, "
            f"least {values.min().item():.3g}"
        )
    if not usual(torch.isfinite(values.sum())):
        raise InputError(f"weights of {side} sum to infinity; divide them by their largest, {float(values.max()):.3g}")
    if usual(values.sum() == 0, False):
        raise InputError(f"weights of {side} are all zero; at least one must be positive")
    return weights
