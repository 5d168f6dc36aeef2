"""The study of faults: disjoint sets of equal size, repeatable changes, and what it finds on real pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from experiments.degradations.study import COUNTS, FAULTS, Part, Sizes, drawn, judged_sets, run, split
from experiments.degradations.tables import load, means, sight, steps, table, tables, worse_beyond, worsens
from rdm.app.process import keep_freed_memory
from rdm.data.source import Form, open_source
from rdm.errors import InputError
from rdm.matching.metric import Metric
from tests.shared_data import folder

LABELS = np.repeat(np.arange(10), 40)


@pytest.fixture
def source(tmp_path):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", images=draw.integers(0, 256, (400, 16, 16, 3), np.uint8), labels=LABELS)
    return open_source(tmp_path / "x.npz")


def test_splits_are_disjoint_and_classes_equally_often():
    reference, fresh, pool = split(LABELS, Sizes(100, 50, 50))
    assert len({*reference, *fresh, *pool}) == len(reference) + len(fresh) + len(pool) == 250
    assert np.bincount(LABELS[reference]).tolist() == [10] * 10 and np.bincount(LABELS[fresh]).tolist() == [5] * 10
    for dropped in (0, *COUNTS):
        chosen = drawn(pool, LABELS, 50, dropped)
        counts = np.bincount(LABELS[chosen], minlength=10)
        assert len(set(chosen)) == 50 and (counts > 0).sum() == 10 - dropped
        assert counts[: 10 - dropped].max() - counts[: 10 - dropped].min() <= 1
    with pytest.raises(InputError, match="class 0 has 40 pictures; 50 are needed"):
        split(LABELS, Sizes(200, 100, 100))


def test_every_set_has_as_many_pictures_and_changes_are_repeatable(source):
    _, _, pool = split(LABELS, Sizes(100, 50, 50))
    sets = dict(judged_sets(source, pool, LABELS, 50))
    assert len(sets) == 13 and {len(part) for part in sets.values()} == {50}
    first = sets["clean"].read(0)
    for fault, (_, levels) in FAULTS.items():
        errors = []
        for level in levels:
            part = sets[f"{fault} {level:g}"]
            assert part.name(0) == sets["clean"].name(0) and part.label(0) == sets["clean"].label(0)
            changed = part.read(0)
            assert changed.dtype == np.uint8 and changed.shape == first.shape
            assert (changed == part.read(0)).all()
            errors.append(float(np.square(changed.astype(float) - first).mean()))
        assert 0 < errors[0] < errors[1] < errors[2], fault
    assert isinstance(sets["clean"], Part) and Form().item(sets["clean"], 0).depth == "8-bit"


def test_worse_is_up_for_distances_and_down_for_shares():
    assert worsens("fd", [1, 2, 3]) and not worsens("fd", [1, 2, 2]) and not worsens("recall", [1, 2, 3])
    assert worsens("recall", [0.3, 0, 0]) and not worsens("recall", [0.3, 0.3, 0])
    assert worsens("recall", [3, 2, 1]) and worsens("sw_r", [0.9, 1.1, 5]) and worsens("inception_score", [9, 8])
    low, high = Metric(1, 0.9, 1.1, 9, 0), Metric(2, 1.5, 2.5, 9, 0)
    assert worse_beyond("fd", low, high) and not worse_beyond("fd", high, low)
    assert worse_beyond("precision", high, low) and not worse_beyond("sw", low, low)
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.slow
def test_real_pictures_score_one_and_every_fault_is_seen(tmp_path):
    data = folder("imagenette224") / "val_jpeg.npz"
    folder("imagenet_encoders")
    keep_freed_memory()
    run(data, tmp_path, Sizes(100, 50, 50), battery="mobile", arguments={}, names=["mmd_r", "sw_r"])
    verdicts = load(tmp_path)
    clean = verdicts["clean"]["sw_r/mean of 6"]
    assert clean.low <= 1 <= clean.high
    for fault in ("blur", "noise", "jpeg"):
        path = [clean, *(verdicts[name]["sw_r/mean of 6"] for name in steps(fault))]
        assert worsens("sw_r", [metric.value for metric in path]) and worse_beyond("sw_r", path[0], path[-1]), fault
    assert verdicts["dropped classes 5"]["mmd_r/mean of 6"].low > 1
    assert means(verdicts, ["mmd_r", "sw_r"]) in tables(tmp_path) and sight(verdicts) in tables(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    run(data, tmp_path, Sizes(100, 50, 50), battery="mobile", arguments={}, names=["mmd_r", "sw_r"])
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}, "what is there is kept"


def test_jpeg_is_what_pillow_writes(source):
    change, _ = FAULTS["jpeg"]
    picture, buffer = source.read(0), io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=20)
    assert (change(20, picture, 0) == np.asarray(Image.open(buffer))).all()
