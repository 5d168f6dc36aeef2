"""Any objective against rows drawn from the reference at each call."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdm.api import Count, Objective, Real, Samples, Traits, objectives


class DrawnTarget(NamedTuple):
    """The reference's rows, from which some are drawn."""

    rows: Tensor  # m d
    weights: Tensor | None  # m, equal where None


@objectives.register("resampled", examples=({"objective": "energy", "rows": 5},))
@dataclass(frozen=True)
class Resampled(Objective):
    r"""Another objective against reference rows drawn afresh at each call, in place of the whole reference.

    .. math:: D(x, y_S), \quad S \subset \{1, \dots, m\} \text{ uniform without replacement}, \quad |S| = rows

    Source: what methods without a frozen reference do, a batch of real items a step; e.g. Feng et al. (2026),
    "Representation Distribution Matching", figure 3, for all but the Fréchet, Fourier and Nyström objectives. It costs
    noise in the gradient, and with `rows` the population's own size it is biased as any distance of two samples is;
    it saves time where m is large and the objective has no statistic of fixed size. Rows are drawn by `generator`
    (the same at every call without one), keep their weights, and D is bound to them anew: bandwidths and
    blurs that D fits ("median", "auto") are those of the drawn rows; give numbers to keep them fixed.

    `objective` is an objective, or the name of one with its own defaults. `rows=None` draws as many rows as the
    population has, memory included; a reference of fewer rows is taken whole. They are drawn from 65,536 reference rows
    at most, themselves drawn uniformly once.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        Those of the objective.
    Cost:
        That of binding and measuring the objective with m = rows, at every call.

    Raises:
        InputError: rows below 1; what the objective raises.

    >>> import torch, rdm
    >>> x, y = torch.tensor([[1.0]]), torch.zeros(1000, 1)
    >>> round(rdm.distance("resampled", x, y, objective="energy", rows=10).item(), 4)  # 2 |x - y|
    2.0
    """

    objective: Objective | str
    rows: Count | None = None

    def __post_init__(self) -> None:  # noqa: D105
        super().__post_init__()
        if isinstance(self.objective, str):
            object.__setattr__(self, "objective", objectives.build(self.objective))

    @property
    def traits(self) -> Traits:
        """Those of the objective, as far as they hold for a sample of the reference."""
        return self._inner.traits._replace(
            zero_at_identity=False,
            symmetric=False,
            randomized=True,
            exhaustive=False,
            waits=True,
            plug_in=self._inner.traits.plug_in and self.rows is not None,  # else duplicates change what is drawn
        )

    def bind(self, reference: Real) -> tuple[Samples, DrawnTarget]:
        """Rows as they are, from which the objective measures what it needs once it is bound; the reference's."""
        held = reference.held("resampled")
        return Samples(torch.zeros_like(reference.mean)), DrawnTarget(held.features, held.weights)

    def distance(self, summary: Any, target: DrawnTarget, *, generator: torch.Generator | None = None) -> Tensor:
        """The objective, bound to the drawn rows."""
        rows = len(summary.value) if self.rows is None else self.rows
        statistic, inner = self._inner.bind(_drawn(target, rows, generator))
        return self._inner.distance(statistic.measure(summary.value, summary.weight), inner, generator=generator)

    @property
    def _inner(self) -> Objective:
        assert isinstance(self.objective, Objective), "a name is built at once"
        return self.objective


def _drawn(target: DrawnTarget, rows: int, generator: torch.Generator | None) -> Real:
    """So many rows of the reference, which are all that the objective is bound to."""
    whole = Real(target.rows, weights=target.weights)
    if generator is None or rows >= len(target.rows):
        drawn = whole.held("resampled", rows)
    else:
        drawn = whole.taken(torch.randperm(len(target.rows), generator=generator, device=generator.device)[:rows])
    return Real(drawn.features, weights=drawn.weights)
