"""A battery and the reference that it trains or judges against: the same encoders, with the weights they had then."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rdm.errors import CorruptFileError, InputError, MismatchError, RestrictedError, first_line
from rdm.files.schema import expect, like, record
from rdm.matching.representation import Battery, Representation
from rdm.references.file import Reference
from rdm.registry import batteries
from rdm.trust import confined, paths_outside

DOWNLOAD = "allow_download"  # an argument of batteries that only the user may give


def battery_of(
    file: Reference, path: Path, device: torch.device, given: Mapping[str, Any] | None = None, *, remedy: str = ""
) -> Battery:
    """The battery that a reference file names, checked against the fingerprints that it holds.

    The file is data: it may not have weights fetched, nor name files outside the working folder. What the user has
    `given` of the battery's arguments goes before the file's, and may; `remedy` says how to, where that is not --set.

    Raises:
        RestrictedError: the file asks for a download or for such a file.
        MismatchError: an encoder has other weights, settings or preprocessing than when the file was made.
    """
    described, given = file.description["battery"], given or {}
    own = {key: value for key, value in described["arguments"].items() if key not in {DOWNLOAD, *given}}
    for key, value in own.items():
        if outside := paths_outside(value):
            allow = remedy or f"give --set {key}=... if you mean it"
            raise RestrictedError(f"{path} would open {outside[0]!r}, which is not below this folder; {allow}")
    fetching = given.get(DOWNLOAD, False)
    guard = confined(str(path), remedy or f"give --set {DOWNLOAD}=True to have weights fetched")
    try:
        with contextlib.nullcontext() if fetching else guard:
            battery: Battery = batteries.build(described["name"], **own, **given)
    except Exception as error:  # whatever a constructor makes of arguments that are not its own
        kind = type(error) if isinstance(error, InputError) else CorruptFileError
        raise kind(f"{path}: its battery {described['name']!r} cannot be made ({first_line(error)})") from error
    return paired(battery, file, path, f"battery {described['name']!r}").to(device)


def paired(battery: Battery, file: Reference, path: Path, who: str) -> Battery:
    """The battery with the weights of encoders that were fitted on the reference's data; every member is in the file.

    Raises:
        MismatchError: a member is not, or has other weights, settings or preprocessing than when the file was made.
    """
    members, held_out = ([restored(m, file, path) for m in side] for side in (battery.members, battery.held_out))
    for member in (*members, *held_out):
        if member.name not in file.members:
            raise MismatchError(f"{who} has {member.name!r} now; {path} was made without it")
        text = {"settings": dict(member.settings), "fingerprint": member.fingerprint, "dtype": member.precision}
        file.expect(member.name, **text, path=path)
    return replace(battery, members=members, held_out=held_out)


def restored(member: Representation, file: Reference, path: Path) -> Representation:
    """An encoder that was fitted on the data, with the weights that it got then."""
    if member.module is not None or member.fit is None or member.name not in file.members:
        return member
    shape: Sequence[int] = file.description["form"]["shape"]
    labels = torch.zeros(512).long() if file.labels is None else file.labels[:512]
    noise = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(0))
    fitted = member.fitted(noise, labels)  # any items, for the module's form; its weights come from the file
    assert fitted.module is not None
    weights = dict(file.members[member.name].module)
    held = record({name: like(value) for name, value in fitted.module.state_dict().items()})
    expect(weights, held, f"{path}, weights of {member.name!r}", "measure the reference again")
    fitted.module.load_state_dict(weights)
    return fitted
