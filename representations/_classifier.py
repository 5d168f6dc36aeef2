"""What a classifier must have for its features to be a representation."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from rdm.api import Inputs


class Classifier(nn.Module, ABC):
    """A network of logits over penultimate features."""

    head: nn.Linear
    inputs: Inputs  # what it takes

    @abstractmethod
    def features(self, items: Tensor) -> Tensor:
        """Penultimate activations, n ... -> n d."""

    def forward(self, items: Tensor) -> Tensor:
        """Logits, n ... -> n classes."""
        return self.head(self.features(items))
