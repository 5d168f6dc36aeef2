"""Populations of which some rows are live: the gradient of these stands for that of all, without bias."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import rdm
from rdm.errors import InputError
from rdm.matching.balance import GradientNorm
from rdm.matching.memory import EMA, NoMemory, Queue
from rdm.population.replay import Live, _drawn
from tests.conftest import objective_cases
from tests.problems import Problem, relative_error

ROWS = 6
CASES = [(*case.values, NoMemory(), None) for case in objective_cases()]
CASES += [("energy", {}, memory, 2) for memory in (NoMemory(), EMA(0.9), Queue(86, riding=True))]
CASES += [("frechet", {}, EMA(0.5, riding=True, balanced=True), 4)]


def turns() -> list[int]:
    """One for each row, in which it is the live one."""
    drawn = [int(_drawn(ROWS, Live(1, turn)).nonzero()) for turn in range(60)]
    return [drawn.index(row) for row in range(ROWS)]


def turned(problem: Problem, chunk: int | None) -> list[torch.Tensor]:
    """The gradient of the same step with every row in turn, flat."""
    population, found = problem.population(chunk), []
    for turn in turns():
        population._writes = turn
        past = [(term.past, term.solved) for term in population.terms]
        problem.net.zero_grad(set_to_none=False)
        population.backward(problem.net, problem.noise, weights=problem.weights, generator=generator())
        for term, kept in zip(population.terms, past, strict=True):
            term.past, term.solved = kept
        found.append(torch.cat([p.grad.flatten().clone() for p in problem.net.parameters()]))
    return found


def generator() -> torch.Generator:
    """The one that `Problem` draws with."""
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("name, example, memory, chunk", CASES)
def test_gradients_of_single_live_rows_have_the_whole_gradient_as_their_mean(name, example, memory, chunk):
    problem = Problem(rdm.objective(name, **example), memory, rows=ROWS, live=1)
    gradients = torch.stack(turned(problem, chunk))
    assert float(torch.cdist(gradients, gradients).fill_diagonal_(torch.inf).min()) > 0
    whole = torch.cat([g.flatten() for g in problem.oracle(None)])
    assert (gradients.mean(0) - whole).norm() <= 1e-11 * whole.norm()


@pytest.mark.parametrize("live, chunk", [(60, 7), (99, None)])
def test_as_many_live_rows_as_there_are_change_nothing(live, chunk):
    problem = Problem(rdm.objective("energy"), NoMemory(), live=live)
    assert relative_error(problem.gradient(chunk), problem.oracle(None)) <= 1e-11


def test_a_balance_by_gradients_sees_the_norm_of_all_rows_in_the_mean_square():
    """Of all rows in turn, the mean of the squared norms that a single live row stands for is that of all."""
    whole = Problem(rdm.objective("energy"), NoMemory(), GradientNorm(), rows=ROWS)
    before = whole.population(None)
    before.backward(whole.net, whole.noise)
    population = replace(whole, live=1).population(None)
    squares = []
    for turn in turns():
        population._writes, population.weighing.pulls = turn, None
        whole.net.zero_grad(set_to_none=False)
        population.backward(whole.net, whole.noise)
        squares.append(population.weighing.pulls.square())
    found = torch.stack(squares).mean(0)
    torch.testing.assert_close(found, before.weighing.pulls.square(), rtol=1e-10, atol=0)


def test_a_loss_is_that_of_all_rows_and_gives_the_gradient_of_backward():
    problem = Problem(rdm.objective("energy"), NoMemory(), live=5)
    expected, got = problem.gradient(7), problem.population(7)
    whole = replace(problem, live=None).population(None)
    with torch.no_grad():
        value = whole.loss(problem.net, problem.noise, weights=problem.weights)
        assert float(got.loss(problem.net, problem.noise, weights=problem.weights)) == pytest.approx(float(value))
    problem.net.zero_grad()
    loss = got.loss(problem.net, problem.noise, weights=problem.weights)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(value), rel=1e-12)
    assert relative_error([p.grad for p in problem.net.parameters()], expected) <= 1e-12


@pytest.mark.parametrize("live", [0, -1])
def test_live_rows_are_a_count(live):
    with pytest.raises(InputError, match="live"):
        Problem(rdm.objective("energy"), NoMemory(), live=live).population(None)


def test_live_rows_are_the_same_under_autocast_and_finite_for_a_collapsed_generator():
    net, data = nn.Linear(4, 6), torch.randn(50, 6)
    for collapsed in (False, True):
        found = []
        for cast in (False, True):
            net.zero_grad()
            population = rdm.Population("mmd", "identity", data, live=8, chunk=5)
            noise = torch.randn(30, 4, generator=generator()) * (not collapsed)
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                population.backward(lambda z: z @ net.weight.T + net.bias, noise)
            found.append([p.grad.clone() for p in net.parameters()])
        assert all(torch.isfinite(g).all() for each in found for g in each)
        assert collapsed or relative_error(*found[::-1]) < 0.02  # the generator itself is cast, as its trainer asks
