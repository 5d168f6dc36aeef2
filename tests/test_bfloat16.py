"""Kernel distances whose matrix products are in bfloat16, beside float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rdm
from objectives._sides import Side, draw, squared_pairs
from rdm.api import Real, checked
from rdm.errors import InputError

KERNELS = [
    ("mmd", {}), ("mmd", {"bandwidth": ("median", 0.25)}), ("mmd", {"bandwidth": [("median", 0.5), ("median", 2)]}),
    ("mmd", {"kernel": "laplacian"}), ("mmd", {"kernel": "rational_quadratic", "estimator": "unbiased"}),
    ("energy", {}), ("energy", {"exponent": 1.5}), ("cmmd", {}),
]  # fmt: skip


def cloud(n: int, d: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g) * torch.arange(1, d + 1) ** -0.5


def pulled(name: str, x: torch.Tensor, y: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rows = x.clone().requires_grad_()
    value = rdm.distance(name, rows, y, **options)
    return value.detach(), torch.autograd.grad(value, rows)[0]


def beside_float64(name: str, x: torch.Tensor, y: torch.Tensor, **options: Any) -> tuple[float, float, float]:
    """Errors of the value and the gradient, relative, and the cosine of the gradients."""
    value, gradient = pulled(name, x, y, products="bfloat16", **options)
    exact, expected = pulled(name, x.double(), y.double(), **options)
    assert gradient.dtype == x.dtype and value.dtype == torch.float64
    cosine = torch.nn.functional.cosine_similarity(gradient.double().flatten(), expected.flatten(), 0)
    error = (gradient.double() - expected).norm() / expected.norm()
    return float((value - exact).abs() / exact.abs()), float(error), float(cosine)


@pytest.mark.parametrize("name, options", KERNELS)
@given(
    d=st.sampled_from([1, 2, 8, 33, 256]),
    scale=st.sampled_from([0.01, 1.0, 100.0]),
    offset=st.sampled_from([0.0, 10.0, 1000.0]),
    shift=st.sampled_from([0.0, 0.1, 1.0]),
    spread=st.sampled_from([0.3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=8)
def test_error_is_as_stated(name, options, d, scale, offset, shift, spread, seed):
    """Whatever the scale, and with a mean of a thousand spreads; `cmmd` has a bandwidth of its own."""
    scale = 1.0 if name == "cmmd" else scale
    moved = offset + shift * torch.arange(1, d + 1) ** -0.5  # by so many of each coordinate's own spreads
    x, y = (spread * cloud(70, d, seed) + moved) * scale, (cloud(90, d, seed + 1) + offset) * scale
    value, error, cosine = beside_float64(name, x, y, **options)
    if options.get("estimator") != "unbiased":  # which is near 0 for equal laws
        assert value <= (0.015 if d > 2 else 0.15)
    assert error <= (0.02 if d > 2 else 0.15)
    assert cosine >= (0.9998 if d > 2 else 0.99)


def test_each_squared_distance_is_right_to_a_rounding_of_itself():
    """Also of pairs a hundred times nearer each other than to the mean, where norms less products cancel."""
    base = cloud(40, 64, 0)
    x = Side.of(torch.cat([base, base + 0.01 * base.norm(dim=1, keepdim=True) * cloud(40, 64, 1) / 2]), "bfloat16")
    everything, out = slice(0, 80), torch.empty(80, 80, dtype=torch.bfloat16)
    got = squared_pairs(x, everything, x, everything, out).double()
    exact = torch.cdist(x.rows.double(), x.rows.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    other = ~torch.eye(80, dtype=torch.bool)
    summing = 16 * torch.finfo(torch.float32).eps * (x.norms[:, None] + x.norms)
    assert ((got - exact).abs() <= 2**-8 * exact + summing)[other].all()
    assert exact[other].min() < 1e-3 * exact.median()  # there are such pairs


def test_sums_of_rows_are_float32():
    """Weights and rows that bfloat16 holds, and a sum that it does too."""
    y, weights = Side.of(torch.ones(4096, 3), "bfloat16"), torch.ones(2, 4096, dtype=torch.bfloat16)
    into = torch.zeros(2, 3)
    draw(into, weights, y, slice(0, 4096))
    assert (into == 4096).all()


@pytest.mark.parametrize("name, options", [KERNELS[0], KERNELS[4], KERNELS[5]])
def test_tiles_weights_and_float64_features_make_no_difference(name, options, monkeypatch):
    x, y = cloud(90, 16, 0) + 0.3, cloud(110, 16, 1)
    value, gradient = pulled(name, x, y, products="bfloat16", **options)
    wide, also = pulled(name, x.double(), y.double(), products="bfloat16", **options)
    assert also.dtype == torch.float64
    torch.testing.assert_close(wide, value, rtol=1e-3, atol=0)
    assert (also - gradient).norm() <= 3e-3 * gradient.norm()
    monkeypatch.setattr("objectives._sums.TILE", (31, 57))
    monkeypatch.setattr("objectives._pairs.STRIP", 200)
    tiled, again = pulled(name, x, y, products="bfloat16", **options)
    torch.testing.assert_close(tiled, value, rtol=1e-6, atol=0)
    assert (again - gradient).norm() <= 3e-3 * gradient.norm()
    if options.get("estimator") != "unbiased":  # a weight of 2 is a row twice
        more: dict[str, Any] = {"products": "bfloat16", **({"bandwidth": 3.0} if name == "mmd" else {})}
        ones = torch.ones(90).index_fill_(0, torch.arange(5), 2.0)
        rows = x.clone().requires_grad_()
        weighted = rdm.distance(name, rows, y, weights=ones, **more)
        twice, each = pulled(name, torch.cat([x, x[:5]]), y, **more)
        torch.testing.assert_close(weighted.detach(), twice, rtol=1e-4, atol=0)
        (found,) = torch.autograd.grad(weighted, rows)
        each[:5] += each[90:]
        assert (found - each[:90]).norm() <= 5e-3 * each.norm()


def test_a_bound_target_is_rounded_once_and_equal_rows_do_not_pull():
    y = cloud(50, 8, 0)
    for name in ("mmd", "energy"):
        objective = rdm.objective(name, products="bfloat16")
        statistic, target = objective.bind(Real.of(y))
        rows = y.clone().requires_grad_()
        value = objective.distance(statistic.measure(*checked(rows)), target)
        (gradient,) = torch.autograd.grad(value, rows)
        assert (target.rows == target.rows.bfloat16().float()).all() and value < 1e-3 and gradient.abs().max() < 1e-4


@pytest.mark.parametrize("name, options", [
    ("mmd", {"products": "half"}), ("energy", {"products": torch.bfloat16}),
    ("mmd", {"products": "bfloat16", "kernel": "polynomial"})])  # fmt: skip
def test_wrong_products_are_said_in_one_line(name, options):
    with pytest.raises(InputError, match="products") as caught:
        rdm.objective(name, **options)
    assert "\n" not in str(caught.value)
