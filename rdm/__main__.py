"""The command line: `rdm ...` or `python -m rdm ...`.

Exit status 0, 2 for a usage or configuration error, 1 for a failure while running.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line on standard error, `--debug` adds the traceback."""
    options = _parser().parse_args(arguments)
    from rdm.errors import InputError
    from rdm.run import Interrupted

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            options.run(options)
        return 0
    except InputError as error:
        return _fail(error, 2, options.debug)
    except (Interrupted, KeyboardInterrupt) as error:
        return _fail(str(error) or "interrupted", 1, options.debug)
    except Exception as error:  # whatever failed while running, in one line
        return _fail(error, 1, options.debug)


def _warn(message: Warning | str, category: type[Warning], *place: object, **options: object) -> None:
    print(f"rdm: warning: {message}", file=sys.stderr)


def _fail(error: BaseException | str, status: int, debug: bool) -> int:
    if debug and isinstance(error, BaseException):
        raise error
    from rdm.config import first_line

    kind = "" if status == 2 or isinstance(error, str) else f"{type(error).__name__}: "
    text = error if isinstance(error, str) else kind + first_line(error)
    print(f"rdm: {text}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rdm", description="Train and judge generators by matching distributions of features."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train or post-train what a gin file says")
    train.add_argument("config", type=Path, metavar="CONFIG.gin")
    train.add_argument("--bind", action="append", default=[], metavar="'NAME = VALUE'", help="a binding on top")
    train.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/<name of the file>)")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run folder")
    train.add_argument("--restricted", action="store_true", help="refuse imports, foreign includes, unregistered names")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="measure a run folder as its configuration says")
    evaluate.add_argument("samples", type=Path, metavar="RUN")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics here")
    evaluate.set_defaults(run=_evaluate)

    sweep = commands.add_parser("sweep", help="train every point of a grid of bindings; finished ones are kept")
    sweep.add_argument("config", type=Path, metavar="SWEEP.gin")
    sweep.add_argument("--workers", type=int, default=1, metavar="N", help="points at a time (default: 1)")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="sweep folder (default: runs/<name of the file>)")
    sweep.add_argument("--restricted", action="store_true", help="as of train")
    sweep.set_defaults(run=_sweep)

    report = commands.add_parser("report", help="draw report.html of a run or sweep folder")
    report.add_argument("folder", type=Path, metavar="DIR")
    report.set_defaults(run=_report)

    listing = commands.add_parser("list", help="list objectives, representations, batteries, generators, datasets")
    listing.add_argument("kind", nargs="?")
    listing.set_defaults(run=_list)

    for command in (train, evaluate, sweep, report, listing):
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _train(options: argparse.Namespace) -> None:
    from rdm.commands import train_run

    train_run(options.config, options.bind, options.out, resume=options.resume, restricted=options.restricted)


def _evaluate(options: argparse.Namespace) -> None:
    from rdm.commands import evaluate_run

    evaluate_run(options.samples, options.json)


def _sweep(options: argparse.Namespace) -> None:
    from rdm.sweep import sweep

    sweep(options.config, options.out, workers=options.workers, restricted=options.restricted)


def _report(options: argparse.Namespace) -> None:
    from rdm.commands import draw_report

    print(draw_report(options.folder))


def _list(options: argparse.Namespace) -> None:
    from rdm.commands import list_members

    list_members(options.kind)


if __name__ == "__main__":
    sys.exit(main())
