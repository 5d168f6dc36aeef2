"""What is known of a reference without reading it: its battery and sizes, by the header of its file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdm.errors import InputError
from rdm.files.store import described
from rdm.matching.representation import Battery
from rdm.references.file import FEATURES, ZIP, Reference
from rdm.registry import batteries
from rdm.rehearsing.step import Side

Given = Reference | Path | str | Mapping[str, Any]


def expected(battery: Battery | None, reference: Given | None, items: int | None) -> tuple[Battery, dict[str, Any]]:
    """The battery, by default the one that the reference names, and the real side's sizes by encoder.

    None where nobody knows them: no file is there, and no data set, of so many `items`, in its place.

    Raises:
        InputError: no battery is given, and no file names one.
    """
    said = _said(reference)
    chosen = _named(said, reference) if battery is None else battery
    names = [member.name for member in chosen.members]
    if reference is None:
        return chosen, dict.fromkeys(names, None if items is None else Side(items))
    if isinstance(reference, Mapping):
        return chosen, {name: _side(_said(reference.get(name)), name) for name in names}
    return chosen, {name: _side(said, name) for name in names}


def _named(said: dict[str, Any] | None, reference: object) -> Battery:
    """The battery that a header names, of its sizes alone."""
    named = (said or {}).get("battery", {})
    if named.get("name") is None:
        raise InputError(
            f"the battery is named by the reference {reference}, which is not here or names none; bind "
            "losses.matching.battery to see what a run will hold"
        )
    return batteries.build(named["name"], **named["arguments"])


def _said(reference: Given | None) -> dict[str, Any] | None:
    """What the header of a reference says; empty for moments alone, None where there is no file."""
    if isinstance(reference, Reference):
        return {**reference.description, "members": reference.members}
    if reference is None or isinstance(reference, Mapping) or not Path(reference).is_file():
        return None
    with open(reference, "rb") as file:
        if file.read(len(ZIP)) == ZIP:
            return {}
    return described(Path(reference))


def _side(said: dict[str, Any] | None, name: str) -> Side | None:
    if said is None:
        return None
    if "sample" not in said:  # moments, or features at hand
        held = said.get("members", {}).get(name) or said.get("members", {}).get(FEATURES)
        return Side(None if held is None or held.rows is None else len(held.rows))
    rows = said["n"] if "rows" in said else min(said["n"], said["sample"])
    return Side(rows, min(said["n_fresh"], said["sample"]))
