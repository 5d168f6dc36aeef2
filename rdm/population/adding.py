"""Gradients added to `.grad`, chunk by chunk, and whether anything comes of them: the first steps are watched.

What goes wrong in other people's trainers goes wrong silently and from the first step on: gradients that are cleared
before the optimizer sees them, reduced over ranks before they are whole, or never. `Population.loss` has none of this.
"""

import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rdm.distributed import active, inside_averaging
from rdm.errors import InputError
from rdm.population.handing import check_equal_on_ranks, reached

Passes = Callable[..., AbstractContextManager[None]]  # see `rdm.scaling.sums.Passes`
WATCHED = 3  # steps
LEAST_SCALE = 4096  # of losses, which begin at 65,536; means over accumulated steps divide by less
REMEDY = "take rdm.Population.loss(...).backward(), which is exact in any trainer"


class Watch:
    """The first steps of a population whose gradients somebody else uses."""

    def __init__(self) -> None:
        self._left, self._still = WATCHED, 0
        self._before: list[tuple[weakref.ref[Tensor], int]] = []
        self._unscaled: Any = None  # the handle of what looks at the optimizer's next step

    def __reduce__(self) -> tuple[type["Watch"], tuple[()]]:
        return Watch, ()

    def begin(self) -> None:
        """Before a step, look at what has become of the one before.

        Raises:
            InputError: parameters that differ between ranks; inside the forward pass of DistributedDataParallel.
        """
        if inside_averaging():
            raise InputError(f"Population.backward inside DistributedDataParallel leaves ranks apart; {REMEDY}")
        held = [(ref(), version) for ref, version in self._before]
        parameters = [p for p, _ in held if p is not None]
        if not parameters or len(parameters) < len(held):
            return
        check_equal_on_ranks(parameters, values=True)
        self._still += all(p is not None and p.grad is None and p._version == version for p, version in held)
        if self._still == WATCHED - 1:
            warnings.warn(
                f"gradients were cleared and no parameter has changed in {WATCHED - 1} steps of Population.backward; "
                f"where a trainer calls zero_grad() after it, as Lightning's automatic optimization does, {REMEDY}",
                stacklevel=3,
            )

    def note(self, parameters: Sequence[Tensor]) -> None:
        """Before a step's first gradient: where it goes."""
        self._left -= 1
        self._before = [(weakref.ref(p), p._version) for p in parameters]

    def leave(self) -> None:
        """After a step's last gradient: look at it again when an optimizer steps."""
        self.forget()
        held = [p for p in (ref() for ref, _ in self._before) if p is not None and p.grad is not None]
        if held:
            smallest = min(held, key=Tensor.numel)
            look = partial(_refuse_unscaled, weakref.ref(smallest), smallest.grad.detach().clone())  # type: ignore[union-attr]
            self._unscaled = register_optimizer_step_pre_hook(look)

    def forget(self) -> None:
        """Look at no more steps of optimizers."""
        if self._unscaled is not None:
            self._unscaled.remove()
            self._unscaled = None

    @property
    def on(self) -> bool:
        """Whether these are the first steps."""
        return self._left > 0


class Added:
    """A `Hand` that adds to `.grad`, scaled; without a trainer that enters `passes` the first steps are watched."""

    def __init__(self, passes: Passes | None, watch: Watch, scale: float):
        self._passes, self._watch, self._scale = passes, watch, scale
        self._first = self._watched = passes is None and watch.on
        if self._first:
            watch.begin()
        else:
            watch.forget()

    def __call__(self, items: Tensor, pull: Tensor, *, last: bool) -> None:
        """Add the gradient of one chunk, given that in its items.

        Raises:
            InputError: see `Watch`; something averages the gradient over ranks before it is whole.
        """
        look = nullcontext()
        if self._first:
            parameters, self._first = reached(items, strict=False), False
            self._watch.note(parameters)
            look = _as_it_came(min(parameters, key=Tensor.numel)) if active() else look
        with look, nullcontext() if self._passes is None else self._passes(last=last):
            items.backward((self._scale * pull).to(items.dtype))
        if last and self._watched:
            self._watch.leave()


class AddedLoss(Tensor):
    """A loss whose gradient has been added already: any tensor, but that trainers which want to take one are told."""

    @classmethod
    def of(cls, loss: Tensor) -> Tensor:
        """This loss; one of another subclass keeps its own kind, whose words are its own."""
        return loss.as_subclass(cls) if type(loss) is Tensor else loss

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """What the function makes of a plain tensor; multiples and sums, as loss scales make them, stay of this kind.

        Raises:
            InputError: backward() is called, and nothing with a gradient was added.
        """
        plain = [each.as_subclass(Tensor) if isinstance(each, cls) else each for each in args]
        if func is Tensor.backward and not plain[0].requires_grad:
            raise InputError(f"Population.backward has added the gradient of its loss already; {REMEDY}, in its place")
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*plain, **(kwargs or {}))
        linear = func.__name__.strip("_") in ("mul", "rmul", "div", "truediv", "add", "radd", "sum", "mean")
        return cls.of(found) if linear else found


def _refuse_unscaled(ref: weakref.ref[Tensor], left: Tensor, optimizer: Optimizer, *_: Any) -> None:
    """Refuse that a gradient comes to the optimizer divided by a loss scale, which it never had.

    Raises:
        InputError: it is a power of two smaller, and nothing else.
    """
    parameter = ref()
    own = any(p is parameter for group in optimizer.param_groups for p in group["params"])
    if not own or parameter is None or parameter.grad is None or parameter.grad.shape != left.shape:
        return
    factor = float(left.abs().max() / parameter.grad.abs().max())
    if math.isfinite(factor) and factor >= LEAST_SCALE and math.frexp(factor)[0] == 0.5:
        if torch.allclose(parameter.grad * factor, left, 1e-6, 0):
            raise InputError(
                f"the gradient of Population.backward came to the optimizer divided by {factor:.0f}, a loss scale that "
                f"it never had; {REMEDY}, or give scale=scaler.get_scale()"
            )


@contextmanager
def _as_it_came(parameter: Tensor) -> Iterator[None]:
    """Refuse that a gradient is changed as soon as it has come.

    Raises:
        InputError: it is.
    """
    seen: list[Tensor] = []
    hook = parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))  # type: ignore[union-attr]
    try:
        yield
    finally:
        hook.remove()
    if seen and parameter.grad is not None and not torch.allclose(seen[0], parameter.grad, 0, 0, equal_nan=True):
        raise InputError(
            "a gradient of Population.backward is averaged over ranks before it is whole, by DistributedDataParallel "
            f"or its like; {REMEDY}"
        )
