"""Memories against the exact weights of every row ever written."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rdm
from rdm.errors import CorruptFileError, InputError
from rdm.files.schema import expect
from rdm.matching.distances import Samples
from rdm.matching.memory import EMA, Memory, Queue
from rdm.matching.objective import Objective
from rdm.matching.real import Real
from rdm.matching.statistic import Cat, Moments, Statistic, Sum
from tests.conftest import objective_cases

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
        assert (
            float(held) == pytest.approx(1 - float(dropped), abs=rounding) and -rounding <= dropped <= floor + rounding
        )
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


@given(sizes=st.lists(st.integers(1, 5), min_size=4, max_size=12), asked=st.integers(0, 11))
def test_a_followed_average_is_that_written_and_to_the_bit_whenever_it_is_asked_for(sizes, asked):
    """It measures several batches at a time; a checkpoint between them must not show."""
    g, memory, statistic = torch.Generator().manual_seed(sum(sizes)), EMA(0.7), Moments(torch.ones(6).double())
    written = followed = other = None
    for step, n in enumerate(sizes):
        new, weights = torch.randn(n, 6, generator=g), torch.rand(n, generator=g, dtype=torch.float64) + 0.1
        written, _ = memory.write(written, statistic.measure(new, weights))
        followed, other = (memory.follow(each, Cat(new, weights), statistic) for each in (followed, other))
        new.zero_()  # which it has a copy of
        if step == asked:
            other = memory.unpacked(memory.packed(memory.caught_up(other, 1, statistic)), statistic)
    found, again = (memory.caught_up(each, 1, statistic) for each in (followed, other))
    assert torch.equal(found.value, again.value) and torch.equal(found.weight, again.weight)
    torch.testing.assert_close(found.value, written.value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.weight, written.weight, rtol=1e-13, atol=0)


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


FOLLOWING = [Queue(30, riding=True), EMA(2 / 3, 0.0, riding=True)]
FOLLOWING += [replace(memory, balanced=True) for memory in FOLLOWING]


def forces(objective: Objective, memory: Memory, past: Tensor, live: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient in live rows that stand a third of a population, and in all rows of the same, the past's first."""
    loss, rows, whole = rdm.Loss(objective, y, memory=memory), live.clone(), torch.cat([past, live])
    loss(past, generator=torch.Generator().manual_seed(0))
    loss(rows.requires_grad_(), generator=torch.Generator().manual_seed(1)).backward()
    plain = rdm.Loss(objective, y)
    plain(whole.requires_grad_(), generator=torch.Generator().manual_seed(1)).backward()
    return rows.grad, whole.grad


@pytest.mark.parametrize("name, example", objective_cases())
@settings(max_examples=2)
@given(seed=st.integers(0, 9999), lag=st.floats(0.1, 1.0))
def test_forces_under_riding(name, example, seed, lag):
    """Along a translation those of the whole population, along deviations as many times; within it their sum is zero.

    A population that is its own mirror image before a reference that is so, too, is pulled nowhere from without.
    """
    objective, g = rdm.objective(name, **example), torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(n, 4, generator=g, dtype=torch.float64)  # noqa: E731
    past, live, y = draw(20) - lag, draw(10) + lag, draw(12)
    for memory in FOLLOWING:
        mine, whole = forces(objective, memory, past, live, y)
        torch.testing.assert_close(mine.sum(0), whole.sum(0), rtol=1e-9, atol=1e-12 * float(whole.abs().sum()))
        weight = 3.0 if memory.balanced else 1.0
        apart = weight * (whole[20:] - whole[20:].mean(0))
        torch.testing.assert_close(mine - mine.mean(0), apart, rtol=1e-9, atol=1e-12 * float(whole.abs().sum()))
    if objective.traits.translation_invariant and objective.traits.exhaustive:
        past, y = torch.cat([-live, 2 * live[:5], -2 * live[:5]]), torch.cat([y[:6], -y[:6]])
        for memory in FOLLOWING:
            mine, _ = forces(objective, memory, past, live, y)
            assert float(mine.sum(0).abs().max()) <= 1e-12


def test_a_plain_queue_drives_a_small_batch_away_and_a_riding_one_does_not():
    """The spiral study's data and kernel at batch 8 and rate 1e-3: 300 steps; the data lie within 2.8 of the origin."""
    y, farthest = rdm.dataset("spiral").images, {}
    for riding in (False, True):
        torch.manual_seed(0)
        hidden = [nn.Linear(2, 128), *(nn.Linear(128, 128) for _ in range(3))]
        net = nn.Sequential(*(each for layer in hidden for each in (layer, nn.ReLU())), nn.Linear(128, 64))
        options = {"bandwidth": [0.2, 0.4, 0.8, 1.6, 3.2], "landmarks": 256, "method": "random"}
        loss = rdm.Loss("mmd_nystrom", y, memory=Queue(64, riding=riding), **options)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(300):
            optimizer.zero_grad()
            loss(net(torch.randn(8, 2))).backward()
            optimizer.step()
        with torch.no_grad():
            farthest[riding] = float(net(torch.randn(1000, 2)).norm(dim=1).median())
    assert farthest[False] > 100 and farthest[True] < 2.8


def test_what_cannot_ride_is_refused():
    for member in (EMA, Queue):
        with pytest.raises(InputError, match="balanced is of a riding memory"):
            member(balanced=True)
    with pytest.raises(InputError, match="leave out the tolerance, or riding"):
        rdm.Loss("frechet", torch.randn(9, 2), memory=Queue(20, riding=True), tolerance=1e-3)

    class Squares(Statistic):
        kind = Sum

        def measure(self, features: Tensor, weights: Tensor) -> Sum:
            return Sum(weights @ features.double().square(), torch.stack([weights.sum(), weights.square().sum()]))

    class Unsaid(type(rdm.objective("frechet"))):
        def bind(self, reference: Real) -> tuple[Statistic, None]:
            return Squares(), None

    rdm.Loss(Unsaid(), torch.randn(9, 2), memory=Queue(20))
    with pytest.raises(InputError, match="define Squares.translated, or leave riding out"):
        rdm.Loss(Unsaid(), torch.randn(9, 2), memory=Queue(20, riding=True))


def test_what_riding_leaves_of_the_gradient_is_said():
    """Deviations keep the live share, or all; a balance by floors takes the whole population's size either way."""
    y, shares = torch.randn(40, 3), {}
    for memory in (Queue(20, riding=True), Queue(20, riding=True, balanced=True)):
        loss = rdm.Loss("energy", y, memory=memory)
        for _ in range(3):
            loss(torch.randn(5, 3).requires_grad_())
        shares[memory.balanced] = loss.share
        read = loss._held.read(Cat(torch.randn(5, 3), torch.ones(5).double()), 5, None)
        assert memory.effective(5, float(read.mass)) == 20
    assert shares == {False: 1 / 3, True: 1.0}
