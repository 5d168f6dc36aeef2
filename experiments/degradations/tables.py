"""Tables of the study, in Markdown, from its JSON files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.degradations.study import CLEAN, COUNTS, DROPPED, FAULTS
from rdm.errors import InputError
from rdm.files.store import read_json
from rdm.judging.ratio import Ratio
from rdm.matching.metric import Metric
from rdm.registry import metrics, nearest

Verdicts = Mapping[str, Mapping[str, Metric]]  # of the judged sets, metrics by "metric/member"
LEVELS = {**{fault: levels for fault, (_, levels) in FAULTS.items()}, DROPPED: COUNTS}
UNITS = {"blur": "σ = side/", "noise": "σ = ", "jpeg": "quality ", DROPPED: ""}
NO_DIRECTION = {"kid_spread"}  # a property of the estimator


def tables(folder: Path, encoder: str | None = None) -> str:
    """Real against real, the ratios of every set, who sees what, and every metric on one encoder, the first's if none.

    Raises:
        InputError: no such encoder.
    """
    verdicts = load(folder)
    ratios = [name for name in measured(verdicts) if isinstance(metrics.build(name), Ratio)]
    known = encoders(verdicts, ratios[0])
    encoder = encoder or known[0]
    if encoder not in known:
        raise InputError(f"no encoder of the study is called {encoder!r}{nearest(encoder, known)}")
    parts = [
        ("Real against real", real_against_real(verdicts, ratios)),
        ("Ratios, means over all encoders", means(verdicts, ratios)),
        ("Encoders that see the fault", sight(verdicts)),
        *((f"Every metric on {encoder}: {fault}", values(verdicts, encoder, fault)) for fault in LEVELS),
    ]
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in parts) + "\n"


def load(folder: Path) -> Verdicts:
    """Verdicts by the set's name."""
    files = [folder / f"{name}.json" for name in (CLEAN, *(name for fault in LEVELS for name in steps(fault)))]
    return {file.stem: {key: Metric(**metric) for key, metric in read_json(file)["metrics"].items()} for file in files}


def steps(fault: str) -> list[str]:
    """Names of a fault's sets, the least first."""
    return [f"{fault} {level:g}" for level in LEVELS[fault]]


def titled(name: str) -> str:
    """A set's name with what its level means."""
    fault, _, level = name.rpartition(" ")
    return name if fault not in UNITS else f"{fault}, {UNITS[fault]}{level}"


def measured(verdicts: Verdicts) -> list[str]:
    """Metrics that say how good samples are, by name."""
    return [name for name in dict.fromkeys(k.split("/")[0] for k in verdicts[CLEAN]) if name not in NO_DIRECTION]


def encoders(verdicts: Verdicts, name: str) -> list[str]:
    """Encoders that a metric was measured on."""
    found = (key.partition("/")[2] for key in verdicts[CLEAN] if key.startswith(f"{name}/"))
    return [encoder for encoder in found if not encoder.startswith("mean of")]


def real_against_real(verdicts: Verdicts, ratios: Sequence[str]) -> str:
    """Ratios of the clean set by encoder."""
    members = [key.partition("/")[2] for key in verdicts[CLEAN] if key.startswith(f"{ratios[0]}/")]
    rows = ([member, *(shown(verdicts[CLEAN][f"{name}/{member}"]) for name in ratios)] for member in members)
    return table(["encoder", *ratios], rows)


def means(verdicts: Verdicts, ratios: Sequence[str]) -> str:
    """Ratios of every set, means over all encoders."""
    key = next(k.partition("/")[2] for k in verdicts[CLEAN] if k.startswith(f"{ratios[0]}/mean of"))
    sets = [CLEAN, *(name for fault in LEVELS for name in steps(fault))]
    return table(
        ["set", *ratios], ([titled(each), *(shown(verdicts[each][f"{n}/{key}"]) for n in ratios)] for each in sets)
    )


def sight(verdicts: Verdicts) -> str:
    """On how many encoders a metric gets worse at every step.

    In brackets, where it is not all of them: on how many the last step's interval lies beyond the clean one's.
    """
    rows = []
    for name in measured(verdicts):
        members, cells = encoders(verdicts, name), []
        for fault in LEVELS:
            paths = [[verdicts[each][f"{name}/{m}"] for each in (CLEAN, *steps(fault))] for m in members]
            monotone = sum(worsens(name, [metric.value for metric in path]) for path in paths)
            apart = sum(worse_beyond(name, path[0], path[-1]) for path in paths)
            cells.append(f"{monotone}" if apart == len(members) else f"{monotone} ({apart})")
        rows.append([f"{name}, of {len(members)}", *cells])
    return table(["metric", *LEVELS], rows)


def falls(name: str) -> bool:
    """Whether less is worse: of metrics whose best is not 0, but for ratios."""
    measure = metrics.build(name)
    return measure.best > 0 and not isinstance(measure, Ratio)


def worsens(name: str, values: Sequence[float]) -> bool:
    """Whether every value is worse than the one before; a share that is at 0 can fall no further."""
    steps = zip(values, values[1:], strict=False)
    return all(a > b or a == b == 0 for a, b in steps) if falls(name) else all(a < b for a, b in steps)


def worse_beyond(name: str, clean: Metric, damaged: Metric) -> bool:
    """Whether the damaged set's interval lies wholly on the worse side of the clean one's."""
    return damaged.high < clean.low if falls(name) else damaged.low > clean.high


def values(verdicts: Verdicts, encoder: str, fault: str) -> str:
    """Every metric on one encoder, or on the only one that it has, along one fault."""
    sets, rows = [CLEAN, *steps(fault)], []
    for name in measured(verdicts):
        members = encoders(verdicts, name)
        key = f"{name}/{encoder if encoder in members else members[0]}"
        rows.append([name, *(shown(verdicts[each][key]) for each in sets)])
    return table(["metric", *map(titled, sets)], rows)


def shown(metric: Metric) -> str:
    """Value and interval."""
    return f"{metric.value:.3g} [{metric.low:.3g}, {metric.high:.3g}]"


def table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
