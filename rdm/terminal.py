"""Lines and tables on the terminal; what they show may come from data, and is shown as it is (`rdm.escape`)."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rdm.escape import printable

if TYPE_CHECKING:
    from rich.text import Text


class Best(str):
    """A cell in bold."""


def say(line: object, *, file: Any = None) -> None:
    """Print one line, on standard error unless another text stream is given."""
    print(printable(line), file=file or sys.stderr, flush=True)


def print_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    right: Iterable[int] = (),
    unbroken: Iterable[int] = (),
    width: int | None = None,
) -> None:
    """Print a table; columns numbered in `right` are set to the right, those in `unbroken` on one line a cell.

    A head may have several lines.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    columns = [
        Column(_head(head), justify="right" if i in set(right) else "left", no_wrap=i in set(unbroken), overflow="fold")
        for i, head in enumerate(heads)
    ]
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, caption=shown(caption))
    for row in rows:
        table.add_row(*map(shown, row))
    Console(width=width).print(table)


def _head(text: str) -> "Text":
    from rich.text import Text

    return Text("\n").join(map(shown, text.split("\n")))


def shown(text: str) -> "Text":
    """Text for rich, in which no character is markup."""
    from rich.text import Text

    return Text(printable(text), style="bold" if isinstance(text, Best) else "")
