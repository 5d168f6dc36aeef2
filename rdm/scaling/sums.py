"""Sums of gradients over ranks: in buckets, on their way while the last backward pass still computes."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rdm.distributed import Summing, active, summed
from rdm.scaling.sharding import is_split, parts_of
from rdm.timing.regions import region

BUCKET = 25 * 2**20  # bytes; that of torch's DDP


@runtime_checkable
class Passes(Protocol):
    """What a loss enters for each of its backward passes through the model, saying whether it is its last."""

    def __call__(self, *, last: bool) -> AbstractContextManager[None]:
        """The block of one pass."""
        ...


def alone(*, last: bool) -> AbstractContextManager[None]:
    """`Passes` where nobody waits for gradients."""
    return nullcontext()


@dataclass
class _Bucket:
    """Parameters whose gradients travel together."""

    held: list[Tensor]
    missing: int = 0  # gradients that have not come
    absent: list[Tensor] = field(default_factory=list)  # those that had none on this rank
    sent: Summing | None = None

    @region("sums over ranks")
    def send(self) -> None:
        """Begin the sum; what is missing counts as zero."""
        self.absent = [p for p in self.held if p.grad is None]
        for p in self.absent:
            p.grad = torch.zeros_like(p)
        flat = [p.grad.reshape(-1) for p in self.held if p.grad is not None]
        self.sent = Summing(flat[0] if len(flat) == 1 else torch.cat(flat))

    @region("sums over ranks")
    def receive(self) -> None:
        """End the sum."""
        assert self.sent is not None
        parts = self.sent.wait().split([p.numel() for p in self.held])
        for p, part in zip(self.held, parts, strict=True):
            assert p.grad is not None
            p.grad.copy_(part.view_as(p.grad))
        self.sent = None


class GradientSums:
    """Gradients of a step summed over ranks: of sharded modules by FSDP, of the rest in flat buckets.

    A bucket is on its way as soon as its gradients and those of the buckets before it are complete in the last backward
    pass of the last loss, so that every rank sends them in one order; what is not sent then is sent at the step's end.
    Where a parameter has no gradient on any rank it has none afterwards. The same ranks give the same bits.

    Source of the buckets: Li et al. (2020), "PyTorch Distributed: Experiences on Accelerating Data Parallel Training".

    Args:
        model: whose parameters' gradients come.
        stepped: what holds them when they have come, in the order of the parameters that are trained; by default the
            parameters themselves.
        bucket: bytes in one collective; a larger gradient travels by itself.
    """

    def __init__(self, model: nn.Module, stepped: Sequence[Tensor] | None = None, bucket: int = BUCKET):
        self._parts = parts_of(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        pairs = list(zip(trained, trained if stepped is None else stepped, strict=True))
        whole: dict[Tensor, Tensor] = {holder: p for p, holder in pairs if active() and not is_split(p)}
        self._buckets = [_Bucket(held) for held in filled(list(whole)[::-1], bucket)]
        self._of = {whole[holder]: each for each in self._buckets for holder in each.held}
        self._hooks: list[RemovableHandle] = []
        self._used = False
        self._next, self.final = 0, False  # bucket to send; whether the loss that computes is the last one

    @contextmanager
    def step(self) -> Iterator[None]:
        """A block in which gradients of one step come; they are summed when it ends well."""
        if self._used:  # let go of what a step that was given up left gathered
            for part in self._parts:
                part.reset_iter_state()
        try:
            yield
            self._used = True
            self._send(len(self._buckets))
            for bucket in self._buckets:
                bucket.receive()
            self._forget_absent()
        finally:
            for hook in self._hooks:
                hook.remove()
            for bucket in self._buckets:  # a step may be given up while its sums are on their way
                bucket.sent, bucket.absent = None, []
            self._hooks, self._next, self.final = [], 0, False

    @contextmanager
    def passes(self, *, last: bool) -> Iterator[None]:
        """See `Passes`: sharded gradients are summed in the last pass of a loss, others in that of the last loss."""
        if not last:
            self._reduce(False)
            try:
                yield
            finally:
                self._reduce(True)
        elif self.final:
            for bucket in self._buckets:
                bucket.missing = len(bucket.held)
            self._hooks = [p.register_post_accumulate_grad_hook(self._came) for p in self._of]
            yield
            self._send(len(self._buckets))
        else:
            yield

    def _reduce(self, wanted: bool) -> None:
        for part in self._parts:
            part.set_requires_gradient_sync(wanted, recurse=False)

    def _came(self, parameter: Tensor) -> None:
        """A gradient is complete."""
        bucket = self._of[parameter]
        if bucket.sent is not None:
            raise RuntimeError(
                "a gradient came after the last backward pass of the last loss; give last=True only there"
            )
        bucket.missing -= 1
        ready = self._next
        while ready < len(self._buckets) and self._buckets[ready].missing == 0:
            ready += 1
        self._send(ready)

    def _send(self, stop: int) -> None:
        for bucket in self._buckets[self._next : stop]:
            bucket.send()
        self._next = max(self._next, stop)

    def _forget_absent(self) -> None:
        """No gradient where no rank had one, as on a single process: optimizers leave such parameters alone."""
        absent = {id(p) for bucket in self._buckets for p in bucket.absent}
        every = [p for bucket in self._buckets for p in bucket.held]
        if every:
            came = summed(torch.tensor([id(p) not in absent for p in every], dtype=torch.int32))
            for p, ranks in zip(every, came.tolist(), strict=True):
                if ranks == 0:
                    p.grad = None


def filled(tensors: Sequence[Tensor], size: int = BUCKET) -> list[list[Tensor]]:
    """Tensors in buckets of at most so many bytes, in their order, each bucket's of one kind."""
    buckets: list[list[Tensor]] = []
    for tensor in tensors:
        last = buckets[-1] if buckets else []
        one_kind = last and (last[0].dtype, last[0].device) == (tensor.dtype, tensor.device)
        if one_kind and sum(t.nbytes for t in last) + tensor.nbytes <= size:
            last.append(tensor)
        else:
            buckets.append([tensor])
    return buckets
