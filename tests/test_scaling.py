"""Several ranks as one: gradients summed in buckets and by sharded modules, the global norm, whatever the split."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from rdm.errors import InputError
from rdm.scaling.norm import clipped
from rdm.scaling.sharding import chosen, is_sharded, is_split, local, parts_of, sharded
from rdm.scaling.sums import GradientSums

CPU = torch.device("cpu")


class Block(nn.Module):
    """A layer that does not come out even on 2 or 3 ranks."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 5), nn.Linear(5, 8)

    def forward(self, x):
        return x + self.outer(torch.tanh(self.inner(x)))


class Net(nn.Module):
    """A few blocks, entered by a method of its own as well; one weight is used by nobody, one by the first rank."""

    def __init__(self):
        super().__init__()
        self.inlet, self.outlet = nn.Linear(3, 8), nn.Linear(8, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.unused, self.seldom = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(4))

    def velocity(self, x):
        x = self.inlet(x)
        for block in self.blocks:
            x = block(x)
        return self.outlet(x)

    def forward(self, x):
        return self.velocity(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


ROWS = torch.randn(11, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
WAYS = {"small buckets": (False, 200), "one bucket": (False, 2**30), "sharded": (["blocks.*"], 200)}


def gradients(shard, bucket: int, rank: int, ranks: int) -> tuple[dict[str, torch.Tensor | None], float, list[int]]:
    """Whole gradients of a sum over rows that are shared out, clipped, their norm, and how the sums were sent."""
    model = sharded(net(), shard, CPU)
    sums, sent = GradientSums(model, bucket=bucket), list[int]()
    bounds = [0, 2, 11] if ranks == 2 else [0, 1, 4, 11][: ranks + 1] if ranks > 1 else [0, 11]
    mine = ROWS[bounds[rank] : bounds[rank + 1]]
    with torch.no_grad():
        model(mine)
    with sums.step():
        for number in (0, 1):  # two losses
            sums.final = number == 1
            with sums.passes(last=False):
                (model(mine).square().sum() + (model.seldom.sum() if rank == 0 else 0.0)).backward()
            with sums.passes(last=True):
                model.velocity(mine).pow(4).sum().backward()
            sent.append(sum(bucket.sent is not None for bucket in sums._buckets))
    norm = clipped(model.parameters(), 1.5)
    found = {}
    for name, p in model.named_parameters():
        grad = p.grad.full_tensor() if is_split(p) else p.grad
        found[name] = None if grad is None else grad
    return found, norm, sent


def on_a_rank(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    try:
        found = {way: gradients(*options, rank, ranks) for way, options in WAYS.items()}
        model = sharded(net(), True, CPU)
        assert is_sharded(model) and len(parts_of(model)) == 3
        assert [local(p).shape[0] for p in model.blocks[0].parameters()] != [5, 5, 8, 8]
        for part in parts_of(model):
            part.set_gradient_divide_factor(float(ranks))  # what FSDP does by itself: an average
        model(ROWS).square().sum().backward()
        found["average"] = {name: p.grad.full_tensor() for name, p in model.named_parameters() if is_split(p)}
        found["local norm"] = sum(float(local(p.grad).square().sum()) for p in model.parameters() if is_split(p)) ** 0.5
        found["norm"] = clipped([p for p in model.parameters() if is_split(p)], None)
        with pytest.raises(RuntimeError, match="came after the last backward pass of the last loss"):
            late(sharded(net(), False, CPU))
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def late(model: nn.Module) -> None:
    """A backward pass after the last one."""
    sums = GradientSums(model)
    with sums.step():
        sums.final = True
        for _ in range(2):
            with sums.passes(last=True):
                model(ROWS).sum().backward()


@pytest.mark.parametrize("ranks", [2, 3])
def test_gradients_are_sums_over_ranks_and_clipped_by_the_norm_of_all(tmp_path: Path, ranks):
    expected, norm, sent = gradients(False, 2**30, 0, 1)
    assert norm > 1.5 and sent == [0, 0] and expected["unused"] is None
    torch.multiprocessing.spawn(on_a_rank, (ranks, str(tmp_path)), nprocs=ranks)
    for rank in range(ranks):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for way in WAYS:
            ours, theirs, sent = found[way]
            assert theirs == pytest.approx(norm, rel=1e-13), way
            for name, value in expected.items():
                assert (ours[name] is None) == (value is None), (way, name)
                assert value is None or (ours[name] - value).abs().max() <= 1e-13, (way, name)
            assert sent[0] == 0 and sent[1] >= 1, "sums begin in the last pass of the last loss"
        assert found["norm"] > found["local norm"]
        model = net()
        model(ROWS).square().sum().backward()
        whole = dict(model.named_parameters())
        for name, value in found["average"].items():  # of equal shares: what must not come out above
            assert (value - whole[name].grad).abs().max() <= 1e-12
    assert found["norm"] == pytest.approx(
        sum(float(p.grad.square().sum()) for name, p in whole.items() if name.startswith("blocks")) ** 0.5, rel=1e-13
    )


def test_modules_are_chosen_by_name():
    model = net()
    layers = ["blocks.2", "blocks.1", "blocks.0"]
    assert chosen(model, True) == chosen(model, ["blocks.*"]) == layers and chosen(model, False) == []
    assert chosen(model, ["blocks.[01].inner", "outlet"]) == ["blocks.1.inner", "blocks.0.inner", "outlet"]
    nested = nn.Sequential(nn.ModuleList([nn.ModuleList([Block()]), nn.Tanh()]), Block())
    assert chosen(nested, True) == ["0.0.0"]
    with pytest.raises(
        InputError, match=r"Net has no module 'block.\*' with weights; it has inlet, outlet, blocks, bl"
    ):
        chosen(model, ["block.*"])
    with pytest.raises(InputError, match="Sequential has no nn.ModuleList whose entries have weights"):
        chosen(nn.Sequential(nn.Linear(2, 2)), True)
    model.outlet.weight = nn.Parameter(torch.ones(6, 8))
    model.blocks[1].tied = model.outlet
    with pytest.raises(InputError, match="Net shares weights between blocks.1 and the rest, which"):
        chosen(model, True)
    alone = sharded(net(), True, CPU)  # nothing is split where there is one process
    assert not is_sharded(alone)
