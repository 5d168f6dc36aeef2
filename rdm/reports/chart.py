"""A chart of every ratio by encoder."""

from rdm.errors import InputError
from rdm.judging.measures import is_ratio
from rdm.judging.samples import Verdict
from rdm.matching.metric import Metric
from rdm.reports.plot import Group, Mark, alone, dots

KEY = "1: fresh real data; bars: 95 % intervals"


def chart(verdict: Verdict) -> bytes:
    """An SVG of every ratio: a row an encoder, dot and interval on a logarithmic axis; held-out encoders hollow.

    Raises:
        InputError: there are no ratios.
    """
    found: dict[str, dict[str, Metric]] = {}
    for key, metric in verdict.metrics.items():
        name, member = key.split("/", 1)
        if is_ratio(name) and member in verdict.members:
            found.setdefault(name, {})[member] = metric
    if not found:
        raise InputError("a chart shows ratios to a fresh real split; none were measured")
    drawings = []
    for name, values in found.items():
        apart = verdict.held_out
        marks = [Mark(member, metric, hollow=member in apart) for member, metric in values.items()]
        drawings.append(dots(name, [Group("", marks)], log=True, one=True))
    hollow = "; hollow: held out" if verdict.held_out else ""
    return alone(drawings, KEY + hollow).encode()
