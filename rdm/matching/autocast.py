"""Arithmetic in the tensors' own types, whatever `torch.autocast` the caller is in, and with all of their bits.

Distances are differences of large sums, and bfloat16 has three digits, TF32 no more. Autocast also reaches a backward
pass that runs inside it, so that a gradient is taken apart from it as well. And what a tensor that comes in may be.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from rdm.errors import InputError
from rdm.timing.reads import usual

DEVICES = "cpu", "cuda", "mps", "xpu"


@contextmanager
def own_types() -> Iterator[None]:
    """Run a block, or a function as a decorator, without autocast."""
    if not (casting := _casting()):
        yield
        return
    with ExitStack() as stack:
        for device in casting:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def products(*, tf32: bool) -> Iterator[None]:
    """Run a block, or a function as a decorator, with float32 products and convolutions in TF32 or in all their bits.

    Whatever was set before is set again afterwards.
    """
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def exact() -> Iterator[None]:
    """Run a block, or a function as a decorator, in its own types and with all of their bits."""
    with own_types(), products(tf32=False):
        yield


class Casting:
    """The autocast of where it was made, for a second pass that runs elsewhere, such as behind a loss."""

    def __init__(self) -> None:
        self._states = _states()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Run a block in it."""
        with ExitStack() as stack:
            for (device, enabled, dtype), now in zip(self._states, _states(), strict=True):
                if (device, enabled, dtype) != now:
                    stack.enter_context(torch.autocast(device, dtype, enabled))
            yield


def in_own_types(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs) without autocast and TF32, and its gradient too, wherever that is asked for.

    With either of them around, a gradient may be asked for once.

    >>> import torch
    >>> x = torch.full((1, 2), 1.001, requires_grad=True)
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     round(in_own_types(lambda rows: (rows @ rows.T).sum(), x).item(), 6)
    2.004002
    """
    if not _casting() and torch.get_float32_matmul_precision() == "highest":
        return function(*inputs)
    return _InOwnTypes.apply(function, *inputs)


def _casting() -> list[str]:
    return [device for device in DEVICES if torch.is_autocast_enabled(device)]


def _states() -> list[tuple[str, bool, torch.dtype]]:
    return [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in DEVICES]


class _InOwnTypes(torch.autograd.Function):
    """The graph is built on leaves of its own, so that its backward pass can be run by itself."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        asked = ctx.needs_input_grad[1:]
        with exact(), torch.set_grad_enabled(any(asked)):
            pairs = zip(inputs, asked, strict=True)
            leaves = [x.detach().requires_grad_(each) if isinstance(x, Tensor) else x for x, each in pairs]
            ctx.value = function(*leaves)
        ctx.leaves = [leaf for leaf, each in zip(leaves, asked, strict=True) if each]
        return ctx.value.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        options = {"retain_graph": True, "allow_unused": True}  # it goes with the outer graph
        with exact():
            found = iter(torch.autograd.grad(ctx.value, ctx.leaves, cotangents[0], **options))
        return tuple(next(found) if each else None for each in ctx.needs_input_grad)


def dense(tensor: Tensor, name: str) -> None:
    """Refuse a tensor that is nested, sparse or has no values."""
    if tensor.is_nested or tensor.is_meta or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else str(tensor.layout)
        raise InputError(f"{name} must be a dense tensor with values; got a {kind} one; make it dense")


def all_finite(features: Tensor) -> bool:
    """One pass and no temporary: extremes are NaN where anything is."""
    low, high = features.aminmax()
    return usual((low > -torch.inf) & (high < torch.inf))


def refuse_gradient(tensor: Any, name: str, remedy: str) -> None:
    """Refuse a tensor that requires a gradient which would be dropped, where gradients are asked for at all."""
    if torch.is_grad_enabled() and isinstance(tensor, Tensor) and tensor.requires_grad:
        raise InputError(f"{name} must not require grad, which would be dropped; {remedy}")
