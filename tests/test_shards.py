"""All rows of a reference in shards: the rows as they were, the same bytes at last, wrong ones in one line."""

import pickle
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import rdm.references.measure
from rdm.__main__ import main
from rdm.app.judging import make_reference
from rdm.data.items import Batch
from rdm.errors import InputError, MismatchError
from rdm.files.store import digest, read_tensors, write_tensors
from rdm.matching.real import Real
from rdm.references.file import Reference
from rdm.references.shards import DTYPES, Shard, Shards, Writer, folder_of, shard_name, span_of
from tests import processes

KILLS = 4


@pytest.fixture
def data(tmp_path) -> Path:
    """600 rows under two members, numbered in their first column, of three classes."""
    source = np.random.default_rng(0)
    wide = source.normal(1, 1, (600, 5)).astype(np.float32)
    wide[:, 0] = np.arange(600)
    np.savez(tmp_path / "rows.npz", wide=wide, flat=wide[:, :2] / 600, labels=np.arange(600) // 200)
    return tmp_path / "rows.npz"


def reference(data: Path, name: str, **options) -> Path:
    out = data.with_name(name)
    make_reference([data], out, **{"batch": 16, "sample": 64, "rows": "all", **options})
    return out


def contents(path: Path) -> dict[str, bytes]:
    """A reference and its shards."""
    return {"": path.read_bytes()} | {p.name: p.read_bytes() for p in folder_of(path).iterdir()}


def written(folder: Path, rows: torch.Tensor, dtype: str, span: int, batch: int = 64) -> Shards:
    """Rows in shards of `span` batches."""
    parts, found = rows.split(batch), {}
    writer = Writer(folder, dtype, {"x": rows.shape[1]}, span, len(parts), range(len(parts)))
    for k, part in enumerate(parts):
        numbers = torch.arange(len(part)) + k * batch
        found |= writer.add(
            Batch(k, part, numbers % 7, numbers, numbers < 0, [], set(), "", numbers.tolist()), {"x": part}
        )
    shards = [Shard(folder / shard_name(k, sha), sha, {"x": rows.shape[1]}, dtype) for k, sha in found.items()]
    return Shards("x", shards)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_on_disk_are_rows_in_memory(tmp_path, dtype):
    rows = torch.randn(20_000, 24, generator=torch.Generator().manual_seed(0))
    shards, kept = written(tmp_path, rows, dtype, 39), rows.to(DTYPES[dtype])
    assert len(shards) == 20_000 and shards.dimension == 24 and len(shards.shards) == 9
    for start, stop in ((0, 20_000), (0, 1), (2495, 2497), (2496, 2496), (4000, 17_001), (19_999, 30_000)):
        assert torch.equal(shards.span(start, stop), kept[start:stop])
    numbers = torch.randint(20_000, (3000,), generator=torch.Generator().manual_seed(1))
    for some in (numbers, numbers[:0], torch.tensor([19_999, 0, 0])):
        assert torch.equal(shards.take(some), kept[some]) and shards.take(some).dtype == DTYPES[dtype]
    for wrong in (-1, 20_000):
        with pytest.raises(IndexError, match="numbered 0 to 19999"):
            shards.take(torch.tensor([wrong]))
    there, here = Real(shards), Real.of(kept)
    for size in (1000, 4096):
        assert torch.equal(torch.cat([part for part, _ in there.chunks(size)]), here.features)
    assert torch.equal(there.held("a test", 500).features, here.held("a test", 500).features)
    assert torch.equal(shards.labels, torch.arange(20_000) % 7) and torch.equal(shards.keys, torch.arange(20_000))
    again = pickle.loads(pickle.dumps(shards))  # as a reading process gets it
    assert torch.equal(again.take(numbers), kept[numbers]) and len(pickle.dumps(shards)) < 5000
    shards.span(0, 10).zero_()
    assert torch.equal(shards.span(0, 10), kept[:10]), "what is handed out is the reader's own"


def test_reading_holds_a_chunk_and_not_the_rows(tmp_path):
    def anonymous() -> int:
        (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("RssAnon")]
        return int(line.split()[1]) * 1024

    shards = written(tmp_path, torch.randn(20_000, 512), "float32", 20, 128)
    list(Real(shards).chunks(512))  # what torch itself needs
    before, most = anonymous(), 0
    for _ in Real(pickle.loads(pickle.dumps(shards))).chunks(512):
        most = max(most, anonymous() - before)
    assert most < 12 * 2**20, f"{most / 2**20:.0f} MiB for chunks of 1 MiB of 40 MiB"


def test_shards_are_of_bounded_size_whatever_the_ranks():
    assert span_of(57, 32, {"pixels": 64}, "float32") == 4, "sixteen shards or so of little data"
    span = span_of(40_000, 32, {"dino": 768}, "float16")
    assert 2**23 < span * 32 * 768 * 2 <= 2**24
    assert span_of(40_000, 32, {"few": 2}, "float16") * 32 == 2**14
    assert span_of(40_000, 32, {"many": 10**6}, "float32") == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reference_keeps_every_row_of_its_split_in_item_order(data, dtype):
    path, given = reference(data, "all.safetensors", rows_dtype=dtype), np.load(data)
    file = Reference.load(path)
    n = file.description["n"]
    assert 400 < n < 560 and "rows" not in file.description and file.dtype == dtype
    original = torch.from_numpy(given["flat"])
    first = torch.from_numpy(given["wide"])[:, 0]
    chosen = torch.isin(original.to(DTYPES[dtype])[:, 1], file.members["flat"].every.span(0, n)[:, 1])
    labels = torch.from_numpy(given["labels"])
    if dtype == "float32":
        assert int(chosen.sum()) == n
        numbers = file.members["wide"].every.span(0, n)[:, 0].long()
        assert torch.equal(numbers, first[chosen].long()), "in item order"
        assert torch.equal(file.members["wide"].every.labels, labels[chosen])
        assert set(file.keys.tolist()) <= set(file.members["wide"].every.keys.tolist())
    for name, member in file.members.items():
        real, plain = member.real(), torch.from_numpy(given[name])
        assert real.whole and len(real.rows) == n and real.dimension == plain.shape[1]
        if dtype == "float32":
            assert torch.equal(real.rows.span(0, n), plain[chosen])
            torch.testing.assert_close(torch.cov(real.rows.span(0, n).double().T), member.gaussian.covariance)
        assert torch.equal(member.sampled().features, member.rows) and not member.sampled().whole
    sampled = Reference.load(reference(data, "sample.safetensors", rows="sample"))
    assert torch.equal(sampled.members["flat"].rows, file.members["flat"].rows)
    assert sampled.members["flat"].description == file.members["flat"].description, "judged alike"
    assert sampled.members["flat"].every is None and not folder_of(data.with_name("sample.safetensors")).exists()


def test_a_sample_of_every_row_is_the_whole(data):
    real = Reference.load(reference(data, "r.safetensors", rows="sample", sample=600)).members["wide"].real()
    assert real.whole and len(real.every("a test").features) == len(real.rows)


def test_pictures_and_their_classes(tmp_path):
    labels = np.arange(90) % 3
    pictures = np.random.default_rng(0).integers(0, 256, (90, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "pictures.npz", images=pictures, labels=labels)
    path = reference(tmp_path / "pictures.npz", "p.safetensors", battery="untrained", split=0.0, rows_dtype="float16")
    file = Reference.load(path)
    rows = file.members["pixels"].real().rows
    assert torch.equal(rows.span(0, 90), (torch.from_numpy(pictures).flatten(1).float() / 255).half())
    assert torch.equal(rows.labels, torch.from_numpy(labels))
    assert all(len(m.every) == 90 and m.every.dimension == len(m.gaussian.mean) for m in file.members.values())


def test_workers_and_interruptions_leave_the_same_bytes(data, monkeypatch):
    """A shard that is gone, cut or flipped meanwhile is encoded again, and nothing is counted twice."""
    expected = contents(reference(data, "a.safetensors"))
    assert len(expected) == 1 + 13 and contents(reference(data, "b.safetensors", workers=2)) == expected
    add, calls = rdm.references.measure.State.add, []

    def interrupted(self, batch, features):
        calls.append(batch.number)
        if len(calls) in (8, 16, 24, 32):
            raise KeyboardInterrupt
        add(self, batch, features)

    monkeypatch.setattr(rdm.references.measure.State, "add", interrupted)
    harms = [
        lambda shard: None,
        lambda shard: shard.unlink(),
        lambda shard: shard.write_bytes(shard.read_bytes()[:100]),
        lambda shard: shard.write_bytes(shard.read_bytes()[:-1] + b"!"),
    ]
    out = data.with_name("c.safetensors")
    with pytest.warns(UserWarning, match="encoded again"):
        for harm in harms:
            with pytest.raises(KeyboardInterrupt):
                reference(data, "c.safetensors", save_every=0.0)
            assert not out.exists()
            harm(sorted(folder_of(out).glob("*.safetensors"))[0])
        assert contents(reference(data, "c.safetensors", save_every=0.0)) == expected
    assert len(calls) < 38 + 4 * 4, "it went on from where it was"


def test_other_data_under_the_same_names_takes_no_old_shard(data):
    """Nor is one of an earlier measurement left; an earlier reference holds its own until then."""
    path = reference(data, "r.safetensors")
    before, old = contents(path), Reference.load(path).members["wide"].every
    first = old.span(0, 20)
    held = dict(np.load(data))
    np.savez(data, **{**held, "wide": held["wide"][::-1]})
    after = contents(reference(data, "r.safetensors"))
    assert len(after) == len(before) and not set(after) & set(before) - {""}
    assert Reference.load(path).members["wide"].every.span(0, 1)[0, 0] > 500
    assert torch.equal(old.span(0, 20), first), "whoever read it goes on with it"
    reference(data, "r.safetensors", rows="sample")
    assert not folder_of(path).exists() and Reference.load(path).members["wide"].every is None


def refused(path: Path, capsys) -> str:
    """The line that a command says of a reference, with status 2."""
    capsys.readouterr()
    assert main(["evaluate", str(path.with_name("rows.npz")), "--reference", str(path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_wrong_shards_are_one_line(data, tmp_path, capsys):
    path = reference(data, "r.safetensors", rows_dtype="float16")
    other = reference(data, "other.safetensors", rows_dtype="float16", seed=1)
    names = sorted(p.name for p in folder_of(path).iterdir())
    theirs = sorted(p.name for p in folder_of(other).iterdir())
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder_of(path), elsewhere / "r.rows")
    for name in ("r.safetensors", "rows.npz"):
        shutil.copy(data.with_name(name), elsewhere / name)
    moved = elsewhere / "r.safetensors"
    assert len(Reference.load(moved).members["wide"].real().held("a test").features) > 400, "a copy works"
    place = elsewhere / "r.rows"

    def restored(k: int) -> None:
        shutil.copy(folder_of(path) / names[k], place / names[k])

    (place / names[3]).unlink()
    assert f"r.rows, which lacks 1 of 13 shards, {names[3]} first" in refused(moved, capsys)
    restored(3)
    for length in (0, 7, 100, (place / names[3]).stat().st_size - 1):
        (place / names[3]).write_bytes((folder_of(path) / names[3]).read_bytes()[:length])
        assert f"{names[3]} is not a readable rdm file" in refused(moved, capsys)
    for others in (folder_of(path) / names[4], folder_of(other) / theirs[3]):
        shutil.copy(others, place / names[3])
        assert "is of SHA-256" in refused(moved, capsys)
    flipped = bytearray((folder_of(path) / names[3]).read_bytes())
    flipped[-3] ^= 1
    (place / names[3]).write_bytes(flipped)
    real = Reference.load(moved).members["wide"].real()
    for reads in (real.chunks, lambda: [real.rows.take(torch.arange(len(real.rows)))], lambda: [real.held("it")]):
        with pytest.raises(InputError, match=f"{names[3]}: content does not match its SHA-256"):
            list(reads())
    shutil.rmtree(place)
    assert "r.safetensors keeps its rows in the folder r.rows beside it; there is none" in refused(moved, capsys)


def test_forged_shards_with_right_hashes_are_one_line(data, capsys):
    """Of other members, types and counts, or not finite, in a reference that names them."""
    path = reference(data, "r.safetensors", rows_dtype="float16")
    tensors, description = read_tensors(path)
    first = sorted(folder_of(path).iterdir())[0]
    held, kind = read_tensors(first)
    wide, n = held["rows/wide"], len(held["labels"])
    for change, message in (
        ({"rows/flat": None}, f"rows/flat must be float16 ({n}, 2); got absent"),
        ({"rows/wide": wide[:, :4].clone()}, f"rows/wide must be float16 ({n}, 5); got float16 ({n}, 4)"),
        ({"rows/wide": wide.float()}, f"rows/wide must be float16 ({n}, 5); got float32 ({n}, 5)"),
        ({"labels": held["labels"][:-1]}, f"rows/flat must be float16 ({n - 1}, 2); got float16 ({n}, 2)"),
        ({"labels": torch.tensor(3)}, "rows/flat must be float16 (0, 2)"),
        ({name: value[:-1] for name, value in held.items()}, "items and its shards hold"),
        ({"more": torch.ones(2)}, "more must be absent; got float32 (2,)"),
    ):
        wrong = {name: value for name, value in {**held, **change}.items() if value is not None}
        sha256 = digest(wrong, kind)
        write_tensors(folder_of(path) / shard_name(0, sha256), wrong, kind)
        kept = {"dtype": "float16", "shards": [sha256, *description["rows"]["shards"][1:]]}
        write_tensors(path, tensors, {**description, "rows": kept})
        assert message in refused(path, capsys)
    infinite = {**held, "rows/wide": torch.full_like(wide, torch.inf)}
    write_tensors(path.with_name("wrong"), infinite, kind)
    sha256 = digest(infinite, kind)
    shard = Shard(path.with_name("wrong"), sha256, {"wide": 5, "flat": 2}, "float16")
    with pytest.raises(InputError, match="NaN or infinity in rows/wide"):
        shard["labels"]


def test_what_cannot_be_kept_is_refused(data, tmp_path, capsys):
    np.savez(tmp_path / "large.npz", big=np.load(data)["wide"] * 1000)
    for source, name, options, message in (
        ("large.npz", "x.safetensors", ["--rows", "all", "--rows-dtype", "float16"], "beyond float16's 65504; give"),
        ("rows.npz", "x.safetensors", ["--rows-dtype", "float16"], "--rows-dtype is of --rows all"),
        ("rows.npz", "x.npz", ["--rows", "all"], "x.npz holds moments alone"),
    ):
        assert main(["reference", str(tmp_path / source), "--out", str(tmp_path / name), *options]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line and not (tmp_path / name).exists()
    reference(tmp_path / "large.npz", "y.safetensors", rows_dtype="bfloat16")


def test_merged_references_join_their_rows(data, capsys):
    held, parts = dict(np.load(data)), []
    for k in (0, 1):
        half = data.with_name(f"half{k}.npz")
        np.savez(half, **{name: value[300 * k : 300 * k + 300] for name, value in held.items()})
        parts.append(reference(half, f"half{k}.safetensors", sample=600))
    whole, out = Reference.load(reference(data, "whole.safetensors")), data.with_name("merged.safetensors")
    assert main(["reference", *map(str, parts), "--out", str(out)]) == 0
    assert f"{folder_of(out)}: every row in float32" in capsys.readouterr().err
    for name, member in Reference.load(out).members.items():
        other = whole.members[name].every
        assert torch.equal(member.every.span(0, 600), other.span(0, 600))
        assert torch.equal(member.every.labels, other.labels)
    for options, words in (({"rows": "sample"}, "a sample"), ({"rows_dtype": "float16"}, "all rows in float16")):
        last = Reference.load(reference(data.with_name("half1.npz"), "last.safetensors", sample=600, **options))
        with pytest.raises(MismatchError, match=f"all rows in float32 and {words}; measure them alike"):
            Reference.load(parts[0]).merge(last)


def measuring(process: processes.Command, out: Path) -> float:
    """When a call has begun to measure, or is over."""
    processes.until(out.with_name(f".{out.name}.partial").exists, process)
    return time.monotonic()


@pytest.mark.slow
def test_kills_and_ranks_leave_the_same_bytes(data):
    """KILLS kills, every other one of a rank of two, each followed by calls until one ends."""
    command = ["reference", str(data), "--batch", "2", "--sample", "64", "--save-every", "0", "--rows", "all", "--out"]
    expected, out = data.with_name("whole.safetensors"), data.with_name("killed.safetensors")
    process = processes.rdm(*command, str(expected), cwd=data.parent)
    began = measuring(process, expected)
    assert process.wait() == 0
    length, chance, kills = time.monotonic() - began, random.Random(0), 0
    while kills < KILLS:
        ranks = processes.rdm_on_ranks(*command, str(out), cwd=data.parent, count=1 + kills % 2)
        measuring(ranks[0], out)
        time.sleep(chance.uniform(0.0, 0.8) * length)
        kills += ranks[-1].poll() is None
        ranks[-1].kill()
        ranks[0].send_signal(signal.SIGTERM)  # as torchrun ends the other rank
        ranks[0].wait()
        if out.exists():
            assert contents(out).items() >= contents(expected).items()
            out.unlink()
    ranks = processes.rdm_on_ranks(*command, str(out), cwd=data.parent)
    assert [each.wait() for each in ranks] == [0, 0]
    assert contents(out) == contents(expected)
