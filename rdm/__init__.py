"""Train and judge generators by matching distributions of features.

Any distance x any battery of representations x any population strategy. Entry points::

    rdm.distance("frechet", x, y)          # a loss in one line
    rdm.Loss("frechet", y, memory="ema")   # the same bound once, for a loop
    rdm.objective, rdm.representation, rdm.battery, rdm.generator, rdm.dataset, rdm.memory   # build by registry name
    rdm.Population                         # exact gradients of populations larger than a batch

A name is imported when it is first read: `import rdm` alone does not import torch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ hands out
    from rdm.comparing.pairs import distance
    from rdm.comparing.transport import transport
    from rdm.generators.protocol import Generator
    from rdm.judging.streaming import Streaming
    from rdm.matching.balance import Balance, Gated, GradientNorm, SelfNormalized, Uniform
    from rdm.matching.memory import EMA, Memory, NoMemory, Queue
    from rdm.matching.metric import Measure, Metric
    from rdm.matching.objective import Objective
    from rdm.matching.representation import Battery, Representation
    from rdm.population.loss import Loss
    from rdm.population.population import Population
    from rdm.references.file import Reference
    from rdm.registry import Registry, names
    from rdm.scaling.modules import recompute

    balance = Registry[Balance]("balance").build
    battery = Registry[Battery]("battery").build
    dataset = Registry[Any]("dataset").build  # Dataset, or Stored where it is read from disk
    generator = Registry[Generator]("generator").build
    memory = Registry[Memory]("memory").build
    metric = Registry[Measure]("metric").build
    objective = Registry[Objective]("objective").build
    representation = Registry[Representation]("representation").build
    __version__: str

_HOMES = {
    "rdm.comparing.pairs": "distance",
    "rdm.comparing.transport": "transport",
    "rdm.generators.protocol": "Generator",
    "rdm.judging.streaming": "Streaming",
    "rdm.matching.balance": "Gated GradientNorm SelfNormalized Uniform",
    "rdm.matching.memory": "EMA NoMemory Queue",
    "rdm.matching.metric": "Metric",
    "rdm.matching.objective": "Objective",
    "rdm.matching.representation": "Battery Representation",
    "rdm.population.loss": "Loss",
    "rdm.population.population": "Population",
    "rdm.references.file": "Reference",
    "rdm.registry": "names",
    "rdm.scaling.modules": "recompute",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}
_BUILT_BY = {
    "balance": "balances",
    "battery": "batteries",
    "dataset": "datasets",
    "generator": "generators",
    "memory": "memories",
    "metric": "metrics",
    "objective": "objectives",
    "representation": "representations",
}

__all__ = [
    "EMA",
    "Battery",
    "Gated",
    "Generator",
    "GradientNorm",
    "Loss",
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
    "recompute",
    "representation",
    "transport",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _BUILT_BY:
        value = getattr(import_module("rdm.registry"), _BUILT_BY[name]).build
    elif name == "__version__":
        value = _version()
    elif not name.startswith("_") and find_spec(f"rdm.{name}"):
        return import_module(f"rdm.{name}")
    else:
        raise AttributeError(f"module 'rdm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rdm-torch")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"
