"""Checkpoints: everything a run needs to go on bit for bit, in folders that are whole or absent."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from rdm.errors import CorruptFileError, InputError, MismatchError
from rdm.store import (
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


def read_checkpoint(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and state of one checkpoint.

    Raises:
        InputError: a file of it is missing.
        CorruptFileError: truncated or altered; the text says how to go on from an older one.
    """
    try:
        tensors, described = read_tensors(path / TENSORS)
        rest = read_json(path / REST)
        if described["rest"] != digest({}, rest["state"]) or described["step"] != rest["step"]:
            raise CorruptFileError(f"{path}: its two files do not belong together")
        return rest["step"], unpack(tensors, rest["state"])
    except (CorruptFileError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError) and not isinstance(error, CorruptFileError):
            raise
        raise CorruptFileError(f"{error}; delete {path} to go on from the checkpoint before it") from error


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
        weights = state["average"] or state["model"]
    expected = module.state_dict()
    wrong = sorted(
        {k for k in expected if k not in weights or weights[k].shape != expected[k].shape}
        | (set(weights) - set(expected))
    )
    if wrong:
        raise MismatchError(
            f"weights at {source} do not fit {type(module).__name__}: {len(wrong)} tensors differ, "
            f"{wrong[0]!r} the first; give the network's hyperparameters that they were trained with"
        )
    module.load_state_dict(weights)
