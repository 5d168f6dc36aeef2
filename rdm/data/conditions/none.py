"""No condition."""

import torch
from torch import Tensor

from rdm.api import Conditions, conditions


@conditions.register("none")
class Nothing(Conditions):
    """No condition: a generator of classes is called without one."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Nothing to choose."""
        return torch.zeros(n, dtype=torch.long, device=generator.device)

    def read(self, drawn: Tensor) -> None:
        """None for all of them."""
