"""A plain multilayer perceptron from noise to items, for studies of low dimension."""

from torch import Tensor, nn

from rdm.api import Count, Generator, generators, load_weights


@generators.register("mlp", examples=({"width": 8, "depth": 2},))
class MLP(Generator):
    """ReLU layers from standard normal noise to items of any range, without classes.

    Nothing clamps the result: use it where items are no pictures.

    Shapes: noise n inputs -> items n outputs. Cost: depth width^2 multiplications an item.
    Raises: InputError: a size below 1, weights of another shape.

    Args:
        weights: a run folder or a file.
    """

    def __init__(
        self,
        inputs: Count = 2,
        outputs: Count = 64,
        width: Count = 256,
        depth: Count = 4,
        weights: str | None = None,
    ):
        super().__init__()
        self.shape, self.classes = (inputs,), None
        sizes = [inputs, *[width] * depth]
        hidden = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, outputs))
        if weights is not None:
            load_weights(self, weights)

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Generate items."""
        return self.layers(noise)
