"""Checkpoints that several processes write: whole or absent, and nothing in them that does not belong there."""

import errno
import threading

import pytest
import torch

from rdm.errors import CorruptFileError
from rdm.files import parts
from rdm.files.checkpoint import complete_checkpoints, read_checkpoint, snapshot, write_checkpoint
from rdm.files.parts import Shared
from rdm.files.store import Part, digest, read_json, read_tensors, write_json, write_tensors
from tests.forge import ABSENT, altered, forged, trees

WHOLE = torch.arange(14.0).reshape(7, 2)
ROWS = (3, 3, 1)  # of each process


def write(folder, name="0123456789abcdef", order=(2, 0, 1), step=7, broken=()):
    """A checkpoint by three processes, which come in an order; what each raised."""
    pieces, raised = WHOLE.split(ROWS), {}

    def process(k):
        state = {"model": {"w": Part(pieces[k]), "b": torch.ones(2)}, "n": 1}
        try:
            if k in broken:
                raise OSError(errno.ENOSPC, "No space left on device")
            write_checkpoint(folder, step, snapshot(state, parts_only=k > 0), {"loss": 0.5}, Shared(k, 3, name))
        except OSError as error:
            raised[k] = error

    threads = [threading.Thread(target=process, args=(k,)) for k in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_rows_of_all_processes_make_the_whole(tmp_path, order):
    assert not write(tmp_path, order=order)
    (path,) = tmp_path.iterdir()
    step, state = read_checkpoint(path)
    assert step == 7 and torch.equal(state["model"]["w"], WHOLE) and torch.equal(state["model"]["b"], torch.ones(2))
    assert [len(read_tensors(path / f"rows-{k:05d}.safetensors")[0]["rows000000"]) for k in range(3)] == list(ROWS)
    assert not write(tmp_path, name="fedcba9876543210", order=order)  # another one in its place
    assert read_checkpoint(path)[0] == 7 and len(list(tmp_path.iterdir())) == 1


def test_a_part_that_is_not_written_leaves_no_checkpoint(tmp_path, monkeypatch):
    real = parts.write_tensors

    def full(path, *rest):
        if path.name == "rows-00001.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *rest)

    monkeypatch.setattr(parts, "write_tensors", full)
    raised = write(tmp_path)
    assert {0, 1} <= raised.keys() and all(raised[k].errno == errno.ENOSPC for k in (0, 1))
    assert 2 not in raised or raised[2].errno == errno.ENOENT  # late, when the first has cleared away already
    assert "rank 1: No space left on device" in str(raised[0])
    monkeypatch.setattr(parts, "write_tensors", real)
    monkeypatch.setattr(parts, "PATIENCE", 0.2)  # one that never comes
    raised = write(tmp_path, name="0000000000", broken=(2,))
    assert "rank 2 did not write its part for 0 s" in str(raised[0])
    assert not complete_checkpoints(tmp_path)


def test_parts_that_do_not_belong_there_are_refused(tmp_path):
    write(tmp_path)
    write(tmp_path, name="fedcba9876543210", step=8)
    path, other = complete_checkpoints(tmp_path)
    name = "rows-00001.safetensors"
    file, whole = path / name, (path / name).read_bytes()
    tensors, described = read_tensors(file)

    def refused(words):
        with pytest.raises(CorruptFileError, match=words) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
        file.write_bytes(whole)

    for length in (0, 8, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused("not a readable rdm file|does not match its SHA-256")
    file.write_bytes((other / name).read_bytes())
    refused("does not belong to the other parts")
    file.write_bytes((path / "rows-00000.safetensors").read_bytes())
    refused("does not belong to the other parts")
    file.unlink()
    refused("expected a file at")
    for _, changed in list(trees(described))[::6]:
        write_tensors(file, tensors, changed)
        refused("does not belong to the other parts")
    for what, value in altered(tensors["rows000000"]):
        if isinstance(value, torch.Tensor) and "flipped" not in what and "cut along 0" not in what:
            write_tensors(file, {"rows000000": value}, described)
            refused("the parts of tensor rows000000 do not fit together")
    write_tensors(file, {**tensors, "more": torch.ones(2)}, described)
    refused("does not belong to the other parts")
    rest = read_json(path / "state.json")
    held, words = read_tensors(path / "state.safetensors")
    for _, shared in [*forged(rest["shared"]), *trees(rest["shared"])][::6]:
        changed = {**rest, "shared": shared}
        if shared is not ABSENT:
            write_tensors(path / "state.safetensors", held, {**words, "rest": digest({}, changed)})
            write_json(path / "state.json", changed)
            with pytest.raises(CorruptFileError):
                read_checkpoint(path)
