"""Terms: what a population keeps of one member of its battery."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.matching.autocast import own_types
from rdm.matching.objective import Objective
from rdm.matching.representation import Representation
from rdm.matching.statistic import Statistic, Summary, checked
from rdm.training.replay import Chunk


@dataclass
class Term:
    """One representation's part of the loss; `past` is the only thing that changes."""

    representation: Representation
    objective: Objective
    weight: float
    row: Tensor  # the reference's mean, "1 d"
    statistic: Statistic
    target: Any
    fresh: Tensor | None = None  # real rows that are in no reference
    past: Summary | None = None

    def encode(self, items: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Checked features, and the chunk's weights."""
        features = self.representation(items, chunk.condition)
        features, equal = checked(features, side=f"generated features of {self.representation.name!r}")
        return features, equal if chunk.weights is None else chunk.weights

    def floor(self, rows: int) -> float:
        """The distance of so many fresh real rows from the reference.

        Raises:
            InputError: there are none, or fewer.
        """
        kept = 0 if self.fresh is None else len(self.fresh)
        if self.fresh is None or kept < rows:
            raise InputError(
                f"a floor of {rows} rows needs as many fresh ones under {self.representation.name!r}; the reference "
                f"holds {kept}; make it by rdm reference DATA --fresh OTHER --sample {rows} or more"
            )
        fresh, weights = checked(self.fresh[:rows].to(self.row.device), side="fresh features")
        with torch.no_grad():
            return float(self.objective.distance(self.statistic.measure(fresh, weights), self.target))

    @own_types()
    def backward(self, leaf: Tensor, chunk: Chunk, cotangent: Tensor) -> None:
        """Back-propagate the chunk's cotangent to its items, one micro-batch of the encoder at a time."""
        slices = self.representation.slices(len(leaf))
        parts = self.statistic.kind.split(cotangent, [rows.stop - rows.start for rows in slices])
        for rows, part in zip(slices, parts, strict=True):
            self.statistic.measure(*self.encode(leaf[rows], chunk.part(rows))).value.backward(part)


def kinds(terms: Sequence[Term]) -> str:
    """What made the terms: the objective's class, or one a member where they differ."""
    found = {term.representation.name: type(term.objective).__name__ for term in terms}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{name}: {kind}" for name, kind in found.items())
