"""Judging samples against a reference file: features once a member, every metric, the alarm against gaming."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rdm.data.items import Batch, Items
from rdm.distributed import rank
from rdm.errors import InputError, MismatchError
from rdm.judging.drawing import Drawing
from rdm.judging.measures import is_ratio, measures, named
from rdm.judging.ratio import Ratio, mean_ratio
from rdm.matching.metric import Distance, Estimate, Measure, Metric, between
from rdm.matching.real import Real
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
    classes: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)  # of each class, and their mean
    items: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)  # contributions, largest first


@dataclass(frozen=True)
class Rows:
    """Features of the judged items by member, and how the items were stored."""

    features: Mapping[str, Tensor]
    depths: set[str]
    broken: Sequence[str] = ()
    labels: Tensor | None = None  # -1 where there is none
    held_out: Sequence[str] | None = None  # members that no training saw; None for those that the reference says
    names: Sequence[str] = ()


def encode(items: Items | Drawing, encoders: Encoders, *, workers: int = 0, skip_broken: bool = False) -> Rows:
    """Every item through every member, once.

    Raises:
        InputError: an item is broken and `skip_broken` is off, or is unlike the first one.
    """
    parts: dict[str, list[Tensor]] = {}
    labels = list[Tensor]()
    broken, depths, names = list[str](), set[str](), list[str]()
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
            names += items.names(batch)
            for name, rows in _features(encoders, batch).items():
                parts.setdefault(name, []).append(rows)
            report.update(k + 1, {})
    if not parts:
        raise InputError(f"none of the {items.total} items can be read; {broken[0]}")
    features = {name: torch.cat(rows) for name, rows in parts.items()}
    return Rows(features, depths, broken, torch.cat(labels), encoders.held_out, names)


def _features(encoders: Encoders, batch: Batch) -> dict[str, Tensor]:
    return encoders.features(batch.values, batch.labels) if len(batch.values) else {}


def judge(
    rows: Rows,
    file: Reference,
    names: Sequence[str] | Mapping[str, Measure] | None = None,
    *,
    seed: int = 0,
    train: Mapping[str, Tensor] | None = None,
    per_class: str | None = None,
    per_item: str | None = None,
) -> Verdict:
    """Every metric under every member that both sides have; `train` are features of what the generator was trained on.

    `per_class` and `per_item` name distances that are taken apart too (`of_classes`, `of_items`).
    Without `names` (or metrics by name), what a metric cannot measure here (too few rows, no logits, moments only)
    becomes a note; a metric that was asked for and cannot be measured is an error, and so is a list of which none can.
    """
    shared = [name for name in file.members if name in rows.features]
    if not shared:
        raise MismatchError(f"samples have features {list(rows.features)}; the reference has {list(file.members)}")
    apart = file.description.get("held_out", ()) if rows.held_out is None else rows.held_out
    held_out = [name for name in apart if name in shared]
    found: dict[str, Metric] = {}
    notes, left_out, warned = _about(rows, file), list[str](), list[str]()
    copying = [name for name, entry in metrics.items() if getattr(entry.build, "trained", False)]
    asked = names if names else [name for name in metrics if train is not None or name not in copying]
    for name, measure in asked.items() if isinstance(asked, Mapping) else measures(asked).items():
        try:
            values = _measured(name, measure, rows, file, shared, held_out, seed, train or {})
            found |= values
            warned += [f"{key}: {line}" for key, value in values.items() if (line := measure.alarm(value))]
        except InputError as problem:
            if names:
                raise
            left_out.append(f"{name} not measured: {problem}")
    if not found:
        raise InputError(f"no metric could be measured; {left_out[0]}; {len(left_out) - 1} others neither")
    if not names and copying and train is None:
        left_out.append(
            f"{', '.join(copying)} not measured: they look for copies of the training set; give --train DATA"
        )
    classes = {} if per_class is None else of_classes(rows, file, distance_named(per_class), per_class, seed=seed)
    items = {} if per_item is None else of_items(rows, file, distance_named(per_item), per_item, seed=seed)
    return Verdict(
        found, [*notes, *left_out], [*alarms(found, shared, held_out), *warned], held_out, shared, classes, items
    )


def distance_named(name: str) -> Distance:
    """A metric that is a distance, by name.

    Raises:
        InputError: unknown, or no distance.
    """
    measure = named(name)
    if not isinstance(measure, Distance):
        known = [
            each
            for each, entry in metrics.items()
            if isinstance(entry.build, type) and issubclass(entry.build, Distance)
        ]
        raise InputError(f"{name} is no distance that can be taken apart; give one of {', '.join(known)}")
    return measure


def _measured(
    name: str,
    measure: Measure,
    rows: Rows,
    file: Reference,
    members: Sequence[str],
    held_out: Sequence[str],
    seed: int,
    train: Mapping[str, Tensor],
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
        real = replace(real, train=train.get(member))
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


def of_classes(rows: Rows, file: Reference, measure: Distance, name: str, *, seed: int = 0) -> dict[str, Any]:
    """A distance of each class's items to the reference's moments of that class, and the mean over classes.

    Means over classes of Fréchet distances are the intra-FID of Miyato and Koyama (2018). Biased by the number of items
    of a class, as the distance is: compare equal ones. Cost: that of the distance a class.

    Raises:
        InputError: no classes on either side, or none with two items on both.
    """
    held = {m: file.members[m].classes for m in file.members if m in rows.features and file.members[m].classes}
    if not held:
        raise InputError(f"{file.name} holds no moments of classes; make it by rdm reference DATA --per-class")
    labels = torch.tensor([]) if rows.labels is None else rows.labels
    shown = {}
    for member, fits in held.items():
        x, found = rows.features[member], dict[str, Estimate]()
        for k, fit in fits.items():
            part = x[(labels == k).to(x.device)]
            if len(part) > 1:
                found[str(k)] = measure.estimate(part, Real(None, fit).to(x.device), seed=seed)
        if not found:
            raise InputError(f"no class of {file.name} has 2 samples; give samples with the reference's classes")
        each = {k: f.metric(seed, rooted=measure.squared, most=measure.highest) for k, f in found.items()}
        mean = math.fsum(f.value for f in found.values()) / len(found)
        variance = math.fsum(f.variance for f in found.values()) / len(found) ** 2
        n = sum(metric.n for metric in each.values())
        shown[f"{name}/{member}"] = {**each, "mean": between(mean, variance, n, seed, least=measure.lowest)}
    return shown


def of_items(rows: Rows, file: Reference, measure: Distance, name: str, *, seed: int = 0) -> dict[str, Any]:
    """What each item adds to a distance, largest first: by how much it falls, to first order, where the item goes.

    D(P) - D(P without x_i) = g(x_i) / n + O(1 / n^2), with the influence function g from which the distance's interval
    follows (Hampel 1974); of the Fréchet distance g(x) = |z|^2 + 2 z.(mu_g - mu_r) - z^T T z, centred, with
    z = x - mu_g and T the Gaussian transport map. Cost: that of the distance, once.
    """
    shown = {}
    for member in (m for m in file.members if m in rows.features):
        x = rows.features[member]
        found = measure.estimate(x, file.members[member].sampled(x.device), seed=seed)
        if len(found.influence) != len(x):
            raise InputError(
                f"{name} is of {len(found.influence)} of {len(x)} items; judge fewer, or by another metric"
            )
        order = found.influence.argsort(descending=True).tolist()
        shares = (found.influence / len(x)).tolist()
        shown[f"{name}/{member}"] = [(rows.names[k], shares[k]) for k in order]
    return shown


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
        "metrics": _as_dicts(verdict.metrics),
        "notes": list(verdict.notes),
        "alarms": list(verdict.alarms),
        "held_out": list(verdict.held_out),
        **({"classes": {key: _as_dicts(found) for key, found in verdict.classes.items()}} if verdict.classes else {}),
        **({"items": {key: list(map(list, found)) for key, found in verdict.items.items()}} if verdict.items else {}),
        **description,
    }


def _as_dicts(found: Mapping[str, Metric]) -> dict[str, Any]:
    return {name: metric._asdict() for name, metric in found.items()}


def rows_of_table(verdict: Verdict) -> Iterable[tuple[str, str, str, str, str, str]]:
    """Metric, encoder, value, interval, N and seed as text, a row a metric and encoder."""
    for key, metric in verdict.metrics.items():
        name, member = key.split("/", 1)
        mark = " (held out)" if member in verdict.held_out else ""
        interval = f"[{metric.low:.4g}, {metric.high:.4g}]"
        yield name, member + mark, f"{metric.value:.4g}", interval, str(metric.n), str(metric.seed)
