"""Following a population within a tolerance: against the exact distance of the same population at every step."""

import copy

import pytest
import torch

import rdm
from rdm.errors import CorruptFileError, InputError
from rdm.files.store import pack, unpack
from tests.distributions import power_law

D, N = 48, 12
Y, WARM, STEPS = power_law(D, 40 * D, 1.2, 1), *power_law(D, 30 * D + 20 * N, 1.3, 2, turn=0.05).split(30 * D)
MEMORIES = {"ema": rdm.EMA(0.99), "queue": rdm.Queue(20 * D)}


def pulled(loss, x):
    x = x.clone().requires_grad_()
    value = loss(x)
    return float(value.detach()), torch.autograd.grad(value, x)[0].double()


def pair(memory, kind, tolerance=1e-3, correction=1):
    """A loss that follows and one that is exact, after 30 D rows."""
    y = Y.to(kind)
    losses = [rdm.Loss("frechet", y, memory=memory, correction=correction, **o) for o in ({"tolerance": tolerance}, {})]
    with torch.no_grad():
        for rows in WARM.to(kind).split(240):
            [loss(rows) for loss in losses]
    return losses


@pytest.mark.parametrize(
    "memory, drift, kind, tolerance, correction, units",
    [
        ("ema", 0.0, torch.float32, 1e-2, 1, True),
        ("ema", 0.2, torch.float32, 1e-3, 0, False),
        ("ema", 0.01, torch.float64, 1e-4, "fd_loss", True),
        ("queue", 0.0, torch.float64, 1e-2, "fd_loss", False),
        ("queue", 0.01, torch.float32, 1e-3, 1, True),
        ("queue", 0.2, torch.float32, 1e-2, 0, True),
    ],
)
def test_every_gradient_is_within_the_bound_and_the_tolerance(
    memory, drift, kind, tolerance, correction, units, monkeypatch
):
    """Of scales and means that drift, and batches of any size: bounds hold, and exact steps are few without drift.

    On processors that have units for bfloat16 and on those that have none.
    """
    monkeypatch.setattr("objectives._frechet_solver.multiplies_bfloat16", lambda device: units)
    followed, exact = pair(MEMORIES[memory], kind, tolerance, correction)
    rows, start, exactly = STEPS, 0, 0
    for step in range(20):
        x = rows[start : (start := start + N - step % 3)] * (1 + drift * step) + drift * step
        (value, got), (expected, wanted) = pulled(followed, x.to(kind)), pulled(exact, x.to(kind))
        error, report = float((got - wanted).norm() / wanted.norm()), followed.report
        assert error <= (1e-5 if report["exact"] else min(tolerance, report["bound"])), (step, error, report)
        assert abs(value - expected) <= tolerance * expected
        exactly += report["exact"]
    if drift == 0 and tolerance == 1e-2:
        assert exactly <= 1
    assert exactly < 20


@pytest.mark.parametrize("memory", MEMORIES)
def test_it_goes_on_from_its_state_to_the_bit(memory):
    """From a checkpoint, and after a loss that was not taken; rows that come by another way end in an exact step."""
    net = torch.nn.Linear(D, D).double()
    torch.nn.init.eye_(net.weight), torch.nn.init.zeros_(net.bias)
    rows = STEPS
    make = lambda: rdm.Population("frechet", "pixels", Y, memory=MEMORIES[memory], tolerance=1e-2, chunk=7)  # noqa: E731
    first, second = make(), make()
    first.warm_up(net, WARM)

    def steps(population, numbers):
        found = []
        for k in numbers:
            net.zero_grad(set_to_none=False)
            found.append(population.backward(net, rows[k * N : k * N + N]))
        return found, net.weight.grad.clone()

    steps(first, range(4))
    second.restore(unpack(*pack(first.state())))
    (taken, one), (again, other) = steps(first, range(4, 8)), steps(second, range(4, 8))
    assert torch.equal(one, other) and [t.solvers for t in taken] == [t.solvers for t in again]
    assert sum(t.solvers["pixels"]["exact"] for t in taken) == 0
    before = copy.deepcopy(first)
    with torch.no_grad():
        first.loss(net, rows[:N])
    assert steps(first, [9])[0][0].solvers == steps(before, [9])[0][0].solvers
    first.warm_up(net, rows[:N])
    assert steps(first, [10])[0][0].solvers["pixels"] == {"exact": 1.0}
    forged = before.state()
    for name, value in forged["solvers"]["pixels"].items():
        if name not in ("steps", "second"):
            wrong = {**forged, "solvers": {"pixels": {**forged["solvers"]["pixels"], name: value + value.abs().max()}}}
            with pytest.raises(CorruptFileError, match="kept is not of this population"):
                make().restore(wrong)


def test_chunks_ranks_and_weights_are_those_of_the_exact_population():
    loss, exact = pair(rdm.EMA(0.99), torch.float64, tolerance=1e-3)
    x, weights = power_law(D, N, 1.3, 8), torch.rand(N, generator=torch.Generator().manual_seed(0)).double() + 0.1
    for _ in range(2):
        rows = [x.clone().requires_grad_() for _ in range(2)]
        found = [torch.autograd.grad(each(r, weights), r)[0] for each, r in zip((loss, exact), rows, strict=True)]
        assert (found[0] - found[1]).norm() <= 1e-3 * found[1].norm()
    assert loss.report["exact"] == 0


def test_what_cannot_be_followed_is_refused_or_exact():
    for options, message in (
        ({"memory": "ema", "tolerance": 0.0}, "tolerance must be above 0|tolerance"),
        ({"tolerance": 1e-3}, "populations with a memory"),
    ):
        with pytest.raises(InputError, match=message):
            rdm.Loss("frechet", Y, **options)
    with pytest.raises(InputError, match="Energy has no solver that follows a memory"):
        rdm.Loss("energy", Y, memory="ema", tolerance=1e-3)
    loss = rdm.Loss("frechet", Y, memory=rdm.EMA(0.5), tolerance=1e-3)
    with pytest.warns(UserWarning, match="singular on the reference's directions, and every step is exact"):
        for rows in power_law(D, 3 * N, 1.3, 8).split(N):
            loss(rows)
            assert loss.report == {"exact": 1.0}
