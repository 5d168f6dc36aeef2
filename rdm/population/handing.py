"""A population's loss as a number of autograd's, whose backward pass hands the gradient out times the incoming one.

The parameters are inputs of the number. Whatever a trainer does with a loss therefore works: it is scaled, added to
others and averaged over micro-batches, and each parameter's hooks (those of DistributedDataParallel among them) run
once, on the whole gradient. Inside, the gradient of a chunk is taken without touching any `.grad`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rdm.data.condition import Condition, leaves
from rdm.distributed import active, gather, is_shard
from rdm.errors import InputError
from rdm.population.replay import graph

SHARDS = "sharded parameters (FSDP); `rdm train` takes them"
HIDING = {  # nodes behind which parameters cannot be seen
    "CheckpointFunction": "a checkpoint with use_reentrant=True; give use_reentrant=False",
    "RegisterPostBackwardFunction": SHARDS,
}


def reached(items: Tensor, *, strict: bool = True) -> list[Tensor]:
    """The tensors that the items' gradient reaches, parameters most often, in the order of the graph.

    Raises:
        InputError: there are some that the graph does not show, or shards that are whole for a moment, if `strict`.
    """
    if items.grad_fn is None:
        return [items]
    found = []
    for node in graph(items):
        for kind, what in HIDING.items():
            if strict and node.name().startswith(kind):
                raise InputError(f"the gradient of generate() cannot be followed through {what}")
        if node.name().endswith("AccumulateGrad"):
            found.append(node.variable)
    if strict and any(is_shard(each) for each in found):
        raise InputError(f"the gradient of generate() cannot be followed through {SHARDS}")
    return found


def check_given(noise: Tensor, condition: Condition | None) -> None:
    """Refuse noise or a condition with a gradient, which would end in one rank's rows or in another's graph.

    Raises:
        InputError: so it is.
    """
    for name, part in [("noise", noise), *((f"condition{where}", part) for where, part in leaves(condition))]:
        if part.requires_grad:
            raise InputError(
                f"{name} must not require a gradient; compute it inside generate, as in "
                "loss(lambda x: decoder(encoder(x)), pictures), or detach it"
            )


def check_equal_on_ranks(parameters: Sequence[Tensor], *, values: bool) -> None:
    """Refuse ranks that do not train the same parameters, whose sums would wait for each other; or `values` apart.

    Raises:
        InputError: so it is, on every rank.
    """
    if not active():
        return
    counts = torch.tensor([len(parameters), sum(each.numel() for each in parameters)])
    found = [each.tolist() for each in gather(counts)]
    if any(each != found[0] for each in found):
        raise InputError(
            f"generate() must reach the same parameters on every rank; it reaches {[n for n, _ in found]} tensors of "
            f"{[size for _, size in found]} numbers"
        )
    if values:
        squares = sum(each.detach().double().square().sum() for each in parameters)
        sizes = torch.stack(gather(torch.as_tensor(squares)))
        if not torch.allclose(sizes, sizes[:1], 1e-10, 0, equal_nan=True):
            raise InputError(
                f"parameters differ between ranks, their squares sum to {sizes.tolist()}; begin with equal ones; "
                "take Population.loss, or rdm.distributed.sum_gradients after Population.backward"
            )


class Sums:
    """Gradients of parameters, summed over chunks, times a factor."""

    def __init__(self, parameters: Sequence[Tensor], factor: Tensor):
        self.parameters, self.factor = parameters, factor
        self.gradients = list[Tensor]()

    def __call__(self, items: Tensor, pull: Tensor, *, last: bool) -> None:
        """Take the gradient of one chunk, given that in its items; the factor comes first, as loss scales are meant.

        Raises:
            InputError: it reaches a parameter that the first chunk did not.
        """
        known = {id(each) for each in self.parameters}
        if any(id(each) not in known for each in reached(items)):
            raise InputError(
                "generate() reaches other parameters in this chunk than in the first; let every chunk reach all "
                "(adding 0 times their sum), or give chunk=None"
            )
        cotangent = (pull * self.factor.to(pull)).to(items.dtype)
        with _without_hooks(self.parameters):
            found = torch.autograd.grad(items, self.parameters, cotangent, allow_unused=True)
        pairs = zip(self.parameters, found, strict=True)
        found = [torch.zeros_like(p) if each is None else each for p, each in pairs]
        self.gradients = [a + b for a, b in zip(self.gradients, found, strict=True)] if self.gradients else found


class Handed(torch.autograd.Function):
    """A value whose backward pass calls back(parameters, incoming) for the parameters' gradients, once."""

    @staticmethod
    def forward(ctx: Any, back: Callable[[Sequence[Tensor], Tensor], list[Tensor]], value: Tensor, *given: Tensor):  # noqa: ANN205
        """The value."""
        ctx.back = back
        ctx.save_for_backward(*given)  # so that torch tells when they were changed meanwhile
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients, all of them or an error."""
        given, back = ctx.saved_tensors, ctx.back
        ctx.back = None
        if back is None:
            raise InputError("the backward pass of a population's loss runs once; call loss() again for another")
        return None, None, *back(given, incoming)


@contextmanager
def _without_hooks(parameters: Sequence[Tensor]) -> Iterator[None]:
    """A block in which hooks on the gradients of parameters do not run; they run on what is handed out."""
    hooks = [each._backward_hooks for each in parameters]
    for each in parameters:
        each._backward_hooks = None
    try:
        yield
    finally:
        for each, its in zip(parameters, hooks, strict=True):
            each._backward_hooks = its
