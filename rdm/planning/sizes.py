"""Tensors of sizes without values: every operation is carried out on shapes and types alone, and what it holds counted.

Torch's own such tensors (`FakeTensorMode`, which lie on the meta device and say that they are elsewhere), so that
autocast, attention and the graph choose as on a device. What asks for a value gets an answer: the value where it
follows from a number that is written down, as a solver's times are; else "yes" to a question, such as whether all is
finite, and one number whatever the tensor.
"""

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from rdm.files.weights import without_weights
from rdm.scaling.sharding import is_split_type

ATEN = torch.ops.aten
VALUE = ATEN._local_scalar_dense.default
KNOWN = "_rdm_value"  # of a tensor without values: the one number that it would hold
SAME = ATEN.any.default, ATEN.all.default  # beside pointwise ones, calls that give one number of one number


class Sizes:
    """A place for tensors without values; those that are made in one block are at home in the next."""

    def __init__(self) -> None:
        self._mode = _Mode(allow_non_fake_inputs=True)

    @contextmanager
    def __call__(self, number: float = 0) -> Iterator[None]:
        """A block in which tensors have no values and networks no weights; `number` answers where one is asked for."""
        untried = patch.object(nn.init, "_no_grad_trunc_normal_", _as_it_is)  # it draws until no value is outside
        with without_weights(), warnings.catch_warnings(), untried, self._mode, _Answers(number):
            warnings.simplefilter("ignore")  # of values, which are none
            yield


class _Mode(FakeTensorMode):
    """One for all copies of its tensors, which hold it.

    A copy of torch's own would free its weak references to storages twice, which corrupts the heap.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Mode":
        return self


def _as_it_is(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


class _Answers(TorchDispatchMode):
    """Answers where a value is asked for."""

    def __init__(self, number: float):
        super().__init__()
        self.number = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not VALUE:
            return _followed(func, args, kwargs or {}, func(*args, **(kwargs or {})))
        if (known := getattr(args[0], KNOWN, None)) is not None:
            with _disable_current_modes():
                return known.item()
        dtype = args[0].dtype
        return True if dtype is torch.bool else float(self.number) if dtype.is_floating_point else int(self.number)


def _followed(func: Any, args: Any, kwargs: Any, found: Any) -> Any:
    """What a call gave, noted with its value where that is one number everywhere and follows from written ones."""
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    if func._schema.is_mutable:
        for each in given:
            setattr(each, KNOWN, None)
    elif func is ATEN.full.default:
        with _disable_current_modes():
            setattr(found, KNOWN, torch.tensor(args[1], dtype=found.dtype))
    elif given and (torch.Tag.pointwise in func.tags or func in SAME):
        values = [getattr(each, KNOWN, None) for each in given]
        if all(value is not None for value in values):
            with _disable_current_modes():
                known = func(*tree_map_only(Tensor, _value, args), **tree_map_only(Tensor, _value, kwargs))
            setattr(found, KNOWN, known)
    return found


def _value(tensor: Tensor) -> Tensor:
    return getattr(tensor, KNOWN)


class Held(TorchDispatchMode):
    """What the tensors hold that are made in a block, in bytes: now and at most; and the work that they take.

    Attributes:
        now, most: bytes of the storages that live, and their largest sum since `since_now`.
        flops: of products of matrices, convolutions and attention (a multiplication and an addition are two).
        operations: calls of kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.flops, self.operations = 0, 0
        self._known: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}  # what is counted of each that is known

    def since_now(self) -> None:
        """Begin anew to look for the most, and to count."""
        self.most, self.flops, self.operations = self.now, 0, 0

    def __enter__(self) -> "Held":
        """Follow; sharded modules let go of what they gathered by resizing its storage, which is no operation."""
        self._resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = self._resizing()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave storages as they were."""
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(is_split_type(kind) for kind in types):
            return NotImplemented  # it comes again with what this rank holds
        kwargs = kwargs or {}
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, Tensor):
                self._take(each.untyped_storage(), 0)  # what was made before is none of the block's
        found = func(*args, **kwargs)
        self.operations += 1
        self.flops += _work(func, args, kwargs, found)
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self._take(each.untyped_storage(), each.untyped_storage().nbytes())
        return found

    def forget(self) -> None:
        """Follow nothing any more."""
        self._known.clear()

    def _take(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)  # one object a storage for as long as that lives
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._drop(key))
        self._sizes[key] = 0
        self._add(key, size)

    def _add(self, key: int, size: int) -> None:
        self._sizes[key] += size
        self.now += size
        self.most = max(self.most, self.now)

    def _drop(self, key: int) -> None:
        if self._known.pop(key, None) is not None:
            self.now -= self._sizes.pop(key)

    def _resizing(self) -> Any:
        """The method of storages, which counts."""

        def resize(storage: torch.UntypedStorage, size: int) -> None:
            before = storage.nbytes()
            self._resize(storage, size)
            if id(storage) in self._known:
                self._add(id(storage), size - before)

        return resize


def _work(func: Any, args: Any, kwargs: Any, found: Any) -> int:
    """Floating-point operations of a call."""
    if func in _ATTENTION:
        return _attention(*args[_ATTENTION[func] :][:3]) * (5 if _ATTENTION[func] else 2) // 2
    count = flop_registry.get(getattr(func, "overloadpacket", None))
    return 0 if count is None else int(count(*args, **kwargs, out_val=found))


_ATTENTION = {  # on the CPU, which torch's counter leaves out: where the query is among the arguments
    ATEN._scaled_dot_product_flash_attention_for_cpu.default: 0,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default: 1,
}


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Two products of the queries with the keys' numbers."""
    *batch, rows, width = query.shape
    return 2 * torch.Size(batch).numel() * rows * key.shape[-2] * (width + value.shape[-1])
