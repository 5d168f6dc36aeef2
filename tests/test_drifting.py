"""Drifting against a slow form of its definition, row by row."""

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

import objectives.drifting as drifting
import rdm
from rdm.errors import InputError
from tests.distributions import Pair, pairs

R = (0.05, 0.2, 0.7)


def slow_field(x: Tensor, y: Tensor, temperatures: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The field by loops over rows and targets, equal weights; and its unit of length."""
    n, d = x.shape
    targets = [*x, *y]
    distance = [[math.dist(row.tolist(), t.tolist()) for t in targets] for row in x]
    unit = max(sum(map(sum, distance)) / (n * len(targets)) / math.sqrt(d), 1e-3)
    total = torch.zeros_like(x)
    for r in temperatures:
        e = [
            [math.exp(-(distance[i][j] / (unit * math.sqrt(d)) + 100 * (i == j)) / r) for j in range(len(targets))]
            for i in range(n)
        ]
        columns = [sum(e[i][j] for i in range(n)) for j in range(len(targets))]
        coupling = [
            [
                math.sqrt(max(e[i][j] / sum(e[i]) * (e[i][j] / columns[j] if columns[j] else 0.0), 1e-6))
                for j in range(len(targets))
            ]
            for i in range(n)
        ]
        force = torch.zeros_like(x)
        for i in range(n):
            apart, together = sum(coupling[i][:n]), sum(coupling[i][n:])
            for j, target in enumerate(targets):
                coefficient = -coupling[i][j] * together if j < n else coupling[i][j] * apart
                force[i] += coefficient * (target - x[i]) / unit
        total += force / force.square().mean().sqrt()
    return total, torch.tensor(unit, dtype=x.dtype)


@given(pair=pairs())
def test_value_and_gradient_are_the_definitions(pair: Pair):
    """The gradient is that of the mean squared difference to the frozen goal, in units of length of the field."""
    x, y = pair.x, pair.y
    field, unit = slow_field(x, y, R)
    rows = x.clone().requires_grad_()
    got = rdm.distance("drifting", rows, y, temperatures=R)
    assert math.isclose(got.detach(), field.square().mean(), rel_tol=1e-8)
    (gradient,) = torch.autograd.grad(got, rows)
    goal = x / unit + field
    other = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((other / unit - goal).square().mean(), other)
    assert torch.allclose(gradient, expected, rtol=1e-7, atol=1e-10)


def test_one_temperature_always_has_length_one():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=g), torch.randn(30, 3, generator=g)
    for shift in (0, 3):
        assert math.isclose(rdm.distance("drifting", x + shift, y, temperatures=(0.3,)), 1, rel_tol=1e-6)


def test_attracted_rows_move_to_the_reference():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=g) + 4, torch.randn(30, 3, generator=g)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(rdm.distance("drifting", x, y), x)
    assert (gradient.mean(0) > 0).all()


def test_wrong_hyperparameters():
    for wrong in ((), (0.1, -1.0), (0.0,)):
        with pytest.raises(InputError, match="temperatures must be a list of at least one"):
            rdm.objective("drifting", temperatures=wrong)


def test_tiles_are_the_whole(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 3, generator=g), torch.randn(70, 3, generator=g) + 0.5
    weights = torch.rand(30, generator=g) + 0.1

    def gradient() -> torch.Tensor:
        rows = x.clone().requires_grad_()
        value = rdm.distance("drifting", rows, y, weights=weights, temperatures=(0.06, 0.2))
        return torch.autograd.grad(value, rows)[0]

    whole = gradient()
    monkeypatch.setattr(drifting, "KEEP", 0)
    monkeypatch.setattr(drifting, "TILE", 30 * 16)
    torch.testing.assert_close(gradient(), whole)
