"""What SECURITY.md promises, each held by a real attempt: data may run nothing, connect nowhere, write nowhere else."""

import io
import os
import pickle
import socket
import subprocess
import threading

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from rdm.__main__ import main
from rdm.errors import RestrictedError
from rdm.source import FORMATS, BrokenItem, Form, decode, open_source
from rdm.sources.image_folder import PICTURES
from rdm.trust import confined, paths_outside

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def picture(seed: int = 0, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A working folder of its own; what an attempt would leave is PWNED in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pictures(at):
    (at / "s").mkdir()
    for i in range(48):
        (at / "s" / f"{i:03}.png").write_bytes(picture(i))
    return at / "s"


@pytest.fixture
def reference(pictures):
    assert main(["reference", "s", "--battery", "untrained", "--split", "0.4", "--out", "r.safetensors"]) == 0
    return "r.safetensors"


HOSTILE = """
from __gin__ import dynamic_registration
import os
import rdm.config
os.system.command = 'touch PWNED'
rdm.config._plan.model = @os.system()
rdm.config._plan.losses = []
rdm.config._plan.data = None
rdm.config._plan.steps = 1
"""
RUN = """
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.flow_matching()]
losses.flow_matching.batch = 4
generators.mlp_flow.width = 8
rdm.train.data = @datasets.digits()
rdm.train.steps = 1
"""


def refused(arguments: list[str], at, capsys, message: str) -> None:
    """The command ends with status 2 and one line that says so; nothing ran."""
    assert main(arguments) == 2, arguments
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and lines[-1].startswith("rdm: ") and not (at / "PWNED").exists(), lines


def program(at, monkeypatch, name: str) -> None:
    """Put a program of this name before all others of PATH; it leaves PWNED."""
    (at / "bin").mkdir()
    (at / "bin" / name).write_text(f"#!/bin/sh\necho 10.0; touch {at}/PWNED\n")
    (at / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{at}/bin:/usr/bin:/bin")


def test_a_picture_starts_no_program(pictures, at, monkeypatch, capsys):
    program(at, monkeypatch, "gs")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (pictures / "000.png").write_bytes(EPS)
    assert main(["reference", "s", "--battery", "untrained", "--out", "r.safetensors"]) == 2
    assert "000.png cannot be read" in capsys.readouterr().err and not (at / "PWNED").exists()


def test_every_suffix_that_is_read_has_its_format():
    registered = Image.registered_extensions()
    assert {registered[suffix] for suffix in PICTURES} == set(FORMATS)


def test_pictures_beyond_the_stated_size_are_refused_before_they_are_decoded(tmp_path):
    side = 9500  # squared: above LARGEST, below what Pillow itself refuses
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    (tmp_path / "big.png").write_bytes(bomb.getvalue())
    with pytest.raises(BrokenItem, match="big.png cannot be read"):
        Form().item(open_source(tmp_path), 0)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match="89,478,485 pixels"):
        decode(bomb.getvalue())


# What is built at the bidding of data


class Touch:
    """A pickle of it leaves PWNED where it is read."""

    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.getaddrinfo("localhost", 80),
        lambda: subprocess.run(["touch", "PWNED"]),
        lambda: os.system("touch PWNED"),
        lambda: os.posix_spawn("/bin/touch", ["touch", "PWNED"], {}),
        lambda: pickle.loads(pickle.dumps(Touch())),
        lambda: pickle._loads(pickle.dumps(Touch())),  # type: ignore[attr-defined]  # the one in Python
        input,
    ],
)
def test_a_confined_block_connects_runs_unpickles_and_asks_nothing(attempt, at, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    caught = []

    def attempted() -> None:
        try:
            attempt()
        except RestrictedError as error:
            caught.append(str(error))

    with confined("the file", "do as you please"), confined("a loader in it", "no remedy"):
        attempted()
        thread = threading.Thread(target=attempted)  # a library's own threads are confined too
        thread.start()
        thread.join()
    assert len(caught) == 2 and not (at / "PWNED").exists()
    assert all(text.startswith("the file may not ") and text.endswith("; do as you please") for text in caught)
    assert pickle.loads(pickle.dumps(PICTURES)) == PICTURES  # outside of it nothing changes


def test_paths_that_leave_the_working_folder():
    outside = ["/etc/x", "~/x", "../x", "a/../../x", "C:\\x", "\\\\host\\x", "..\\x"]
    assert paths_outside({"a": outside, "b": {"c": ("x", 3, None, "runs/digits", "org/model", "a..b", ".")}}) == outside


# Gin files and run folders


def test_a_configuration_among_pictures_is_not_read(reference, pictures, at, capsys):
    (pictures / "config.gin").write_text(HOSTILE)
    assert main(["evaluate", "s", "--reference", reference, "--metrics", "fd"]) == 0
    refused(["evaluate", "s"], at, capsys, "expected a run at s (config.gin and a checkpoint); there is none")
    (pictures / "checkpoints" / "00000001").mkdir(parents=True)  # what looks like a run is read, but restricted
    for more in ([], ["--reference", reference]):
        refused(["evaluate", "s", *more], at, capsys, "restricted mode refuses 'from __gin__ import dynamic_registr")
        refused(["evaluate", "s", *more], at, capsys, "give --trust-config")


def test_a_run_that_imports_is_evaluated_when_the_user_vouches_for_it(at, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(at))
    (at / "mine_of_this_test.py").write_text("import pathlib; pathlib.Path('PWNED').touch()\n")
    (at / "run" / "checkpoints" / "00000001").mkdir(parents=True)
    (at / "run" / "config.gin").write_text("import mine_of_this_test\n" + RUN)
    refused(["evaluate", "run"], at, capsys, "refuses 'import mine_of_this_test'; give --trust-config")
    assert main(["evaluate", "run", "--trust-config"]) == 2 and (at / "PWNED").exists()
    assert "binds no rdm.train.evaluation" in capsys.readouterr().err
