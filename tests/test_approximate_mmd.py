"""MMD through landmarks and through random Fourier features: limits, rates and definitions."""

import math

import pytest
import torch
from hypothesis import given

import rdm
from rdm.errors import InputError
from rdm.matching.real import Real
from tests.distributions import Pair, pairs


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "inverse_multiquadric", "rational_quadratic"])
@given(pair=pairs())
def test_all_rows_as_landmarks_is_the_exact_distance(kernel: str, pair: Pair):
    """Up to the ridge: the embedding is off by at most sqrt(ridge k(0) |b|^2 / 4) in norm."""
    x = pair.x.clone().requires_grad_()
    options = {"weights": pair.a, "reference_weights": pair.b, "kernel": kernel, "bandwidth": [1.0, 2.5]}
    exact, near = (
        rdm.distance("mmd", x, pair.y, **options),
        rdm.distance("mmd_nystrom", x, pair.y, **options, ridge=1e-12),
    )
    assert math.isclose(near.detach(), exact.detach(), abs_tol=1e-6)
    expected, got = (torch.autograd.grad(value, x)[0] for value in (exact, near))
    assert (got - expected).norm() <= 1e-3 * (expected.norm() + 1e-3)


@pytest.mark.parametrize("method", ["k-means", "random"])
def test_more_landmarks_leave_less_residual(method: str):
    """The value exceeds the exact one, and what it exceeds it by falls to 0."""
    x, y = draw(50, 3) * 0.8 + 0.5, draw(400, 3, seed=1)
    exact = float(rdm.distance("mmd", x, y, bandwidth=1.5))
    residuals, errors = [], []
    for count in (5, 20, 80, 400):
        objective = rdm.objective("mmd_nystrom", landmarks=count, bandwidth=1.5, method=method)
        _, target = objective.bind(Real.of(y))
        residuals.append(float(target.residual))
        errors.append(
            abs(float(rdm.distance("mmd_nystrom", x, y, landmarks=count, bandwidth=1.5, method=method)) - exact)
        )
        assert len(target.landmarks) == count
    assert residuals == sorted(residuals, reverse=True) and residuals[-1] < 1e-8
    assert errors[-1] < 1e-8 and errors[2] < errors[0] / 30


def test_the_value_is_an_exact_distance_to_the_embedding_and_the_residual():
    """|mu_x - mu|^2 + residual, term by term from the target."""
    x, y = draw(30, 2), draw(200, 2, seed=1) + 0.3
    objective = rdm.objective("mmd_nystrom", landmarks=7, bandwidth=1.0)
    statistic, target = objective.bind(Real.of(y))
    rows, weights = statistic.measure(x, torch.ones(30, dtype=torch.float64)), target.coefficients

    def kernel(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return torch.exp(-torch.cdist(p, q).square() / 2)

    z = target.landmarks
    projected = kernel(rows.value, rows.value).mean() - 2 * (kernel(rows.value, z) @ weights).mean()
    projected = projected + weights @ kernel(z, z) @ weights
    assert projected > 0 and target.residual > 0
    assert torch.isclose(objective.distance(rows, target), projected + target.residual, rtol=1e-9)


def test_k_means_finds_the_clusters_and_repeated_rows_do_no_harm():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    y = torch.cat([c + 0.1 * draw(40, 2, seed=k) for k, c in enumerate(centres)])
    found = rdm.objective("mmd_nystrom", landmarks=3, bandwidth=1.0).bind(Real.of(y))[1].landmarks
    assert torch.cdist(found + y.mean(0), centres).amin(0).max() < 0.2
    repeated = y[:2].repeat(30, 1)
    value = rdm.distance("mmd_nystrom", y, repeated, landmarks=5, bandwidth=1.0)
    assert math.isclose(value, rdm.distance("mmd", y, repeated, bandwidth=1.0), abs_tol=1e-5)


def test_reference_rows_may_come_in_any_order():
    x, y = draw(30, 3), draw(300, 3, seed=1)
    for method in ("k-means", "random"):
        options = {"landmarks": 20, "bandwidth": 1.0, "method": method}
        straight = rdm.distance("mmd_nystrom", x, y, **options)
        assert torch.isclose(straight, rdm.distance("mmd_nystrom", x, y.flip(0), **options), rtol=1e-9)
        assert straight != rdm.distance("mmd_nystrom", x, y, **options, seed=1)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "inverse_multiquadric"])
@pytest.mark.parametrize("orthogonal", [False, True])
def test_error_of_random_features_falls_as_one_over_their_root(kernel: str, orthogonal: bool):
    """Root mean square error over 25 seeds: 16 times the features, a quarter of it; no bias."""
    x, y = draw(30, 5), draw(40, 5, seed=1) * 1.2 + 0.4
    options = {"kernel": kernel, "bandwidth": [1.5, 3.0]}
    exact = rdm.distance("mmd", x, y, **options)
    spread = []
    for features in (64, 1024):
        values = torch.stack([
            rdm.distance("mmd_rff", x, y, features=features, orthogonal=orthogonal, seed=seed, **options)
            for seed in range(25)
        ])  # fmt: skip
        assert abs(values.mean() - exact) < 4 * values.std() / 25**0.5
        spread.append(float((values - exact).square().mean().sqrt()))
    assert 2.6 < spread[0] / spread[1] < 6.2


def test_orthogonal_directions_lower_the_error_at_wide_bandwidths():
    x, y = draw(30, 16), draw(40, 16, seed=1) + 0.3
    exact = rdm.distance("mmd", x, y, bandwidth=10.0)
    errors = [
        sum(
            float(rdm.distance("mmd_rff", x, y, features=64, bandwidth=10.0, orthogonal=orthogonal, seed=s) - exact)
            ** 2
            for s in range(20)
        )
        for orthogonal in (False, True)
    ]
    assert errors[1] < errors[0] / 2


def test_the_value_is_the_difference_of_characteristic_functions():
    x, y = draw(7, 2), draw(9, 2, seed=1)
    objective = rdm.objective("mmd_rff", features=12, bandwidth=1.0)
    statistic, _ = objective.bind(Real.of(y))
    at_x, at_y = (torch.exp(1j * (rows @ statistic.frequencies.T)).mean(0) for rows in (x, y))
    got = rdm.distance("mmd_rff", x, y, features=12, bandwidth=1.0)
    assert torch.isclose(got, (at_x - at_y).abs().square().mean(), rtol=1e-10)


def test_wide_bandwidth_keeps_its_digits_in_float32():
    x, y = draw(200, 8), draw(300, 8, seed=1) + 0.1
    exact, single = (rdm.distance("mmd_rff", a, b, bandwidth=1e4) for a, b in ((x, y), (x.float(), y.float())))
    assert torch.isclose(single, exact, rtol=1e-4)


def test_wrong_hyperparameters():
    for name, wrong in (
        ("mmd_rff", {"features": 7}), ("mmd_rff", {"features": 6, "bandwidth": [1.0, 2.0]}),
        ("mmd_rff", {"kernel": "rational_quadratic"}), ("mmd_nystrom", {"landmarks": 0}),
        ("mmd_nystrom", {"ridge": 0}), ("mmd_nystrom", {"method": "kmeans"}), ("mmd_nystrom", {"kernel": "polynomial"}),
        ("mmd_nystrom", {"bandwidth": -1.0}),
    ):  # fmt: skip
        with pytest.raises(InputError):
            rdm.objective(name, **wrong)
