"""The spiral: its data, its judge on known cases, and a generator without classes that learns it."""

import json
from pathlib import Path

import pytest
import torch

import rdm
from rdm.__main__ import main
from rdm.datasets.spiral import SpiralScore
from rdm.errors import InputError

BASE = str(Path(__file__).parent.parent / "experiments" / "spiral" / "base.gin")


def test_real_data_cover_the_curve_at_the_distance_of_the_noise():
    """The median of |N(0, 0.05)| is 0.0337, its standard error over 4,000 rows 0.0006."""
    for seed in range(3):
        found = SpiralScore().measure(rdm.dataset("spiral", n=4000, seed=seed).images)
        assert found["recall"].value == 1
        assert found["distance"].value == pytest.approx(0.0337, abs=0.0018)
        assert found["distance"].low < found["distance"].value < found["distance"].high
        assert found["distance"].n == 4000 and found["off plane"].value < 1e-6


def test_the_data_are_a_plane_with_two_turns():
    data = rdm.dataset("spiral")
    assert data.images.shape == (2000, 64) and data.classes == 1 and not data.labels.any()
    assert torch.linalg.matrix_rank(data.images, rtol=1e-4) == 2
    radius = data.images.norm(dim=1)
    assert 0.3 < radius.min() < 0.6 and 2.4 < radius.max() < 2.8
    assert torch.equal(data.images, rdm.dataset("spiral").images)
    assert not torch.equal(data.images, rdm.dataset("spiral", seed=1).images)


@pytest.mark.parametrize("dimension", [2, 8, 512])
def test_the_same_points_whatever_the_dimension(dimension):
    """Distances are those in R^64, so that bandwidths keep their meaning, and the score knows the plane."""
    here, there = (rdm.dataset("spiral", n=300, dimension=d).images for d in (dimension, 64))
    assert torch.cdist(here.double(), here.double()).allclose(torch.cdist(there.double(), there.double()), atol=1e-5)
    found = [SpiralScore().measure(items) for items in (here, there)]
    assert found[0]["distance"].value == pytest.approx(found[1]["distance"].value, abs=1e-5)
    assert found[0]["off plane"].value < 1e-6


def test_the_score_sees_a_missing_turn_and_a_displacement():
    images = rdm.dataset("spiral", n=4000).images
    inner = images[images.norm(dim=1) < 1.5]
    assert SpiralScore().measure(inner)["recall"].value == pytest.approx(0.5, abs=0.06)
    normal = torch.linalg.svd(images).Vh[-1]
    moved = SpiralScore().measure(images + 0.5 * normal)
    assert moved["off plane"].value == pytest.approx(0.5, abs=1e-5)
    assert moved["recall"].value == 1 and moved["distance"].value == pytest.approx(0.0337, abs=0.0018)
    wider = SpiralScore().measure(images * 1.4)
    assert wider["recall"].value < 0.6 and wider["distance"].value > 0.2


def test_wrong_settings():
    with pytest.raises(InputError, match="resamples must be a whole number from 2"):
        SpiralScore(resamples=1)
    with pytest.raises(InputError, match="dimension must be a whole number from 2"):
        rdm.dataset("spiral", dimension=1)
    with pytest.raises(InputError, match=r"points \"n d\"; got \(4000, 1, 8, 8\)"):
        SpiralScore()(rdm.generator("mlp_flow", width=8, depth=1))


def test_a_run_without_classes_or_pictures(tmp_path, capsys):
    bindings = "losses.matching.objective = @objectives.mmd()", "rdm.train.steps = 3", "generators.mlp.width = 16"
    arguments = [BASE, "--out", str(tmp_path / "run"), *(x for b in bindings for x in ("--bind", b))]
    assert main(["train", *arguments]) == 0
    assert set(json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]) == {
        "recall",
        "distance",
        "off plane",
    }
    assert [p.name for p in (tmp_path / "run" / "samples").iterdir()] == ["compare 00 samples in the plane.png"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "samples in the plane" in page and "A column is a class" not in page and "ratios" not in page
    assert main(["evaluate", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_matching_learns_the_spiral(tmp_path):
    """Recall grows and the distance to the curve falls from the first step to the 1,500th of the study's 8,000."""
    found = []
    for steps in (1, 1500):
        bindings = "losses.matching.objective = @objectives.mmd()", f"rdm.train.steps = {steps}"
        arguments = [BASE, "--out", str(tmp_path / str(steps)), *(x for b in bindings for x in ("--bind", b))]
        assert main(["train", *arguments]) == 0
        metrics = json.loads((tmp_path / str(steps) / "result.json").read_text())["metrics"]
        found.append((metrics["recall"]["value"], metrics["distance"]["value"]))
    assert found[1][0] > 2 * found[0][0] and found[1][1] < found[0][1]
