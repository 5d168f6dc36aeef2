"""The population's gradient is plain autograd's, whatever objective, memory, chunk, rank and randomness."""

import itertools

import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rdm
from rdm.balance import SelfNormalized, Uniform
from rdm.errors import InputError, NonFiniteError
from rdm.memory import EMA, NoMemory, Queue
from rdm.population import Population
from rdm.representation import Battery, Representation
from tests.conftest import objective_cases
from tests.problems import Problem, rank_errors, relative_error

cases = pytest.mark.parametrize("name, example", objective_cases())
memories = pytest.mark.parametrize("memory", [NoMemory(), EMA(0.9), Queue(130)], ids=["none", "ema", "queue"])


@cases
@memories
@pytest.mark.parametrize("random", [False, True], ids=["deterministic", "dropout-and-crops"])
def test_gradient_of_chunks_is_plain_autograds(name, example, memory, random):
    for rows, chunks in ((60, (None, 7, 60)), (13, (1,))):
        problem = Problem(rdm.objective(name, **example), memory, random=random, rows=rows)
        whole = problem.oracle(None)
        for chunk in chunks:
            expected = problem.oracle(chunk) if random else whole  # what is drawn at random is drawn chunk by chunk
            error = relative_error(problem.gradient(chunk), expected)
            assert error <= 1e-11, f"chunk {chunk} of {rows}"


@cases
@memories
@given(data=st.data())
def test_gradient_for_any_size_chunk_weights_and_decay(name, example, memory, data):
    rows = data.draw(st.integers(12, 40))
    chunk = data.draw(st.integers(1, rows + 3))
    if isinstance(memory, EMA):
        memory = EMA(data.draw(st.floats(0.0, 0.999)))
    problem = Problem(rdm.objective(name, **example), memory, rows=rows, seed=data.draw(st.integers(0, 999)))
    assert relative_error(problem.gradient(chunk), problem.oracle(chunk)) <= 1e-11


@cases
@memories
def test_self_normalised_balance(name, example, memory):
    objective = rdm.objective(name, **example)
    balance = SelfNormalized(1e-3)
    if not objective.traits.nonnegative:
        with pytest.raises(InputError, match="non-negative objective"):
            Problem(objective, memory, balance).population(None)
        return
    problem = Problem(objective, memory, balance)
    assert relative_error(problem.gradient(7), problem.oracle(7)) <= 1e-11


def test_two_ranks_with_unequal_rows(tmp_path):
    """25 and 35 rows on two gloo processes, chunks of 7 or all in turn, against one process and all 60 rows."""
    pairs = itertools.product(objective_cases(), (NoMemory(), EMA(0.9), Queue(130)))
    chosen = [(*case.values, memory, (None, 7)[k % 2]) for k, (case, memory) in enumerate(pairs)]
    torch.multiprocessing.spawn(rank_errors, (str(tmp_path), (25, 35), chosen), nprocs=2)
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert len(gradients) == len(chosen)
    for (name, example, memory, chunk), gradient in zip(chosen, gradients, strict=True):
        expected = torch.cat([g.flatten() for g in Problem(rdm.objective(name, **example), memory).oracle(None)])
        error = (gradient - expected).norm() / expected.norm()
        assert error <= 1e-11, (name, example, memory, chunk, error)


def test_a_chunk_may_weigh_nothing_but_not_the_population():
    problem = Problem(rdm.objective("mmd", bandwidth=2.0), NoMemory())
    problem.weights[7:21] = 0
    assert relative_error(problem.gradient(7), problem.oracle(None)) <= 1e-11
    problem.weights[:] = 0
    with pytest.raises(InputError, match="weights of the population are all zero"):
        problem.gradient(7)


@pytest.mark.parametrize("chunk", [None, 7])
def test_randomness_goes_on_as_if_there_was_one_pass(chunk):
    problem = Problem(rdm.objective("frechet"), NoMemory(), random=True)
    problem.gradient(chunk)
    after = problem.after
    problem.oracle(chunk)
    assert torch.equal(after, torch.rand(()))


@memories
def test_gradient_share_and_its_compensation(memory):
    """The share is 1, 1 - beta or n / N; dividing by it gives the gradient of weights that do not shrink."""
    share = {NoMemory: 1.0, EMA: 0.1, Queue: 60 / 130}[type(memory)]
    problem = Problem(rdm.objective("mmd", bandwidth=2.0), memory)
    plain = problem.population(7)
    step = plain.backward(problem.net, problem.noise, weights=problem.weights)
    assert step.shares["all"] == pytest.approx(share, rel=1e-12)
    small = [p.grad.clone() for p in problem.net.parameters()]
    problem.net.zero_grad()
    whole = problem.population(7)
    whole.normalize_gradient = True
    whole.backward(problem.net, problem.noise, weights=problem.weights)
    assert relative_error([p.grad * share for p in problem.net.parameters()], small) <= 1e-12


def test_state_survives_a_round_trip():
    for memory in (EMA(0.9), Queue(100)):
        problem = Problem(rdm.objective("frechet"), memory)
        first, second = problem.population(7), Problem(rdm.objective("frechet"), memory).population(None)
        first.backward(problem.net, problem.noise)
        second.restore(first.state())
        for before, after in zip(first.terms, second.terms, strict=True):
            assert torch.equal(before.past.value, after.past.value)
            assert type(before.past) is type(after.past)


def test_encoders_stay_frozen_and_in_evaluation_mode():
    encoder = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)).train()
    representation = Representation("encoder", encoder)
    net = nn.Linear(3, 6)
    population = Population(rdm.objective("frechet"), representation, torch.randn(40, 6), chunk=5)
    net.train()
    population.backward(net, torch.randn(20, 3))
    assert not encoder.training and all(p.grad is None and not p.requires_grad for p in encoder.parameters())
    assert net.weight.grad.norm() > 0


def test_wrong_input_is_named():
    items = torch.randn(40, 6)
    pixels = rdm.representation("pixels")
    with pytest.raises(InputError, match="chunk >= 1"):
        Population(rdm.objective("frechet"), pixels, items, chunk=0)
    population = Population(rdm.objective("frechet"), pixels, items, chunk=4)
    net = nn.Linear(3, 6)

    def broken(noise):
        out = net(noise)
        return torch.where(torch.arange(len(out))[:, None] < 2, float("nan"), out)

    with pytest.raises(NonFiniteError, match="'pixels': NaN or infinity in 2 of 4 rows"):
        population.backward(broken, torch.randn(8, 3))
    with pytest.raises(InputError, match="without gradient"):
        population.backward(lambda z: net(z).detach(), torch.randn(8, 3))
    with pytest.raises(InputError, match="dimension d=6; got d=5"):
        population.backward(nn.Linear(3, 5), torch.randn(8, 3))
    with pytest.raises(InputError, match="effective number of rows above 1"):
        population.backward(net, torch.randn(1, 3))
    with pytest.raises(InputError, match="at least one row of noise"):
        population.backward(net, torch.randn(0, 3))
    with pytest.raises(NonFiniteError, match="representation 'pixels': NaN or infinity in"):
        Population(rdm.objective("frechet"), pixels, items / 0)


def test_weights_of_the_battery_scale_the_terms():
    net, noise, items = nn.Linear(3, 6), torch.randn(20, 3), torch.randn(40, 6)
    norms = []
    for weight in (1.0, 2.0):
        battery = Battery((rdm.representation("pixels"),), weights=(weight,))
        net.zero_grad()
        Population(rdm.objective("frechet"), battery, items, balance=Uniform()).backward(net, noise)
        norms.append(net.weight.grad.norm())
    assert norms[1] == pytest.approx(2 * norms[0].item())
