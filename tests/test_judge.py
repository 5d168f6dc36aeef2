"""`rdm evaluate SAMPLES --reference FILE`: samples of every form, notes, alarms, refusals, 8-bit against float."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rdm
from rdm.__main__ import main
from rdm.app.judging import judge_source, make_reference
from rdm.data.source import Given, open_source
from rdm.errors import InputError
from rdm.judging.evaluation import Evaluation
from rdm.judging.samples import Rows, Verdict, alarms, judge
from rdm.matching.metric import Metric
from rdm.matching.real import Gaussian, Real
from rdm.matching.representation import Battery
from rdm.references.file import Member, Reference
from rdm.registry import batteries
from rdm.reports.chart import chart

RNG = np.random.default_rng(0)


def pictures(n: int, *, seed: int, noise: float = 0.0) -> np.ndarray:
    """Smooth grey 6x6 pictures, 8-bit."""
    g = np.random.default_rng(seed)
    waves = np.sin(np.arange(6) * g.uniform(0.3, 1.5, (n, 1)) + g.uniform(0, 6, (n, 1)))
    values = 0.5 + 0.3 * waves[:, :, None] * waves[:, None, :] + noise * g.normal(size=(n, 6, 6))
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    np.save(folder / "train.npy", pictures(500, seed=1))
    make_reference([folder / "train.npy"], folder / "r.safetensors", battery="untrained", split=0.4)
    (folder / "folder").mkdir()
    for k, picture in enumerate(pictures(150, seed=2)):
        Image.fromarray(picture).save(folder / "folder" / f"{k:03}.png")
    np.save(folder / "noisy.npy", pictures(150, seed=2, noise=0.1))
    return folder


def test_a_folder_is_judged_with_every_metric(made, capsys):
    command = ["evaluate", str(made / "folder"), "--reference", str(made / "r.safetensors")]
    assert main([*command, "--json", str(made / "v.json"), "--chart", str(made / "v.svg"), "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((made / "v.json").read_text())
    assert {k.split("/")[0] for k in found["metrics"]} >= {"fd", "sw", "mmd", "energy", "cmmd", "precision", "coverage"}
    ratio = found["metrics"]["sw_r/pca"]
    assert set(ratio) == {"value", "low", "high", "n", "seed"} and ratio["low"] <= 1 <= ratio["high"]
    assert "sw_r/mean of 4" in found["metrics"] and "fdr/mean of 1 held out" in found["metrics"]
    assert (
        "held_out_convolutions (held out)" in printed
        and "samples are 8-bit, the reference was made of 8-bit" in printed
    )
    assert any("inception_score not measured" in note for note in found["notes"])
    assert any("kid_spread needs at least 1000 generated rows" in note for note in found["notes"])
    assert (made / "v.svg").read_text().startswith("<svg")
    again = made / "again.json"
    assert main([*command, "--json", str(again), "--batch", "7"]) == 0
    for name, metric in json.loads(again.read_text())["metrics"].items():
        assert metric["value"] == pytest.approx(found["metrics"][name]["value"], rel=1e-5, abs=1e-7), name


def test_damage_is_seen_and_chosen_metrics_alone_are_measured(made):
    file = Reference.load(made / "r.safetensors")
    clean, noisy = (
        judge_source(Given(torch.from_numpy(v)[:, None] / 255), file, made / "r.safetensors", names=["fdr", "sw_r"])
        for v in (pictures(150, seed=2), pictures(150, seed=2, noise=0.1))
    )
    assert {k.split("/")[0] for k in clean.metrics} == {"fdr", "sw_r"}
    for name in ("fdr/pixels", "sw_r/pixels", "fdr/mean of 4"):
        assert noisy.metrics[name].low > max(1, clean.metrics[name].value), name


def test_features_are_judged_without_encoder(tmp_path, capsys):
    for name, seed in (("real", 0), ("made", 1)):
        rows = np.random.default_rng(seed).normal(size=(400, 5)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", clip=rows, mae=rows[:, :3])
    assert main(["reference", str(tmp_path / "real.npz"), "--out", str(tmp_path / "r.safetensors")]) == 0
    command = ["evaluate", str(tmp_path / "made.npz"), "--reference"]
    assert main([*command, str(tmp_path / "r.safetensors"), "--metrics", "fdr,fd_infinity"]) == 0
    assert "fdr" in capsys.readouterr().out
    rows = torch.from_numpy(np.load(tmp_path / "real.npz")["clip"]).double()
    np.savez(tmp_path / "stats.npz", mu=rows.mean(0), sigma=torch.cov(rows.T))
    np.save(tmp_path / "made.npy", np.load(tmp_path / "made.npz")["clip"])
    command = ["evaluate", str(tmp_path / "made.npy"), "--reference", str(tmp_path / "stats.npz")]
    assert main([*command, "--metrics", "fd", "--json", str(tmp_path / "v.json")]) == 0
    found = json.loads((tmp_path / "v.json").read_text())["metrics"]["fd/features"]["value"]
    made = torch.from_numpy(np.load(tmp_path / "made.npy"))
    assert found == pytest.approx(float(rdm.distance("frechet", made.double(), rows)), rel=1e-9)
    assert main([*command, "--metrics", "mmd"]) == 2
    assert "stats.npz holds moments only" in capsys.readouterr().err


def test_that_nothing_was_measured_is_an_error(tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    for name, array in (("real", rows), ("one", rows[:1]), ("narrow", rows[:, :3])):
        np.save(tmp_path / f"{name}.npy", array)
    assert main(["reference", str(tmp_path / "real.npy"), "--out", str(tmp_path / "r.safetensors")]) == 0
    for name, reason in (("one", "needs at least 2 generated rows; got 1"), ("narrow", "d=4; got d=3")):
        assert main(["evaluate", str(tmp_path / f"{name}.npy"), "--reference", str(tmp_path / "r.safetensors")]) == 2
        printed = capsys.readouterr()
        (line,) = printed.err.strip().splitlines()[-1:]
        assert "no metric could be measured; cmmd not measured: " in line and reason in line, line
        assert "metric" not in printed.out


def test_float_images_differ_from_eight_bit_ones_and_it_is_said(made):
    """The same pictures before and after rounding to 8 bits: a small difference, not none."""
    file = Reference.load(made / "r.safetensors")
    floats = torch.from_numpy(pictures(150, seed=2) / 255.0).float()[:, None]
    floats = (floats + torch.rand(floats.shape, generator=torch.Generator().manual_seed(0)) / 255 - 0.5 / 255).clamp(
        0, 1
    )
    eight = Given((floats * 255).round().byte())
    found = [judge_source(s, file, made / "r.safetensors", names=["fd", "sw"]) for s in (Given(floats), eight)]
    assert "samples are float, the reference was made of 8-bit; quantise both sides alike" in found[0].notes[0]
    assert "samples are 8-bit, the reference was made of 8-bit" in found[1].notes[0]
    values = [v.metrics["fd/pixels"].value for v in found]
    assert 0 < abs(values[0] - values[1]) < 0.02 * values[1]


def test_gaming_is_said_in_words():
    def ratio(value, half):
        return Metric(value, value - half, value + half, 100, 0)

    honest = {"sw_r/clip": ratio(1.1, 0.2), "sw_r/dino": ratio(1.3, 0.1)}
    assert alarms(honest, ["clip", "dino"], ["dino"]) == []
    gamed = {"sw_r/clip": ratio(0.67, 0.1), "sw_r/mae": ratio(0.9, 0.1), "sw_r/dino": ratio(1.5, 0.1)}
    (line,) = alarms(gamed, ["clip", "mae", "dino"], ["dino"])
    assert line.startswith("gaming alarm: sw_r is 0.67 on clip, an encoder of training")
    assert "1.50 [1.40, 1.60] on dino, which was held out" in line
    unsure = {"sw_r/clip": ratio(0.67, 0.1), "sw_r/dino": ratio(1.05, 0.1)}
    assert alarms(unsure, ["clip", "dino"], ["dino"]) == []
    assert alarms({"fd/clip": ratio(0.5, 0.1), "fd/dino": ratio(2, 0.1)}, ["clip", "dino"], ["dino"]) == []


def test_refusals_are_one_line(made, tmp_path, capsys, monkeypatch):
    reference = str(made / "r.safetensors")
    np.save(tmp_path / "wide.npy", np.zeros((9, 7, 7), np.uint8))
    np.save(tmp_path / "rows.npy", np.zeros((9, 7), np.float32))
    (tmp_path / "a.png").write_bytes(b"no")
    for arguments, message in (
        ([str(tmp_path / "wide.npy"), "--reference", reference], "items of shape [1, 7, 7]"),
        ([str(tmp_path / "rows.npy"), "--reference", reference], "samples have features ['features']"),
        ([str(tmp_path / "none"), "--reference", reference, "--metrics", "fd,fid"], "unknown metric 'fid'"),
        (
            [str(made / "noisy.npy"), "--reference", reference, "--metrics", "kid_spread"],
            "kid_spread needs at least 1000",
        ),
        ([str(made / "noisy.npy"), "--reference", str(made / "no.safetensors")], "expected a file at"),
        ([str(tmp_path / "none"), "--reference", reference], "expected data at"),
        ([str(made / "noisy.npy"), "--reference", str(made / "v.npz")], "expected a file at"),
    ):
        assert main(["evaluate", *arguments]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("rdm: ") and message in line, line
    file = Reference.load(made / "r.safetensors")
    description = file.members["random_convolutions"].description
    kept = description["settings"]
    for key, value, message in (
        ("fingerprint", "0" * 64, "of fingerprint '0000"),
        ("settings", {**kept, "kernel": 99}, "'kernel': 99"),  # preprocessing is among the settings
    ):
        before = description[key]
        description[key] = value
        file.save(tmp_path / "other.safetensors")
        assert main(["evaluate", str(made / "noisy.npy"), "--reference", str(tmp_path / "other.safetensors")]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in line and "now it has" in line and "random_convolutions" in line, line
        description[key] = before
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.save(tmp_path / "good.npy", rows)
    assert main(["reference", str(tmp_path / "good.npy"), "--out", str(tmp_path / "f.safetensors")]) == 0
    rows[[3, 8], 2] = np.nan
    np.save(tmp_path / "bad.npy", rows)
    for command in (
        ["reference", str(tmp_path / "bad.npy"), "--out", str(tmp_path / "g.safetensors")],
        ["evaluate", str(tmp_path / "bad.npy"), "--reference", str(tmp_path / "f.safetensors")],
    ):
        assert main(command) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "NaN or infinity in 2 of 32 rows" in line, line
    assert not (tmp_path / "g.safetensors").exists()


def test_a_run_folder_is_drawn_from(made, tmp_path, monkeypatch, capsys):
    from tests.test_main import GENERATOR

    monkeypatch.chdir(tmp_path)
    lines = [line for line in GENERATOR.splitlines() if "evaluation" not in line and "many" not in line]
    (tmp_path / "g.gin").write_text("\n".join(line for line in lines if "fresh" not in line))
    assert main(["train", "g.gin", "--out", "run"]) == 0
    digits = rdm.dataset("digits", split="all").images
    np.save(tmp_path / "digits.npy", (digits[:, 0].numpy() * 255).round().astype(np.uint8))
    assert main(["reference", "digits.npy", "--battery", "untrained", "--out", "r.safetensors"]) == 0
    assert main(["evaluate", "run", "--reference", "r.safetensors", "--metrics", "sw_r", "--json", "v.json"]) == 0
    found = json.loads((tmp_path / "v.json").read_text())["metrics"]
    assert found["sw_r/pixels"]["low"] > 1 and found["sw_r/pixels"]["n"] > 250
    assert "samples are float" in capsys.readouterr().out


def test_pictures_are_judged_against_moments_whose_encoder_is_named(made, tmp_path, capsys):
    """As against the file that they come from; FDr over constants, and k by name."""
    moments = str(tmp_path / "m.npz")
    assert main(["reference", str(made / "r.safetensors"), "--out", moments, "--member", "random_convolutions"]) == 0
    wanted = "fd,fdr(below={'random_convolutions': 2.0}),precision(k=3)"
    found, named = [], ["--battery", "untrained", "--set", "channels=1", "--member", "random_convolutions"]
    for reference, more, metrics in (
        (str(made / "r.safetensors"), [], wanted.replace(",fdr(below={'random_convolutions': 2.0})", "")),
        (moments, named, wanted.replace(",precision(k=3)", "")),
    ):
        command = ["evaluate", str(made / "folder"), "--reference", reference, *more, "--metrics", metrics]
        assert main([*command, "--json", str(tmp_path / "v.json")]) == 0
        found.append(json.loads((tmp_path / "v.json").read_text())["metrics"])
    value = found[1]["fd/random_convolutions"]["value"]
    assert value == pytest.approx(found[0]["fd/random_convolutions"]["value"], rel=1e-9)
    assert found[1]["fdr(below={'random_convolutions': 2.0})/random_convolutions"]["value"] == pytest.approx(value / 2)
    assert "precision(k=3)/pixels" in found[0]
    held, several = dict(np.load(moments)), str(tmp_path / "several.npz")  # as fadtk has them
    both = {"other": (np.zeros(3), np.eye(3)), "conv": (held["mu"], held["sigma"])}
    pairs = {name: zip(("mu", "cov"), fit, strict=True) for name, fit in both.items()}
    np.savez(several, **{f"{name}.{key}": each for name, pair in pairs.items() for key, each in pair})
    conv = ["--battery", "random_convolutions", "--set", "channels=1"]
    command = ["evaluate", str(made / "folder"), "--reference", several, *conv, "--set", "name=conv", "--metrics", "fd"]
    assert main([*command, "--json", str(tmp_path / "v.json")]) == 0
    again = json.loads((tmp_path / "v.json").read_text())["metrics"]
    assert again["fd/conv"]["value"] == pytest.approx(value, rel=1e-9)
    capsys.readouterr()
    for reference, more, message in (
        (moments, [], "or give its encoder by --battery, and --member where that has several; got images"),
        (moments, ["--battery", "untrained"], "give --member, one of pixels, pca, random_convolutions"),
        (moments, ["--battery", "untrained", "--member", "pca"], "'pca' is fitted on data"),
        (moments, ["--battery", "untrained", "--member", "pixels", "--metrics", "fd"], "got d=36; encode both sides"),
        (moments, ["--member", "pixels"], "--member names an encoder of --battery"),
        (several, conv, "has moments of other, conv, none of 'random_convolutions'; say whose the encoder is: --set"),
        (str(made / "r.safetensors"), ["--battery", "untrained"], "says its own; leave it out"),
    ):
        assert main(["evaluate", str(made / "folder"), "--reference", reference, *more]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("rdm: ") and message in line, line


def test_what_nothing_can_draw_or_judge():
    with pytest.raises(InputError, match="none were measured"):
        chart(Verdict({}))
    with pytest.raises(InputError, match="samples have features"):
        judge(rdm.judging.samples.Rows({}, set()), Reference({}, {}))


def test_feature_metrics_leave_logits_out_and_the_inception_score_takes_them():
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)).double()
    members = {}
    for name, output in (("features", "features"), ("classes", "logits")):
        description = {"settings": {"output": output}}
        gaussian = Gaussian.of(x)
        members[name] = Member(name, gaussian, x[:30], x[30:], description=description)
    found = judge(Rows({"features": x, "classes": 5 * x}, set()), Reference(members, {}), seed=0)
    names = {key.partition("/")[::2] for key in found.metrics}
    assert ("inception_score", "classes") in names and ("inception_score", "features") not in names
    assert {member for name, member in names if name != "inception_score"} == {"features"}
    only = Reference({"classes": members["classes"]}, {})
    assert "fd/classes" in judge(Rows({"classes": 5 * x}, set()), only).metrics


def test_encoders_joined_with_the_class_are_fitted_and_judged_with_labels(tmp_path):
    labels = np.arange(400) % 8
    values = pictures(400, seed=3)
    values[:, 0] = (30 * labels)[:, None]  # the class shows
    np.savez(tmp_path / "real.npz", images=values, labels=labels)
    right, wrong = tmp_path / "right.npz", tmp_path / "wrong.npz"
    other = pictures(400, seed=4)
    other[:, 0] = (30 * labels)[:, None]
    np.savez(right, images=other, labels=labels)
    np.savez(wrong, images=other, labels=np.random.default_rng(0).permutation(labels))
    with batteries.temporarily():
        members = rdm.representation("pixels"), rdm.representation("joint", representation="pixels", condition=8)
        batteries.register("labelled")(lambda: Battery(members))
        make_reference([tmp_path / "real.npz"], tmp_path / "r.safetensors", battery="labelled", split=0.4)
        file = Reference.load(tmp_path / "r.safetensors")
        names = {"names": ["sw_r"]}
        found = [judge_source(open_source(p), file, tmp_path / "r.safetensors", **names) for p in (right, wrong)]
    matched, mixed = (verdict.metrics["sw_r/joint_pixels"] for verdict in found)
    assert matched.low <= 1 <= matched.high and mixed.low > matched.value
    assert found[0].metrics["sw_r/pixels"] == found[1].metrics["sw_r/pixels"], "which does not see the class"


def test_what_an_evaluations_battery_holds_out_is_held_out(made):
    """Whatever the reference was measured with: the generator was trained on the evaluation's battery."""
    generator = rdm.generator("unet", shape=(1, 6, 6), classes=None, channels=4, multiples=(1,), blocks=0)
    battery = rdm.battery("untrained").training_on("pixels")
    judged = Evaluation(str(made / "r.safetensors"), battery=battery, metrics=["sw_r"], n=40)(generator)
    assert "sw_r/mean of 3 held out" in judged and "sw_r/mean of 1 held out" not in judged


def test_copies_of_the_training_set_are_looked_for_where_it_is_given(made, tmp_path, capsys):
    """Items, a reference that keeps every row of them, or the run's own configuration: one number each."""
    train = pictures(200, seed=1)  # of which the reference's data begin with
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "real.npy", pictures(300, seed=5))
    mixed = np.concatenate([train[:75], pictures(75, seed=6)])
    np.save(tmp_path / "copied.npy", mixed)
    np.save(tmp_path / "honest.npy", pictures(150, seed=6))
    whole = ["--rows", "all", "--split", "0"]
    for name, more in (("train", whole), ("real", ["--split", "0.5"])):
        out = ["--battery", "pixels", "--out", str(tmp_path / f"{name}.safetensors")]
        assert main(["reference", str(tmp_path / f"{name}.npy"), *out, *more]) == 0
    found, metrics = {}, ["--metrics", "fd,authenticity,c_t,fld_gap,mifid"]
    for name, train_set in (("copied", "train.npy"), ("honest", "train.npy"), ("copied", "train.safetensors")):
        command = ["evaluate", str(tmp_path / f"{name}.npy"), "--reference", str(tmp_path / "real.safetensors")]
        more = ["--train", str(tmp_path / train_set), "--json", str(tmp_path / "v.json")]
        assert main([*command, *metrics, *more]) == 0
        verdict = json.loads((tmp_path / "v.json").read_text())
        found[name, train_set] = verdict["metrics"]
        alarmed = any(
            "c_t/pixels: generated items are nearer to the training set" in line for line in verdict["alarms"]
        )
        assert alarmed == (verdict["metrics"]["c_t/pixels"]["high"] < -3) == (name == "copied")
    copied, honest = found["copied", "train.npy"], found["honest", "train.npy"]
    assert copied["c_t/pixels"]["high"] < -3 < honest["c_t/pixels"]["low"]
    assert copied["authenticity/pixels"]["high"] < honest["authenticity/pixels"]["value"]
    assert copied["fld_gap/pixels"]["high"] < 0 and copied["mifid/pixels"]["value"] >= copied["fd/pixels"]["value"]
    for key, other in found["copied", "train.safetensors"].items():
        assert other["value"] == pytest.approx(copied[key]["value"], rel=1e-4), key
    assert main(command) == 0
    assert "authenticity, c_t, fld_gap, mifid not measured: they look for copies" in capsys.readouterr().out
    generator = rdm.generator("unet", shape=(1, 6, 6), classes=None, channels=4, multiples=(1,), blocks=0)
    options = {"metrics": ["authenticity"], "n": 40, "train": str(tmp_path / "train.safetensors")}
    judged = Evaluation(str(tmp_path / "real.safetensors"), **options)(generator)
    assert judged["authenticity/pixels"].value > 0.9
    few = ["--battery", "pixels", "--sample", "50", "--out", str(tmp_path / "few.safetensors")]
    assert main(["reference", str(tmp_path / "train.npy"), *few]) == 0
    for train_set, message in (
        (tmp_path / "few.safetensors", "a search for copies needs every row"),
        (tmp_path / "no.npy", "expected data at"),
    ):
        assert main([*command, "--train", str(train_set)]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    np.save(tmp_path / "wide.npy", np.zeros((9, 7, 7), np.uint8))
    assert main([*command, "--train", str(tmp_path / "wide.npy")]) == 2
    assert "items of shape [1, 7, 7]" in capsys.readouterr().err.strip().splitlines()[-1]


def test_distances_are_taken_apart_by_class_and_by_item(tmp_path, capsys):
    """Of labelled features; one class is off, and one item of another."""
    draw = np.random.default_rng(0)
    labels = np.arange(300) % 3
    real, made = (draw.normal(size=(n, 4)).astype(np.float32) for n in (600, 300))
    made[labels == 2] += 1
    made[7] = 4
    np.savez(tmp_path / "real.npz", features=real, labels=np.arange(600) % 3)
    np.savez(tmp_path / "made.npz", features=made, labels=labels)
    reference = str(tmp_path / "r.safetensors")
    assert main(["reference", str(tmp_path / "real.npz"), "--split", "0", "--per-class", "--out", reference]) == 0
    command = ["evaluate", str(tmp_path / "made.npz"), "--reference", reference]
    taken = ["--metrics", "fd", "--per-class", "fd", "--per-item", "fd", "--json", str(tmp_path / "v.json")]
    assert main([*command, *taken]) == 0
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "v.json").read_text())
    classes = found["classes"]["fd/features"]
    for k in range(3):
        x, y = torch.from_numpy(made[labels == k]).double(), torch.from_numpy(real[np.arange(600) % 3 == k]).double()
        expected = rdm.metric("fd")(x, Real(y))
        assert classes[str(k)]["value"] == pytest.approx(expected.value, rel=1e-5) and classes[str(k)]["n"] == 100
    mean = sum(classes[str(k)]["value"] for k in range(3)) / 3
    assert classes["mean"]["value"] == pytest.approx(mean, rel=1e-12)
    assert (
        classes["mean"]["low"] < mean < classes["mean"]["high"]
        and max(classes, key=lambda k: classes[k]["value"]) == "2"
    )
    items = dict(map(tuple, found["items"]["fd/features"]))
    names = [open_source(tmp_path / "made.npz").name(k) for k in range(300)]
    first, *_ = items
    assert len(items) == 300 and first == names[7] and list(items.values()) == sorted(items.values(), reverse=True)
    everything = Real(torch.from_numpy(real).double())
    whole = rdm.metric("fd")(torch.from_numpy(made).double(), everything).value
    for place in (7, 8, 100):  # against leaving the item out
        left = whole - rdm.metric("fd")(torch.from_numpy(np.delete(made, place, 0)).double(), everything).value
        name = names[place]
        assert items[name] == pytest.approx(left, rel=0.1, abs=2e-4), place
    assert "mean" in printed and first in printed
    for more, message in (
        (["--per-class", "precision"], "precision is no distance that can be taken apart; give one of cmmd"),
        (["--per-class", "mmd"], "mmd needs rows of the reference"),
        (["--per-item", "fid"], "unknown metric 'fid'"),
    ):
        assert main([*command, "--metrics", "fd", *more]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert main(["reference", str(tmp_path / "real.npz"), "--out", reference]) == 0
    assert main([*command, "--metrics", "fd", "--per-class", "fd"]) == 2
    assert "holds no moments of classes" in capsys.readouterr().err
