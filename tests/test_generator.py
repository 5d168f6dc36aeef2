"""Generators: the integration of a flow, and what every registered generator must do."""

import pytest
import torch
from torch import Tensor

import rdm
from rdm.errors import InputError
from rdm.generators.protocol import FlowGenerator
from rdm.registry import generators


class Linear(FlowGenerator):
    """dx/dt = x, whose flow from t = 1 to 0 is x exp(-1)."""

    shape, classes = (1, 1, 1), None

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return x


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_order_of_the_solver(solver, order):
    z = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    exact = (2 * torch.exp(torch.tensor(-1.0, dtype=torch.float64)) + 1) / 2
    errors = [abs(float(Linear(steps, solver)(z)) - float(exact)) for steps in (20, 40)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_the_exact_velocity_of_one_image_is_integrated_in_one_step():
    """Data a single image x0: v = (x_t - x0) / t, and one Euler step from noise lands on x0."""
    x0 = torch.rand(1, 1, 2, 2)

    class Point(Linear):
        def velocity(self, x, t, condition):
            return (x - (2 * x0 - 1)) / t.view(-1, 1, 1, 1)

    torch.testing.assert_close(Point(1, "euler")(torch.randn(5, 1, 2, 2)), x0.expand(5, 1, 2, 2))


def test_wrong_solver():
    with pytest.raises(InputError, match="steps >= 1"):
        Linear(0, "euler")


@pytest.mark.parametrize("name", rdm.names("generators"))
def test_contract(name):
    for example in generators[name].examples:
        generator = rdm.generator(name, **example)
        noise, condition = generator.draw(6, torch.Generator().manual_seed(0))
        images = generator(noise, condition)
        assert len(images) == len(noise) and (images.shape == noise.shape or not isinstance(generator, FlowGenerator))
        assert torch.equal(images, generator(noise, condition)), "not deterministic"
        torch.testing.assert_close(images[2:4], generator(noise[2:4], None if condition is None else condition[2:4]))
        if not list(generator.parameters()):  # an exact velocity
            continue
        images.square().sum().backward()
        assert any(p.grad is not None and p.grad.norm() > 0 for p in generator.parameters())


@pytest.mark.parametrize("name", rdm.names("generators"))
def test_a_step_is_a_jump_by_the_average_velocity(name):
    """From standard normal noise at the model's scale, along its times; with one Euler step, by the velocity."""
    for example in generators[name].examples:
        model = rdm.generator(name, **example)
        if not isinstance(model, FlowGenerator):
            continue
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        noise, condition = model.draw(3, torch.Generator().manual_seed(0))
        x, t = model.noise_scale * noise, 1.0
        for r in model.times()[1:]:
            x, t = model.jump(x, r, t, condition), r
        assert t == 0
        torch.testing.assert_close(model(noise, condition), model.decode(x))
        model.steps, z, ones = 1, model.noise_scale * noise, torch.ones(3)
        u = model.average_velocity(z, 0 * ones, ones, condition)
        torch.testing.assert_close(model(noise, condition), model.decode(z - u))
        if not model.is_map:
            torch.testing.assert_close(u, model.velocity(z, ones, condition))
