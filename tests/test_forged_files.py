"""Files whose hashes are right and whose content is not: one line and status 2, or the answer that the file gave.

What cannot be told from another valid file (a row that is another row, a seed that is another seed) is not a forgery
of these tests; all that a description, a count, an order or a second entry of the file contradicts is.
"""

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rdm
import rdm.training.loop
from rdm.__main__ import main
from rdm.app.judging import make_reference
from rdm.data.dataset import Dataset
from rdm.errors import InputError
from rdm.files.checkpoint import read_checkpoint, snapshot, write_checkpoint
from rdm.files.store import digest, pack, read_tensors, write_json, write_tensors
from rdm.judging.samples import Rows, judge
from rdm.losses.matching import Matching
from rdm.matching.memory import EMA, Queue
from rdm.matching.representation import Battery
from rdm.references import measure
from rdm.references.encoded import encoded
from rdm.references.file import Reference
from rdm.references.pairing import battery_of
from rdm.references.partial import sound_states
from rdm.registry import generators, representations
from tests.forge import altered, forgeries, places, put, trees

shares = pytest.mark.parametrize("share", [0.05, pytest.param(0.2, marks=pytest.mark.slow)])


def each(forged: Iterable, share: float) -> list:
    """A share of the forgeries, drawn."""
    found = list(forged)
    assert len(found) > 20
    return random.Random(0).sample(found, max(20, round(share * len(found))))


def holds(answer: Callable[[Path], Any], whole: Path, forged: Iterable, at: Path) -> tuple[int, int]:
    """Every forgery is refused in a line or gives the answer of the whole file; counts of both."""
    expected, refused, same = answer(whole), 0, 0
    for what, write in forged:
        write(at)
        try:
            found = answer(at)
        except InputError as error:
            named = at.name in str(error) or f"{at.stem}.rows" in str(error)
            assert named and "\n" not in str(error) and len(str(error)) < 600, (what, error)
            refused += 1
        else:
            assert found == expected, what
            same += 1
    return refused, same


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reference of features, one of pictures under a fitted battery, and moments."""
    at = tmp_path_factory.mktemp("forged")
    source = np.random.default_rng(0)
    np.savez(at / "rows.npz", features=source.normal(1, 1, (60, 3)).astype(np.float32), labels=np.arange(60) % 2)
    np.savez(at / "pictures.npz", images=source.integers(0, 256, (90, 4, 4), dtype=np.uint8), labels=np.arange(90) % 3)
    for data, out, *options in (
        ("rows.npz", "rows.safetensors", "--per-class", "--landmarks", "4", "--split", "0.4", "--rows", "all"),
        ("pictures.npz", "pictures.safetensors", "--battery", "untrained"),
        ("rows.safetensors", "moments.npz"),
    ):
        assert main(["reference", str(at / data), "--out", str(at / out), *options]) == 0
    return at


@shares
def test_a_reference_of_features(folder, tmp_path, share):
    x = {"features": torch.randn(30, 3, generator=torch.Generator().manual_seed(1))}

    shutil.copytree(folder / "rows.rows", tmp_path / "r.rows")

    def answer(path):
        file = Reference.load(path)
        every = [rows.tolist() for rows, _ in file.members["features"].real().every("it").chunks()]
        return judge(Rows(x, {"8-bit"}), file, ["fd", "mmd", "fdr"]).metrics, every

    whole = folder / "rows.safetensors"
    # without the word of its shards it is a sound reference, of its sample
    forged = [(what, write) for what, write in each(forgeries(whole), share) if what != "rows missing"]
    refused, same = holds(answer, whole, forged, tmp_path / "r.safetensors")
    assert same < refused / 4, (refused, same)


@shares
def test_a_reference_of_pictures_and_its_fitted_encoders(folder, tmp_path, share):
    items = torch.rand(3, 1, 4, 4)

    def answer(path):
        file = Reference.load(path)
        battery = battery_of(file, path, torch.device("cpu"))
        return {m.name: m(items).tolist() for m in (*battery.members, *battery.held_out)}

    whole = folder / "pictures.safetensors"
    refused, same = holds(answer, whole, each(forgeries(whole), share / 2), tmp_path / "r.safetensors")
    assert same < refused / 4, (refused, same)


def test_moments(folder, tmp_path):
    """In .npz of numpy, and as numpy's scalars, objects and text."""
    whole = folder / "moments.npz"
    held = {name: torch.from_numpy(array) for name, array in np.load(whole).items()}
    forged = []
    for name, value in held.items():
        for what, other in altered(value):
            forged.append((f"{name} {what}", {k: v.numpy() for k, v in put(held, (name,), other).items()}))
    numpy = {k: v.numpy() for k, v in held.items()}
    lopsided = numpy["sigma"] + np.triu(np.ones((3, 3)), 1)
    for what, change in {
        "text": {"mu": np.array(["a", "b", "c"])},
        "objects": {"mu": np.array([{}, None, 1], dtype=object)},
        "negative": {"sigma": -np.eye(3)},
        "indefinite": {"sigma": np.eye(3) + 2 * (1 - np.eye(3)) * -1},
        "lopsided": {"sigma": lopsided},
        "huge": {"sigma": np.eye(3) * 1e200},
    }.items():
        forged.append((what, {**numpy, **change}))

    def answer(path):
        x = {"features": torch.randn(30, 3, generator=torch.Generator().manual_seed(1))}
        value = judge(Rows(x, set()), Reference.load(path), ["fd"]).metrics["fd/features"].value
        return pytest.approx(value, rel=1e-5)  # of float32 moments too

    writers = [(what, lambda at, arrays=arrays: np.savez(at, **arrays)) for what, arrays in forged]
    refused, same = holds(answer, whole, writers, tmp_path / "m.npz")
    kinds = {what for what, _ in forged}
    assert refused >= 30 and same <= sum("float32" in what or "transposed" in what for what in kinds), (refused, same)
    data = whole.read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "m.npz").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"m.npz") as caught:
            Reference.load(tmp_path / "m.npz")
        assert "pickle" not in str(caught.value) or "allow" not in str(caught.value)


@shares
def test_what_an_interrupted_reference_leaves(folder, tmp_path, share, monkeypatch):
    """A state that is not sound is measured again: the same bytes, whichever file was changed."""
    options = {"batch": 8, "sample": 16, "split": 0.4, "per_class": True, "save_every": 0.0, "rows": "all"}
    expected, out = tmp_path / "whole.safetensors", tmp_path / "r.safetensors"
    make_reference([folder / "rows.npz"], expected, **options)
    add, calls = measure.State.add, []

    def interrupted(self, batch, features):
        calls.append(batch.number)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        add(self, batch, features)

    asked = []
    monkeypatch.setattr(measure.State, "add", interrupted)
    monkeypatch.setattr(measure, "sound_states", lambda *given: asked.append(given) or sound_states(*given))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_reference([folder / "rows.npz"], out, **options)
    kept = shutil.copytree(tmp_path / ".r.safetensors.partial", tmp_path / "kept")
    _, *survey = asked[-1]
    names = sorted(path.name for path in kept.iterdir())
    assert len(sound_states(kept, *survey)) == len(names) == 2

    def gathered(at):
        """What the files of a folder hold together, where all are sound."""
        state = survey[2](
            {"features": measure.moments_of(read_tensors(at / names[-1])[0], ["features"], at)["features"]}
        )
        for path in sound_states(at, *survey):
            state.merge(path)
        state.shards.clear()  # whose files are looked at when it is gone on from
        state.save(tmp_path / "state", survey[0])
        return (tmp_path / "state").read_bytes()

    whole = gathered(kept)
    for name in names:
        several = [(what, write) for what, write in each(forgeries(kept / name), share) if "depths" not in what]
        for k, (what, write) in enumerate(several):
            here = shutil.copytree(kept, tmp_path / ".r.safetensors.partial", dirs_exist_ok=True)
            write(here / name)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = sound_states(here, *survey)
                assert len(found) < 2 or gathered(here) == whole, (name, what)
                assert len(found) == 2 or said or "plan" in what or "includes" in what, (name, what)
                if k % (len(several) // 4) == 0:
                    make_reference([folder / "rows.npz"], out, **options)
                    assert out.read_bytes() == expected.read_bytes(), (name, what)
                    assert not here.exists()
                    out.unlink()
    shutil.rmtree(tmp_path / ".r.safetensors.partial", ignore_errors=True)
    (tmp_path / ".r.safetensors.partial").mkdir()
    for path in kept.iterdir():
        (tmp_path / ".r.safetensors.partial" / path.name).write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="measured again"):
        make_reference([folder / "rows.npz"], out, **options)
    assert out.read_bytes() == expected.read_bytes()


def test_a_reference_counts_every_item(folder, tmp_path, monkeypatch):
    """A state that is gone when the file is written is missed."""
    monkeypatch.setattr(measure, "sound_states", lambda at, *given: sound_states(at, *given)[:1])
    with pytest.raises(InputError, match="0 of 60 items are measured"):
        make_reference([folder / "rows.npz"], tmp_path / "r.safetensors")
    assert not (tmp_path / "r.safetensors").exists()


@shares
def test_a_cache_is_used_or_measured_again(tmp_path, share):
    items, encoder = torch.rand(40, 1, 3, 3), representations.build("pixels")
    expected = encoded(items, encoder, cache=tmp_path / "cache").features
    (path,) = (tmp_path / "cache").iterdir()
    whole, used = path.read_bytes(), 0
    damaged = ("cut", lambda at: at.write_bytes(whole[:200])), ("empty", lambda at: at.write_bytes(b""))
    for what, write in (*each(forgeries(path), share), *damaged):
        write(path)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = encoded(items, encoder, cache=tmp_path / "cache")
        used += not said
        assert found.features.tolist() == expected.tolist() and found.weights is None, what
        assert all("the reference is measured" in str(each.message) for each in said)
        if said:
            assert path.read_bytes() == whole, f"{what}: mended"
        path.write_bytes(whole)
    assert used < 10
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="file cannot be written .*; going on without"):
        found = encoded(items, encoder, cache=tmp_path / "file")
    assert torch.equal(found.features, expected)


@pytest.mark.parametrize("share", [0.01])
@pytest.mark.parametrize("memory", [EMA(0.5), Queue(12)], ids=["ema", "queue"])
def test_a_checkpoint_is_refused_or_gone_on_from(tmp_path, share, memory):
    """Every entry of the state and of its JSON form: a refusal, or the weights of the run that was not touched."""
    data = Dataset(
        "noise", torch.rand(24, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2, 2
    )

    def final(out, **options):
        torch.manual_seed(0)
        model = generators.build("mlp_flow", shape=(1, 2, 2), width=4, depth=1, classes=2)
        matching = Matching(
            rdm.objective("energy"), Battery((representations.build("pixels"),)), population=8, memory=memory
        )
        train = rdm.training.loop.train
        train(model=model, losses=[matching], data=data, out=out, steps=4, average=0.5, checkpoint_every=2, **options)
        return {name: value.tolist() for name, value in model.state_dict().items()}

    expected = final(tmp_path / "whole")
    kept = tmp_path / "whole" / "checkpoints" / "00000002"
    step, state = read_checkpoint(kept)
    tensors, plain = pack(state)

    def as_json(at, plain):
        rest = {"step": step, "row": {}, "state": plain}
        write_tensors(at / "state.safetensors", tensors, {"step": step, "rest": digest({}, rest)})
        write_json(at / "state.json", rest)

    writers = [(what, lambda at, s=s: write_checkpoint(at.parent, step, snapshot(s))) for what, s in trees(state)]
    writers += [(f"JSON: {what}", lambda at, p=p: as_json(at, p)) for what, p in trees(plain)]
    refused = same = 0
    # a memory's rows are of the type that the encoder gives; wider ones hold the same numbers and differ by rounding
    writers = [(what, write) for what, write in writers if not ("pasts" in what and what.endswith("as torch.float64"))]
    for what, write in each(writers, share):
        at = shutil.copytree(kept, tmp_path / "run" / "checkpoints" / kept.name)
        write(at)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = final(tmp_path / "run", resume=True)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 900 and kept.name in str(error), (what, error)
            refused += 1
        else:
            assert found == expected, what
            same += 1
        shutil.rmtree(tmp_path / "run")
    assert same < refused / 4, (refused, same)


def test_a_run_that_others_wrote_in(tmp_path, capsys):
    """Log, result and configuration: the file and the line are named, status 2."""
    row, result = {"step": 1, "loss": 0.5}, {"metrics": {}, "steps": 2, "seconds": 1.0, "seed": 0, "versions": {}}
    whole = {"log.jsonl": json.dumps(row) + "\n", "result.json": json.dumps(result), "config.gin": "# none\n"}
    wrong = [
        ("log.jsonl", data) for data in (b"\xff\xfe", b"junk\n{}\n", b"[1]\n", b'{"loss": 1}\n', b"[" * 100_000 + b"\n")
    ]
    wrong += [
        ("log.jsonl", json.dumps(put(row, p, v)).encode() + b"\n") for p in places(row) for v in ("x", None, [], True)
    ]
    wrong += [("result.json", json.dumps(changed).encode()) for _, changed in trees(result)]
    wrong += [(name, None) for name in whole]
    refused = 0
    for name, data in wrong:
        for each_name, text in whole.items():
            (tmp_path / each_name).write_text(text)
        (tmp_path / name).unlink()
        if data is not None:
            (tmp_path / name).write_bytes(data)
        status = main(["report", str(tmp_path)])
        said = capsys.readouterr().err.strip()
        assert status in (0, 2) and "\n" not in said and (status == 0 or name in said), (name, data, said)
        assert name == "result.json" or status == 2, (name, data)
        refused += status == 2
    assert refused > 40
