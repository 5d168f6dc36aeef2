"""What each command runs, with the flags that it was given."""

import argparse
import sys
from typing import Any

from rdm.app import process


def train(options: argparse.Namespace) -> None:
    """`rdm train`."""
    from rdm.app.commands import train_run
    from rdm.app.dry_run import dry_run
    from rdm.cli.listing import configuration

    config = configuration(options.config)
    if options.dry_run:
        return dry_run(config, options.bind, restricted=options.restricted)
    train_run(
        config,
        options.bind,
        options.out,
        resume=options.resume,
        restricted=options.restricted,
        profile=options.profile,
    )


def reference(options: argparse.Namespace) -> None:
    """`rdm reference`."""
    from rdm.app.judging import make_reference, measure_source

    process.check(
        options, measure_source, "split", "size", "sample", "landmarks", "save_every", "seed", "batch", "workers"
    )
    make_reference(
        options.data,
        options.out,
        battery=options.battery,
        arguments=dict(map(process.setting, options.set)),
        fresh=options.fresh,
        split=options.split,
        size=options.size,
        channels=options.channels,
        sample=options.sample,
        per_class=options.per_class,
        landmarks=options.landmarks,
        member=options.member,
        save_every=options.save_every,
        rows=options.rows,
        rows_dtype=options.rows_dtype,
        **_reading(options),
    )


def encode(options: argparse.Namespace) -> None:
    """`rdm encode`."""
    from rdm.app.encoding import encode_data

    process.check(options, encode_data, "size", "seed", "batch", "workers")
    form = {name: getattr(options, name) for name in ("name", "size", "channels", "dtype")}
    encode_data(
        options.data, options.out, arguments=dict(map(process.setting, options.set)), **form, **_reading(options)
    )


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("seed", "batch", "workers", "skip_broken")}


def evaluate(options: argparse.Namespace) -> None:
    """`rdm evaluate`."""
    if options.reference is None:
        from rdm.app.commands import evaluate_run
        from rdm.errors import InputError

        choices = (
            "set",
            "metrics",
            "convention",
            "battery",
            "member",
            "chart",
            "train",
            "per_class",
            "per_item",
            "n",
            "steps",
            "condition",
            "seed",
            "batch",
            "workers",
            "skip_broken",
        )
        given = [name for name in choices if getattr(options, name) != options.default(name)]
        if given:
            flag = given[0].replace("_", "-")
            raise InputError(f"--{flag} needs --reference FILE; without one a run is judged as its own config.gin says")
        evaluate_run(options.samples, options.json, trust_config=options.trust_config, average=options.average)
        return
    from rdm.app.judging import evaluate_samples
    from rdm.judging.measures import asked

    process.check(options, evaluate_samples, "n", "steps", "seed", "batch", "workers")
    evaluate_samples(
        options.samples,
        options.reference,
        names=asked(options.metrics, options.convention),
        json=options.json,
        chart=options.chart,
        train=options.train,
        per_class=options.per_class,
        per_item=options.per_item,
        n=options.n,
        steps=options.steps,
        condition=options.condition,
        average=options.average,
        battery=options.battery,
        member=options.member,
        trust_config=options.trust_config,
        arguments=dict(map(process.setting, options.set)),
        **_reading(options),
    )


def sample(options: argparse.Namespace) -> None:
    """`rdm sample`."""
    from rdm.app.sampling import sample_run
    from rdm.errors import InputError

    given = {
        name: value
        for name in ("n", "steps", "seed", "batch", "average")
        if (value := getattr(options, name)) is not None
    }
    process.check(options, sample_run, *given)
    if options.set and options.weights is None:
        raise InputError("--set is of a published generator; a run is drawn as its own config.gin says")
    if options.weights is not None and "average" in given:
        raise InputError("--average is of a run; which weights of a public file are taken says --set entry=NAME")
    sample_run(
        options.run_folder,
        options.out,
        condition=options.condition,
        weights=options.weights,
        arguments=dict(map(process.setting, options.set)),
        trust_config=options.trust_config,
        **given,
    )


def sweep(options: argparse.Namespace) -> None:
    """`rdm sweep`."""
    from rdm.app.sweep import sweep
    from rdm.cli.listing import configuration

    given = {name: value for name in ("workers", "address") if (value := getattr(options, name)) is not None}
    chosen = {name: getattr(options, name) for name in ("engine", "restricted", "metrics")}
    sweep(configuration(options.config), options.out, given=given, **chosen)


def report(options: argparse.Namespace) -> None:
    """`rdm report`."""
    from rdm.app.commands import draw_report
    from rdm.terminal import say

    say(draw_report(options.folder, options.metrics), file=sys.stdout)


def list_members(options: argparse.Namespace) -> None:
    """`rdm list`."""
    from rdm.cli.listing import list_members

    list_members(options.kind, as_json=options.json, weights=options.weights)


def show(options: argparse.Namespace) -> None:
    """`rdm show`."""
    from rdm.cli.show import show

    show(options.name)


def demo(parser: argparse.ArgumentParser) -> None:
    """`rdm demo`: other commands, one after the other."""
    from rdm.registry import import_at_home

    import_at_home("experiments")
    from experiments.digits.demo import demo

    def run(*words: str) -> None:
        options = parser.parse_args(words)
        options.run(options)

    demo(run)


def help_of(parser: argparse.ArgumentParser, command: str | None) -> None:
    """What `--help` prints, of one command or of all."""
    parser.parse_args([*([command] if command else []), "--help"])
