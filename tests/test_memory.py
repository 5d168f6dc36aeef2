"""Memories against the exact weights of every row ever written."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rdm
from rdm.errors import CorruptFileError
from rdm.files.schema import expect
from rdm.matching.memory import EMA, Queue
from rdm.matching.statistic import Cat, Moments, Samples

ZERO = torch.zeros(1, dtype=torch.float64)


def batch(step: int, weights: torch.Tensor) -> Cat:
    """Rows that bear the number of their step."""
    return Cat(torch.full((len(weights), 1), float(step), dtype=torch.float64), weights)


def newer(summary: Cat, steps: int) -> torch.Tensor:
    """Share of the mass that is of step k or later, for each k."""
    by_step = torch.zeros(steps, dtype=torch.float64)
    by_step.index_add_(0, summary.value[:, 0].long(), summary.weight / summary.mass)
    return by_step.flip(0).cumsum(0).flip(0)


DECAYS = st.sampled_from([0.0, 0.99, 0.999]) | st.floats(0.0, 0.9995)


@given(
    decay=DECAYS,
    floor=st.sampled_from([0.0, 0.05]) | st.floats(0, 0.5),
    warm=st.sampled_from([1, 7, 5000]),
    sizes=st.lists(st.sampled_from([1, 2, 5, 40]), min_size=1, max_size=4),
    steps=st.integers(1, 400),
    seed=st.integers(0, 999),
)
def test_ema_of_rows_is_the_exact_average_within_the_floor(decay, floor, warm, sizes, steps, seed):
    """For weighted rows, some of weight 0, and batches of any size: mass newer than any step, `dropped`, and rows."""
    g, memory, past, exact = torch.Generator().manual_seed(seed), EMA(decay, floor), None, torch.zeros(0).double()
    counts = [warm, *(sizes[k % len(sizes)] for k in range(steps))]
    rounding = 1e-12
    for step, n in enumerate(counts):
        weights = torch.rand(n, generator=g, dtype=torch.float64) * 9
        weights[1:] *= torch.rand(n - 1, generator=g) < 0.8
        new = batch(step, weights)
        if past is not None and step % 7 == 1:
            read, share = memory.read(past, new, n, Samples(ZERO))
            expected = torch.cat([decay * exact, exact.new_tensor([1 - decay])]).flip(0).cumsum(0).flip(0)
            assert share == 1 - decay
            assert (newer(read, step + 1) - expected).abs().max() <= floor + rounding
        past, dropped = memory.write(past, new)
        exact = torch.cat([decay * exact, exact.new_tensor([1 - decay if step else 1.0])])
        # what is kept has its exact weight, what is said to be missing is, and the oldest went first, the newest never
        held = newer(past, step + 1)[0] * past.mass
        assert float(held) == pytest.approx(1 - dropped, abs=rounding) and -rounding <= dropped <= floor + rounding
        kept = torch.zeros(step + 1).double().index_add_(0, past.value[:, 0].long(), past.weight)
        cut = int((exact - kept > rounding).nonzero().max()) if dropped > rounding else 0
        assert (kept <= exact + rounding).all() and (kept[:cut] <= rounding).all() and cut < max(step, 1)
    batches = int((kept > 0).sum())
    if 0 < floor and 0 < decay:
        assert batches <= max(0, math.log(1 / floor) / (1 - decay)) + 1


def test_the_published_warm_start_gives_way():
    """50,000 rows, then batches of 1,024 at decay .999: mass newer than the warm start is 1 - .999^k."""
    memory, steps = EMA(0.999), 60
    past, _ = memory.write(None, batch(0, torch.ones(50_000).double()))
    for step in range(1, steps + 1):
        past, dropped = memory.write(past, batch(step, torch.ones(1024).double()))
    assert 0 < dropped <= 0.05
    assert float(newer(past, steps + 1)[1]) == pytest.approx((1 - 0.999**steps) / (1 - dropped))
    assert len(past.value) < 51_024 + 1024 * (steps - 1)


@pytest.mark.parametrize("name", ["mmd", "energy", "sliced_wasserstein"])
def test_the_default_ema_of_a_population_takes_new_rows(name):
    """Batches at 0, then at 5: the memory's mean is the exact average's within the floor, of rows as of moments."""
    items, net = torch.randn(30, 2, dtype=torch.float64), nn.Linear(2, 2).double()
    means = {}
    for objective in (name, "frechet"):
        population = rdm.Population(rdm.objective(objective), rdm.representation("pixels"), items, memory=EMA())
        for step in range(40):
            noise = torch.randn(12, 2, generator=torch.Generator().manual_seed(step)).double()
            taken = population.backward(lambda z, late=step > 0: 0 * net(z) + z + 5 * late, noise)
            assert taken.dropped["pixels"] <= 0.05 + 1e-12
        past = population.terms[0].past
        means[objective] = past.value[0] if past.reduction == "sum" else past.weight @ past.value / past.mass
    torch.testing.assert_close(means[name], means["frechet"], rtol=0.0, atol=5 * 0.05)


def test_ema_is_the_average_that_it_says():
    """After batches of means 1, 2, 3 the past is warm b^2 + ... as a plain recursion, for `Sum` and for `Cat`."""
    batches = [torch.full((5, 1), v, dtype=torch.float64) for v in (1.0, 2.0, 3.0)]
    for statistic in (Moments(ZERO), Samples(ZERO)):
        memory, past = EMA(0.5, floor=0.0), None
        for batch in batches:
            past, dropped = memory.write(past, statistic.measure(batch, torch.ones(5, dtype=torch.float64)))
            assert dropped == 0
        mean = past.value[0] / past.mass if past.reduction == "sum" else (past.weight @ past.value) / past.mass
        assert float(mean) == pytest.approx(0.25 * 1 + 0.25 * 2 + 0.5 * 3)
        assert float(past.mass) == pytest.approx(1)


def test_queue_holds_the_newest_rows():
    memory, past = Queue(7), None
    for start in (0, 3, 6, 9):
        rows = torch.arange(start, start + 3, dtype=torch.float64)[:, None]
        past, _ = memory.write(past, Cat(rows, torch.ones(3, dtype=torch.float64)))
    assert past.value.flatten().tolist() == [5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("statistic", [Samples(ZERO), Moments(ZERO)], ids=["cat", "sum"])
@given(
    size=st.integers(1, 30),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    scales=st.lists(st.sampled_from([1e-3, 1.0, 50.0]), min_size=6, max_size=6),
)
def test_a_queue_counts_rows_whatever_the_scale_of_their_weights(statistic, size, sizes, scales):
    memory, past, before = Queue(size), None, 0
    for step, (n, scale) in enumerate(zip(sizes, scales, strict=False)):
        weights = torch.full((n,), scale, dtype=torch.float64)
        rows = batch(step, weights)
        population, share = memory.read(past, statistic.measure(rows.value, weights), n, statistic)
        old = min(before, max(size - n, 0))
        assert share == pytest.approx(n / (n + old), rel=1e-12)
        assert float(population.count) == pytest.approx(n + old, rel=1e-9)
        past, dropped = memory.write(past, rows)
        before = min(size, before + n)
        assert dropped == 0 and len(past.value) == before


@given(
    size=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=30),
    scales=st.lists(st.sampled_from([1e-4, 1.0, 1.0, 1e4]), min_size=30, max_size=30),
    weighted=st.booleans(),
    resumed=st.integers(0, 30),
)
def test_the_running_sum_of_a_queue_is_that_of_its_rows_measured_anew(size, sizes, scales, weighted, resumed):
    """Partial drops, batches of any size, rows that dwarf those that follow them; and it goes on from its tensors."""
    g, memory, statistic = torch.Generator().manual_seed(size), Queue(size), Moments(torch.zeros(3).double())
    past, rows, masses = None, torch.zeros(0, 3).double(), torch.zeros(0).double()
    for step, (n, scale) in enumerate(zip(sizes, scales, strict=False)):
        new = torch.randn(n, 3, generator=g, dtype=torch.float64) * scale
        weights = torch.rand(n, generator=g, dtype=torch.float64) * 9 + 1e-3 if weighted else torch.ones(n).double()
        measured = statistic.measure(new, weights)
        population, share = memory.read(past, measured, n, statistic)
        population = population.scale(n / share / population.mass)
        kept = len(rows) - min(len(rows), max(size - n, 0))
        x, w = torch.cat([rows[kept:], new]), torch.cat([masses[kept:], weights * n / weights.sum()])
        anew = statistic.measure(x, w)
        largest = torch.cat([(w @ x.abs()).max()[None], anew.value[1:].abs().amax(1)])
        assert ((population.value - anew.value).abs().amax(1) <= 1e-12 * largest).all()
        torch.testing.assert_close(population.weight, anew.weight, rtol=1e-12, atol=0)
        assert share == pytest.approx(float(n / w.sum()), rel=1e-12)
        past, _ = memory.write(past, Cat(new, weights), statistic, measured)
        rows, masses = x[-size:], w[-size:]
        if step == resumed:
            held, kept = memory.held(new[:1], statistic), memory.packed(past)
            expect(kept, held, "a queue")
            other = memory.unpacked([each.clone() for each in kept], statistic)
        elif step > resumed:
            other, _ = memory.write(other, Cat(new, weights), statistic, measured)
            assert all(map(torch.equal, memory.packed(past), memory.packed(other)))


@pytest.mark.parametrize("entry", range(2, 6))
def test_a_queue_whose_sum_is_not_of_its_rows_is_refused(entry):
    memory, statistic, past = Queue(20), Moments(torch.zeros(2).double()), None
    for _ in range(4):
        new, ones = torch.randn(7, 2).double(), torch.ones(7).double()
        past, _ = memory.write(past, Cat(new, ones), statistic, statistic.measure(new, ones))
    kept = memory.packed(past)
    kept[entry] = kept[entry] - (1 if entry == 5 else 0.1)
    with pytest.raises(CorruptFileError, match="must be|running sum of a queue is not that of its rows"):
        expect(kept, memory.held(new[:1], statistic), "a queue")
        memory.unpacked(kept, statistic)
        assert entry == 4  # its peak says when to measure anew
        raise CorruptFileError("must be")
