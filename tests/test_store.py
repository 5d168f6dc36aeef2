"""Files: every truncation and alteration is found; writes are whole or absent."""

import json

import pytest
import safetensors.torch
import torch

from rdm.errors import CorruptFileError, InputError, MismatchError
from rdm.files.checkpoint import load_weights, read_checkpoint, snapshot, write_checkpoint
from rdm.files.store import pack, read_tensors, unpack, write_bytes, write_folder, write_tensors

TREE = {
    "model": {"w": torch.arange(3.0)},
    "numbers": [1, 2.5, None, True, "text", (1, 2)],
    "by int": {0: {"step": torch.tensor(3.0)}},
    "empty": {},
}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


def test_pack_round_trip_through_json():
    tensors, plain = pack(TREE)
    assert same(unpack(tensors, json.loads(json.dumps(plain))), TREE)
    with pytest.raises(TypeError, match="cannot store a set"):
        pack({"a": {1}})


def test_every_truncation_and_every_flipped_byte_of_a_reference_is_found(tmp_path):
    path = tmp_path / "reference.safetensors"
    write_tensors(path, {"features": torch.randn(3, 2)}, {"representation": "x"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match="reference.safetensors"):
            read_tensors(path)
    for position in range(0, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            read_tensors(path)
        except CorruptFileError:
            continue
        pytest.fail(f"byte {position} of {len(whole)} was altered unseen")


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_every_truncation_of_a_checkpoint_is_found(tmp_path, file):
    folder = write_checkpoint(tmp_path, 7, snapshot({"w": torch.ones(2), "n": 1}))
    whole = (folder / file).read_bytes()
    for length in range(len(whole) - 1):  # but for the newline at the end of the JSON
        (folder / file).write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match="00000007"):
            read_checkpoint(folder)
    (folder / file).unlink()
    with pytest.raises(InputError, match="there is none"):
        read_checkpoint(folder)


def test_the_files_of_two_checkpoints_do_not_mix(tmp_path):
    one, two = (write_checkpoint(tmp_path, n, snapshot({"w": torch.ones(2) * n, "n": n})) for n in (1, 2))
    (one / "state.json").write_bytes((two / "state.json").read_bytes())
    with pytest.raises(CorruptFileError, match="do not belong together"):
        read_checkpoint(one)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_bytes(tmp_path / "taken", b"a file cannot replace a folder")

    def fail(folder):
        (folder / "half").write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_folder(tmp_path / "folder", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_tensors_keep_their_description(tmp_path):
    write_tensors(tmp_path / "t", {"a": torch.ones(2, dtype=torch.bfloat16)}, {"n": 2, "who": "é"})
    tensors, description = read_tensors(tmp_path / "t")
    assert tensors["a"].dtype == torch.bfloat16 and description == {"n": 2, "who": "é"}


def test_weights_are_found_or_refused(tmp_path):
    net = torch.nn.Linear(2, 3)
    with pytest.raises(InputError, match="expected weights at .*; there are none"):
        load_weights(net, str(tmp_path / "nowhere"))
    write_checkpoint(tmp_path / "run" / "checkpoints", 1, snapshot({"model": net.state_dict(), "average": None}))
    other = torch.nn.Linear(2, 3)
    load_weights(other, str(tmp_path / "run"))
    assert torch.equal(net.weight, other.weight)
    with pytest.raises(MismatchError, match="2 tensors differ: bias is unknown; weight has shape"):
        load_weights(torch.nn.Linear(2, 4, bias=False), str(tmp_path / "run"))
    (tmp_path / "broken.safetensors").write_bytes(b"1234")
    with pytest.raises(CorruptFileError, match="broken.safetensors"):
        load_weights(net, str(tmp_path / "broken.safetensors"))


def test_tensors_are_written_as_the_library_reads_them(tmp_path):
    kinds = torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool
    made = {f"{k} {kind}": torch.rand(3, k).mul(9).to(kind) for k in range(3) for kind in kinds}
    made |= {"scalar": torch.tensor(2.5), "turned": torch.rand(2, 3).T}
    write_tensors(tmp_path / "t", made, {"n": 1})
    found = safetensors.torch.load_file(tmp_path / "t")
    assert found.keys() == made.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in made.items())
