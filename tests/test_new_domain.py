"""The guide for a new domain runs as printed, and its samples come out in the order that it says."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from rdm.__main__ import main
from rdm.randomness import seeded
from tests.shared_data import folder

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "new_domain.md").read_text()
SETS = "clean", "noisy", "pitch", "one_speaker"  # the best first


@pytest.mark.slow
def test_the_guide_runs_and_ranks_its_samples(tmp_path, monkeypatch):
    folder("fsdd")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "experiments", "experiments")
    names: dict = {}
    for kind, block in re.findall(r"```(python|console)\n(.*?)```", GUIDE, re.S):
        if kind == "python":
            with seeded(0):
                exec(block, names)
            continue
        for line in block.strip().splitlines():
            program, *arguments = shlex.split(line)
            assert program == "rdm" and main(arguments) == 0, line
    found = {name: json.loads(Path(f"{name}.json").read_text())["metrics"] for name in SETS}
    for metric in ("fdr", "sw_r", "mmd_r"):
        means = [found[name][f"{metric}/mean of 3"] for name in SETS]
        assert [m["value"] for m in means] == sorted(m["value"] for m in means), metric
        assert means[0]["low"] <= 1 <= means[0]["high"] and means[3]["low"] > means[1]["value"], metric
        assert re.search(rf"\| {metric} +\|", GUIDE), "the table has a row for it"


def test_the_guide_names_what_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", GUIDE):
        assert (ROOT / "docs" / path).exists(), path
    for path in re.findall(r"experiments/[\w/]+\.gin", GUIDE):
        assert (ROOT / path).exists(), path
