"""A battery and the reference that it trains or judges against: the same encoders, with the weights they had then."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.data.condition import Condition, rows_of
from rdm.errors import CorruptFileError, InputError, MismatchError, RestrictedError, UnknownNameError, first_line
from rdm.files.schema import expect, like, record
from rdm.matching.real import Real
from rdm.matching.representation import Battery, Representation, as_battery
from rdm.numbers import check
from rdm.references.encoded import encoded
from rdm.references.file import FEATURES, Reference
from rdm.registry import batteries, nearest, representations
from rdm.trust import confined, paths_outside

DOWNLOAD = "allow_download"  # an argument of batteries that only the user may give
RUNNING = {"micro_batch", "precision", "clamp", "compile"}  # arguments of every battery: how its encoders run
IDENTITY = ", of identity where items are rows as its own are"
GIVEN = "given"  # the fingerprint of features whose encoder nobody knows


def battery_by_name(text: str, arguments: Mapping[str, Any]) -> Battery:
    """A battery by its registered name, or representations by theirs, with commas between them, none held out.

    Arguments are the battery's own, or those of `Battery.running`, which every battery has. Of representations
    "NAME.KEY" is that one's, and "KEY" of each that takes it.

    Raises:
        UnknownNameError: neither a battery nor representations are called so.
        InputError: a name given twice, or an argument that no representation takes.
    """
    own = inspect.signature(batteries[text].build).parameters if text in batteries else ()
    running = {key: value for key, value in arguments.items() if key in RUNNING and key not in own}
    others = {key: value for key, value in arguments.items() if key not in running}
    battery = batteries.build(text, **others) if text in batteries else _of_representations(text, others)
    return battery.running(**running) if running else battery


def _of_representations(text: str, arguments: Mapping[str, Any]) -> Battery:
    given: dict[str, dict[str, Any]] = {name.strip(): {} for name in text.split(",")}
    for name in given:
        if name in batteries:
            raise InputError(f"{name!r} is a battery, which goes alone; got {text!r}; leave the others out")
        if name not in representations:
            close = nearest(name, [*batteries, *representations])
            raise UnknownNameError(f"unknown battery or representation {name!r}{close}")
    if len(given) < text.count(",") + 1:
        raise InputError(f"a battery has each representation once; got {text!r}; name it once")
    accepted = {name: inspect.signature(representations[name].build).parameters for name in given}
    for key, value in arguments.items():
        name, dot, own = key.rpartition(".")
        taking = [name] if dot else [each for each in given if key in accepted[each]]
        if not taking or taking[0] not in given:
            keys = [f"{each}.{k}" for each in given for k in accepted[each]]
            raise InputError(f"battery {text!r} has no argument {key!r}{nearest(key, keys)}")
        for each in taking:
            given[each][own] = value
    return Battery(tuple(representations.build(name, **keys) for name, keys in given.items()))


def is_download(key: str) -> bool:
    """Whether an argument, of a battery or of one of its members, lets weights be fetched."""
    return key.rpartition(".")[2] == DOWNLOAD


def battery_of(
    file: Reference, path: Path | str, device: torch.device, given: Mapping[str, Any] | None = None, *, remedy: str = ""
) -> Battery:
    """The battery that a reference file names, checked against the fingerprints that it holds.

    The file is data: it may not have weights fetched, nor name files outside the working folder. What the user has
    `given` of the battery's arguments goes before the file's, and may; `remedy` says how to, where that is not --set.

    Raises:
        RestrictedError: the file asks for a download or for such a file.
        MismatchError: an encoder has other weights, settings or preprocessing than when the file was made.
    """
    described, given = file.description["battery"], given or {}
    own = {key: value for key, value in described["arguments"].items() if key not in given and not is_download(key)}
    for key, value in own.items():
        if outside := paths_outside(value):
            allow = remedy or f"give --set {key}=... if you mean it"
            raise RestrictedError(f"{path} would open {outside[0]!r}, which is not below this folder; {allow}")
    fetching = any(value for key, value in given.items() if is_download(key))
    guard = confined(str(path), remedy or f"give --set {DOWNLOAD}=True to have weights fetched")
    try:
        with contextlib.nullcontext() if fetching else guard:
            battery = battery_by_name(described["name"], {**own, **given})
    except Exception as error:  # whatever a constructor makes of arguments that are not its own
        kind = type(error) if isinstance(error, InputError) else CorruptFileError
        raise kind(f"{path}: its battery {described['name']!r} cannot be made ({first_line(error)})") from error
    return paired(battery, file, path, f"battery {described['name']!r}").to(device)


def paired(battery: Battery, file: Reference, path: Path | str, who: str) -> Battery:
    """The battery with the weights of encoders that were fitted on the reference's data; every member is in the file.

    Raises:
        MismatchError: a member is not, or has other weights, settings or preprocessing than when the file was made.
    """
    members, held_out = ([restored(m, file, path) for m in side] for side in (battery.members, battery.held_out))
    for member in (*members, *held_out):
        if member.name not in file.members:
            raise MismatchError(f"{who} has {member.name!r} now; {path} was made without it")
        if file.members[member.name].description.get("fingerprint") != GIVEN:
            said = {"settings": dict(member.settings), "dtype": member.precision, "fingerprint": member.fingerprint}
            file.expect(member.name, path=path, **said)
    return replace(battery, members=members, held_out=held_out)


def restored(member: Representation, file: Reference, path: Path | str) -> Representation:
    """An encoder that was fitted on the data, with the weights that it got then."""
    if member.module is not None or member.fit is None or member.name not in file.members:
        return member
    if not file.members[member.name].module:
        raise InputError(
            f"{member.name!r} is estimated on data, and {path} does not hold what it was then; give the items too, or "
            "make it by rdm reference DATA --battery"
        )
    file.expect(member.name, path=path, settings=dict(member.settings))
    shape: Sequence[int] = file.description["form"]["shape"]
    labels = torch.zeros(512).long() if file.labels is None else file.labels[:512]
    noise = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(0))
    try:
        fitted = member.fitted(noise, labels)  # any items, for the module's form; its weights come from the file
    except InputError as error:
        shown = f"items of shape {list(shape)}, which {member.name!r} does not take"
        raise CorruptFileError(f"{path} says that it is of {shown} ({error}); measure it again") from error
    assert fitted.module is not None
    weights = dict(file.members[member.name].module)
    held = record({name: like(value) for name, value in fitted.module.state_dict().items()})
    expect(weights, held, f"{path}, weights of {member.name!r}", "measure the reference again")
    fitted.module.load_state_dict(weights)
    return fitted


def as_reference(given: Reference | Path | str | Mapping[str, Any]) -> Reference:
    """A reference as it is, its file, or one by the name of each encoder: {"inception": "inception.npz", ...}.

    Raises:
        InputError: of a file in a mapping, more than one encoder and none of this name.
    """
    if isinstance(given, Reference):
        return given
    if not isinstance(given, Mapping):
        check("reference", given, Path | str)
        return Reference.load(Path(given))
    members, parts = {}, {name: as_reference(each) for name, each in given.items()}
    for name, part in parts.items():
        if name not in part.members and list(part.members) != [FEATURES]:
            raise InputError(f"{part.name} has no member {name!r}; it has {', '.join(part.members)}")
        members[name] = replace(part.members.get(name) or part.members[FEATURES], name=name)
    if not members:
        raise InputError("a mapping of references by encoder is empty; give one a member")
    whole = next((part for part in parts.values() if "form" in part.description), None)
    said = {"data": ", ".join(part.name for part in parts.values())}
    if whole is not None:  # encoders that were fitted are made anew with items of its form
        return Reference(members, {**said, "form": whole.description["form"]}, labels=whole.labels)
    return Reference(members, said)


def real_sides(
    battery: Any,
    items: Tensor | None,
    condition: Condition | None = None,
    *,
    reference: Reference | None = None,
    device: torch.device | str | None = None,
    cache: Path | None = None,
) -> tuple[Battery, Iterator[Real]]:
    """The encoders of a battery (see `as_battery`) and the real side under each: items encoded, or a reference's.

    With a reference the battery is by default the one that its file names, and items, where they are at hand, estimate
    the encoders that it holds no weights of. Both come to `device`, that of the items by default.

    Raises:
        InputError: no items and no reference; no battery given nor named; one encoder's side for several.
        MismatchError: another encoder than the reference's (`paired`), or items of another shape.
    """
    if not isinstance(items, Tensor) and (reference is None or items is not None):
        remedy = "give its images" if hasattr(items, "images") else "torch.as_tensor makes one of numbers"
        raise InputError(
            f"reference items must be a tensor; got {type(items).__name__}; {remedy}, or give a reference, as "
            "rdm reference measures files of any size"
        )
    place = torch.device(device or "cpu") if items is None else items.device
    if reference is not None:
        chosen = _of_reference(None if battery is None else as_battery(battery), reference, items, condition, place)
        named = _named(reference, chosen)
        return chosen, (named.real(member.name, place) for member in chosen.members)
    assert items is not None
    chosen = as_battery(battery).fitted(items, condition).to(place)
    return chosen, (encoded(items, member, condition=condition, cache=cache) for member in chosen.members)


def _of_reference(
    battery: Battery | None, file: Reference, items: Tensor | None, condition: Condition | None, device: torch.device
) -> Battery:
    path, shape = file.name, file.description.get("form", {}).get("shape")
    if items is not None and shape is not None and list(items.shape[1:]) != shape:
        raise MismatchError(
            f"items are of shape {list(items.shape[1:])}; {path} was made of {shape}; give items like its"
        )
    if battery is None:
        if file.description.get("battery", {}).get("name") is None:
            raise InputError(f"{path} does not say what encoders it is of; give the battery{IDENTITY}")
        return battery_of(file, path, device, remedy="give the battery itself if you mean it")
    file, members = _named(file, battery), battery.members
    if items is not None:
        members = [_estimated(member, file, items, condition) for member in members]
    found = paired(replace(battery, members=members, held_out=()), file, path, "the battery").to(device)
    if items is not None:
        for member in found.members:
            _check_width(member, file, items[:1], None if condition is None else rows_of(condition, slice(1)))
    return replace(found, held_out=battery.held_out).to(device)


def _named(file: Reference, battery: Battery) -> Reference:
    """The reference with its only member, of whose encoder it says nothing, under the name of the battery's."""
    described = file.members[FEATURES].description if list(file.members) == [FEATURES] else {"settings": None}
    if "settings" in described and described.get("fingerprint") != GIVEN:
        return file
    names = [member.name for member in battery.members]
    if len(names) > 1:
        raise InputError(
            f"{file.name} is of one encoder, the battery has {len(names)}; give a reference for each by name, "
            f"{{{names[0]!r}: ..., {names[1]!r}: ...}}"
        )
    return replace(file, members={names[0]: replace(file.members[FEATURES], name=names[0])})


def _estimated(member: Representation, file: Reference, items: Tensor, condition: Condition | None) -> Representation:
    held = file.members.get(member.name)
    return member if held is None or held.module else member.fitted(items, condition)


def _check_width(member: Representation, file: Reference, item: Tensor, condition: Condition | None) -> None:
    """Refuse features of another width than the reference's."""
    member.check(item, condition)
    with torch.no_grad():
        width, dimension = member(item, condition).shape[1], file.real(member.name).dimension
    if width != dimension:
        raise MismatchError(f"{member.name!r} gives {width} features; {file.name} has {dimension}; give its encoder")


def named_encoder(
    file: Reference, path: Path, battery: str | None, member: str | None, arguments: Mapping[str, Any]
) -> tuple[Reference, Battery] | None:
    """A reference of moments whose encoder no file says, under the encoder's name; and that encoder.

    Of moments of several encoders by name, those of the encoder's.
    """
    if battery is None:
        if member is not None:
            raise InputError("--member names an encoder of --battery; give that too")
        return None
    several = len(file.members) > 1
    if file.description.get("battery", {}).get("name") is not None or several and file.description.get("n", 0) > 0:
        raise InputError(f"--battery says the encoder of moments; {path} says its own; leave it out")
    chosen = battery_by_name(battery, arguments)
    every = {m.name: m for m in (*chosen.members, *chosen.held_out)}
    if member not in every and (member is not None or len(chosen.members) > 1):
        raise InputError(f"give --member, one of {', '.join(every)}; got {member!r}")
    encoder = every[member or chosen.members[0].name]
    if encoder.module is None:
        raise InputError(f"{encoder.name!r} is fitted on data, which moments do not say; give an encoder of its own")
    if several and encoder.name not in file.members:
        raise InputError(
            f"{path} has moments of {', '.join(file.members)}, none of {encoder.name!r}; say whose the encoder is: "
            "--set name=..."
        )
    held = file.members[encoder.name if several else next(iter(file.members))]
    named = replace(held, name=encoder.name, description={"settings": dict(encoder.settings)})
    return replace(file, members={encoder.name: named}), Battery((encoder,))
