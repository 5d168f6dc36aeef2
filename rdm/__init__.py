"""Train and judge generators by matching distributions of features.

Any distance x any battery of representations x any population strategy. Entry points::

    rdm.distance("frechet", x, y)          # a loss in one line
    rdm.objective, rdm.representation, rdm.battery, rdm.generator, rdm.dataset, rdm.memory   # build by registry name
    rdm.Population                         # exact gradients of populations larger than a batch
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.generators.protocol import Generator
from rdm.judging.streaming import Streaming
from rdm.matching.balance import Gated, GradientNorm, SelfNormalized, Uniform
from rdm.matching.memory import EMA, NoMemory, Queue
from rdm.matching.metric import Metric
from rdm.matching.objective import Objective, compare
from rdm.matching.representation import Battery, Representation
from rdm.population.population import Population
from rdm.references.file import Reference
from rdm.registry import (
    balances,
    batteries,
    datasets,
    generators,
    memories,
    metrics,
    objectives,
    registries,
    representations,
)

try:
    __version__ = version("rdm-torch")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "EMA",
    "Battery",
    "Gated",
    "Generator",
    "GradientNorm",
    "Metric",
    "NoMemory",
    "Objective",
    "Population",
    "Queue",
    "Reference",
    "Representation",
    "SelfNormalized",
    "Streaming",
    "Uniform",
    "balance",
    "battery",
    "dataset",
    "distance",
    "generator",
    "memory",
    "metric",
    "names",
    "objective",
    "representation",
]


def distance(
    name: str,
    x: Tensor,
    y: Tensor,
    *,
    weights: Tensor | None = None,
    reference_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
    **hyperparameters: Any,
) -> Tensor:
    """Distance of generated rows x (n, d), which carry the gradient, from reference rows y (m, d).

    `name` and `hyperparameters` are those of the objective (`rdm.names("objectives")`), whose docstring says formula,
    units and cost. Weights are non-negative and normalised inside.

    Raises:
        InputError: unknown name or hyperparameter, an empty or non-finite side, different dimensions, bad weights.

    >>> import torch, rdm
    >>> x = torch.tensor([[1.0], [3.0]], requires_grad=True)
    >>> rdm.distance("frechet", x, torch.tensor([[0.0], [2.0]])).backward()
    >>> x.grad.flatten().tolist()
    [1.0, 1.0]
    """
    chosen = objectives.build(name, **hyperparameters)
    return compare(chosen, x, y, weights=weights, reference_weights=reference_weights, generator=generator)


def names(kind: str) -> list[str]:
    """Registered names of a kind: "objectives", "representations", "batteries", "generators", "metrics", ..."""
    if kind not in registries:
        raise InputError(f"names() takes one of {', '.join(registries)}; got {kind!r}")
    return list(registries[kind])


# These functions share their names with modules (rdm.objective, ...), all imported above: the functions win.
objective = objectives.build
representation = representations.build
battery = batteries.build
generator = generators.build
dataset = datasets.build
memory = memories.build
balance = balances.build
metric = metrics.build
