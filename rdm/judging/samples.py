"""Judging samples against a reference file: features once a member, every metric, the alarm against gaming."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rdm.data.items import Batch, Items
from rdm.distributed import rank
from rdm.errors import InputError, MismatchError
from rdm.judging.drawing import Drawing
from rdm.judging.measures import is_ratio, measures
from rdm.judging.ratio import Ratio, mean_ratio
from rdm.matching.metric import Measure, Metric
from rdm.progress import progress
from rdm.references.file import Reference
from rdm.references.measure import Encoders
from rdm.registry import metrics


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
    labels: Tensor | None = None  # -1 where there is none
    held_out: Sequence[str] | None = None  # members that no training saw; None for those that the reference says


def encode(items: Items | Drawing, encoders: Encoders, *, workers: int = 0, skip_broken: bool = False) -> Rows:
    """Every item through every member, once.

    Raises:
        InputError: an item is broken and `skip_broken` is off, or is unlike the first one.
    """
    parts: dict[str, list[Tensor]] = {}
    labels = list[Tensor]()
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
            labels.append(batch.labels)
            for name, rows in _features(encoders, batch).items():
                parts.setdefault(name, []).append(rows)
            report.update(k + 1, {})
    if not parts:
        raise InputError(f"none of the {items.total} items can be read; {broken[0]}")
    features = {name: torch.cat(rows) for name, rows in parts.items()}
    return Rows(features, depths, broken, torch.cat(labels), encoders.held_out)


def _features(encoders: Encoders, batch: Batch) -> dict[str, Tensor]:
    return encoders.features(batch.values, batch.labels) if len(batch.values) else {}


def judge(
    rows: Rows, file: Reference, names: Sequence[str] | Mapping[str, Measure] | None = None, *, seed: int = 0
) -> Verdict:
    """Every metric under every member that both sides have.

    Without `names` (or metrics by name), what a metric cannot measure here (too few rows, no logits, moments only)
    becomes a note; a metric that was asked for and cannot be measured is an error, and so is a list of which none can.
    """
    shared = [name for name in file.members if name in rows.features]
    if not shared:
        raise MismatchError(f"samples have features {list(rows.features)}; the reference has {list(file.members)}")
    apart = file.description.get("held_out", ()) if rows.held_out is None else rows.held_out
    held_out = [name for name in apart if name in shared]
    found: dict[str, Metric] = {}
    notes, left_out = _about(rows, file), list[str]()
    asked = names if names else list(metrics)
    for name, measure in asked.items() if isinstance(asked, Mapping) else measures(asked).items():
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
        real = replace(file.members[member].sampled(x.device), origin={"representation": member, "path": file.name})
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
        if not is_ratio(name):
            continue
        ratios = {m: found[f"{name}/{m}"] for m in members if f"{name}/{m}" in found}
        pleased = {m: r for m, r in ratios.items() if m not in held_out and r.value < 1}
        unseen = {m: r for m, r in ratios.items() if m in held_out and r.low > 1}
        if pleased and unseen:
            trained, best = min(pleased.items(), key=lambda pair: pair[1].value)
            judge_name, worst = max(unseen.items(), key=lambda pair: pair[1].value)
            lines.append(
                f"gaming alarm: {name} is {best.value:.3g} on {trained}, an encoder of training, below what real data "
                f"scores, but {worst} on {judge_name}, which was held "
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
