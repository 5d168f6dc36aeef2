"""Weights of encoders: found on this machine, checked by hash and by name; fetched only where that is asked for."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rdm.api import CorruptFileError, InputError, MismatchError, confined, first_line, refuse_if_confined, seeded
from representations._optional import require

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

    Raises:
        InputError: no file there.
        MismatchError: another hash than expected.
    """
    if weights == RANDOM:
        return None
    return local_file(str(pretrained()) if weights == PRETRAINED else weights, expected, owner)


def hub_file(repository: str, names: Sequence[str], *, allow_download: bool, owner: str) -> Path:
    """The first of the files `names` that the HuggingFace cache holds; with `allow_download`, fetched into it.

    Raises:
        InputError: not there (or not to be had), with the place that was looked at.
    """
    hub = require("huggingface_hub", extra="vision", owner=owner)
    for name in names:
        found = hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    cache = require("huggingface_hub.constants", extra="vision", owner=owner).HF_HUB_CACHE
    missing = require("huggingface_hub.errors", extra="vision", owner=owner).EntryNotFoundError
    if not allow_download:
        raise InputError(
            f"{owner}: weights of {repository!r} ({names[0]}) are not in {cache}; "
            "give weights=FILE, or allow_download=True to fetch them there"
        )
    refuse_if_confined(f"fetch {names[0]} of {repository!r}")
    for name in names:
        try:
            return Path(hub.hf_hub_download(repository, name))
        except missing:
            continue
        except Exception as error:
            raise InputError(
                f"{owner}: cannot fetch {name} of {repository!r} into {cache} ({first_line(error)}); "
                "give weights=FILE with a copy"
            ) from error
    raise InputError(f"{owner}: {repository!r} has none of {', '.join(names)}; give weights=FILE")


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
                "allow_download=True to fetch it"
            )
        refuse_if_confined(f"fetch {url}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except Exception as error:
            raise InputError(f"{owner}: cannot fetch {url} ({first_line(error)}); give weights=FILE") from error
    digits = name.rpartition(".")[0].rpartition("-")[2]
    return local_file(str(path), digits if len(digits) == 8 else None, owner)


def read(path: Path, owner: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a PyTorch file, of which nothing but tensors is unpickled."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise CorruptFileError(f"{owner}: {path} is not a readable weights file ({first_line(error)})") from error
    except Exception as error:  # the unpickler's own type, which this file may not name
        raise CorruptFileError(
            f"{owner}: {path} holds more than tensors, which is never loaded ({first_line(error)}); "
            "save its state_dict as safetensors"
        ) from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, Mapping) and isinstance(state.get(key), Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CorruptFileError(f"{owner}: {path} holds no mapping from names to tensors")
    return dict(state)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, source: object, owner: str) -> None:
    """Load tensors of the same names and shapes into a module, in its own dtype.

    Counters of batch normalisation may be missing: evaluation does not read them.

    Raises:
        MismatchError: with the first ten names or shapes that differ.
    """
    if wrong := mismatches(module, state):
        shown = "; ".join(wrong[:10]) + ("; ..." if len(wrong) > 10 else "")
        raise MismatchError(
            f"{owner}: weights at {source} are of another architecture, {len(wrong)} tensors differ: {shown}"
        )
    module.load_state_dict({**module.state_dict(), **state})


def mismatches(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What differs between a module's tensors and those of a file, a line each."""
    own = module.state_dict()
    wrong = []
    for name in sorted(own.keys() | state.keys()):
        if name not in state:
            if not name.endswith("num_batches_tracked"):
                wrong.append(f"{name} is missing")
        elif name not in own:
            wrong.append(f"{name} is unknown")
        elif own[name].shape != state[name].shape:
            wrong.append(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}")
    return wrong


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
