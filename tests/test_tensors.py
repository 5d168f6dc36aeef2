"""Representations of any tensor."""

import pytest
import torch

import rdm
from rdm.errors import InputError
from representations.tensors import ledoit_wolf


def correlated(n: int = 200, d: int = 6) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64)
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ mix + 3


@pytest.mark.parametrize("method", ["zca", "pca"])
def test_whitened_items_have_unit_covariance_and_no_mean(method):
    x = correlated()
    z = rdm.representation("whitening", method=method, shrinkage=0.0).fitted(x)(x)
    torch.testing.assert_close(torch.cov(z.T, correction=0), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(z.mean(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-10)


def test_zca_is_the_inverse_root_of_the_shrunk_covariance():
    """W^-2 = (1 - s) Sigma + s tr(Sigma) / d I, W symmetric."""
    x = correlated()
    matrix = rdm.representation("whitening", shrinkage=0.3).fitted(x).module.matrix
    covariance = torch.cov(x.T, correction=0)
    shrunk = 0.7 * covariance + 0.3 * covariance.trace() / 6 * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.inv(matrix @ matrix), shrunk, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)


def test_pca_whitening_is_the_pca_member_with_whiten():
    x = correlated()
    white = rdm.representation("whitening", method="pca", shrinkage=0.0).fitted(x)(x)
    components = rdm.representation("pca", components=6, whiten=True).fitted(x)(x)
    torch.testing.assert_close(white.abs(), components.abs())


@pytest.mark.parametrize(("n", "d"), [(200, 6), (10, 30), (3, 4)])
def test_ledoit_wolf_is_scikit_learns(n, d):
    covariance = pytest.importorskip("sklearn.covariance")
    x = correlated(n, d)
    assert ledoit_wolf(x - x.mean(0)) == pytest.approx(covariance.ledoit_wolf_shrinkage(x.numpy()), rel=1e-9)


def test_wrong_whitening_is_refused():
    with pytest.raises(InputError, match="rank 9 of 30; shrink it, or take"):
        rdm.representation("whitening", shrinkage=0.0).fitted(correlated(10, 30))
    with pytest.raises(InputError, match="shrinkage must be"):
        rdm.representation("whitening", shrinkage=2)
    with pytest.raises(InputError, match="method must be 'zca' or 'pca'"):
        rdm.representation("whitening", method="zac")
    whole = rdm.representation("whitening", shrinkage="ledoit_wolf").fitted(correlated(10, 30))
    assert torch.isfinite(whole(correlated(10, 30))).all()


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
def test_inner_products_of_random_fourier_features_are_the_kernel(kernel):
    """Each is a mean of P terms in [-1, 1]: 4 standard errors are at most 4 / sqrt(P)."""
    x = correlated(20)
    encode = rdm.representation("random_fourier", features=40_000, kernel=kernel, bandwidth=4.0).fitted(x)
    distance = torch.cdist(x, x)
    expected = (-distance.square() / 32).exp() if kernel == "gaussian" else (-distance / 4).exp()
    assert (encode(x) @ encode(x).T - expected).abs().max() <= 4 / 20_000**0.5


def test_their_mean_difference_is_the_objectives_mmd():
    x, y = correlated(300), correlated(300)[:200] + 1
    encode = rdm.representation("random_fourier", features=20_000).fitted(y)
    means = (encode(x).mean(0) - encode(y).mean(0)).square().sum()
    torch.testing.assert_close(means, rdm.distance("mmd", x, y, estimator="biased"), rtol=0.05, atol=0)


def test_random_projections_keep_squared_distances():
    """The squared length of a projection over the item's is chi-squared over D: standard deviation sqrt(2 / D)."""
    x = correlated(30)
    z = rdm.representation("random_projection", features=10_000).fitted(x)(x)
    pairs = torch.triu_indices(30, 30, 1)
    ratios = (torch.cdist(z, z) / torch.cdist(x, x))[*pairs].square()
    assert (ratios - 1).abs().max() <= 5 * (2 / 10_000) ** 0.5


def test_random_features_refuse_what_they_cannot_be():
    for name, wrong, message in (
        ("random_projection", {"features": 0}, "features must be at least 1"),
        ("random_fourier", {"features": 3}, "even"),
        ("random_fourier", {"kernel": "cubic"}, "kernel must be 'gaussian' or 'laplacian'"),
        ("random_fourier", {"bandwidth": -1.0}, "bandwidth must be a positive number"),
    ):
        with pytest.raises(InputError, match=message):
            rdm.representation(name, **wrong)
    assert torch.equal(rdm.representation("identity")(torch.ones(2, 3, 4)), torch.ones(2, 12))
