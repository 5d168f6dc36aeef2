"""Summaries: merging, splitting and scaling; checks of input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdm.errors import InputError, NonFiniteError
from rdm.matching.distances import Samples
from rdm.matching.statistic import Cat, Moments, checked, checked_weights

STATISTICS = [Samples(torch.ones(3, dtype=torch.float64)), Moments(torch.ones(3, dtype=torch.float64))]


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
@pytest.mark.parametrize("statistic", STATISTICS, ids=["cat", "sum"])
def test_parts_merge_to_the_whole_and_split_is_the_adjoint(statistic, sizes, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 3, generator=g, dtype=torch.float64)
    w = torch.rand(sum(sizes), generator=g, dtype=torch.float64)
    whole = statistic.measure(x, w)
    parts = [statistic.measure(a, b) for a, b in zip(x.split(sizes), w.split(sizes), strict=True)]
    merged = statistic.kind.merge(parts)
    torch.testing.assert_close(merged.value, whole.value)
    torch.testing.assert_close(merged.mass, w.sum())
    torch.testing.assert_close(merged.count, w.sum() ** 2 / (w**2).sum())
    # <merge(parts), c> = sum <part, split(c)>
    cotangent = torch.randn(whole.value.shape, generator=g, dtype=torch.float64)
    shares = statistic.kind.split(cotangent, sizes)
    inner = sum((p.value * c).sum() for p, c in zip(parts, shares, strict=True))
    torch.testing.assert_close(inner, (merged.value * cotangent).sum())


@pytest.mark.parametrize("statistic", STATISTICS, ids=["cat", "sum"])
def test_scaling_is_scaling_the_weights(statistic):
    x, w = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    scaled, direct = statistic.measure(x, w).scale(2.5), statistic.measure(x, w * 2.5)
    torch.testing.assert_close(scaled.value, direct.value)
    torch.testing.assert_close(scaled.weight, direct.weight)


def test_moments_do_not_cancel_in_float32():
    """Mean 1000, spread 0.01 in float32: the variance of the stored numbers comes out to 1e-9."""
    x = (torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * 0.01 + 1000).float()
    summary = Moments(x.double().mean(0)).measure(*checked(x))
    covariance = summary.value[1:] / summary.mass
    torch.testing.assert_close(covariance, torch.cov(x.double().T, correction=0), rtol=1e-9, atol=1e-15)


def test_prune_drops_the_oldest_rows_and_those_of_no_weight():
    kept = Cat(torch.arange(5.0), torch.tensor([0.25, 0.5, 0.0, 1.0, 1e-4]))
    for mass, rows in ((-1.0, [0, 1, 3, 4]), (0.0, [0, 1, 3, 4]), (0.74, [1, 3, 4]), (0.75, [3, 4]), (2.0, [])):
        assert kept.prune(mass).value.tolist() == rows


def test_checked_promotes_and_normalises_types():
    features, weights = checked(torch.randn(4, 2).bfloat16(), torch.ones(4, dtype=torch.int64))
    assert features.dtype == torch.float32 and weights.dtype == torch.float64
    assert checked(torch.randn(4, 2).double())[0].dtype == torch.float64


def test_checked_names_the_side():
    with pytest.raises(NonFiniteError, match="left: NaN or infinity in 1 of 2"):
        checked(torch.tensor([[1.0], [float("inf")]]), side="left")
    with pytest.raises(InputError, match="got list"):
        checked.__wrapped__([[1.0]])


@pytest.mark.parametrize(
    "weights, message",
    [
        ("abc", "weights of x must be 3 numbers, one a row; got str"),
        ({"a": 1}, "must be 3 numbers, one a row; got dict"),
        (["a", "b", "c"], "must be 3 numbers, one a row; got list"),
        (None, "must be 3 numbers, one a row; got NoneType"),
        (torch.ones(3, dtype=torch.complex64), "must be real numbers; got torch.complex64"),
        (torch.full((3,), 1e308, dtype=torch.float64), "sum to infinity; divide them by their largest, 1e.308"),
        (torch.ones(2), r"must have shape \(3,\), one a row; got \(2,\)"),
    ],
)
def test_weights_that_are_none_are_named(untyped, weights, message):
    with pytest.raises(InputError, match=message):
        checked_weights(weights, 3, side="x")
    assert checked_weights([1, 2, 3], 3, side="x").tolist() == [1, 2, 3]
