"""Joint features of an item and its condition, for matching conditional distributions."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdm.api import InputError, Real, Representation, encoded, median_distance, representations

ROWS = 10_000  # items that the medians are taken over


@representations.register(
    "joint",
    examples=(
        {"representation": "identity", "condition": 3, "beta": 2.0},
        {"representation": "whitening", "condition": 3},
    ),
)
def joint(
    representation: str | Representation = "pixels",
    condition: int | Tensor | Representation = 10,
    beta: float | Literal["balanced"] = "balanced",
    name: str | None = None,
) -> Representation:
    r"""Features of the item beside scaled features of its condition, distributed as the pair is.

    .. math:: \Phi(x, c) = [\phi(x) \mid \beta \tau(c)]

    A Gaussian kernel of bandwidth sigma on them is the product of one of bandwidth sigma on phi and one of bandwidth
    sigma / beta on tau: items are compared with items of like conditions. Source: Feng et al. (2026), "Representation
    Distribution Matching for One-Step Visual Generation", equation 4.

    Args:
        representation: phi, or its registered name.
        condition: tau: a number of classes, one-hot; a table of embeddings "classes d"; or a representation of the
            conditions. With the first two, conditions are class labels.
        beta: a number, or "balanced" for the ratio of both sides' scales in the reference (`balanced`), found by
            `Representation.fitted(items, condition)`.
        name: how tables call it.

    Shapes: n ... -> n (d + width of tau), condition n for labels. Cost: that of phi and tau.

    Raises:
        InputError: phi is conditional, tau not estimated, beta negative, labels that are no class.
    """
    phi = representations.build(representation) if isinstance(representation, str) else representation
    if phi.conditional:
        raise InputError(f"joint features need a representation of the item alone; {phi.name!r} is conditional")
    if beta != "balanced" and not (isinstance(beta, int | float) and 0 <= beta < float("inf")):
        raise InputError(f'beta must be a number, not negative, or "balanced"; got {beta!r}')
    tau, described = _condition_encoder(condition)
    estimated = phi.module is None or isinstance(beta, str)
    module = None if phi.module is None or isinstance(beta, str) else _Joint(phi.module, tau, beta)
    settings = {"phi": phi.name, "settings": dict(phi.settings), "tau": described, "beta": beta}
    return replace(
        phi,
        name=name or f"joint_{phi.name}",
        module=module,
        settings=settings,
        fit=partial(_fit, phi=phi, tau=tau, beta=beta) if estimated else None,
        conditional=True,
    )


def _fit(items: Tensor, conditions: Tensor | None, phi: Representation, tau: nn.Module, beta: float | str) -> nn.Module:
    fitted = phi.fitted(items)
    assert fitted.module is not None
    return _Joint(fitted.module, tau, _balance(fitted, items, tau, conditions) if isinstance(beta, str) else beta)


def balanced(
    representation: Representation,
    items: Tensor,
    condition: int | Tensor | Representation,
    conditions: Tensor | None,
) -> float:
    """The beta at which items and conditions are equally far apart: sigma_phi / sigma_tau.

    Each sigma is the square root of the median squared distance between rows, as bandwidth "median" has it, over at
    most 10,000 items with their conditions. Two equal classes have half of their pairs alike and a median of 0: give
    a number then.

    Raises:
        InputError: a median of 0, on either side; no conditions.

    >>> import rdm
    >>> items, labels = torch.eye(4) * 3, torch.arange(4)
    >>> round(balanced(rdm.representation("identity"), items, 4, labels), 6)
    3.0
    """
    return _balance(representation, items, _condition_encoder(condition)[0], conditions)


def _balance(representation: Representation, items: Tensor, tau: nn.Module, conditions: Tensor | None) -> float:
    conditions = _present(conditions)
    rows = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))[:ROWS].to(items.device)
    with torch.no_grad():
        chosen = conditions[rows.to(conditions.device)]
        alone = isinstance(tau, _Table)  # which other encoders may share, and move together (`Battery.to`)
        features = (tau if alone else tau.to(items.device))(chosen).to(items.device)
    sides = {"items": encoded(items[rows], representation), "conditions": Real.of(features)}
    scales = []
    for side, reference in sides.items():
        try:
            scales.append(median_distance(reference))
        except InputError as error:
            raise InputError(f'beta "balanced" cannot be found from the {side} ({error})') from error
    return scales[0] / scales[1]


class _Joint(nn.Module):
    beta: Tensor

    def __init__(self, phi: nn.Module, tau: nn.Module, beta: float):
        super().__init__()
        self.phi, self.tau = phi, tau
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64))  # a reference file keeps it

    def forward(self, items: Tensor, condition: Tensor | None) -> Tensor:
        features = self.phi(items)
        with torch.no_grad():
            embedded = self.tau(_present(condition)).to(features.device)
        return torch.cat([features, self.beta.to(embedded) * embedded], 1)


class _Table(nn.Module):
    """Class labels to rows of a table."""

    table: Tensor

    def __init__(self, table: Tensor):
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, labels: Tensor) -> Tensor:
        classes = len(self.table)
        if labels.ndim != 1 or labels.is_floating_point():
            raise InputError(f"conditions must be class labels, one a row; got {labels.dtype} {tuple(labels.shape)}")
        if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < classes):
            raise InputError(f"class labels must be from 0 to {classes - 1}; got up to {int(labels.max())}")
        return self.table[labels.to(self.table.device)]


class _Encoded(nn.Module):
    """Conditions through a representation, in its own precision."""

    def __init__(self, representation: Representation):
        super().__init__()
        self.representation, self.module = representation, representation.module

    def forward(self, conditions: Tensor) -> Tensor:
        return self.representation(conditions)


def _condition_encoder(condition: int | Tensor | Representation) -> tuple[nn.Module, Any]:
    """Tau, and what settings say of it."""
    if isinstance(condition, Representation):
        if condition.module is None or condition.conditional:
            raise InputError(
                f"the representation of the condition, {condition.name!r}, must be estimated before (`fitted`) and not "
                "be conditional itself"
            )
        described = {"name": condition.name, "settings": dict(condition.settings), "precision": condition.precision}
        return _Encoded(condition), described
    if isinstance(condition, int) and condition < 1 or isinstance(condition, Tensor) and condition.ndim != 2:
        raise InputError(
            'condition must be a number of classes, a table "classes d" or a representation; '
            f"got {condition if isinstance(condition, int) else tuple(condition.shape)}"
        )
    table = torch.eye(condition) if isinstance(condition, int) else condition.detach()
    return _Table(table), list(table.shape)


def _present(condition: Tensor | None) -> Tensor:
    if condition is None:
        raise InputError("joint features need the condition of every item; got none; give it beside the items")
    return condition
