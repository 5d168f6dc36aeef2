"""Judging samples against a reference file: features once a member, every metric, the alarm against gaming."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdm.data.items import Batch, Items
from rdm.distributed import rank
from rdm.errors import CorruptFileError, InputError, MismatchError, RestrictedError, first_line
from rdm.files.schema import expect, like, record
from rdm.judging.ratio import Ratio, mean_ratio
from rdm.matching.metric import Measure, Metric
from rdm.matching.representation import Battery, Representation
from rdm.progress import progress
from rdm.references.file import Reference
from rdm.references.measure import Encoders
from rdm.registry import batteries, metrics
from rdm.trust import confined, paths_outside

DOWNLOAD = "allow_download"  # an argument of batteries that only the user may give


@dataclass(frozen=True)
class Verdict:
    """What was found: metrics by "metric/member", means over encoders, what to know about them in words."""

    metrics: Mapping[str, Metric]
    notes: Sequence[str] = ()  # depth of the samples, metrics left out and why
    alarms: Sequence[str] = ()
    held_out: Sequence[str] = ()  # members that no training saw
    members: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Rows:
    """Features of the judged items by member, and how the items were stored."""

    features: Mapping[str, Tensor]
    depths: set[str]
    broken: Sequence[str] = ()


def encode(items: Items, encoders: Encoders, *, workers: int = 0, skip_broken: bool = False) -> Rows:
    """Every item through every member, once.

    Raises:
        InputError: an item is broken and `skip_broken` is off, or is unlike the first one.
    """
    parts: dict[str, list[Tensor]] = {}
    broken, depths = list[str](), set[str]()
    shown, read = progress(len(items), quiet=rank() > 0), items.read(range(len(items)), workers=workers)
    with shown as report, read as batches:
        for k, batch in enumerate(batches):
            if batch.error:
                raise InputError(batch.error)
            broken += batch.broken
            if broken and not skip_broken:
                raise InputError(f"{broken[0]}; mend or remove it, or give --skip-broken")
            depths |= batch.depths
            for name, rows in _features(encoders, batch).items():
                parts.setdefault(name, []).append(rows)
            report.update(k + 1, {})
    if not parts:
        raise InputError(f"none of the {items.total} items can be read; {broken[0]}")
    return Rows({name: torch.cat(rows) for name, rows in parts.items()}, depths, broken)


def _features(encoders: Encoders, batch: Batch) -> dict[str, Tensor]:
    return encoders.features(batch.values, batch.labels) if len(batch.values) else {}


def judge(rows: Rows, file: Reference, names: Sequence[str] | None = None, *, seed: int = 0) -> Verdict:
    """Every metric under every member that both sides have.

    Without `names`, what a metric cannot measure here (too few rows, no logits, moments only) becomes a note; a metric
    that was asked for and cannot be measured is an error, and so is a list of which none can be.
    """
    shared = [name for name in file.members if name in rows.features]
    if not shared:
        raise MismatchError(f"samples have features {list(rows.features)}; the reference has {list(file.members)}")
    held_out = [name for name in file.description.get("held_out", ()) if name in shared]
    found: dict[str, Metric] = {}
    notes, left_out = _about(rows, file), list[str]()
    for name in names or list(metrics):
        measure: Measure = metrics.build(name)
        try:
            found |= _measured(name, measure, rows, file, shared, held_out, seed)
        except InputError as problem:
            if names:
                raise
            left_out.append(f"{name} not measured: {problem}")
    if not found:
        raise InputError(f"no metric could be measured; {left_out[0]}; {len(left_out) - 1} others neither")
    return Verdict(found, [*notes, *left_out], alarms(found, shared, held_out), held_out, shared)


def _measured(
    name: str,
    measure: Measure,
    rows: Rows,
    file: Reference,
    members: Sequence[str],
    held_out: Sequence[str],
    seed: int,
) -> dict[str, Metric]:
    logits = [m for m in members if file.members[m].description.get("settings", {}).get("output") == "logits"]
    if measure.logits and not logits:
        raise InputError(f"{name} takes class logits; no member of the battery gives them")
    members = logits if measure.logits else [m for m in members if m not in logits] or logits
    found: dict[str, Metric] = {}
    ratios = {}
    for member in members:
        x = rows.features[member]
        real = file.members[member].real(x.device)
        if isinstance(measure, Ratio):
            ratios[member] = measure.estimate(x, real, seed=seed)
            found[f"{name}/{member}"] = mean_ratio([ratios[member]], seed)
        else:
            found[f"{name}/{member}"] = measure(x, real, seed=seed)
    if len(ratios) > 1:
        found[f"{name}/mean of {len(ratios)}"] = mean_ratio(list(ratios.values()), seed)
        unseen = [ratios[member] for member in held_out if member in ratios]
        if unseen:
            found[f"{name}/mean of {len(unseen)} held out"] = mean_ratio(unseen, seed)
    return found


def alarms(found: Mapping[str, Metric], members: Sequence[str], held_out: Sequence[str]) -> list[str]:
    """A line for each ratio under 1 on a training encoder and above 1 beyond its interval on a held-out one."""
    lines = []
    for name in dict.fromkeys(key.split("/")[0] for key in found):
        if not isinstance(metrics.build(name), Ratio):
            continue
        ratios = {m: found[f"{name}/{m}"] for m in members if f"{name}/{m}" in found}
        pleased = {m: r for m, r in ratios.items() if m not in held_out and r.value < 1}
        unseen = {m: r for m, r in ratios.items() if m in held_out and r.low > 1}
        if pleased and unseen:
            trained, best = min(pleased.items(), key=lambda pair: pair[1].value)
            judge_name, worst = max(unseen.items(), key=lambda pair: pair[1].value)
            lines.append(
                f"gaming alarm: {name} is {best.value:.3g} on {trained}, an encoder of training, below what real data "
                f"scores, but {worst.value:.3g} [{worst.low:.3g}, {worst.high:.3g}] on {judge_name}, which was held "
                "out: the generator pleases the encoders it was trained on more than it resembles the data"
            )
    return lines


def _about(rows: Rows, file: Reference) -> list[str]:
    """How the items were stored, on either side, and what was left out."""
    notes = []
    theirs = file.description.get("depths", [])
    if theirs:
        mine = " and ".join(sorted(rows.depths)) or "features"
        there = " and ".join(theirs) or "unknown"
        same = "" if mine == there else "; quantise both sides alike, or the difference is measured too"
        notes.append(f"samples are {mine}, the reference was made of {there}{same}")
    if rows.broken:
        notes.append(f"{len(rows.broken)} broken items were skipped: {rows.broken[0]}")
    return notes


def battery_of(
    file: Reference,
    shape: Sequence[int],
    path: Path,
    device: torch.device,
    given: Mapping[str, Any] | None = None,
) -> Battery:
    """The battery that a reference file names, checked against the fingerprints that it holds.

    The file is data: it may not have weights fetched, nor name files outside the working folder. What the user has
    `given` of the battery's arguments goes before the file's, and may.

    Raises:
        RestrictedError: the file asks for a download or for such a file.
        MismatchError: an encoder has other weights, settings or preprocessing than when the file was made.
    """
    described, given = file.description["battery"], given or {}
    own = {key: value for key, value in described["arguments"].items() if key not in {DOWNLOAD, *given}}
    for key, value in own.items():
        if outside := paths_outside(value):
            raise RestrictedError(
                f"{path} would open {outside[0]!r}, which is not below this folder; give --set {key}=... if you mean it"
            )
    fetching = given.get(DOWNLOAD, False)
    guard = confined(str(path), f"give --set {DOWNLOAD}=True to have weights fetched")
    try:
        with contextlib.nullcontext() if fetching else guard:
            battery: Battery = batteries.build(described["name"], **own, **given)
    except Exception as error:  # whatever a constructor makes of arguments that are not its own
        kind = type(error) if isinstance(error, InputError) else CorruptFileError
        raise kind(f"{path}: its battery {described['name']!r} cannot be made ({first_line(error)})") from error
    members = [_restored(member, file, shape, path) for member in battery.members]
    held_out = [_restored(member, file, shape, path) for member in battery.held_out]
    for member in (*members, *held_out):
        if member.name not in file.members:
            raise MismatchError(f"battery {described['name']!r} has {member.name!r} now; {path} was made without it")
        text = {"settings": dict(member.settings), "fingerprint": member.fingerprint, "dtype": member.precision}
        file.expect(member.name, **text, path=path)
    return Battery(members, held_out).to(device)


def _restored(member: Representation, file: Reference, shape: Sequence[int], path: Path) -> Representation:
    """An encoder that was fitted on the data, with the weights that it got then."""
    if member.module is not None or member.fit is None or member.name not in file.members:
        return member
    labels = torch.zeros(512).long() if file.labels is None else file.labels[:512]
    noise = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(0))
    fitted = member.fitted(noise, labels)  # any items, for the module's form; its weights come from the file
    assert fitted.module is not None
    weights = dict(file.members[member.name].module)
    held = record({name: like(value) for name, value in fitted.module.state_dict().items()})
    expect(weights, held, f"{path}, weights of {member.name!r}", "measure the reference again")
    fitted.module.load_state_dict(weights)
    return fitted


def as_json(verdict: Verdict, description: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict as JSON: metrics as in result.json, notes and alarms beside."""
    return {
        "metrics": {name: metric._asdict() for name, metric in verdict.metrics.items()},
        "notes": list(verdict.notes),
        "alarms": list(verdict.alarms),
        "held_out": list(verdict.held_out),
        **description,
    }


def rows_of_table(verdict: Verdict) -> Iterable[tuple[str, str, str, str, str, str]]:
    """Metric, encoder, value, interval, N and seed as text, a row a metric and encoder."""
    for key, metric in verdict.metrics.items():
        name, member = key.split("/", 1)
        mark = " (held out)" if member in verdict.held_out else ""
        interval = f"[{metric.low:.4g}, {metric.high:.4g}]"
        yield name, member + mark, f"{metric.value:.4g}", interval, str(metric.n), str(metric.seed)
