"""Exact optimal transport cost."""

import warnings
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from objectives._distances import squared_distances
from objectives._transport import differentiable, powered
from rdm.api import InputError, Objective, Range, Real, Samples, Traits, Transport, objectives, require

PIVOTS = 10_000_000


class RowsTarget(NamedTuple):
    """The reference's rows."""

    rows: Tensor  # m d, about the reference's mean
    weights: Tensor  # m, summing to 1


@objectives.register("wasserstein", examples=({}, {"p": 1}), needs="pot")
@dataclass(frozen=True)
class Wasserstein(Objective):
    r"""Exact optimal transport cost between both sides, for small n.

    .. math:: \min_{P \ge 0, \, P 1 = a, \, P^T 1 = b} \sum_{ij} P_{ij} |x_i - y_j|^p

    Source: Kantorovich (1942); solved by POT's network simplex (`ot.emd`, Bonneel et al. 2011) in float64 on the
    CPU. The gradient is that of the cost with the optimal plan held fixed: exact wherever the plan is unique
    (envelope theorem); for p = 1 a pair of equal rows pulls with 0. In the weights it is the dual potential.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        Feature distance to the power p (POT's emd2 with the same cost matrix; no root). Biased upwards in n and m.
    Cost:
        n m d, and about (n + m)^3 in the worst case: 0.1 s at 1,000 rows a side; memory n m. m is 65,536
        at most: of a larger reference, rows drawn uniformly.

    Raises:
        InputError: p outside [1, 64]; POT not installed; the solver stopped before the optimum.

    >>> import torch, rdm
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> rdm.distance("wasserstein", x + 2, x).item()
    4.0
    """

    p: Annotated[float, Range(least=1, most=64)] = 2

    def __post_init__(self) -> None:  # noqa: D105
        super().__post_init__()
        require("ot", extra="ot", owner="wasserstein")

    @property
    def traits(self) -> Traits:  # noqa: D102
        return Traits(waits=True)

    def bind(self, reference: Real) -> tuple[Samples, RowsTarget]:
        """Rows about the reference's mean."""
        statistic = Samples(reference.mean)
        held = reference.held("wasserstein")
        rows = statistic.measure(held.features, held.masses)
        return statistic, RowsTarget(rows.value, rows.weight / rows.mass)

    def distance(self, summary: Any, target: RowsTarget, *, generator: Any = None) -> Tensor:
        """The cost of the optimal plan, which is a constant of the gradient."""
        return _PlanCost.apply(summary.value, summary.weight / summary.mass, target, self.p)

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        """|x - y|^p."""
        return powered(x, y, self.p)

    def transport(
        self,
        cost: Tensor,
        a: Tensor,
        b: Tensor,
        *,
        reference: Tensor | None = None,
        tolerance: float = 1e-6,
        iterations: int | None = None,
    ) -> Transport:
        """The exact plan, and the simplex' potentials; `reference` is not looked at."""
        u, v, held = a.detach(), b.detach(), cost.detach()
        plan, log = _simplex(u, v, held, iterations or PIVOTS)
        f, g = (log[name].to(plan) for name in ("u", "v"))
        error = float((plan.sum(1) - u).abs().sum() + (plan.sum(0) - v).abs().sum())
        value = differentiable((plan * held).sum(), plan, cost, a, b, f, g)
        return Transport(value, plan, f, g, error, None, log["warning"] is None and error <= tolerance)


class _PlanCost(torch.autograd.Function):
    """sum_ij P_ij |x_i - y_j|^p; the gradient sums over the plan's few entries (test: test_wasserstein.py)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, target: RowsTarget, p: float) -> Tensor:
        y = target.rows.to(x.dtype)
        squared = squared_distances(x.double(), y.double(), exact_small=p != 2)
        i, j, mass, potential = _plan(a, target.weights, squared if p == 2 else squared.pow(p / 2))
        gap = x[i].double() - y[j].double()
        size = gap.square().sum(1)
        gradient = None
        if ctx.needs_input_grad[0]:
            slope = torch.where(size > 0, size, 1.0).pow((p - 2) / 2) * (size > 0) * p * mass
            gradient = torch.zeros_like(x, dtype=torch.float64).index_add_(0, i, slope[:, None] * gap).to(x.dtype)
        ctx.save_for_backward(gradient, potential)
        return mass @ size.pow(p / 2)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        gradient, potential = ctx.saved_tensors
        rows = None if gradient is None else cotangents[0].to(gradient.dtype) * gradient
        return rows, cotangents[0] * potential, None, None


def _plan(a: Tensor, b: Tensor, cost: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, columns and masses of the optimal plan's entries (fewer than n + m), and the rows' dual potential."""
    plan, log = _simplex(a, b, cost, PIVOTS)
    if log["warning"] is not None:
        raise InputError(f"wasserstein: expected an optimal plan; POT stopped with: {log['warning']}; use fewer rows")
    i, j = plan.nonzero(as_tuple=True)
    return i, j, plan[i, j], log["u"]


def _simplex(a: Tensor, b: Tensor, cost: Tensor, pivots: int) -> tuple[Tensor, dict[str, Any]]:
    """POT's plan, on the costs' device, with its potentials u and v and its warning."""
    ot = require("ot", extra="ot", owner="wasserstein")
    weights = [(w / w.sum()).detach().cpu().numpy() for w in (a, b)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which the log says too
        plan, log = ot.lp.emd(*weights, cost.cpu().numpy(), numItermax=pivots, log=True)
    found = {name: torch.as_tensor(log[name], device=cost.device) for name in ("u", "v")}
    return torch.as_tensor(plan, device=cost.device), {**found, "warning": log["warning"]}
