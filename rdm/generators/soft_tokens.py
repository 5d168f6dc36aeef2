"""A small generator of texts as soft tokens: probabilities of words, through which gradients go."""

from torch import Tensor, nn

from rdm.api import Count, Generator, Positive, generators, load_weights


@generators.register("soft_tokens", examples=({"inputs": 4, "length": 3, "vocabulary": 5, "width": 8, "depth": 2},))
class SoftTokens(Generator):
    """ReLU layers from standard normal noise to the logits of every token, and their softmax: no sampling.

    Shapes: noise n inputs -> items n length vocabulary, probabilities. Cost: depth width^2 multiplications an item.
    Raises: InputError: a size below 1, weights of another shape.

    Args:
        sharpness: factor of the logits, the inverse of a temperature.
        weights: a run folder or a file.
    """

    def __init__(
        self,
        inputs: Count = 16,
        length: Count = 9,
        vocabulary: Count = 30,
        width: Count = 256,
        depth: Count = 4,
        sharpness: Positive = 3.0,
        weights: str | None = None,
    ):
        super().__init__()
        self.shape, self.classes = (inputs,), None
        self.tokens, self.sharpness = (length, vocabulary), sharpness
        sizes = [inputs, *[width] * depth]
        hidden = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.ReLU())]
        last = nn.LayerNorm(width), nn.Linear(width, length * vocabulary)  # logits differ from the first
        self.layers = nn.Sequential(*hidden, *last)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Generate items."""
        return (self.sharpness * self.layers(noise).unflatten(1, self.tokens)).softmax(2)
