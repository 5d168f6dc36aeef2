"""What may not happen at the bidding of data: while something that a file names is built, nothing is fetched or run.

Other people's libraries load the models, and some of what they are asked to load is written in files: a configuration
under `--restricted`, a reference, a model's own folder. Each loader passes the safe values; this is the wire behind
them, by Python's audit events. It is no sandbox: it holds for code that is not hostile itself. `require` is how such a
library, which nobody must have, is imported at all.
"""

import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath, PureWindowsPath
from types import ModuleType
from typing import Any

import torch

from rdm.errors import InputError, RestrictedError

REFUSED = {  # audit events
    "socket.connect": "open a connection",
    "socket.getaddrinfo": "open a connection",
    "socket.sendto": "open a connection",
    "subprocess.Popen": "run a program",
    "os.system": "run a program",
    "os.exec": "run a program",
    "os.posix_spawn": "run a program",
    "pickle.find_class": "unpickle",
    "builtins.input": "ask a question",
}
OPERATORS = "nms", "qnms"
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_blocks: list[tuple[str, str]] = []  # who and remedy of those that are open, in all threads
_watched = False


@contextmanager
def confined(who: str, remedy: str) -> Iterator[None]:
    """Refuse connections, programs, pickles and questions until the block ends, in the name of the outermost one.

    Raises:
        RestrictedError: one was tried.
    """
    global _watched
    if not _watched:
        sys.addaudithook(_refuse)
        _watched = True
    _blocks.append((who, remedy))
    try:
        yield
    finally:
        _blocks.pop()


def refuse_if_confined(what: str) -> None:
    """Raise where a block of `confined` is open; `what` was about to be done."""
    if _blocks:
        who, remedy = _blocks[0]
        raise RestrictedError(f"{who} may not {what}; {remedy}")


def paths_outside(value: Any) -> list[str]:
    """Texts in plain data that name a file outside the working folder: absolute ones, those with ~ and with .. ."""
    if isinstance(value, str):
        parts = {*PurePath(value).parts, *PureWindowsPath(value).parts}
        rooted = PurePath(value).is_absolute() or PureWindowsPath(value).anchor or value.startswith("~")
        return [value] if rooted or ".." in parts else []
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [path for each in inner for path in paths_outside(each)]


def _refuse(event: str, details: tuple[Any, ...]) -> None:
    if _blocks and event in REFUSED:
        refuse_if_confined(REFUSED[event])


def require(package: str, *, owner: str, extra: str = "", install: str = "") -> ModuleType:
    """Import a package, or say in one line which extra of ours, or what to `install`, brings it."""
    if package in ("torchvision", "timm", "open_clip", "transformers", "diffusers"):
        _mend_torchvision()
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(f'{owner} needs {error.name}; pip install "{install or f"rdm-torch[{extra}]"}"') from error


def _mend_torchvision() -> None:
    """Let torchvision be imported beside a torch of another build.

    A torchvision wheel built for CUDA cannot load its extension beside a CPU torch, and then stops at its own import
    since the operators that it describes do not exist; timm and open_clip fall with it. Declaring the two operators
    mends the import: networks and transforms work, the operators themselves do not. They must not be declared
    beforehand, since a loaded extension declares them itself.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in OPERATORS:
            torch.library.define(f"torchvision::{operator}", SIGNATURE)
        importlib.import_module("torchvision")
        warnings.warn(
            "torchvision's compiled operators do not fit this torch; encoders work without them", stacklevel=3
        )
