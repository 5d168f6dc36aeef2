"""Losses of flow maps: identities of exact maps, surrogates of the fake velocity, and what they train."""

import copy
import math

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

import rdm
from rdm.data.dataset import Dataset
from rdm.errors import InputError
from rdm.generators.protocol import FlowGenerator, FlowMap, over
from rdm.losses._flows import along, arrival, noised, shifted
from rdm.losses.dmd2 import DMD2
from rdm.losses.fsf_dmd import FSFDMD, Places, endpoint, endpoint_jvp, renoised
from rdm.losses.matching import Matching
from rdm.losses.mean_flow import MeanFlow
from rdm.losses.weighted import Weighted
from rdm.matching.representation import Battery
from rdm.randomness import stream
from rdm.training.loss import Setting

MEAN, ROOT = torch.tensor([1.0, -0.5]).double(), torch.tensor([[0.7, 0.2], [0.2, 0.4]]).double()
CPU = torch.device("cpu")


def power(matrix: Tensor, exponent: float) -> Tensor:
    """Of a symmetric positive matrix, or of several."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).pow(exponent)[..., None, :]) @ vectors.mT


class Flat(FlowMap):
    """States in float64 that are the items."""

    shape, classes = (2,), None

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        return super().noise(n, generator).double()

    def decode(self, x: Tensor) -> Tensor:
        return x

    def encode(self, items: Tensor) -> Tensor:
        return items


class Gaussian(Flat):
    """The exact flow map of N(m, S) in closed form; m and S^1/2 are parameters."""

    def __init__(self, mean: Tensor = MEAN, root: Tensor = ROOT):
        super().__init__()
        self.mean, self.root = nn.Parameter(mean.clone()), nn.Parameter(root.clone())

    def covariance(self, t: Tensor) -> Tensor:
        t = t[:, None, None]
        return (1 - t) ** 2 * self.root @ self.root.mT + t**2 * torch.eye(2).to(t)

    def velocity(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        s, tt = self.root @ self.root.mT, t[:, None, None]
        slope = tt * torch.eye(2).to(t) - (1 - tt) * s
        away = (x - (1 - t)[:, None] * self.mean)[..., None]
        return (slope @ torch.linalg.solve(self.covariance(t), away))[..., 0] - self.mean

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, condition: object = None) -> Tensor:
        away = (x - (1 - t)[:, None] * self.mean)[..., None]
        root = power(self.covariance(r), 0.5) @ power(self.covariance(t), -0.5)
        arrived = (1 - r)[:, None] * self.mean + (root @ away)[..., 0]
        return (x - arrived) / (t - r)[:, None]


class Straight(Gaussian):
    """The right samples on straight ways: y_t = (1 - t) X_{1->0}(z) + t z."""

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, condition: object = None) -> Tensor:
        assert bool((t == 1).all())
        return super().average_velocity(x, torch.zeros_like(r), t)


class Affine(Flat):
    """u(x, r, t) = W(r, t) x + w(r, t), with W and w polynomials of degree 4."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(15, 6).double())

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, condition: object = None) -> Tensor:
        powers = [(2 * r - 1) ** i * (2 * t - 1) ** j for i in range(5) for j in range(5 - i)]
        found = torch.stack(powers, 1) @ self.weights
        return (found[:, :4].view(-1, 2, 2) @ x[..., None])[..., 0] + found[:, 4:]


def places(n: int = 64) -> Places:
    g = torch.Generator().manual_seed(0)
    z, t = torch.randn(n, 2, generator=g).double(), 0.05 + 0.9 * torch.rand(n, generator=g).double()
    return Places(z, torch.ones_like(t), t, torch.minimum(0.3 * torch.rand(n, generator=g).double() + 1e-3, 1 - t))


def jump(model: FlowMap):
    return lambda x, r, t: x - over(t - r, x) * model.average_velocity(x, r, t, None)


def test_the_exact_map_of_a_gaussian_arrives_with_the_fake_velocity():
    """Exactly at its end; by the chord and by straight ways not, as the derivation says; the score is -C^-1 (x - m)."""
    model, at = Gaussian().requires_grad_(False), places()
    y = jump(model)(at.start, at.t, at.s)
    true = model.velocity(y, at.t)
    assert torch.allclose(arrival(model.average_velocity, at.start, at.t, at.s), true, rtol=0, atol=1e-10)
    score = -torch.linalg.solve(model.covariance(at.t), y - (1 - at.t)[:, None] * model.mean)
    assert torch.allclose(-(y + (1 - at.t)[:, None] * true) / at.t[:, None], score, rtol=1e-9)
    chord = model.average_velocity(y, torch.zeros_like(at.t), at.t)
    assert float((chord - true).norm() / true.norm()) > 0.2
    straight = Straight().requires_grad_(False)
    pseudo = arrival(straight.average_velocity, at.start, at.t, at.s)
    samples = jump(model)(at.start, torch.zeros_like(at.t), at.s)
    on_way = noised(samples, at.start, at.t)
    assert float((pseudo - model.velocity(on_way, at.t)).norm() / model.velocity(on_way, at.t).norm()) > 0.2


@pytest.mark.parametrize("kind", [Gaussian, Straight])
def test_what_the_map_arrives_with_transports_its_own_law(kind):
    """The continuity equation: dC/dt = W C + C W^T of the linear law y = A(t) z, pseudo = W y, for any generator."""
    model, t = kind().requires_grad_(False), torch.tensor([0.35]).double()

    def linear(f) -> Tensor:
        ends = torch.cat([torch.eye(2), torch.zeros(1, 2)]).double()
        found = f(ends, t.expand(3), torch.ones(3).double())
        return (found[:2] - found[2]).T

    a = linear(jump(model))
    w = linear(lambda x, r, s: arrival(model.average_velocity, x, r, s)) @ torch.linalg.inv(a)
    h = 1e-4
    ahead, back = (linear(lambda x, r, s, d=d: jump(model)(x, r + d, s)) for d in (h, -h))
    assert torch.allclose(w @ a @ a.T + a @ a.T @ w.T, (ahead @ ahead.T - back @ back.T) / (2 * h), atol=1e-6)


def test_every_surrogate_but_the_chord_is_still_where_the_map_is_the_teachers():
    teacher, at = Gaussian().requires_grad_(False), places()
    model = Gaussian().requires_grad_(False)
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)).double()
    real = teacher.velocity
    exact = endpoint_jvp(model.average_velocity, real, at)
    assert float((exact.target - exact.y).abs().max()) < 1e-10
    fine = at._replace(d=at.d / 100)
    upwind = endpoint(jump(model), real, fine)
    assert float(((upwind.target - upwind.y) / fine.d[:, None]).abs().max()) < 1e-4
    still = renoised(jump(model), lambda x, _, t: model.velocity(x, t), real, at, z)
    assert float((still.target - still.y).abs().max()) < 1e-10
    chord = renoised(jump(model), model.average_velocity, real, at, z)
    assert float((chord.target - chord.y).abs().max()) > 1e-2


def trained(loss, model: nn.Module, steps: int, rate: float, betas=(0.0, 0.95)) -> nn.Module:
    loss.prepare(model, Setting(None, 0, CPU, None), resumed=False)
    stepper = torch.optim.Adam(model.parameters(), lr=rate, betas=betas)
    for step in range(steps):
        for group in stepper.param_groups:
            group["lr"] = rate * (1 - step / steps)
        stepper.zero_grad()
        loss.backward(model, step)
        stepper.step()
    return model


def errors(model: FlowGenerator) -> tuple[float, float]:
    """Of the covariance and of the mean of one jump's samples, which are affine in the noise."""
    ends = torch.cat([torch.eye(2), torch.zeros(1, 2)]).double()
    with torch.no_grad():
        found = model.jump(ends, 0.0, 1.0)
    a, b = (found[:2] - found[2]).T, found[2]
    return float((a @ a.T - ROOT @ ROOT.T).norm()), float((b - MEAN).norm())


def test_an_affine_map_reaches_the_teachers_gaussian_and_runs_away_under_the_wrong_sign():
    teacher = Gaussian()
    covariance, mean = errors(trained(FSFDMD(teacher, batch=32), Affine(), 300, 0.05))
    assert covariance < 0.01 and mean < 0.02, (covariance, mean)

    class Reversed(FSFDMD):
        def _judged(self, *given):
            found = super()._judged(*given)
            return found._replace(target=2 * found.y.detach() - found.target)

    start = errors(Affine())
    wrong = errors(trained(Reversed(teacher, batch=32), Affine(), 60, 0.05))
    assert wrong[0] > 2 * start[0], (wrong, start)


def test_a_learned_fake_velocity_does_the_same():
    """DMD2 with a fake network that can be right: the exact velocity of any Gaussian."""
    model = Affine()
    fake = Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    beside = lambda parameters: torch.optim.Adam(parameters, lr=0.05, betas=(0.0, 0.95))  # noqa: E731
    loss = DMD2(Gaussian(), fake=fake, batch=64, updates=2, optimizer=beside)
    covariance, mean = errors(trained(loss, model, 150, 0.03))
    assert covariance < 0.1 and mean < 0.1, (covariance, mean)


class Curved(Flat):
    """A flow map with a spatial derivative worth the name."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.inlet, self.outlet = (nn.Parameter(torch.randn(a, b, generator=g).double()) for a, b in ((4, 8), (8, 2)))

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return torch.cat([x, r[:, None], t[:, None]], 1).mm(self.inlet).tanh() @ self.outlet


@pytest.mark.parametrize("tangent", ["conditional", "predicted"])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_mean_flow_is_its_formula(tangent, power):
    """Beside du/dt by a difference of the network along its tangent, and the squared error's gradient by hand."""
    items, model = torch.randn(6, 2, generator=torch.Generator().manual_seed(3)).double(), Curved()
    loss = MeanFlow(batch=6, tangent=tangent, equal=0.3, power=power)
    seen = {}

    class Spy(MeanFlow):
        def _times(self, x0, streams):
            seen["times"] = super()._times(x0, streams)
            return seen["times"]

    loss.__class__ = Spy
    loss.prepare(model, Setting(Dataset("rows", items, torch.zeros(6).long(), 1), 0, CPU, None), resumed=False)
    read = loss._feed.at(0)
    logged = loss.backward(model, 0)
    r, t, _ = seen["times"]
    z = torch.stack([torch.empty(2).double().normal_(0, 1, generator=stream(0, "Spy", 0, k)) for k in read.numbers])
    x, v = noised(read.items, z, t), z - read.items
    w, h = (model.velocity(x, t, None).detach() if tangent == "predicted" else v), 1e-6
    u = model.average_velocity
    slope = ((u(x + h * w, r, t + h) - u(x - h * w, r, t - h)) / (2 * h)).detach()
    error = (u(x, r, t) + (t - r)[:, None] * slope - v).square().sum(1)
    value = error / (error.detach() + 0.01) ** power
    assert logged["loss"] == pytest.approx(float(value.detach().mean()), rel=1e-6)
    expected = torch.autograd.grad(value.mean(), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-6, atol=1e-8)


def test_the_derivative_along_the_flow_is_the_same_by_differences():
    model, g = Curved().requires_grad_(False), torch.Generator().manual_seed(1)
    x, w = (torch.randn(9, 2, generator=g).double() for _ in range(2))
    t = torch.tensor([1.0, 1.0, 1.0, 0.999, 0.5, 0.5, 0.5, 0.2, 0.0]).double()
    r = torch.tensor([1.0, 0.5, 0.999, 0.2, 0.5, 0.499, 0.1, 0.0, 0.0]).double()
    exact, near = (along(model.average_velocity, x, r, t, w, exact=e)[1] for e in (True, False))
    assert torch.allclose(exact, near, rtol=5e-3)


def test_times_shift_towards_noise_and_weights_follow_their_steps():
    q = torch.tensor([0.0, 0.25, 1.0])
    assert torch.allclose(shifted(q, 3.0), torch.tensor([0.0, 0.5, 1.0])) and torch.equal(shifted(q, 1.0), q)
    loss = Weighted(FSFDMD(batch=8), weight=2.0, start=2, ramp=3, last=1.0, fall=3)
    assert [loss.at(k) for k in range(10)] == [0, 0, 0.5, 1.0, 1.5, 1.75, 1.5, 1.25, 1.0, 1.0]
    assert [Weighted(FSFDMD(batch=8), weight=0.5).at(k) for k in (0, 9)] == [0.5, 0.5]


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_weight_multiplies_the_gradient_of_every_kind_of_loss(chunk):
    """Of a population in one pass and two, of real items and of generated ones; at weight 0 nothing is computed."""
    torch.manual_seed(0)
    model = rdm.generator("mlp_flow", shape=(2,), classes=None, width=8, depth=1, map=True)
    nn.init.normal_(model.outlet.weight)
    pixels = Battery((rdm.representation("pixels"),))
    setting = Setting(Dataset("rows", torch.rand(9, 2), torch.zeros(9).long(), 1), 0, CPU, None)

    def gradient(loss) -> list[Tensor]:
        loss.prepare(model, setting, resumed=False)
        model.zero_grad()
        loss.backward(model, 1)
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]

    for build in (
        lambda: Matching(rdm.objective("frechet"), pixels, population=8, chunk=chunk),
        lambda: FSFDMD(batch=8),
        lambda: MeanFlow(batch=8, derivative="difference"),
    ):
        plain, none = gradient(build()), gradient(Weighted(build(), start=2))
        assert all(not g.any() for g in none) and any(g.any() for g in plain)
        for one, three in zip(plain, gradient(Weighted(build(), weight=3.0)), strict=True):
            assert torch.allclose(three, 3 * one, rtol=1e-5, atol=1e-7)


NETWORKS = {
    "sit": {"shape": (4, 4, 4), "width": 16, "depth": 1, "heads": 2, "decoder": "none", "guidance": 1.0},
    "mlp_flow": {"width": 8, "depth": 1},
    "jit": {"size": 8, "patch": 4, "width": 16, "depth": 2, "heads": 2, "bottleneck": 4, "context": 3, "start": 1},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_velocity_network_becomes_a_flow_map_that_starts_as_it(name, tmp_path):
    torch.manual_seed(0)
    velocity = rdm.generator(name, **NETWORKS[name])
    for p in velocity.parameters():
        nn.init.normal_(p, std=0.1)
    from safetensors.torch import save_file

    save_file(velocity.state_dict(), tmp_path / "weights.safetensors")
    model = rdm.generator(name, **NETWORKS[name], map=True, weights=str(tmp_path / "weights.safetensors"))
    x, g = torch.randn(4, *model.shape), torch.Generator().manual_seed(0)
    t, labels = 0.5 + 0.5 * torch.rand(4, generator=g), torch.arange(4)
    u = model.average_velocity(x, t / 2, t, labels)
    assert torch.equal(u, velocity.velocity(x, t, labels))
    with pytest.raises(InputError, match="map=True, which starts as the velocity"):
        FSFDMD(batch=4).prepare(velocity, Setting(None, 0, CPU, None), resumed=False)
    nn.init.normal_(next(p for n, p in model.named_parameters() if "outlet.weight" in n and "embed" in n))
    assert not torch.allclose(model.average_velocity(x, t / 2, t, labels), u)


@pytest.mark.parametrize("name", [*NETWORKS, "pmf"])
def test_the_networks_of_images_are_distilled(name):
    """A finite gradient for every parameter that is not zero by its neighbours' zeros, from every loss."""
    torch.manual_seed(0)
    pmf = {"size": 8, "patch": 4, "width": 16, "depth": 2, "heads": 2, "head_depth": 1, "bottleneck": 4}
    model = rdm.generator(name, **(pmf if name == "pmf" else {**NETWORKS[name], "map": True}))
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    items = torch.rand(4, *model.shape)
    setting = Setting(Dataset("random", items, torch.zeros(4).long(), 1), 0, CPU, None)
    for loss in (
        FSFDMD(batch=4, least=0.1), FSFDMD(batch=4, pseudo="endpoint_jvp"), FSFDMD(batch=4, pseudo="chord"),
        DMD2(batch=4, updates=1), MeanFlow(batch=4), MeanFlow(batch=4, derivative="difference", tangent="predicted"),
    ):  # fmt: skip
        loss.prepare(model, setting, resumed=False)
        model.zero_grad()
        assert math.isfinite(loss.backward(model, 0)["loss"])
        moved = [n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        assert len(moved) > 0.8 * len(list(model.parameters())), (type(loss).__name__, moved)


def test_a_wrong_argument_is_one_line():
    with pytest.raises(InputError, match="0 < least <= reach <= 1"):
        FSFDMD(reach=1.5)
    with pytest.raises(InputError, match="guidance is a scale from 1"):
        MeanFlow(guidance=0.5)
    model = rdm.generator("mlp_flow", map=True)
    setting = Setting(Dataset("random", torch.rand(4, 1, 8, 8), torch.zeros(4).long(), 10), 0, CPU, None)
    with pytest.raises(InputError, match="label for no class"):
        MeanFlow(guidance=2.0).prepare(model, setting, resumed=False)
    with pytest.raises(InputError, match="states are \\(2,\\), the model's \\(1, 8, 8\\)"):
        FSFDMD(Gaussian()).prepare(copy.deepcopy(model), setting, resumed=False)


def test_the_mixtures_velocity_samples_the_mixture():
    """Many steps give the data's law at the floor; the velocity of one far component is that of its Gaussian."""
    field = rdm.generator("gaussian_mixture", steps=60)
    score = rdm.registry.evaluations.build("gaussian_mixture", samples=2048)
    found = score.measure(field(torch.randn(2048, 2, generator=torch.Generator().manual_seed(0))).double())
    assert found["sliced distance"].value < 1.5 * found["floor"].value and found["between"].value < 0.03
    single = rdm.generator("gaussian_mixture", centres=((0.5, 0.25),), deviation=0.1)
    x, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double(), torch.rand(5).double()
    exact = Gaussian(torch.tensor([0.0, -0.5]).double(), 0.2 * torch.eye(2).double()).velocity(x, t)
    assert torch.allclose(single.velocity(x, t, None), exact, atol=1e-6)
