"""The programs in examples/: under 30 lines each, and on two gloo processes they train what `rdm train` does."""

import contextlib
import importlib.util
import os
import re
import runpy
import socket
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rdm
from rdm.__main__ import main
from rdm.api import require
from rdm.errors import InputError
from rdm.files.checkpoint import load_weights

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
NEEDED = {"in_accelerate": "accelerate", "in_lightning": "lightning", "in_lightning_manually": "lightning"}


def installed(program: Path) -> bool:
    return program.stem not in NEEDED or importlib.util.find_spec(NEEDED[program.stem]) is not None


def lines(program: Path) -> int:
    return sum(bool(line.strip()) for line in program.read_text().splitlines())


def ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


def run_all(rank: int, folder: str, programs: list[Path], meeting: list[int]) -> None:
    """Every program, as torchrun would start it."""
    os.chdir(folder)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with contextlib.suppress(InputError):  # lightning imports it, which is mended first where it does not fit
        require("torchvision", extra="vision", owner="lightning")
    held = []  # what the programs made: torch's wrapper of one may wait for ever when it goes
    for program, port in zip(programs, meeting, strict=True):
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
        given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "examples"}
        os.environ |= {name: str(value) for name, value in given.items()}
        held.append(runpy.run_path(str(program), run_name="__main__"))
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    os._exit(0)  # for the same reason


def weights(run: Path) -> dict[str, Tensor]:
    """Of the run's model, as the programs save them."""
    model = rdm.generator("mlp", width=32)
    load_weights(model, str(run))
    return dict(model.state_dict())


def test_the_programs_are_short_and_the_page_shows_them_as_they_are():
    shown = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "trainers.md").read_text(), re.S)
    assert sorted(shown) == sorted(program.read_text() for program in PROGRAMS) and len(PROGRAMS) >= 4
    assert all(lines(program) < 30 for program in PROGRAMS)


@pytest.mark.slow
def test_two_processes_train_what_the_trainer_does(tmp_path, monkeypatch):
    programs = [program for program in PROGRAMS if installed(program)]
    given = str(tmp_path), programs, ports(len(programs))
    torch.multiprocessing.spawn(run_all, given, nprocs=2)
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(ROOT / "examples" / "spiral.gin"), "--out", "run"]) == 0
    expected = weights(tmp_path / "run")
    for program in programs:
        saved = torch.load(tmp_path / f"{program.stem}.pt", weights_only=True)
        found = {name.removeprefix("generator."): value for name, value in saved.get("state_dict", saved).items()}
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=f"{program.stem}: {name}")
    if len(programs) < len(PROGRAMS):
        pytest.skip("accelerate or lightning is not installed; the others were tried")
