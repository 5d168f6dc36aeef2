"""Many pairs at once are what one call a pair gives, in value and gradient, of every objective."""

import pytest
import torch

import rdm
from rdm.errors import InputError, NonFiniteError
from tests.conftest import objective_cases

G = torch.Generator().manual_seed(0)
B, N, M, D = 3, 12, 10, 2
X, Y = (torch.randn(B, k, D, generator=G, dtype=torch.float64) * scale for k, scale in ((N, 1.5), (M, 1.0)))
A, C = (torch.rand(B, k, generator=G, dtype=torch.float64) + 0.1 for k in (N, M))
SHARED = {  # what is given once for all pairs
    "nothing": (X, Y, A, C),
    "one y": (X, Y[0], A, C[0]),
    "one x": (X[0], Y, A[0], C),
    "one y of many weights": (X, Y[0], A[0], C),
    "no weights": (X, Y, None, None),
}


def kth(side: torch.Tensor | None, whole: int, k: int) -> torch.Tensor | None:
    return side if side is None or side.ndim < whole else side[k]


@pytest.mark.parametrize("name, example", objective_cases())
@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.filterwarnings("ignore:frechet. the population's covariance is singular")
def test_one_value_a_pair(name, example, shared):
    x, y, a, c = SHARED[shared]
    learned = rdm.objective(name, **example).traits.learned_weights and a is not None
    cotangent = torch.arange(1.0, B + 1, dtype=torch.float64)

    def leaves() -> tuple[torch.Tensor, torch.Tensor | None]:
        weights = a if a is None else a.clone().requires_grad_(learned)
        return x.clone().requires_grad_(), weights

    def call(rows, others, weights, theirs, source):
        given = {"weights": weights, "reference_weights": theirs, "generator": source}
        return rdm.distance(name, rows, others, **given, **example)

    (rows, weights), (single, alone) = leaves(), leaves()
    found = call(rows, y, weights, c, torch.Generator().manual_seed(1))
    source = torch.Generator().manual_seed(1)
    each = [call(kth(single, 3, k), kth(y, 3, k), kth(alone, 2, k), kth(c, 2, k), source) for k in range(B)]
    assert found.shape == (B,) and torch.equal(found, torch.stack(each))
    (found * cotangent).sum().backward()
    (torch.stack(each) * cotangent).sum().backward()
    assert torch.equal(rows.grad, single.grad) and bool(rows.grad.any())
    assert not learned or torch.equal(weights.grad, alone.grad)


def test_autocast_changes_nothing():
    x, y = X.float(), Y.float()
    expected = rdm.distance("energy", x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rdm.distance("energy", x, y), expected)


@pytest.mark.parametrize(
    "x, y, a, message",
    [
        (X, Y[:2], None, "equally many pairs, one or more, .* got x 3, y 2"),
        (X[:0], Y[0], None, "got x 0"),
        (X, Y[0], A[:2], "got x 3, weights 2"),
        (X, Y[0, 0], None, r"y \(reference\) must be a tensor of shape \(n, d\); got shape \(2,\)"),
        (X[None], Y[0], None, r"x \(generated\) must be a tensor of shape \(n, d\); got shape \(1, 3, 12, 2\)"),
        (X, Y[..., :1], None, "dimension d=1; got d=2"),
        (X, Y, A[:, :-1], r"pair 0 must have shape \(12,\)"),
    ],
)
def test_what_are_no_pairs(x, y, a, message):
    with pytest.raises(InputError, match=message) as caught:
        rdm.distance("energy", x, y, weights=a)
    assert "\n" not in str(caught.value)


def test_the_pair_that_is_wrong_is_named():
    bad = X.clone()
    bad[1, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"x \(generated\), pair 1: NaN or infinity in 1 of 12 rows"):
        rdm.distance("energy", bad, Y)
