"""Sinkhorn divergences from step to step: against the solution without end, whatever the step before left."""

import pytest
import torch

import objectives._sinkhorn as schedule
import objectives._sinkhorn_solver as solver
import rdm
from rdm.errors import CorruptFileError, InputError
from rdm.files.store import pack, unpack
from tests.test_sinkhorn import sets

PAIR = sets()
NEAR = {"blur": 1.0, "tolerance": 1e-9}


def pulled(loss, x, weights=None):
    x, weights = (None if t is None else t.clone().requires_grad_() for t in (x, weights))
    value = loss(x, weights)
    gradients = torch.autograd.grad(value, [t for t in (x, weights) if t is not None])
    return value.detach(), *(each.double() for each in gradients)


def close(got, wanted, tolerance):
    return all((a - b).norm() <= tolerance * b.norm() for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    "options, memory",
    [
        ({}, None),
        ({"p": 1, "blur": 0.8}, None),
        ({"p": 1.5, "reach": 2.0}, rdm.Queue(130)),
        ({"reach": 1.5}, rdm.EMA(0.7)),
        ({"debias": False}, rdm.Queue(130, riding=True, balanced=True)),
    ],
)
def test_a_step_is_the_solution_wherever_it_starts(options, memory):
    """Value, and gradients in rows and weights, are those of sweeps without end; only the first step is annealed."""
    given = {"memory": memory, "reference_weights": PAIR.b, **NEAR, **options}
    warm, cold = (
        rdm.Loss("sinkhorn", PAIR.y, **given),
        rdm.Loss("sinkhorn", PAIR.y, **{**given, "tolerance": None}, sweeps=3000),
    )
    x = PAIR.x
    for step in range(3):
        got, wanted = pulled(warm, x, PAIR.a), pulled(cold, x, PAIR.a)
        assert close(got, wanted, 1e-6), step
        assert warm.report["annealed"] == (step == 0) and warm.report["bound"] <= 1e-9
        x = x - 20 * got[1]


@pytest.mark.parametrize("tolerance", [0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("blur, p", [(0.9, 2), (0.9, 1)])
def test_gradients_are_within_the_tolerance_and_less_is_done(tolerance, kind, blur, p):
    """Of a mixture whose rows move a little from step to step."""
    g = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(6, 2, generator=g)
    y, x = (centres[torch.randint(6, (n,), generator=g)] + 0.3 * torch.randn(n, 2, generator=g) for n in (160, 120))
    x = 1.1 * x + 0.2
    loss, exact = (
        rdm.Loss("sinkhorn", y.to(t), blur=blur, p=p, tolerance=e)
        for t, e in ((kind, tolerance), (torch.float64, 1e-7))
    )
    sweeps = []
    for _ in range(4):
        got, wanted = pulled(loss, x.to(kind)), pulled(exact, x.to(kind).double())
        assert close(got[1:], wanted[1:], tolerance) and loss.report["bound"] <= tolerance
        sweeps.append(loss.report["sweeps"])
        x = x - (4 * wanted[1]).float()
    assert sum(sweeps[1:]) < 2 * sweeps[0]


def test_it_goes_on_from_its_state_to_the_bit():
    """From a checkpoint, and after a loss that was not taken; another reference's state is refused."""
    net = torch.nn.Linear(3, 3).double()
    make = lambda y=PAIR.y: rdm.Population("sinkhorn", "pixels", y, memory=rdm.Queue(90), tolerance=1e-3, chunk=7)  # noqa: E731
    first, second = make(), make()

    def steps(population, numbers):
        found = []
        for k in numbers:
            net.zero_grad(set_to_none=False)
            found.append(population.backward(net, PAIR.x[k * 9 : k * 9 + 30]))
        return found, net.weight.grad.clone()

    steps(first, range(2))
    second.restore(unpack(*pack(first.state())))
    (taken, one), (again, other) = steps(first, range(2, 4)), steps(second, range(2, 4))
    assert torch.equal(one, other) and [t.solvers for t in taken] == [t.solvers for t in again]
    assert all(t.solvers["pixels"]["annealed"] == 0 for t in taken)
    before = {name: each.clone() for name, each in first.state()["solvers"]["pixels"].items()}
    assert list(before) == ["g", "own"]
    with torch.no_grad():
        first.loss(net, PAIR.x)
    assert all(torch.equal(each, before[name]) for name, each in first.state()["solvers"]["pixels"].items())
    for other, wrong in ((PAIR.y, {"g": before["g"][1:]}), (PAIR.y, {"own": before["own"] + 1}), (PAIR.y * 1.1, {})):
        forged = {**first.state(), "solvers": {"pixels": {**before, **wrong}}}
        with pytest.raises(CorruptFileError, match="not of this reference"):
            make(other).restore(forged)


def test_a_module_has_its_potentials_in_its_state():
    loss, other = (rdm.Loss("sinkhorn", PAIR.y, **NEAR) for _ in range(2))
    loss(PAIR.x)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(loss.eval()(PAIR.x), other(PAIR.x)) and other.report["annealed"] == 0
    assert torch.equal(loss.state_dict()["solved.g"], loss._held.solved["g"])
    with pytest.raises(RuntimeError, match="not of this reference"):
        rdm.Loss("sinkhorn", 1.1 * PAIR.y, **NEAR).load_state_dict(loss.state_dict())


def test_a_start_that_does_not_fit_is_annealed_and_said():
    loss = rdm.Loss("sinkhorn", PAIR.y, **{**NEAR, "blur": 0.5})
    for x, annealed in ((PAIR.x, 1), (PAIR.x + 30, 1), (PAIR.x + 30.01, 0)):
        got = pulled(loss, x)
        fresh = rdm.Loss("sinkhorn", PAIR.y, **{**NEAR, "blur": 0.5})
        assert close(got, pulled(fresh, x), 1e-6) and loss.report["annealed"] == annealed


def test_kernels_too_large_to_keep_and_beyond_the_range(monkeypatch):
    """Exponentials in every sweep give what a kept kernel does, which leaves its range without harm."""
    wanted = pulled(rdm.Loss("sinkhorn", PAIR.y, **NEAR), PAIR.x)
    for place, name, value in (
        (schedule, "KEEP", 0),
        (solver.Kernel, "g_of", lambda self, f: self.b * torch.nan),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            loss = rdm.Loss("sinkhorn", PAIR.y, **NEAR)
            assert all(close(pulled(loss, PAIR.x), wanted, 1e-6) for _ in range(2)), name


def test_a_tiny_blur_in_float32_is_finite(monkeypatch):
    """Exponents of thousands: what is not solved is said, and is near exact transport."""
    monkeypatch.setattr(solver, "MOST", 50)
    x, y = (t.float() for t in sets(40, 30, 8, scale=50.0)[::2])
    exact, loss = rdm.distance("wasserstein", x, y), rdm.Loss("sinkhorn", y, blur=0.05, tolerance=1e-2)
    for _ in range(2):
        with pytest.warns(UserWarning, match="not within the tolerance of 0.01 after 50 sweeps; raise it, or blur"):
            value, gradient = pulled(loss, x)
        assert gradient.isfinite().all() and abs(value / (exact / 2) - 1) < 0.1


def test_what_cannot_be_solved_is_said(monkeypatch):
    monkeypatch.setattr(solver, "MOST", 2)
    with pytest.warns(UserWarning, match="not within the tolerance of 1e-09 after 2 sweeps; raise it, or blur"):
        rdm.Loss("sinkhorn", PAIR.y, **NEAR)(PAIR.x)
    with pytest.raises(InputError, match="geomloss gives no potentials back"):
        rdm.Loss("sinkhorn", PAIR.y, backend="geomloss", **NEAR)
    with pytest.raises(InputError, match="tolerance must be above 0|tolerance"):
        rdm.Loss("sinkhorn", PAIR.y, tolerance=0.0)


def test_equal_samples_end():
    loss = rdm.Loss("sinkhorn", PAIR.y, blur=1.0, tolerance=1e-6)
    for _ in range(2):
        value, gradient = pulled(loss, PAIR.y)
        assert value <= 1e-12 and gradient.abs().max() <= 1e-7 and loss.report["sweeps"] < 200
