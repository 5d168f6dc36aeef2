"""Files that are whole or absent: trees of tensors in safetensors with JSON beside them, hashes, atomic replacement.

Nothing here unpickles. Every file carries the SHA-256 of its content and is verified when read.
"""

import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.errors import CorruptFileError, InputError

ROWS = "rows"  # what tensors that several processes hold are called
# What json and a look into it raise for a file that is not what it should be.
_UNREADABLE = ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError


def digest(tensors: Mapping[str, Tensor], description: Any = None) -> str:
    """SHA-256 of named tensors (names, dtypes, shapes, bytes) and of a JSON description."""
    sha = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(_bytes(tensor))
    return sha.hexdigest()


def write_bytes(path: Path, *data: bytes | memoryview) -> None:
    """Write a file of these pieces whole or not at all: a temporary beside it, synchronised, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk says so without a name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_text(path: Path) -> str:
    """Read UTF-8 text; a file that is none is a `CorruptFileError` that names it."""
    try:
        return existing(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is no UTF-8 text ({error}); it is damaged or of another kind") from error


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file is a `CorruptFileError` that names it."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise CorruptFileError(f"{path} is not readable JSON ({error}); it is truncated or altered") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description to one safetensors file, with the hash of both inside."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"description": json.dumps(description, sort_keys=True), "sha256": digest(tensors, description)}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each is aligned
    write_bytes(path, _header(tensors, order, metadata), *(_bytes(tensors[name]) for name in order))


def _header(tensors: Mapping[str, Tensor], order: list[str], metadata: dict[str, str]) -> bytes:
    """How a safetensors file begins: its length, then what each tensor is and where."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        kind = _kind(tensors[name].dtype)
        entries[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@cache
def _kind(dtype: torch.dtype) -> str:
    """What safetensors calls a type."""
    from safetensors.torch import save

    data = save({"x": torch.empty(0, dtype=dtype)})
    return json.loads(data[8:])["x"]["dtype"]


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's memory, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote and verify its hash.

    Raises:
        InputError: no such file.
        CorruptFileError: truncated, altered, or not written by rdm.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = existing(path).read_bytes()
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        description = json.loads(metadata["description"])
        whole = isinstance(description, dict) and digest(tensors, description) == metadata.get("sha256")
    except (SafetensorError, *_UNREADABLE) as error:
        raise CorruptFileError(f"{path} is not a readable rdm file ({error}); it is truncated or altered") from error
    if not whole:
        raise CorruptFileError(f"{path}: content does not match its SHA-256; it was altered; make it again")
    return tensors, description


def mapped_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """What `write_tensors` wrote, with the tensors left on the disk, and the hash that `digest` must give of it.

    Raises:
        InputError: no such file.
        CorruptFileError: truncated, or not written by rdm; values are not looked at.
    """
    from safetensors import SafetensorError, safe_open

    existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            metadata = file.metadata()
        description, sha256 = json.loads(metadata["description"]), metadata["sha256"]
    except (SafetensorError, *_UNREADABLE) as error:
        raise CorruptFileError(f"{path} is not a readable rdm file ({error}); it is truncated or altered") from error
    if not isinstance(description, dict):
        raise CorruptFileError(f"{path} is not a readable rdm file; it was altered; make it again")
    return tensors, description, sha256


def described(path: Path) -> dict[str, Any]:
    """The description in a file of `write_tensors`, without reading the tensors; empty for any other file."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            found = json.loads(json.loads(file.read(min(size, 2**26)))["__metadata__"]["description"])
        except _UNREADABLE:
            return {}
    return found if isinstance(found, dict) else {}


def write_folder(path: Path, fill: Callable[[Path], None], temporary: Path | None = None) -> None:
    """Make a folder whole or not at all: `fill` writes into a temporary one, which is renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fill(temporary)
        os.chmod(temporary, 0o755)
        if path.exists():
            remove_folder(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def lock(path: Path) -> int | None:
    """A descriptor that holds a lock file until it is closed or its process ends; None where another one holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that nobody else writes to."""
    for path in folder.glob(".*"):
        if not re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_folder(path: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its name: renamed first, then emptied."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    os.replace(path, aside)  # an empty folder may be replaced
    shutil.rmtree(aside)


@dataclass(frozen=True)
class Part:
    """This process's rows of a tensor; those of all processes, in their order, are the whole."""

    rows: Tensor


def pack(tree: Any, *, parts_only: bool = False) -> tuple[dict[str, Tensor], Any]:
    """Separate a tree of dicts, lists, numbers, text and tensors into copies on the host, by name, and plain JSON.

    The rows of a `Part` are named as `is_part` tells; with `parts_only`, nothing else is copied.
    """
    tensors: dict[str, Tensor] = {}
    count = itertools.count()

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor | Part):
            tensor, kind = (node, "tensor") if isinstance(node, Tensor) else (node.rows, ROWS)
            name = f"{kind if kind == ROWS else ''}{next(count):06d}"
            if kind == ROWS or not parts_only:
                tensors[name] = tensor.detach().to("cpu", copy=True)
            return {kind: name}
        if isinstance(node, Mapping):
            return {"items": [[walk(key), walk(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {"tuple" if isinstance(node, tuple) else "list": [walk(item) for item in node]}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(f"cannot store a {type(node).__name__}; only tensors, numbers, text and their containers")

    return tensors, walk(tree)


def is_part(name: str) -> bool:
    """Whether a name of `pack` is that of rows of which other processes hold more."""
    return name.startswith(ROWS)


def unpack(tensors: Mapping[str, Tensor], plain: Any) -> Any:
    """Inverse of `pack`."""
    if not isinstance(plain, Mapping):
        return plain
    ((kind, content),) = plain.items()
    if kind in ("tensor", ROWS):
        return tensors[content]
    if kind == "items":
        found = {unpack(tensors, key): unpack(tensors, value) for key, value in content}
        if len(found) != len(content):
            raise ValueError("an entry is there twice")
        return found
    return {"tuple": tuple, "list": list}[kind](unpack(tensors, item) for item in content)


def existing(path: Path) -> Path:
    """The path of a file that is there."""
    if not path.is_file():
        raise InputError(f"expected a file at {path}; there is none")
    return path
