"""What metrics of memorisation share: the generator's training rows, real rows that it never saw, nearest rows."""

import torch
from torch import Tensor

from rdm.api import InputError, Real, checked, thin

TILE = 2**22  # pairs whose distances are formed at a time
SPARE = 4  # nearest by products, of which differences choose


def training_rows(real: Real, x: Tensor) -> Tensor:
    """What the generator was trained on, in float64, on the device and of the width of its rows x."""
    if real.train is None:
        raise InputError("needs the generator's training set; give --train DATA, or Real(train=...)")
    rows = checked(real.train, side="training features")[0].to(x.device, torch.float64)
    if rows.shape[1] != x.shape[1]:
        raise InputError(
            f"training features must have the generated rows' dimension d={x.shape[1]}; got d={rows.shape[1]}; "
            "encode both with the same representation"
        )
    return rows


def unseen_rows(real: Real, train: Tensor, size: int, seed: int, user: str) -> Tensor:
    """At most `size` real rows that the generator was not trained on, in float64.

    Those of the fresh split; of a reference without one its own.

    Raises:
        InputError: there are none, or more than half of them are training rows.
    """
    rows = real.required_rows(user) if real.fresh is None else checked(real.fresh, side="fresh features")[0]
    rows = thin(rows, size, seed, "fresh").to(train)
    copies = float((nearest(rows, train)[0] == 0).double().mean())
    if copies > 0.5:
        where = "reference" if real.fresh is None else "fresh split"
        raise InputError(
            f"{user} needs real rows apart from the training set; {copies:.0%} of the {where}'s are in it; make the "
            "reference with --fresh DATA that was held out of training"
        )
    return rows


def nearest(x: Tensor, y: Tensor, *, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared distance of each row x to its nearest row y, from differences: 0 for copies alone; and which that is.

    `apart` gives for each x a row of y that does not count.
    """
    centre = y.mean(0)
    x, y = x - centre, y - centre
    norms, size, kept = y.square().sum(1), max(1, TILE // len(y)), min(SPARE, len(y))
    found = []
    for start in range(0, len(x), size):
        some = x[start : start + size]
        squared = torch.addmm(norms, some, y.T, alpha=-2)
        if apart is not None:
            squared[torch.arange(len(some), device=x.device), apart[start : start + size]] = torch.inf
        values, close = squared.topk(kept, largest=False)
        exact = (some[:, None] - y[close]).square().sum(2).masked_fill_(values.isinf(), torch.inf)
        least, which = exact.min(1)
        found.append((least, close.gather(1, which[:, None])[:, 0]))
    return torch.cat([least for least, _ in found]), torch.cat([which for _, which in found])
