"""Conditions: laws, tables on disk, trees of tensors in populations, sample grids, text-conditional training."""

import importlib.util
import re
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import rdm
from rdm.__main__ import main
from rdm.data.condition import Numbers, check_condition, described
from rdm.data.dataset import Dataset
from rdm.errors import CorruptFileError, InputError
from rdm.files.checkpoint import load_weights
from rdm.files.mapped import open_table
from rdm.generators import protocol
from rdm.generators.protocol import Generator, drawn
from rdm.judging.drawing import Drawing
from rdm.losses.flow_matching import FlowMatching
from rdm.losses.matching import Matching
from rdm.randomness import stream
from rdm.registry import conditions, datasets, generators
from rdm.training.loop import train
from rdm.training.watching import draw_grid

CAPTIONS = ["a dark square", "one bright ring on black", "a ring", "stripes from left to right", "noise",
            "the lower half is bright", "a bright square in the middle", "two dots"]  # fmt: skip
WIDTH, LENGTH, SIDE = 12, 6, 4


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Captioned(Generator):
    """Pools a context over its mask; a small network makes pictures of it."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.shape = (SIDE * SIDE,)
        self.net = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, SIDE * SIDE))

    def forward(self, noise, condition=None):
        mask = condition["mask"][..., None].to(noise)
        pooled = (condition["embedding"] * mask).sum(1) / mask.sum(1)
        return (self.net(pooled) + 0.2 * noise).sigmoid().view(-1, 1, SIDE, SIDE)


def pictures() -> Tensor:
    """The mean picture of each caption."""
    return torch.rand(len(CAPTIONS), 1, SIDE, SIDE, generator=source(5)) * 0.8 + 0.1


def captioned(shuffled: bool = False) -> Dataset:
    """Pictures near their caption's mean, and the captions' numbers; or others', as often."""
    ids = torch.arange(400) % len(CAPTIONS)
    items = (pictures()[ids] + 0.03 * torch.randn(400, 1, SIDE, SIDE, generator=source(6))).clamp(0, 1)
    return Dataset(
        "captioned", items, ids[torch.randperm(400, generator=source(7))] if shuffled else ids, len(CAPTIONS)
    )


@pytest.fixture
def folder(tmp_path):
    """A file of captions, encoded by random embeddings of their words: contexts with masks, and a table of means."""
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    words = torch.randn(997, WIDTH, generator=source(3))
    contexts, mask = torch.zeros(len(CAPTIONS), LENGTH, WIDTH), torch.zeros(len(CAPTIONS), LENGTH, dtype=torch.bool)
    for k, caption in enumerate((tmp_path / "captions.txt").read_text().splitlines()):
        ids = [zlib.crc32(word.encode()) % 997 for word in caption.split()]
        contexts[k, : len(ids)], mask[k, : len(ids)] = words[ids], True
    spoilt = {"short": mask[:, :-1].clone(), "empty": mask & (torch.arange(len(mask)) != 2)[:, None]}
    save_file({"context": contexts, "mask": mask, **spoilt}, tmp_path / "contexts.safetensors")
    tau = torch.stack([row[keep].mean(0) for row, keep in zip(contexts, mask, strict=True)])
    tau = nn.functional.normalize(tau, dim=1).numpy()
    np.save(tmp_path / "tau.npy", tau)
    np.save(tmp_path / "five.npy", tau[:5])
    with generators.temporarily(), datasets.temporarily():
        generators.register("captioned")(Captioned)
        datasets.register("captioned")(captioned)
        yield tmp_path


CONFIGURATION = """
rdm.train.model = @generators.captioned()
rdm.train.losses = [@losses.matching()]
rdm.train.data = @datasets.captioned()
rdm.train.steps = 80
rdm.train.log_every = 80
rdm.train.samples_every = 80
rdm.train.optimizer = @optimizers.adam
optimizers.adam.lr = 0.03
losses.matching.objective = @objectives.energy()
losses.matching.population = 64
losses.matching.chunk = 24
losses.matching.conditions = @conditions.embeddings()
conditions.embeddings.path = '{folder}/contexts.safetensors'
conditions.embeddings.tensor = 'context'
conditions.embeddings.mask = 'mask'
conditions.embeddings.ids = True
losses.matching.battery = @rdm.battery()
rdm.battery.members = [@representations.joint()]
representations.joint.representation = 'pixels'
representations.joint.condition = '{folder}/tau.npy'
representations.joint.part = 'id'
"""


def train_text(folder: Path, name: str, *binds: str, without: str = "nothing") -> int:
    """Status of `rdm train` with some lines left out."""
    lines = [line for line in CONFIGURATION.splitlines() if not re.search(without, line)]
    (folder / "text.gin").write_text("\n".join(lines).format(folder=folder))
    options = [word for bind in binds for word in ("--bind", bind)]
    return main(["train", str(folder / "text.gin"), "--out", str(folder / name), *options])


def error_of(folder: Path, name: str) -> float:
    """Mean squared distance of what a run's generator makes of each caption from the caption's mean picture."""
    model = Captioned()
    load_weights(model, str(folder / name))
    table = conditions.build("embeddings", path=str(folder / "contexts.safetensors"), tensor="context", mask="mask")
    with torch.no_grad():
        made = model(torch.zeros(len(CAPTIONS), SIDE * SIDE), table.read(torch.arange(len(CAPTIONS))))
    return float((made - pictures()).square().mean())


def test_a_text_conditional_generator_learns_what_captions_mean_by_the_joint_law(folder):
    assert train_text(folder, "true") == 0
    assert train_text(folder, "shuffled", "datasets.captioned.shuffled = True") == 0
    true, shuffled = error_of(folder, "true"), error_of(folder, "shuffled")
    assert true < 0.01 < 0.03 < shuffled, (true, shuffled)
    assert (folder / "true" / "samples" / "00000080.png").exists()


def test_a_text_conditional_run_is_sampled_with_the_captions_that_it_was_trained_on(folder):
    assert train_text(folder, "run", "rdm.train.steps = 2") == 0
    assert main(["sample", str(folder / "run"), "-n", "70", "--out", str(folder / "items.npz")]) == 0
    asked = conditions.build(
        "embeddings", path=str(folder / "contexts.safetensors"), tensor="context", mask="mask", ids=True
    )
    model = Captioned()
    load_weights(model, str(folder / "run"))
    expected = torch.cat([Drawing(model, 70, conditions=asked).block(k).images for k in range(2)])
    with np.load(folder / "items.npz") as held:
        items = torch.from_numpy(held[held.files[0]]).movedim(3, 1) / 255
        torch.testing.assert_close(items, expected, rtol=0, atol=0.51 / 255)


LABELS = "losses.matching.conditions = @conditions.labels()"


@pytest.mark.parametrize("binds, message", [
    (["representations.joint.condition = '{folder}/five.npy'"], "numbers from 0 to 4, rows of the table; got 0 to 7"),
    (["generators.captioned.width = 7"], r"cannot take these conditions .*'embedding'\] float32 \(2, 6, 12\), .*2x12"),
    (["conditions.embeddings.mask = None", "conditions.embeddings.ids = False"], "cannot take these conditions"),
    (["conditions.embeddings.mask = 'short'"], r"whole numbers or truth values \(8, 6\).*bool \(8, 5\)"),
    (["conditions.embeddings.mask = 'empty'"], "leaves row 2 of .* without a token"),
    (["conditions.embeddings.mask = 'context'"], "must be whole numbers or truth values"),
    (["conditions.embeddings.tensor = 'contexts'"], "holds the tensors context, empty, mask, short; got 'contexts'"),
    (["conditions.embeddings.law = [0.5, 0.5]"], "must give 8 probabilities, one a condition; got 2"),
    (["representations.joint.part = 'caption'"], r"one of \['embedding', 'mask', 'id'\]; got part 'caption'"),
    ([LABELS, "conditions.labels.classes = 9"], r"cannot take these conditions \(int64 \(2,\)\)"),
    ([LABELS, "conditions.labels.classes = 20", "rdm.train.model = @generators.mlp_flow()"],
     "the generator takes 10 classes; got conditions of 20"),
])  # fmt: skip
def test_wrong_pairings_are_one_line_before_the_first_step(folder, capsys, binds, message):
    dropped = "embeddings" if LABELS in binds else "captioned.width"
    assert train_text(folder, "run", *(bind.format(folder=folder) for bind in binds), without=dropped) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(message, said) and len(said.splitlines()) == 1, said
    assert not (folder / "run" / "log.jsonl").exists()


def test_a_member_is_tried_with_what_the_generator_is_asked_for(folder):
    """Real items have captions of the table, the generator is asked for others."""
    five, table = str(folder / "five.npy"), str(folder / "contexts.safetensors")
    encode = rdm.representation("joint", representation="pixels", condition=five, beta=1.0, part="id")
    asked = conditions.build("embeddings", path=table, tensor="context", mask="mask", ids=True)
    data = replace(captioned(), labels=torch.zeros(400).long())
    loss = Matching(rdm.objective("energy"), rdm.Battery([encode]), 16, conditions=asked)
    with pytest.raises(InputError, match="'joint_pixels' cannot take the generator's conditions .*from 0 to 4, rows"):
        train(model=Captioned(), losses=[loss], data=data, steps=1, out=folder / "run")


@pytest.mark.parametrize("name", rdm.names("conditions"))
def test_every_condition_draws_by_seed_and_reads_rows(name):
    for example in conditions[name].examples:
        asked = conditions.build(name, **example).fitted(torch.arange(3))
        which, given = asked.draw(9, source(1)), asked.read(asked.draw(9, source(1)))
        check_condition(which, 9, name)
        assert torch.equal(which, asked.draw(9, source(1)))
        if given is not None:
            assert not torch.equal(asked.draw(400, source(1)), asked.draw(400, source(2)))
            assert torch.equal(asked.read(which[2:5]), given[2:5])


@pytest.mark.parametrize("law, expected", [
    ("uniform", [0.25] * 4), ([1, 0, 2, 1], [0.25, 0, 0.5, 0.25]), ("data", [0, 0.2, 0.8, 0]),
    ("{folder}/law.npy", [0, 0.5, 0, 0.5]),
])  # fmt: skip
def test_labels_follow_their_law(tmp_path, law, expected):
    np.save(tmp_path / "law.npy", np.array([0, 3.0, 0, 3.0]))
    law = law.format(folder=tmp_path) if isinstance(law, str) else law
    asked = conditions.build("labels", classes=4, law=law).fitted(torch.tensor([1, 2, 2, 2, 2]))
    n = 20_000
    shares = torch.bincount(asked.draw(n, source()), minlength=4) / n
    for got, wanted in zip(shares.tolist(), expected, strict=True):
        assert abs(got - wanted) <= 4 * (wanted * (1 - wanted) / n) ** 0.5


def test_laws_that_are_none():
    for options, message in (
        ({}, "number of different ones"),
        ({"classes": 3, "law": [1.0, 1.0]}, "must give 3 probabilities, one a condition; got 2"),
        ({"law": [0.0, 0.0]}, "not negative and not all zero"),
        ({"law": [1.0, -1.0]}, "not negative and not all zero"),
        ({"law": "zipf"}, "expected a file at zipf; there is none"),
    ):
        with pytest.raises(InputError, match=message):
            conditions.build("labels", **options)
    data = conditions.build("labels", classes=3, law="data")
    for real, message in ((torch.tensor([0, 3]), "from 0 to 2; got 0 to 3"), (torch.rand(2), "got float32")):
        with pytest.raises(InputError, match=message):
            data.fitted(real)
    with pytest.raises(InputError, match="are drawn where real items have conditions"):
        data.fitted(None).draw(3, source())


class Plain(Generator):
    """Gives its noise."""

    shape, classes = (3,), 7

    def forward(self, noise, condition=None):
        return noise


def test_the_default_draws_noise_and_then_uniform_classes_from_one_stream():
    noise, labels = drawn(Plain(), Plain().conditions, 20, slice(0, 20), lambda k: stream(3, "noise", 5, k))
    g = stream(3, "noise", 5, 0)
    assert torch.equal(noise, torch.randn(20, 3, generator=g))
    assert torch.equal(labels, torch.randint(7, (20,), generator=g))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_any_number_of_ranks_draws_the_same_population(monkeypatch, ranks):
    monkeypatch.setattr(protocol, "BLOCK", 12)  # four items
    asked, ends = Numbers(50, [1.0] * 50), [23 * r // ranks for r in range(ranks + 1)]
    whole = drawn(Plain(), asked, 23, slice(0, 23), lambda k: stream(0, k))
    parts = [drawn(Plain(), asked, 23, slice(a, b), lambda k: stream(0, k)) for a, b in pairwise(ends)]
    for side in (0, 1):
        assert torch.equal(torch.cat([part[side] for part in parts]), whole[side])
    assert len(whole[0].unique()) == 23 * 3


def test_tables_in_one_file_and_in_shards_are_the_same(tmp_path):
    rows = torch.randn(10, 4, 3, generator=source()).bfloat16()
    mask = torch.rand(10, 4, generator=source()) < 0.7
    mask[:, 0] = True
    save_file({"only": rows}, tmp_path / "whole.safetensors")
    np.save(tmp_path / "mask.npy", mask.numpy())
    (tmp_path / "shards").mkdir()
    for k, part in enumerate(rows.split([3, 3, 4])):
        save_file({"only": part.clone()}, tmp_path / "shards" / f"{k}.safetensors")
    which = torch.tensor([9, 0, 3, 3, 5, 6, 2])
    for path in ("whole.safetensors", "shards"):
        asked = conditions.build("embeddings", path=str(tmp_path / path), mask=str(tmp_path / "mask.npy"), ids=True)
        given = asked.read(which)
        assert asked.count == 10
        assert described(given) == "['embedding'] bfloat16 (7, 4, 3), ['mask'] bool (7, 4), ['id'] int64 (7,)"
        assert torch.equal(given["embedding"], rows[which]) and torch.equal(given["mask"], mask[which])
        assert torch.equal(given["id"], which)
    with pytest.raises(InputError, match="rows from 0 to 9; asked for 3 to 10"):
        asked.read(torch.tensor([3, 10]))
    pairs = str(tmp_path / "pairs.npy")
    np.save(pairs, np.array([[0, 9], [0, 8], [1, 8]]))
    both = conditions.build("pairs", path=pairs, captions=asked).read(torch.tensor([2, 0]))
    assert both["item"].tolist() == [1, 0] and both["id"].tolist() == [8, 9]
    assert torch.equal(both["embedding"], rows[[8, 9]])
    with pytest.raises(InputError, match="captions below 9; got 0 and captions up to 9"):
        conditions.build("pairs", path=pairs, captions=conditions.build("labels", classes=9))


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY no")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    (tmp_path / "mixed").mkdir()
    for k in (1, 2):
        np.save(tmp_path / "mixed" / f"{k}.npy", np.zeros((2, k)))
    for name, kind, message in (
        ("x.npy", CorruptFileError, "no .npy file of numbers"),
        ("x.safetensors", CorruptFileError, "no safetensors file"),
        ("empty", InputError, "holds no safetensors or .npy file"), ("none.npy", InputError, "holds an empty table"),
        ("absent.npy", InputError, "expected a file at"), ("mixed", InputError, "must hold rows as"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            open_table(tmp_path / name)


@pytest.mark.parametrize("form", ["mapping", "tuple", "nested"])
def test_conditions_of_several_tensors_go_through_chunks(form):
    """One pass and chunks give the same gradient, and it is plain autograd's."""
    n, net = 20, nn.Linear(5, 4).double()
    noise, a, b = (torch.randn(n, 5, generator=source(k), dtype=torch.float64) for k in range(3))
    ids = torch.arange(n) % 3
    condition = {"mapping": {"a": a, "b": b, "id": ids}, "tuple": (a, b, ids), "nested": {"ab": (a, b), "id": ids}}[
        form
    ]

    def generate(z, c):
        first, second = c["ab"] if form == "nested" else (c["a"], c["b"]) if form == "mapping" else c[:2]
        return net(z + first * second)

    part = 2 if form == "tuple" else "id"
    encode = rdm.representation("joint", representation="identity", condition=3, beta=1.5, part=part)
    real, of_real = torch.randn(30, 4, generator=source(4), dtype=torch.float64), torch.arange(30) % 3
    found = []
    for chunk in (None, 6):
        population = rdm.Population(rdm.objective("energy"), encode, real, condition=of_real, chunk=chunk)
        net.zero_grad()
        population.backward(generate, noise, condition)
        found.append(net.weight.grad.clone())
    net.zero_grad()
    features = torch.cat([net(noise + a * b), 1.5 * nn.functional.one_hot(ids, 3)], 1)
    rdm.distance("energy", features, encode(real, of_real)).backward()
    for got in found:
        torch.testing.assert_close(got, net.weight.grad, rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match=r"the condition\['id'\] for the noise must have 20 rows, one an item; got 3"):
        population.backward(generate, noise, {"a": a, "b": b, "id": ids[:3]})


@pytest.mark.parametrize("classes, shown", [(10, 80), (2, 16), (None, 64), (1000, 64)])
def test_sample_grids_are_bounded_whatever_the_number_of_classes(tmp_path, classes, shown):
    model, sizes, asked = rdm.generator("mlp_flow", width=8, depth=1, shape=(1, 2, 2), classes=classes), [], []
    model.register_forward_pre_hook(lambda _, inputs: (sizes.append(len(inputs[0])), asked.append(inputs[1])) and None)
    draw_grid(tmp_path, model, [], 0, seed=0, shown=pytest.fail)
    assert sum(sizes) == shown and max(sizes) <= 10 and (tmp_path / "samples" / "00000000.png").exists()
    if classes == 10:
        assert torch.equal(torch.cat(asked), torch.arange(10).repeat(8))
    if classes == 1000:
        assert len(torch.cat(asked).unique()) > 50


@pytest.mark.parametrize("every", [0, None])
def test_a_run_without_sample_grids(tmp_path, every):
    model, losses = rdm.generator("mlp_flow", width=8, depth=1), [FlowMatching(batch=8)]
    train(model=model, losses=losses, data=rdm.dataset("digits"), steps=2, out=tmp_path, samples_every=every)
    assert not (tmp_path / "samples").exists() and (tmp_path / "log.jsonl").exists()


NEWCOMER = """
import torch

from rdm.api import Conditions, Positive, conditions


@conditions.register("tones")
class Tones(Conditions):
    'One token, loud or soft: no table, and no end of different ones.'

    def __init__(self, loudness: Positive = 1.0):
        self.loudness = loudness

    def draw(self, n, generator):
        return self.loudness * torch.randn(n, 12, generator=generator, device=generator.device)

    def read(self, drawn):
        return {"embedding": drawn[:, None], "mask": torch.ones(len(drawn), 1, dtype=torch.bool, device=drawn.device)}
"""


def test_a_newcomers_condition_is_one_file(folder):
    (folder / "tones.py").write_text(NEWCOMER)
    with conditions.temporarily():
        spec = importlib.util.spec_from_file_location("tones", folder / "tones.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        binds = ["losses.matching.conditions = @conditions.tones()", "conditions.tones.loudness = 2.0",
                 "rdm.battery.members = [@representations.pixels()]", "rdm.train.steps = 2"]  # fmt: skip
        assert train_text(folder, "run", *binds, without="embeddings|joint") == 0
    assert (folder / "run" / "samples" / "00000002.png").exists()
