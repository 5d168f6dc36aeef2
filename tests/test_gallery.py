"""The gallery of a sweep: which pictures, and where."""

import io
import os

import numpy as np
import torch
from PIL import Image

from rdm.files.pictures import compared_pictures, save_compared, save_grid
from rdm.files.store import write_json
from rdm.reports.gallery import Panel, gallery
from rdm.reports.run import samples_of
from rdm.reports.sweep_page import write_sweep_report


def picture(path, colour):
    save_grid(path, torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 40, 40), columns=1)
    return path


def shares(png: bytes) -> dict[str, float]:
    """How much of a picture is red, green or blue."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3).astype(int)
    others = pixels.sum(1, keepdims=True) - pixels
    return dict(zip("rgb", (pixels - others > 200).mean(0).tolist(), strict=True))


def test_the_pictures_of_a_point(tmp_path):
    assert samples_of(tmp_path) == {}
    old = picture(tmp_path / "samples" / "compare a.png", (1.0, 0.0, 0.0))
    assert samples_of(tmp_path) == {"a": old}, "of a version that did not number them"
    save_compared(tmp_path / "samples", dict.fromkeys(("real", "a", "10 steps", "this run"), old.read_bytes()))
    found = compared_pictures(tmp_path / "samples")
    for age, (_, path) in enumerate(found):
        os.utime(path, (1e9 - age, 1e9 - age))  # as a copy may have them
    picture(tmp_path / "samples" / "00000010.png", (0.0, 0.0, 1.0))
    assert [title for title, _ in compared_pictures(tmp_path / "samples")] == ["real", "a", "10 steps", "this run"]
    newest = tmp_path / "samples" / "compare 03 this run.png"
    assert list(samples_of(tmp_path).values())[-1] == newest and not old.exists()


def test_a_panel_a_place_and_the_first_of_several(tmp_path):
    red, green = (picture(tmp_path / f"{c}.png", c) for c in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    found = shares(gallery([Panel("x", "a", red), Panel("x", "a", green), Panel("y", "b", green)]))
    assert found["r"] > 0.1 and abs(found["r"] - found["g"]) < 0.02, "one panel each, of the same size"
    assert found["r"] + found["g"] < 0.6, "two places are empty"


def test_a_sweeps_report_shows_the_first_seed_done(tmp_path):
    points = []
    for seed, colour in ((0, None), (1, (1.0, 0.0, 0.0)), (2, (0.0, 0.0, 1.0))):
        place = f"points/{seed}"
        points.append({"labels": {"kind": "k", "rdm.train.seed": seed}, "bindings": [], "folder": place})
        if colour is not None:
            picture(tmp_path / place / "samples" / "compare s.png", colour)
            metric = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1, "seed": 0}
            write_json(tmp_path / place / "result.json", {"metrics": {"m": metric}, "seconds": 1.0})
    axes = ["kind", "rdm.train.seed"]
    write_json(tmp_path / "sweep.json", {"file": "s.gin", "axes": axes, "goals": {}, "points": points})
    page = write_sweep_report(tmp_path).read_text()
    found = shares((tmp_path / "samples.png").read_bytes())
    assert "k</a> <span>seed 1</span>" in page and found["r"] > 0.3 and found["b"] == 0
