"""What `rdm reference` and `rdm evaluate --reference` do, as functions."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from rdm.data.items import Items, first_item
from rdm.data.source import Form, Given, Source, hashed, open_source
from rdm.distributed import rank, started
from rdm.errors import InputError, MismatchError
from rdm.files.checkpoint import is_run, load_weights
from rdm.files.store import described, write_bytes, write_json
from rdm.judging.samples import Verdict, as_json, encode, judge, rows_of_table
from rdm.matching.representation import Battery
from rdm.numbers import Count, Range, Seed, Share, Size, Workers, validated
from rdm.randomness import seeded, stream
from rdm.references.file import Reference, written_member
from rdm.references.measure import FIT, Encoders, Survey, check_apart
from rdm.references.pairing import DOWNLOAD, battery_of
from rdm.references.schema import KIND
from rdm.registry import batteries
from rdm.reports.chart import bars
from rdm.terminal import print_table, say

if TYPE_CHECKING:
    pass

BATCH = 32
SPLIT = 0.2
DRAWN = 16_384  # items drawn from a run's generator, at most


def make_reference(
    data: Sequence[Path], out: Path, *, fresh: Path | None = None, member: str | None = None, **options: Any
) -> None:
    """Measure data into a reference file (see `measure_source`); or merge references, or write moments as .npz.

    Raises:
        InputError: data that cannot be read, or references that do not merge.
    """
    if all(_is_reference(path) for path in data):
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
) -> Reference | None:
    """Measure a source's items under every member of a battery into a file; returned on rank 0.

    Raises:
        InputError: items that cannot be read, an unknown battery, a share outside [0, 1).
    """
    if fresh is not None and split != SPLIT:
        raise InputError(
            "--split holds a share of the data apart; --fresh gives the items instead; leave one of them out"
        )
    with started(), seeded(seed):
        form = Form(size, channels)
        first = first_item(source, form)
        if per_class and first.label < 0:
            raise InputError(f"--per-class needs items with classes; {source.path} has none; leave it out")
        sides = [(source, None)] if fresh is None else [(source, False), (fresh, True)]
        if fresh is not None:
            check_apart(*(torch.tensor([hashed(item.name, item.content)]) for item in (first, first_item(fresh, form))))
        items = Items(sides, form, first, 0.0 if fresh else split, seed, batch)
        encoders, held_out = _encoders(source, items, battery, arguments or {})
        written_member(out, encoders.describe(), member)
        _check_rate(source, {} if fresh is None else {str(fresh.path): fresh.rate}, encoders)
        rate = {} if source.rate is None else {"rate": source.rate}
        description = {
            "data": source.path.name + (f", fresh {fresh.path.name}" if fresh else ""),
            "battery": {"name": battery, "arguments": {k: v for k, v in (arguments or {}).items() if k != DOWNLOAD}},
            "held_out": held_out,
            "form": {"size": size, "channels": channels, "shape": list(first.value.shape), "kind": source.kind, **rate},
        }
        options = {"sample": sample, "per_class": per_class, "landmarks": landmarks, "skip_broken": skip_broken}
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
    count: Count | None = None,
    skip_broken: bool = False,
    trust_config: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Verdict:
    """Judge a folder, a file or a run folder against a reference file; write JSON, print, draw a chart.

    `arguments` of the reference's battery go before those that it was made with.
    """
    if count is not None and not is_run(samples):
        raise InputError(f"--count is of items to draw from a run; {samples} is no run, and all of it is judged")
    if chart is not None and chart.suffix != ".svg":
        raise InputError(f"--chart is drawn as SVG: expected FILE.svg; got {chart.name!r}")
    file = Reference.load(reference)
    source = _drawn(samples, file, count, seed, trust_config) if is_run(samples) else open_source(samples)
    options = {"seed": seed, "workers": workers, "batch": batch, "skip_broken": skip_broken, "arguments": arguments}
    verdict = judge_source(source, file, reference, names=names, **options)
    if json is not None:
        write_json(json, as_json(verdict, {"samples": str(samples), "reference": str(reference)}))
    _print(verdict, file)
    if chart is not None:
        write_bytes(chart, bars(verdict))
    return verdict


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
) -> Verdict:
    """Judge a source's items: features once a member, then every metric."""
    held = file.description.get("form", {})
    shape = held.get("shape") or []
    form = Form(held.get("size"), held.get("channels") or (shape[0] if len(shape) == 3 else None))
    first = first_item(source, form)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if source.kind == "features":
        encoders = Encoders(None, _columns(source))
    elif file.description.get("battery", {}).get("name") is None:
        raise InputError(
            f"{path} holds features without their encoder; samples must be features too; got {source.kind}"
        )
    else:
        if list(first.value.shape) != held["shape"]:
            raise InputError(
                f"{source.path}: items of shape {list(first.value.shape)}; {path} was made of {held['shape']}; "
                "make both with the same --size and --channels"
            )
        encoders = Encoders(battery_of(file, path, device, arguments), device=device)
    _check_rate(source, {str(path): held.get("rate")}, encoders)
    items = Items([(source, False)], form, first, size=batch)
    rows = encode(items, encoders, workers=workers, skip_broken=skip_broken)
    return judge(rows, file, names, seed=seed)


def _encoders(
    source: Source, items: Items, battery: str | None, arguments: Mapping[str, Any]
) -> tuple[Encoders, list[str]]:
    if source.kind == "features":
        given = {"--battery": battery, "--set": arguments, "--size": items.form.size, "--channels": items.form.channels}
        if flags := [flag for flag, value in given.items() if value]:
            raise InputError(f"{source.path} holds features already; leave {flags[0]} out")
        return Encoders(None, _columns(source)), []
    if battery is None:
        raise InputError(f"expected --battery, one of {', '.join(batteries)}; got none")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen: Battery = batteries.build(battery, **arguments)
    if any(m.module is None for m in (*chosen.members, *chosen.held_out)):
        chosen = chosen.fitted(*items.pick(FIT))
    return Encoders(chosen.to(device), device=device), [m.name for m in chosen.held_out]


def _check_rate(source: Source, others: Mapping[str, int | None], encoders: Encoders) -> None:
    """Refuse sound of another sampling rate than what it is measured with, where both say theirs."""
    wanted = {**others, **{f"encoder {m.name!r}": m.inputs.rate for m in encoders.members}}
    for name, rate in wanted.items():
        if None not in (rate, source.rate) and rate != source.rate:
            raise MismatchError(
                f"{source.path} has {source.rate:,} samples a second and {name} {rate:,}; resample one to the other"
            )


def _columns(source: Any) -> dict[str, int]:
    return {name: rows.shape[1] for name, rows in source.members.items()}


def _is_reference(path: Path) -> bool:
    return path.is_file() and described(path).get("kind") == KIND


def _merged(paths: Sequence[Path]) -> Reference:
    whole = Reference.load(paths[0])
    for path in paths[1:]:
        whole = whole.merge(Reference.load(path))
    return whole


def _drawn(folder: Path, file: Reference, count: int | None, seed: int, trust_config: bool) -> Source:
    """Items of a run's generator: as many as the fresh split has, or `count`."""
    from rdm.app import config
    from rdm.generators.protocol import Generator

    config.load_run(folder, trusted=trust_config)
    with seeded(seed):
        model = config.plan()["model"]
        if not isinstance(model, Generator):
            raise InputError(f"{folder} trained a {type(model).__name__}; expected a generator")
        load_weights(model, str(folder))
        n = count or min(DRAWN, file.description.get("n_fresh") or file.description.get("n") or DRAWN)
        noise, condition = model.draw(n, stream(seed, "evaluation"))
        pieces = []
        with torch.no_grad():
            for part in torch.arange(n).split(500):
                pieces.append(model.eval()(noise[part], None if condition is None else condition[part]).clamp(0, 1))
    return Given(torch.cat(pieces), condition, path=folder)


def _say_reference(file: Reference, out: Path) -> None:
    if rank() > 0:
        return
    counted = f"{file.description['n']} items, {file.description['n_fresh']} fresh ones apart"
    skipped = file.description.get("skipped", [])
    say(f"{out}: {counted}, members {', '.join(file.members)}")
    if skipped:
        say(f"skipped {len(skipped)} broken items: {skipped[0]}")


def _print(verdict: Verdict, file: Reference) -> None:
    print_table(
        ["metric", "encoder", "value", "95 %", "N", "seed"],
        rows_of_table(verdict),
        caption=f"reference {file.description.get('data')}; ratios: 1 is what a fresh real split scores",
        right=range(2, 6),
        unbroken=[0],
        width=None if sys.stdout.isatty() else 110,
    )
    for line in (*verdict.notes, *verdict.alarms):
        say(line, file=sys.stdout)
