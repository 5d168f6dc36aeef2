"""Checkpoints: everything a run needs to go on bit for bit, in folders that are whole or absent."""

import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from rdm.errors import CorruptFileError, InputError, MismatchError
from rdm.files.schema import anything, exactly, expect, finite, like, mapped, record
from rdm.files.store import (
    digest,
    pack,
    read_json,
    read_tensors,
    remove_folder,
    unpack,
    write_folder,
    write_json,
    write_tensors,
)

TENSORS, REST = "state.safetensors", "state.json"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write `state` (a tree of tensors and plain values) under the step's number; older ones beyond `keep` go."""
    path = folder / f"{step:08d}"
    tensors, plain = pack(state)

    def fill(temporary: Path) -> None:
        write_tensors(temporary / TENSORS, tensors, {"step": step, "rest": digest({}, plain)})
        write_json(temporary / REST, {"step": step, "state": plain})

    write_folder(path, fill)
    for old in complete_checkpoints(folder)[:-keep]:
        remove_folder(old)
    return path


def complete_checkpoints(folder: Path) -> list[Path]:
    """Folders of complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("[0-9]" * 8) if p.is_dir()) if folder.is_dir() else []


def newest_readable(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest checkpoint that is whole, with a warning for each newer one that is damaged.

    Raises:
        CorruptFileError: there are checkpoints, and none can be read.
    """
    damaged: CorruptFileError | None = None
    for path in reversed(complete_checkpoints(folder)):
        try:
            return read_checkpoint(path)
        except CorruptFileError as error:
            damaged = damaged or error
            warnings.warn(f"{error}; going on from the checkpoint before it", stacklevel=2)
    if damaged is not None:
        raise CorruptFileError(f"{damaged}; no older checkpoint can be read; delete {folder} to begin again")
    return None


def is_run(folder: Path) -> bool:
    """Whether a folder holds what every run has, its configuration and a checkpoint; else it is one of samples."""
    return (folder / "config.gin").is_file() and bool(complete_checkpoints(folder / "checkpoints"))


def read_checkpoint(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and state of one checkpoint.

    Raises:
        CorruptFileError: truncated, altered or not whole.
    """
    try:
        tensors, described = read_tensors(path / TENSORS)
        rest = read_json(path / REST)
        if described["rest"] != digest({}, rest["state"]) or described["step"] != rest["step"]:
            raise CorruptFileError(f"{path}: its two files do not belong together")
        expect(rest["step"], exactly(int(path.name)), f"{path}, step")
        return rest["step"], unpack(tensors, rest["state"])
    except (InputError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path} is damaged ({error})") from error


def load_weights(module: nn.Module, path: str) -> None:
    """Load a module's weights from a run folder, a checkpoint folder or a safetensors file; average preferred.

    Raises:
        InputError: nothing there, with the place that was looked at.
        MismatchError: the weights are of another network.
    """
    source = Path(path)
    if source.is_file():
        try:
            weights = load_file(source)
        except Exception as error:  # safetensors raises its own type, and OSError
            raise CorruptFileError(f"{source} is not a readable safetensors file ({error})") from error
    else:
        found = [source] if (source / TENSORS).exists() else complete_checkpoints(source / "checkpoints")
        if not found:
            raise InputError(
                f"expected weights at {source} (a run folder, a checkpoint or a safetensors file); there are none; "
                "train them first or correct the path"
            )
        _, state = read_checkpoint(found[-1])
        expect(state, mapped(anything), found[-1])
        weights = state.get("average") or state.get("model") or {}
    expected = module.state_dict()
    expect(weights, mapped(finite(any_type=True)), source, "train them again")
    wrong = sorted(
        {k for k in expected if k not in weights or weights[k].shape != expected[k].shape}
        | (set(weights) - set(expected))
    )
    if wrong:
        raise MismatchError(
            f"weights at {source} do not fit {type(module).__name__}: {len(wrong)} tensors differ, "
            f"{wrong[0]!r} the first; give the network's hyperparameters that they were trained with"
        )
    fits = record({k: like(v) if not v.is_floating_point() else finite() for k, v in expected.items()})
    expect(weights, fits, source, "train them again")
    module.load_state_dict(weights)
