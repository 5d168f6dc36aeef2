"""Joint features of an item and its condition, for matching conditional distributions."""

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdm.api import (
    Condition,
    InputError,
    Real,
    Representation,
    digest,
    encoded,
    median_distance,
    open_table,
    printable,
    representations,
    rows_of,
    sizes_alone,
)

ROWS = 10_000  # items that the medians are taken over
ABSENT = 1024  # width of a table that is not there, in a dry run; of text towers it is 768 to 1,280


@representations.register(
    "joint",
    examples=(
        {"representation": "identity", "condition": 3, "beta": 2.0},
        {"representation": "whitening", "condition": 3},
    ),
)
def joint(
    representation: str | Representation = "pixels",
    condition: int | str | Tensor | Representation = 10,
    beta: float | Literal["balanced"] | tuple[Literal["balanced"], float] = "balanced",
    name: str | None = None,
    part: str | int | None = None,
) -> Representation:
    r"""Features of the item beside scaled features of its condition, distributed as the pair is.

    .. math:: \Phi(x, c) = [\phi(x) \mid \beta \tau(c)]

    A Gaussian kernel of bandwidth sigma on them is the product of one of bandwidth sigma on phi and one of bandwidth
    sigma / beta on tau: items are compared with items of like conditions. Source: Feng et al. (2026), "Representation
    Distribution Matching for One-Step Visual Generation", equation 4.

    Args:
        representation: phi, or its registered name.
        condition: tau: a number of classes, one-hot; a table of embeddings "classes d", or the path of a safetensors or
            .npy file that holds one (where there is none a dry run takes one of 1,024 numbers a row); or a
            representation of the conditions. With a table, conditions are numbers of its rows: class labels, captions.
        beta: a number, or "balanced" for the ratio of both sides' scales in the reference (`balanced`), found by
            `Representation.fitted(items, condition)`; ("balanced", 0.25) is a quarter of it.
        name: how tables call it.
        part: which part of conditions of several tensors tau takes, as "id"; a single tensor is that part itself.

    Shapes: n ... -> n (d + width of tau), condition n for numbers. Cost: that of phi and tau.

    Raises:
        InputError: phi is conditional, tau not estimated, beta negative, numbers of no row.
    """
    phi = representations.build(representation) if isinstance(representation, str) else representation
    if phi.conditional:
        raise InputError(f"joint features need a representation of the item alone; {phi.name!r} is conditional")
    number = beta[1] if isinstance(beta, list | tuple) and len(beta) == 2 and beta[0] == "balanced" else beta
    if beta != "balanced" and not (isinstance(number, int | float) and 0 <= number < float("inf")):
        raise InputError(f'beta must be a number, not negative, "balanced" or ("balanced", 0.25); got {beta!r}')
    tau, described = _condition_encoder(condition, part)
    if sizes_alone() and not isinstance(beta, int | float):
        beta = 1.0  # a number takes the place of another
    module = _Joint(phi.module, tau, beta) if phi.module is not None and isinstance(beta, int | float) else None
    said = list(beta) if isinstance(beta, tuple) else beta
    settings = {"phi": phi.name, "settings": dict(phi.settings), "tau": described, "beta": said}
    return replace(
        phi,
        name=name or f"joint_{phi.name}",
        module=module,
        settings=settings,
        fit=partial(_fit, phi=phi, tau=tau, beta=beta) if module is None else None,
        conditional=True,
    )


def _fit(items: Tensor, conditions: Condition | None, phi: Representation, tau: "_Tau", beta: Any) -> nn.Module:
    fitted = phi.fitted(items)
    assert fitted.module is not None
    if isinstance(beta, int | float):
        return _Joint(fitted.module, tau, beta)
    share = 1.0 if isinstance(beta, str) else beta[1]
    return _Joint(fitted.module, tau, share * _balance(fitted, items, tau, conditions))


def balanced(
    representation: Representation,
    items: Tensor,
    condition: int | str | Tensor | Representation,
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


def _balance(representation: Representation, items: Tensor, tau: "_Tau", conditions: Condition | None) -> float:
    held = tau.of(conditions)
    rows = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))[:ROWS].to(items.device)
    with torch.no_grad():
        chosen = rows_of(held, rows)
        alone = isinstance(tau.encode, _Table)  # which other encoders may share, and move together (`Battery.to`)
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

    def __init__(self, phi: nn.Module, tau: "_Tau", beta: float):
        super().__init__()
        self.phi, self.tau = phi, tau
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64))  # a reference file keeps it

    def forward(self, items: Tensor, condition: Condition | None) -> Tensor:
        features = self.phi(items)
        with torch.no_grad():
            embedded = self.tau(condition).to(features.device)
        return torch.cat([features, self.beta.to(embedded) * embedded], 1)


class _Tau(nn.Module):
    """The part of a condition that tau takes, embedded."""

    def __init__(self, encode: nn.Module, part: str | int | None):
        super().__init__()
        self.encode, self.part = encode, part

    def of(self, condition: Condition | None) -> Tensor:
        """The tensor that tau takes."""
        if condition is None:
            raise InputError("joint features need the condition of every item; got none; give it beside the items")
        if isinstance(condition, Tensor):
            return condition
        try:
            found = condition[self.part]  # type: ignore[index,call-overload]
        except (LookupError, TypeError) as error:
            parts = list(condition) if not isinstance(condition, tuple) else list(range(len(condition)))
            raise InputError(
                f"joint features take one part of conditions of several, one of {parts}; got part {self.part!r}"
            ) from error
        if not isinstance(found, Tensor):
            raise InputError(f"part {self.part!r} of the condition must be a tensor; got {type(found).__name__}")
        return found

    def forward(self, condition: Condition | None) -> Tensor:
        return self.encode(self.of(condition))


class _Table(nn.Module):
    """Numbers to rows of a table; one that lies in a file is not kept in another."""

    table: Tensor

    def __init__(self, table: Tensor, *, on_disk: bool):
        super().__init__()
        self.register_buffer("table", table, persistent=not on_disk)

    def forward(self, numbers: Tensor) -> Tensor:
        rows = len(self.table)
        if numbers.ndim != 1 or numbers.is_floating_point():
            raise InputError(
                f"conditions must be class labels or other numbers of the {rows} rows of a table, one an item; "
                f"got {numbers.dtype} {tuple(numbers.shape)}"
            )
        if not bool(((numbers >= 0) & (numbers < rows)).all()):  # one question, which a dry run answers
            raise InputError(
                f"conditions must be numbers from 0 to {rows - 1}, rows of the table; got {int(numbers.min())} to "
                f"{int(numbers.max())}"
            )
        return self.table[numbers.to(self.table.device)]


class _Encoded(nn.Module):
    """Conditions through a representation, in its own precision."""

    def __init__(self, representation: Representation):
        super().__init__()
        self.representation, self.module = representation, representation.module

    def forward(self, conditions: Tensor) -> Tensor:
        return self.representation(conditions)


def _condition_encoder(
    condition: int | str | Tensor | Representation, part: str | int | None = None
) -> tuple[_Tau, Any]:
    """Tau, and what settings say of it."""
    if isinstance(condition, Representation):
        if condition.module is None or condition.conditional:
            raise InputError(
                f"the representation of the condition, {condition.name!r}, must be estimated before (`fitted`) and not "
                "be conditional itself"
            )
        described = {"name": condition.name, "settings": dict(condition.settings), "precision": condition.precision}
        return _Tau(_Encoded(condition), part), described
    if isinstance(condition, str) and sizes_alone() and not Path(condition).exists():
        return _Tau(_Table(torch.empty(16, ABSENT), on_disk=True), part), {"assumed": f"conditions of {ABSENT} numbers"}
    if isinstance(condition, str):
        table, content = _stored(condition, Path(condition).stat().st_mtime_ns if Path(condition).exists() else 0)
        return _Tau(_Table(table, on_disk=True), part), {"table": content}
    if isinstance(condition, int) and condition < 1 or isinstance(condition, Tensor) and condition.ndim != 2:
        raise InputError(
            'condition must be a number of classes, a table "classes d" or a representation; '
            f"got {condition if isinstance(condition, int) else tuple(condition.shape)}"
        )
    table = torch.eye(condition) if isinstance(condition, int) else condition.detach()
    return _Tau(_Table(table, on_disk=False), part), list(table.shape)


@lru_cache(maxsize=8)
def _stored(path: str, changed: int) -> tuple[Tensor, str]:
    """A table on disk and its content's hash; the same tensor for every encoder, so that a device holds it once."""
    table = open_table(Path(path)).whole()
    if table.ndim != 2 or not table.is_floating_point():
        raise InputError(
            f'{printable(path)} must hold a table of embeddings "rows d"; got {table.dtype} {tuple(table.shape)}'
        )
    return table, digest({"table": table})
