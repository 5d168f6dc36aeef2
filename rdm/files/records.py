"""A run's log, where it ran, and a sweep's index, checked as they are read (see `rdm.files.schema`)."""

import json
import platform
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from rdm.errors import CorruptFileError
from rdm.files.schema import Sizes, anything, exactly, expect, listed, mapped, number, record, text
from rdm.files.store import read_json, read_text, write_json
from rdm.registry import EXPERIMENTS
from rdm.trust import paths_outside

PROVENANCE = "provenance.json"
REMEDY = "take the line out"
AGAIN = "train it again"


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log.jsonl; a last line that was cut off is left out.

    Raises:
        CorruptFileError: the line that is no row, by its number.
    """
    rows = []
    for k, line in enumerate(read_text(path).split("\n")[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(f"{path}, line {k}, is no JSON ({error}); {REMEDY}") from error
        expect(row, mapped(number(finite=False)), f"{path}, line {k}", REMEDY)
        expect(row.get("step"), number(int, low=0), f"{path}, line {k}, step", REMEDY)
        rows.append(row)
    return rows


def _label(value: Any, where: str, sizes: Sizes) -> None:
    (text() if isinstance(value, str) else number())(value, where, sizes)


def _goal(value: Any, where: str, sizes: Sizes) -> None:
    text()(value, where, sizes)
    try:
        float(value)
    except ValueError:
        exactly("a number")(value, where, sizes)


def _within(value: Any, where: str, sizes: Sizes) -> None:
    text()(value, where, sizes)
    if outside := paths_outside(value):
        raise CorruptFileError(
            f"{where} of a sweep's index is {outside[0]!r}, outside the sweep's folder; train it again"
        )


WORDS = {name: text() for name in ("command", "started", "device")}
SESSIONS = record({"sessions": listed(record({**WORDS, "versions": mapped(text())}))})


def note_session(folder: Path, command: str, device: str, versions: Mapping[str, str], *, ranks: int) -> None:
    """Add to a run's provenance that a command began, or went on with it, here and now."""
    place, threads = torch.device(device), torch.get_num_threads()
    cpu = f"{platform.machine()} CPU, {threads} {'thread' if threads == 1 else 'threads'}"
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else cpu if place.type == "cpu" else str(place)
    now = {
        "command": command,
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "device": name + (f", {ranks} ranks" if ranks > 1 else ""),
        "versions": dict(versions),
    }
    write_json(folder / PROVENANCE, {"sessions": [*read_sessions(folder), now]})


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """The commands that trained a run, in order; none of a run that an earlier version wrote.

    Raises:
        CorruptFileError: an entry of another form.
    """
    if not (folder / PROVENANCE).exists():
        return []
    found = read_json(folder / PROVENANCE)
    expect(found, SESSIONS, folder / PROVENANCE, "remove it")
    return found["sessions"]


def as_command(*words: str | Path) -> str:
    """A command line as it may be kept: of a path outside the working folder the last part alone.

    Gin files of the package go by their names.

    >>> as_command("rdm", "train", Path("a.gin"), "--bind", "x = 1", "--out", Path("/elsewhere/run"))
    "rdm train a.gin --bind 'x = 1' --out run"
    """
    return shlex.join(_nearby(word) if isinstance(word, Path) else word for word in words)


def _nearby(path: Path) -> str:
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    if path.is_relative_to(EXPERIMENTS):
        return path.relative_to(EXPERIMENTS).with_suffix("").as_posix()
    return path.name if path.is_absolute() else str(path)


POINT = record({"labels": mapped(_label), "bindings": anything, "folder": _within})
SWEEP = record(
    {"file": text(), "axes": listed(text()), "goals": mapped(_goal), "points": listed(POINT)}, {"command": text()}
)


def read_index(path: Path) -> dict[str, Any]:
    """A sweep's index: its axes, goals and points.

    Raises:
        CorruptFileError: an entry of another form, or a folder outside the sweep's.
    """
    index = read_json(path)
    expect(index, SWEEP, path, AGAIN)
    labels = record({axis: _label for axis in index["axes"]})
    for k, point in enumerate(index["points"]):
        expect(point["labels"], labels, f"{path}, labels of point {k}", AGAIN)
    return index
