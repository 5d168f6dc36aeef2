"""`rdm.Loss`: what `rdm.distance` and a population give, bound once, in any loop that autograd drives."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rdm
from rdm.distributed import sum_gradients
from rdm.errors import InputError
from rdm.matching.real import Gaussian
from tests.conftest import objective_cases

G = torch.Generator().manual_seed(0)
Y = torch.randn(50, 3, generator=G).double() @ torch.randn(3, 3, generator=G).double() + 1
BATCHES = [torch.randn(12, 3, generator=G).double() for _ in range(4)]


def pulled(loss, x: Tensor, **options) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = loss(x, **options)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("name, example", objective_cases())
def test_value_and_gradient_are_those_of_distance(name, example):
    weights = torch.rand(12, generator=torch.Generator().manual_seed(1)).double() + 0.1
    draw = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    loss = rdm.Loss(name, Y, **example)
    for x in BATCHES[:2]:
        found = pulled(loss, x, weights=weights, generator=draw())
        options = {"weights": weights, "generator": draw(), **example}
        expected = pulled(lambda rows, options=options: rdm.distance(name, rows, Y, **options), x)
        assert all(map(torch.equal, found, expected))
    assert loss.share == 1 and not loss.state_dict()


@pytest.mark.parametrize("name", ["frechet", "energy"])
@pytest.mark.parametrize("memory", [rdm.EMA(0.7, riding=True), rdm.Queue(30)], ids=["ema", "queue"])
def test_a_loop_is_that_of_a_population(name, memory):
    """Step by step through the same network; copies, files and a stop in eval() go on to the bit."""
    net, twin = (nn.Linear(3, 3).double() for _ in range(2))
    twin.load_state_dict(net.state_dict())
    population = rdm.Population(name, "pixels", Y, memory=memory)
    loss, given = rdm.Loss(name, Y, memory=memory), []
    for k, x in enumerate(BATCHES):
        net.zero_grad(), twin.zero_grad()
        taken = population.backward(net, x)
        given.append(twin(x))
        value = loss(given[-1])
        value.backward()
        torch.testing.assert_close(value.detach(), taken.loss, rtol=1e-12, atol=0)
        assert loss.share == taken.shares["pixels"]
        torch.testing.assert_close(twin.weight.grad, net.weight.grad, rtol=1e-10, atol=1e-14)
        if k == 1:
            buffer, other = io.BytesIO(), rdm.Loss(name, Y, memory=memory)
            torch.save(nn.ModuleDict({"loss": loss}).state_dict(), buffer)
            buffer.seek(0)
            nn.ModuleDict({"loss": other}).load_state_dict(torch.load(buffer, weights_only=True))
            copies = [copy.deepcopy(loss), other, rdm.Loss(name, Y, memory=memory).half()]
            copies[2].load_state_dict(loss.state_dict())
            before = loss.eval()(x), loss(x)
            assert before[0] == before[1] != value
            loss.train()
        with torch.no_grad():
            net.bias -= 0.1 * net.bias.grad
            twin.load_state_dict(net.state_dict())
    for each in copies:
        pulls = [pulled(each, x.detach()) for x in given[2:]]
        assert torch.equal(pulls[-1][0], value.detach())
        assert all(map(torch.equal, each.state_dict().values(), loss.state_dict().values()))


def test_a_past_of_another_kind_is_refused():
    loss, other = rdm.Loss("energy", Y, memory=rdm.EMA(0.5)), rdm.Loss("frechet", Y, memory=rdm.Queue(20))
    for each in (loss, other):
        each(BATCHES[0])
    for state in ({"past.0": torch.zeros(3, 2), "past.1": torch.ones(3).double()}, other.state_dict()):
        with pytest.raises(RuntimeError, match="the past of a rdm.Loss"):
            loss.load_state_dict(state)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at it and hides what it says
def test_autocast_scaling_and_compiled_loops():
    """Autocast changes nothing; a compiled step gives the eager one's gradients; a scaler's factor passes through."""
    loss, x, y = rdm.Loss("frechet", Y.float(), memory="ema"), BATCHES[0].float(), BATCHES[1].float()
    plain = [pulled(copy.deepcopy(loss), rows) for rows in (x, y)]
    with torch.autocast("cpu", torch.bfloat16):
        cast = [pulled(loss, rows) for rows in (x, y)]
    assert torch.equal(plain[0][1], cast[0][1]) and cast[0][1].dtype == torch.float32
    net = nn.Linear(3, 3)
    compiled, fresh = (
        nn.Sequential(net, rdm.Loss("frechet", Y.float(), memory="ema")),
        rdm.Loss("frechet", Y.float(), memory="ema"),
    )
    step = torch.compile(compiled, backend="eager")
    for rows in (x, y):
        found = torch.autograd.grad(step(rows) * 1024, net.weight)[0]
        expected = torch.autograd.grad(fresh(net(rows)), net.weight)[0]
        torch.testing.assert_close(found / 1024, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(compiled[1].state_dict()["past.0"], fresh.state_dict()["past.0"])


def test_references_of_every_form(tmp_path):
    fit = Gaussian.of(Y)
    np.savez(tmp_path / "fd.npz", mu=fit.mean.numpy(), sigma=fit.covariance.numpy())
    file = rdm.Reference.from_features(Y)
    expected = rdm.distance("frechet", BATCHES[0], Y)
    for reference in (file, file.members["features"], fit, tmp_path / "fd.npz", str(tmp_path / "fd.npz")):
        torch.testing.assert_close(rdm.Loss("frechet", reference)(BATCHES[0]), expected, rtol=1e-9, atol=0)
    weights = torch.arange(50).double()
    found = rdm.Loss("energy", Y, reference_weights=weights)(BATCHES[0])
    assert found == rdm.distance("energy", BATCHES[0], Y, reference_weights=weights)
    learned = Y.clone().requires_grad_()
    refusals = {
        "needs rows": ("energy", fit, {}),
        "got list": ("energy", [1.0], {}),
        "go with reference rows": ("frechet", fit, {"reference_weights": weights}),
        "no hyperparameter": ("energy", Y, {"bandwidth": 1.0}),
        "go with a name": (rdm.objective("energy"), Y, {"exponent": 1.0}),
        "reference must not require grad": ("energy", learned, {}),
        "expected a Memory": ("energy", Y, {"memory": 3}),
    }
    for message, (name, reference, options) in refusals.items():
        with pytest.raises(InputError, match=message):
            rdm.Loss(name, reference, **options)
    assert rdm.distance(rdm.objective("mmd", bandwidth=3.0), BATCHES[0], Y) == rdm.distance(
        "mmd", BATCHES[0], Y, bandwidth=3.0
    )
    for take in (rdm.distance, rdm.transport):
        with pytest.raises(InputError, match="expected an Objective or the registered name of one; got Tensor"):
            take(BATCHES[0], Y, Y)
    with pytest.raises(InputError, match="reference's dimension"):
        rdm.Loss("energy", Y)(torch.zeros(3, 2))


CASES = [(name, memory) for name in ("frechet", "energy") for memory in (rdm.NoMemory(), rdm.EMA(0.7), rdm.Queue(30))]


def looped(rows: slice) -> list[Tensor]:
    """Summed gradients of a network on some rows of each batch, after three steps of each case; see test_population."""
    found = []
    for name, memory in CASES:
        net, loss = nn.Linear(3, 3).double(), rdm.Loss(name, Y, memory=memory)
        with torch.no_grad():
            net.weight.copy_(torch.eye(3) * 0.8), net.bias.zero_()
        for x in BATCHES[:3]:
            net.zero_grad()
            loss(net(x[rows])).backward()
        sum_gradients(net.parameters())
        found.append(net.weight.grad)
    return found
