"""Batteries as the command line names them: representations with commas, a preset of FID; the verdict's three lines."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rdm
from rdm.__main__ import main
from rdm.errors import InputError, UnknownNameError
from rdm.judging.headline import headline
from rdm.judging.samples import Verdict
from rdm.matching.metric import Metric
from rdm.matching.representation import Battery
from rdm.references.file import Reference
from rdm.references.measure import Encoders
from rdm.references.pairing import battery_by_name
from representations._inception import with_logits


def test_representations_with_commas_are_a_battery():
    found = battery_by_name("log_mel, pca", {"pca.components": 4, "log_mel.rate": 16000, "whiten": True})
    assert [m.name for m in found.members] == ["log_mel", "pca"] and found.held_out == ()
    assert dict(found.members[1].settings) == {"components": 4, "whiten": True}
    assert found.members[0].inputs.rate == 16000
    assert len(battery_by_name("untrained", {"channels": 1}).members) == len(rdm.battery("untrained").members)


def test_how_encoders_run_is_an_argument_of_every_battery():
    for text in ("untrained", "pixels,pca"):
        battery = battery_by_name(text, {"precision": {"pixels": "float64"}, "micro_batch": 4})
        runs = {m.name: (m.precision, m.micro_batch) for m in (*battery.members, *battery.held_out)}
        assert runs.pop("pixels") == ("float64", 4) and set(runs.values()) == {("float32", 4)}


@pytest.mark.parametrize("text, arguments, kind, message", [
    ("pixel", {}, UnknownNameError, "unknown battery or representation 'pixel'; did you mean 'pixels'"),
    ("pixels,pcaa", {}, UnknownNameError, "did you mean 'pca'"),
    ("pixels,untrained", {}, InputError, "'untrained' is a battery, which goes alone"),
    ("pixels", {"feature": 3}, InputError, "has no argument 'feature'; there are none"),
    ("pixels,", {}, UnknownNameError, "representation ''"),
    ("pixels,pixels", {}, InputError, "each representation once"),
    ("pixels,pca", {"pca.component": 3}, InputError, "no hyperparameter 'component'; did you mean 'components'"),
    ("pixels,pca", {"pcaa.components": 3}, InputError, "no argument 'pcaa.components'; did you mean 'pca.components'"),
    ("pixels,pca", {"component": 3}, InputError, "no argument 'component'; did you mean 'pca.components'"),
    ("untrained", {"pixels.x": 1}, InputError, "battery 'untrained' has no hyperparameter 'pixels.x'"),
])  # fmt: skip
def test_what_no_battery_can_be_made_of_is_refused(text, arguments, kind, message):
    with pytest.raises(kind, match=message):
        battery_by_name(text, arguments)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("real.npz", np.random.default_rng(0).random((200, 6, 6)))
    np.savez("dark.npz", np.random.default_rng(1).random((100, 6, 6)) / 2)


def test_reference_and_evaluate_by_names(pictures, capsys):
    command = "reference real.npz --battery pixels,pca --set pca.components=3 --set precision=float64"
    assert main([*command.split(), "--out", "r.safetensors"]) == 0
    described = Reference.load("r.safetensors").description["battery"]
    assert described == {"name": "pixels,pca", "arguments": {"pca.components": 3, "precision": "float64"}}
    capsys.readouterr()
    assert main("evaluate dark.npz --reference r.safetensors --json dark.json".split()) == 0
    first, ends, shares, empty, *_ = capsys.readouterr().out.splitlines()
    found = json.loads(Path("dark.json").read_text())["metrics"]
    mean = Metric(**found["sw_r/mean of 2"])
    assert first.startswith(f"sw_r {mean}, mean of 2: farther from the reference")
    near, far = sorted(("pixels", "pca"), key=lambda name: found[f"sw_r/{name}"]["value"])
    shown = {name: str(Metric(**found[f"sw_r/{name}"])) for name in (near, far)}
    assert ends == f"nearest under {near}, {shown[near]}; farthest under {far}, {shown[far]}"
    recall = (found["recall/pixels"]["value"] + found["recall/pca"]["value"]) / 2
    assert f"recall {recall:.2f}" in shares and "means over 2 encoders" in shares and not empty


def test_sound_needs_no_encoder_that_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sound = np.random.default_rng(0).normal(size=(40, 2048)).clip(-1, 1)
    np.savez("s.npz", audio=sound.ravel(), offsets=np.arange(41) * 2048, rate=16000)
    command = "reference s.npz --battery log_mel --set rate=16000 --set log_mel.bands=8 --out s.safetensors"
    assert main(command.split()) == 0
    assert Reference.load("s.safetensors").real("log_mel").dimension == 16


@pytest.mark.parametrize("low, high, said", [
    (1.2, 1.6, "farther from the reference than fresh real data is"),
    (0.7, 1.1, "as far from the reference as fresh real data is"),
    (0.3, 0.6, "look for copies"),
])  # fmt: skip
def test_the_verdict_compares_with_real_data_by_the_interval(low, high, said):
    ratio, other = Metric((low * high) ** 0.5, low, high, 9, 0), Metric(3.0, 2.0, 4.0, 9, 0)
    lines = headline(Verdict({"sw_r/a": ratio, "fd/a": other}, members=("a",)))
    assert said in lines[0] and lines[1:] == ["fd 3.0 [2.0, 4.0] under a"]


def test_a_reference_cannot_have_a_representation_s_weights_fetched(pictures, capsys):
    assert main("reference real.npz --battery pixels --out r.safetensors".split()) == 0
    file = Reference.load("r.safetensors")
    file.description["battery"] = {"name": "inception", "arguments": {"inception.allow_download": True}}
    file.write(Path("evil.safetensors"))
    assert main(["evaluate", "real.npz", "--reference", "evil.safetensors"]) == 2
    assert "inception" in capsys.readouterr().err


@pytest.mark.slow
def test_the_preset_of_fid_measures_what_is_published(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
    command = "reference a.npz --battery fid --set weights=random --split .5 --out r.safetensors"
    assert main(command.split()) == 0
    capsys.readouterr()
    assert main("evaluate a.npz --reference r.safetensors --json j.json".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["fd", "kid", "inception_score"]
    found = json.loads(Path("j.json").read_text())["metrics"]
    assert sorted(found) == ["fd/inception", "inception_score/logits", "kid/inception"]
    plain = ["--battery", "fid", "--set", "weights=random"]  # whose only encoder to train on needs no --member
    assert main(["reference", "a.npz", *plain, "--split", ".5", "--out", "fid.npz"]) == 0
    assert sorted(np.load("fid.npz").files) == ["mu", "sigma"]
    assert main(["evaluate", "a.npz", "--reference", "fid.npz", *plain, "--json", "j.json"]) == 0
    assert "fd/inception" in json.loads(Path("j.json").read_text())["metrics"]


def test_pool_features_and_logits_are_of_one_pass():
    """Computed anew where items, weights or arithmetic have changed, or a gradient is wanted; and as by themselves."""
    features = rdm.representation("inception", weights="random", size=75)
    both = Battery((features,), (with_logits(features, "logits"),))
    alone = rdm.representation("inception", weights="random", size=75, output="logits", name="logits")
    assert both.held_out[0].fingerprint == alone.fingerprint and both.held_out[0].settings == alone.settings
    encoders, calls, items = Encoders(pickle.loads(pickle.dumps(both))), [], torch.rand(2, 3, 8, 8)
    network = encoders.members[0].module.network
    network.register_forward_hook(lambda *_: calls.append(1))
    found = encoders.features(items)
    assert len(calls) == 1 and torch.equal(found["logits"], alone(items))
    assert torch.equal(found["inception"], features(items))
    items.mul_(0.5)
    assert torch.equal(encoders.features(items)["logits"], alone(items)) and len(calls) == 2
    pooled, logits = encoders.members
    logits(items.requires_grad_()).sum().backward()
    assert items.grad is not None and len(calls) == 3
    with torch.no_grad():
        pooled(items)
        assert len(calls) == 3
        network.Conv2d_1a_3x3.conv.weight.mul_(2)
        logits(items)
        assert len(calls) == 4
        replace(logits, precision="bfloat16")(items)
    assert len(calls) == 5
