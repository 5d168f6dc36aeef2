"""`rdm completion SHELL`: a script by which a shell completes commands, flags and names of members."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence

from rdm.terminal import say

BASH = """_rdm_complete() {
  local IFS=$'\\n'
  local words="$(rdm completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)"
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _rdm_complete rdm"""
SCRIPTS = {
    "bash": f'# in ~/.bashrc: eval "$(rdm completion bash)"\n{BASH}',
    "zsh": f'# in ~/.zshrc: eval "$(rdm completion zsh)"\nautoload -U +X bashcompinit && bashcompinit\n{BASH}',
    "fish": "# in ~/.config/fish/config.fish: rdm completion fish | source\n"
    "complete -c rdm -a '(rdm completion words (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'",
}
Names = Callable[[], Iterable[str]]


def complete(parser: argparse.ArgumentParser, shell: str, words: Sequence[str]) -> None:
    """Print the script of a shell, or what may stand in the place of the last of some words."""
    lines = SCRIPTS[shell].splitlines() if shell in SCRIPTS else _candidates(parser, list(words) or [""])
    for line in lines:
        say(line, file=sys.stdout)


def _candidates(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    *before, last = words
    commands = _commands(parser)
    command = next((commands[word] for word in before if word in commands), None)
    if command is None:
        return sorted(w for w in [*commands, *_flags(parser)] if w.startswith(last))
    action = _flags(command).get(before[-1])
    action = None if action is not None and action.nargs == 0 else action
    names = getattr(action, "names", None) if action is not None else _names_of_the_place(command)
    if action is None and last.startswith("-"):
        return sorted(flag for flag in _flags(command) if flag.startswith(last))
    choices = getattr(action, "choices", None) or (names() if names else ())
    head, comma, tail = last.rpartition(",")  # of a list of names, the last one
    return sorted(f"{head}{comma}{name}" for name in choices if name.startswith(tail))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {name: each for a in parser._actions if isinstance(a.choices, dict) for name, each in a.choices.items()}


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {flag: a for a in parser._actions if a.help is not argparse.SUPPRESS for flag in a.option_strings}


def _names_of_the_place(parser: argparse.ArgumentParser) -> Names | None:
    return next((a.names for a in parser._actions if not a.option_strings and hasattr(a, "names")), None)  # type: ignore[attr-defined]


def kinds() -> list[str]:
    """What `rdm list` takes."""
    from rdm.cli.listing import GIN
    from rdm.registry import registries

    return [*registries, GIN]


def members_of(*wanted: str) -> Names:
    """Names of members of these kinds, of all where none is given."""

    def names() -> list[str]:
        from rdm.cli.index import index

        return [row.name for kind, rows in index().items() if kind in wanted or not wanted for row in rows]

    return names


def gin_files() -> list[str]:
    """Names of the package's own."""
    from rdm.cli.index import experiments

    return [row.name for row in experiments()]
