"""Networks beside the model: stepped, averaged, sharded, in checkpoints; every loss of flows in chunks and ranks."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import rdm
from rdm.data.dataset import Dataset
from rdm.errors import InputError, NonFiniteError
from rdm.files.checkpoint import complete_checkpoints, read_checkpoint
from rdm.files.store import pack
from rdm.losses._flows import which_jump
from rdm.losses.dmd2 import DMD2
from rdm.losses.flow_matching import FlowMatching
from rdm.losses.fsf_dmd import FSFDMD
from rdm.losses.mean_flow import MeanFlow
from rdm.losses.weighted import Weighted
from rdm.rehearsing.step import Does
from rdm.training.auxiliary import Auxiliary
from rdm.training.loop import train
from rdm.training.loss import Setting
from tests import processes
from tests.test_train import untimed

SMALL = {"shape": (2,), "classes": 3, "width": 8, "depth": 2, "map": True}
STEPS = 4


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = rdm.generator("mlp_flow", **SMALL)
        for p in model.parameters():
            nn.init.normal_(p, std=0.3)
        return model


def study(out: Path, *, chunk: int | None = None, shard: bool = False, wide: bool = False, resume: bool = False):
    """Everything at once on five points of two dimensions; with `shard` of a fake network, with `wide` of the model."""
    few = {"batch": 7, "chunk": chunk}
    teacher = network(1) if wide else "initial"
    beside = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    losses = [
        MeanFlow(derivative="difference", **few),
        FlowMatching(**few),
        Weighted(FSFDMD(teacher if wide else "average", jumps=2, decay=0.5, **few), start=1, weight=0.5),
        DMD2(
            teacher, network(2) if wide else None, updates=2, optimizer=beside, average=0.5, shard=shard, jumps=2, **few
        ),
        FSFDMD(teacher, pseudo="diagonal", **few),
    ]
    items = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    data = Dataset("rows", items, torch.arange(5) % 3, 3)
    return train(
        model=network(0), losses=losses, steps=STEPS, out=out, data=data, resume=resume, checkpoint_every=2,
        samples_every=0, log_every=1, average=0.5, shard=["blocks.*"] if wide else False,
    )  # fmt: skip


def cut(out: Path) -> Path:
    """The same run as it was after two steps."""
    again = out.with_name(f"{out.name}, again")
    shutil.copytree(out, again)
    shutil.rmtree(complete_checkpoints(again / "checkpoints")[-1])
    return again


def kept(out: Path) -> dict[str, Tensor]:
    """Every tensor of the last checkpoint, and what was logged but for the time."""
    state = read_checkpoint(complete_checkpoints(out / "checkpoints")[-1])[1]
    del state["random"]
    rows = untimed(out)
    assert len(rows) == STEPS
    logged = {name: torch.tensor([row[name] for row in rows]) for name in sorted(rows[-1])}
    return {**pack(state)[0], **logged}


def parts(out: Path) -> set[str]:
    """Files of the last checkpoint that hold one rank's rows."""
    return {path.name for path in complete_checkpoints(out / "checkpoints")[-1].glob("rows-*")}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], error: float) -> None:
    """Adam steps a number of which the gradient is next to nothing by its sign."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=error, atol=error), (name, ours[name] - value)


WAYS = {"whole": {}, "sharded": {"shard": True, "chunk": 2}, "wide": {"shard": True, "wide": True, "chunk": 1}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Each way on one process; whole runs also in chunks, and gone on with; then on two ranks, gone on with there."""
    folder = tmp_path_factory.mktemp("runs")
    study(folder / "alone")
    study(folder / "alone, wide", wide=True)
    study(folder / "chunks", chunk=3)
    study(cut(folder / "alone"), resume=True)
    processes.ranks(on_a_rank, (str(folder),), 2)
    return folder


def on_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        for way, options in WAYS.items():
            out = Path(folder) / way
            study(out, **options)
            if rank == 0:
                cut(out)
            dist.barrier()
            study(out.with_name(f"{way}, again"), resume=True, **options)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("way", ["alone", *WAYS])
def test_a_run_goes_on_bit_for_bit_with_teachers_averages_and_the_fake_network(runs, way):
    assert_same(kept(runs / f"{way}, again"), kept(runs / way), 0.0)
    shared = {"rows-00000.safetensors", "rows-00001.safetensors"} if way in ("sharded", "wide") else set()
    assert parts(runs / way) == shared


@pytest.mark.parametrize("way", ["chunks", *WAYS])
def test_chunks_ranks_and_shards_change_nothing(runs, way):
    """Seven rows on one process and on two, at once, in threes, twos and ones; but for rounding."""
    assert_same(kept(runs / way), kept(runs / ("alone, wide" if way == "wide" else "alone")), 1e-4)


def test_a_network_beside_is_stepped_averaged_and_left_alone_by_what_is_not_finite():
    """By the gradient 1 and the rate 1/2: 1, 1/2, 0, -1/2; the average of the last three with decay 1/2 is -1/8."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    beside = Auxiliary(net, partial(torch.optim.SGD, lr=0.5), average=0.5)

    def learn(passes, by: float = 1.0) -> float:
        loss = net.weight.sum() * by
        with passes(last=True):
            loss.backward()
        return float(loss.detach())

    assert [beside.update(learn) for _ in range(3)] == [1.0, 0.5, 0.0]
    with pytest.raises(NonFiniteError, match="gradient of Linear, trained beside the model, is not finite"):
        beside.update(partial(learn, by=float("inf")))
    with beside.shown() as seen:
        assert seen.weight.item() == -0.125
    assert net.weight.item() == -0.5 and beside.updates == 3


def test_samples_are_judged_by_the_average_of_the_fake_network():
    """Which is the network itself at decay 0, and another at .9 from the second update on."""
    setting = Setting(None, 0, torch.device("cpu"), None)
    found = {}
    for average in (None, 0.0, 0.9):
        loss, model = DMD2(batch=4, updates=2, average=average), network(0)
        loss.prepare(model, setting, resumed=False)
        loss.backward(model, 0)
        found[average] = model.inlet.weight.grad
    assert torch.equal(found[None], found[0.0]) and not torch.allclose(found[None], found[0.9])
    with pytest.raises(InputError, match=r"MLPFlow has no module 'block.\*' with weights; it has"):
        DMD2(batch=4, shard=["block.*"]).prepare(network(0), setting, resumed=False)


def test_a_plan_counts_the_network_beside_once_and_lets_go_of_it():
    """Weights, gradient, Adam's two and the average are kept; four of a rank's rows go in two pieces; k < jumps."""
    setting, model = Setting(None, 0, torch.device("cpu"), None), network(0)
    loss = DMD2(batch=8, chunk=3, updates=1, average=0.5, jumps=2)
    size = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    found = list(loss.rehearse(model, setting, ranks=2))
    assert [(word.name, word.bytes) for word in found[:2]] == [("teacher", size), ("fake network", 5 * size)]
    assert found[2:] == [Does("DMD2, all of it", 2)]
    assert not hasattr(loss, "beside") and loss.batch == 8
    assert {which_jump(2, 0, step) for step in range(20)} == {0, 1}
