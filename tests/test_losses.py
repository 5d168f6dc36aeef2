"""Losses that are sums over samples: what they log, on one process and on two."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from rdm.data.dataset import Dataset
from rdm.generators.protocol import FlowGenerator
from rdm.losses.classification import Classification
from rdm.losses.flow_matching import FlowMatching
from rdm.training.loss import Setting
from tests import processes


class OneOff(FlowGenerator):
    """The true velocity of data at 0, and one more: an error of 1 at every sample."""

    shape, classes = (2,), None

    def __init__(self):
        super().__init__(1, "euler")
        self.more = nn.Parameter(torch.ones(()))

    def velocity(self, x, t, condition):
        return x / t[:, None] + self.more


class Still(OneOff):
    """No velocity at all: the error is the noise itself where data is at 0."""

    noise_scale = 3.0

    def velocity(self, x, t, condition):
        return 0 * x * self.more


class Third(nn.Module):
    """Even logits of three classes, the first a hair ahead."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([1e-6, 0.0, 0.0]))

    def forward(self, items):
        return self.logits.expand(len(items), 3)


def logged() -> dict[str, dict[str, float]]:
    setting = Setting(Dataset("grey", torch.full((5, 2), 0.5), torch.zeros(5).long(), 3), 0, torch.device("cpu"), None)
    found = {}
    for loss, model in ((FlowMatching(batch=7), OneOff()), (Classification(batch=7, smoothing=0.0), Third())):
        loss.prepare(model, setting, resumed=False)
        found[type(loss).__name__] = loss.backward(model, 0)
    return found


def ranks(rank: int, folder: str) -> None:
    """On one of two gloo processes: what each logs goes to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        torch.save(logged(), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_the_logged_loss_and_accuracy_are_those_of_all_ranks(tmp_path):
    """Error 1 a sample, even odds of three: 1 and log 3, of 7 rows and of 4 and 3 on two processes."""
    processes.ranks(ranks, (str(tmp_path),), 2)
    for found in (logged(), *(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))):
        assert found["FlowMatching"]["loss"] == pytest.approx(1, rel=1e-4)
        assert found["Classification"] == pytest.approx({"loss": math.log(3), "accuracy": 1.0}, rel=1e-5)


def test_flow_matching_draws_noise_of_the_models_scale():
    setting = Setting(Dataset("grey", torch.full((5, 2), 0.5), torch.zeros(5).long(), 3), 0, torch.device("cpu"), None)
    loss = FlowMatching(batch=4096)
    loss.prepare(model := Still(), setting, resumed=False)
    assert loss.backward(model, 0)["loss"] == pytest.approx(9, rel=0.05)
