"""Drawings as SVG: dots with intervals, and curves.

Text stays text, colours are the variables of plot.css, so that a drawing follows the scheme of the page that it is in;
`alone` gives a file for itself, in the light one.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rdm.matching.metric import Metric
from rdm.reports.page import asset, escaped

WIDTH, HEIGHT = 360, 216  # pixels, where a drawing is shown as large as it is
LETTER = 6.0  # about the width of a letter
LONGEST = 24  # letters of a label beside a drawing
LEAST = 0.01  # where logarithmic axes begin that have a 0 to show
UP = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Scale(NamedTuple):
    """Where numbers from `low` to `high` lie between two places of a drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a number; of one outside, the nearer end."""
        low, high, at = (math.log(max(v, 1e-300)) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * min(max((at - low) / (high - low), 0), 1)

    def ticks(self) -> list[float]:
        """Round numbers between the ends, seven at most."""
        if self.log and self.high >= 3 * self.low:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                found = [s * 10.0**k for k in powers for s in steps if self.low <= s * 10.0**k <= self.high]
                if len(found) <= 7:
                    return found
            return found[:: -(-len(found) // 7)]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 3))
        step = next(step * k for k in (1, 2, 2.5, 5, 10, 20) if (self.high - self.low) / (step * k) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


class Mark(NamedTuple):
    """A value with its interval."""

    label: str
    metric: Metric
    parts: Sequence[float] = ()  # of which it is the mean
    colour: str = "c0"
    hollow: bool = False


class Group(NamedTuple):
    """Marks under one heading, and what real data scores."""

    name: str
    marks: Sequence[Mark]
    real: Metric | None = None


class Curve(NamedTuple):
    """Values over numbers, with intervals where there are some."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str = "c0"
    spans: Sequence[tuple[float, float]] = ()


def dots(title: str, groups: Sequence[Group], *, log: bool = False, one: bool = False) -> str:
    """A row a mark: dot, interval, the parts of a mean faintly; a band for real data; a line at 1 where `one`."""
    marks = [mark for group in groups for mark in group.marks]
    reals = [group.real for group in groups if group.real is not None]
    metrics = [*(mark.metric for mark in marks), *reals]
    values = [v for m in marks for v in (m.metric.value, *m.parts)] + [end for r in reals for end in r[:3]]
    left = LETTER * max(min(len(mark.label), LONGEST) for mark in marks) + 14
    ends = _reached(values + [1.0] * one, [end for m in metrics for end in m[1:3]], log)
    scale = Scale(*ends, left, WIDTH - 12, log)
    y, inner, rows = 26.0, "", ""
    for group in groups:
        y += 6
        if group.name:
            rows += _text(0, y + 10, group.name, "group", most=52)
            y += 17
        if group.real is not None:
            inner += _band(scale, group.real, y - 1, 17 * len(group.marks) + 2)
        for mark in group.marks:
            rows += _text(left - 10, y + 12, mark.label, "end") + _mark(scale, mark, y + 8.5)
            y += 17
    bottom = y + 6
    axis = _axis(scale, bottom) + (_rule(scale(1), 22, scale(1), bottom, "one") if one else "")
    said = "; ".join(f"{group.name} {mark.label} {mark.metric}".strip() for group in groups for mark in group.marks)
    return _svg(title, said, inner + axis + rows, bottom + 20)


def curves(
    title: str,
    across: str,
    lines: Sequence[Curve],
    *,
    log: bool = False,
    at: Sequence[float] = (),
    real: Metric | None = None,
) -> str:
    """Lines over numbers; the axis beneath has its ticks `at` numbers where these are given, apart from each other."""
    ys = [y for line in lines for _, y in line.points] + ([] if real is None else list(real[:3]))
    vertical = Scale(
        *_reached(ys, [end for line in lines for span in line.spans for end in span], log), HEIGHT - 38, 28, log
    )
    ticks = vertical.ticks()
    left = 12 + LETTER * max(len(_number(tick)) for tick in ticks)
    xs = sorted({x for line in lines for x, _ in line.points})
    place, names = _across(xs, at, left)
    inner = "" if real is None else _band_over(vertical, real, left)
    for tick in ticks:
        y = vertical(tick)
        inner += _rule(left, y, WIDTH - 8, y, "rule") + _text(left - 6, y + 4, _number(tick), "tick end")
    for x, name in names:
        inner += _rule(x, HEIGHT - 38, x, HEIGHT - 34, "rule") + _text(x, HEIGHT - 22, name, "tick middle")
    inner += _text((left + WIDTH) / 2, HEIGHT - 6, across, "unit middle")
    said = []
    apart = [line for line in lines if line.spans]
    for line in lines:
        aside = 4 * (apart.index(line) - (len(apart) - 1) / 2) if line.spans else 0  # intervals beside each other
        inner += _curve(line, lambda x, aside=aside: place(x) + aside, vertical)
        if line.colour == "base":
            inner += _text(left + 4, vertical(line.points[0][1]) - 3, line.label, "tick over")
        (first, before), (last, after) = line.points[0], line.points[-1]
        said.append(f"{line.label} {before:.3g} at {first:g}, {after:.3g} at {last:g}".strip())
    return _svg(title, f"over {across}: {'; '.join(said)}", inner, HEIGHT)


def alone(drawings: Sequence[str], note: str) -> str:
    """Drawings beneath each other, and a line of explanation, as a file for itself, in the colours of a light page."""
    style, body, y = asset("plot.css"), "", 8.0
    named = dict(re.findall(r"(--[\w]+): (#\w+)", style))
    style = re.sub(r"var\((--\w+)\)", lambda found: named[found[1]], style[style.index("svg text") :])
    for drawing in drawings:
        height = float(re.search(r'height="([\d.]+)"', drawing)[1])  # type: ignore[index]
        body += drawing.replace("<svg ", f'<svg x="12" y="{y:g}" ', 1)
        y += height + 10
    body += _text(12, y + 8, note, "unit", most=70)
    size = f'width="{WIDTH + 24}" height="{y + 20:g}" viewBox="0 0 {WIDTH + 24} {y + 20:g}"'
    paper = f'<rect width="100%" height="100%" fill="{named["--paper"]}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{paper}{body}</svg>\n'


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: of equal stretches the mean.

    >>> thinned([(1, 1.0), (2, 3.0), (3, 5.0), (4, 7.0)], 2)
    [(1.5, 2.0), (3.5, 6.0)]
    """
    if len(points) <= most:
        return list(points)
    edges = [len(points) * k // most for k in range(most + 1)]
    parts = (points[a:b] for a, b in zip(edges, edges[1:], strict=False))
    return [(statistics.fmean(x for x, _ in part), statistics.fmean(y for _, y in part)) for part in parts]


def _reached(values: Sequence[float], ends: Iterable[float], log: bool) -> tuple[float, float]:
    """Ends of an axis: all values, and intervals where they end no farther out than values span, or most of them do."""
    values = [v for v in values if math.isfinite(v)]
    floor = min([LEAST, *(v for v in values if v > 0)]) if log and min(values) <= 0 else 1e-300
    into: Callable[[float], float] = (lambda v: math.log(max(v, floor))) if log else float
    low, high = into(min(values)), into(max(values))
    tails = [into(v) for v in ends if math.isfinite(v)]
    beyond = [max(low - v, v - high, 0.0) for v in tails] or [0.0]
    reach = max(high - low, statistics.median_low(beyond)) or max(beyond) or abs(low) or 1.0
    low = min([low, *(max(v, low - reach) for v in tails)])
    high = max([high, *(min(v, high + reach) for v in tails)])
    low, high = low - 0.04 * (high - low or 1), high + 0.04 * (high - low or 1)
    return (math.exp(low), math.exp(high)) if log else (low, high)


def _across(
    xs: Sequence[float], at: Sequence[float], left: float
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """The axis beneath: places of numbers, and names at some. Numbers `at` which it is drawn are equally far apart."""
    start, end = left + 10, WIDTH - 20.0
    if at:
        order = sorted(at)
        gap = (end - start) / max(len(order) - 1, 1)
        return (lambda x: start + gap * order.index(x)), [(start + gap * k, _number(x)) for k, x in enumerate(order)]
    scale = Scale(xs[0], xs[-1] if len(xs) > 1 else xs[0] + 1, left, end)
    return scale, [(scale(tick), _number(tick)) for tick in scale.ticks()]


def _mark(scale: Scale, mark: Mark, y: float) -> str:
    value, low, high = mark.metric[:3]
    inner = f"<title>{escaped(f'{mark.label} {mark.metric}')}</title>"
    inner += "".join(f'<circle class="seed" cx="{scale(v):.1f}" cy="{y:g}" r="2.4"/>' for v in mark.parts)
    if high > low:
        inner += f'<line x1="{scale(low):.1f}" y1="{y:g}" x2="{scale(high):.1f}" y2="{y:g}"/>'
        inner += _beyond(scale.start, -1, y) if low < scale.low else ""
        inner += _beyond(scale.end, 1, y) if high > scale.high else ""
    inner += f'<circle cx="{scale(value):.1f}" cy="{y:g}" r="3.6"/>'
    return f'<g class="mark {mark.colour}{" hollow" if mark.hollow else ""}">{inner}</g>'


def _beyond(x: float, sign: int, y: float) -> str:
    """The head of an arrow: an interval goes on."""
    return f'<path d="M{x:.1f} {y - 3:g}l{5 * sign} 3l{-5 * sign} 3z"/>'


def _curve(line: Curve, place: Callable[[float], float], vertical: Scale) -> str:
    found = [(place(x), vertical(y)) for x, y in line.points]
    inner = f"<title>{escaped(line.label)}</title>" if line.label else ""
    inner += f'<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in found)}"/>'
    if line.spans:
        for (x, y), (low, high) in zip(found, line.spans, strict=True):
            bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{vertical(low):.1f}" y2="{vertical(high):.1f}"/>'
            inner += f'<g class="mark">{bar if high > low else ""}<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"/></g>'
    return f'<g class="{line.colour}">{inner}</g>'


def _axis(scale: Scale, bottom: float) -> str:
    inner = _rule(scale.start, bottom, scale.end, bottom, "rule")
    for tick in scale.ticks():
        x = scale(tick)
        inner += _rule(x, 24, x, bottom + 3, "rule") + _text(x, bottom + 14, _number(tick), "tick middle")
    return inner


def _band(scale: Scale, real: Metric, y: float, height: float) -> str:
    if not real.high > real.low:
        return ""
    x, end = scale(real.low), scale(real.high)
    title = f"<title>fresh real data {escaped(real)}</title>"
    return f'<rect class="band" x="{x:.1f}" y="{y:g}" width="{end - x:.1f}" height="{height:g}">{title}</rect>'


def _band_over(vertical: Scale, real: Metric, left: float) -> str:
    top, bottom = vertical(real.high), vertical(real.low)
    title = f"<title>fresh real data {escaped(real)}</title>"
    width = WIDTH - 8 - left
    return f'<rect class="band" x="{left:g}" y="{top:.1f}" width="{width:g}" height="{bottom - top:.1f}">{title}</rect>'


def _rule(x: float, y: float, to_x: float, to_y: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, most: int = LONGEST) -> str:
    short = text if len(text) <= most else text[: most - 1] + "…"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escaped(short)}</text>'


def _number(value: float) -> str:
    """A tick: 0.5, 1,000, 10⁻⁶."""
    if value == 0 or 1e-3 <= abs(value) * (1 + 1e-9) < 1e5:
        return f"{value:,.6g}"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    front = f"{value / 10.0**power:.3g}"
    return ("" if front == "1" else f"{front}·") + "10" + str(power).translate(UP)


def _svg(title: str, said: str, inner: str, height: float) -> str:
    label = escaped(f"{title}: {said}")
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    return f'<svg {size} role="img" aria-label="{label}">{_text(0, 12, title, "title", most=54)}{inner}</svg>'
