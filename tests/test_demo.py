"""The main job on real digits, as `rdm demo` runs it, and the claims that the README makes of it."""

import json

import pytest

from tests import processes


@pytest.mark.slow
def test_post_training_makes_a_one_step_generator(tmp_path):
    for command in (["demo"], ["train", "digits/mmd_exact", "--out", "runs/digits/mmd_exact"]):
        process = processes.rdm(*command, cwd=tmp_path, RDM_CACHE=str(tmp_path / "cache"))
        assert process.wait(3600) == 0, process.communicate()
    for name in ("frechet_ema", "mmd_exact"):
        metrics = json.loads((tmp_path / "runs/digits" / name / "result.json").read_text())["metrics"]
        after = metrics["sw/held_out_mixer"]["value"]
        assert after <= 1.15 and after <= metrics["one step before: sw/held_out_mixer"]["value"] / 2
        assert metrics["accuracy"]["value"] >= 0.97
        assert metrics["spread"]["value"] >= 0.9 and metrics["copies"]["value"] <= 0.03
        assert (tmp_path / "runs/digits" / name / "report.html").exists()
