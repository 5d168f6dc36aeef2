"""Data as losses read it: which items a step sees, from memory and from disk, on ranks, with workers, resumed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import rdm
from rdm.__main__ import main
from rdm.data.dataset import Dataset, Stored
from rdm.data.feed import Feed, Order, Rows, portion
from rdm.data.items import Items, first_item
from rdm.distributed import sum_gradients
from rdm.errors import InputError
from rdm.files.checkpoint import complete_checkpoints, read_checkpoint
from rdm.losses.classification import Classification
from rdm.losses.flow_matching import FlowMatching
from rdm.randomness import seeded
from rdm.training.augmentation import Jitter
from rdm.training.loss import Setting
from tests import processes
from tests.test_items import Deadly

N = 23


def pictures(folder: Path, n: int = N, side: int = 8) -> Path:
    """Pictures of which each has a value of its own, in folders of two classes."""
    for i in range(n):
        path = folder / str(i % 2) / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side), 10 * i % 256, np.uint8)).save(path)
    return folder


def stored(folder: Path, workers: int = 0, **options: Any) -> Stored:
    return rdm.dataset("files", path=str(folder), workers=workers, **options)


def seen(feed: Feed, steps: range) -> list[Rows]:
    try:
        return [feed.at(step) for step in steps]
    finally:
        feed.close()


@given(st.integers(1, 60), st.integers(1, 50), st.integers(1, 4), st.integers(0, 9))
def test_every_item_comes_once_an_epoch_on_any_number_of_ranks(n, size, ranks, seed):
    order, steps = Order(n, seed), -(-3 * n // size)
    parts = [
        [Order(n, seed).span(s * size + mine.start, s * size + mine.stop) for s in range(steps)]
        for mine in (portion(size, rank, ranks) for rank in range(ranks))
    ]
    whole = [item for step in zip(*parts, strict=True) for part in step for item in part]
    assert whole == order.span(0, steps * size)
    epochs = [whole[k * n : (k + 1) * n] for k in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert n < 20 or len({tuple(epoch) for epoch in (*epochs, Order(n, seed + 1).span(0, n))}) == 4
    assert order.span(n + 1, n + 2) == epochs[1][1:2] or n == 1, "places can be asked for in any order"


def test_disk_and_memory_workers_or_none_from_any_step_are_one_sequence(tmp_path):
    data = stored(pictures(tmp_path))
    (whole,) = data.read([range(N)])
    memory = Dataset("memory", whole.items, whole.labels, 2)
    expected = seen(Feed(memory, 9, 5), range(7))
    for other, first in ((data, 0), (stored(tmp_path, 1), 0), (stored(tmp_path, 2), 4), (memory, 3)):
        for mine, theirs in zip(seen(Feed(other, 9, 5), range(first, 7)), expected[first:], strict=True):
            assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1]) and mine[2] == theirs[2]


def gradients(folder: str) -> dict[str, torch.Tensor]:
    """Gradients of two losses over two steps, and the values of the items that this process saw in an epoch."""
    data, found = stored(Path(folder)), {}
    with seeded(0):
        models = (
            rdm.generator("mlp_flow", width=8, depth=1, classes=2),
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)),
        )
        torch.nn.init.normal_(models[0].outlet.weight)
    for model, loss in zip(
        models, (FlowMatching(batch=7), Classification(batch=7, augmentation=Jitter())), strict=True
    ):
        loss.prepare(model, Setting(data, 3, torch.device("cpu"), None), resumed=False)
        logged = [float(loss.backward(model, step)["loss"]) for step in (0, 1)]
        loss.close()
        sum_gradients(model.parameters())
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found |= {f"{type(loss).__name__} gradient": gradient, f"{type(loss).__name__} loss": torch.tensor(logged)}
    rows = seen(Feed(data, N, 0), range(1))[0][0]
    return {**found, "seen": rows[:, 0, 0, 0].sort().values}


def on_a_rank(rank: int, world: int, folder: str, pictures: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    try:
        torch.set_num_threads(1)
        torch.save(gradients(pictures), f"{folder}/{world}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_ranks_share_every_epoch_and_have_one_gradient(world, tmp_path):
    """To rounding; 7 rows are 4 and 3, or 3, 2 and 2."""
    folder = str(pictures(tmp_path / "pictures"))
    alone = gradients(folder)
    processes.ranks(on_a_rank, (world, str(tmp_path), folder), world)
    found = [torch.load(tmp_path / f"{world}-{k}.pt", weights_only=True) for k in range(world)]
    assert torch.equal(torch.cat([each.pop("seen") for each in found]).sort().values, alone["seen"])
    for each in found:
        for name, value in each.items():
            assert torch.allclose(value, alone[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.filterwarnings("always:.*left out")
def test_what_is_broken_is_named_or_left_out_and_said(tmp_path):
    (pictures(tmp_path) / "0" / "0004.png").write_bytes(b"no picture")
    with pytest.raises(
        InputError, match=r"0/0004.png cannot be read .*; mend or remove it, or give skip_broken = True"
    ):
        seen(Feed(stored(tmp_path, 1), N, 0), range(1))
    with pytest.warns(UserWarning, match="0004.png cannot be read .* it is left out") as said:
        (items, labels, numbers), (again, *_) = seen(Feed(stored(tmp_path, 1, skip_broken=True), N, 0), range(2))
    assert len(items) == len(labels) == len(numbers) == len(again) == N - 1
    assert sum("left out" in str(each.message) for each in said) == 1
    missing = (set(range(N)) - set(numbers)).pop()
    whole = Order(N, 0).span(0, N)
    names = stored(tmp_path).items.sources[0][0]
    assert names.name(whole[missing]) == "0/0004.png"


def test_a_batch_of_nothing_but_broken_items_adds_nothing(tmp_path):
    """Rows of a rank may all be left out; the model then sees none of them."""
    data = stored(pictures(tmp_path, 2), skip_broken=True)
    (tmp_path / "0" / "0000.png").write_bytes(b"")
    loss, model = FlowMatching(batch=1), rdm.generator("mlp_flow", width=8, depth=1, classes=2)
    loss.prepare(model, Setting(data, 0, torch.device("cpu"), None), resumed=False)
    with pytest.warns(UserWarning, match="left out"):
        values = [loss.backward(model, step)["loss"] for step in range(2)]
    assert sorted(value == 0 for value in values) == [False, True]


def test_a_killed_worker_and_wrong_labels_are_one_line(tmp_path):
    data = stored(pictures(tmp_path), 1)
    values = torch.zeros(20, 4, 4, dtype=torch.uint8)
    deadly = Deadly(values, path=Path("set"), parent=os.getpid())
    items = Items([(deadly, False)], data.items.form, first_item(deadly, data.items.form))
    with pytest.raises(RuntimeError, match="a reading process was killed at set: 13"):
        seen(Feed(Stored("set", items, workers=2), 5, 0), range(4))
    for classes, held in ((1, "class 1; the model has 1 classes"), (10, "")):
        loss, model = FlowMatching(batch=8), rdm.generator("mlp_flow", width=8, depth=1, classes=classes)
        loss.prepare(model, Setting(stored(tmp_path), 0, torch.device("cpu"), None), resumed=False)
        if not held:
            assert loss.backward(model, 0)["loss"] > 0
            continue
        with pytest.raises(InputError, match=held):
            loss.backward(model, 0)
    flat = tmp_path / "flat"
    flat.mkdir()
    (tmp_path / "0" / "0000.png").rename(flat / "0.png")
    loss.prepare(model, Setting(stored(flat), 0, torch.device("cpu"), None), resumed=False)
    with pytest.raises(InputError, match="holds items without a class; the model has 10 classes"):
        loss.backward(model, 0)


CONFIG = """
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.flow_matching()]
rdm.train.data = @datasets.files()
rdm.train.optimizer = @optimizers.adamw
rdm.train.steps = 10000
rdm.train.log_every = 1
rdm.train.average = 0.9
rdm.train.checkpoint_every = 3
rdm.train.samples_every = 10000
datasets.files.path = 'pictures'
datasets.files.workers = 2
losses.flow_matching.batch = 6
generators.mlp_flow.width = 8
generators.mlp_flow.depth = 1
generators.mlp_flow.classes = 2
optimizers.adamw.lr = 1e-2
"""


def command(folder: Path, *more: str) -> processes.Command:
    """A training in a process of its own."""
    return processes.rdm("train", "x.gin", "--out", "run", *more, cwd=folder)


def test_ctrl_c_ends_after_a_checkpoint_and_leaves_no_process(tmp_path):
    pictures(tmp_path / "pictures")
    (tmp_path / "x.gin").write_text(CONFIG)
    process, log = command(tmp_path), tmp_path / "run" / "log.jsonl"
    processes.until(lambda: log.exists() and log.read_text().count("\n") > 1, process)
    begun = process.family()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.strip().splitlines()[-1].startswith("rdm: interrupted at step"), said
    assert len(begun) >= 3 and not process.family(), "itself and two that read; nobody"


@pytest.mark.slow
def test_twenty_kills_change_no_weight(tmp_path):
    """By kill -9 at random moments, from the start of the command on; then the weights of an uninterrupted run."""
    pictures(tmp_path / "pictures")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pictures").symlink_to(tmp_path / "pictures")
        (tmp_path / name / "x.gin").write_text(CONFIG.replace("10000", "200"))
    process, began = command(tmp_path / "whole"), time.monotonic()
    assert process.wait() == 0
    whole = time.monotonic() - began
    draw, cut = np.random.default_rng(int(time.time())), tmp_path / "cut"
    kills = 0
    while kills < 20:
        process = command(cut, *(["--resume"] if kills else []))
        try:
            assert process.wait(timeout=draw.uniform(0.02, 0.3) * whole) == 0, process.communicate()
            break
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
    process = command(cut, "--resume")
    assert process.wait() == 0, process.communicate()
    ends = [complete_checkpoints(tmp_path / name / "run" / "checkpoints")[-1] for name in ("whole", "cut")]
    assert kills > 3 and ends[0].name == ends[1].name == "00000200"
    weights = [read_checkpoint(end)[1] for end in ends]
    for first, second in zip(*([w["model"], *w["averages"].values()] for w in weights), strict=True):
        assert all(torch.equal(first[k], second[k]) for k in first)


LIMITED = """
import pathlib, resource, sys
import torch._dynamo, torch.utils.data  # code, which optimizers import late
import rdm, rdm.__main__, rdm.app.commands
rdm.app.commands.config.load(pathlib.Path("x.gin"))
held = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (held + {allowed},) * 2)
if sys.argv[1] == "read":
    data = rdm.dataset("files", path="pictures", size=128)
    print(len(list(data.read([range(len(data))]))[0].items))
else:
    sys.exit(rdm.__main__.main(["train", "x.gin", "--out", "run"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits what a process maps for its data, as Linux does")
def test_a_folder_of_twice_the_memory_trains(tmp_path):
    """256 MiB of pictures, on disk and as items, by processes that may take 128 more; all at once do not fit."""
    allowed, side = 128 * 2**20, 256
    n = 2 * allowed // side**2
    draw = np.random.default_rng(0)
    for i in range(n):
        (tmp_path / "pictures" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        values = draw.integers(0, 256, (side, side), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "pictures" / str(i % 2) / f"{i}.bmp")
    assert sum(path.stat().st_size for path in (tmp_path / "pictures").rglob("*.bmp")) >= 2 * allowed
    config = CONFIG
    for change in (
        ("steps = 10000", f"steps = {n // 32}"), ("batch = 6", "batch = 32"), ("width = 8", "width = 2"),
        ("checkpoint_every = 3", "checkpoint_every = 100"),
    ):  # fmt: skip
        config = config.replace(*change)
    more = "generators.mlp_flow.shape = (1, 128, 128)\ndatasets.files.size = 128\n"
    (tmp_path / "x.gin").write_text(config + more)
    (tmp_path / "limited.py").write_text(LIMITED.format(allowed=allowed))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = {
        how: subprocess.run([sys.executable, "limited.py", how], cwd=tmp_path, env=environment, capture_output=True)
        for how in ("read", "train")
    }
    assert found["read"].returncode == 1, found["read"]
    assert re.search(rb"allocate|more memory than there is", found["read"].stderr), found["read"].stderr[-300:]
    assert found["train"].returncode == 0, found["train"].stderr[-2000:]


NEWCOMER = '''
"""Points in text files, one a line, and a data set of them: a source and a data set by one file."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rdm.api import Source, Stored, datasets, sources


@sources.register("points")
@dataclass(frozen=True)
class Points(Source):
    """A text file of points, one a line."""

    path: Path
    kind = "features"

    @classmethod
    def detects(cls, path):
        return path.suffix == ".points"

    @cached_property
    def members(self):
        return {"points": np.loadtxt(self.path)}

    def __len__(self):
        return len(self.members["points"])

    def name(self, i):
        return str(i)

    def read(self, i):
        return self.members["points"][i]


@datasets.register("my_points")
def my_points(path: str):
    """Points of mine."""
    return Stored.open(path, workers=1)
'''


def test_a_source_and_a_data_set_are_one_file(tmp_path):
    """Trained on and measured without an edit of rdm."""
    (tmp_path / "newcomer.py").write_text(NEWCOMER)
    draw = np.random.default_rng(0)
    np.savetxt(tmp_path / "a.points", draw.normal(size=(300, 3)) * 0.1 + 0.5)
    config = CONFIG.replace("10000", "4").replace("@datasets.files()", "@datasets.my_points()")
    config = config.replace("datasets.files.path = 'pictures'", "datasets.my_points.path = 'a.points'")
    config = config.replace("datasets.files.workers = 2", "generators.mlp_flow.shape = (3,)")
    (tmp_path / "x.gin").write_text("import newcomer\n" + config.replace("classes = 2", "classes = None"))
    code = (
        "import newcomer, sys\n"
        "from rdm.__main__ import main\n"
        "assert main(['train', 'x.gin', '--out', 'run']) == 0\n"
        "assert main(['reference', 'a.points', '--out', 'r.safetensors']) == 0\n"
        "import rdm; assert 'points' in rdm.Reference.load('r.safetensors').members\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "run" / "result.json").exists()


def test_the_wrong_use_of_data_on_disk_is_one_line(tmp_path, monkeypatch, capsys):
    pictures(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    matching = "losses.matching.objective = @objectives.mmd()\nlosses.matching.battery = @batteries.untrained()\n"
    for change, line in (
        (("flow_matching()", "matching()"), "Matching holds its items in memory; got pictures"),
        (("path = 'pictures'", "path = 'nothing'"), "expected data at nothing; there is none"),
        (("workers = 2", "workers = -1"), "workers must be a whole number from 0"),
    ):
        text = CONFIG.replace(*change).replace("10000", "2")
        if "matching()" in change:
            text = "\n".join(line for line in text.splitlines() if "flow_matching" not in line) + "\n" + matching
        Path("x.gin").write_text(text)
        assert main(["train", "x.gin", "--out", "run"]) == 2
        assert line in capsys.readouterr().err
