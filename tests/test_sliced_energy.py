"""Sliced energy distance against scipy and double sums over pairs."""

import math

import scipy.stats
import torch
from hypothesis import given

import objectives._sorted as shared
import rdm
from tests.distributions import Pair, pairs


@given(pair=pairs())
def test_one_dimension_is_the_square_of_scipys(pair: Pair):
    """Scipy's energy_distance is the root of 2 int (F - G)^2."""
    x, a, y, b = pair
    expected = scipy.stats.energy_distance(x[:, 0], y[:, 0], a, b) ** 2
    got = rdm.distance("sliced_energy", x[:, :1], y[:, :1], weights=a, reference_weights=b, projections=3)
    assert math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)


@given(pair=pairs())
def test_double_sums_with_their_gradient(pair: Pair):
    x, a, y, b = pair
    a, b = a / a.sum(), b / b.sum()
    rows = x.clone().requires_grad_()
    got = rdm.distance(
        "sliced_energy", rows, y, weights=a, reference_weights=b, generator=torch.Generator().manual_seed(4),
        projections=70,
    )  # fmt: skip
    other = x.clone().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for v in shared.directions(x, 70, torch.Generator().manual_seed(4)):
        s, t = other @ v, y @ v
        apart = [p @ (u[:, None] - w).abs() @ q for p, u, q, w in ((a, s, b, t), (a, s, a, s), (b, t, b, t))]
        expected = expected + (2 * apart[0] - apart[1] - apart[2]) / 70
    assert math.isclose(got.detach(), expected.detach(), rel_tol=1e-9, abs_tol=1e-12)
    gradients = [torch.autograd.grad(value, of)[0] for value, of in ((got, rows), (expected, other))]
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-12)
