"""The streaming object: batches, ranks and pickling change nothing; wrong input is one line."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.distributed as dist

import rdm
from rdm.app.judging import make_reference
from rdm.data.inputs import SLACK
from rdm.data.items import first_item
from rdm.data.source import Form, open_source
from rdm.errors import InputError
from rdm.judging import streaming
from rdm.judging.measures import named
from rdm.judging.streaming import Streaming
from rdm.matching.real import Real
from rdm.matching.representation import Representation
from rdm.references.file import Reference
from tests import processes

G = torch.Generator().manual_seed(0)
X, Y = torch.rand(90, 1, 3, 3, generator=G), torch.rand(80, 1, 3, 3, generator=G) * 0.8
PIXELS = rdm.representation("pixels")


def fed(x, y, *, batch: int, **options) -> Streaming:
    metric = Streaming(PIXELS, ["fd", "mmd", "precision"], **options)
    for side, real in ((x, False), (y, True)):
        for part in side.split(batch):
            metric.update(part, real=real)
    return metric


def test_any_batches_give_the_metrics_of_all_rows():
    rows, real = X.flatten(1), Real(Y.flatten(1))
    for batch in (1, 17, 90):
        found = fed(X, Y, batch=batch).compute()
        for name, metric in found.items():
            expected = rdm.metric(name)(rows, real)
            assert metric.value == pytest.approx(expected.value, rel=1e-6), name
            assert metric.low == pytest.approx(expected.low, rel=0.05, abs=1e-3) and metric.n == 90


def test_more_rows_than_are_kept_leave_the_frechet_distance_exact():
    found = fed(X, Y, batch=20, rows=40).compute()["fd"]
    exact = rdm.metric("fd")(X.flatten(1), Real(Y.flatten(1)))
    assert found.value == pytest.approx(exact.value, rel=1e-9) and found.n == 90
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.5)


def test_merging_pickling_and_resetting():
    halves = [fed(X[:50], Y[:30], batch=25), fed(X[50:], Y[30:], batch=25)]
    halves[0].merge(pickle.loads(pickle.dumps(halves[1])))
    expected = fed(X, Y, batch=90).compute()["fd"].value
    assert halves[0].compute()["fd"].value == pytest.approx(expected, rel=1e-12)
    pca = rdm.representation("pca", components=3).fitted(Y)
    streams = Streaming(pca, ["fd"]), pickle.loads(pickle.dumps(Streaming(pca, ["fd"])))
    for stream in streams:
        stream.update(X, real=False)
        stream.update(Y, real=True)
    assert streams[0].compute() == streams[1].compute()
    metric = halves[0]
    metric.reset()
    with pytest.raises(InputError, match="at least 2 generated items; got 0; update first"):
        metric.compute()
    metric.update(X, real=False)
    assert metric.compute()["fd"].value == pytest.approx(expected, rel=1e-12), "the real side was kept"
    assert len(pickle.dumps(fed(X.repeat(20, 1, 1, 1), Y, batch=90, rows=50))) < 40_000


def test_eight_bit_images_are_scaled_and_wrong_ones_refused():
    metric = Streaming(PIXELS, ["fd"])
    metric.update((Y * 255).round().byte(), real=True)
    metric.update((Y * 255).round() / 255, real=False)
    assert metric.compute()["fd"].value == pytest.approx(0, abs=1e-9)
    for images, message in (
        (X * 2, r"'pixels' \(generated side\) takes .* in \[0, 1\]; got values from .*; rescale or clamp them"),
        (X * float("nan"), "NaN or infinity in 90 of 90"),
        (X.long(), "floating-point numbers; got torch.int64"),
        (X[:0], "got an empty batch"),
    ):
        with pytest.raises(InputError, match=message):
            metric.update(images, real=False)


def test_white_pictures_after_a_resize_are_pictures(tmp_path):
    """A resize overshoots by 2.4e-7 here."""
    white = torch.ones(8, 1, 512, 512)
    white = torch.nn.functional.interpolate(white, (299, 299), mode="bilinear", antialias=True)
    assert 0 < float(white.max() - 1) < SLACK
    for over in (white, 1 - white, white + 5e-5):
        for encoder in (PIXELS, torch.nn.Flatten()):
            Streaming(encoder, ["fd"]).update(over, real=True)
    np.save(tmp_path / "white.npy", white[:, :, :4, :4].numpy())
    source = open_source(tmp_path / "white.npy")
    assert float(first_item(source, Form()).value.max()) == 1
    np.save(tmp_path / "white.npy", white[:, :, :4, :4].numpy() + 2e-4)
    with pytest.raises(InputError, match="floats must lie in"):
        first_item(open_source(tmp_path / "white.npy"), Form())


DEEP = torch.nn.Sequential(torch.nn.Conv2d(1, 5, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(45, 3))
NAMES = "fd", "fd_infinity", "kid", "inception_score", "mmd", "sw", "precision", "recall", "energy"


@pytest.mark.parametrize("encoder", [None, DEEP], ids=["rows", "encoder"])
def test_the_same_bits_whatever_the_batches(encoder):
    """Of a sample of half, and in the middle: what was computed before leaves no trace."""
    g, measures = torch.Generator().manual_seed(1), [rdm.metric("kid", subsets=4), *(n for n in NAMES if n != "kid")]
    x, y = (torch.rand(n, 1, 3, 3, generator=g) for n in (700, 650))
    x, y = (x.flatten(1), y.flatten(1)) if encoder is None else (x, y)
    found = []
    for batch in (700, 1, 64, 37):
        metric = Streaming(encoder, measures, rows=300)
        for side, real in ((y, True), (x, False)):
            for k, part in enumerate(side.split(batch)):
                metric.update(part, real=real)
                if k == 150 and not real:  # of batches of one
                    metric.compute()
        found.append(metric.compute())
    assert set(found[0]) == set(NAMES) and found[0]["fd"].n == 700
    assert all(each == found[0] for each in found[1:])


def test_a_batch_is_copied():
    """A loader may fill the same tensor again."""
    metric, buffer = Streaming(None, ["fd"]), torch.empty(10, 9)
    for real, side in ((True, Y[:80]), (False, X[:90])):
        for part in side.flatten(1).split(10):
            metric.update(buffer.copy_(part), real=real)
    exact = rdm.metric("fd")(X.flatten(1), Real(Y.flatten(1)))
    assert metric.compute()["fd"].value == pytest.approx(exact.value, rel=1e-9)


def test_threads_lose_nothing():
    metric = Streaming(PIXELS, ["fd"])
    metric.update(Y, real=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: metric.update(part, real=False), X.split(3)))
    exact = rdm.metric("fd")(X.flatten(1), Real(Y.flatten(1)))
    found = metric.compute()["fd"]
    assert found.n == 90 and found.value == pytest.approx(exact.value, rel=1e-9)


def test_what_it_is_made_of_is_checked_at_construction():
    conditional = Representation("joined", torch.nn.Flatten(), conditional=True)
    for encoder, message in (
        ([1, 2], "a representation, its name, a torch module, or None for rows; got list"),
        ("pixel", "unknown representation 'pixel'; did you mean 'pixels'"),
        ("pca", "'pca' is not fitted"),
        (rdm.battery("untrained"), "got Battery; of a battery give one member"),
        (torch.nn.Flatten, "got type"),
        (rdm.representation("pca"), "'pca' is not fitted"),
        (conditional, "'joined' takes conditions"),
    ):
        with pytest.raises(InputError, match=message):
            streaming._encoder(encoder)
    for names, message in (
        ([], "at least one metric"),
        (["fid"], "unknown metric 'fid'; did you mean 'fd'"),
        (["fdr"], "fdr divides by a fresh real split's distance; give a reference that holds one"),
        (["c_t"], "c_t looks for copies of the training set; give reference="),
        (["precision(k=0)"], "precision: k must be"),
        (["kid", rdm.metric("kid", size=9)], r"\['kid'\] occur more than once; give a mapping"),
        ({"a": 3}, "metric 'a' must be a name or built by rdm.metric; got int"),
    ):
        with pytest.raises(InputError, match=message):
            streaming._measures(names)
    for options in ({"rows": 0}, {"seed": 2**70}):
        with pytest.raises(InputError, match="must be a whole number"):
            Streaming(None, ["fd"], **options)
    with pytest.raises(InputError, match=r"generated rows must be a tensor \(n, d\); got ndarray"):
        streaming._Side("generated", None, 9, 0)._check_rows(X.numpy())
    metric = Streaming(None, {"near": rdm.metric("precision", k=1), "wide": rdm.metric("precision", k=9)})
    for real in (True, False):
        metric.update(X.flatten(1), real=real)
        with pytest.raises(InputError, match="rows must have 9 columns as those before; got 4"):
            metric.update(X[:, 0, 0, :1].repeat(1, 4), real=real)
    assert list(metric.compute()) == ["near", "wide"]
    assert repr(Streaming("pixels", "fd")) == repr(Streaming(rdm.representation("pixels"), ["fd"]))


def test_a_module_is_an_encoder_and_left_alone():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 4), torch.nn.Dropout(0.5)).train()
    metric = Streaming(net, ["fd"])
    metric.update(X, real=False)
    metric.update(Y, real=True)
    assert net.training and net[1].weight.requires_grad
    with torch.no_grad():
        rows = [net.eval()(side) for side in (X, Y)]
    assert metric.compute()["fd"].value == pytest.approx(rdm.metric("fd")(rows[0], Real(rows[1])).value, rel=1e-6)


def test_a_reference_is_the_real_side(tmp_path):
    """A file, of an encoder that was fitted on its data too, or rows with a fresh split and a training set."""
    np.save(tmp_path / "real.npy", (Y[:, 0] * 255).byte().numpy())
    make_reference(
        [tmp_path / "real.npy"],
        tmp_path / "r.safetensors",
        battery="pixels,pca",
        arguments={"components": 3},
        split=0.3,
    )
    for name, options in (("pixels", {}), ("pca", {"components": 3})):
        encoder = rdm.representation(name, **options)
        metric = Streaming(encoder, ["fd", "sw_r", "precision(k=3)"], reference=tmp_path / "r.safetensors")
        for part in X[:20].split(7):
            metric.update(part, real=False)
        metric = pickle.loads(pickle.dumps(metric))
        file = Reference.load(tmp_path / "r.safetensors").members[name].sampled()
        with torch.no_grad():
            rows = metric.representation(X[:20])
        for each, found in metric.compute().items():
            assert found.value == pytest.approx(named(each)(rows, file).value, rel=1e-5), each
        metric.reset(real=True)
        with pytest.raises(InputError, match="at least 2 generated items"):
            metric.compute()
        with pytest.raises(InputError, match="the real side is the reference's"):
            metric.update(Y, real=True)
    net = torch.nn.Flatten()
    with pytest.raises(InputError, match="has no member 'Flatten'; it has pca, pixels"):
        Streaming(net, ["fd"], reference=str(tmp_path / "r.safetensors"))
    side = Real(Y[:40].flatten(1), fresh=Y[40:].flatten(1), train=X[:50].flatten(1))
    metric = Streaming(net, metrics=["fdr", "authenticity"], reference=side)
    metric.update(X[:40], real=False)
    found = metric.compute()
    assert found["authenticity"].value == 0 and found["authenticity"].n == 40
    assert found["fdr"].value == pytest.approx(rdm.metric("fdr")(X[:40].flatten(1), side).value, rel=1e-9)


def ranks(rank: int, folder: str) -> None:
    """On one of two gloo processes: the second sees no real item; what each computes goes to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        metric = Streaming(PIXELS, ["fd", "mmd", "energy"])
        for part in X[rank::2].split(20):
            metric.update(part, real=False)
        if rank == 0:
            metric.update(Y, real=True)
        torch.save({name: tuple(found) for name, found in metric.compute().items()}, f"{folder}/{rank}.pt")
        metric.reset(real=True)
        with pytest.raises(InputError, match="at least 2 generated items; got 0|at least 2 real items; got 0"):
            metric.compute()  # on every rank; none waits for another
    finally:
        dist.destroy_process_group()


def test_two_ranks_are_one(tmp_path):
    processes.ranks(ranks, (str(tmp_path),), 2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert found[0] == found[1]
    for name, (value, *_, n, _seed) in found[0].items():
        expected = rdm.metric(name)(X.flatten(1), Real(Y.flatten(1))).value
        assert value == pytest.approx(expected, rel=1e-6) and n == 90, name
