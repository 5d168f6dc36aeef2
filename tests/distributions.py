"""Feature sets for the tests: hypothesis strategies, and laws with closed forms."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor


class Pair(NamedTuple):
    """Generated and reference rows with their weights."""

    x: Tensor
    a: Tensor
    y: Tensor
    b: Tensor


@st.composite
def pairs(draw: st.DrawFn, *, least: int = 3, most: int = 20) -> Pair:
    """Two weighted Gaussian sets in float64, of unequal sizes, scales and means; more rows than dimensions."""
    d = draw(st.integers(1, 4))
    n, m = draw(st.integers(d + least, most)), draw(st.integers(d + least, most))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.3, 1.0, 5.0]))
    x = torch.randn(n, d, generator=g, dtype=torch.float64) * scale + draw(st.floats(-2, 2))
    y = torch.randn(m, d, generator=g, dtype=torch.float64)
    a, b = (torch.rand(k, generator=g, dtype=torch.float64) + 0.1 for k in (n, m))
    return Pair(x, a, y, b)


def power_law(d: int, n: int, exponent: float, seed: int, *, turn: float = 0.0) -> Tensor:
    """N Gaussian rows whose covariance has eigenvalues i^-exponent, eigenvectors turned a little, float64."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=g, dtype=torch.float64)
    rows = rows * torch.arange(1, d + 1, dtype=torch.float64) ** (-exponent / 2)
    skew = torch.randn(d, d, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * turn / d**0.5
    return rows @ torch.linalg.matrix_exp(skew - skew.T)
