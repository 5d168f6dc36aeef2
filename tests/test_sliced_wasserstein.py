"""Sliced Wasserstein against POT, scipy and the sorted form."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import objectives._sorted as sliced
import rdm
from rdm.errors import InputError
from tests.distributions import Pair, pairs


@given(pair=pairs(), p=st.sampled_from([1, 2]), seed=st.integers(0, 99), count=st.sampled_from([1, 9, 65]))
def test_pot_with_shared_directions_unequal_sizes_and_weights(pair: Pair, p: int, seed: int, count: int):
    """POT returns the root of the mean over directions and takes directions as columns."""
    ot = pytest.importorskip("ot")
    x, a, y, b = pair
    g = torch.Generator().manual_seed(seed)
    got = rdm.distance(
        "sliced_wasserstein", x, y, weights=a, reference_weights=b, generator=g, projections=count, p=p, root=True
    )
    directions = sliced.directions(x, count, torch.Generator().manual_seed(seed)).T
    peer = ot.sliced_wasserstein_distance(x, y, a / a.sum(), b / b.sum(), p=p, projections=directions)
    assert math.isclose(got, float(peer), rel_tol=1e-9, abs_tol=1e-12)


def test_directions_of_ones_own_are_pairs_of_sets_on_lines():
    """As docs/objectives_and_memories.md has it, value and gradient against POT's `projections`."""
    ot = pytest.importorskip("ot")
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (20, 30))
    vectors = torch.nn.functional.normalize(torch.randn(64, 3, generator=g, dtype=torch.float64), dim=1)
    values, gradients = [], []
    for mine in (True, False):
        leaf = x.clone().requires_grad_()
        lines = [(side @ vectors.T).T[..., None] for side in (leaf, y)]
        peer = ot.sliced_wasserstein_distance(leaf, y, projections=vectors.T) ** 2
        values.append(rdm.distance("sliced_wasserstein", *lines, projections=1).mean() if mine else peer)
        gradients.append(torch.autograd.grad(values[-1], leaf)[0])
    torch.testing.assert_close(*values, rtol=1e-10, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@given(pair=pairs())
def test_one_dimension_is_scipys_wasserstein_distance(pair: Pair):
    x, a, y, b = pair
    expected = scipy.stats.wasserstein_distance(x[:, 0], y[:, 0], a, b)
    got = rdm.distance("sliced_wasserstein", x[:, :1], y[:, :1], weights=a, reference_weights=b, projections=3, p=1)
    assert math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)


def test_a_shift_costs_its_mean_squared_projection():
    """Equal clouds apart by v: E <theta, v>^2 = |v|^2 / d; exact for the drawn directions."""
    g = torch.Generator().manual_seed(0)
    y, v = torch.randn(40, 5, generator=g, dtype=torch.float64), torch.arange(5.0, dtype=torch.float64)
    directions = sliced.directions(y, 128, None)
    got = rdm.distance("sliced_wasserstein", y + v, y, projections=128)
    assert math.isclose(got, (directions @ v).square().mean(), rel_tol=1e-10)
    assert math.isclose(got, float(v @ v) / 5, rel_tol=0.2)


def test_fixed_directions_equal_drawn_ones_of_the_same_seed():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=g), torch.randn(50, 4, generator=g)
    drawn = rdm.distance("sliced_wasserstein", x, y, generator=torch.Generator().manual_seed(0))
    assert math.isclose(rdm.distance("sliced_wasserstein", x, y), drawn, rel_tol=1e-6)


def test_wrong_hyperparameters():
    for wrong in ({"projections": 0}, {"p": 0.5}):
        with pytest.raises(InputError, match="(projections|p) must be a"):
            rdm.objective("sliced_wasserstein", **wrong)


@given(pair=pairs(), p=st.sampled_from([1, 2, 3]), root=st.booleans())
def test_max_sliced_is_the_largest_of_its_directions_with_its_gradient(pair: Pair, p: int, root: bool):
    x, a, y, b = pair
    directions = sliced.directions(x, 5, torch.Generator().manual_seed(3))
    rows = x.clone().requires_grad_()
    got = rdm.distance(
        "max_sliced_wasserstein",
        rows,
        y,
        weights=a,
        reference_weights=b,
        generator=torch.Generator().manual_seed(3),
        projections=5,
        p=p,
        root=root,
    )
    (gradient,) = torch.autograd.grad(got, rows)
    one = [
        (rdm.distance("wasserstein", x @ v[:, None], y @ v[:, None], weights=a, reference_weights=b, p=p), v)
        for v in directions
    ]
    largest, v = max(one, key=lambda pair: float(pair[0]))
    assert math.isclose(float(got.detach()), float(largest) ** (1 / p if root else 1), rel_tol=1e-9)
    assert torch.allclose(gradient, (gradient @ v)[:, None] * v, atol=1e-9)


def test_max_sliced_on_a_shift():
    """Equal clouds apart by v: the largest <theta, v>^2, below |v|^2 and above the mean."""
    g = torch.Generator().manual_seed(0)
    y, v = torch.randn(40, 3, generator=g, dtype=torch.float64), torch.arange(3.0, dtype=torch.float64)
    directions = sliced.directions(y, 500, None)
    got = rdm.distance("max_sliced_wasserstein", y + v, y, projections=500)
    assert math.isclose(got, (directions @ v).square().max(), rel_tol=1e-10)
    assert 0.95 * float(v @ v) < got <= float(v @ v)


def test_packed_sort_is_the_stable_sort():
    rows = torch.randn(7, 3000, generator=torch.Generator().manual_seed(0))
    rows[:, 5], rows[:, 6], rows[:, 9], rows[0] = -0.0, 0.0, rows[:, 2000], 1e-40
    for got, expected in zip(sliced.sort_rows(rows), rows.sort(dim=1, stable=True), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_weights_row_by_row_is_the_general_form(dtype):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=g, dtype=dtype), torch.randn(50, 4, generator=g, dtype=dtype) + 1
    nearly = torch.ones(50, dtype=torch.float64)
    nearly[0] += 1e-12  # takes the general path
    for p in (1, 1.5, 2):
        rows = x.clone().requires_grad_()
        short = rdm.distance("sliced_wasserstein", rows, y, p=p)
        general = rdm.distance("sliced_wasserstein", rows, y, p=p, weights=nearly)
        assert math.isclose(short.detach(), general.detach(), rel_tol=1e-6 if dtype == torch.float32 else 1e-10)
        both = [torch.autograd.grad(value, rows)[0] for value in (short, general)]
        assert torch.allclose(*both, rtol=1e-4, atol=1e-6 if dtype == torch.float32 else 1e-12)
