"""Metrics as they are asked for: by name, "precision(k=3)", built, or an objective as a ratio to fresh real data."""

import ast
from collections.abc import Mapping, Sequence

from rdm.errors import InputError
from rdm.judging.ratio import Divided, Ratio
from rdm.matching.metric import Measure
from rdm.matching.objective import Objective
from rdm.registry import conventions, metrics

Asked = str | Measure | Objective


def split(text: str) -> list[str]:
    """Names with their hyperparameters out of "fd, precision(k=3)".

    >>> split("fd, precision(k=3,rows=500)")
    ['fd', 'precision(k=3, rows=500)']
    """
    try:
        (expression,) = ast.parse(f"[{text}]").body
        assert isinstance(expression, ast.Expr) and isinstance(expression.value, ast.List)
        return [ast.unparse(part) for part in expression.value.elts]
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError):
        raise InputError(f"expected metrics as 'fd,precision(k=3)'; got {text!r}") from None


def named(text: str) -> Measure:
    """The metric of such a name.

    >>> named("precision(k=3)").k
    3
    """
    try:
        call = ast.parse(text, mode="eval").body
        keywords = call.keywords if isinstance(call, ast.Call) and not call.args else []
        function = call.func if isinstance(call, ast.Call) and not call.args else call
        assert isinstance(function, ast.Name)
        given = {str(each.arg): ast.literal_eval(each.value) for each in keywords}
    except (SyntaxError, ValueError, TypeError, AssertionError, RecursionError, MemoryError):
        raise InputError(f"expected a metric as 'fd' or 'precision(k=3)'; got {text!r}") from None
    return metrics.build(function.id, **given)


def measures(given: Mapping[str, Asked] | Sequence[str], *, resamples: int = 40) -> dict[str, Measure]:
    """Metrics by what tables call them.

    Raises:
        InputError: an unknown metric or hyperparameter, or an objective that may be negative.
    """
    by_name = given if isinstance(given, Mapping) else {name: name for name in given}
    found: dict[str, Measure] = {}
    for name, each in by_name.items():
        if isinstance(each, Objective):
            if not each.traits.nonnegative:
                raise InputError(
                    f"a ratio to real data needs distances that are never negative; metric {name!r} is an unbiased "
                    "estimator; take a biased one"
                )
            found[name] = Divided(each, resamples)
        else:
            found[name] = named(each) if isinstance(each, str) else each
    return found


def is_ratio(name: str) -> bool:
    """Whether a registered metric of this name, as tables have it, is a ratio to fresh real data."""
    bare = name.partition("(")[0]
    entry = metrics[bare] if bare in metrics else None
    return entry is not None and isinstance(entry.build, type) and issubclass(entry.build, Ratio)


def asked(text: str | None, convention: str | None) -> list[str] | None:
    """Metrics as the command line names them: a list of them, or a paper's; None for all."""
    if text is not None and convention is not None:
        raise InputError("--convention names metrics already; leave --metrics out, or give all of them there")
    if convention is not None:
        return list(conventions.build(convention))
    return None if text is None else split(text)
