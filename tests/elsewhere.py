"""A device that is none: values lie on the CPU, and what an accelerator would refuse or wait for is noticed.

torch's own fake tensors of a "cuda" device end the process in a backward pass where torch was built without CUDA, and
have no values. Here torch's hooks for a device written in Python are taken: tensors of the device "far" hold values, so
that whatever is run takes the branches that it takes elsewhere. Refused are operations on tensors of both devices, as
CUDA refuses them. Counted is what makes the CPU wait for the device: numbers that are read, shapes that depend on
values, and copies in either direction that are not asked for as `non_blocking`. What a linear-algebra routine reads
inside itself is not seen.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

FAR = "far:0"
SEEDS = set[int]()  # of sources of randomness of the device
SHAPED = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal", "is_nonzero"}
KERNELS = (
    "empty_strided.default",
    "empty.memory_format",
    "_to_copy.default",
    "copy_.default",
    "_copy_from.default",
    "detach.default",
)


class Far(Tensor):
    """A tensor of the device, around its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls, values: Tensor) -> "Far":
        size = values.untyped_storage().nbytes()
        far = torch.Tensor._make_wrapper_subclass(  # pyright: ignore
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device=torch.device(FAR),
            storage_offset=values.storage_offset(), storage_size=size,
        )  # fmt: skip
        far.held = values
        return far

    def __repr__(self, **options: Any) -> str:
        return f"far {self.held!r}"

    def tolist(self) -> Any:
        """The numbers, which are waited for."""
        assert Device.current is not None
        Device.current.note("tolist")
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as of any device."""
        raise TypeError("can't convert far:0 device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


class Source(torch.Generator):
    """A source of randomness of the CPU, or of the device, which draws the same."""

    place: torch.device

    def __new__(cls, device: Any = "cpu") -> "Source":
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu"):
        super().__init__()

    def manual_seed(self, seed: int) -> "Source":
        """Begin anew; by the seed a kernel sees whose it is."""
        if self.place.type != "cpu":
            SEEDS.add(seed)
        super().manual_seed(seed)
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it draws."""
        return self.place


class Device(TorchDispatchMode):
    """A block in which there is the device; `waits` says where the CPU waited for it."""

    current: "Device | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        Device.current = self

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})

    def note(self, what: str) -> None:
        """A wait, and the lines of this project that led to it."""
        frames = [f for f in traceback.extract_stack() if "/site-packages/" not in f.filename]
        own = [f for f in frames if not f.filename.endswith("elsewhere.py")][-2:]
        where = " < ".join(f"{'/'.join(f.filename.split('/')[-3:])}:{f.lineno}" for f in own[::-1])
        self.waits.append(f"{what} at {where}")


def run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation where its tensors are."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    far = [t for t in given if isinstance(t, Far)]
    name, asked = op._schema.name.removeprefix("aten::"), kwargs.get("device")
    there = bool(far) if asked is None else torch.device(asked).type == "far"
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    _check(op, name, given, far, there, args, kwargs)
    plain = lambda t: t.held if isinstance(t, Far) else t  # noqa: E731
    found = op(*tree_map(plain, args), **tree_map(plain, kwargs))
    if name in ("copy_", "_copy_from"):
        return args[0 if name == "copy_" else 1]
    if not there:
        return found
    found = tree_map(lambda t: Far(t) if isinstance(t, Tensor) else t, found)
    return return_and_correct_aliasing(op, args, kwargs, found) if far else found


def _check(op: Any, name: str, given: list, far: list, there: bool, args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse tensors of both devices; count what waits."""
    here = [t for t in given if not isinstance(t, Far)]
    device = Device.current
    assert device is not None
    if name in ("copy_", "_copy_from", "_to_copy"):
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], args[1] if name == "_copy_from" else None)
        crosses = isinstance(source, Far) != (there if target is None else isinstance(target, Far))
        blocks = not (kwargs.get("non_blocking") or (name != "_to_copy" and len(args) > 2 and args[2]))
        if crosses and (blocks or isinstance(source, Far)):
            device.note(f"{name} {'from' if isinstance(source, Far) else 'to'} the device of {tuple(source.shape)}")
        return
    if not far:
        source = kwargs.get("generator")
        if there and source is not None and source.initial_seed() not in SEEDS:
            raise RuntimeError("Expected a generator of the device; found one of the CPU")
        return
    if name in ("index.Tensor", "index_put_") or name.startswith("index"):
        if any(isinstance(t, Far) and t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1:2])):
            device.note(f"{name} by a mask")
        if any(not isinstance(t, Far) for t in tree_leaves(args[1:2]) if isinstance(t, Tensor)):
            device.note(f"{name} by an index of the CPU")
            return
    if any(t.ndim > 0 for t in here):
        shapes = [(tuple(t.shape), "far" if isinstance(t, Far) else "cpu") for t in given]
        raise RuntimeError(f"Expected all tensors to be on the same device; {name} got {shapes}")
    if name == "_local_scalar_dense" or name in SHAPED or (name == "repeat_interleave" and "output_size" not in kwargs):
        device.note(name)


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@contextmanager
def elsewhere() -> Iterator[Device]:
    """A block in which there is the device `FAR`. For a process of its own: the device stays."""
    _setup_privateuseone_for_python_backend("far", backend_module=_Backend())
    library = torch.library.Library("aten", "IMPL")
    for kernel in KERNELS:
        op = getattr(getattr(torch.ops.aten, kernel.split(".")[0]), kernel.split(".")[1])
        library.impl(kernel.removesuffix(".default"), lambda *a, op=op, **k: run(op, a, k), "PrivateUse1")
    torch.Generator = Source  # type: ignore[misc]
    with Device() as device:
        yield device
