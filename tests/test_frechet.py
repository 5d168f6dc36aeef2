"""The Fréchet distance against closed forms and independent oracles."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rdm
from tests import oracles
from tests.distributions import Pair, pairs, power_law


@given(pair=pairs(), correction=st.sampled_from([0, 1]))
def test_against_scipys_square_root(pair: Pair, correction: int):
    got = rdm.distance("frechet", pair.x, pair.y, correction=correction)
    assert math.isclose(got, oracles.frechet_by_sqrtm(pair.x, pair.y, correction), rel_tol=1e-8, abs_tol=1e-8)


def test_bures_wasserstein_of_pot():
    ot = pytest.importorskip("ot")
    x, y = power_law(8, 100, 1.0, 0), power_law(8, 120, 0.5, 1) + 1
    root = ot.gaussian.bures_wasserstein_distance(x.mean(0), y.mean(0), torch.cov(x.T), torch.cov(y.T))
    assert math.isclose(rdm.distance("frechet", x, y), float(root) ** 2, rel_tol=1e-10)


def test_gradient_at_512_dimensions_with_power_law_spectra():
    """A float32 eigendecomposition gives a gradient 13 % wrong here; the closed form must keep float64."""
    x, y = power_law(512, 2048, 1.3, 0, turn=0.05).requires_grad_(), power_law(512, 2048, 1.2, 1)
    oracle = oracles.frechet_by_autograd(x, y)
    (expected,) = torch.autograd.grad(oracle, x)
    got = rdm.distance("frechet", x, y)
    (gradient,) = torch.autograd.grad(got, x)
    assert math.isclose(got.detach(), oracle.detach(), rel_tol=1e-9)
    assert (gradient - expected).norm() <= 1e-9 * expected.norm()


def test_float32_features_lose_only_their_own_rounding():
    x, y = power_law(64, 1000, 1.3, 0).float() + 50, power_law(64, 1000, 1.2, 1).float() + 50
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(rdm.distance("frechet", x, y), x)
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(rdm.distance("frechet", wide, y.double()), wide)
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()


def test_gradient_pulls_each_row_along_the_gaussian_transport_map():
    """dD/dx_i = 2/n (x_i - mu_r - T (x_i - mu_g)), with T of Dowson and Landau; correction 0."""
    x, y = power_law(4, 50, 0.5, 0).requires_grad_(), power_law(4, 60, 1.0, 1) + 0.5
    (gradient,) = torch.autograd.grad(rdm.distance("frechet", x, y, correction=0), x)
    rows = x.detach()
    cg, cr = torch.cov(rows.T, correction=0), torch.cov(y.T, correction=0)

    def root(matrix: torch.Tensor, power: float) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values**power) @ vectors.T

    half = root(cr, 0.5)
    transport = half @ root(half @ cg @ half, -0.5) @ half
    expected = 2 / 50 * (rows - y.mean(0) - (rows - rows.mean(0)) @ transport)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_fewer_rows_than_dimensions_is_exact_on_the_rank_and_warns():
    x, y = power_law(64, 20, 0.7, 0).requires_grad_(), power_law(64, 500, 0.8, 1)
    with pytest.warns(UserWarning, match="singular on the reference's 64 directions"):
        got = rdm.distance("frechet", x, y)
    (gradient,) = torch.autograd.grad(got, x)
    oracle = oracles.frechet_by_nuclear_norm(x, y)
    (expected,) = torch.autograd.grad(oracle, x)
    assert math.isclose(got.detach(), oracle.detach(), rel_tol=1e-9)
    assert (gradient - expected).norm() <= 1e-7 * expected.norm()


@pytest.mark.parametrize("share, warned", [(0.5e-3, False), (2e-3, True)])
def test_directions_by_which_the_value_could_not_fall_are_not_warned_of(share, warned):
    """Where the population has no variance the distance is the reference's; rows there can take away no more."""
    x, y = power_law(6, 200, 0.0, 0), power_law(6, 500, 0.0, 1)
    y = (y - y.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(y.T))).T  # of covariance 1
    x[:, 4:] = 0
    seen = rdm.distance("frechet", 2 * x[:, :4], y[:, :4])
    unseen = seen * share / (1 - share)
    y[:, 4:] *= (unseen / 2).sqrt()
    turn = torch.linalg.qr(power_law(6, 6, 0.0, 2)).Q
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = rdm.distance("frechet", 2 * x @ turn, y @ turn)
    assert math.isclose(got, seen + unseen, rel_tol=1e-9)
    assert bool(caught) == warned


def test_the_warning_comes_once():
    x, y = torch.randn(5, 9), torch.randn(50, 9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            rdm.distance("frechet", x, y)
    assert len(caught) == 1


def test_small_reference_against_the_nuclear_norm():
    x, y = power_law(32, 300, 0.7, 0), power_law(32, 10, 0.8, 1)
    oracle = oracles.frechet_by_nuclear_norm(x, y)
    assert math.isclose(rdm.distance("frechet", x, y), oracle, rel_tol=1e-9)


def test_gaussians_in_one_dimension():
    """(m1 - m2)^2 + (s1 - s2)^2 of the samples' own moments."""
    x, y = power_law(1, 40, 1, 0) * 2 + 1, power_law(1, 30, 1, 1)
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert math.isclose(rdm.distance("frechet", x, y), expected, rel_tol=1e-10)


def test_fd_loss_mixes_a_biased_and_an_unbiased_covariance():
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64) + 1
    here, there = torch.cov(x.T, correction=0), torch.cov(y.T)
    cross = torch.linalg.eigvals(here @ there).real.sqrt().sum()
    value = (x.mean(0) - y.mean(0)).square().sum() + here.trace() + there.trace() - 2 * cross
    assert rdm.distance("frechet", x, y, correction="fd_loss").item() == pytest.approx(value.item(), rel=1e-9)
