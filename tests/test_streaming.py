"""The streaming object: batches, ranks and pickling change nothing; wrong input is one line."""

import pickle

import pytest
import torch
import torch.distributed as dist

import rdm
from rdm.errors import InputError
from rdm.metric import Real
from rdm.streaming import Streaming

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
        (X * 2, r"generated float images must lie in \[0, 1\]; got .* scale them"),
        (X * float("nan"), r"must lie in \[0, 1\]"),
        (X.long(), "must be uint8 or float"),
    ):
        with pytest.raises(InputError, match=message):
            metric.update(images, real=False)


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
    torch.multiprocessing.spawn(ranks, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert found[0] == found[1]
    for name, (value, *_, n, _seed) in found[0].items():
        expected = rdm.metric(name)(X.flatten(1), Real(Y.flatten(1))).value
        assert value == pytest.approx(expected, rel=1e-6) and n == 90, name
