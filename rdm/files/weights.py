"""Weights of networks in files: found in caches, read as tensors only, and loaded by name, shape for shape."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn

from rdm.errors import CorruptFileError, InputError, MismatchError, first_line
from rdm.trust import refuse_if_confined, require

FETCH = "allow_download=True (--set allow_download=True in a shell)"  # what has weights fetched, for messages
_SIZES_ALONE = ContextVar("networks are built of their sizes alone", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Networks that are built in the block are of their sizes alone: no weights are looked for or read (a dry run)."""
    before = _SIZES_ALONE.set(True)
    try:
        yield
    finally:
        _SIZES_ALONE.reset(before)


def sizes_alone() -> bool:
    """Whether this is within `without_weights`."""
    return _SIZES_ALONE.get()


def read_weights(path: Path, owner: str, *, entry: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a PyTorch file, of which nothing but tensors is unpickled.

    Where a file holds mappings by name, `entry` says which is read, "state_dict" and "model" by default; those inside
    others are named with a slash ("model_ema/shadows/edm_500").

    Raises:
        CorruptFileError: no file of tensors; no such entry, with those there are.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

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
    return _tensors(state, path, owner, entry)


def _tensors(state: object, path: Path, owner: str, entry: str | None) -> dict[str, Tensor]:
    inner = _mappings(state)
    if entry is not None and inner:
        for key in entry.split("/"):
            if key not in inner:
                raise CorruptFileError(f"{owner}: {path} has no entry {entry!r}; it has {', '.join(inner) or 'none'}")
            state, inner = inner[key], _mappings(inner[key])
    for key in ("state_dict", "model") if entry is None else ():
        state = _mappings(state).get(key, state)
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not isinstance(state, Mapping) or len(tensors) < len(state):
        raise CorruptFileError(f"{owner}: {path} holds no mapping from names to tensors")
    return tensors


def _mappings(state: object) -> dict[str, Mapping[str, object]]:
    """The mappings in a mapping."""
    pairs = state.items() if isinstance(state, Mapping) else ()
    return {str(key): value for key, value in pairs if isinstance(value, Mapping)}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, source: object, owner: str) -> None:
    """Load tensors of the same names and shapes into a module, in its own dtype.

    Counters of batch normalisation may be missing: evaluation does not read them.

    Raises:
        MismatchError: with the first ten names or shapes that differ.
    """
    refuse_mismatches(module, state, source=source, owner=owner)
    module.load_state_dict({**module.state_dict(), **state})


def refuse_mismatches(module: nn.Module, state: Mapping[str, Tensor], *, source: object, owner: str) -> None:
    """Raise MismatchError, with the first ten, where names or shapes differ from the module's."""
    if wrong := mismatches(module, state):
        shown = "; ".join(wrong[:10]) + ("; ..." if len(wrong) > 10 else "")
        raise MismatchError(
            f"{owner}: weights at {source} are of another architecture, {len(wrong)} tensors differ: {shown}; give the "
            "hyperparameters that they were trained with"
        )


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


def hub_file(
    repository: str,
    names: Sequence[str],
    *,
    allow_download: bool,
    owner: str,
    remedy: str = "",
    instead: str = "weights=FILE",
) -> Path:
    """The first of the files `names` that the HuggingFace cache holds; with `allow_download`, fetched into it.

    `instead` says what else the owner takes, or `remedy` all that can be done.

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
            + (remedy or f"give {instead}, or {FETCH} to fetch them there")
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
                f"give {instead} with a copy"
            ) from error
    raise InputError(f"{owner}: {repository!r} has none of {', '.join(names)}; give {instead}")
