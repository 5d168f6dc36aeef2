"""Any objective within each class: distances of the laws of features given the class."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.api import Cat, Count, InputError, NonFiniteError, Objective, Real, Statistic, Sum, Summary, Traits, objectives


class ClassTargets(NamedTuple):
    """What the objective is bound to in every class of the reference, and the reference's law of classes."""

    numbers: tuple[int, ...]  # of the classes that the reference has
    shares: tuple[float, ...]  # of the reference that each is
    targets: tuple[Any, ...]
    shape: tuple[int, ...]  # of a class's value, of a sum; of one row's, of rows


@dataclass(frozen=True)
class ClassSums(Sum):
    """value: a row a class, (sum w^2, sum w, the class's own sum, flat); weight as of all rows."""

    def scale(self, factor: float | Tensor) -> "ClassSums":
        """Squares of weights go with the square."""
        value = torch.cat([self.value[:, :1] * factor**2, self.value[:, 1:] * factor], 1)
        return type(self)(value, super().scale(factor).weight)

    def mixed(self, mine: Any, other: Summary, theirs: Any, drop: Any = None) -> "ClassSums":
        """Each side's squares of weights go with its own square."""
        return type(self).merge([self.scale(mine), other.scale(theirs)])  # type: ignore[return-value]


@dataclass(frozen=True)
class ByClass(Statistic):
    """A statistic of the rows of each class, which is where the last columns of features are largest.

    Sums are stacked; rows keep their order, with the number of their class as a last column.
    """

    parts: tuple[Statistic, ...]  # one a class
    numbers: tuple[int, ...]  # of the classes
    columns: int  # that say the class, the last ones
    dimension: int  # of features without them
    shape: tuple[int, ...]

    @property
    def kind(self) -> type[Summary]:  # type: ignore[override]
        """Sums of classes, or rows."""
        return ClassSums if self.parts[0].kind.reduction == "sum" else self.parts[0].kind

    def measure(self, features: Tensor, weights: Tensor) -> Summary:  # noqa: D102
        if features.shape[1] != self.dimension + self.columns:
            raise InputError(
                f"features must have the reference's dimension, d={self.dimension} and {self.columns} columns of "
                f"classes; got {features.shape[1]}; take representations.joint on both sides"
            )
        rows, classes = _apart(features, self.columns)
        chosen = [torch.nonzero(classes == number)[:, 0] for number in self.numbers]
        if self.kind is ClassSums:
            value = torch.stack([self._sum(k, rows[i], weights[i]) for k, i in enumerate(chosen)])
            return ClassSums(value, torch.stack([weights.sum(), weights.square().sum()]))
        value = rows.new_zeros(len(rows), *self.shape)
        for part, i in zip(self.parts, chosen, strict=True):
            if len(i):
                value = value.index_copy(0, i, part.measure(rows[i], weights[i]).value.to(value))
        return Cat(torch.cat([value, classes[:, None].to(value)], 1), weights)

    def translated(self, summary: Summary, shift: Tensor) -> Summary:
        """Rows of every class move alike; what says the class does not move."""
        shift = shift[: self.dimension]
        if self.kind.reduction == "cat":
            shift = shift.to(summary.value)
            return Cat(torch.cat([summary.value[:, :-1] + shift, summary.value[:, -1:]], 1), summary.weight)
        parts = [
            torch.cat([row[:2], part.translated(self._own(row), shift).value.flatten()])
            for part, row in zip(self.parts, summary.value, strict=True)
        ]
        return ClassSums(torch.stack(parts), summary.weight)

    def _own(self, row: Tensor) -> Sum:
        """One class's sum."""
        return Sum(row[2:].view(self.shape), torch.stack([row[1], row[0]]))

    def _sum(self, k: int, rows: Tensor, weights: Tensor) -> Tensor:
        masses = torch.stack([weights.square().sum(), weights.sum()])
        if len(rows) == 0:
            return masses.new_zeros(2 + torch.Size(self.shape).numel())
        return torch.cat([masses, self.parts[k].measure(rows, weights).value.flatten().to(masses)])


@objectives.register("classwise", examples=())  # which takes no features but those with columns of classes
@dataclass(frozen=True)
class Classwise(Objective):
    r"""Another objective within each class: the distance of the laws of features given the class, summed over classes.

    .. math:: \sum_c \pi_c \, D(p_g(x \mid c), p_r(x \mid c)), \quad \pi_c \text{ the reference's share of class } c

    Source: with the Fréchet distance and equal shares it is the intra-FID of Miyato and Koyama (2018), "cGANs with
    Projection Discriminator". It sees what the marginal D does not: one class drawn as another.

    Features end in columns that say the class, which is that of the largest; `representations.joint` with
    `condition=C` and any beta above 0 makes them of labels. These columns take part in nothing else. D is bound to each
    class of the reference: bandwidths, landmarks and moments are the class's own. Rows of a class that the reference
    lacks count for nothing. A class of which the population, memory included, has fewer effective rows than `least`
    is left out of the sum at that step; D may need more than one (`frechet` 2).

    `objective` is an objective, or the name of one with its own defaults.

    Shapes:
        features: n d + classes; weights: n; result ().
    Units:
        Those of the objective.
    Cost:
        That of the objective on the rows of every class; of a sum, `classes` times its memory. All rows of the
        reference are read into memory, class by class.

    Raises:
        InputError: a reference of moments alone; a population with no class of the reference; what the objective
            raises, with the class.

    >>> import torch, rdm
    >>> x, swapped = torch.tensor([[1.0, 1, 0], [5.0, 0, 1]]), torch.tensor([[5.0, 1, 0], [1.0, 0, 1]])
    >>> round(rdm.distance("classwise", swapped, x, objective="energy", classes=2).item(), 4)  # 2 |x - y| in each
    8.0
    """

    objective: Objective | str
    classes: Count = 10
    least: Count = 1

    def __post_init__(self) -> None:  # noqa: D105
        super().__post_init__()
        if isinstance(self.objective, str):
            object.__setattr__(self, "objective", objectives.build(self.objective))

    @property
    def traits(self) -> Traits:
        """Those of the objective; the reference says how much each class counts."""
        return self._inner.traits._replace(symmetric=False, waits=True)

    def bind(self, reference: Real) -> tuple[ByClass, ClassTargets]:
        """The objective bound to every class of the reference."""
        if reference.rows is None:
            reference.held("classwise")
        if (dimension := reference.dimension - self.classes) < 1:
            raise InputError(
                f"classwise of {self.classes} classes takes features of more columns; got {reference.dimension}; "
                "join features with labels by representations.joint"
            )
        found, statistics = [], []
        shape: tuple[int, ...] = ()
        for number, share, rows in _classes(reference, self.classes):
            try:
                statistic, target = self._inner.bind(rows)
            except InputError as error:
                raise InputError(f"class {number} of the reference: {error}") from error
            one = statistic.measure(rows.features[:1], torch.ones(1, dtype=torch.float64, device=rows.place))
            shape = tuple(one.value.shape) if one.reduction == "sum" else tuple(one.value.shape[1:])
            found.append((number, share, target))
            statistics.append(statistic)
        numbers, shares, targets = map(tuple, zip(*found, strict=True))
        statistic = ByClass(tuple(statistics), numbers, self.classes, dimension, shape)
        return statistic, ClassTargets(numbers, shares, targets, shape)

    def distance(self, summary: Summary, target: ClassTargets, *, generator: torch.Generator | None = None) -> Tensor:
        """The sum over the classes that are there."""
        values = []
        for number, share, part, inner in _parts(summary, target):
            known = part.detach()
            if not (float(known.mass) > 0 and float(known.count) > self.least - 1e-6):
                continue
            try:
                values.append(share * self._inner.distance(part, inner, generator=generator))
            except NonFiniteError:
                raise
            except InputError as error:
                raise InputError(f"class {number} of the population: {error}") from error
        if not values:
            raise InputError(
                f"no class of the reference has {self.least} rows in the population; make it larger, or least smaller"
            )
        return torch.stack(values).sum()

    @property
    def _inner(self) -> Objective:
        assert isinstance(self.objective, Objective), "a name is built at once"
        return self.objective


def _apart(features: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Features without the columns that say the class, and the class."""
    return features[:, :-columns], features[:, -columns:].detach().argmax(1)


def _classes(reference: Real, columns: int) -> Iterator[tuple[int, float, Real]]:
    """Number, share and rows of every class that a reference has."""
    classes = torch.cat([_apart(rows, columns)[1].cpu() for rows, _ in reference.chunks()])
    masses = reference.masses.cpu()
    for number in range(columns):
        which = torch.nonzero((classes == number) & (masses > 0))[:, 0]
        if len(which):
            part = reference.taken(which)
            rows = Real(part.features[:, :-columns], weights=part.weights, whole=reference.whole)
            yield number, float(masses[which].sum() / masses.sum()), rows


def _parts(summary: Summary, target: ClassTargets) -> Iterator[tuple[int, float, Summary, Any]]:
    """Number, share, summary and target of every class of the reference."""
    for k, (number, share, inner) in enumerate(zip(target.numbers, target.shares, target.targets, strict=True)):
        if isinstance(summary, ClassSums):
            squares, mass, value = summary.value[k, 0], summary.value[k, 1], summary.value[k, 2:]
            part: Summary = Sum(value.view(target.shape), torch.stack([mass, squares]))
        else:
            rows = summary.value[:, -1].detach() == number
            part = Cat(summary.value[rows, :-1], summary.weight[rows])
        yield number, share, part, inner
