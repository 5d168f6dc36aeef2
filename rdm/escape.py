r"""Names that data brings along, made safe for where they go: a terminal, a table of cells, a figure, a file's name.

In HTML everything is escaped by `html.escape`. And records of many numbers, on one line.
"""

import dataclasses
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any

from rdm.errors import InputError

HIDDEN = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of others, ends of lines
TURNING = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # the order of letters
RESERVED = set('/\\<>:"|?*')  # in file names, on one system or another
FORMULA = tuple("=+-@\t\r\n")
LONGEST = 150  # bytes of a name in a file's name, which has 255


def printable(text: object) -> str:
    r"""The text on one line, with what commands a terminal written as Python writes it (ESC as \x1b).

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN or c in TURNING else c
        for c in str(text)
    )


def csv_cell(value: object) -> object:
    """A value of a CSV file: text that a spreadsheet would run as a formula begins with an apostrophe.

    >>> csv_cell("=1+1"), csv_cell("-1.5"), csv_cell(-2)
    ("'=1+1", '-1.5', -2)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) and not _is_number(value) else value


def drawn(text: object) -> str:
    r"""Text of a figure: what matplotlib would read as mathematics is drawn as it is.

    >>> drawn("cost in $")
    'cost in \\$'
    """
    return printable(text).replace("$", r"\$")


def check_file_names(names: Iterable[str], *, what: str, taken: Iterable[str] = ()) -> None:
    """Refuse names that cannot be part of distinct file names, on any system.

    Raises:
        InputError: a name with a separator or a control character, too long, empty, or equal to another but for case.
    """
    seen = {name.casefold(): name for name in taken}
    for name in names:
        plain = isinstance(name, str) and name.strip(" .") and printable(name) == name
        if not plain or RESERVED & set(name):
            kinds = f"{' '.join(sorted(RESERVED))} or control characters"
            raise InputError(f"{what}: a name may not be empty nor hold {kinds}; got {name!r}")
        if len(name.encode()) > LONGEST:
            raise InputError(f"{what}: a name has at most {LONGEST} bytes; got {len(name.encode())}: {name[:20]!r}...")
        if name.casefold() in seen:
            raise InputError(f"{what}: {name!r} and {seen[name.casefold()]!r} would share a file; rename one")
        seen[name.casefold()] = name


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _Brief(reprlib.Repr):
    """Python's own short forms, with tensors by type and shape and networks by their class."""

    def repr1(self, x: Any, level: int) -> str:
        if hasattr(x, "dtype") and hasattr(x, "shape"):
            return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        return f"{type(x).__name__}(...)" if hasattr(x, "state_dict") else super().repr1(x, level)


_BRIEF = _Brief()
_BRIEF.maxother = _BRIEF.maxstring = 60


def brief(self: Any) -> str:
    """A dataclass that holds tensors, on one line: what is set, tensors by type and shape; for its `__repr__`."""
    held = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.repr}
    said = ", ".join(f"{name}={_BRIEF.repr(value)}" for name, value in held.items() if value is not None)
    return f"{type(self).__name__}({said})"
