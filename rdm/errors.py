"""Errors that name what was expected, what came and how to mend it."""


class InputError(ValueError):
    """Something the caller gave cannot be used; the text says what was expected, what came, and the remedy."""


class UnknownNameError(InputError):
    """A name that no registry (or no configuration) knows; the text offers the nearest valid one."""


class NonFiniteError(InputError):
    """NaN or infinity in features or in a loss; the text says which term and how many rows."""


class MismatchError(InputError):
    """Two things that must agree do not; the text prints both sides."""


class RestrictedError(InputError, OSError):
    """Data asked for what only the user may: code, a connection, a file elsewhere; the text says how to allow it.

    An `OSError` too, since libraries that are refused a connection or a program expect one and go on without.
    """


class CorruptFileError(InputError):
    """A file on disk is truncated or altered."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; the text says what is kept."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def printable(text: str) -> str:
    """A text on one line of any terminal: control characters, and bytes of names that are not UTF-8, as escapes."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


LOST: list[int] = []  # signals that a command was sent before: whoever still runs then never saw their exception
