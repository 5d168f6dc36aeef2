"""The only collectives: rank, merging summaries across ranks, summing gradients.

Every rank computes the same loss from the merged summary and back-propagates its own rows; parameter gradients are
then summed (never averaged), which gives the gradient of the whole population whatever the number of ranks.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from rdm.errors import InputError, NonFiniteError


@runtime_checkable
class Summary(Protocol):
    """What can be merged over ranks: `rdm.matching.statistic.Summary`."""

    reduction: ClassVar[str]

    @property
    def value(self) -> Tensor:
        """What the ranks' parts make together."""
        ...

    @property
    def weight(self) -> Tensor:
        """Their weights."""
        ...

    def __init__(self, value: Tensor, weight: Tensor) -> None: ...


S = TypeVar("S", bound=Summary)


class Board:
    """Texts that ranks leave for each other where torchrun lets them meet, without a collective and from any thread.

    Args:
        name: keeps them apart from those of others.
        seconds: after which an answer no longer comes.
    """

    def __init__(self, name: str, seconds: float):
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=seconds))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"rdm/{name}/{attempt}", store)

    def post(self, name: str, text: str) -> None:
        """Leave a text in place of the one before.

        Raises:
            RuntimeError: the place where the ranks meet does not answer, as of `read`.
        """
        self._store.set(name, text)

    def read(self, names: list[str]) -> list[str]:
        """The newest texts, waited for where there is none yet."""
        return [text.decode() for text in self._store.multi_get(names)]


def issued() -> int:
    """How many collectives this process has begun with the others, those of torch's own wrappers included."""
    group: Any = dist.distributed_c10d._get_default_group()
    return group._get_sequence_number_for_group()


def broken(error: BaseException) -> bool:
    """Whether an error is the connection to other ranks, rather than something of this one."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def active() -> bool:
    """Whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, 0 where there is one process."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if active() else 1


def merge_across_ranks(summary: S) -> S:
    """The summary of all ranks' rows, equal on every rank and differentiable in this rank's.

    The loss being the same on every rank, its cotangent is passed (`Sum`) or sliced (`Cat`) back without a reduction.
    """
    if not active():
        return summary
    combine = {"sum": _AllReduce, "cat": _AllGather}[summary.reduction].apply
    return type(summary)(combine(summary.value), combine(summary.weight))


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum every parameter's gradient over ranks, in place; a missing gradient counts as zero."""
    if not active():
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_over_ranks([parameter.grad for parameter in trained if parameter.grad is not None])


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Sum tensors over ranks, in place, the same ones on every rank."""
    if active():
        for tensor in tensors:
            dist.all_reduce(tensor)


def inside_averaging() -> bool:
    """Whether this is inside the forward pass of a module whose gradients are averaged over ranks."""
    return active() and getattr(torch.nn.parallel.DistributedDataParallel, "_active_ddp_module", None) is not None


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is one rank's rows of a larger one, or was put together from such for one forward pass."""
    module = sys.modules.get("torch.distributed.tensor")  # without which nothing is sharded
    freed = tensor.numel() > 0 and tensor.layout == torch.strided and tensor.untyped_storage().size() == 0
    return freed or (module is not None and isinstance(tensor, module.DTensor))


class Summing:
    """A contiguous tensor on its way to its sum over ranks, in place; every rank begins its sums in one order."""

    def __init__(self, tensor: Tensor):
        self._tensor = tensor
        self._work = dist.all_reduce(tensor, async_op=True) if active() else None

    def wait(self) -> Tensor:
        """The same tensor, summed."""
        if self._work is not None:
            self._work.wait()
        return self._tensor


def largest(*numbers: int) -> tuple[int, ...]:
    """The largest of every rank's, number by number."""
    if not active():
        return numbers
    found = torch.tensor(numbers, device=_device())
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(found.tolist())


def total(value: float | Tensor) -> Any:
    """Sum of a number over ranks; on a single one the number as it is, a tensor as well."""
    if not active():
        return value
    tensor = torch.tensor(float(value), dtype=torch.float64, device=_device())
    dist.all_reduce(tensor)
    return float(tensor)


def summed(tensor: Tensor) -> Tensor:
    """Sum of a tensor over ranks, equal on every rank."""
    if not active():
        return tensor
    whole = tensor.to(_device(), copy=True)
    dist.all_reduce(whole)
    return whole.to(tensor.device)


def gather(tensor: Tensor) -> list[Tensor]:
    """Every rank's tensor, all of one shape, in the order of ranks."""
    if not active():
        return [tensor]
    mine = tensor.to(_device())
    pieces = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, mine)
    return [piece.to(tensor.device) for piece in pieces]


def from_rank(source: int, tensor: Tensor) -> Tensor:
    """One rank's tensor, on every rank; the others give any of its shape and type."""
    if not active():
        return tensor
    whole = tensor.to(_device()).contiguous()
    dist.broadcast(whole, source)
    return whole.to(tensor.device)


def concatenated(tensor: Tensor) -> Tensor:
    """Every rank's rows end to end, which may be unequally many; equal on every rank."""
    return _AllGather.apply(tensor.to(_device())).to(tensor.device) if active() else tensor


def words(text: str) -> list[str]:
    """Every rank's text, in the order of ranks."""
    mine = torch.tensor(list(text.encode()), dtype=torch.uint8)
    lengths = [int(length) for length in gather(torch.tensor(len(mine)))]
    return [bytes(part.tolist()).decode() for part in concatenated(mine).split(lengths)]


@contextmanager
def together() -> Iterator[None]:
    """A block without collectives that fails on every rank if it fails on one, so that none waits for another.

    Raises:
        InputError, RuntimeError: on the ranks where it went well, with the number and words of the first that failed.
    """
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    agree(problem)


def agree(problem: Exception | None) -> None:
    """Raise what this rank found, or where it found nothing what another rank did, with its number.

    Raises:
        NonFiniteError, InputError, RuntimeError: of the kind of the first rank's problem.
    """
    if total(problem is not None) == 0:
        return
    kinds = {"nonfinite": NonFiniteError, "input": InputError, "failure": RuntimeError}
    mine = next((name for name, kind in kinds.items() if isinstance(problem, kind)), "failure")
    found = words("" if problem is None else f"{mine} {problem}")
    if problem is not None:
        raise problem
    number = next(k for k, each in enumerate(found) if each)
    kind, _, text = found[number].partition(" ")
    raise kinds[kind](f"rank {number}: {text}")


def barrier() -> None:
    """Wait for every rank."""
    if active():
        dist.barrier()


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        whole = tensor.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        return cotangents[0]


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        counts = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
        rows = [int(count) for count in counts]
        padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        pieces = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(pieces, padded)
        start = sum(rows[: dist.get_rank()])
        ctx.mine = slice(start, start + len(tensor))
        return torch.cat([piece[:n] for piece, n in zip(pieces, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        return cotangents[0][ctx.mine]


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
