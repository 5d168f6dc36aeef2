"""Checkpoints: everything a run needs to go on bit for bit, in folders that are whole or absent."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from rdm.errors import CorruptFileError, InputError
from rdm.files.parts import Shared, await_parts, folder_of, read_parts, write_part
from rdm.files.schema import anything, exactly, expect, finite, like, mapped, number, record
from rdm.files.store import (
    digest,
    is_part,
    pack,
    read_json,
    read_tensors,
    unpack,
    write_folder,
    write_json,
    write_tensors,
)
from rdm.files.weights import read_weights, refuse_mismatches, sizes_alone

TENSORS, REST = "state.safetensors", "state.json"
NO_AVERAGE = "none"  # asks for the weights themselves


class Snapshot(NamedTuple):
    """A state that no longer changes: its tensors, copied to the host, and the tree around them as plain JSON."""

    tensors: Mapping[str, Tensor]
    plain: Any

    @property
    def parts(self) -> dict[str, Tensor]:
        """Rows of which other processes hold more."""
        return {name: tensor for name, tensor in self.tensors.items() if is_part(name)}


def snapshot(state: dict[str, Any], *, parts_only: bool = False) -> Snapshot:
    """Copy a tree of tensors, `Part`s and plain values to the host; of its tensors the parts alone, if so."""
    return Snapshot(*pack(state, parts_only=parts_only))


def write_checkpoint(
    folder: Path,
    step: int,
    held: Snapshot,
    row: Mapping[str, float] = MappingProxyType({}),
    shared: Shared | None = None,
) -> Path:
    """Write a state under the step's number, whole or not at all, with what was logged at that step.

    Where several processes hold parts of it, each calls this with its number; the first one's call ends when all is
    there, the others' when their part is written.
    """
    path, rest = folder / f"{step:08d}", {"step": step, "row": dict(row), "state": held.plain}
    temporary = None if shared is None else folder_of(path, shared)
    if shared is not None and temporary is not None:
        rest["shared"] = shared.described
        if shared.number > 0:
            write_part(temporary, held.parts, shared)
            return path

    def fill(at: Path) -> None:
        if shared is not None:
            write_part(at, held.parts, shared)
        whole = {name: tensor for name, tensor in held.tensors.items() if not is_part(name)}
        write_tensors(at / TENSORS, whole, {"step": step, "rest": digest({}, rest)})
        write_json(at / REST, rest)
        if shared is not None:
            await_parts(at, shared)

    write_folder(path, fill, temporary)
    return path


def row_of(path: Path) -> dict[str, float]:
    """What was logged at the step of a checkpoint.

    Raises:
        CorruptFileError: it cannot be read.
    """
    try:
        row = read_json(path / REST)["row"]
    except (InputError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is damaged ({error})") from error
    expect(row, mapped(number()), f"{path}, row")
    return row


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
        if described["rest"] != digest({}, rest) or described["step"] != rest["step"]:
            raise CorruptFileError(f"{path}: its two files do not belong together")
        expect(rest["step"], exactly(int(path.name)), f"{path}, step")
        if "shared" in rest:
            tensors |= read_parts(path, rest["shared"])
        return rest["step"], unpack(tensors, rest["state"])
    except (InputError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path} is damaged ({error})") from error


def load_weights(
    module: nn.Module,
    path: str,
    *,
    entry: str | None = None,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    fresh: tuple[str, ...] = (),
) -> None:
    """Load a module's weights strictly from a run folder, a checkpoint folder or a file.

    Args:
        module: what the weights are of.
        path: the place.
        entry: the mapping that is read where a file holds several ("model_ema1", ...); of a run or checkpoint, the
            name of a weight average: by default its first, "none" for the weights themselves.
        rename: gives the tensors of a file the module's names; folders of ours have them already.
        fresh: beginnings of names that keep the module's own values where the weights have none of them.

    Raises:
        InputError: nothing there, with the place that was looked at.
        MismatchError: the weights are of another network, with the first ten differences.
    """
    if sizes_alone():
        return
    source = Path(path)
    if source.is_file():
        weights = rename(read_weights(source, type(module).__name__, entry=entry))
    else:
        found = [source] if (source / TENSORS).exists() else complete_checkpoints(source / "checkpoints")
        if not found:
            raise InputError(
                f"expected weights at {source} (a run folder, a checkpoint, a safetensors or PyTorch file); there are "
                "none; train them first or correct the path"
            )
        _, state = read_checkpoint(found[-1])
        expect(state, mapped(anything), found[-1])
        weights = _averaged(state, entry, found[-1])
    expect(weights, mapped(finite(any_type=True)), source, "train them again")
    for start in fresh:
        if not any(name.startswith(start) for name in weights):
            weights = weights | {k: v for k, v in module.state_dict().items() if k.startswith(start)}
    refuse_mismatches(module, weights, source=source, owner=type(module).__name__)
    expected = module.state_dict()
    fits = record({k: like(v) if not v.is_floating_point() else finite() for k, v in expected.items()})
    expect(weights, fits, source, "train them again")
    module.load_state_dict(weights)


def _averaged(state: dict[str, Any], name: str | None, path: Path) -> Any:
    """The weight average of this name, the first for None; the weights themselves for "none" or where none is kept."""
    earlier = {"average": state["average"]} if state.get("average") else {}  # as runs wrote it that had one
    held = state.get("averages") or earlier
    expect(held, mapped(anything), path)
    if name is not None and name not in (*held, NO_AVERAGE):
        raise InputError(f"{path} has no weight average {name!r}; it has {', '.join((*held, NO_AVERAGE))}")
    if name == NO_AVERAGE or not held:
        return state.get("model") or {}
    return held[name or next(iter(held))]
