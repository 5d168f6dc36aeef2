"""A verdict in three lines: how far from the data, where the most, and how much of it is good and covered."""

from collections.abc import Iterator, Mapping
from itertools import islice
from statistics import fmean

from rdm.judging.measures import is_ratio
from rdm.judging.samples import Verdict
from rdm.matching.metric import Metric
from rdm.registry import metrics

LINES = 3


def headline(verdict: Verdict) -> list[str]:
    """At most three lines that say the most of what was found."""
    return list(islice(_lines(verdict), LINES))


def _lines(verdict: Verdict) -> Iterator[str]:
    by_name: dict[str, dict[str, Metric]] = {}
    for key, metric in verdict.metrics.items():
        name, member = key.split("/", 1)
        by_name.setdefault(name, {})[member] = metric
    ratios = [name for name in by_name if is_ratio(name)]
    if ratios:
        yield from _against_real(ratios[-1], by_name[ratios[-1]], verdict)
    shares = {name: values for name, values in by_name.items() if _strives_for_one(name)}
    if shares:
        means = (f"{name} {fmean(m.value for m in values.values()):.2f}" for name, values in shares.items())
        over = f", means over {n} encoders" if (n := len(next(iter(shares.values())))) > 1 else ""
        yield f"shares, of 1: {', '.join(means)}{over}"
    for name, values in by_name.items():
        if name not in ratios and name not in shares:
            member, metric = next(iter(values.items()))
            yield f"{name} {metric} under {member}"


def _against_real(name: str, values: Mapping[str, Metric], verdict: Verdict) -> Iterator[str]:
    """The mean ratio, of encoders that were held out where there are some, and both ends."""
    members = {m: values[m] for m in verdict.members if m in values}
    means = [key for key in values if key not in members]
    which = means[-1] if means else next(iter(members))
    whole = values[which]
    if whole.low > 1:
        said = "farther from the reference than fresh real data is"
    elif whole.high < 1:
        said = "nearer to the reference than fresh real data is: look for copies"
    else:
        said = "as far from the reference as fresh real data is, within the interval"
    yield f"{name} {whole}, {which}: {said}"
    if len(members) > 1:
        (low, best), (high, worst) = (f(members.items(), key=lambda pair: pair[1].value) for f in (min, max))
        marks = {m: f"{m} (held out)" if m in verdict.held_out else m for m in members}
        yield f"nearest under {marks[low]}, {best}; farthest under {marks[high]}, {worst}"


def _strives_for_one(name: str) -> bool:
    """Whether a registered metric is a share that real data has all of."""
    entry = metrics.get(name.partition("(")[0])
    return entry is not None and not is_ratio(name) and getattr(entry.build, "best", None) == 1.0
