"""Cost of a generator update: FSF-DMD beside DMD2, which trains a network for the fake score, in one process."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import rdm
from benchmarks.measure import milliseconds, peak
from rdm.losses.dmd2 import DMD2
from rdm.losses.fsf_dmd import FSFDMD
from rdm.training.loss import Loss, Setting

NETWORKS = {
    "mlp_flow, width 512": ("mlp_flow", {"width": 512, "depth": 4, "map": True}, 256),
    "jit, width 192, 6 blocks": (
        "jit",
        {"size": 32, "patch": 4, "width": 192, "depth": 6, "heads": 3, "bottleneck": 32, "context": 4, "start": 2,
         "guidance": 1.0, "map": True},
        16,
    ),
}  # fmt: skip


def run(device: str) -> None:
    """Time and peak memory of one update of the generator with gradient and optimizer, all by one rule.

    The peak above what was held before the update, and that of two updates with all that they need: networks,
    gradients, optimizers.
    """
    _step("mlp_flow", {"width": 8, "map": True}, partial(FSFDMD, batch=2), device)()  # optimizers import late
    print("\nflow maps: one update of the generator")
    print(f"{'':44}{'ms':>9}{'ratio':>8}{'passing MiB':>13}{'ratio':>8}{'all MiB':>9}{'ratio':>8}")
    for label, (name, options, batch) in NETWORKS.items():
        first: tuple[float, ...] | None = None
        for method, build in (
            ("FSF-DMD", partial(FSFDMD, batch=batch)),
            *((f"DMD2, {k} fake updates", partial(DMD2, batch=batch, updates=k)) for k in (1, 5)),
        ):
            fresh = partial(_step, name, options, build, device)
            whole = peak(lambda fresh=fresh: _twice(fresh()), device)
            step = fresh()
            step()
            found = milliseconds(step, device), peak(step, device), whole
            first = first or found
            figures = zip(found, first, (9, 13, 9), strict=True)
            print(f"{f'{label}, {method}':44}" + "".join(f"{a:{width}.0f}{a / b:8.2f}" for a, b, width in figures))


def _twice(step: Callable[[], None]) -> None:
    step()
    step()


def _step(name: str, options: dict[str, Any], build: Callable[[], Loss], device: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model, loss = rdm.generator(name, **options).to(device), build()
    loss.prepare(model, Setting(None, 0, torch.device(device), None), resumed=False)
    stepper, count = torch.optim.Adam(model.parameters(), lr=1e-5, betas=(0.0, 0.95)), iter(range(10**6))

    def step() -> None:
        stepper.zero_grad()
        loss.backward(model, next(count))
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        stepper.step()

    return step
