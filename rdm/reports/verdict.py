"""What was found of samples, on the terminal: the verdict in three lines, the table, classes and items."""

import sys
from collections.abc import Iterator

from rdm.judging.headline import headline
from rdm.judging.samples import Verdict, rows_of_table
from rdm.matching.metric import Metric
from rdm.references.file import Reference
from rdm.terminal import print_table, say

SHOWN = 10  # classes, and items, of a member


def print_verdict(verdict: Verdict, file: Reference) -> None:
    """All of it on standard output; of classes and items the worst."""
    width = None if sys.stdout.isatty() else 110
    for line in (*headline(verdict), ""):
        say(line, file=sys.stdout)
    print_table(
        ["metric", "encoder", "value", "95 %", "N", "seed"],
        rows_of_table(verdict),
        caption=f"reference {file.description.get('data')}; ratios: 1 is what a fresh real split scores",
        right=range(2, 6),
        unbroken=[0],
        width=width,
    )
    if verdict.classes:
        heads = ["metric", "encoder", "class", "value", "95 %", "N"]
        caption = f"the mean and the {SHOWN} classes farthest from their reference's; all of them: --json FILE"
        print_table(heads, _classes(verdict), caption=caption, right=range(2, 6), unbroken=[0], width=width)
    if verdict.items:
        heads = ["metric", "encoder", "item", "adds"]
        caption = f"the {SHOWN} items that add most: what the distance falls by without one; all of them: --json FILE"
        print_table(heads, _items(verdict), caption=caption, right=[3], unbroken=[0], width=width)
    for line in (*verdict.notes, *verdict.alarms):
        say(line, file=sys.stdout)


def _classes(verdict: Verdict) -> Iterator[tuple[str, ...]]:
    for key, found in verdict.classes.items():
        mean, *others = sorted(found.items(), key=lambda pair: (pair[0] != "mean", -pair[1].value))
        for label, metric in (mean, *others[:SHOWN]):
            yield *key.split("/", 1), label, f"{metric.value:.4g}", _interval(metric), str(metric.n)


def _items(verdict: Verdict) -> Iterator[tuple[str, ...]]:
    for key, found in verdict.items.items():
        for name, adds in found[:SHOWN]:
            yield *key.split("/", 1), name, f"{adds:.3g}"


def _interval(metric: Metric) -> str:
    return f"[{metric.low:.4g}, {metric.high:.4g}]"
