"""MMD against slow loops, geomloss and simulation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rdm
from rdm.errors import InputError
from tests import oracles
from tests.distributions import Pair, pairs


@given(pair=pairs(), bandwidths=st.lists(st.floats(0.3, 5), min_size=1, max_size=3), unbiased=st.booleans())
def test_against_double_loops(pair: Pair, bandwidths: list[float], unbiased: bool):
    expected = oracles.mmd_by_loops(
        *pair, lambda r: sum(math.exp(-(r**2) / (2 * s**2)) for s in bandwidths), unbiased=unbiased
    )
    got = rdm.distance(
        "mmd", pair.x, pair.y, weights=pair.a, reference_weights=pair.b,
        bandwidth=bandwidths, estimator="unbiased" if unbiased else "biased",
    )  # fmt: skip
    assert math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)


def test_geomloss_is_half_of_the_biased_value():
    geomloss = pytest.importorskip("geomloss")
    g = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(30, 4, generator=g, dtype=torch.float64),
        torch.randn(40, 4, generator=g, dtype=torch.float64) + 1,
    )
    peer = geomloss.SamplesLoss("gaussian", blur=1.5, backend="tensorized")(x, y)
    assert math.isclose(rdm.distance("mmd", x, y, bandwidth=1.5), 2 * float(peer), rel_tol=1e-9)


def test_tiles_of_any_size_give_the_same(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 3, generator=g, dtype=torch.float64), torch.randn(70, 3, generator=g, dtype=torch.float64)
    results = []
    for tile in ((1024, 2048), (7, 11), (1, 1)):
        monkeypatch.setattr("objectives._sums.TILE", tile)
        rows = x.clone().requires_grad_()
        value = rdm.distance("mmd", rows, y, bandwidth=[0.5, 2.0], estimator="unbiased")
        results.append((value.detach(), *torch.autograd.grad(value, rows)))
    for value, gradient in results[1:]:
        assert torch.isclose(value, results[0][0], rtol=1e-12)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-10, atol=1e-14)


def test_diracs():
    x, y = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    assert math.isclose(rdm.distance("mmd", x, y, bandwidth=5.0), 2 - 2 * math.exp(-0.5), rel_tol=1e-6)


def test_unbiased_is_zero_in_the_mean_and_biased_exceeds_it_as_stated():
    """Same law on both sides: E unbiased = 0, E biased = (1 - E k)(1/n + 1/m)."""
    g = torch.Generator().manual_seed(0)
    n, m, sigma, draws = 16, 20, 1.0, 500
    samples = [(torch.randn(n, 2, generator=g), torch.randn(m, 2, generator=g)) for _ in range(draws)]
    unbiased, biased = (
        torch.stack([rdm.distance("mmd", x, y, bandwidth=sigma, estimator=e) for x, y in samples])
        for e in ("unbiased", "biased")
    )
    expected_kernel = (1 + 2 / sigma**2) ** -1.0  # E exp(-|x - x'|^2 / 2 s^2) = (1 + 2 / s^2)^(-d/2) with d = 2
    assert abs(unbiased.mean()) < 4 * unbiased.std() / draws**0.5
    excess = biased.mean() - (1 - expected_kernel) * (1 / n + 1 / m)
    assert abs(excess) < 4 * biased.std() / draws**0.5
    assert (unbiased < 0).any() and (biased >= 0).all()


def test_median_bandwidth_is_the_median_of_distances():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(31, 3, generator=g, dtype=torch.float64)
    median = float(torch.pdist(y).square().median()) ** 0.5
    x = y[:9] + 1
    assert math.isclose(rdm.distance("mmd", x, y), rdm.distance("mmd", x, y, bandwidth=median), rel_tol=1e-10)


@pytest.mark.parametrize("name", ["mmd", "mmd_rff", "mmd_nystrom"])
@pytest.mark.parametrize("bandwidth, multiples", [
    (("median", 0.25), [0.25]), (["median", 0.25], [0.25]), ([("median", 0.5), ("median", 2), 3.0], [0.5, 2, None]),
    ([("median", 1)], [1]), ("median", [1]), ((3.0, ["median", 0.5]), [None, 0.5]),
])  # fmt: skip
def test_bandwidths_are_multiples_of_the_median_and_numbers_in_lists(name, bandwidth, multiples):
    g = torch.Generator().manual_seed(0)
    y = torch.randn(31, 3, generator=g, dtype=torch.float64) * 2
    median = float(torch.pdist(y).square().median()) ** 0.5
    plain = [3.0 if multiple is None else multiple * median for multiple in multiples]
    options = {"features": 96} if name == "mmd_rff" else {}
    chosen = rdm.objective(name, bandwidth=bandwidth, **options)
    assert not chosen.traits.symmetric and hash(rdm.objective("mmd", bandwidth=("median", 0.5)))
    value = rdm.distance(name, y[:9] + 1, y, bandwidth=bandwidth, **options)
    assert math.isclose(value, rdm.distance(name, y[:9] + 1, y, bandwidth=plain, **options), rel_tol=1e-10)


@pytest.mark.parametrize("wrong", [
    0, -1.0, [], [1.0, 0.0], "mean", float("inf"), ("median", 0), ("median",), ("median", 0.5, 1.0), ("mean", 1.0),
    [("median", 0.5), "median"], [("median", -1.0)], (0.5, "median"), ("median", "median"),
])  # fmt: skip
def test_wrong_bandwidth(wrong):
    with pytest.raises(InputError, match="bandwidth"):
        rdm.objective("mmd", bandwidth=wrong)


def test_wrong_estimator_and_kernel():
    with pytest.raises(InputError, match="estimator"):
        rdm.objective("mmd", estimator="u")
    with pytest.raises(InputError, match="kernel"):
        rdm.objective("mmd", kernel="cauchy")
