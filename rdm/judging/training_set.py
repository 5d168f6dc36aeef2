"""Items that are judged beside a reference: in its form, and those that a generator was trained on, encoded alike."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.data.items import Items, first_item
from rdm.data.source import Form, Source, open_source
from rdm.distributed import rank
from rdm.errors import InputError, MismatchError
from rdm.files.store import described
from rdm.judging.samples import encode
from rdm.matching.representation import Battery
from rdm.references.file import IDENTITY, Reference
from rdm.references.measure import Encoders
from rdm.references.schema import KIND
from rdm.terminal import say


def training_features(
    given: Path | str | Reference, file: Reference, encoders: Encoders, **reading: Any
) -> dict[str, Tensor]:
    """Features by member of what a generator was trained on: items, features, or a reference that keeps every row.

    Held in memory, 4 t d bytes a member. Items are read in the reference's form; `reading` says how (see `encode`).

    Raises:
        InputError: items of another shape than the reference's, or a reference that keeps a sample of its rows.
        MismatchError: a reference of other encoders.
    """
    if isinstance(given, Reference) or is_reference(Path(given)):
        return _of_reference(given if isinstance(given, Reference) else Reference.load(given), file)
    source: Any
    source, made = open_source(Path(given)), file.description.get("form", {})
    batch = {"size": reading.pop("batch")} if "batch" in reading else {}
    rates = rates_of(encoders.battery)
    form = Form(made.get("size"), channels_of(file), one_rate(source, {file.name: made.get("rate"), **rates}))
    first = first_item(source, form)
    if source.kind == "features":
        encoders = Encoders(None, {name: rows.shape[1] for name, rows in source.members.items()})
    elif encoders.battery is None:
        raise InputError(f"samples are features without their encoder; --train must be features too; got {source.path}")
    elif made and list(first.value.shape) != made["shape"]:
        shape = list(first.value.shape)
        raise InputError(f"{source.path}: items of shape {shape}; {file.name} was made of {made['shape']}; give alike")
    return dict(encode(Items([(source, False)], form, first, **batch), encoders, **reading).features)


def _of_reference(train: Reference, file: Reference) -> dict[str, Tensor]:
    """Every row, under the members that both have."""
    found = {}
    for name in file.members:
        if name not in train.members:
            continue
        for key in IDENTITY:
            mine, theirs = (side.members[name].description.get(key) for side in (file, train))
            if mine != theirs:
                raise MismatchError(
                    f"{train.name} has {name!r} of {key} {theirs!r}; {file.name} {mine!r}; measure alike"
                )
        every = train.real(name).every("a search for copies")
        found[name] = torch.cat([rows for rows, _ in every.chunks()])
    if not found:
        raise MismatchError(f"{train.name} has members {list(train.members)}; {file.name} has {list(file.members)}")
    return found


def is_reference(path: Path) -> bool:
    """Whether a file is of `rdm reference`."""
    return path.is_file() and described(path).get("kind") == KIND


def channels_of(file: Reference) -> int | None:
    """Of the pictures that a reference was made of."""
    form = file.description.get("form", {})
    shape = form.get("shape") or []
    return form.get("channels") or (shape[0] if len(shape) == 3 else None)


def rates_of(battery: Battery | None) -> dict[str, int]:
    """Samples a second that encoders of sound take, by name."""
    members = () if battery is None else (*battery.members, *battery.held_out)
    return {m.name: m.inputs.rate for m in members if m.inputs.rate is not None}


def agreed(wanted: Mapping[str, int | None]) -> int | None:
    """The one rate of samples a second that is wanted; None for any.

    Raises:
        MismatchError: several are.
    """
    rates = {name: rate for name, rate in wanted.items() if rate is not None}
    if len(set(rates.values())) > 1:
        shown = ", ".join(f"{name} {rate:,}" for name, rate in rates.items())
        raise MismatchError(f"expected one rate of samples a second; got {shown}; measure apart what differs")
    return next(iter(rates.values()), None)


def one_rate(source: Source, wanted: Mapping[str, int | None]) -> int | None:
    """The rate that sound is brought to, said where it is another than the source's; None where that says none."""
    rate = agreed(wanted) or source.rate
    if source.rate is not None and source.rate != rate and rank() == 0:
        say(f"{source.path}: resampled from {source.rate:,} to {rate:,} samples a second")
    return None if source.rate is None else rate
