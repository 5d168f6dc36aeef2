"""A distance as a module: bound to its reference once, with a memory, for any loop that autograd drives."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdm.distributed import active, merge_across_ranks, total
from rdm.errors import InputError
from rdm.files.schema import expect
from rdm.matching.autocast import exact, in_own_types, refuse_gradient
from rdm.matching.memory import Memory, NoMemory
from rdm.matching.objective import Follower, Objective
from rdm.matching.real import Gaussian, Real
from rdm.matching.statistic import Cat, Factor, checked
from rdm.population.remembered import Remembered, followed, moved
from rdm.references.file import Member, Reference
from rdm.registry import memories, objectives
from rdm.timing.reads import postponed, read, undone_by

PAST, SOLVED = "past.", "solved."


class Loss(nn.Module):
    """Distance of generated features from a reference, bound once: `loss(features, weights=None)` is a scalar.

    The same value and gradient as `rdm.distance`, which binds anew at each call and remembers nothing. Use this one in
    a loop; where the population is larger than one forward pass can hold, or under several encoders, `rdm.Population`.

    Args:
        name: the objective's registered name, with its hyperparameters as further arguments; or the objective.
        reference: rows "m d"; a `rdm.Reference` of one encoder (or one of its members, or its file: of `rdm reference`,
            or FD-loss' .npz of mu and sigma); or a `rdm.api.Gaussian` of moments alone.
        memory: what of earlier calls joins the features (`rdm.EMA`, `rdm.Queue`), or its registered name.
        reference_weights: of reference rows.
        tolerance: relative error of the gradient, for a call to be solved by what the call before left (see
            `rdm.Population`); `report` says its bound.

    In training mode each call is a step: the memory takes its features, detached. In eval() it is read and left as it
    is. The past is in `state_dict()` and is moved by `to()`; arithmetic stays in its own types under autocast and
    `half()`. `share` says what the memory left of the last call's gradient to its features.

    On several ranks each gives its own rows, and all get the distance of their union. Sum the parameters' gradients
    (`rdm.distributed.sum_gradients`); DistributedDataParallel takes their mean: multiply the loss by the number of
    ranks for it.

    Shapes:
        features: n d; weights: n; result ().
    Cost:
        That of the objective and of the memory. With `torch.compile` the module runs between compiled graphs.

    Raises:
        InputError: unknown name or hyperparameter; what the objective needs and the reference lacks; bad features.

    >>> import torch, rdm
    >>> loss = rdm.Loss("frechet", torch.tensor([[0.0], [2.0]]))
    >>> x = torch.tensor([[1.0], [3.0]], requires_grad=True)
    >>> loss(x).backward()
    >>> x.grad.flatten().tolist()
    [1.0, 1.0]
    """

    @exact()
    def __init__(
        self,
        name: str | Objective,
        reference: Tensor | Reference | Member | Gaussian | Path | str,
        *,
        memory: Memory | str | None = None,
        reference_weights: Tensor | None = None,
        tolerance: float | None = None,
        **hyperparameters: Any,
    ):
        super().__init__()
        chosen = objectives.take(name, Objective, **hyperparameters)
        real = _real(reference, reference_weights, chosen)
        statistic, target = chosen.bind(real)
        kept = NoMemory() if memory is None else memories.take(memory, Memory)
        follower = followed(chosen, kept, tolerance)
        self._held = Remembered(chosen, real.mean[None], statistic, target, kept, follower)
        self._share: Factor = 1.0
        self.report = dict[str, float]()

    @property
    def share(self) -> float:
        """What the memory left of the last call's gradient to its features."""
        return float(self._share)

    def forward(
        self, features: Tensor, weights: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The distance of the features and of the past; `generator` draws what a randomized objective needs."""
        if torch.compiler.is_compiling():  # what follows depends on the numbers: it runs between compiled graphs
            apart: Any = torch.compiler.disable(Loss._stepped)
            return apart(self, features, weights, generator)
        return self._stepped(features, weights, generator)

    def _stepped(self, features: Tensor, weights: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if weights is not None and not self._held.objective.traits.learned_weights:
            refuse_gradient(weights, "weights", f"detach them: {type(self._held.objective).__name__} learns no weights")
        if weights is not None and isinstance(self._held.solver, Follower):
            refuse_gradient(weights, "weights", "detach them: a population that is followed learns no weights")
        if not isinstance(features, Tensor) or features.device.type == "cpu" or active():
            return in_own_types(self._value, features, weights, generator)
        run = partial(in_own_types, self._value, features, weights, generator)
        return postponed(partial(self._again, run, generator), features.device)[0]

    def _again(self, run: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """A call whose numbers are read at its end, and that may be run a second time."""
        if generator is not None:
            undone_by(partial(generator.set_state, generator.get_state()))
        return run()

    def _value(self, features: Tensor, weights: Tensor | None, generator: torch.Generator | None) -> Tensor:
        rows, masses = checked(features, weights)
        held = self._held
        if not held.remembers:
            batch = merge_across_ranks(held.statistic.measure(rows, masses))
            return held.objective.distance(batch, held.target, generator=generator)
        batch = merge_across_ranks(held.live.measure(rows, masses))
        found = held.read(batch, int(total(len(rows))), generator)
        vars(self).update(_share=found.share, report=read(found.report))  # nothing that torch would look through
        if self.training:
            kept = merge_across_ranks(Cat(rows.detach(), masses.detach())) if held.memory.keeps_rows else None
            held.write(found.batch, kept, found.left)
        return found.value

    def extra_repr(self) -> str:
        """Objective and memory."""
        return f"{self._held.objective}, memory={self._held.memory}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Loss":
        """Follow the module to another device; numbers keep their types."""
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self._held.row.device)).device
        self._held = moved(self._held, device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        parts = {f"{PAST}{k}": part for k, part in enumerate(self._held.packed() or [])}
        parts |= {f"{SOLVED}{name}": part for name, part in (self._held.solved or {}).items()}
        destination.update({prefix + name: part for name, part in parts.items()})

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:  # type: ignore[override]
        mine = {key: value for key, value in state_dict.items() if key.startswith((prefix + PAST, prefix + SOLVED))}
        super()._load_from_state_dict({k: v for k, v in state_dict.items() if k not in mine}, prefix, *args)
        error_msgs: list[str] = args[-1]
        held, device = self._held, self._held.row.device
        copied = {key.removeprefix(prefix): value.detach().to(device, copy=True) for key, value in mine.items()}
        past = [value for key, value in sorted(copied.items()) if key.startswith(PAST)] or None
        solved = {key.removeprefix(SOLVED): v for key, v in copied.items() if key.startswith(SOLVED)} or None
        try:
            if past is not None:
                like = held.memory.held(held.row, held.statistic)
                expect(past, like, "the past of a rdm.Loss", "give that of its like")
            held.restore(past, solved)
        except InputError as error:
            error_msgs.append(str(error))


def _real(reference: Any, weights: Tensor | None, objective: Objective) -> Real:
    """The real side that a reference of any form gives."""
    if isinstance(reference, Tensor):
        refuse_gradient(reference, "reference", "detach it")
        return Real.of(reference, weights)
    if weights is not None:
        raise InputError("reference_weights go with reference rows; a measured reference has its own")
    if isinstance(reference, Gaussian):
        return Real(None, reference)
    if isinstance(reference, Member):
        return reference.real(representation=reference.name)
    if isinstance(reference, str | Path):
        return Reference.load(reference).real()
    if isinstance(reference, Reference):
        return reference.real()
    raise InputError(f"reference must be rows, a Reference, its file or a Gaussian; got {type(reference).__name__}")
