"""Sinkhorn divergence against geomloss, exact transport, finite differences and its own other forms."""

import math
import warnings

import pytest
import torch

import objectives._sinkhorn as solver
import rdm
from rdm.errors import InputError
from rdm.matching.real import Real
from tests.distributions import Pair


def sets(n: int = 60, m: int = 45, d: int = 3, *, seed: int = 0, scale: float = 1.0) -> Pair:
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, d, generator=g, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=g, dtype=torch.float64) + 0.1 for k in (n, m))
    return Pair((1.2 * x + 0.7) * scale, a / a.sum(), y * scale, b / b.sum())


def with_gradient(pair: Pair, **options: object) -> tuple[float, torch.Tensor]:
    x = pair.x.clone().requires_grad_()
    value = rdm.distance("sinkhorn", x, pair.y, weights=pair.a, reference_weights=pair.b, **options)
    return float(value.detach()), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", [None, 2000.0])
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("blur, scaling", [(500.0, 0.5), (100.0, 0.5), (400.0, 0.9)])
def test_geomloss_on_its_own_schedule(p, reach, debias, blur, scaling):
    """Same cost, blur, reach, schedule. At scale 1000, since geomloss rounds distances below 1e-4 up for p = 1.

    Its unbalanced gradient (0.3.1) is that of a cost times (rho + eps/2) / (rho + eps), rho = reach^p, eps = blur^p:
    the correction is a module's `backward`, which autograd does not call. Ours passes finite differences, below.
    """
    geomloss = pytest.importorskip("geomloss")
    pair = sets(scale=1000.0)
    value, gradient = with_gradient(pair, p=p, reach=reach, debias=debias, blur=blur, scaling=scaling)
    x = pair.x.clone().requires_grad_()
    peer = geomloss.SamplesLoss(
        "sinkhorn", p=p, blur=blur, reach=reach, scaling=scaling, debias=debias, backend="tensorized"
    )(pair.a, x, pair.b, pair.y)
    (expected,) = torch.autograd.grad(peer, x)
    if reach is not None:
        expected = expected * (reach**p + blur**p) / (reach**p + blur**p / 2)
    assert math.isclose(value, float(peer.detach()), rel_tol=1e-6)
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("p, reach", [(2, None), (1, None), (2, 1.5), (1, 1.5), (1.5, None)])
@pytest.mark.parametrize("debias", [True, False])
def test_gradient_of_a_solved_problem(p, reach, debias):
    pair = sets(6, 5)
    options = dict(p=p, reach=reach, debias=debias, blur=1.0, sweeps=200)
    x = pair.x.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rows: rdm.distance("sinkhorn", rows, pair.y, weights=pair.a, reference_weights=pair.b, **options),
        (x,),
        atol=1e-7,
    )


@pytest.mark.parametrize("p", [1, 2])
def test_small_blur_is_exact_transport(p):
    """The cost has the factor 1/p: the value tends to W_p^p / p."""
    pair = sets(30, 20)
    exact = rdm.distance("wasserstein", pair.x, pair.y, weights=pair.a, reference_weights=pair.b, p=p)
    values = [with_gradient(pair, p=p, blur=blur, scaling=0.9, sweeps=100)[0] for blur in (0.5, 0.1, 0.02)]
    errors = [abs(p * value / float(exact) - 1) for value in values]
    assert errors[1] < errors[0] / 4 and errors[2] < 1e-2, errors


def test_large_blur_is_half_of_the_squared_distance_of_means():
    pair = sets()
    value, _ = with_gradient(pair, blur=1e3, sweeps=20)
    gap = pair.a @ pair.x - pair.b @ pair.y
    assert math.isclose(value, float(gap @ gap) / 2, rel_tol=1e-4)


@pytest.mark.parametrize("p, reach", [(2, None), (1, None), (2, 2.0)])
def test_streamed_and_stable_forms_are_the_kept_one(p, reach, monkeypatch):
    pair = sets(150, 90)
    options = dict(p=p, reach=reach, blur=0.3)
    value, gradient = with_gradient(pair, **options)
    for name, replaced in {
        "streamed": {"KEEP": 0, "TILE": 2**14},
        "maximum taken out": {"_sums": lambda c, a, b, f, g, eps, pull: (f * 0, g * 0, None)},
    }.items():
        with monkeypatch.context() as patch:
            for attribute, new in replaced.items():
                patch.setattr(solver, attribute, new)
            other, slope = with_gradient(pair, **options)
        assert math.isclose(value, other, rel_tol=1e-10), name
        assert (slope - gradient).norm() <= 1e-9 * gradient.norm(), name


def test_tiny_blur_in_float32_is_finite():
    """Exponents of thousands: the sums leave the number's range and the maximum is taken out."""
    pair = Pair(*(t.float() for t in sets(40, 30, 8, scale=50.0)))
    value, gradient = with_gradient(pair, blur=0.05)
    exact = rdm.distance("wasserstein", pair.x, pair.y, weights=pair.a, reference_weights=pair.b)
    assert torch.isfinite(gradient).all() and math.isclose(value, float(exact) / 2, rel_tol=0.1)


def test_equal_samples_give_zero_without_convergence():
    pair = sets()
    same = pair._replace(y=pair.x, b=pair.a)
    for options in ({"blur": 0.05}, {"blur": 0.05, "p": 1}, {"blur": 0.05, "reach": 1.0}):
        value, gradient = with_gradient(same, **options)
        assert abs(value) <= 1e-12 and gradient.abs().max() <= 1e-12


def test_the_references_own_term_is_solved_once_where_the_schedule_is_its(monkeypatch):
    pair = sets(60, 40)
    solved = []
    original = solver.solve
    import objectives.sinkhorn as member

    monkeypatch.setattr(member, "solve", lambda cost, *rest, **o: solved.append(cost.own) or original(cost, *rest, **o))
    objective = rdm.objective("sinkhorn", blur=0.5, diameter=10.0)
    statistic, target = objective.bind(Real.of(pair.y, pair.b))
    for _ in range(2):
        objective.distance(statistic.measure(pair.x, pair.a), target)
    assert solved == [True, False, True, False, True]  # the reference; then across and within, twice


def test_auto_blur_is_a_tenth_of_the_typical_distance():
    pair = sets()
    y = pair.y - pair.b @ pair.y
    blur = 0.1 * math.sqrt(2 * float(pair.b @ y.square().sum(1)))
    for given, number in ("auto", blur), (("auto", 1), blur), (["auto", 2.5], 2.5 * blur):
        assert math.isclose(with_gradient(pair, blur=given)[0], with_gradient(pair, blur=number)[0], rel_tol=1e-9)
    with pytest.raises(InputError, match="rows differ"):
        rdm.distance("sinkhorn", pair.x, torch.ones(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("p", [1, 2])
def test_geomloss_as_backend(p):
    pytest.importorskip("geomloss")
    pair = sets(scale=1000.0)
    ours, theirs = (with_gradient(pair, p=p, blur=300.0, backend=backend) for backend in ("rdm", "geomloss"))
    assert math.isclose(ours[0], theirs[0], rel_tol=1e-6)
    assert (ours[1] - theirs[1]).norm() <= 1e-6 * ours[1].norm()
    with torch.no_grad():
        rdm.distance("sinkhorn", pair.x, pair.y, p=p, blur=300.0, backend="geomloss")
        assert not torch.is_grad_enabled()


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    import importlib

    def missing(name: str, package: str | None = None) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r'pip install "rdm-torch\[ot\]"'):
        rdm.registry.objectives["sinkhorn"].build(backend="geomloss")


@pytest.mark.parametrize("dtype, box", [(torch.float64, 3e-235), (torch.float64, 1e-100), (torch.float32, 1e-20)])
def test_sides_that_nearly_coincide(dtype, box):
    """64 rows at one point, 64 at another: |shift|^2 / 2 apart, to the rounding of the temperature."""
    x, y = torch.full((64, 16), box, dtype=dtype).requires_grad_(), torch.zeros(64, 16, dtype=dtype)
    value = rdm.distance("sinkhorn", x, y, blur=0.1)
    (gradient,) = torch.autograd.grad(value, x)
    assert math.isclose(value.detach(), 16 * box**2 / 2, abs_tol=1e-15 * 0.1**2)
    torch.testing.assert_close(gradient, x.detach() / 64, rtol=1e-5, atol=0)


def test_huge_features_in_float32():
    x, y = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (30, 40))
    for p in (1, 2):
        options = {"p": p, "blur": 1.0, "sweeps": 200}
        rows = (x * 2.0**64).requires_grad_()
        value = rdm.distance("sinkhorn", rows, y * 2.0**64, **{**options, "blur": 2.0**64})
        expected = rdm.distance("sinkhorn", x.double(), y.double(), **options)
        assert math.isclose(value.detach(), expected * 2.0 ** (64 * p), rel_tol=1e-5)
        assert torch.autograd.grad(value, rows)[0].isfinite().all()


@pytest.mark.parametrize("reach", [1e200, 1e20])
def test_a_reach_beyond_every_cost_is_balanced(reach):
    pair = sets()
    value, gradient = with_gradient(pair, blur=1.0, reach=reach)
    expected, slope = with_gradient(pair, blur=1.0)
    assert math.isclose(value, expected, rel_tol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)


def test_sweeps_that_ran_out_are_said():
    pair = sets()
    with pytest.warns(UserWarning, match="not converged after sweeps=2: .* 1% of the mass; raise sweeps"):
        with_gradient(pair, blur=0.1, sweeps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_gradient(pair, blur=1.0, sweeps=500)


def test_wrong_hyperparameters():
    for wrong, message in (
        ({"p": 3}, "p must be a number from 1 to 2"),
        ({"blur": 0}, "blur must be"),
        ({"blur": "median"}, "blur must be"),
        ({"blur": ("median", 1.0)}, "blur must be"),
        ({"blur": ("auto", 0)}, "blur must be"),
        ({"scaling": 1.0}, "scaling must be a number from 0.001"),
        ({"reach": -1.0}, "reach must be"),
        ({"reach": float("inf")}, "reach must be .* or None"),
        ({"sweeps": 0}, "sweeps must be"),
        ({"diameter": 0.0}, "diameter must be"),
        ({"backend": "keops"}, "backend must be"),
        ({"backend": "geomloss", "p": 1.5}, "geomloss has p 1 and 2"),
    ):
        with pytest.raises(InputError, match=message):
            rdm.objective("sinkhorn", **wrong)
