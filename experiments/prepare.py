"""What a paper's recipes need: which of it is there, how the rest is made, and what may not be fetched unasked."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rdm.api import InputError, hub_file
from rdm.errors import first_line


class Weights(NamedTuple):
    """A public file: where it goes, its HuggingFace repository (empty if elsewhere), its name there, a note."""

    path: str
    repository: str
    name: str
    note: str = ""


class Made(NamedTuple):
    """What a command of rdm makes; words in capitals stand for options that the user gives, such as DATA."""

    path: str
    command: tuple[str, ...]


def prepare(paper: str, needs: Sequence[Weights | Made], options: Sequence[str], given: Sequence[str]) -> int:
    """Make or fetch what is missing, as far as the options allow; print a line each; 0 if all is there.

    Nothing is downloaded without --allow-download.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{paper}", description=prepare.__doc__)
    for option in options:
        parser.add_argument(f"--{option}", help=f"{option.upper()} in the commands printed")
    parser.add_argument("--allow-download", action="store_true", help="fetch public weights from the HuggingFace hub")
    chosen = vars(parser.parse_args(given))
    missing = [need for need in needs if not _there(need, chosen)]
    print(f"{len(needs) - len(missing)} of {len(needs)} are there" + ("" if missing else ": the recipes can run"))
    return 1 if missing else 0


def _there(need: Weights | Made, chosen: dict[str, str | bool | None]) -> bool:
    if not Path(need.path).exists():
        try:
            remedy = _fetch(need, bool(chosen["allow_download"])) if isinstance(need, Weights) else _make(need, chosen)
        except InputError as error:
            remedy = first_line(error)
    found = Path(need.path).exists()
    print(f"{'ready  ' if found else 'MISSING'} {need.path}" + ("" if found else f"\n        {remedy}"))
    return found


def _fetch(need: Weights, allowed: bool) -> str:
    place = f"{need.repository}, {need.name}" if need.repository else need.name
    if not (need.repository and allowed):
        how = "give --allow-download, or put it there" if need.repository else "put it there"
        return f"{place}{f' ({need.note})' if need.note else ''}; {how}"
    file = hub_file(need.repository, (need.name,), allow_download=True, owner=need.path)
    Path(need.path).parent.mkdir(parents=True, exist_ok=True)
    Path(need.path).symlink_to(file)
    return ""


def _make(need: Made, chosen: dict[str, str | bool | None]) -> str:
    words = [str(chosen.get(word.lower()) or word) if word.isupper() else word for word in need.command]
    line = " ".join(["rdm", *words])
    if any(word.isupper() and word in need.command for word in words):
        return f"made by {line}"
    print(f"        {line}")
    done = subprocess.run([sys.executable, "-m", "rdm", *words], check=False)
    return f"failed: {line}" if done.returncode else ""
