"""Plans, potentials and convergence against POT, finite differences and the distances that they belong to."""

import math

import pytest
import torch

import rdm
from rdm.errors import InputError, NonFiniteError
from tests.distributions import Pair
from tests.test_sinkhorn import sets

ot = pytest.importorskip("ot")
PAIR = sets(14, 11, 2)
GIVEN = {"weights": PAIR.a, "reference_weights": PAIR.b}


def matrix(pair: Pair, p: float) -> torch.Tensor:
    return (pair.x[:, None] - pair.y).norm(dim=2).pow(p)


@pytest.mark.parametrize("p, reach", [(2, None), (1, None), (2, 1.5), (1, 2.0)])
def test_entropic_plans_are_pots(p, reach):
    found = rdm.transport("sinkhorn", PAIR.x, PAIR.y, blur=0.6, p=p, reach=reach, tolerance=1e-12, **GIVEN)
    a, b, cost, eps = PAIR.a.numpy(), PAIR.b.numpy(), (matrix(PAIR, p) / p).numpy(), 0.6**p
    if reach is None:
        plan, log = ot.sinkhorn(a, b, cost, eps, numItermax=100_000, stopThr=1e-14, log=True)
        f, g = (eps * torch.from_numpy(log[k]).log() for k in "uv")  # with no weights in its kernel
        shift = (found.f + eps * PAIR.a.log() - f).mean()
        assert torch.allclose(found.f + eps * PAIR.a.log() - shift, f, atol=1e-9)
        assert torch.allclose(found.g + eps * PAIR.b.log() + shift, g, atol=1e-9)
        assert found.error <= 1e-12 and torch.allclose(found.plan.sum(1), PAIR.a, atol=1e-12)
    else:
        options = {"reg_type": "kl", "numItermax": 100_000, "stopThr": 1e-14}
        plan = ot.unbalanced.sinkhorn_unbalanced(a, b, cost, eps, reach**p, **options)
    assert torch.allclose(found.plan, torch.as_tensor(plan), atol=1e-9) and found.converged
    loss = {"debias": False, "sweeps": 2000, "blur": 0.6, "p": p, "reach": reach, **GIVEN}
    assert math.isclose(found.value, rdm.distance("sinkhorn", PAIR.x, PAIR.y, **loss), rel_tol=1e-8)


@pytest.mark.parametrize("p", [1, 2])
def test_exact_plans_are_pots(p):
    found = rdm.transport("wasserstein", PAIR.x, PAIR.y, p=p, **GIVEN)
    plan = torch.as_tensor(ot.emd(PAIR.a.numpy(), PAIR.b.numpy(), matrix(PAIR, p).numpy()))
    assert torch.allclose(found.plan, plan, atol=1e-12) and found.converged and found.error <= 1e-12
    assert math.isclose(found.value, rdm.distance("wasserstein", PAIR.x, PAIR.y, p=p, **GIVEN), rel_tol=1e-12)
    slack = matrix(PAIR, p) - found.f[:, None] - found.g
    assert slack.min() >= -1e-12 and (slack * found.plan).abs().max() <= 1e-12, "complementary"
    assert math.isclose(PAIR.a @ found.f + PAIR.b @ found.g, found.value, rel_tol=1e-12), "strong duality"


def test_a_small_temperature_is_exact_transport():
    """Within eps times the plan's divergence from independence, which is at most the entropy of the weights."""
    exact = rdm.transport("wasserstein", PAIR.x, PAIR.y, **GIVEN)
    entropy = -float(PAIR.a @ PAIR.a.log())
    for blur in (0.4, 0.1):
        found = rdm.transport("sinkhorn", PAIR.x, PAIR.y, blur=blur, tolerance=1e-3, **GIVEN)
        paid = (found.plan * matrix(PAIR, 2)).sum()
        assert found.converged and exact.value - 0.05 <= paid <= exact.value + 2 * blur**2 * entropy
    assert (found.plan - exact.plan).abs().sum() < 0.2


@pytest.mark.parametrize("name, options", [("sinkhorn", {"blur": 0.7}), ("sinkhorn", {"blur": 0.7, "reach": 1.5}),
                                           ("sinkhorn", {"blur": 0.7, "p": 1}), ("wasserstein", {})])  # fmt: skip
def test_value_learns_both_sides_and_the_weights(name, options):
    pair = sets(4, 3, 2)

    def value(x, a, y, b):
        return rdm.transport(
            name, x, y, weights=a, reference_weights=b, tolerance=1e-13, iterations=50_000, **options
        ).value

    assert torch.autograd.gradcheck(value, [side.clone().requires_grad_() for side in pair], atol=1e-6)


def test_a_cost_as_function_or_matrix():
    cost = matrix(PAIR, 1)
    cityblock = (PAIR.x[:, None] - PAIR.y).abs().sum(2)
    for name, options, own in (("wasserstein", {"p": 1}, cost), ("sinkhorn", {"blur": 0.5, "p": 1}, cost)):
        usual = rdm.transport(name, PAIR.x, PAIR.y, **options, **GIVEN)
        given = rdm.transport(name, cost=own, **options, **GIVEN)
        assert torch.allclose(usual.plan, given.plan, atol=1e-12) and torch.isclose(usual.value, given.value)
        x = PAIR.x.clone().requires_grad_()
        other = rdm.transport(name, x, PAIR.y, cost=lambda u, v: torch.cdist(u, v, p=1.0), **options, **GIVEN)
        held = cityblock.clone().requires_grad_()
        same = rdm.transport(name, cost=held, **options, **GIVEN)
        assert torch.allclose(other.plan, same.plan, atol=1e-12)
        (slope,) = torch.autograd.grad(same.value, held)
        assert torch.allclose(slope, same.plan), "the value's gradient in the costs is the plan"
        (pull,) = torch.autograd.grad(other.value, x)
        expected = torch.einsum("nm,nmd->nd", same.plan, (PAIR.x[:, None] - PAIR.y).sign())
        assert torch.allclose(pull, expected, atol=1e-12)
    exact = ot.emd2(PAIR.a.numpy(), PAIR.b.numpy(), cityblock.numpy())
    assert math.isclose(rdm.transport("wasserstein", cost=cityblock, **GIVEN).value, exact, rel_tol=1e-12)
    rows, others = (torch.nn.functional.normalize(side, dim=1) for side in (PAIR.x, PAIR.y))
    cosine = rdm.transport("sinkhorn", cost=1 - rows @ others.T, blur=0.3, **GIVEN)
    assert torch.isclose(cosine.value, rdm.transport("sinkhorn", rows, others, blur=0.3, **GIVEN).value)


def test_convergence_is_said():
    short = rdm.transport("sinkhorn", PAIR.x, PAIR.y, blur=0.05, iterations=2, **GIVEN)
    assert not short.converged and short.iterations == 2
    rows, columns = short.plan.sum(1) - PAIR.a, short.plan.sum(0) - PAIR.b
    assert math.isclose(short.error, float(rows.abs().sum() + columns.abs().sum()), rel_tol=1e-9) and short.error > 1e-3
    long = rdm.transport("sinkhorn", PAIR.x, PAIR.y, blur=0.05, iterations=20_000, **GIVEN)
    assert long.converged and 2 < long.iterations < 20_000 and long.error <= 1e-6
    assert not rdm.transport("wasserstein", PAIR.x, PAIR.y, iterations=1, **GIVEN).converged


def test_rows_of_no_weight_move_nothing():
    weights = PAIR.a.clone()
    weights[3] = 0
    for name, options in (("sinkhorn", {"blur": 0.5}), ("wasserstein", {})):
        found = rdm.transport(name, PAIR.x, PAIR.y, weights=weights, **options)
        keep = torch.arange(14) != 3
        fewer = rdm.transport(name, PAIR.x[keep], PAIR.y, weights=weights[keep], **options)
        assert not found.plan[3].any() and torch.allclose(found.plan[keep], fewer.plan, atol=1e-6)


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("energy", {"x": PAIR.x, "y": PAIR.y}, "Energy moves no mass"),
        ("sinkhorn", {}, "rows x and y, or cost=, a matrix"),
        ("sinkhorn", {"x": PAIR.x}, "rows x and y, or cost="),
        ("sinkhorn", {"cost": torch.ones(3, 2)}, 'blur "auto" is fitted to reference rows'),
        ("wasserstein", {"cost": torch.ones(3)}, r"cost must be real numbers of shape \(3, m\)"),
        ("wasserstein", {"cost": torch.ones(3, 2), "x": PAIR.x}, r"of shape \(14, m\).*; got torch.float32 \(3, 2\)"),
        ("wasserstein", {"cost": lambda x, y: x, "x": PAIR.x, "y": PAIR.y}, r"of shape \(14, 11\)"),
        ("wasserstein", {"cost": "cosine", "x": PAIR.x, "y": PAIR.y}, "a function of .* got str"),
        ("wasserstein", {"cost": torch.ones(3, 2), "weights": torch.ones(2)}, r"must have shape \(3,\)"),
        ("wasserstein", {"cost": torch.ones(3, 2), "tolerance": 0}, "tolerance must be"),
        ("wasserstein", {"cost": torch.ones(3, 2), "iterations": 0}, "iterations must be"),
    ],
)
def test_what_has_no_plan(name, given, message):
    with pytest.raises(InputError, match=message) as caught:
        rdm.transport(name, **given)
    assert "\n" not in str(caught.value)


def test_costs_that_are_not_finite():
    with pytest.raises(NonFiniteError, match="cost: NaN or infinity"):
        rdm.transport("wasserstein", cost=torch.tensor([[1.0, torch.inf]]))
