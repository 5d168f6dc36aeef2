"""What `rdm reference` and `rdm evaluate --reference` do, as functions."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from rdm.app.sampling import device, trained
from rdm.data.items import Items, first_item
from rdm.data.source import Form, Source, hashed, open_source
from rdm.distributed import rank
from rdm.errors import InputError
from rdm.files.checkpoint import is_run
from rdm.files.store import write_bytes, write_json
from rdm.judging.against import drawing_for
from rdm.judging.drawing import Drawing, classes_of
from rdm.judging.measures import measures
from rdm.judging.samples import Verdict, as_json, distance_named, encode, judge
from rdm.judging.training_set import agreed, channels_of, is_reference, one_rate, rates_of, training_features
from rdm.matching.representation import Battery
from rdm.numbers import Count, Range, Seed, Share, Size, Workers, validated
from rdm.randomness import seeded
from rdm.references.file import Reference
from rdm.references.measure import FIT, Encoders, Survey, check_apart
from rdm.references.pairing import battery_by_name, battery_of, is_download, named_encoder
from rdm.references.schema import written_member
from rdm.references.shards import folder_of
from rdm.registry import batteries, conventions
from rdm.reports.chart import chart as drawn_chart
from rdm.reports.verdict import print_verdict
from rdm.surviving.ranks import started
from rdm.terminal import say

BATCH = 32
SPLIT = 0.2
DRAWN = "items of a generator"


def make_reference(
    data: Sequence[Path], out: Path, *, fresh: Path | None = None, member: str | None = None, **options: Any
) -> None:
    """Measure data into a reference file (see `measure_source`); or merge references, or write moments as .npz.

    Raises:
        InputError: data that cannot be read, or references that do not merge.
    """
    if all(is_reference(path) for path in data):
        usual = {name: p.default for name, p in inspect.signature(measure_source).parameters.items()} | {
            "arguments": {}
        }
        if given := [name for name, value in {**options, "fresh": fresh}.items() if value != usual[name]]:
            flag = {"arguments": "set"}.get(given[0], given[0]).replace("_", "-")
            raise InputError(f"--{flag} is of measuring a data set; references are merged as they are; leave it out")
        whole = _merged(data)
        whole.write(out, member)
        _say_reference(whole, out)
        return
    if len(data) > 1:
        raise InputError("give one data set, or several references to merge; of two data sets make two references")
    apart = None if fresh is None else open_source(fresh)
    found = measure_source(open_source(data[0]), out, fresh=apart, member=member, **options)
    if found is not None:
        _say_reference(found, out)


@validated
def measure_source(
    source: Source,
    out: Path,
    *,
    battery: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    fresh: Source | None = None,
    member: str | None = None,
    split: Share = SPLIT,
    size: Count | None = None,
    channels: Literal[1, 3] | None = None,
    sample: Annotated[int, Range(least=4)] = 16_384,
    seed: Seed = 0,
    workers: Workers = 0,
    batch: Count = BATCH,
    per_class: bool = False,
    landmarks: Size = 0,
    skip_broken: bool = False,
    save_every: Annotated[float, Range(least=0)] = 20.0,
    rows: Literal["sample", "all"] = "sample",
    rows_dtype: Literal["float16", "bfloat16", "float32"] | None = None,
) -> Reference | None:
    """Measure a source's items under every member of a battery into a file; returned on rank 0.

    Raises:
        InputError: items that cannot be read, an unknown battery, a share outside [0, 1).
    """
    if fresh is not None and split != SPLIT:
        raise InputError(
            "--split holds a share of the data apart; --fresh gives the items instead; leave one of them out"
        )
    if rows_dtype is not None and rows != "all":
        raise InputError("--rows-dtype is of --rows all; a sample is kept in float32; leave it out or give both")
    if rows == "all" and out.suffix == ".npz":
        raise InputError(f"--rows all keeps rows beside a .safetensors file; {out.name} holds moments alone")
    with started(), seeded(seed):
        chosen = _battery(source, Form(size, channels), battery, arguments or {})
        form = Form(size, channels, one_rate(source, rates_of(chosen)))
        first = first_item(source, form)
        if per_class and first.label < 0:
            raise InputError(f"--per-class needs items with classes; {source.path} has none; leave it out")
        sides = [(source, None)] if fresh is None else [(source, False), (fresh, True)]
        if fresh is not None:
            one_rate(fresh, {source.path.name: form.rate})
            check_apart(*(torch.tensor([hashed(item.name, item.content)]) for item in (first, first_item(fresh, form))))
        items = Items(sides, form, first, 0.0 if fresh else split, seed, batch)
        encoders, held_out = _encoders(source, items, chosen)
        written_member(out, encoders.describe(), member, held_out)
        rate = {} if form.rate is None else {"rate": form.rate}
        kept = {key: value for key, value in (arguments or {}).items() if not is_download(key)}
        description = {
            "data": source.path.name + (f", fresh {fresh.path.name}" if fresh else ""),
            "battery": {"name": battery, "arguments": kept},
            "held_out": held_out,
            "form": {"size": size, "channels": channels, "shape": list(first.value.shape), "kind": source.kind, **rate},
        }
        options = {"sample": sample, "per_class": per_class, "landmarks": landmarks, "skip_broken": skip_broken}
        options["dtype"] = None if rows == "sample" else rows_dtype or "float32"
        return Survey(
            items, encoders, out, description, workers=workers, save_every=save_every, member=member, **options
        ).run()


@validated
def evaluate_samples(
    samples: Path,
    reference: Path,
    *,
    names: Sequence[str] | None = None,
    json: Path | None = None,
    chart: Path | None = None,
    seed: Seed = 0,
    workers: Workers = 0,
    batch: Count = BATCH,
    n: Count | None = None,
    steps: Count | None = None,
    condition: str | None = None,
    average: str | None = None,
    skip_broken: bool = False,
    trust_config: bool = False,
    battery: str | None = None,
    member: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    train: Path | None = None,
    per_class: str | None = None,
    per_item: str | None = None,
) -> Verdict:
    """Judge a folder, a file or a run folder against a reference file; write JSON, print, draw a chart.

    `train` is what the generator was trained on, for metrics that look for copies (`training_features`); `per_class`
    and `per_item` name distances to take apart (`judge`). `n` items of a run are drawn (see `rdm.judging.drawing`), by
    default as many as the fresh split has. `arguments` of the reference's battery go before those that it was made
    with. A reference of moments alone does not say its encoder: `battery` and `member` do.
    """
    drawn = {"n": n, "steps": steps, "condition": condition, "average": average}
    if (given := [name for name, value in drawn.items() if value is not None]) and not is_run(samples):
        raise InputError(f"--{given[0]} is of items to draw from a run; {samples} is no run, and all of it is judged")
    if chart is not None and chart.suffix != ".svg":
        raise InputError(f"--chart is drawn as SVG: expected FILE.svg; got {chart.name!r}")
    for name in filter(None, (per_class, per_item)):
        distance_named(name)
    measures(names or ())  # refused before an item is read
    file = Reference.load(reference)
    given = named_encoder(file, reference, battery, member, arguments or {})
    file = file if given is None else given[0]
    encoder = None if given is None else given[1]
    options = {"names": names or _own_metrics(file), "seed": seed, "arguments": arguments}
    options |= {"encoder": encoder, "train": train}
    options |= {"per_class": per_class, "per_item": per_item}
    reading = {"workers": workers, "batch": batch, "skip_broken": skip_broken}
    if is_run(samples):
        with seeded(seed):
            generator, asked = trained(samples, steps=steps, trusted=trust_config, average=average)
            classes = classes_of(condition, generator)
            drawing = drawing_for(file, generator, n=n, seed=seed, condition=classes, batch=batch, conditions=asked)
            verdict = judge_drawing(drawing, samples, file, reference, **options, reading=reading)
    else:
        verdict = judge_source(open_source(samples), file, reference, **options, **reading)
    if json is not None:
        write_json(json, as_json(verdict, {"samples": str(samples), "reference": str(reference)}))
    print_verdict(verdict, file)
    if chart is not None:
        write_bytes(chart, drawn_chart(verdict))
    return verdict


def _own_metrics(file: Reference) -> list[str] | None:
    """Metrics of the convention that is called as the reference's battery, where there is one."""
    name = file.description.get("battery", {}).get("name")
    return list(conventions.build(name)) if name in conventions else None


@validated
def judge_source(
    source: Source,
    file: Reference,
    path: Path,
    *,
    names: Sequence[str] | None = None,
    seed: Seed = 0,
    workers: Workers = 0,
    batch: Count = BATCH,
    skip_broken: bool = False,
    arguments: Mapping[str, Any] | None = None,
    encoder: Battery | None = None,
    train: Path | None = None,
    per_class: str | None = None,
    per_item: str | None = None,
) -> Verdict:
    """Judge a source's items: features once a member, then every metric."""
    made = file.description.get("form", {})
    rate = one_rate(source, {path.name: made.get("rate"), **rates_of(encoder)})
    form = Form(made.get("size"), channels_of(file), rate)
    first = first_item(source, form)
    if source.kind == "features":
        encoders = Encoders(None, _columns(source))
    else:
        encoders = _encoders_of(file, path, source.path, list(first.value.shape), source.kind, arguments, encoder)
    agreed({path.name: form.rate, **{m.name: form.rate and m.inputs.rate for m in encoders.members}})
    items = Items([(source, False)], form, first, size=batch)
    reading = {"workers": workers, "skip_broken": skip_broken}
    rows = encode(items, encoders, **reading)
    known = None if train is None else training_features(train, file, encoders, batch=batch, **reading)
    return judge(rows, file, names, seed=seed, train=known, per_class=per_class, per_item=per_item)


def judge_drawing(
    drawing: Drawing,
    run: Path,
    file: Reference,
    path: Path,
    *,
    names: Sequence[str] | None = None,
    seed: Seed = 0,
    arguments: Mapping[str, Any] | None = None,
    encoder: Battery | None = None,
    train: Path | None = None,
    per_class: str | None = None,
    per_item: str | None = None,
    reading: Mapping[str, Any] | None = None,
) -> Verdict:
    """Judge a generator's items as they are drawn, on its device; `reading` is of the training set's items."""
    encoders = _encoders_of(file, path, run, drawing.shape, DRAWN, arguments, encoder)
    rows = encode(drawing, encoders)
    known = None if train is None else training_features(train, file, encoders, **(reading or {}))
    return judge(rows, file, names, seed=seed, train=known, per_class=per_class, per_item=per_item)


def _encoders_of(
    file: Reference,
    path: Path,
    who: Path,
    shape: list[int],
    kind: str,
    arguments: Mapping[str, Any] | None,
    encoder: Battery | None,
) -> Encoders:
    """The encoders that a reference was made with, for items of its shape; or the one that was named for it."""
    if encoder is not None:
        return Encoders(encoder.to(device()), device=device())
    if file.description.get("battery", {}).get("name") is None:
        raise InputError(
            f"{path} holds features without their encoder; samples must be features too, or give its encoder by "
            f"--battery, and --member where that has several; got {kind}"
        )
    held, made = file.description["form"]["shape"], file.description["form"].get("kind", kind)
    written = made == "text" and kind == DRAWN and shape[:-1] == held  # probabilities of tokens
    if shape != held and not written:
        remedy = (
            "make both with the same --size and --channels" if kind in (made, DRAWN) else f"give {made}, not {kind}"
        )
        raise InputError(f"{who}: items of shape {shape}; {path} was made of {held}; {remedy}")
    chosen = device()
    return Encoders(battery_of(file, path, chosen, arguments), device=chosen)


def _battery(source: Source, form: Form, battery: str | None, arguments: Mapping[str, Any]) -> Battery | None:
    """The encoders that were asked for; None for a source of features."""
    if source.kind == "features":
        given = {"--battery": battery, "--set": arguments, "--size": form.size, "--channels": form.channels}
        if flags := [flag for flag, value in given.items() if value]:
            raise InputError(f"{source.path} holds features already; leave {flags[0]} out")
        return None
    if battery is None:
        known = ", ".join(batteries)
        raise InputError(f"expected --battery, one of {known}, or representations as pixels,pca; got none")
    return battery_by_name(battery, arguments)


def _encoders(source: Source, items: Items, chosen: Battery | None) -> tuple[Encoders, list[str]]:
    if chosen is None:
        return Encoders(None, _columns(source)), []
    if any(m.module is None for m in (*chosen.members, *chosen.held_out)):
        chosen = chosen.fitted(*items.pick(FIT))
    return Encoders(chosen.to(device()), device=device()), [m.name for m in chosen.held_out]


def _columns(source: Any) -> dict[str, int]:
    return {name: rows.shape[1] for name, rows in source.members.items()}


def _merged(paths: Sequence[Path]) -> Reference:
    whole = Reference.load(paths[0])
    for path in paths[1:]:
        whole = whole.merge(Reference.load(path))
    return whole


def _say_reference(file: Reference, out: Path) -> None:
    if rank() > 0:
        return
    counted = f"{file.description['n']} items, {file.description['n_fresh']} fresh ones apart"
    skipped = file.description.get("skipped", [])
    say(f"{out}: {counted}, members {', '.join(file.members)}")
    if file.shards and out.suffix != ".npz":
        say(f"{folder_of(out)}: every row in {file.dtype}, {len(file.shards)} shards; keep it beside the file")
    if skipped:
        say(f"skipped {len(skipped)} broken items: {skipped[0]}")
