"""What is watched beside the distances: accuracy of a judge, spread within classes, copies of the reference."""

import torch
from torch import Tensor

from rdm.judging.drawing import Samples
from rdm.matching.metric import Metric, between, of_share


def accuracy(logits: Tensor, labels: Tensor, seed: int) -> Metric:
    """Share of items that a classifier takes for what they were asked to be."""
    return _share(logits.argmax(1).cpu() == labels.cpu(), seed)


def spread(samples: Samples, reference: Samples, seed: int) -> Metric:
    """Mean distance between items of one class, over that of the reference's: 1 for real data, 0 in collapse."""
    labels, theirs = samples.labels, reference.labels
    if labels is None or theirs is None:
        labels, theirs = (torch.zeros(len(each.images)).long() for each in (samples, reference))
    real = _within_class_distances(reference.images, theirs)
    rows = _within_class_distances(samples.images, labels) / real.mean()
    value, n = float(rows.mean()), len(rows)
    return between(value, float(rows.var()) / n, n, seed, least=0.0)


def copies(images: Tensor, reference: Tensor, fresh: Tensor, seed: int) -> Metric:
    """Share of items nearer to their nearest reference item than 99 % of the fresh split are to theirs."""
    reference = reference.flatten(1)
    nearest = torch.cdist(images.flatten(1), reference).amin(1)
    usual = torch.cdist(fresh.flatten(1), reference).amin(1)
    return _share(nearest < usual.double().quantile(0.01), seed)


def _share(hits: Tensor, seed: int) -> Metric:
    value, n = float(hits.double().mean()), len(hits)
    return of_share(value, value * (1 - value) / n, n, seed)


def _within_class_distances(images: Tensor, labels: Tensor) -> Tensor:
    """One number an item, whose mean is that of the distances between items of one class, and their spread its error.

    Twice the item's mean distance to the others of its class, since it is in each pair of its own and of theirs, less
    the class's mean. Classes of one item are left out.
    """
    shares = []
    for label in labels.unique():
        rows = images[(labels == label).to(images.device)].flatten(1).double()
        if len(rows) > 1:
            means = torch.cdist(rows, rows).sum(1) / (len(rows) - 1)
            shares.append(2 * means - means.mean())
    return torch.cat(shares)
