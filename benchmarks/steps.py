"""Whole steps of training: what of them is spent outside generator, encoders, statistics and distances."""

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import rdm
from benchmarks.bars import Bar, show
from rdm.data.dataset import Dataset
from rdm.losses.matching import Matching
from rdm.matching.balance import SelfNormalized
from rdm.matching.representation import Battery, Representation
from rdm.registry import networks, representations
from rdm.scaling.averages import Average, HalfLife
from rdm.timing.regions import Profile, profiled
from rdm.training.loop import train
from rdm.training.loss import Setting
from rdm.training.watching import Monitor

ADAMW = {"lr": 5e-4, "fused": True, "betas": (0.9, 0.95), "weight_decay": 0.0}


class Case(NamedTuple):
    """A configuration, with random weights and pictures: the work is the same."""

    model: nn.Module
    loss: Matching
    pictures: tuple[int, ...]
    steps: int
    average: list[float | Average] | float | None = None


@dataclass
class Begun(Monitor):
    """Forgets what came before a step: a profile's first steps."""

    profile: Profile
    at: int

    @property
    def every(self) -> int:  # type: ignore[override]
        """That step, and its multiples."""
        return self.at

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Nothing."""

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Gives no number."""
        if step == self.at:
            self.profile.read()
            self.profile.seconds.clear()
            self.profile.calls.clear()
        return {}


def digits() -> Case:
    """`rdm demo`: 512 digits under pixels and a classifier, moments with a moving average."""
    classifier = Representation("classifier", networks.build("conv_classifier"))
    battery = Battery((rdm.representation("pixels"), classifier))
    options: dict[str, Any] = {"memory": rdm.EMA(0.8), "balance": SelfNormalized()}
    loss = Matching(rdm.objective("frechet"), battery, population=512, **options)
    return Case(rdm.generator("mlp_flow", steps=1), loss, (1, 8, 8), 120, 0.98)


def cifar() -> Case:
    """experiments/cifar10: 64 pictures under two MobileNets at 48 pixels, kernels without a memory."""
    sized = partial(representations.build, "mobilenet", weights="random", size=48)
    battery = Battery(tuple(sized(width=width, name=f"mobilenet {width}") for width in (0.25, 0.5)))
    model = rdm.generator("unet", patch=2, channels=32, blocks=1, steps=1)
    loss = Matching(rdm.objective("mmd"), battery, population=64, balance=SelfNormalized(eps=1e-4))
    return Case(model, loss, (3, 32, 32), 12)


def fd_loss() -> Case:
    """FD-loss in small: 256 pictures, three encoders of 1,024 to 2,048 dimensions, moments followed, four averages."""
    battery = Battery(tuple(Representation(f"{d} d", _encoder(d)) for d in (1024, 1536, 2048)))
    model = rdm.generator("unet", patch=2, channels=32, blocks=1, steps=1)
    options: dict[str, Any] = {"memory": rdm.EMA(0.999), "balance": SelfNormalized(), "tolerance": 1e-3}
    loss = Matching(rdm.objective("frechet"), battery, population=256, chunk=64, warm_up=4096, **options)
    return Case(model, loss, (3, 32, 32), 5, [HalfLife(items=k * 1e5) for k in (1, 2, 5, 10)])


def _encoder(d: int) -> nn.Module:
    """Five convolutions, to so many features."""
    convolutions = representations.build("random_convolutions", channels=3, width=32, layers=3).module
    assert convolutions is not None
    with torch.no_grad():
        width = convolutions(torch.zeros(1, 3, 32, 32)).shape[1]
    return nn.Sequential(convolutions, nn.Linear(width, d), nn.GELU())


def profile(case: Case, device: str) -> Profile:
    """Where the time of a case's steps goes, but for the first few."""
    taken = Profile(cuda=device == "cuda")
    count = max(2048, 4 * case.loss.population)
    pictures = torch.rand(count, *case.pictures, generator=torch.Generator().manual_seed(0))
    data = Dataset("noise", pictures, torch.arange(count) % 10, 10)

    skipped = 1 + case.steps // 10
    with tempfile.TemporaryDirectory() as folder, profiled(taken):
        train(
            model=case.model, losses=[case.loss], steps=skipped + case.steps, out=Path(folder, "run"), data=data,
            optimizer=partial(torch.optim.AdamW, **ADAMW), average=case.average, clip=1.0, device=device,
            samples_every=None, checkpoint_every=10_000, monitors=[Begun(taken, skipped)],
        )  # fmt: skip
    return taken


def outside(device: str) -> Iterator[Bar]:
    """A table of each case, and its bar."""
    for case in (digits, cifar, fd_loss):
        torch.manual_seed(0)
        taken = profile(case(), device)
        total = 1e3 * sum(taken.seconds.values()) / taken.steps
        print(f"\n{case.__doc__}\n{taken.steps} steps of {total:.4g} ms, {taken.outside:.1%} outside the work")
        for name, times, spent, share in taken.rows():
            print(f"{name:34}{times:>9}{spent:>12} ms{share:>9}")
        yield Bar(f"a step of {case.__name__}: outside generator, encoders, distances", taken.outside, most=0.05)


def run(device: str) -> None:
    """All of them, with the bars that they hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        show(list(outside(device)))
