"""What every registered metric must do, on rows that are easy to get and hard to judge; registering one tests it."""

import dataclasses
import math
import struct
import tarfile
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import rdm
from rdm.app.judging import judge_source, make_reference
from rdm.data.source import open_source
from rdm.errors import InputError
from rdm.judging.ratio import Ratio
from rdm.matching.metric import Distance, Metric, generated
from rdm.matching.real import Gaussian, Real
from rdm.matching.representation import Battery
from rdm.references.file import Reference
from rdm.registry import batteries, metrics

pytestmark = pytest.mark.filterwarnings("ignore:frechet. the population's covariance is singular")
G = torch.Generator().manual_seed(0)
X, Y, FRESH = (torch.randn(n, 4, generator=G, dtype=torch.float64) for n in (60, 70, 64))
ONE = torch.linspace(-1, 1, 4, dtype=torch.float64).expand(60, 4)
TRAIN = torch.randn(50, 4, generator=G, dtype=torch.float64)
FLAT = torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
SMALL = {
    "kid": {"size": 50, "subsets": 4},
    "kid_spread": {"size": 50, "subsets": 4},
    "sw": {"projections": 32},
    "sw_r": {"projections": 32},
    "c_t": {"cells": 1},
}
SETS = {
    "two laws": (X, Real(Y, fresh=FRESH)),
    "collapsed": (ONE, Real(Y, fresh=FRESH)),
    "constant reference": (X, Real(ONE, fresh=FRESH)),
    "all constant": (ONE, Real(ONE, fresh=ONE)),
    "silence": (ONE * 0, Real(ONE * 0, fresh=ONE * 0)),
    "orthogonal": (X * FLAT, Real(Y * (1 - FLAT), fresh=FRESH * (1 - FLAT))),
    "the reference itself": (Y, Real(Y, fresh=FRESH)),
    "copies": (Y.repeat(2, 1), Real(Y, fresh=FRESH)),
    "the reference three times": (Y, Real(Y, fresh=Y)),
    "near copies": (Y[:64] + 1e-9, Real(Y, fresh=FRESH)),
    "far off": (X + 1e6, Real(Y, fresh=FRESH)),
    "moments of no spread": (X, Real(None, Gaussian(Y.mean(0), torch.zeros(4, 4).double(), 70))),
}
SETS = {kind: (x, replace(real, train=TRAIN)) for kind, (x, real) in SETS.items()}
SETS["of its training set"] = (TRAIN.repeat(2, 1) + 1e-9 * torch.ones(4).double(), SETS["two laws"][1])
SETS["trained on one item"] = (X, Real(Y, fresh=FRESH, train=ONE))
REAL_NUMBERS = "bandwidth", "rate", "gamma", "coef"
REFUSALS = "at distance 0 from the reference", 'bandwidth "median" is 0', "needs rows of the reference", "holds none"


def metric(name: str):
    return rdm.metric(name, **SMALL.get(name, {}))


def inside(found: Metric, measure) -> bool:
    """The value within its interval, and that within what the number can be."""
    return (
        all(map(math.isfinite, found[:3]))
        and measure.lowest <= found.low <= found.value <= found.high <= measure.highest
    )


@pytest.mark.parametrize("name", rdm.names("metrics"))
@pytest.mark.parametrize("kind", SETS)
def test_every_set_gives_an_interval_or_is_refused_in_words(name, kind):
    (x, real), measure = SETS[kind], metric(name)
    for dtype in (torch.float64, torch.float32):
        try:
            found = measure(x.to(dtype), real)
        except InputError as problem:
            assert kind != "two laws" and any(words in str(problem) for words in REFUSALS), problem
            assert "\n" not in str(problem)
        else:
            assert inside(found, measure), found


@pytest.mark.parametrize("name", rdm.names("metrics"))
def test_types_mix(name):
    """Each side is what its numbers are, whatever they are stored as."""
    x, y, fresh, train = (side.half() for side in (X, Y, FRESH, TRAIN))
    exact = metric(name)(x.double(), Real(y.double(), fresh=fresh.double(), train=train.double()))
    half, single, double = torch.float16, torch.float32, torch.float64
    for kind, other, third in ((half, double, single), (single, half, double), (double, single, half)):
        found = metric(name)(x.to(kind), Real(y.to(other), fresh=fresh.to(third), train=train.to(kind)))
        assert found[:4] == pytest.approx(exact[:4], rel=2e-5, abs=2e-6), (kind, other, third)


@pytest.mark.parametrize("name", rdm.names("metrics"))
def test_what_is_no_rows_of_the_reference_is_refused_in_words(name):
    measure, refused = metric(name), [(X[:, 0], r"shape \(n, d\)")]
    if not measure.logits:
        refused += [(X[:, :3], "dimension d=4; got d=3")]
    for x, message in refused:
        with pytest.raises(InputError, match=message) as caught:
            measure(x, Real(Y, fresh=FRESH))
        assert "\n" not in str(caught.value)


def test_rows_alone_are_a_real_side():
    measure = metric("kid")
    assert measure(X, Y) == measure(X, Real(Y))
    with pytest.raises(InputError, match=r"reference must be a tensor of shape \(n, d\); got shape"):
        measure(X, Y[0])


def test_arrays_are_refused_by_name():
    with pytest.raises(InputError, match=r"sw takes generated features as a tensor \(n, d\); got ndarray"):
        generated(X.numpy(), least=2, user="sw")


def test_a_collapsed_side_is_as_far_as_the_loss_says():
    """|mu - mu_r|^2 + tr C, exactly known of the side that does not vary: no width where the reference is given."""
    torch.manual_seed(0)
    real, same = torch.randn(400, 8), torch.ones(300, 8)
    expected = float((same[0] - real.mean(0)).square().sum() + real.var(0).sum())
    assert expected == pytest.approx(16.15705, abs=1e-5) == float(rdm.distance("frechet", same, real))
    found = rdm.metric("fd")(same, Real(real))
    assert found[:3] == pytest.approx([expected] * 3, rel=1e-6)
    turned = rdm.metric("fd")(real, Real(same))
    assert turned.value == pytest.approx(expected, rel=1e-6) and turned.low < expected < turned.high
    covariance = torch.eye(8).double() * 2
    unbiased = rdm.metric("fd_infinity")(same, Real(None, Gaussian(torch.ones(8).double(), covariance, 400)))
    assert unbiased[:3] == pytest.approx([16.0] * 3, rel=1e-12), "a line through equal distances"
    for batch in (1, 300):
        metric = rdm.Streaming(None, ["fd"])
        for side, real_side in ((same, False), (real, True)):
            for part in side.split(batch):
                metric.update(part, real=real_side)
        assert metric.compute()["fd"][:3] == pytest.approx([expected] * 3, rel=1e-6)


DISTANCES = [n for n in rdm.names("metrics") if issubclass(metrics[n].build, Distance | Ratio)]


@pytest.mark.parametrize("name", DISTANCES)
def test_intervals_do_not_grow_as_copies_get_nearer(name):
    noise = torch.randn(64, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    measure, real, ends = metric(name), Real(Y[:64], fresh=FRESH), []
    for eps in (1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-5, 0.0):
        found = measure(Y[:64] + eps * noise, real)
        assert inside(found, measure), found
        ends.append(found.high)
    slack = 1.2 if isinstance(measure, Ratio) else 1.01  # the log-normal end is least at 1.96 standard deviations
    assert all(nearer <= slack * farther for farther, nearer in zip(ends, ends[1:], strict=False)), ends
    assert found.value == pytest.approx(0, abs=1e-6) and found.low == 0 < found.high
    assert found.high < measure(FRESH, real).high, "that of new rows"


@pytest.mark.parametrize("name", rdm.names("metrics"))
def test_hyperparameters_are_checked_at_construction(name):
    for field in dataclasses.fields(metrics[name].build):
        for wrong in (0, -1, 2.5, math.nan, "3", True, [4]):
            if field.type is bool and wrong is True or field.name in REAL_NUMBERS and wrong == 2.5:
                continue
            with pytest.raises(InputError, match=rf"{field.name} must be .*; got") as caught:
                rdm.metric(name, **{field.name: wrong})
            assert "\n" not in str(caught.value)


def test_hyperparameters_that_do_not_go_together():
    with pytest.raises(InputError, match="recall with k=9 needs rows >= 20; got 19"):
        rdm.metric("recall", k=9, rows=19)
    with pytest.raises(InputError, match="precision with k=9 needs rows >= 10; got 9"):
        rdm.metric("precision", k=9, rows=9)


def test_one_split_and_one_subset_give_the_value_alone():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(100, 10, generator=g)
    u, v = torch.randn(2, 100, 8, generator=g)
    single = rdm.metric("inception_score", splits=1)(logits, Real(None))
    assert single.value == pytest.approx(1.52023, abs=1e-5) and math.isnan(single.low) and math.isnan(single.high)
    whole = rdm.metric("kid", subsets=1, size=100)(u, Real(v))
    assert whole.value == pytest.approx(-0.0416617, abs=1e-6) and whole.low < whole.value < whole.high
    some = rdm.metric("kid", subsets=1, size=50)(u, Real(v))
    assert math.isnan(some.low) and math.isfinite(some.value)


def pictures(folder: Path) -> dict[str, Path]:
    """80 grey pictures of 2 x 2, in every form."""
    values = np.random.default_rng(0).integers(0, 256, (80, 2, 2), dtype=np.uint8)
    encoded = []
    (folder / "folder").mkdir()
    with tarfile.open(folder / "t.tar", "w") as archive:
        for i, picture in enumerate(values):
            Image.fromarray(picture).save(folder / "folder" / f"{i:02}.png")
            encoded.append((folder / "folder" / f"{i:02}.png").read_bytes())
            archive.add(folder / "folder" / f"{i:02}.png", f"{i:02}.png")
    offsets = np.cumsum([0, *map(len, encoded)])
    np.savez(folder / "encoded.npz", data=np.frombuffer(b"".join(encoded), np.uint8), offsets=offsets)
    np.savez(folder / "images.npz", images=values)
    np.save(folder / "images.npy", (values / 255).astype(np.float64))
    save_file({"images": values}, folder / "images.safetensors")
    (folder / "a-idx3-ubyte").write_bytes(struct.pack(">4B3i", 0, 0, 8, 3, *values.shape) + values.tobytes())
    names = "folder", "t.tar", "encoded.npz", "images.npz", "images.npy", "images.safetensors", "a-idx3-ubyte"
    return {name: folder / name for name in names}


def sounds(folder: Path) -> dict[str, Path]:
    """80 recordings of 32 samples."""
    values = np.random.default_rng(0).normal(size=(80, 32)).clip(-3, 3) / 3.1
    (folder / "wav").mkdir()
    for i, sound in enumerate(values):
        with wave.open(str(folder / "wav" / f"{i:02}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((sound * 32767).astype("<i2").tobytes())
    for form in ("float32", "float64"):
        flat = values.astype(form).reshape(-1)
        np.savez(folder / f"{form}.npz", audio=flat, offsets=np.arange(0, 80 * 32 + 1, 32), rate=8000)
    return {name: folder / name for name in ("wav", "float32.npz", "float64.npz")}


def features(folder: Path) -> dict[str, Path]:
    """80 rows of 4 features, of every type."""
    values = np.random.default_rng(0).normal(size=(80, 4))
    for form in ("float16", "float32", "float64"):
        np.savez(folder / f"{form}.npz", features=values.astype(form))
    save_file({"features": values.astype(np.float16)}, folder / "rows.safetensors")
    return {name: folder / name for name in ("float16.npz", "float32.npz", "float64.npz", "rows.safetensors")}


@pytest.mark.parametrize("made", [pictures, sounds, features])
def test_every_metric_judges_every_kind_of_source(made, tmp_path):
    """The default list, each form against a reference of the form before it, which holds the same items."""
    paths = made(tmp_path)
    log_mel = rdm.representation("log_mel", window=16, hop=16, bands=2, rate=8000)
    members = {"pictures": (rdm.representation("pixels"),), "sounds": (log_mel,)}.get(made.__name__)
    battery = "every" if members else None
    with batteries.temporarily():
        batteries.register("every")(lambda: Battery(members or ()))
        for name, before in zip(paths, [list(paths)[-1], *paths], strict=False):
            make_reference([paths[before]], tmp_path / "reference.safetensors", battery=battery, split=0.4)
            file = Reference.load(tmp_path / "reference.safetensors")
            verdict = judge_source(open_source(paths[name]), file, paths[name])
            notes = [note.split(" not measured: ") for note in verdict.notes if "not measured" in note]
            missing = {metric for names, _ in notes for metric in names.split(", ")}
            copying = {metric for metric in metrics if metrics[metric].build.trained}
            assert missing == {"inception_score", "kid_spread", *copying}, (name, verdict.notes)
            for key, found in verdict.metrics.items():
                assert inside(found, rdm.metric(key.split("/")[0])), (name, before, key, found)
