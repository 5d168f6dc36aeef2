"""Texts, one a line: plain, or JSON with classes."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rdm.api import InputError, Source, sources
from rdm.data.sources._labels import whole

PLAIN, OBJECTS = ".txt", ".jsonl"
TEXTS = "text", "caption", "content", "prompt"  # keys of an object, the first that is there
LABELS = "label", "class", "y"


@sources.register("text_lines")
@dataclass(frozen=True)
class TextLines(Source):
    """A .txt of texts, one a line, or a .jsonl of texts or objects with "text" and an optional "label"; UTF-8 bytes."""

    kind = "text"
    path: Path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return path.is_file() and path.suffix.lower() in (PLAIN, OBJECTS)

    @cached_property
    def places(self) -> np.ndarray:
        """Number, beginning and end of every line that is not blank, "n 3"."""
        found, at = [], 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    found.append((number, at, at + len(line)))
                at += len(line)
        return np.array(found, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.places)

    def name(self, i: int) -> str:  # noqa: D102
        return f"line {self.places[i, 0]}"

    def line(self, i: int) -> str:
        """A line as it stands there."""
        _, begin, end = (int(each) for each in self.places[i])
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.read(end - begin).decode("utf-8-sig" if begin == 0 else "utf-8").strip("\r\n")

    def held(self, i: int) -> Any:
        """What the line says."""
        return json.loads(self.line(i)) if self.path.suffix.lower() == OBJECTS else self.line(i)

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        held = self.held(i)
        text = next((held[key] for key in TEXTS if key in held), None) if isinstance(held, dict) else held
        if not isinstance(text, str) or "\0" in text:
            keys = ", ".join(TEXTS)
            raise InputError(
                f"{self.path}: {self.name(i)}: expected a text without NUL, or an object with one under {keys}"
            )
        return np.frombuffer(text.encode(), np.uint8)

    def label(self, i: int) -> int:  # noqa: D102
        held = self.held(i) if self.path.suffix.lower() == OBJECTS else None
        key = next((key for key in LABELS if key in held), None) if isinstance(held, dict) else None
        return -1 if key is None or held is None else whole(held[key], f"{self.path}: {self.name(i)}: {key!r}")
