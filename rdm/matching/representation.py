"""Representations (frozen encoders) and batteries of them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rdm.data.condition import Condition, check_condition, rows_of
from rdm.data.inputs import ANYTHING, Inputs
from rdm.errors import InputError
from rdm.files.store import digest
from rdm.matching.autocast import own_types
from rdm.numbers import Count, Range, check, validated
from rdm.registry import batteries, by_name, nearest, representations

Fit = Callable[..., nn.Module]
Precision = Literal["float32", "bfloat16", "float16", "float64"]
Weight = Annotated[float, Range(least=0, below=float("inf"))]


@dataclass(frozen=True)
class Representation:
    """A frozen encoder: items "n ..." (images "n c h w" in [0, 1]) -> features "n d".

    It is no `nn.Module`, so that no `train()` or `parameters()` of a trainer reaches the encoder: it stays in
    evaluation mode and takes no gradient step, while the gradient of its input flows. The module owns its
    preprocessing and must be differentiable in its input.

    Args:
        name: how logs, tables and errors call it.
        module: the encoder; None where `fit` makes it from reference items.
        settings: hyperparameters that, with the weights, identify the features (JSON values).
        fit: makes the module from reference items, for encoders that are estimated (PCA).
        conditional: the module and `fit` take (items, condition), for features joined with a condition's embedding.
        inputs: the items that the module takes.
        micro_batch: items in one forward pass of the encoder; None for all. With a gradient, each micro-batch is
            computed again in the backward pass, so that the activations of one are held at a time.
        precision: the arithmetic of the encoder; features come in float32 or better. Fewer bits are by autocast;
            "float64" takes a copy of a module that is not in it, and its features are in float64.
        clamp: move items into the range of `inputs` before encoding, as iRDM trains; FD-loss trains without.
        compile: run the encoder through `torch.compile`; a text names another backend of it than "inductor".
    """

    name: str
    module: nn.Module | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: Fit | None = None
    conditional: bool = False
    inputs: Inputs = ANYTHING
    micro_batch: int | None = None
    precision: Precision = "float32"
    clamp: bool = False
    compile: bool | str = False

    def __post_init__(self) -> None:  # noqa: D105
        owner = f"representation {self.name!r}"
        check(f"{owner}: module", self.module, nn.Module | None)
        check(f"{owner}: micro_batch", self.micro_batch, Count | None)
        check(f"{owner}: precision", self.precision, Precision)
        if self.module is not None:
            if self.precision == "float64" and not _in_float64(self.module):
                object.__setattr__(self, "module", copy.deepcopy(self.module).double())
            self.module.eval().requires_grad_(False)

    def __repr__(self) -> str:
        """One line: how many features, once items were encoded, of what; how many parameters, and their hash."""
        width = f"{vars(self)['_width']} " if "_width" in vars(self) else ""
        return f"{self.name}: {width}features of {self.inputs}; {self._weights()}"

    def _weights(self) -> str:
        if self.module is None:
            return "estimated on the reference"
        held = self.module.state_dict().values()
        if not held or any(type(each) is not Tensor or each.is_meta for each in held):
            return "weights not read" if held else "no weights"
        count, file = sum(p.numel() for p in self.module.parameters()), self.settings.get("weights_sha256")
        known = f"file {file[:12]}" if isinstance(file, str) else f"fingerprint {self.fingerprint[:12]}"
        return f"{count:,} parameters, {known}" if count else known

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled module, which is made again where it is needed."""
        return {key: value for key, value in vars(self).items() if key != "_compiled"}

    @own_types()
    def fitted(self, items: Tensor, condition: Condition | None = None) -> "Representation":
        """This representation with its module estimated on `items` (and their condition), where it needs that."""
        if self.module is not None or self.fit is None:
            return self
        self.check(items, condition)
        return replace(self, module=self.fit(items, condition) if self.conditional else self.fit(items))

    def to(self, device: torch.device | str) -> "Representation":
        """Move the encoder to a device."""
        if self.module is not None:
            self.module.to(device)
        return self

    def check(self, items: Tensor, condition: Condition | None = None) -> None:
        """Refuse real or evaluated items that the encoder cannot judge: shape, type, values (see `rdm.data.inputs`).

        Where there is a condition, one that is not one row an item.
        """
        self.inputs.check_values(items, f"representation {self.name!r}")
        check_condition(condition, len(items), f"representation {self.name!r}")

    def slices(self, n: int) -> list[slice]:
        """The micro-batches of n items."""
        size = self.micro_batch or n
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    def __call__(self, items: Tensor, condition: Condition | None = None) -> Tensor:
        """Encode items to features "n d"."""
        self.inputs.check(items, f"representation {self.name!r}")
        check_condition(condition, len(items), f"representation {self.name!r}")
        pieces = self.slices(len(items))
        if len(pieces) == 1:
            return self._encode(items, condition)
        conditions = [rows_of(condition, rows) for rows in pieces]
        if not (torch.is_grad_enabled() and items.requires_grad):
            return torch.cat([self._encode(items[rows], c) for rows, c in zip(pieces, conditions, strict=True)])
        encoded = (
            checkpoint(self._encode, items[rows], c, use_reentrant=False)
            for rows, c in zip(pieces, conditions, strict=True)
        )
        return torch.cat([features for features in encoded if features is not None])

    def _encode(self, items: Tensor, condition: Condition | None) -> Tensor:
        """One forward pass."""
        run = self._compiled
        if self.module is not None and self.module.training:  # a trainer holds the module itself
            self.module.eval()
        items = self.inputs.clamp(items) if self.clamp else items
        low = self.precision in ("bfloat16", "float16")
        if self.precision == "float64" and items.is_floating_point():
            items = items.double()
        with torch.autocast(items.device.type, getattr(torch, self.precision) if low else None, enabled=low):
            features = run(items, condition) if self.conditional else run(items)
        if features.ndim != 2 or len(features) != len(items):
            raise InputError(
                f"representation {self.name!r} must give one row an item, shape ({len(items)}, d); "
                f"got {tuple(features.shape)}"
            )
        if not torch.compiler.is_compiling():
            vars(self)["_width"] = features.shape[1]
        return features.to(torch.promote_types(features.dtype, torch.float32))

    @cached_property
    def _compiled(self) -> Callable[..., Tensor]:
        if self.module is None:
            raise InputError(
                f"representation {self.name!r} is estimated on data; call .fitted(reference items) before encoding"
            )
        if not self.compile:
            return self.module
        return torch.compile(self.module, backend="inductor" if self.compile is True else self.compile)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over name, settings, precision, architecture and weights: equal fingerprints, equal features."""
        if self.module is None:
            raise InputError(f"representation {self.name!r} is estimated on data and has no fingerprint before")
        description = {"name": self.name, "settings": dict(self.settings), "module": repr(self.module)}
        if self.precision != "float32":
            description["precision"] = self.precision
        return digest(self.module.state_dict(), description)


@dataclass(frozen=True)
class Battery:
    """Representations to train on, each with the weight of its term, and others held out for evaluation only.

    Weights are a list in the members' order, or a mapping that names each.
    """

    members: Sequence[Representation]
    held_out: Sequence[Representation] = ()
    weights: Sequence[float] | Mapping[str, float] | None = None

    def __post_init__(self) -> None:  # noqa: D105
        for side in ("members", "held_out"):
            given = getattr(self, side)
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise InputError(f"{side} of a battery must be a list of representations; got {type(given).__name__}")
            for each in given:
                check(f"each of the {side} of a battery", each, Representation)
        names = [r.name for r in (*self.members, *self.held_out)]
        if not self.members:
            raise InputError("a battery needs at least one representation; got none")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"names in a battery must differ; {repeated} occur more than once")
        named = isinstance(self.weights, Mapping)
        if self.weights is not None and not named and len(self.weights) != len(self.members):
            raise InputError(f"expected {len(self.members)} weights, one a member; got {len(self.weights)}")
        for weight in self.member_weights:
            check("weights of a battery", weight, Weight)

    def __repr__(self) -> str:
        """A line a member."""
        weights = [f", weight {w:g}" if self.weights is not None else "" for w in self.member_weights]
        lines = [f"{member}{weight}" for member, weight in zip(self.members, weights, strict=True)]
        return "\n  ".join(["Battery of", *lines, *(f"held out {member}" for member in self.held_out)])

    def running(self, **options: Any) -> "Battery":
        """The battery with how its encoders run: micro_batch, precision, clamp, compile (see `Representation`).

        A mapping gives an option by the encoder's name: running(precision={"mae": "bfloat16"}).
        """

        def changed(each: Representation) -> Representation:
            chosen = {
                option: value.get(each.name, getattr(each, option)) if isinstance(value, Mapping) else value
                for option, value in options.items()
            }
            return replace(each, **chosen)

        known = {r.name for r in (*self.members, *self.held_out)}
        for option, value in options.items():
            if isinstance(value, Mapping) and (strange := sorted(set(value) - known)):
                raise InputError(
                    f"{option} of a battery: no member is called {strange[0]!r}{nearest(strange[0], known)}"
                )
        return replace(self, members=tuple(map(changed, self.members)), held_out=tuple(map(changed, self.held_out)))

    def training_on(self, *names: str, held_out: bool = False) -> "Battery":
        """The battery with only these members to train on; the others are held out.

        `held_out=True` is the explicit word that a member which the battery holds out may be trained on: it is no
        judge any more then.

        Raises:
            InputError: no such member, or a held-out one without the word.
        """
        every = {r.name: r for r in (*self.members, *self.held_out)}
        for name in names:
            if name not in every:
                raise InputError(f"no member of the battery is called {name!r}{nearest(name, every)}")
            if name in {r.name for r in self.held_out} and not held_out:
                raise InputError(
                    f"{name!r} is held out to judge what the battery trains; to train on it nevertheless, "
                    "say held_out=True"
                )
        weights = dict(zip((r.name for r in self.members), self.member_weights, strict=True))
        return Battery(
            tuple(every[name] for name in names),
            tuple(r for name, r in every.items() if name not in names),
            None if self.weights is None else tuple(weights.get(name, 1.0) for name in names),
        )

    def fitted(self, items: Tensor, condition: Condition | None = None) -> "Battery":
        """The battery with every member estimated on `items` (and their condition) that needs it."""
        return replace(
            self,
            members=tuple(r.fitted(items, condition) for r in self.members),
            held_out=tuple(r.fitted(items, condition) for r in self.held_out),
        )

    def to(self, device: torch.device | str) -> "Battery":
        """Move every encoder to a device; tensors that encoders share, such as a table of conditions, stay shared."""
        moved: dict[Any, tuple[Tensor, Tensor]] = {}

        def move(tensor: Tensor) -> Tensor:
            place = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
            if place not in moved:
                moved[place] = tensor, tensor.to(device)  # the first is kept, so that nothing else comes to lie there
            return moved[place][1]

        for representation in (*self.members, *self.held_out):
            if representation.module is not None:
                representation.module._apply(move)
        return self

    @property
    def member_weights(self) -> tuple[float, ...]:
        """One weight a member, ones by default."""
        if isinstance(self.weights, Mapping):
            return tuple(by_name("weights", self.weights, [r.name for r in self.members]).values())
        return tuple(self.weights) if self.weights is not None else (1.0,) * len(self.members)


def _in_float64(module: nn.Module) -> bool:
    held = (*module.parameters(), *module.buffers())
    return all(each.dtype == torch.float64 for each in held if each.is_floating_point())


def as_representation(given: Any) -> Representation:
    """A representation as it is, a registered name, or a module, which is called by its class's name.

    Raises:
        InputError: anything else.
    """
    if isinstance(given, nn.Module):
        return Representation(type(given).__name__, given)
    return representations.take(given, Representation)


def as_battery(given: Any) -> Battery:
    """A battery as it is, its registered name, or one or a list of what `as_representation` takes."""
    if isinstance(given, Battery):
        return given
    if isinstance(given, str) and given in batteries:
        return batteries.build(given)
    return Battery(tuple(map(as_representation, given if isinstance(given, list | tuple) else (given,))))


@validated
def assemble(
    members: Sequence[Representation],
    held_out: Sequence[Representation] = (),
    weights: Sequence[float] | Mapping[str, float] | None = None,
    micro_batch: Count | Mapping[str, Count] | None = None,
    precision: Precision | Mapping[str, Precision] = "float32",
    clamp: bool = False,
    compile: bool | str = False,
) -> Battery:
    """A battery with how its encoders run, for configurations (see `Battery` and `Battery.running`)."""
    options = {"precision": precision, "clamp": clamp, "compile": compile}
    if micro_batch is not None:
        options["micro_batch"] = micro_batch
    return Battery(members, held_out, weights).running(**options)
