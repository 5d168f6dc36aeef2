"""Several ranks as one: gradients summed in buckets and by sharded modules, the global norm, whatever the split."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import rdm
import rdm.distributed
from rdm.data.dataset import Dataset
from rdm.errors import InputError
from rdm.files.checkpoint import complete_checkpoints, read_checkpoint
from rdm.generators.protocol import Generator
from rdm.losses.matching import Matching
from rdm.matching.representation import Representation
from rdm.randomness import seeded
from rdm.scaling.modules import Compile, compiled, recompute
from rdm.scaling.norm import clipped
from rdm.scaling.sharding import chosen, copied, is_sharded, is_split, local, parts_of, sharded
from rdm.scaling.sums import GradientSums
from rdm.training.loop import train
from tests import processes
from tests.forge import at, places

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
        self.blocks = nn.ModuleList(Block() for _ in range(2))
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
    norm = float(clipped(model.parameters(), 1.5))
    found = {}
    for name, p in model.named_parameters():
        grad = p.grad.full_tensor() if is_split(p) else p.grad
        found[name] = None if grad is None else grad
    return found, norm, sent


def gradients_on_a_rank(rank: int, ranks: int) -> dict:
    """What a rank finds in every way; and an average, and one rank's norm, which must not be what it finds."""
    found: dict = {way: gradients(*options, rank, ranks) for way, options in WAYS.items()}
    model = sharded(net(), True, CPU)
    assert is_sharded(model) and len(parts_of(model)) == 2
    assert [local(p).shape[0] for p in model.blocks[0].parameters()] != [5, 5, 8, 8]
    for part in parts_of(model):
        part.set_gradient_divide_factor(float(ranks))  # what FSDP does by itself: an average
    model(ROWS).square().sum().backward()
    found["average"] = {name: p.grad.full_tensor() for name, p in model.named_parameters() if is_split(p)}
    found["local norm"] = sum(float(local(p.grad).square().sum()) for p in model.parameters() if is_split(p)) ** 0.5
    found["norm"] = float(clipped([p for p in model.parameters() if is_split(p)], None))
    with pytest.raises(InputError, match="Net is sharded and cannot be copied; give the network that the copy is for"):
        copied(model)
    with pytest.raises(RuntimeError, match="came after the last backward pass of the last loss"):
        late(sharded(net(), False, CPU))
    return found


def late(model: nn.Module) -> None:
    """A backward pass after the last one."""
    sums = GradientSums(model)
    with sums.step():
        sums.final = True
        for _ in range(2):
            with sums.passes(last=True):
                model(ROWS).sum().backward()


def test_what_is_not_finite_on_one_rank_in_either_pass_is_left_out_on_all(on_two):
    rows = [json.loads(line) for line in (on_two / "spoilt" / "log.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [0, 1, 2, 2, 2] and ["loss" in row for row in rows] == [1, 0, 0, 1, 1]


def test_modules_are_chosen_by_name():
    model = net()
    layers = ["blocks.1", "blocks.0"]
    assert chosen(model, True) == chosen(model, ["blocks.*"]) == layers and chosen(model, False) == []
    assert chosen(model, ["blocks.[01].inner", "outlet"]) == ["blocks.1.inner", "blocks.0.inner", "outlet"]
    nested = nn.Sequential(nn.ModuleList([nn.ModuleList([Block()]), nn.Tanh()]), Block())
    assert chosen(nested, True) == ["0.0.0"]
    with pytest.raises(
        InputError, match=r"Net has no module 'block.\*' with weights; it has inlet, outlet, blocks.*, bl"
    ):
        chosen(model, ["block.*"])
    with pytest.raises(InputError, match="Sequential has no nn.ModuleList whose entries have weights"):
        chosen(nn.Sequential(nn.Linear(2, 2)), True)
    model.outlet.weight = nn.Parameter(torch.ones(6, 8))
    model.blocks[1].tied = model.outlet
    with pytest.raises(InputError, match="Net shares weights between blocks.1 and the rest, which"):
        chosen(model, True)
    model = net()
    model.blocks[1].scale = nn.Parameter(torch.ones(()))
    with pytest.raises(InputError, match="Net.blocks.1.scale is one number, which cannot be split; give it a dim"):
        chosen(model, True)
    alone = sharded(net(), True, CPU)  # nothing is split where there is one process
    assert not is_sharded(alone)


class Small(Generator):
    """Pictures of 2 x 2 from a few blocks, in either precision."""

    shape, classes = (3,), None

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.net = Net()
        self.net.outlet = nn.Linear(8, 4)
        del self.net.seldom
        self.to(dtype)
        self.dtype = dtype

    def noise(self, n, generator):
        return super().noise(n, generator).to(self.dtype)

    def forward(self, noise, condition=None):
        return torch.sigmoid(self.net(noise)).unflatten(1, (1, 2, 2))


class Gates(Matching):
    """Matching by the gated balance, with fresh rows that are drawn."""

    def prepare(self, model, setting, *, resumed):
        super().prepare(model, setting, resumed=resumed)
        for term in self.matched.terms:
            fresh = torch.rand(60, 1, 2, 2, generator=torch.Generator().manual_seed(5), dtype=model.dtype)
            term.fresh = term.representation(fresh).detach()
        self.matched.balance = self.matched.weighing.balance = rdm.balance("gated")


def two() -> rdm.Battery:
    squares = Representation("squares", nn.Sequential(nn.Flatten(), nn.Tanh()))
    return rdm.Battery((rdm.representation("pixels"), squares), weights=(1.0, 0.7))


def one() -> rdm.Battery:
    return rdm.Battery((rdm.representation("pixels"),))


CASES = {  # loss by chunk, and the optimizer; the gradient of a loss that is divided by its value has a size of its own
    "fd, ema": (lambda c: Matching(rdm.objective("frechet"), one(), 11, c, rdm.EMA(0.7), warm_up=9), "adamw"),
    "mmd, accumulated": (lambda c: Matching(rdm.objective("mmd", bandwidth=0.5), one(), 11, c), "sgd"),
    "sw, queue": (
        lambda c: Matching(rdm.objective("sliced_wasserstein", projections=5), one(), 11, c, rdm.Queue(30)),
        "sgd",
    ),
    "self-normalized": (
        lambda c: Matching(rdm.objective("mmd"), two(), 11, c, rdm.EMA(0.5, riding=True), rdm.SelfNormalized()),
        "sgd",
    ),
    "gated": (lambda c: Gates(rdm.objective("mmd"), two(), 11, c), "adamw"),
}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


def trained(case: str, out: Path, *, shard=False, chunk=None, dtype=torch.float64, **options) -> nn.Module:
    """Five steps of a case, its gradient clipped."""
    loss, optimizer = CASES[case]
    data = Dataset(
        "noise",
        torch.rand(50, 1, 2, 2, generator=torch.Generator().manual_seed(3)).to(dtype),
        torch.zeros(50).long(),
        1,
    )
    losses = [loss(chunk)]
    with seeded(0):
        model = Small(dtype)
        return train(
            model=model, losses=losses, data=data, out=out, steps=5, average=0.5, optimizer=OPTIMIZERS[optimizer],
            clip=0.05, log_every=1, checkpoint_every=2 if case == "fd, ema" else 5,
            keep=9, samples_every=5 if case == "sw, queue" else None, shard=shard,
            **{"checkpointing": ["net.blocks.*"] if shard and case == "gated" else False, **options},
        )  # fmt: skip


def whole_run(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's last checkpoint and the norms that it logged, by place."""
    _, state = read_checkpoint(complete_checkpoints(out / "checkpoints")[-1])
    del state["random"]
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    state["norms"] = torch.tensor([row["gradient_norm"] for row in rows], dtype=torch.float64)
    found = {}
    for path in places(state):
        value = at(state, path)
        if isinstance(value, torch.Tensor):
            found[".".join(map(str, path))] = value
    return found


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], what: object, error: float) -> None:
    assert ours.keys() == theirs.keys(), what
    for name, value in theirs.items():
        size = float(value.double().abs().max()) if value.numel() else 0.0
        apart = float((ours[name].double() - value.double()).abs().max()) if value.numel() else 0.0
        assert ours[name].shape == value.shape and apart <= error * (1 + size), (what, name, apart)


WAYS_TO_TRAIN = [(case, shard, torch.float64) for case in CASES for shard in (False, ["net.blocks.*"])]
WAYS_TO_TRAIN += [(case, k % 2 == 0, torch.float32) for k, case in enumerate(CASES)]


class Spoilt(nn.Module):
    """Pixels, which are no numbers on the second rank in a call of the first pass and in one of the second."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, items):
        self.calls += rdm.distributed.rank()
        return items.flatten(1) * (float("nan") if self.calls in (8, 15) else 1.0)


def spoilt(chunk: int) -> Matching:
    return Matching(rdm.objective("mmd"), rdm.Battery((Representation("spoilt", Spoilt()),)), 11, chunk)


CASES["spoilt"] = spoilt, "sgd"


def place(folder: Path, ranks: int, case: str, shard, dtype: torch.dtype) -> Path:
    return folder / f"{ranks}, {case}, {'sharded' if shard else 'whole'}, {dtype}"


def cut(out: Path, step: int) -> None:
    """Leave a run as it was after a step."""
    for late in complete_checkpoints(out / "checkpoints"):
        if int(late.name) > step:
            shutil.rmtree(late)


def on_a_rank(rank: int, ranks: int, folder: str) -> None:
    """All cases; and a run that is resumed, as it was begun by 2 ranks or went on on another number of them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet {ranks}", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    try:
        torch.save(gradients_on_a_rank(rank, ranks), f"{folder}/{rank} of {ranks}.pt")
        for case, shard, dtype in WAYS_TO_TRAIN:
            chunk = 1 if case.startswith("gated") else 2
            trained(case, place(Path(folder), ranks, case, shard, dtype), shard=shard, chunk=chunk, dtype=dtype)
        if ranks == 2:
            trained("spoilt", Path(folder) / "spoilt", shard=True, chunk=2)
            for way, shard in (("whole", False), ("sharded", ["net.blocks.*"])):
                again = Path(folder) / f"again, {way}"
                if rank == 0:
                    shutil.copytree(place(Path(folder), 2, "fd, ema", shard, torch.float64), again)
                    cut(again, 2)
                dist.barrier()
                trained("fd, ema", again, shard=shard, chunk=2, resume=True)
        else:
            for way, shard in (("whole", False), ("sharded", ["net.blocks.*"])):
                trained("fd, ema", Path(folder) / f"chain, {way}", shard=shard, chunk=2, resume=True)
    finally:
        dist.destroy_process_group()


def start(ranks: int, folder: Path) -> Path:
    """All that some ranks do."""
    processes.ranks(on_a_rank, (ranks, str(folder)), ranks)
    return folder


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> Path:
    """Every case on 1 and 2 ranks."""
    folder = tmp_path_factory.mktemp("runs")
    for case, shard, dtype in WAYS_TO_TRAIN:
        if not shard or dtype == torch.float32:
            trained(case, place(folder, 1, case, shard, dtype), shard=shard, dtype=dtype)
    return start(2, folder)


@pytest.fixture(scope="module")
def on_three(on_two) -> Path:
    """On 3 ranks too; and 2 steps on 2 ranks, sharded, that went on to 4 on one, and to 5 on 3."""
    for way in ("whole", "sharded"):
        shutil.copytree(place(on_two, 2, "fd, ema", True, torch.float64), on_two / f"chain, {way}")
        cut(on_two / f"chain, {way}", 2)
        trained("fd, ema", on_two / f"chain, {way}", chunk=4, resume=True)
        cut(on_two / f"chain, {way}", 4)
    return start(3, on_two)


LOW = {"precision": "bfloat16", "parameters": "bfloat16"}
FAST = {"compile": Compile(modules=["net.blocks.*"], backend="aot_eager")}
SHARDED = {"low": LOW, "compiled": {**FAST, "checkpointing": ["net.blocks.*"]}}


def layers(count: int) -> nn.Module:
    return nn.Sequential(nn.ModuleList(Block() for _ in range(count)))


def graphs() -> int:
    """How many programs a compiled list of equal layers takes, whose activations are computed again."""
    from torch._dynamo.utils import counters  # seconds to import

    torch._dynamo.reset()
    counters.clear()
    model = compiled(recompute(layers(10), True), Compile(backend="eager"))
    with torch.no_grad():
        model[0][0](torch.zeros(3, 8))
    x = torch.zeros(3, 8)
    for layer in model[0]:
        x = layer(x)
    return counters["stats"]["unique_graphs"]


def low_and_compiled_on_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name, options in SHARDED.items():
        trained("fd, ema", Path(folder) / name, shard=["net.blocks.*"], chunk=2, dtype=torch.float32, **options)
    again = Path(folder) / "again"
    if rank == 0:
        shutil.copytree(Path(folder) / "low", again)
        cut(again, 2)
    dist.barrier()
    trained("fd, ema", again, shard=["net.blocks.*"], chunk=2, dtype=torch.float32, resume=True, **LOW)
    dist.destroy_process_group()
    torch.save(graphs(), f"{folder}/graphs {rank}.pt")


@pytest.mark.slow
def test_modules_are_sharded_in_bfloat16_and_compiled(tmp_path):
    """In bfloat16 within its rounding of one process with masters, whose weights are float32 and resumed to the bit."""
    processes.ranks(low_and_compiled_on_a_rank, (str(tmp_path),), 2)
    with seeded(0):
        begun = Small(torch.float32).state_dict()
    for name, options in SHARDED.items():
        alone = {key: value for key, value in options.items() if key in LOW}
        trained("fd, ema", tmp_path / f"{name}, alone", dtype=torch.float32, **alone)
        ours, theirs = whole_run(tmp_path / name), whole_run(tmp_path / f"{name}, alone")
        if not alone:
            assert_equal(ours, theirs, name, 1e-5)
            continue
        for key, before in begun.items():
            moved, apart = (theirs[f"model.{key}"] - each for each in (before, ours[f"model.{key}"]))
            assert apart.norm() <= 0.03 * moved.norm() and ours[f"model.{key}"].dtype == torch.float32, (name, key)
    assert_equal(whole_run(tmp_path / "again"), whole_run(tmp_path / "low"), "resumed", 0.0)
    assert torch.load(tmp_path / "graphs 0.pt", weights_only=True) <= 3


ranks_of_runs = pytest.mark.parametrize(
    "ranks, runs", [(2, "on_two"), pytest.param(3, "on_three", marks=pytest.mark.slow)]
)


@ranks_of_runs
def test_any_number_of_ranks_and_chunks_train_the_same_model(request, ranks, runs):
    """Weights, averages, optimizer, memories, balance and the logged norm after 5 steps, the gradient clipped."""
    folder = request.getfixturevalue(runs)
    for case, shard, dtype in WAYS_TO_TRAIN:
        alone = whole_run(place(folder, 1, case, shard and dtype == torch.float32, dtype))
        assert (alone["norms"] > 0.05).any(), case
        ours = whole_run(place(folder, ranks, case, shard, dtype))
        assert_equal(ours, alone, (case, shard, dtype), 1e-11 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_a_run_goes_on_bit_for_bit_on_as_many_ranks(on_two, way):
    first = place(on_two, 2, "fd, ema", way == "sharded", torch.float64)
    assert_equal(whole_run(on_two / f"again, {way}"), whole_run(first), way, 0.0)
    parts = {"rows-00000.safetensors", "rows-00001.safetensors"} if way == "sharded" else set()
    names = {path.name for path in (first / "checkpoints" / "00000005").iterdir()}
    assert names == {"state.json", "state.safetensors"} | parts


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_a_run_goes_on_on_another_number_of_ranks_sharded_or_not(on_three, way):
    first = place(on_three, 2, "fd, ema", True, torch.float64)
    assert_equal(whole_run(on_three / f"chain, {way}"), whole_run(first), way, 1e-11)


@ranks_of_runs
def test_gradients_are_sums_over_ranks_and_clipped_by_the_norm_of_all(request, ranks, runs):
    expected, norm, sent = gradients(False, 2**30, 0, 1)
    assert norm > 1.5 and sent == [0, 0] and expected["unused"] is None
    for rank in range(ranks):
        found = torch.load(request.getfixturevalue(runs) / f"{rank} of {ranks}.pt", weights_only=True)
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
