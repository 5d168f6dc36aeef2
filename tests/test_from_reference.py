"""Training from a reference: as from the items it was made of; what it lacks is refused before a run begins."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rdm
from rdm.__main__ import main
from rdm.app.judging import make_reference
from rdm.data.dataset import Dataset
from rdm.errors import InputError, MismatchError
from rdm.files.checkpoint import read_checkpoint
from rdm.losses.matching import Matching
from rdm.matching.real import Real
from rdm.population.population import Population
from rdm.randomness import seeded
from rdm.references.file import Reference
from rdm.references.pairing import as_reference
from rdm.training.loop import train
from tests.test_main import refused
from tests.test_real import Elsewhere
from tests.test_train import leaves

SHAPE = 1, 6, 6
OBJECTIVES = [
    ("frechet", {}),
    ("mmd_nystrom", {"landmarks": 20}),
    ("mmd_rff", {}),
    ("sliced_wasserstein", {}),
    ("mmd", {}),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with references of 300 grey pictures: whole, a sample of 64, and moments of two encoders."""
    folder = tmp_path_factory.mktemp("references")
    pictures = np.random.default_rng(0).integers(0, 250, (300, 6, 6)).astype(np.uint8)
    np.savez(folder / "data.npz", images=pictures, labels=np.arange(300) % 3)
    for name, sample in (("whole", 16_384), ("sample", 64)):
        make_reference([folder / "data.npz"], folder / f"{name}.safetensors", battery="untrained", sample=sample)
    for member in ("pixels", "pca"):
        Reference.load(folder / "whole.safetensors").export(folder / f"{member}.npz", member)
    return folder


class Small(rdm.Generator):
    """Pictures of 6 x 6 from noise."""

    shape, classes = (5,), None

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        with seeded(0):
            self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 36), nn.Sigmoid()).to(dtype)

    def forward(self, noise, condition=None):
        return self.layers(noise.to(self.layers[0].weight.dtype)).view(-1, *SHAPE)


def items_of(file: Reference) -> torch.Tensor:
    """The pictures themselves, in the file's order: rows of the encoder that leaves them as they are."""
    return file.members["pixels"].rows.view(-1, *SHAPE)


def gradient(population: Population, model: nn.Module | None = None) -> torch.Tensor:
    model = model or Small(torch.float64)
    source = torch.Generator().manual_seed(3)
    population.backward(model, torch.randn(50, 5, generator=source), generator=torch.Generator().manual_seed(0))
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def run(out: Path, loss: Matching, data: Dataset | None = None, **options) -> dict[str, torch.Tensor]:
    plain = {"steps": 5, "optimizer": partial(torch.optim.Adam, lr=1e-2), "log_every": 1, "checkpoint_every": 2}
    with seeded(0):
        return train(model=Small(), losses=[loss], data=data, out=out, **{**plain, **options}).state_dict()


@pytest.mark.parametrize("name, example", OBJECTIVES)
def test_training_from_the_file_and_from_memory_gives_the_same_bits(name, example, made, tmp_path):
    path = made / "whole.safetensors"
    items = items_of(Reference.load(path))
    matching = partial(Matching, rdm.objective(name, **example), rdm.Battery((rdm.representation("pixels"),)), 40, 16)
    memory = rdm.EMA(0.5)
    here = run(tmp_path / "memory", matching(memory), Dataset("items", items, torch.zeros(len(items)).long(), 1))
    there = run(tmp_path / "file", matching(memory, reference=str(path)))
    assert all(torch.equal(a, b) for a, b in zip(here.values(), there.values(), strict=True))
    assert not torch.equal(here["layers.0.bias"], Small().state_dict()["layers.0.bias"])


def test_encoders_come_from_the_file_by_its_name_and_with_their_weights(made):
    """Without a battery, with that of its name, and with its members: one population."""
    path = made / "whole.safetensors"
    file = Reference.load(path)
    expected = gradient(Population("energy", reference=path))
    assert expected.norm() > 0
    members = [
        "pixels",
        rdm.representation("pca", components=16),
        rdm.representation("random_convolutions", channels=None),
    ]
    for battery, reference in (
        ("untrained", str(path)),
        (rdm.battery("untrained"), file),
        (members, {name: path for name in file.members if name != "held_out_convolutions"}),
    ):
        assert torch.equal(gradient(Population("energy", battery, reference=reference)), expected)
    pca = Population("energy", reference=path).battery.members[1]
    assert torch.equal(pca.module.matrix, file.members["pca"].module["matrix"])
    with pytest.raises(
        InputError, match="'pca' is estimated on data, and .*pca.npz does not hold .* give the items too"
    ):
        Population("frechet", members[1], reference=made / "pca.npz")
    other = Population("frechet", members[1], items_of(file), reference=made / "pca.npz").battery.members[0]
    assert torch.equal(other.module.matrix, members[1].fitted(items_of(file)).module.matrix)
    with pytest.raises(MismatchError, match="was measured with 'pca' of fingerprint"):
        Population("frechet", members[1].fitted(items_of(file)), reference=path)


@pytest.mark.parametrize("correction", [0, 1])
def test_moments_alone_train_frechet_as_rows_stretched_to_them_do(correction, made):
    rows = items_of(Reference.load(made / "whole.safetensors")).double()
    stretch = (len(rows) / (len(rows) - 1)) ** 0.5 if correction == 0 else 1.0
    stretched = rows.mean(0) + (rows - rows.mean(0)) * stretch
    objective = rdm.objective("frechet", correction=correction)
    expected = gradient(Population(objective, rdm.Representation("pixels", nn.Flatten()), stretched))
    for reference in (made / "pixels.npz", {"pixels": made / "pixels.npz"}):
        found = gradient(Population(objective, "pixels", reference=reference))
        assert (found - expected).norm() <= 1e-10 * expected.norm()


def test_references_of_moments_are_paired_by_name(made):
    file = Reference.load(made / "whole.safetensors")
    battery = [rdm.representation("pixels"), Population("energy", reference=file).battery.members[1]]
    expected = gradient(Population("frechet", battery, reference=file))
    moments = {name: str(made / f"{name}.npz") for name in ("pca", "pixels")}
    found = gradient(Population("frechet", battery, reference=moments))
    assert (found - expected).norm() <= 1e-9 * expected.norm()


def test_features_are_a_reference_of_one_encoder():
    """With weights as with rows repeated; judged by its Gaussian fit and by its rows."""
    source = torch.Generator().manual_seed(0)
    rows, x = torch.rand(30, 36, generator=source).double(), torch.rand(20, 36, generator=source)
    expected = gradient(Population("energy", "pixels", rows.view(-1, *SHAPE)))
    assert torch.equal(gradient(Population("energy", "pixels", reference=Reference.from_features(rows))), expected)
    weights = torch.arange(30) % 3
    repeated, weighted = (
        Reference.from_features(rows.repeat_interleave(weights, 0)),
        Reference.from_features(rows, weights),
    )
    for objective in (rdm.objective("energy"), rdm.objective("mmd_rff", bandwidth=1.0)):
        both = [gradient(Population(objective, "pixels", reference=r)) for r in (weighted, repeated)]
        torch.testing.assert_close(*both, rtol=1e-9, atol=1e-12)
    fits = [reference.real().fit() for reference in (weighted, repeated)]
    ratio = 1 - float((weights / weights.sum()).square().sum())  # Kish's, instead of one row's in so many
    torch.testing.assert_close(fits[0].covariance * ratio, fits[1].covariance * (1 - 1 / int(weights.sum())))
    assert rdm.metric("fd")(x, Reference.from_features(rows).real()).value > 0
    assert rdm.metric("sw")(x, Reference.from_features(rows).real()) == rdm.metric("sw")(x, Real.of(rows))
    for call, message in (
        (lambda: rdm.metric("sw")(x, weighted.real()), "sw takes a reference whose rows weigh alike"),
        (lambda: weighted.save("never.safetensors"), "has no items; write its moments by export"),
        (lambda: Reference.from_features(rows[:1]), "at least 2 rows; got 1"),
        (lambda: Reference.from_features(rows, torch.arange(30) == 3), "at least 2 rows of weight above 0; got 1"),
        (lambda: Reference.from_features(rows / 0), "reference: NaN or infinity in 30 of 30 rows"),
        (lambda: weighted.real("pixels"), "expected a member, one of features; got 'pixels'"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_rows_elsewhere_and_moments_keep_what_a_checkpoint_needs(made):
    """The state of a population is checked by the form of a row, which no reference needs to hold."""
    rows = items_of(Reference.load(made / "whole.safetensors")).flatten(1)

    class OnDisk(Reference):
        def real(self, member=None, device="cpu"):
            return Real(Elsewhere(rows))

    disk = OnDisk(Reference.from_features(rows).members, {})
    for objective, reference in (("frechet", made / "pixels.npz"), ("mmd_rff", disk)):
        for memory in ("ema", "queue"):
            first, second = (Population(objective, "pixels", reference=reference, memory=memory) for _ in range(2))
            gradient(first)
            second.restore(first.state())
            assert torch.equal(first.terms[0].past.value, second.terms[0].past.value)


def test_floors_are_distances_of_fresh_rows_under_the_objective(made):
    file = Reference.load(made / "whole.safetensors")
    population = Population("energy", reference=made / "whole.safetensors")
    fresh, rows = file.members["pixels"].fresh, file.members["pixels"].rows
    floors = population.floors(len(fresh))
    assert list(floors) == ["pixels", "pca", "random_convolutions"]
    assert floors["pixels"] == pytest.approx(float(rdm.distance("energy", fresh, rows)), rel=1e-9)
    assert 0 < floors["pixels"] < population.floors(len(fresh) // 4)["pixels"]
    for balance in ("gated", "uniform"):
        weighed = Population("energy", reference=made / "whole.safetensors", balance=balance)
        assert weighed.balance == rdm.balance(balance) and gradient(weighed).isfinite().all()
    with pytest.raises(
        InputError,
        match="floor of a population of 3000 under 'pixels' needs as many fresh .* holds [0-9]+; make one by rdm",
    ):
        population.floors(3000)
    with pytest.raises(InputError, match="under 'pixels' .* the reference holds 0"):
        Population("energy", "pixels", items_of(file)).floors(3)


def test_items_that_are_not_the_references_are_refused(made):
    for shape, message in (((20, 1, 5, 5), r"of shape \[1, 5, 5\]; .*whole.safetensors was made of \[1, 6, 6\]"),
                           ((20, 3, 6, 6), r"of shape \[3, 6, 6\]")):  # fmt: skip
        with pytest.raises(MismatchError, match=message):
            Population("energy", "pixels", torch.rand(shape), reference=made / "whole.safetensors")
    with pytest.raises(MismatchError, match="'pixels' gives 25 features; .*pixels.npz has 36"):
        Population("frechet", "pixels", torch.rand(20, 1, 5, 5), reference=made / "pixels.npz")
    with pytest.raises(InputError, match="a mapping of references by encoder is empty"):
        as_reference({})
    with pytest.raises(
        InputError, match="pixels.npz has no member 'a'|the battery has 'pixels' now; .*made without it"
    ):
        Population("frechet", "pixels", reference={"a": made / "pixels.npz"})


CONFIG = """
rdm.train.model = @generators.mlp_flow()
generators.mlp_flow.shape = (1, 6, 6)
generators.mlp_flow.width = 16
generators.mlp_flow.depth = 1
rdm.train.optimizer = @optimizers.adam
rdm.train.losses = [@losses.matching()]
rdm.train.steps = 4
rdm.train.checkpoint_every = 2
losses.matching.objective = @objectives.frechet()
losses.matching.population = 40
losses.matching.memory = @memories.ema()
losses.matching.reference = 'whole.safetensors'
"""


@pytest.fixture
def at(made, tmp_path, monkeypatch):
    """The folder of a user who has references and a configuration."""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gin").write_text(CONFIG)
    return tmp_path


def bound(*bindings: str) -> list[str]:
    return [word for binding in bindings for word in ("--bind", binding)]


PIXELS = "losses.matching.battery = @rdm.battery()", "rdm.battery.members = [@representations.pixels()]"
BOTH = PIXELS[0], "rdm.battery.members = [@representations.pixels(), @representations.pca()]"
NPZ = *PIXELS, "losses.matching.reference = 'pixels.npz'"


def objective(name: str) -> str:
    return f"losses.matching.objective = @objectives.{name}()"


def test_a_run_needs_no_data_set(at):
    assert main(["train", "x.gin"]) == 0 and main(["train", "x.gin", "--out", "npz", *bound(*NPZ)]) == 0
    logs = [json.loads((at / name / "log.jsonl").read_text().splitlines()[-1]) for name in ("runs/x", "npz")]
    assert {name for name in logs[0] if name.startswith("distance/")} == {
        "distance/pixels", "distance/pca", "distance/random_convolutions"}  # fmt: skip
    assert "matching.reference = 'whole.safetensors'" in (at / "runs/x/config.gin").read_text()
    assert (at / "runs/x/samples/00000000.png").exists() and logs[1]["distance/pixels"] > 0


ONLY = "reference; pixels.npz holds moments only; make it by rdm reference"


def file(name: object) -> str:
    return f"losses.matching.reference = {name!r}"


WRONG = {
    "npz under mmd": ((*NPZ, objective("mmd")), f"needs rows of the {ONLY}"),
    "npz under sliced": ((*NPZ, objective("sliced_wasserstein")), f"a sliced distance needs rows of the {ONLY}"),
    "npz under nystrom": ((*NPZ, objective("mmd_nystrom")), f"mmd_nystrom needs .* of the {ONLY}"),
    "npz for two": ((*BOTH, NPZ[2]), "pixels.npz is of one encoder, the battery has 2; give a reference for each"),
    "npz without battery": (NPZ[2:], "pixels.npz does not say what encoders it is of; give the battery"),
    "npz of another": (
        (*PIXELS, file("pca.npz")),
        "items of shape .* have 36 features under 'pixels', the reference's 16",
    ),
    "a sample": (
        (file("sample.safetensors"), objective("mmd_nystrom")),
        "mmd_nystrom needs every row of the reference; sample.safetensors holds a sample of 64 .* DATA --rows all",
    ),
    "settings": (
        (*BOTH, "representations.pca.components = 8"),
        "'pca' of settings .*16.*; now it has .*8.*; measure the reference again",
    ),
    "a member more": (
        (PIXELS[0], "rdm.battery.members = [@representations.whitening()]"),
        "has 'whitening' now; whole",
    ),
    "too few": ((*BOTH, file({"pixels": "pixels.npz"})), "the battery has 'pca' now; .*without it"),
    "no file": ((file("none.npz"),), "none.npz"),
    "cut file": ((file("cut.safetensors"),), "cut.safetensors .* truncated or altered"),
    "neither": ((file(None),), "needs a battery, or a reference whose file names one"),
    "no data": ((*PIXELS, file(None)), "Matching reads real items and there are none; bind rdm.train.data"),
    "no data for another": (
        ("rdm.train.losses = [@losses.matching(), @losses.classification()]",),
        "Classification reads real items and there are none; bind rdm.train.data",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_pairings_are_one_line_before_anything_is_written(wrong, at, capsys):
    bindings, message = WRONG[wrong]
    (at / "cut.safetensors").write_bytes((at / "whole.safetensors").read_bytes()[:-50])
    line = refused(capsys, "train", "x.gin", "--out", "run", *bound(*bindings))
    assert re.search(message, line), line
    assert not (at / "run").exists() or [path.name for path in (at / "run").rglob("*")] == [".lock"]


def test_resumed_with_the_same_file_it_goes_on_and_with_another_it_is_refused(at, capsys):
    assert main(["train", "x.gin", "--out", "whole"]) == main(["train", "x.gin", "--out", "cut"]) == 0
    last = at / "cut/checkpoints/00000004"
    for path in [*last.iterdir(), at / "cut/result.json"]:
        path.unlink()
    last.rmdir()
    original = (at / "whole.safetensors").read_bytes()
    (at / "whole.safetensors").write_bytes((at / "sample.safetensors").read_bytes())
    line = refused(capsys, "train", "x.gin", "--out", "cut", "--resume")
    assert "checkpoint 00000002: the state of a population of {" in line and "'reference': '" in line
    (at / "whole.safetensors").write_bytes(original)
    assert main(["train", "x.gin", "--out", "cut", "--resume"]) == 0
    ends = [leaves(read_checkpoint(at / name / "checkpoints/00000004")[1]) for name in ("whole", "cut")]
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*ends, strict=True))
