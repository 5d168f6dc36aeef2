"""The pure comparison of two sets of features, and of many pairs of them."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.matching.autocast import in_own_types, refuse_gradient
from rdm.matching.objective import Objective
from rdm.matching.real import Real
from rdm.matching.statistic import Statistic, checked
from rdm.registry import objectives


def distance(
    name: str | Objective,
    x: Tensor,
    y: Tensor,
    *,
    weights: Tensor | None = None,
    reference_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
    **hyperparameters: Any,
) -> Tensor:
    """Distance of generated rows x (n, d), which carry the gradient, from reference rows y (m, d).

    `name` and `hyperparameters` are those of the objective (`rdm.names("objectives")`), whose docstring says formula,
    units and cost; or `name` is the objective. Weights are non-negative and normalised inside.

    A pure function: y is bound at every call, its own double sums, eigenvectors or sorted projections included. In a
    loop over one reference take `rdm.Loss`, which binds once and may have a memory; where the population is larger than
    a forward pass, or seen by encoders, `rdm.Population`.

    Many pairs at once: x (B, n, d), y (B, m, d), or both, with weights (B, n) and (B, m), give the distances (B) that
    one call a pair gives, to the bit; what has no B is every pair's. One y is bound once for all. Draws from
    `generator` are made one pair after the other. The cost is that of B calls, of which one graph holds all.

    Raises:
        InputError: unknown name or hyperparameter, an empty or non-finite side, different dimensions, bad weights,
            numbers of pairs that differ.

    >>> import torch, rdm
    >>> x = torch.tensor([[1.0], [3.0]], requires_grad=True)
    >>> rdm.distance("frechet", x, torch.tensor([[0.0], [2.0]])).backward()
    >>> x.grad.flatten().tolist()
    [1.0, 1.0]
    >>> rdm.distance("energy", torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[0.0]])).tolist()
    [2.0, 4.0]
    """
    chosen = objectives.take(name, Objective, **hyperparameters)
    return compare(chosen, x, y, weights=weights, reference_weights=reference_weights, generator=generator)


def compare(
    objective: Objective,
    x: Tensor,
    y: Tensor,
    *,
    weights: Tensor | None = None,
    reference_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Distance of generated rows x (n, d), which carry the gradient, from reference rows y (m, d).

    The rows' `weights` carry a gradient too, where the objective has one (`Traits.learned_weights`). The objective is
    bound to y as a constant; both sides of a symmetric one learn by distance(x, y.detach()) + distance(y, x.detach()).
    Autocast changes nothing, in the value and in the gradient. Many pairs as in `distance`.

    Raises:
        InputError: y, `reference_weights`, or weights that the objective does not learn, require grad.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        got = type(generator).__name__
        raise InputError(f"generator must be a torch.Generator; got {got}; torch.Generator().manual_seed(0) makes one")
    refuse_gradient(y, "y (reference)", _remedy(objective, x))
    refuse_gradient(reference_weights, "reference_weights", "detach them; only weights of the generated side learn")
    if not objective.traits.learned_weights:
        refuse_gradient(weights, "weights", f"detach them: {type(objective).__name__} learns no weights")
    many = _is_many(x, 3) or _is_many(y, 3)
    return in_own_types(partial(_each if many else _one, objective, generator), x, y, weights, reference_weights)


def _one(
    objective: Objective,
    generator: torch.Generator | None,
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    reference_weights: Tensor | None,
) -> Tensor:
    features, mass = checked(x, weights, side="x (generated)")
    statistic, target = _bound(objective, y, reference_weights, "")
    return objective.distance(statistic.measure(features, mass), target, generator=generator)


def _each(
    objective: Objective,
    generator: torch.Generator | None,
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    reference_weights: Tensor | None,
) -> Tensor:
    """The distance of every pair, "B"."""
    count = _count(x, y, weights, reference_weights)
    alike = not _is_many(y, 3) and not _is_many(reference_weights, 2)
    bound = _bound(objective, y, reference_weights, "") if alike else None
    found = []
    for k in range(count):
        which = f", pair {k}"
        features, mass = checked(_kth(x, 3, k), _kth(weights, 2, k), side=f"x (generated){which}")
        pair = bound or _bound(objective, _kth(y, 3, k), _kth(reference_weights, 2, k), which)
        found.append(objective.distance(pair[0].measure(features, mass), pair[1], generator=generator))
    return torch.stack(found)


def _bound(objective: Objective, y: Tensor, weights: Tensor | None, which: str) -> tuple[Statistic, Any]:
    rows, masses = (t.detach() for t in checked(y, weights, side=f"y (reference){which}"))
    return objective.bind(Real(rows, weights=None if weights is None else masses))


def _count(x: Tensor, y: Tensor, weights: Any, reference_weights: Any) -> int:
    """How many pairs there are."""
    sides = {"x": (x, 3), "y": (y, 3), "weights": (weights, 2), "reference_weights": (reference_weights, 2)}
    counts = {name: len(given) for name, (given, whole) in sides.items() if _is_many(given, whole)}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"expected equally many pairs, one or more, of all sides that have several; got {shown}")
    return next(iter(counts.values()))


def _is_many(given: Any, whole: int) -> bool:
    """Whether it is of many pairs, with so many dimensions."""
    return isinstance(given, Tensor) and given.ndim == whole and not given.is_nested


def _kth(given: Any, whole: int, k: int) -> Any:
    return given[k] if _is_many(given, whole) else given


def _remedy(objective: Objective, x: Any) -> str:
    """What to do with a reference that requires grad."""
    if not (isinstance(x, Tensor) and x.requires_grad):
        return "give the generated rows first, as x, and the reference second"
    if objective.traits.symmetric:
        return "detach it; both sides learn by distance(x, y.detach()) + distance(y, x.detach())"
    return "detach it"
