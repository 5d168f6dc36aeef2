"""The exact velocity of a mixture of Gaussians, for studies: a teacher without error."""

import math

import torch
from torch import Tensor, nn

from rdm.api import Conditions, Count, FlowGenerator, InputError, Positive, Solver, generators, over


@generators.register("gaussian_mixture", examples=({},))
class GaussianMixture(FlowGenerator):
    """v(x, t) = E[z - x_0 | x_t = x] where x_0 is one of the centres, each as likely, plus Gaussian noise.

    With states in [-1, 1] for items in [0, 1]: component k of x_t is N((1-t) c_k, C) with C = (1-t)^2 s^2 + t^2, and
    v = sum_k w_k(x) (-c_k + (t - (1-t) s^2) / C (x - (1-t) c_k)), w the posterior of the components.

    Args:
        centres: of the items; five on a circle around (0.5, 0.5) by default.
        deviation: of the items around them.
        steps, solver: of its own samples.

    Shapes: noise n d -> items n d. It has no parameters. Cost: number of centres times d an item and evaluation.
    Raises: InputError: centres of unlike length.
    """

    classes, clamp = None, False

    def __init__(
        self,
        centres: tuple[tuple[float, ...], ...] | None = None,
        deviation: Positive = 0.05,
        steps: Count = 100,
        solver: Solver = "heun",
    ):
        super().__init__(steps, solver)
        given = five() if centres is None else centres
        if len({len(c) for c in given}) != 1:
            raise InputError(f"gaussian_mixture: expected centres of one length; got {given}")
        self.centres, self.scale = nn.Buffer(self.encode(torch.tensor(given)), persistent=False), 2 * deviation
        self.shape = (len(given[0]),)

    @property
    def conditions(self) -> Conditions | None:
        """None."""
        return None

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:  # noqa: D102
        centres = self.centres.to(x)
        away = x[:, None] - over(1 - t, x)[:, :, None] * centres  # n k d
        variance = (1 - t) ** 2 * self.scale**2 + t**2
        weights = (-away.square().sum(2) / (2 * variance[:, None])).softmax(1)
        slope = (t - (1 - t) * self.scale**2) / variance
        return (weights[..., None] * (slope[:, None, None] * away - centres)).sum(1)


def five() -> tuple[tuple[float, float], ...]:
    """Five centres on a circle."""
    angles = [2 * math.pi * k / 5 for k in range(5)]
    return tuple((0.5 + 0.3 * math.cos(a), 0.5 + 0.3 * math.sin(a)) for a in angles)
