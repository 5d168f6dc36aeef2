"""Weights of encoders: found on this machine, checked by hash and by name; fetched only where that is asked for."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from rdm.api import (
    FETCH,
    InputError,
    MismatchError,
    confined,
    first_line,
    refuse_if_confined,
    require,
    seeded,
    sizes_alone,
)

PRETRAINED, RANDOM = "pretrained", "random"
Network = TypeVar("Network", bound=nn.Module)
_BUILDING = threading.RLock()


def loading(owner: str) -> AbstractContextManager[None]:
    """Around what another library builds or reads: it fetches, runs, unpickles and asks nothing (`rdm.trust`)."""
    return confined(owner, "its weights were looked for before; give a model that is whole without it")


def checked_arguments(arguments: Mapping[str, Any] | None, refused: Iterable[str], owner: str) -> dict[str, Any]:
    """Arguments of a library's model; refused are those that begin with what would make it look for weights itself.

    Raises:
        InputError: such an argument, with the way that weights are given.
    """
    for name in arguments or {}:
        if str(name).startswith(tuple(refused)):
            raise InputError(f"{owner}: arguments may not hold {name!r}; weights=FILE says which weights are read")
    return dict(arguments or {})


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_file(weights: str, expected: str | None, owner: str) -> Path:
    """A weights file on this machine, with the hash that is asked for (its first digits suffice).

    Raises:
        InputError: no file there.
        MismatchError: another hash, with both.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise InputError(
            f'{owner}: weights must be a file, "{PRETRAINED}" or "{RANDOM}" (untrained); there is no file at {path}'
        )
    if expected is not None and not (found := sha256(path)).startswith(expected.lower()):
        raise MismatchError(f"{owner}: {path} has SHA-256 {found}; expected {expected}; it is another file or altered")
    return path


def weights_file(weights: str, expected: str | None, owner: str, pretrained: Callable[[], Path]) -> Path | None:
    """What `weights` names: the file of "pretrained", looked for only then, none for "random", else a file.

    None too where networks are built of their sizes alone.

    Raises:
        InputError: no file there.
        MismatchError: another hash than expected.
    """
    if weights == RANDOM or sizes_alone():
        return None
    return local_file(str(pretrained()) if weights == PRETRAINED else weights, expected, owner)


def in_hub(repository: str, subfolder: str | None = None) -> bool:
    """Whether the HuggingFace cache holds weights of a repository."""
    try:
        constants = require("huggingface_hub.constants", extra="vision", owner=repository)
    except InputError:
        return False
    kept = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    pattern = f"*/{subfolder}/*" if subfolder else "*/*"
    return any(path.suffix in (".safetensors", ".bin") for path in kept.glob(pattern))


def in_torch_hub(url: str) -> bool:
    """Whether torch.hub's folder holds the file of a URL."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file()


def url_file(url: str, *, allow_download: bool, owner: str) -> Path:
    """The file of a URL in torch.hub's folder; with `allow_download`, fetched there.

    The hash that such names end with ("-6726825d.pth") is checked.

    Raises:
        InputError: not there (or not to be had).
        MismatchError: another hash than its name says.
    """
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        if not allow_download:
            raise InputError(
                f"{owner}: {name} is not in {path.parent}; copy it there from {url}, give weights=FILE, or "
                f"{FETCH} to fetch it"
            )
        refuse_if_confined(f"fetch {url}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except Exception as error:
            raise InputError(f"{owner}: cannot fetch {url} ({first_line(error)}); give weights=FILE") from error
    digits = name.rpartition(".")[0].rpartition("-")[2]
    return local_file(str(path), digits if len(digits) == 8 else None, owner)


def untrained(build: Callable[[], Network], seed: int = 0) -> Network:
    """A module with the random weights of its own initialisation, the same at every call.

    Modules draw from torch's global random state: threads build one after the other, but a thread that draws from that
    state for itself meanwhile changes the weights.
    """
    with _BUILDING, seeded(seed):
        return build()


def origin(path: Path | None) -> dict[str, Any]:
    """What settings record of the weights: the file's hash, or that they are untrained."""
    return {"weights": RANDOM} if path is None else {"weights_sha256": sha256(path)}
