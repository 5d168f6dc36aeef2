"""Exact transport against POT's own cost and scipy's assignment, and its gradient with the plan held."""

import math

import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

import rdm
from rdm.errors import InputError
from tests.distributions import Pair, pairs


@given(pair=pairs(), p=st.sampled_from([1, 1.5, 2]))
def test_pot(pair: Pair, p: float):
    """`ot.emd2` is the cost of the plan under the matrix it is given: |x - y|^p, with no 1/p and no root."""
    ot = pytest.importorskip("ot")
    x, a, y, b = pair
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").pow(p)
    expected = float(ot.emd2((a / a.sum()).numpy(), (b / b.sum()).numpy(), cost.numpy()))
    got = rdm.distance("wasserstein", x, y, weights=a, reference_weights=b, p=p)
    assert math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)


def test_equal_weights_are_an_assignment_with_its_gradient():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(25, 3, generator=g, dtype=torch.float64) for _ in range(2))
    _, match = scipy.optimize.linear_sum_assignment(torch.cdist(x, y).square().numpy())
    x.requires_grad_()
    value = rdm.distance("wasserstein", x, y)
    (gradient,) = torch.autograd.grad(value, x)
    assert math.isclose(value.detach(), (x - y[match]).square().sum(1).mean().detach(), rel_tol=1e-12)
    assert torch.allclose(gradient, 2 * (x.detach() - y[match]) / 25, atol=1e-12)


def test_equal_rows_pull_with_zero_for_p_1():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = rdm.distance("wasserstein", x, x.detach(), p=1)
    assert float(value.detach()) == 0 and not torch.autograd.grad(value, x)[0].any()


def test_wrong_hyperparameters():
    with pytest.raises(InputError, match="p must be a number from 1"):
        rdm.objective("wasserstein", p=0.5)
