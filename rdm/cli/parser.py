"""Every command's flags; what a command runs is imported when it is called."""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from rdm.app import process
from rdm.cli import completion, running

SET = "argument of the battery, or NAME.KEY=VALUE of one of its encoders"


class Version(argparse.Action):
    """Print the version, which takes a look at the installed packages."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        """Status 0."""
        import rdm
        from rdm.terminal import say

        say(f"rdm {rdm.__version__}", file=sys.stdout)
        parser.exit(0)


class Parser(argparse.ArgumentParser):
    """Usage errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Status 2, and where help is."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path; got ''")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    whole = Parser(prog="rdm", description="Train and judge generators by matching distributions of features.")
    whole.add_argument("--debug", action="store_true", help="show the traceback of an error")
    whole.add_argument("--version", action=Version, nargs=0, help="print the version")
    whole.set_defaults(run=lambda options: running.help_of(whole, None))
    commands = whole.add_subparsers(metavar="COMMAND")
    _train_parser(commands)
    _reference_parser(commands)
    _evaluate_parser(commands)
    _encode_parser(commands)
    _sample_parser(commands)
    _sweep_parser(commands)
    _report_parser(commands)
    _members_parsers(commands, whole)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return whole


def _train_parser(commands: Any) -> None:
    train = commands.add_parser("train", help="train or post-train what a gin file says")
    _config(train, "CONFIG.gin")
    train.add_argument("--bind", action="append", default=[], metavar="'NAME = VALUE'", help="a binding on top")
    train.add_argument("--out", type=_path, metavar="DIR", help="run folder (default: runs/<name of the file>)")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run folder")
    train.add_argument("--dry-run", action="store_true", help="print what it would hold and how long it would take")
    train.add_argument("--profile", action="store_true", help="print where the time of a step went, at the end")
    train.add_argument("--restricted", action="store_true", help="refuse imports, foreign includes, unregistered names")
    train.set_defaults(run=running.train)


def _config(command: argparse.ArgumentParser, metavar: str) -> None:
    """The gin file of a command: a path, or one of the package's by its name."""
    said = "a gin file, or one of `rdm list experiments` by name"
    _names(command.add_argument("config", type=_path, metavar=metavar, help=said), completion.gin_files)


def _names(action: argparse.Action, names: completion.Names) -> None:
    """What a shell may complete there."""
    action.names = names  # type: ignore[attr-defined]


def _sample_parser(commands: Any) -> None:
    sample = commands.add_parser("sample", help="draw a run's generator: the same items on any number of ranks")
    sample.add_argument(
        "run_folder", type=_path, metavar="RUN", help="a run's folder; with --weights, a generator's name"
    )
    sample.add_argument("--weights", type=_path, metavar="FILE", help="public weights of the generator that RUN names")
    sample.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="argument of that generator")
    process.drawing_options(sample, "50000")
    sample.add_argument("--seed", type=int, default=0, help="of noise and classes (0)")
    sample.add_argument("--batch", type=int, default=32, metavar="N", help="items a forward pass (32)")
    sample.add_argument(
        "--out",
        type=_path,
        metavar="PLACE",
        help="folder of PNG files (default: samples/<name of the run>), FILE.tar or FILE.npz",
    )
    sample.set_defaults(run=running.sample)


def _sweep_parser(commands: Any) -> None:
    sweep = commands.add_parser("sweep", help="train every point of a grid of bindings; finished ones are kept")
    _config(sweep, "SWEEP.gin")
    sweep.add_argument("--workers", type=int, metavar="N", help="points at a time (default: the engine's)")
    engine = sweep.add_argument("--engine", default="local", metavar="NAME", help="where points are trained (local)")
    _names(engine, completion.members_of("engines"))
    sweep.add_argument(
        "--address", metavar="HOST:PORT", help="of the engine's cluster (default: the one that runs here)"
    )
    sweep.add_argument("--out", type=_path, metavar="DIR", help="sweep folder (default: runs/<name of the file>)")
    sweep.add_argument("--restricted", action="store_true", help="as of train")
    _table_option(sweep)
    sweep.set_defaults(run=running.sweep)


def _report_parser(commands: Any) -> None:
    report = commands.add_parser("report", help="draw report.html of a run or sweep folder")
    report.add_argument("folder", type=_path, metavar="DIR")
    _table_option(report)
    report.set_defaults(run=running.report)


def _table_option(command: argparse.ArgumentParser) -> None:
    said = "print a sweep's table of these alone, by name or without the encoder: sw,accuracy"
    command.add_argument("--metrics", type=lambda text: text.split(","), metavar="A,B", help=said)


def _members_parsers(commands: Any, whole: argparse.ArgumentParser) -> None:
    listing = commands.add_parser("list", help="list members of a kind, or of all: name, what it is, what it needs")
    _names(listing.add_argument("kind", nargs="?", help="as objectives; or experiments"), completion.kinds)
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.add_argument("--weights", action="store_true", help="also whether weights are on this machine")
    listing.set_defaults(run=running.list_members)

    showing = commands.add_parser("show", help="a member's docstring, parameters, defaults, and how to name it")
    shown = showing.add_argument("name", metavar="NAME", help="as mmd, metrics.mmd or digits/flow")
    _names(shown, lambda: [*completion.members_of()(), *completion.gin_files()])
    showing.set_defaults(run=running.show)

    demo = commands.add_parser("demo", help="post-train a one-step generator of digits here, in a few minutes")
    demo.set_defaults(run=lambda options: running.demo(whole))

    completing = commands.add_parser("completion", help="print a script by which a shell completes rdm's words")
    completing.add_argument("shell", choices=(*completion.SCRIPTS, "words"), metavar="bash|zsh|fish")
    completing.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    completing.set_defaults(run=lambda options: completion.complete(whole, options.shell, options.words))

    helping = commands.add_parser("help", help="help of a command")
    helping.add_argument("command", nargs="?", metavar="COMMAND")
    helping.set_defaults(run=lambda options: running.help_of(whole, options.command))


def _reference_parser(commands: Any) -> None:
    reference = commands.add_parser("reference", help="measure a data set once, to judge and train against")
    reference.add_argument(
        "data", type=_path, nargs="+", metavar="DATA", help="a folder or file; or references to merge"
    )
    reference.add_argument(
        "--out", type=_path, required=True, metavar="FILE", help=".safetensors, or .npz of mu, sigma"
    )
    _battery(reference, "a battery, or representations by commas (`rdm list`), as pixels,pca; none for features")
    reference.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the battery, or NAME.KEY=VALUE of one of its encoders",
    )
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
    reference.set_defaults(run=running.reference)


def _battery(command: argparse.ArgumentParser, said: str) -> None:
    names = completion.members_of("batteries", "representations")
    _names(command.add_argument("--battery", metavar="NAMES", help=said), names)


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
    _battery(evaluate, "of an .npz of moments: the battery with its encoder")
    evaluate.add_argument("--member", metavar="NAME", help="of an .npz of moments: its encoder in --battery")
    evaluate.add_argument("--json", type=_path, metavar="FILE", help="also write the metrics here")
    evaluate.add_argument("--chart", type=_path, metavar="FILE.svg", help="draw ratios by encoder, with intervals")
    evaluate.add_argument(
        "--train", type=_path, metavar="DATA", help="what the generator was trained on, whose copies metrics look for"
    )
    evaluate.add_argument("--per-class", metavar="METRIC", help="a distance of every class too, as fd")
    evaluate.add_argument(
        "--per-item", metavar="METRIC", help="what every item adds to a distance, as fd; outliers first"
    )
    process.drawing_options(evaluate, "the fresh split's")
    evaluate.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the reference's battery, over its own",
    )
    process.reading_options(evaluate)
    evaluate.set_defaults(run=running.evaluate, default=evaluate.get_default)


def _encode_parser(commands: Any) -> None:
    encode = commands.add_parser("encode", help="write latents, tokens or embeddings of a data set, to train on")
    encode.add_argument("data", type=_path, metavar="DATA", help="a folder or file")
    encoder = encode.add_argument(
        "--with", dest="name", required=True, metavar="NAME", help="a representation or network"
    )
    _names(encoder, completion.members_of("representations", "networks"))
    encode.add_argument("--out", type=_path, required=True, metavar="DIR", help="folder of shards, a source from then")
    encode.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="argument of the encoder")
    encode.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float32", help="of floats kept")
    process.form_options(encode)
    process.reading_options(encode)
    encode.set_defaults(run=running.encode)
