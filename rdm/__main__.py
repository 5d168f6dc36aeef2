"""The command line: `rdm ...` or `python -m rdm ...`.

Exit status 0, 2 for a usage or configuration error, 1 for a failure while running.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rdm.app import process


class Parser(argparse.ArgumentParser):
    """Usage errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Status 2, and where help is."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line on standard error, `--debug` adds the traceback."""
    options = _parser().parse_args(arguments)
    process.keep_freed_memory()
    from rdm.errors import InputError
    from rdm.progress import Interrupted

    try:
        with warnings.catch_warnings(), process.terminated_as_interrupted():
            warnings.showwarning = process.warn
            options.run(options)
            sys.stdout.flush()
        return 0
    except InputError as error:
        return process.fail(error, 2, options.debug)
    except (Interrupted, KeyboardInterrupt) as error:
        return process.fail(str(error) or "interrupted", 1, options.debug)
    except BrokenPipeError as error:
        return 1 if process.nobody_reads() else process.fail(error, 1, options.debug)
    except OSError as error:
        return process.fail(process.of_storage(error), 1, options.debug)
    except Exception as error:  # whatever failed while running, in one line
        return process.fail(error, 1, options.debug)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path; got ''")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="rdm", description="Train and judge generators by matching distributions of features.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train or post-train what a gin file says")
    train.add_argument("config", type=_path, metavar="CONFIG.gin")
    train.add_argument("--bind", action="append", default=[], metavar="'NAME = VALUE'", help="a binding on top")
    train.add_argument("--out", type=_path, metavar="DIR", help="run folder (default: runs/<name of the file>)")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run folder")
    train.add_argument("--dry-run", action="store_true", help="print what it would hold and how long it would take")
    train.add_argument("--profile", action="store_true", help="print where the time of a step went, at the end")
    train.add_argument("--restricted", action="store_true", help="refuse imports, foreign includes, unregistered names")
    train.set_defaults(run=_train)

    _reference_parser(commands)
    _evaluate_parser(commands)
    _encode_parser(commands)

    sample = commands.add_parser("sample", help="draw a run's generator: the same items on any number of ranks")
    sample.add_argument("run_folder", type=_path, metavar="RUN")
    process.drawing_options(sample, "50000")
    sample.add_argument("--seed", type=int, default=0, help="of noise and classes (0)")
    sample.add_argument("--batch", type=int, default=32, metavar="N", help="items a forward pass (32)")
    sample.add_argument(
        "--out",
        type=_path,
        metavar="PLACE",
        help="folder of PNG files (default: samples/<name of the run>), FILE.tar or FILE.npz",
    )
    sample.set_defaults(run=_sample)

    sweep = commands.add_parser("sweep", help="train every point of a grid of bindings; finished ones are kept")
    sweep.add_argument("config", type=_path, metavar="SWEEP.gin")
    sweep.add_argument("--workers", type=int, default=1, metavar="N", help="points at a time (default: 1)")
    sweep.add_argument("--out", type=_path, metavar="DIR", help="sweep folder (default: runs/<name of the file>)")
    sweep.add_argument("--restricted", action="store_true", help="as of train")
    sweep.set_defaults(run=_sweep)

    report = commands.add_parser("report", help="draw report.html of a run or sweep folder")
    report.add_argument("folder", type=_path, metavar="DIR")
    report.set_defaults(run=_report)

    listing = commands.add_parser("list", help="list objectives, representations, batteries, generators, datasets")
    listing.add_argument("kind", nargs="?")
    listing.set_defaults(run=_list)

    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _reference_parser(commands: Any) -> None:
    reference = commands.add_parser("reference", help="measure a data set once, to judge and train against")
    reference.add_argument(
        "data", type=_path, nargs="+", metavar="DATA", help="a folder or file; or references to merge"
    )
    reference.add_argument(
        "--out", type=_path, required=True, metavar="FILE", help=".safetensors, or .npz of mu, sigma"
    )
    reference.add_argument("--battery", metavar="NAME", help="encoders (`rdm list batteries`); none for features")
    reference.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="argument of the battery")
    reference.add_argument("--fresh", type=_path, metavar="DATA", help="a real split apart, for floors and ratios")
    reference.add_argument("--split", type=float, default=0.2, metavar="SHARE", help="else: share held apart (0.2)")
    reference.add_argument("--sample", type=int, default=16_384, metavar="K", help="rows kept a side (16384)")
    reference.add_argument(
        "--rows", choices=("sample", "all"), default="sample", help="all: every row, in FILE's folder .rows (sample)"
    )
    reference.add_argument(
        "--rows-dtype", choices=("float16", "bfloat16", "float32"), help="type of all rows (float32)"
    )
    process.form_options(reference)
    reference.add_argument("--per-class", action="store_true", help="moments of every class too")
    reference.add_argument("--landmarks", type=int, default=0, metavar="M", help="k-means centres for Nystrom kernels")
    reference.add_argument("--member", metavar="NAME", help="which encoder's moments an .npz gets")
    reference.add_argument("--save-every", type=float, default=20.0, metavar="SECONDS", help="state kept beside (20)")
    process.reading_options(reference)
    reference.set_defaults(run=_reference)


def _evaluate_parser(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="judge samples against a reference, or a run by its configuration")
    evaluate.add_argument("samples", type=_path, metavar="SAMPLES", help="folder, file of pictures or features, or run")
    evaluate.add_argument("--reference", type=_path, metavar="FILE", help="what `rdm reference` made, or FD-loss' .npz")
    evaluate.add_argument(
        "--metrics",
        metavar="LIST",
        help="as 'fd,precision(k=3)'; default: all that can be measured (`rdm list metrics`)",
    )
    evaluate.add_argument("--convention", metavar="NAME", help="metrics as a paper has them (`rdm list conventions`)")
    evaluate.add_argument("--battery", metavar="NAME", help="of an .npz of moments: the battery with its encoder")
    evaluate.add_argument("--member", metavar="NAME", help="of an .npz of moments: its encoder in --battery")
    evaluate.add_argument("--json", type=_path, metavar="FILE", help="also write the metrics here")
    evaluate.add_argument("--chart", type=_path, metavar="FILE.svg", help="draw ratios by encoder, with intervals")
    process.drawing_options(evaluate, "the fresh split's")
    evaluate.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the reference's battery, over its own",
    )
    process.reading_options(evaluate)
    evaluate.set_defaults(run=_evaluate, default=evaluate.get_default)


def _encode_parser(commands: Any) -> None:
    encode = commands.add_parser("encode", help="write latents, tokens or embeddings of a data set, to train on")
    encode.add_argument("data", type=_path, metavar="DATA", help="a folder or file")
    encode.add_argument("--with", dest="name", required=True, metavar="NAME", help="a representation or network")
    encode.add_argument("--out", type=_path, required=True, metavar="DIR", help="folder of shards, a source from then")
    encode.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="argument of the encoder")
    encode.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float32", help="of floats kept")
    process.form_options(encode)
    process.reading_options(encode)
    encode.set_defaults(run=_encode)


def _train(options: argparse.Namespace) -> None:
    from rdm.app.commands import train_run
    from rdm.app.dry_run import dry_run

    if options.dry_run:
        return dry_run(options.config, options.bind, restricted=options.restricted)
    train_run(
        options.config,
        options.bind,
        options.out,
        resume=options.resume,
        restricted=options.restricted,
        profile=options.profile,
    )


def _reference(options: argparse.Namespace) -> None:
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


def _encode(options: argparse.Namespace) -> None:
    from rdm.app.encoding import encode_data

    process.check(options, encode_data, "size", "seed", "batch", "workers")
    form = {name: getattr(options, name) for name in ("name", "size", "channels", "dtype")}
    encode_data(
        options.data, options.out, arguments=dict(map(process.setting, options.set)), **form, **_reading(options)
    )


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("seed", "batch", "workers", "skip_broken")}


def _evaluate(options: argparse.Namespace) -> None:
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


def _sample(options: argparse.Namespace) -> None:
    from rdm.app.sampling import sample_run

    given = {
        name: value
        for name in ("n", "steps", "seed", "batch", "average")
        if (value := getattr(options, name)) is not None
    }
    process.check(options, sample_run, *given)
    sample_run(options.run_folder, options.out, condition=options.condition, trust_config=options.trust_config, **given)


def _sweep(options: argparse.Namespace) -> None:
    from rdm.app.sweep import sweep

    sweep(options.config, options.out, workers=options.workers, restricted=options.restricted)


def _report(options: argparse.Namespace) -> None:
    from rdm.app.commands import draw_report
    from rdm.terminal import say

    say(draw_report(options.folder), file=sys.stdout)


def _list(options: argparse.Namespace) -> None:
    from rdm.app.commands import list_members

    list_members(options.kind)


if __name__ == "__main__":
    sys.exit(main())
