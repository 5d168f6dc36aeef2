"""The same numbers on an accelerator as on the CPU; `pytest -m gpu` where there is one."""

import pytest
import torch

import rdm
from rdm.losses.flow_matching import FlowMatching
from tests.conftest import objective_cases
from tests.problems import Problem, relative_error
from tests.test_train import run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
cases = pytest.mark.parametrize("name, example", objective_cases())


@cases
def test_value_and_gradient_equal_the_cpus(name, example):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 16, generator=g), torch.randn(300, 16, generator=g) * 1.2 + 0.1
    found = []
    for device in ("cpu", "cuda"):
        rows = x.double().to(device).requires_grad_()
        value = rdm.distance(name, rows, y.double().to(device), **example)
        found.append((value.detach().cpu(), torch.autograd.grad(value, rows)[0].cpu()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-7, atol=1e-10)


@cases
def test_population_gradient_is_plain_autograds(name, example):
    for memory in (rdm.NoMemory(), rdm.EMA(0.9), rdm.Queue(130)):
        problem = Problem(rdm.objective(name, **example), memory)
        problem.net.cuda()
        for member in problem.battery.members:
            member.to("cuda")
        problem.items, problem.noise = problem.items.cuda(), problem.noise.cuda()
        problem.warm, problem.weights = problem.warm.cuda(), problem.weights.cuda()
        assert relative_error(problem.gradient(7), problem.oracle(7)) <= 1e-10


@cases
def test_a_population_moves_there_in_the_middle_of_training(name, example):
    """And its state, saved on the CPU, is taken there."""
    problem = Problem(rdm.objective(name, **example), rdm.Queue(130))
    steps, populations = [], [problem.population(7) for _ in range(3)]
    populations[0].backward(problem.net, problem.noise)
    for each in populations[1:]:
        each.load_state_dict(populations[0].state_dict())
    steps.append(populations[0].backward(problem.net, problem.noise, generator=torch.Generator().manual_seed(5)))
    problem.net.cuda()
    moved, late = populations[1].to("cuda"), populations[2].to("cuda")
    late.load_state_dict(moved.to("cpu").state_dict())
    moved.to("cuda")
    for each in (moved, late):
        steps.append(each.backward(problem.net, problem.noise.cuda(), generator=torch.Generator().manual_seed(5)))
    for member, distance in steps[0].distances.items():
        assert [float(step.distances[member]) for step in steps[1:]] == pytest.approx([float(distance)] * 2, rel=1e-7)


@pytest.mark.parametrize("kind", ["ema", "queue", "flow"])
def test_training_runs_and_resumes(kind, tmp_path):
    options = {"device": "cuda"} | ({"losses": [FlowMatching(batch=8)]} if kind == "flow" else {})
    model = run(kind, tmp_path, **options)
    assert next(model.parameters()).is_cuda
    resumed = run(kind, tmp_path, resume=True, **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
