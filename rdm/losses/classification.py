"""Classifiers."""

from collections.abc import Sequence

import torch
from torch import nn

from rdm.api import Augmentation, Count, Fed, Rows, Share, Summed, losses


@losses.register("classification")
class Classification(Fed):
    """Cross-entropy of a classifier's logits, on augmented items (`rdm.training.augmentation`; None for as they are).

    Cost: one forward and backward of `batch` items, `chunk` at a time.
    """

    logged = "loss", "accuracy"

    def __init__(
        self,
        batch: Count = 128,
        augmentation: Augmentation | None = None,
        smoothing: Share = 0.05,
        chunk: Count | None = None,
    ):
        self.batch, self.augmentation, self.smoothing, self.chunk = batch, augmentation, smoothing, chunk

    def summed(self, model: nn.Module, rows: Rows, streams: Sequence[torch.Generator]) -> Summed:
        """Labelled items, each augmented by itself."""
        items = rows.items
        if self.augmentation is not None:
            items = torch.stack([self.augmentation(x, source) for x, source in zip(items, streams, strict=True)])
        logits = model(items)
        labels = self.labels(rows, logits.shape[1])
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="sum")
        return loss, {"accuracy": (logits.argmax(1) == labels).sum()}
