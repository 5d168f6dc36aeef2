"""Inside `torch.autocast` every number and every gradient is what it is outside."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdm
from rdm.judging.streaming import Streaming
from rdm.matching.real import Real
from rdm.matching.representation import Battery, Representation
from tests.conftest import objective_cases
from tests.problems import relative_error

G = torch.Generator().manual_seed(0)
X, Y, FRESH, TRAIN = (torch.randn(n, 8, generator=G) for n in (70, 90, 80, 90))
SMALL = {
    "kid": {"size": 50, "subsets": 4},
    "kid_spread": {"size": 50, "subsets": 4},
    "sw": {"projections": 64},
    "sw_r": {"projections": 64},
}


def same(measured: Callable[[], Any]) -> Any:
    """What is measured outside and inside of autocast: the same bits."""
    found = measured()
    with torch.autocast("cpu", torch.bfloat16):
        inside = measured()
    flat = [torch.cat([torch.as_tensor(v).double().flatten() for v in each]) for each in (found, inside)]
    assert torch.equal(*flat), (flat[0] - flat[1]).abs().max()
    return found


@pytest.mark.parametrize("name, example", objective_cases())
def test_a_distance_and_its_gradient(name, example):
    def measured() -> list[Tensor]:
        x = X.clone().requires_grad_()
        value = rdm.distance(name, x, Y, generator=torch.Generator().manual_seed(1), **example)
        return [value.detach(), *torch.autograd.grad(value, x)]

    assert same(measured)[1].abs().sum() > 0


def members() -> Battery:
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    low = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    return Battery((Representation("deep", deep), Representation("low", low, precision="bfloat16")))


def steps(objective, memory, chunk: int | None) -> list[Tensor]:
    """Losses and parameter gradients of two steps of a generator that autocast leaves alone."""
    battery, scale = members(), nn.Parameter(torch.linspace(0.5, 1, 8))
    population = rdm.Population(objective, battery, Y, chunk=chunk, memory=memory)
    population.warm_up(lambda z: scale * z, FRESH)
    found = []
    for noise in (X, X + 1):
        scale.grad = None
        step = population.backward(lambda z: scale * z, noise, generator=torch.Generator().manual_seed(1))
        assert scale.grad is not None
        found += [step.loss, scale.grad]
    return found


@pytest.mark.parametrize("name, example", objective_cases())
@pytest.mark.parametrize("chunk", [None, 30])
def test_a_population(name, example, chunk):
    objective = rdm.objective(name, **example)
    same(lambda: steps(objective, None, chunk))


@pytest.mark.parametrize("memory", rdm.names("memories"))
@pytest.mark.parametrize("chunk", [None, 30])
@pytest.mark.parametrize("name", ["frechet", "energy"])  # a sum and rows
def test_a_memory(memory, chunk, name):
    same(lambda: steps(rdm.objective(name), rdm.memory(memory), chunk))


@pytest.mark.parametrize("chunk", [None, 30])
def test_the_generator_is_the_callers(chunk):
    """Its own layers are cast, as its trainer asks: plain autograd's gradient in the items, through them by chunks."""
    torch.manual_seed(0)
    net, battery = nn.Linear(8, 8), members()
    population = rdm.Population("energy", battery, Y, chunk=chunk)
    seen = []

    def generate(z: Tensor) -> Tensor:
        items = net(z)
        seen.append(items.dtype)
        return items.float()

    pieces = X.split(chunk or len(X))
    with torch.autocast("cpu", torch.bfloat16):
        population.backward(generate, X)
        found = net.weight.grad
        items = torch.cat([generate(z) for z in pieces]).detach().requires_grad_()
    features = [torch.cat([member(piece) for piece in items.split(chunk or len(X))]) for member in battery.members]
    reals = [member(Y) for member in battery.members]
    value = sum(rdm.distance("energy", x, y.detach()) for x, y in zip(features, reals, strict=True))
    expected = torch.zeros_like(net.weight)
    for z, cotangent in zip(pieces, torch.autograd.grad(value, items)[0].split(chunk or len(X)), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            made = generate(z)
        expected += torch.autograd.grad(made, net.weight, cotangent)[0]
    assert set(seen) == {torch.bfloat16} and found is not None
    assert relative_error([found], [expected]) <= 1e-5


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", rdm.names("metrics"))
def test_a_metric(name, around):
    measure, real = rdm.metric(name, **SMALL.get(name, {})), Real(Y, fresh=FRESH, train=TRAIN)
    expected = measure(X, real)

    def measured() -> list[float]:
        with around():
            return list(measure(X * 1, real))

    assert same(measured) == list(expected)


@pytest.mark.parametrize("name", ["pca", "whitening", "random_projection", "random_fourier"])
def test_an_encoder_that_is_fitted(name):
    options = {"components": 4} if name == "pca" else {}
    same(lambda: [rdm.representation(name, **options).fitted(X)(Y)])


def test_streaming():
    names = [name for name in rdm.names("metrics") if name not in SMALL and not name.endswith("r")]
    names = [name for name in names if not rdm.metric(name).trained]

    def measured() -> list[float]:
        metric = Streaming(members().members[0], names)
        metric.update(X.sigmoid(), real=False)
        metric.update(Y.sigmoid(), real=True)
        return [number for found in metric.compute().values() for number in found]

    same(measured)
