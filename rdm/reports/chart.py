"""A chart of every ratio by encoder."""

from collections.abc import Mapping, Sequence
from typing import Any

from rdm.errors import InputError
from rdm.escape import drawn
from rdm.judging.measures import is_ratio
from rdm.judging.samples import Verdict
from rdm.matching.metric import Metric

LEAST_DRAWN = 0.01  # ratios and intervals of copies go down to 0, which a logarithmic axis has not


def bars(verdict: Verdict) -> bytes:
    """An SVG of every ratio by encoder, with intervals, on logarithmic axes from 1; held-out encoders hatched.

    Raises:
        InputError: matplotlib is not installed, or there are no ratios.
    """
    from rdm.reports.run import blank_figure, svg

    ratios = {k: m for k, m in verdict.metrics.items() if k.split("/")[0] in _ratio_names(verdict)}
    if not ratios:
        raise InputError("a chart shows ratios to a fresh real split; none were measured")
    names = list(dict.fromkeys(key.split("/")[0] for key in ratios))
    figure = blank_figure(1.5 + 2.8 * len(names), 0.8 + 0.32 * len(verdict.members))
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, names, strict=True):
        found = {m: ratios[f"{name}/{m}"] for m in verdict.members if f"{name}/{m}" in ratios}
        _draw_ratios(axis, found, verdict.held_out)
        axis.set_title(drawn(f"{name} (hatched: held out)" if verdict.held_out else name), fontsize=9)
    axes[0].invert_yaxis()  # shared by all
    return svg(figure).encode()


def _draw_ratios(axis: Any, found: Mapping[str, Metric], held_out: Sequence[str]) -> None:
    """Bars from 1, which real data scores, on a logarithmic axis: the intervals are log-normal."""
    axis.set_xscale("log", subs=())
    axis.xaxis.set_major_formatter("{x:g}")
    shown = [[max(number, LEAST_DRAWN) for number in ratio[:3]] for ratio in found.values()]
    spans = [[value - low for value, low, _ in shown], [high - value for value, _, high in shown]]
    lengths = [value - 1 for value, _, _ in shown]
    bars = axis.barh(list(map(drawn, found)), lengths, left=1, xerr=spans, capsize=3, color="#7aa6d8")
    for bar, member in zip(bars, found, strict=True):
        bar.set_hatch("//" if member in held_out else "")
    low, high = axis.get_xlim()
    steps = (1, 1.4, 2, 3, 5, 7) if high / low < 5 else (1, 2, 5) if high / low < 200 else (1,)
    ticks = [step * 10.0**power for power in range(-9, 10) for step in steps]
    axis.set_xticks([tick for tick in ticks if low <= tick <= high])
    axis.axvline(1, color="#1b1b1f", linewidth=1)


def _ratio_names(verdict: Verdict) -> set[str]:
    return {name for key in verdict.metrics if is_ratio(name := key.split("/")[0])}
