"""Every kernel of `mmd`, `energy`, `kid` and `cmmd` against slow loops, peers, closed forms and simulation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import objectives._bandwidth as bandwidth_module
import rdm
from rdm.errors import InputError
from rdm.matching.real import Real
from tests import oracles
from tests.distributions import Pair, pairs

ALPHA = 0.7


def profile(name: str, sigma: float):
    """The contract's kernels as functions of the distance."""
    return {
        "gaussian": lambda r: math.exp(-(r**2) / (2 * sigma**2)),
        "laplacian": lambda r: math.exp(-r / sigma),
        "inverse_multiquadric": lambda r: (1 + r**2 / sigma**2) ** -0.5,
        "rational_quadratic": lambda r: (1 + r**2 / (2 * ALPHA * sigma**2)) ** -ALPHA,
    }[name]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def distance(name: str, pair: Pair, **hyperparameters: object) -> torch.Tensor:
    return rdm.distance(name, pair.x, pair.y, weights=pair.a, reference_weights=pair.b, **hyperparameters)


RADIAL = ["gaussian", "laplacian", "inverse_multiquadric", "rational_quadratic"]
radial = pytest.mark.parametrize("kernel", RADIAL)
estimators = pytest.mark.parametrize("estimator", ["biased", "unbiased"])


@radial
@estimators
@given(pair=pairs(), scales=st.sampled_from([(1.3,), (0.5, 1.0, 2.0, 4.0), (3.0, 0.4), (1.0, 16.0), (2.0, 2.0)]))
def test_radial_kernels_against_double_loops(kernel: str, estimator: str, pair: Pair, scales: tuple[float, ...]):
    """One bandwidth, octaves (which share an exponential), others, and the same one twice."""
    expected = oracles.mmd_by_loops(
        *pair, lambda r: sum(profile(kernel, s)(r) for s in scales), unbiased=estimator == "unbiased"
    )
    got = distance("mmd", pair, kernel=kernel, bandwidth=list(scales), estimator=estimator, alpha=ALPHA)
    assert math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)


@estimators
@given(pair=pairs())
def test_polynomial_against_double_loops(estimator: str, pair: Pair):
    """(x.y / d + 1)^3 of the rows as they are, not centred."""
    d = pair.x.shape[1]
    expected = oracles.discrepancy_by_loops(
        *pair,
        lambda p, q: (sum(s * t for s, t in zip(p, q, strict=True)) / d + 1) ** 3,
        unbiased=estimator == "unbiased",
    )
    got = distance("mmd", pair, kernel="polynomial", estimator=estimator)
    assert math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-10)


@given(pair=pairs(), degree=st.integers(1, 4), gamma=st.sampled_from([None, 0.3]), coef=st.sampled_from([0.1, 2.0]))
def test_kid_of_any_polynomial_against_double_loops(pair: Pair, degree: int, gamma: float | None, coef: float):
    scale = 1 / pair.x.shape[1] if gamma is None else gamma
    expected = oracles.discrepancy_by_loops(
        *pair,
        lambda p, q: (scale * sum(s * t for s, t in zip(p, q, strict=True)) + coef) ** degree,
        unbiased=True,
    )
    got = distance("kid", pair, degree=degree, gamma=gamma, coef=coef)
    assert math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-9)


@estimators
@given(pair=pairs(), exponent=st.sampled_from([0.3, 1.0, 1.7]))
def test_energy_against_double_loops(estimator: str, pair: Pair, exponent: float):
    expected = oracles.mmd_by_loops(*pair, lambda r: -(r**exponent), unbiased=estimator == "unbiased")
    got = distance("energy", pair, exponent=exponent, estimator=estimator)
    assert math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)


@given(pair=pairs())
def test_presets_are_what_they_say(pair: Pair):
    kid = distance("mmd", pair, kernel="polynomial", estimator="unbiased")
    cmmd = 1000 * distance("mmd", pair, bandwidth=10)
    assert distance("kid", pair) == kid and distance("cmmd", pair) == cmmd


def test_kid_is_that_of_scikit_learn():
    """polynomial_kernel(degree=3, gamma=None, coef0=1), gamma None being 1/d; U-statistic as published code has it."""
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = draw(40, 6).abs(), draw(50, 6, seed=1).abs() * 1.2
    xx, yy, xy = (
        torch.from_numpy(pairwise.polynomial_kernel(a.numpy(), b.numpy(), degree=3, gamma=None, coef0=1))
        for a, b in ((x, x), (y, y), (x, y))
    )
    n, m = len(x), len(y)
    expected = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1)) - 2 * xy.mean()
    assert torch.isclose(rdm.distance("kid", x, y), expected, rtol=1e-10)


def test_cmmd_is_its_published_formula():
    """1000 (mean k_xx + mean k_yy - 2 mean k_xy), gamma = 1 / (2 10^2), on rows of length 1."""
    x, y = (torch.nn.functional.normalize(draw(n, 16, seed=n), dim=1) for n in (40, 50))
    y = torch.nn.functional.normalize(y + 0.2, dim=1)
    xx, yy, xy = (torch.exp(-torch.cdist(a, b).square() / 200).mean() for a, b in ((x, x), (y, y), (x, y)))
    assert torch.isclose(rdm.distance("cmmd", x, y), 1000 * (xx + yy - 2 * xy), rtol=1e-9)
    single = rdm.distance("cmmd", x.float(), y.float())
    assert torch.isclose(single, rdm.distance("cmmd", x, y), rtol=1e-5)


@pytest.mark.parametrize("loss, name, options", [
    ("laplacian", "mmd", {"kernel": "laplacian", "bandwidth": 1.5}), ("energy", "energy", {})])  # fmt: skip
def test_geomloss_is_half(loss: str, name: str, options: dict):
    """Half of the biased value; laplacian: exp(-|x - y| / blur). It softens the norm at 0: 4e-5 and 5e-6 measured."""
    geomloss = pytest.importorskip("geomloss")
    x, y = draw(30, 4), draw(40, 4, seed=1) + 1
    peer = geomloss.SamplesLoss(loss, blur=1.5, backend="tensorized")(x, y)
    assert math.isclose(rdm.distance(name, x, y, **options), 2 * float(peer), rel_tol=1e-4)


@pytest.mark.parametrize("name, options, expected", [
    ("mmd", {"kernel": "gaussian", "bandwidth": 5.0}, 2 - 2 * math.exp(-0.5)),
    ("mmd", {"kernel": "laplacian", "bandwidth": 5.0}, 2 - 2 * math.exp(-1)),
    ("mmd", {"kernel": "inverse_multiquadric", "bandwidth": 5.0}, 2 - 2 * 2**-0.5),
    ("mmd", {"kernel": "rational_quadratic", "bandwidth": 5.0, "alpha": 2.0}, 2 - 2 * 1.25**-2),
    ("mmd", {"kernel": "polynomial"}, 1 + 13.5**3 - 2),
    ("energy", {}, 10.0), ("energy", {"exponent": 0.5}, 2 * 5**0.5),
])  # fmt: skip
def test_diracs(name: str, options: dict, expected: float):
    """Rows 0 and (3, 4): k(x, x) + k(y, y) - 2 k(x, y)."""
    got = rdm.distance(name, torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), **options)
    assert math.isclose(got, expected, rel_tol=1e-6)


@pytest.mark.parametrize("name, options", [
    ("mmd", {"kernel": "laplacian", "bandwidth": 1.5}), ("mmd", {"kernel": "rational_quadratic", "bandwidth": 1.5}),
    ("mmd", {"kernel": "polynomial"}), ("kid", {}), ("energy", {})])  # fmt: skip
def test_unbiased_is_zero_in_the_mean(name: str, options: dict):
    estimator = {} if name == "kid" else {"estimator": "unbiased"}
    g = torch.Generator().manual_seed(0)
    values = torch.stack([
        rdm.distance(name, torch.randn(8, 2, generator=g), torch.randn(10, 2, generator=g), **options, **estimator)
        for _ in range(300)
    ])  # fmt: skip
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert (values < 0).any()


CUSPS = [("mmd", {"kernel": "laplacian", "bandwidth": 2.0}), ("energy", {}), ("energy", {"exponent": 0.4})]


@pytest.mark.parametrize("name, options", CUSPS)
@pytest.mark.parametrize("d", [3, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_coincide_do_not_pull(name: str, options: dict, d: int, dtype: torch.dtype):
    """Against differences formed row by row, where a pair at distance 0 has weight exactly 0."""
    y = draw(20, d, dtype=dtype) + 1
    x = torch.cat([y[:5], draw(6, d, seed=1, dtype=dtype), y[:2]]).requires_grad_()  # also coinciding within x
    value = rdm.distance(name, x, y, **options)
    (gradient,) = torch.autograd.grad(value, x)

    rows = x.detach().double().requires_grad_()
    reference = y.double()

    def kernel(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        squared = (p[:, None] - q).square().sum(2)
        away = squared > 0
        r = torch.where(away, squared, 1.0).sqrt()
        k = -(r ** options.get("exponent", 1)) if name == "energy" else torch.exp(-r / options["bandwidth"])
        return torch.where(away, k, 0.0 if name == "energy" else 1.0)

    loops = kernel(rows, rows).mean() - 2 * kernel(rows, reference).mean() + kernel(reference, reference).mean()
    (expected,) = torch.autograd.grad(loops, rows)
    tight = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.isclose(value, loops.detach(), rtol=tight, atol=tight)
    assert (gradient - expected).norm() <= tight * expected.norm()


@radial
def test_equal_sides_have_gradient_zero(kernel: str):
    x = draw(12, 3).requires_grad_()
    value = rdm.distance("mmd", x, x.detach(), kernel=kernel, bandwidth=1.0)
    (gradient,) = torch.autograd.grad(value, x)
    assert value < 1e-13 and gradient.abs().max() < 1e-12


@pytest.mark.parametrize("kernel", [*RADIAL, "polynomial"])
@estimators
def test_tiles_of_any_size_give_the_same(monkeypatch, kernel: str, estimator: str):
    x, y = draw(23, 3), draw(31, 3, seed=1)
    results = []
    for tile in ((1024, 2048), (7, 11), (1, 1)):
        monkeypatch.setattr("objectives._sums.TILE", tile)
        rows = x.clone().requires_grad_()
        value = rdm.distance("mmd", rows, y, kernel=kernel, bandwidth=1.5, estimator=estimator)
        results.append((value.detach(), *torch.autograd.grad(value, rows)))
    for value, gradient in results[1:]:
        assert torch.isclose(value, results[0][0], rtol=1e-11)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-9, atol=1e-13)


@radial
def test_wide_bandwidth_keeps_its_digits(kernel: str):
    """Counted from k(0), float32 is right where 1 - k is far below its epsilon's square root."""
    x, y = draw(200, 8), draw(300, 8, seed=1) + 0.1
    exact = rdm.distance("mmd", x, y, kernel=kernel, bandwidth=1000.0)
    single = rdm.distance("mmd", x.float(), y.float(), kernel=kernel, bandwidth=1000.0)
    assert torch.isclose(single, exact, rtol=1e-4)


@radial
@pytest.mark.parametrize("d", [1, 64, 1024])
def test_float32_values_beside_float64_for_any_bandwidth(kernel: str, d: int):
    """From a tenth of the median distance, where k is 1e-22, to a hundredfold, where 1 - k is 5e-5.

    At .17 of it k is 3e-8, next to 1 nothing in float32 (test of counting far pairs from 0).
    """
    scales = torch.linspace(1, 0.2, d)
    x, y = (draw(n, d, seed=n, dtype=torch.float32) * scales for n in (200, 300))
    x = 1.1 * x + 3.1
    y = y + 3
    median = bandwidth_module.median_distance(Real.of(y.double()))
    settings = [{"bandwidth": median * f} for f in (0.1, 0.17, 0.25, 1.0, 8.0, 100.0)]
    settings.append({"bandwidth": [median * f for f in (0.125, 0.25, 1.0, 4.0)]})
    for name, more in (("mmd", {}), ("mmd_nystrom", {"landmarks": 40, "method": "random"})):
        if d == 1 and name != "mmd":
            continue  # landmarks so near each other make the coefficients large: 1e-5
        for setting in settings:
            options = {"kernel": kernel, **setting, **more}
            single, exact = (rdm.distance(name, x.to(t), y.to(t), **options) for t in (torch.float32, torch.float64))
            assert torch.isclose(single, exact, rtol=1e-6, atol=0), (name, setting)


@pytest.mark.parametrize("name, options", [("energy", {}), ("mmd", {"kernel": "laplacian", "bandwidth": 2.0})])
@pytest.mark.parametrize("d", [1, 8, 768])
def test_a_collapsing_mode_keeps_its_repulsion_in_float32(name: str, options: dict, d: int):
    """64 rows within r of their distance from the mean: value, and the part of the gradient that spreads them."""
    y, direction, noise = (draw(n, d, seed=n) for n in (128, 1, 64))
    for r in (1e-1, 1e-2, 1e-3, 1e-4):
        x = (direction / direction.norm() * d**0.5 * 2 + noise * r).float()
        found = []
        for dtype in (torch.float32, torch.float64):
            rows = x.to(dtype).requires_grad_()
            value = rdm.distance(name, rows, y.float().to(dtype), **options)
            (gradient,) = torch.autograd.grad(value, rows)
            found.append((value.detach(), (gradient - gradient.mean(0)).double()))
        (value, spreading), (exact, expected) = found
        assert torch.isclose(value, exact, rtol=1e-6)
        assert (spreading - expected).norm() <= 1e-3 * expected.norm(), r


@pytest.mark.parametrize("name, options", [
    ("mmd", {}), *(("mmd", {"kernel": k, "bandwidth": 1e25}) for k in RADIAL), ("energy", {})])  # fmt: skip
def test_huge_features_in_float32_are_done_in_float64(name: str, options: dict):
    x, y = draw(20, 3, dtype=torch.float32) * 1e25, draw(30, 3, seed=1, dtype=torch.float32) * 2e25
    rows = x.clone().requires_grad_()
    if not options and name == "mmd":
        options = {"bandwidth": 2e25}
    value = rdm.distance(name, rows, y, **options)
    (gradient,) = torch.autograd.grad(value, rows)
    assert torch.isclose(value.detach(), rdm.distance(name, x.double(), y.double(), **options), rtol=1e-4)
    assert torch.isfinite(gradient).all()


def test_median_of_weighted_pairs():
    """A weight of 2 is a row twice, but for the pair of the row with its copy; a weight of 0 is no row."""
    y = draw(9, 2)
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0, 1.0, 1.0, 3.0, 1.0, 0.0]).double()
    got = bandwidth_module.median_distance(Real.of(y, weights))
    loops = sorted(
        (math.dist(y[i].tolist(), y[j].tolist()), float(weights[i] * weights[j])) for i in range(9) for j in range(i)
    )
    levels = torch.tensor([w for _, w in loops]).cumsum(0)
    expected = loops[int((levels < levels[-1] / 2).sum())][0]
    assert math.isclose(got, expected, rel_tol=1e-9)
    nearly = torch.ones(7, dtype=torch.float64)
    nearly[0] += 1e-12
    equal, weighted = (bandwidth_module.median_distance(Real.of(y[:7], w)) for w in (None, nearly))
    assert math.isclose(equal, weighted, rel_tol=1e-9)


@pytest.mark.parametrize("exponent", [0, 2, -1.0, float("nan")])
def test_wrong_exponent(exponent: float):
    with pytest.raises(InputError, match="exponent"):
        rdm.objective("energy", exponent=exponent)


def test_wrong_alpha():
    with pytest.raises(InputError, match="alpha"):
        rdm.objective("mmd", kernel="rational_quadratic", alpha=0)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_weights_learn_over_many_tiles(monkeypatch, estimator):
    """The gradient in the weights is the same in tiles of 4 and 5 rows as in one."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (14, 11))
    w = torch.rand(14, generator=g, dtype=torch.float64).requires_grad_()
    found = []
    for tile in ((1024, 2048), (4, 5)):
        monkeypatch.setattr("objectives._sums.TILE", tile)
        value = rdm.distance("mmd", x, y, weights=w, bandwidth=1.5, estimator=estimator)
        found.append(torch.autograd.grad(value, w)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-14)
