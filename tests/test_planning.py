"""Dry runs: what is said of memory is what torch's own allocator gives out; neither weights nor data are needed."""

import ast
import copy
import gc
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rdm.__main__ import main
from rdm.app import config
from rdm.app.dry_run import outlined
from rdm.errors import InputError
from rdm.matching.real import Real
from rdm.planning.plan import Plan
from rdm.planning.sizes import Held, Sizes
from rdm.randomness import seeded, stream
from rdm.references.file import Reference
from rdm.registry import generators, networks, objectives, representations
from rdm.rehearsing.bound import bound, tensors
from rdm.surviving.joining import started
from rdm.training.loop import train
from tests import processes

RUN = """
rdm.train.model = @generators.unet()
generators.unet.shape = (1, 8, 8)
generators.unet.channels = 32
generators.unet.multiples = (1, 2)
generators.unet.blocks = 1
rdm.train.losses = [@losses.matching()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 2
rdm.train.optimizer = @optimizers.adamw
rdm.train.samples_every = None
losses.matching.battery = @rdm.battery()
rdm.battery.members = [@representations.random_convolutions(), @representations.classifier()]
representations.random_convolutions.width = 16
representations.classifier.network = @networks.conv_classifier()
"""
DENSE = """
rdm.train.average = 0.9
losses.matching.objective = @objectives.frechet()
losses.matching.memory = @memories.ema()
losses.matching.population = 64
"""
CHUNKED = """
losses.matching.objective = @objectives.sliced_wasserstein()
objectives.sliced_wasserstein.projections = 64
losses.matching.memory = @memories.queue()
losses.matching.population = 128
losses.matching.chunk = 32
memories.queue.size = 2000
"""
LIVE = """
losses.matching.objective = @objectives.energy()
losses.matching.population = 256
losses.matching.live = 48
"""
SHARDED = """
rdm.train.model = @generators.dit()
generators.dit.shape = (1, 8, 8)
generators.dit.patch = 2
generators.dit.width = 96
generators.dit.depth = 16
generators.dit.heads = 4
generators.dit.steps = 1
generators.dit.guidance = 1.0
generators.dit.decoder = 'none'
rdm.train.shard = True
rdm.train.average = 0.9
losses.matching.objective = @objectives.frechet()
losses.matching.memory = @memories.ema()
losses.matching.population = 64
losses.matching.chunk = 16
"""
BESIDE = """
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.dmd2(), @losses.mean_flow()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 2
rdm.train.optimizer = @optimizers.adamw
rdm.train.samples_every = None
generators.mlp_flow.map = True
losses.dmd2.batch = 64
losses.dmd2.chunk = 16
losses.dmd2.average = 0.9
losses.mean_flow.batch = 64
"""


def file(folder, text: str, weights: str):
    path = folder / "run.gin"
    path.write_text(f"{RUN}{text}\nrepresentations.classifier.weights = {weights!r}\n")
    return path


def plan(path, ranks: int = 1) -> Plan:
    config.load(path)
    return outlined().plan(ranks)


def held(path, out) -> int:
    """The most that torch's allocator has given out at once in the second step of a run, built and trained here.

    By addresses, not by the sum of events: what another thread frees, a collective's for one, is none of this thread's.
    """
    gc.collect()
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        config.load(path)
        arguments = config.plan()
        with seeded(0):
            train(**arguments, out=out)
    events = [event for root in profile.kineto_results.experimental_event_tree() for event in family(root)]
    events.sort(key=lambda event: event.start_time_ns)
    updates = [event.start_time_ns for event in events if event.name.startswith("Optimizer.step#")]
    sizes, now, most = defaultdict[int, int](int), 0, 0
    for event in events:
        if event.name == "[memory]":
            given = event.typed[1]
            size = max(given.alloc_size, 0)  # a free's is negative
            now += size - sizes[given.ptr]
            sizes[given.ptr] = size
            most = max(most, now if updates[0] < event.start_time_ns < updates[-1] else 0)
    return most


def family(event) -> Iterator:
    """An event of a profile and those within it."""
    yield event
    for child in event.children:
        yield from family(child)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """Weights of the classifier."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_file(networks.build("conv_classifier").state_dict(), path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("text", [DENSE, CHUNKED, LIVE], ids=["dense", "chunked", "live"])
def test_what_is_said_of_memory_is_within_15_percent_of_what_a_run_holds(text, tmp_path, encoder):
    path = file(tmp_path, text, encoder)
    said, found = plan(path).most, held(path, tmp_path / "run")
    assert said == pytest.approx(found, rel=0.15)


@pytest.mark.slow
def test_so_it_is_with_networks_beside_the_model(tmp_path):
    """A teacher, a fake network with its average, and a loss after them that has none."""
    path = tmp_path / "run.gin"
    path.write_text(BESIDE)
    said, found = plan(path).most, held(path, tmp_path / "run")
    assert said == pytest.approx(found, rel=0.15)


def on_a_rank(number: int, port: int, path: str, out: str) -> None:
    """One of two: what it holds, and what a dry run of it says, which needs no other rank."""
    if number == 0:
        said = {ranks: plan(Path(path), ranks) for ranks in (1, 2)}
        found = {ranks: (each.most, {part.name: part.bytes for part in each.kept}) for ranks, each in said.items()}
        (Path(out) / "said").write_text(repr(found))
    os.environ |= processes.rank_environment(number, 2, port)
    with started():
        (Path(out) / f"held {number}").write_text(str(held(Path(path), Path(out) / "run")))


@pytest.mark.slow
def test_what_is_said_of_a_sharded_run_is_within_15_percent_of_what_each_rank_holds(tmp_path, encoder):
    """Gradients of all chunks but the last are whole on every rank; weights, optimizer and average are shared out."""
    path = file(tmp_path, SHARDED, encoder)
    processes.ranks(on_a_rank, (processes.free_port(), str(path), str(tmp_path)), 2)
    said = ast.literal_eval((tmp_path / "said").read_text())
    for number in range(2):
        found = int((tmp_path / f"held {number}").read_text())
        assert said[2][0] == pytest.approx(found, rel=0.15)
    split = 16 * (18 * 96 * 96 + 15 * 96)  # numbers in the blocks
    for name, copies in {"weights": 4, "optimizer": 8, "average constant_0.9": 4}.items():
        assert said[1][1][name] - said[2][1][name] == pytest.approx(copies * split / 2, rel=1e-3), name


HALF = """
rdm.train.model = @generators.pmf_h_256()
rdm.train.losses = [@losses.matching()]
rdm.train.data = None
rdm.train.steps = 2
rdm.train.samples_every = None
rdm.train.clip = 2.0
rdm.train.optimizer = @optimizers.adamw
generators.pmf_h_256.width = 640
generators.pmf_h_256.heads = 8
generators.pmf_h_256.depth = 8
generators.pmf_h_256.head_depth = 2
losses.matching.objective = @objectives.frechet()
losses.matching.battery = @rdm.battery()
losses.matching.reference = {'random_convolutions': 'real.npz'}
losses.matching.population = 4
losses.matching.chunk = 2
rdm.battery.members = [@representations.random_convolutions()]
representations.random_convolutions.channels = 3
"""


def alone(_: int, folder: str) -> None:
    """What a half-size pMF-H holds in a process of its own."""
    os.chdir(folder)
    Path("held").write_text(str(held(Path("half.gin"), Path("run"))))


@pytest.mark.slow
def test_a_step_of_pmf_h_at_half_its_size_holds_what_a_dry_run_says_within_10_percent(tmp_path, monkeypatch):
    """Half as wide, a sixth as deep, in two chunks."""
    monkeypatch.chdir(tmp_path)
    width = representations.build("random_convolutions", channels=3)(torch.zeros(1, 3, 8, 8)).shape[1]
    Reference.from_features(torch.randn(4 * width, width, generator=stream(0, "rows"))).export(
        Path("real.npz"), "features"
    )
    Path("half.gin").write_text(HALF)
    said = plan(Path("half.gin")).most
    processes.ranks(alone, (str(tmp_path),), 1)
    assert said == pytest.approx(int(Path("held").read_text()), rel=0.1)


ABSENT = """
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.matching()]
rdm.train.steps = 1000
rdm.train.device = 'cuda'
rdm.train.data = @datasets.files()
datasets.files.path = 'nowhere'
generators.mlp_flow.weights = 'nowhere'
generators.mlp_flow.solver = 'heun'
losses.matching.objective = @objectives.frechet()
losses.matching.reference = 'nowhere.safetensors'
losses.matching.battery = @rdm.battery()
losses.matching.population = 64
losses.matching.chunk = 16
rdm.battery.members = [@representations.classifier()]
representations.classifier.weights = 'nowhere'
"""


def test_a_plan_needs_neither_weights_nor_data_nor_the_device(tmp_path, monkeypatch, capsys):
    path = tmp_path / "absent.gin"
    path.write_text(ABSENT + "rdm.battery.members = [@representations.classifier(), @representations.pixels()]\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", str(path), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "847,744 parameters",
        "encoder conv_classifier 489 kB 122,186 parameters",
        "target under conv_classifier, pixels: the reference is not here: moments are assumed",
        "the data are not here",
        "on each of 2 ranks",
        "cuda, which is not here",
    ):
        assert part in said, (part, said)
    assert said.count("the reference is not here") == 1 == said.count("working memory is not counted")
    assert not (tmp_path / "runs").exists()


def test_what_a_dry_run_puts_aside_is_checked_as_a_run_does(tmp_path, capsys):
    path = tmp_path / "absent.gin"
    for text in ("rdm.train.device = 'gpu'", "rdm.train.data = 'digits'"):
        path.write_text(f"{ABSENT}{text}\n")
        assert main(["train", str(path), "--dry-run"]) == 2
        assert f"absent.gin:{ABSENT.count(chr(10)) + 1}: {text.split()[0]} must be" in capsys.readouterr().err


def test_a_plan_counts_what_follows_from_the_sizes(tmp_path):
    """Of linear layers: Adam keeps two numbers a weight, a pass takes two flops a weight and row, backward four."""
    path = tmp_path / "absent.gin"
    path.write_text(ABSENT)
    config.load(path)
    found = outlined().plan(2)
    kept = {each.name: each.bytes for each in found.kept}
    assert kept["optimizer"] == pytest.approx(2 * kept["weights"], rel=1e-3)
    assert kept["target under conv_classifier"] == 8 * (64 * 64 + 3 * 64 + 1)  # a root, the mean thrice, a trace
    regions = {region.name: region for region in found.regions}
    model = generators.build("mlp_flow")
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    first, last = regions["generator, first pass"], regions["generator, backward"]
    assert (first.times, last.times) == (2, 2)  # chunks of 16 of this rank's 32
    assert first.flops == 2 * 16 * weights, "Heun's last step, here the only one, is Euler's"
    assert last.flops == pytest.approx(2 * first.flops, rel=0.03)  # but for the gradient in the noise


def test_what_follows_from_written_numbers_is_known_without_values():
    """So a one-step JiT is counted as it runs: t = 1 is outside the published interval, and nothing is guided."""
    with (sizes := Sizes())():
        t = torch.full((4,), 0.75)
        inside = ((1 - t > 0.2) | (t == 0)) & (t < 0.9)
        assert bool(inside.all()) and not bool((t > 0.8).any())
        t += torch.rand(4)
        assert bool((t > 0.8).any()), "nobody knows, so the answer is yes"
    small = {"size": 8, "patch": 4, "width": 16, "depth": 2, "heads": 2, "bottleneck": 4, "context": 3, "start": 1}
    found = {}
    for end in (0.9, 1.0):
        with sizes(8):
            model, held = generators.build("jit", steps=1, guidance=3.0, interval=(0.0, end), **small), Held()
            with held:
                model(torch.randn(2, 3, 8, 8), torch.zeros(2).long())
            found[end] = held.flops
    assert found[1.0] == pytest.approx(2 * found[0.9], rel=0.01)


def test_a_copy_of_what_has_no_values_is_at_home_where_it_is():
    """Torch's own copies the place as well, with weak references that are then freed twice: the heap was corrupted."""
    with (sizes := Sizes())():
        table = torch.zeros(3)  # as a buffer, of which a deep copy of a module makes one
        assert copy.deepcopy(table).fake_mode is table.fake_mode is sizes._mode


@pytest.mark.parametrize("name", [name for name in objectives if objectives[name].examples])
def test_targets_have_the_sizes_of_real_ones(name):
    """Bound in small at other sizes, and by the real binding at this one."""
    objective = objectives.build(name, **objectives[name].examples[0])
    real = objective.bind(Real(torch.randn(500, 7, generator=stream(0, "rows"))))
    assert [tuple(tensor.shape) for tensor in tensors(real)] == bound(objective, 500, 7).shapes


@pytest.mark.slow
@pytest.mark.parametrize("name, parameters", [("webssl_dino_1b", 1.13e9), ("flux_vae", 34.3e6), ("dreamsim", 258e6)])
def test_encoders_whose_form_comes_with_their_weights_have_a_size_without_them(name, parameters):
    """One that looks for weights elsewhere is refused as ever."""
    pytest.importorskip({"webssl_dino_1b": "transformers", "flux_vae": "diffusers", "dreamsim": "timm"}[name])
    with (sizes := Sizes())():
        encoder = representations.build(name, weights="pretrained")
    with sizes(), torch.no_grad():
        width = encoder(torch.zeros(1, 3, 64, 64)).shape[1]
    assert encoder.module is not None
    assert sum(p.numel() for p in encoder.module.parameters()) == pytest.approx(parameters, rel=0.01)
    assert str(width) == representations[name].notes["dimension"]


def test_a_dry_run_does_not_draw_for_ever():
    """Torch's truncated normal draws until no value is outside, which those without values never say."""
    with Sizes()():
        assert torch.nn.init.trunc_normal_(torch.empty(3, 3), std=0.02).shape == (3, 3)


def test_joint_features_have_a_size_without_their_conditions(tmp_path):
    absent = str(tmp_path / "captions.safetensors")
    with (sizes := Sizes())():
        joint = representations.build("joint", representation="pixels", condition=absent)
    with sizes():
        assert joint(torch.zeros(2, 1, 4, 4), torch.zeros(2).long()).shape == (2, 16 + 1024)
    with pytest.raises(InputError, match="captions"):
        representations.build("joint", representation="pixels", condition=absent)


def test_a_target_of_rows_is_counted_without_its_reference(tmp_path):
    text = ABSENT.replace("@objectives.frechet()", "@objectives.mmd_nystrom()")
    path = tmp_path / "absent.gin"
    path.write_text(text)
    config.load(path)
    kept = {each.name: each for each in outlined().plan(1).kept}["target under conv_classifier"]
    assert "65,536 rows are assumed" in kept.note and kept.bytes
