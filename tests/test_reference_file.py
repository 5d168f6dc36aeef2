"""The reference file: the same bytes whatever workers, ranks and interruptions; merges; refusals."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import rdm.references.measure
from rdm.__main__ import main
from rdm.app.judging import make_reference
from rdm.errors import CorruptFileError, InputError, Interrupted, MismatchError
from rdm.matching.real import Gaussian
from rdm.references.accumulate import ExactSum, MomentSums, Reservoir, merged
from rdm.references.file import Reference
from tests import processes

KILLS = 10  # passed with 50 too, in eight minutes
ROOT = Path(__file__).parent.parent


@pytest.fixture
def data(tmp_path) -> Path:
    """300 grey pictures of 6x6 of three classes, sorted by class."""
    labels = np.arange(300) // 100
    pictures = np.random.default_rng(0).integers(0, 160, (300, 6, 6)) + 30 * labels[:, None, None]
    np.savez(tmp_path / "data.npz", images=pictures.astype(np.uint8), labels=labels)
    return tmp_path / "data.npz"


def reference(data: Path, name: str, **options) -> Path:
    out = data.with_name(name)
    make_reference([data], out, **{"battery": "untrained", "batch": 16, "sample": 64, **options})
    return out


def test_exact_sums_do_not_depend_on_order():
    parts = [torch.randn(3, 3, dtype=torch.float64) * 10.0 ** random.Random(k).randint(-6, 6) for k in range(50)]
    sums = [ExactSum((3, 3)), ExactSum((3, 3)), ExactSum((3, 3))]
    for part in parts:
        sums[0].add(part)
    for k, part in enumerate(reversed(parts)):
        sums[1 + k % 2].add(part)
    sums[1].merge(*sums[2].limbs())
    assert all(torch.equal(a, b) for a, b in zip(sums[0].limbs(), sums[1].limbs(), strict=True))
    torch.testing.assert_close(sums[0].value(), torch.stack(parts).sum(0), rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="not finite"):
        sums[0].add(torch.full((3, 3), torch.nan, dtype=torch.float64))


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 1e5])
@pytest.mark.parametrize("first", [1, 5])
def test_first_rows_that_coincide_set_no_scale(size, first):
    """One row, or equal rows, or all zero, say nothing of the spread of those that follow."""
    rows = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * (size or 1) / 10
    rows[:first] = size
    sums = MomentSums.like(rows[:first])
    sums.add(rows)
    torch.testing.assert_close(sums.gaussian().covariance, torch.cov(rows.T), rtol=1e-9, atol=1e-12 * size**2)


def test_moments_are_numpys_far_from_zero_and_for_constant_columns():
    rows = torch.randn(500, 4, dtype=torch.float64) * torch.tensor([1.0, 1e-3, 0.0, 5.0]) + 1e4
    sums = MomentSums.like(rows[:20])
    for part in rows.split(37):
        sums.add(part)
    np.testing.assert_allclose(sums.gaussian().covariance, np.cov(rows.numpy(), rowvar=False), rtol=1e-7, atol=1e-12)
    halves = [Gaussian.of(rows[:200]), Gaussian.of(rows[200:])]
    torch.testing.assert_close(merged(*halves).covariance, Gaussian.of(rows).covariance, rtol=1e-9, atol=1e-12)


def test_a_reservoir_is_the_smallest_keys_in_any_order():
    keys, rows = torch.randperm(1000), torch.arange(1000.0)
    states = []
    for order in (torch.arange(1000), torch.randperm(1000)):
        reservoir = Reservoir(30)
        for part in order.split(7):
            reservoir.add(keys[part], {"rows": rows[part]})
        states.append(reservoir.state())
    assert torch.equal(states[0]["rows"], states[1]["rows"]) and torch.equal(states[0]["keys"], torch.arange(30))


def test_a_file_holds_what_it_says(data):
    file = Reference.load(reference(data, "r.safetensors", per_class=True, landmarks=5))
    assert file.description["n"] + file.description["n_fresh"] == 300 and file.description["n_fresh"] > 30
    assert file.description["depths"] == ["8-bit"] and file.description["held_out"] == ["held_out_convolutions"]
    pixels = file.members["pixels"]
    assert pixels.rows.shape == (64, 36) and len(pixels.fresh) == min(64, file.description["n_fresh"])
    assert len(pixels.landmarks) == 5 and pixels.bandwidth > 0 and set(pixels.description["floors"]) >= {"fd", "sw"}
    images, labels = np.load(data)["images"], np.load(data)["labels"]
    rows = {tuple(row) for row in (images.reshape(300, -1) / np.float32(255)).astype(np.float32)}
    assert all(tuple(row) in rows for row in pixels.rows.numpy())
    counts = torch.bincount(file.labels, minlength=3)
    assert counts.min() >= 10, "sorted by class, and yet the sample has every class"
    assert sum(fit.n for fit in pixels.classes.values()) == file.description["n"]
    together = merged(merged(pixels.classes[0], pixels.classes[1]), pixels.classes[2])
    torch.testing.assert_close(together.covariance, pixels.gaussian.covariance, rtol=1e-9, atol=1e-12)
    whole = Reference.load(reference(data, "all.safetensors", split=0.0))
    x = torch.from_numpy(images.reshape(300, -1)).double() / 255
    torch.testing.assert_close(whole.members["pixels"].gaussian.covariance, torch.cov(x.T), rtol=1e-6, atol=1e-9)
    assert whole.members["pixels"].fresh is None and (labels >= 0).all()


def test_workers_and_interruptions_leave_the_same_bytes(data, monkeypatch):
    expected = reference(data, "a.safetensors").read_bytes()
    assert reference(data, "b.safetensors", workers=2).read_bytes() == expected
    add = rdm.references.measure.State.add
    calls = []

    def interrupted(self, batch, features):
        calls.append(batch.number)
        if len(calls) in (4, 9, 12):
            raise KeyboardInterrupt
        add(self, batch, features)

    monkeypatch.setattr(rdm.references.measure.State, "add", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            reference(data, "c.safetensors", save_every=0.0)
        assert not data.with_name("c.safetensors").exists()
    assert reference(data, "c.safetensors", save_every=0.0).read_bytes() == expected
    assert len(calls) < 19 + 2 * 3, "it went on from where it was"
    assert not list(data.parent.glob(".c.safetensors*")), "nothing is left beside the file"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_measured_and_says_so(data, monkeypatch, number):
    expected = reference(data, f"d{number}.safetensors").read_bytes()
    add = rdm.references.measure.State.add
    calls = []

    def signalled(self, batch, features):
        calls.append(batch.number)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        add(self, batch, features)

    monkeypatch.setattr(rdm.references.measure.State, "add", signalled)
    with pytest.raises(Interrupted, match="interrupted; 4 of 19 batches are kept, the same command goes on"):
        reference(data, f"e{number}.safetensors")
    assert not data.with_name(f"e{number}.safetensors").exists()
    assert reference(data, f"e{number}.safetensors").read_bytes() == expected
    assert sorted(calls) == list(range(19)), "no batch twice"


def test_two_ranks_leave_the_same_bytes(data):
    options = ["--battery", "untrained", "--batch", "16", "--sample", "64"]
    outs = [data.with_name(name) for name in ("one.safetensors", "two.safetensors")]
    for count, out in zip((1, 2), outs, strict=True):
        ranks = processes.rdm_on_ranks(
            "reference", str(data), *options, "--out", str(out), cwd=data.parent, count=count
        )
        assert [each.wait() for each in ranks] == [0] * count
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.slow
def test_kill_at_random_moments_leaves_no_file_and_the_same_bytes_at_last(data, monkeypatch):
    """KILLS kills, drawn over the length of a call, each followed by calls until one ends."""
    command = ["reference", str(data), "--battery", "untrained", "--batch", "2", "--sample", "64", "--save-every", "0"]
    out, expected = data.with_name("killed.safetensors"), data.with_name("whole.safetensors")
    process, began = processes.rdm(*command, "--out", str(expected), cwd=data.parent), time.monotonic()
    assert process.wait() == 0
    length, chance, kills = time.monotonic() - began, random.Random(0), 0
    while kills < KILLS:
        process = processes.rdm(*command, "--out", str(out), cwd=data.parent)
        time.sleep(chance.uniform(0.05, 1.0) * length)
        if process.poll() is None:
            process.kill()
            kills += 1
        if out.exists():  # finished, or killed after the rename
            assert out.read_bytes() == expected.read_bytes()
            out.unlink()
    assert processes.rdm(*command, "--out", str(out), cwd=data.parent).wait() == 0
    assert out.read_bytes() == expected.read_bytes()


def test_merging_disjoint_halves_gives_the_whole(data):
    held = np.load(data)
    halves = []
    for k in (0, 1):
        path = data.with_name(f"half{k}.npz")
        np.savez(path, images=held["images"][k::2], labels=held["labels"][k::2])
        halves.append(path)
    parts = [reference(path, f"{path.stem}.safetensors", battery="untrained", sample=400) for path in halves]
    with pytest.raises(MismatchError, match="fingerprint"):
        Reference.load(parts[0]).merge(Reference.load(parts[1]))  # pca was fitted on either
    for path in halves:
        rows = {"features": np.load(path)["images"].reshape(150, -1) / 255.0}
        np.savez(path.with_name(f"rows-{path.name}"), **rows)
    np.savez(data.with_name("rows.npz"), features=held["images"].reshape(300, -1) / 255.0)
    options = {"battery": None, "sample": 400}
    parts = [reference(p.with_name(f"rows-{p.name}"), f"r{p.stem}.safetensors", **options) for p in halves]
    out = data.with_name("merged.safetensors")
    assert main(["reference", *map(str, parts), "--out", str(out)]) == 0
    whole = Reference.load(reference(data.with_name("rows.npz"), "whole.safetensors", **options))
    both = Reference.load(out)
    assert both.description["n"] == whole.description["n"], "the split follows the items' content"
    for name in ("mean", "covariance"):
        mine, theirs = (getattr(f.members["features"].gaussian, name) for f in (both, whole))
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-14)
    sample = [{tuple(row) for row in f.members["features"].rows.tolist()} for f in (both, whole)]
    assert sample[0] == sample[1]
    with pytest.raises(InputError, match="hold .* equal items or more; merge references of disjoint data"):
        both.merge(Reference.load(parts[0]))


def test_fd_loss_statistics_are_written_and_read(data, capsys):
    path = reference(data, "r.safetensors")
    assert main(["reference", str(path), "--out", str(data.with_name("s.npz")), "--member", "pixels"]) == 0
    held, file = np.load(data.with_name("s.npz")), Reference.load(path)
    assert held["mu"].dtype == held["sigma"].dtype == np.float64
    np.testing.assert_array_equal(held["sigma"], file.members["pixels"].gaussian.covariance)
    back = Reference.load(data.with_name("s.npz"))
    assert torch.equal(back.members["features"].gaussian.mean, file.members["pixels"].gaussian.mean)
    assert main(["reference", str(path), "--out", str(data.with_name("t.npz"))]) == 2
    assert "give --member, one of" in capsys.readouterr().err
    np.savez(data.with_name("u.npz"), mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(CorruptFileError, match=r"sigma must be float64 \(d, d\) with d = 3"):
        Reference.load(data.with_name("u.npz"))


def test_a_fresh_split_is_of_other_items(data, capsys):
    held = np.load(data)
    some = data.with_name("some.npz")  # equal items under equal names but for the first
    images = np.concatenate([held["images"][:1] ^ 1, held["images"][1:40]])
    np.savez(some, images=images, labels=held["labels"][:40])
    for fresh, count in ((data, 1), (some, 39)):
        arguments = ["reference", str(data), "--fresh", str(fresh), "--battery", "untrained", "--out"]
        assert main([*arguments, str(data.with_name("f.safetensors"))]) == 2
        assert f"both sides hold {count} equal items or more" in capsys.readouterr().err.strip().splitlines()[-1]
        assert not data.with_name("f.safetensors").exists()


@pytest.mark.parametrize("name", ["x.npz", "x.txt", "x"])
def test_out_is_what_its_suffix_says_or_refused(data, capsys, name):
    """Straight from data, as from a reference; a member that is not there is missed before anything is measured."""
    out, command = data.with_name(name), ["reference", str(data), "--battery", "untrained", "--out"]
    if out.suffix == ".npz":
        assert main([*command, str(out), "--member", "pixels"]) == 0
        expected = Reference.load(reference(data, "r.safetensors", seed=0, sample=16_384, batch=32))
        with np.load(out) as held:
            np.testing.assert_array_equal(held["mu"], expected.members["pixels"].gaussian.mean)
            np.testing.assert_array_equal(held["sigma"], expected.members["pixels"].gaussian.covariance)
        out.unlink()
        refusals = (
            (["--member", "nosuch"], "has no member 'nosuch'; known: pixels"),
            ([], "give --member, one of pixels"),
        )
    else:
        refusals = (
            (["--member", "pixels"], f"expected --out FILE.safetensors, or FILE.npz for mu and sigma; got '{name}'"),
        )
    for options, message in refusals:
        assert main([*command, str(out), *options]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
        assert not out.exists() and not list(data.parent.glob(f".{name}*"))
    assert main([*command, str(data.with_name("y.safetensors")), "--member", "pixels"]) == 2
    assert "leave it out" in capsys.readouterr().err


def test_a_suffix_that_lies_is_found_out_by_the_content(data, capsys):
    path = reference(data, "r.safetensors")
    named = data.with_name("named.npz")
    named.write_bytes(path.read_bytes())
    assert list(Reference.load(named).members) == list(Reference.load(path).members)
    Reference.load(path).export(data.with_name("m.npz"), "pixels")
    moments = data.with_name("m.safetensors")
    moments.write_bytes(data.with_name("m.npz").read_bytes())
    assert list(Reference.load(moments).members) == ["features"]
    objects = data.with_name("objects.npz")
    np.savez(objects, mu=np.array([{}], dtype=object), sigma=np.zeros((1, 1)))
    for bad in (objects, data, data.parent / "test.txt"):
        (data.parent / "test.txt").write_text("no reference")
        assert main(["evaluate", str(data), "--reference", str(bad)]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert bad.name in line and "allow_pickle" not in line, line


def test_broken_items_stop_the_run_or_are_counted(tmp_path, capsys):
    from PIL import Image

    for k in range(40):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (6, 6), dtype=np.uint8)).save(
            tmp_path / f"{k:02}.png"
        )
    (tmp_path / "07.png").write_bytes(b"no picture")
    (tmp_path / "31.png").write_bytes((tmp_path / "30.png").read_bytes()[:50])
    out = tmp_path.with_name("r.safetensors")
    command = ["reference", str(tmp_path), "--battery", "untrained", "--out", str(out)]
    assert main(command) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "07.png cannot be read" in line and "2 broken of 32 items read" in line and "--skip-broken" in line
    assert not out.exists()
    assert main([*command, "--skip-broken"]) == 0
    assert "skipped 2 broken items" in capsys.readouterr().err
    file = Reference.load(out)
    assert file.description["n"] + file.description["n_fresh"] == 38 and len(file.description["skipped"]) == 2


def test_wrong_arguments_are_one_line(data, capsys):
    for arguments, message in (
        (["--battery", "nothing"], "unknown battery or representation 'nothing'"),
        ([], "expected --battery, one of"),
        (["--battery", "untrained", "--split", "1.5"], "--split must be a number from 0 and below 1"),
        (["--battery", "untrained", "--set", "channels"], "--set takes KEY=VALUE"),
        (["--battery", "untrained", "--set", "side=3"], "has no hyperparameter 'side'"),
    ):
        assert main(["reference", str(data), "--out", str(data.with_name("x.safetensors")), *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0], lines
    assert not data.with_name("x.safetensors").exists()
