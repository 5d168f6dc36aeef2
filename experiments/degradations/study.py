"""Real pictures made worse step by step, each set judged against other real pictures of the same classes."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from rdm.app.judging import judge_source, measure_source
from rdm.data.source import Source, open_source
from rdm.errors import InputError
from rdm.files.store import write_json
from rdm.judging.samples import as_json
from rdm.references.file import Reference

Change = Callable[[np.ndarray, int], np.ndarray]  # an 8-bit picture "h w c" and its number
CLEAN = "clean"


class Sizes(NamedTuple):
    """Pictures of the reference, of the fresh split and of each judged set, all disjoint, classes equally often."""

    reference: int
    fresh: int
    judged: int


@dataclass(frozen=True)
class Part(Source):
    """Some items of a source, changed as they are read."""

    source: Source
    numbers: Sequence[int]
    change: Change | None = None

    @property
    def path(self) -> Path:  # type: ignore[override]  # noqa: D102
        return self.source.path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return False

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, i: int) -> str:  # noqa: D102
        return self.source.name(self.numbers[i])

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        array = self.source.read(self.numbers[i])
        return array if self.change is None else self.change(array, self.numbers[i])

    def label(self, i: int) -> int:  # noqa: D102
        return self.source.label(self.numbers[i])

    def grey(self, i: int) -> bool:  # noqa: D102
        return self.source.grey(self.numbers[i])


def blur(part: float, array: np.ndarray, number: int) -> np.ndarray:
    """Gaussian, its standard deviation the side over `part`."""
    return np.asarray(Image.fromarray(array).filter(ImageFilter.GaussianBlur(len(array) / part)))


def noise(deviation: float, array: np.ndarray, number: int) -> np.ndarray:
    """Gaussian on values in [0, 1], rounded to 8 bits again."""
    drawn = np.random.default_rng(number).normal(0, 255 * deviation, array.shape)
    return (array + drawn).round().clip(0, 255).astype(np.uint8)


def jpeg(quality: float, array: np.ndarray, number: int) -> np.ndarray:
    """Compressed and read again."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer))


FAULTS: Mapping[str, tuple[Callable[[float, np.ndarray, int], np.ndarray], tuple[float, ...]]] = {
    "blur": (blur, (64, 32, 16)),
    "noise": (noise, (0.05, 0.1, 0.2)),
    "jpeg": (jpeg, (50, 20, 5)),
}
DROPPED = "dropped classes"
COUNTS = 1, 3, 5  # classes left out, of ten


def split(labels: np.ndarray, sizes: Sizes, seed: int = 0) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the reference, of the fresh split and of the pool that judged sets are drawn from, class by class.

    Raises:
        InputError: too few pictures of a class.
    """
    source, parts = np.random.default_rng(seed), ([], [], [])
    classes = np.unique(labels)
    reference, fresh, judged = (size // len(classes) for size in sizes)
    pool = -(-sizes.judged // (len(classes) - max(COUNTS)))  # of a class, where the most classes are left out
    for label in classes:
        rows = source.permutation(np.flatnonzero(labels == label))
        if len(rows) < reference + fresh + max(pool, judged):
            raise InputError(f"class {label} has {len(rows)} pictures; {reference + fresh + pool} are needed")
        for part, chosen in zip(parts, np.split(rows, np.cumsum([reference, fresh, pool])), strict=False):
            part.extend(chosen.tolist())
    return parts


def drawn(pool: Sequence[int], labels: np.ndarray, count: int, dropped: int = 0) -> list[int]:
    """The first pictures of every class that is left, `count` in all."""
    left = np.unique(labels)[: len(np.unique(labels)) - dropped]
    chosen = [[i for i in pool if labels[i] == label] for label in left]
    shares = [count // len(left) + (k < count % len(left)) for k in range(len(left))]
    return [i for rows, share in zip(chosen, shares, strict=True) for i in rows[:share]]


def judged_sets(source: Source, pool: Sequence[int], labels: np.ndarray, count: int) -> Iterator[tuple[str, Part]]:
    """Every set by name: the clean one, each fault at each level, each number of classes left out."""
    rows = drawn(pool, labels, count)
    yield CLEAN, Part(source, rows)
    for fault, (change, levels) in FAULTS.items():
        for level in levels:
            yield f"{fault} {level:g}", Part(source, rows, partial(change, level))
    for dropped in COUNTS:
        yield f"{DROPPED} {dropped}", Part(source, drawn(pool, labels, count, dropped))


def run(
    data: Path,
    out: Path,
    sizes: Sizes,
    *,
    battery: str,
    arguments: Mapping[str, Any],
    names: Sequence[str] | None = None,
    workers: int = 0,
) -> None:
    """Measure the reference and judge every set, a JSON file each; what is there already is kept."""
    source = open_source(data)
    labels = np.array([source.label(i) for i in range(len(source))])
    reference, fresh, pool = split(labels, sizes)
    path = out / "real.safetensors"
    if not path.exists():
        parts = Part(source, reference), Part(source, fresh)
        measure_source(parts[0], path, fresh=parts[1], battery=battery, arguments=arguments, workers=workers)
    file = Reference.load(path)
    for name, part in judged_sets(source, pool, labels, sizes.judged):
        target = out / f"{name}.json"
        if not target.exists():
            verdict = judge_source(part, file, path, names=names, workers=workers)
            write_json(target, as_json(verdict, {"samples": name, "reference": str(path)}))
