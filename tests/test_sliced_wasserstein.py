"""Sliced Wasserstein against POT, scipy and the sorted form."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import objectives.sliced_wasserstein as sliced
import rdm
from rdm.errors import InputError
from tests.distributions import Pair, pairs


@given(pair=pairs(), p=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_pot_with_shared_directions_unequal_sizes_and_weights(pair: Pair, p: int, seed: int):
    """POT returns the root of the mean over directions and takes directions as columns."""
    ot = pytest.importorskip("ot")
    x, a, y, b = pair
    g = torch.Generator().manual_seed(seed)
    got = rdm.distance(
        "sliced_wasserstein", x, y, weights=a, reference_weights=b, generator=g, projections=9, p=p, root=True
    )
    directions = sliced._directions(x, 9, torch.Generator().manual_seed(seed)).T
    peer = ot.sliced_wasserstein_distance(x, y, a / a.sum(), b / b.sum(), p=p, projections=directions)
    assert math.isclose(got, float(peer), rel_tol=1e-9, abs_tol=1e-12)


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
    directions = sliced._directions(y, 128, None)
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
        with pytest.raises(InputError, match="projections >= 1 and p >= 1"):
            rdm.objective("sliced_wasserstein", **wrong)
