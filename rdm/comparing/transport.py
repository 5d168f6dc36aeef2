"""The transport plan between two sets of rows, or under a matrix of costs, with its potentials and convergence."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rdm.errors import InputError, NonFiniteError
from rdm.matching.autocast import dense, exact
from rdm.matching.objective import Objective, Transport
from rdm.matching.statistic import checked, checked_weights
from rdm.numbers import Count, Positive, check
from rdm.registry import objectives

Cost = Tensor | Callable[[Tensor, Tensor], Tensor]


def transport(
    name: str | Objective,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    cost: Cost | None = None,
    weights: Tensor | None = None,
    reference_weights: Tensor | None = None,
    tolerance: float = 1e-6,
    iterations: int | None = None,
    **hyperparameters: Any,
) -> Transport:
    """The plan that moves generated rows x (n, d) to reference rows y (m, d), and its dual potentials.

    `name` is an objective that has a plan, "sinkhorn" or "wasserstein", with its hyperparameters, or such an objective.
    `value` is what the plan minimises: of wasserstein the distance itself, of sinkhorn OT_eps(a, b), which is the
    objective with debias=False. It is differentiable in x, in y and in both sides' weights, by the envelope theorem;
    plan and potentials are constants.

    `cost` gives other costs than the objective's own: a function of (x, y) with result "n m", or the matrix itself, for
    which x and y may be left out. They are taken as they are: sinkhorn's temperature is blur^p, in their units, and
    blur "auto" needs y. The value's gradient in a matrix is the plan. Some need none: for cosine costs scale the rows
    to length 1, where |x - y|^2 / 2 is 1 - cos(x, y).

    Sinkhorn iterates until the plan's marginals are within `tolerance` of the weights, at most `iterations` times
    (1,000); wasserstein is exact, unless `iterations` (10 million) pivots do not suffice. `converged` says so.

    Shapes:
        x: n d; y: m d; cost: n m; weights: n; reference_weights: m.
    Cost:
        Memory 24 n m bytes; sinkhorn 2 n m exponentials an iteration; wasserstein as `rdm.distance`.

    Raises:
        InputError: an objective without a plan; neither rows nor a matrix; costs of another shape or not finite.

    >>> import torch, rdm
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> found = rdm.transport("sinkhorn", x, x + 2, blur=0.1)
    >>> found.plan.round(decimals=3).tolist(), found.converged
    ([[0.5, 0.0], [0.0, 0.5]], True)
    >>> rdm.transport("wasserstein", cost=torch.tensor([[3.0, 1.0], [1.0, 3.0]])).value.item()
    1.0
    """
    check("tolerance", tolerance, Positive)
    check("iterations", iterations, Count | None)
    objective = objectives.take(name, Objective, **hyperparameters)
    with exact():
        rows, others = (None if s is None else checked(s, side=w)[0].double() for s, w in ((x, "x"), (y, "y")))
        if isinstance(cost, Tensor):
            matrix = _checked_cost(cost, len(cost) if x is None else len(x), -1 if y is None else len(y))
        elif rows is None or others is None:
            raise InputError("transport needs rows x and y, or cost=, a matrix (n, m); got neither")
        elif cost is None:
            matrix = objective.cost(rows, others)
        elif callable(cost):
            matrix = _checked_cost(cost(rows, others), len(rows), len(others))
        else:
            raise InputError(f"cost must be a matrix or a function of (x, y); got {type(cost).__name__}")
        sides = (weights, len(matrix), "x"), (reference_weights, matrix.shape[1], "y")
        a, b = (_masses(given, n, side, matrix.device) for given, n, side in sides)
        options = {"reference": None if others is None else others.detach(), "tolerance": tolerance}
        return objective.transport(matrix, a, b, **options, iterations=iterations)


def _checked_cost(cost: Any, n: int, m: int) -> Tensor:
    """A matrix of costs in float64, of n rows and, unless that is -1, m columns."""
    if isinstance(cost, Tensor):
        dense(cost, "cost")
    wanted = f"({n}, {'m' if m < 0 else m})"
    fits = isinstance(cost, Tensor) and cost.ndim == 2 and cost.numel() > 0
    if not fits or len(cost) != n or m not in (-1, cost.shape[1]) or cost.is_complex():
        got = f"{cost.dtype} {tuple(cost.shape)}" if isinstance(cost, Tensor) else type(cost).__name__
        raise InputError(f"cost must be real numbers of shape {wanted}, a row a generated row; got {got}")
    if not bool(torch.isfinite(cost.detach()).all()):
        raise NonFiniteError("cost: NaN or infinity; give a large number where mass may not go")
    return cost.double()


def _masses(weights: Tensor | None, n: int, side: str, device: torch.device) -> Tensor:
    """Weights that sum to 1."""
    if weights is None:
        return torch.full((n,), 1 / n, dtype=torch.float64, device=device)
    masses = checked_weights(weights, n, side=side).to(device)
    return masses / masses.sum()
