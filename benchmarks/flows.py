"""Cost of a generator update: FSF-DMD beside DMD2, which trains a network for the fake score, in one process."""

import torch
from torch import nn

import rdm
from benchmarks.measure import milliseconds, peak
from rdm.generators.protocol import FlowGenerator
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
    """Time and peak memory of one update of the generator with gradient and optimizer, all by one rule."""
    print("\nflow maps: one update of the generator")
    print(f"{'':44}{'ms':>9}{'ratio':>8}{'peak MiB':>10}{'ratio':>8}")
    for label, (name, options, batch) in NETWORKS.items():
        first: tuple[float, float] | None = None
        for method, loss in (
            ("FSF-DMD", FSFDMD(batch=batch)),
            *((f"DMD2, {k} fake updates", DMD2(batch=batch, updates=k)) for k in (1, 5)),
        ):
            torch.manual_seed(0)
            step = _step(rdm.generator(name, **options).to(device), loss, device)
            step()
            found = milliseconds(step, device), peak(step, device)
            first = first or found
            ratios = [a / b for a, b in zip(found, first, strict=True)]
            print(f"{f'{label}, {method}':44}{found[0]:9.0f}{ratios[0]:8.2f}{found[1]:10.0f}{ratios[1]:8.2f}")


def _step(model: FlowGenerator, loss: Loss, device: str):  # noqa: ANN202
    loss.prepare(model, Setting(None, 0, torch.device(device), None), resumed=False)
    stepper, count = torch.optim.Adam(model.parameters(), lr=1e-5, betas=(0.0, 0.95)), iter(range(10**6))

    def step() -> None:
        stepper.zero_grad()
        loss.backward(model, next(count))
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        stepper.step()

    return step
