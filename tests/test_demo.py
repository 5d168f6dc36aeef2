"""The main job on real digits, as `make demo` runs it, and the claims that the README makes of it."""

import json
import re
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).parent.parent


def demo_commands() -> list[list[str]]:
    """What the Makefile's demo runs, as arguments of Python."""
    recipe = (ROOT / "Makefile").read_text().split("demo:", 1)[1].split("\n\n")[0]
    lines = re.findall(r"^\t(.*)", recipe, re.M)
    programs = {"$(RDM)": "-m rdm", "$(VENV)/bin/python ": "", "$(RUNS)": "runs/digits"}
    for name, words in programs.items():
        lines = [line.replace(name, words) for line in lines]
    return [line.split() for line in lines]


@pytest.mark.slow
def test_post_training_makes_a_one_step_generator(tmp_path):
    commands = demo_commands()
    mmd = [part.replace("frechet_ema", "mmd_exact") for part in commands[-1]]
    for command in (*commands, mmd):
        command = [str(ROOT / part) if part.endswith(".gin") else part for part in command]
        assert command[0] == "-m"
        process = processes.Command(processes.module, *command[1:], cwd=tmp_path, RDM_CACHE=str(tmp_path / "cache"))
        assert process.wait(3600) == 0, process.communicate()
    for name in ("frechet_ema", "mmd_exact"):
        metrics = json.loads((tmp_path / "runs/digits" / name / "result.json").read_text())["metrics"]
        after = metrics["sw/held_out_mixer"]["value"]
        assert after <= 1.15 and after <= metrics["one step before: sw/held_out_mixer"]["value"] / 2
        assert metrics["accuracy"]["value"] >= 0.97
        assert metrics["spread"]["value"] >= 0.9 and metrics["copies"]["value"] <= 0.03
        assert (tmp_path / "runs/digits" / name / "report.html").exists()
