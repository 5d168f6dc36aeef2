"""The plan of a run: what one rank holds, by part, and how long its steps take."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdm.data.dataset import Data
from rdm.distributed import active
from rdm.generators.protocol import Generator
from rdm.planning.sizes import Held, Sizes
from rdm.rehearsing.step import Does, Keeps
from rdm.scaling.arithmetic import Arithmetic
from rdm.scaling.averages import Averages, as_averages
from rdm.scaling.modules import recompute
from rdm.scaling.sharding import chosen, is_sharded, is_split, line, local, parts_of, share_out
from rdm.scaling.sums import GradientSums, filled
from rdm.scaling.weights import Held as Form
from rdm.scaling.weights import Weights
from rdm.surviving.joining import pretended
from rdm.training.loop import train
from rdm.training.loss import Loss, Setting, size_of

ANSWER = 8  # where a number is asked for: of rows that are enough, of a step that is not the first
KERNEL = 1e-5  # seconds, the least that one takes


class Region(NamedTuple):
    """A part of a step: how often it is done, the most it holds beside what is kept, and the work of once."""

    name: str
    times: int
    most: int  # bytes
    flops: int
    operations: int
    note: str = ""

    def seconds(self, rate: float) -> float:
        """Of all times, at so many flops a second."""
        return self.times * max(self.flops / rate, KERNEL * self.operations)


@dataclass
class Plan:
    """What a rank holds from step to step, the parts of a step, and the model's parameters and shapes."""

    kept: list[Keeps] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    gradients: int = 0  # bytes
    parameters: list[tuple[str, str, int]] = field(default_factory=list)  # place, class, how many
    shapes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def held(self) -> int:
        """Bytes from step to step, as far as they are known."""
        return sum(each.bytes or 0 for each in self.kept)

    @property
    def fullest(self) -> Region:
        """The part of a step that holds the most: gradients, activations and what distances take."""
        return max(self.regions, key=lambda region: region.most)

    @property
    def most(self) -> int:
        """Bytes at the fullest moment."""
        return self.held + self.fullest.most

    def flops(self) -> int:
        """Of a step."""
        return sum(region.times * region.flops for region in self.regions)

    def seconds(self, rate: float) -> float:
        """Of a step."""
        return sum(region.seconds(rate) for region in self.regions)


def planned(arguments: Mapping[str, Any], data: Data | None, sizes: Sizes, *, ranks: int, cuda: bool) -> Plan:
    """The plan of what `rdm.training.loop.train` is given, built in `sizes`, on one of so many ranks.

    Raises:
        InputError: as the losses' own preparation, as far as sizes show it.
    """
    arguments = {p.name: p.default for p in inspect.signature(train).parameters.values()} | dict(arguments)
    walk, shard, place = _Walk(ranks), arguments["shard"], torch.device("cpu")
    if data is not None and data.held:
        walk.plan.kept.append(Keeps("data", data.held, f"{data.name}, {len(data):,} items"))
    with pretended(ranks if shard else 1):
        row = line(place) if active() else None
        with sizes(ANSWER), walk.held:
            model, losses = recompute(arguments["model"].train(), arguments["checkpointing"]), arguments["losses"]
            walk.plan.parameters += _parts(model)
            split = chosen(model, shard)
            if row is not None:
                share_out(model, split, row, arguments["parameters"])
            weights = walk.weights(model, arguments["parameters"])
            walk.update(weights, arguments["optimizer"], foreach=cuda)
            walk.averages(Averages(as_averages(arguments["average"]), weights, size_of(losses)), cuda=cuda)
            setting = Setting(data, arguments["seed"], place, None, GradientSums(model, weights.stepped).passes)
            arithmetic = Arithmetic(place, arguments["precision"], arguments["parameters"], tf32=False)
            for loss in losses:
                with arithmetic():
                    walk.loss(loss, model, setting)
            walk.sums(weights)
    walk.held.forget()
    return walk.plan


class _Walk:
    """Walks through a step and notes what it holds."""

    def __init__(self, ranks: int) -> None:
        self.plan, self.held, self.ranks = Plan(), Held(), ranks
        self._kept = self._noted = 0  # bytes that were counted as kept; all at the last word

    def weights(self, model: nn.Module, held: Form) -> Weights:
        """Weights, and what the optimizer steps."""
        count = sum(p.numel() for p in model.parameters())
        found = Weights(model, held)
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
        split = f"; {len(parts_of(model))} modules shared out" if is_sharded(model) else ""
        self._keep(Keeps("weights", _bytes(_held(model)), f"{count:,} parameters in {', '.join(kinds)}{split}"))
        if isinstance(model, Generator) and (behind := model.behind):
            frozen = _bytes(t for each in behind for t in _held(each))
            self._keep(Keeps("decoder", frozen, "behind the generator, not trained"))
        self.plan.gradients = _bytes(found.stepped)
        return found

    def update(self, weights: Weights, optimizer: Any, *, foreach: bool) -> None:
        """An update of the weights."""
        self._stepper = stepper = optimizer(weights.groups)
        for group in stepper.param_groups:
            if foreach and group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = True  # what torch chooses on a GPU
        for parameter in weights.stepped:
            parameter.grad = torch.zeros_like(parameter)
        self._note()
        stepper.step()
        state = [t for held in stepper.state.values() for t in held.values() if isinstance(t, Tensor)]
        self._keep(Keeps("optimizer", _bytes(state), type(stepper).__name__))
        stepper.step()
        self._did(Does("update of the weights"))
        stepper.zero_grad(set_to_none=True)
        self._note()

    def averages(self, averages: Averages, *, cuda: bool) -> None:
        """Moving averages of the weights; of a run on another device, those on the CPU are none of its memory."""
        self._averages = averages
        for kind in averages.kinds:
            held = _bytes(averages.held[kind.called].values())
            if kind.on_cpu and cuda:
                self.plan.kept.append(Keeps(f"average {kind.called}", 0, f"{held / 1e9:.3g} GB in the CPU's memory"))
            else:
                self.plan.kept.append(Keeps(f"average {kind.called}", held))
        self._kept += self.held.now - self._noted
        self._note()

    def loss(self, loss: Loss, model: nn.Module, setting: Setting) -> None:
        """A loss's step, from no gradients on."""
        self._note()
        kept = self._kept
        for word in loss.rehearse(model, setting, self.ranks):
            if isinstance(word, Keeps):
                self._keep(word)
            elif word.times:
                self._did(word)
            else:
                self.plan.shapes += [(word.name, word.note)] if word.note else []
                self._note()
        self._kept = kept
        model.zero_grad(set_to_none=True)

    def sums(self, weights: Weights) -> None:
        """Gradients on their way to the other ranks, flat beside those that they are of."""
        if self.ranks > 1:
            whole = [p for p in weights.stepped if not is_split(p)][::-1]
            flat = sum(_bytes(bucket) for bucket in filled(whole) if len(bucket) > 1)
            self.plan.regions.append(Region("gradients, sent to other ranks", 1, self.plan.gradients + flat, 0, 0))

    def _keep(self, word: Keeps) -> None:
        """What was made since the last word is kept, and counted as the word says."""
        self.plan.kept.append(word)
        self._kept += self.held.now - self._noted
        self._note()

    def _did(self, word: Does) -> None:
        held, most = self.held, self.held.most - self._kept
        self.plan.regions.append(Region(word.name, word.times, most, held.flops, held.operations, word.note))
        self._note()

    def _note(self) -> None:
        self._noted = self.held.now
        self.held.since_now()


def _parts(model: nn.Module) -> Iterator[tuple[str, str, int]]:
    """The parts of a model, below those that are one part alone."""
    place, module = "", model
    while len(children := [c for c in module.named_children() if any(True for _ in c[1].parameters())]) == 1:
        place, module = f"{place}{children[0][0]}.", children[0][1]
    own = sum(p.numel() for p in module.parameters(recurse=False))
    for name, child in children:
        yield f"{place}{name}", type(child).__name__, sum(p.numel() for p in child.parameters())
    if own or not children:
        yield place.removesuffix(".") or "model", type(module).__name__, own


def _held(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(held: Iterable[Tensor]) -> int:
    """Of the distinct storages of some tensors."""
    storages = {id(storage): storage for each in held for storage in [local(each).untyped_storage()]}
    return sum(storage.nbytes() for storage in storages.values())
