"""The page that a report is: one file of HTML with its style, its pictures and a script that sorts its tables."""

import base64
import hashlib
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import quote

from PIL import Image

from rdm.data.pictures import decode
from rdm.escape import printable
from rdm.files.store import write_text

WIDEST = 1040  # pixels of a picture that is shown as it is; twice what a page gives it


class Cell(NamedTuple):
    """One cell of a table."""

    text: str
    key: float | str | None = None  # what the column sorts by; None for the text
    detail: str = ""  # small, beneath
    kind: str = ""  # "best", or "text" for one that is no number
    place: str = ""  # what the text leads to


@cache
def asset(name: str) -> str:
    """A style or script of this package."""
    return resources.files("rdm.reports").joinpath(name).read_text(encoding="utf-8")


def escaped(text: object) -> str:
    """Text of data as HTML shows it."""
    return html.escape(printable(text))


def write_page(folder: Path, title: str, lead: Sequence[str], sections: Mapping[str, str]) -> Path:
    """Write report.html of a folder: title, lines beneath it (HTML), and sections of HTML; returns its path."""
    script = asset("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    body = "".join(
        f'<section aria-labelledby="s{k}"><h2 id="s{k}">{escaped(head)}</h2>{inner}</section>'
        for k, (head, inner) in enumerate(sections.items())
    )
    lines = "".join(f'<p class="note">{line}</p>' for line in lead)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)} - rdm</title><style>{asset('plot.css')}{asset('page.css')}</style></head>"
        f"<body><main><header><h1>{escaped(title)}</h1>{lines}</header>{body}</main><script>{script}</script></body></html>\n"
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def note(text: str) -> str:
    """Explanation, a paragraph a line."""
    return "".join(f'<p class="note">{escaped(line)}</p>' for line in text.strip().split("\n"))


def link(words: str, place: str) -> str:
    """A link to a file in or near the report's folder, whatever its name looks like."""
    parts = "/".join(quote(part) for part in PurePosixPath(place).parts)
    return f'<a href="./{parts}">{escaped(words)}</a>'


def table(caption: str, heads: Sequence[str], rows: Iterable[tuple[Sequence[Cell], str]]) -> str:
    """A table that sorts; a row is its cells, the first of which names it, and its class."""
    rows, head, body = list(rows), "", ""
    for k, text in enumerate(heads):
        words = re.sub("([/_ ])", r"\1<wbr>", escaped(text))
        kind = ' class="text"' if any(cells[k].kind == "text" for cells, _ in rows) else ""
        head += f'<th scope="col"{kind}><button>{words}</button></th>'
    for cells, kind in rows:
        inner = "".join(_cell(cell, first=k == 0) for k, cell in enumerate(cells))
        body += f'<tr class="{kind}">{inner}</tr>' if kind else f"<tr>{inner}</tr>"
    inner = f"<caption>{escaped(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escaped(caption)}"><table>{inner}</table></div>'


def _cell(cell: Cell, *, first: bool) -> str:
    finite = not isinstance(cell.key, float) or math.isfinite(cell.key)
    key = "" if cell.key is None or not finite else f' data-key="{escaped(cell.key)}"'
    inner = link(cell.text, cell.place) if cell.place else escaped(cell.text)
    inner += f"<small>{escaped(cell.detail)}</small>" if cell.detail else ""
    inner = f"<b>{inner}</b>" if cell.kind == "best" else inner
    kind = f' class="{cell.kind}"' if cell.kind else ""
    return f'<th scope="row"{key}>{inner}</th>' if first else f"<td{kind}{key}>{inner}</td>"


def listed(entries: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Terms, each with what is said of it: lines of HTML."""
    inner = ""
    for name, lines in entries:
        inner += f"<dt>{escaped(name)}</dt>" + "".join(f"<dd>{line}</dd>" for line in lines)
    return f"<dl>{inner}</dl>"


def folded(summary: str, text: str) -> str:
    """Text as it is, which a click shows."""
    return f"<details><summary>{escaped(summary)}</summary><pre>{html.escape(text)}</pre></details>"


def legend(labels: Sequence[str]) -> str:
    """Which colour is whose; nothing to tell of a single one."""
    items = "".join(f'<li><i class="c{k % 8}"></i>{escaped(label)}</li>' for k, label in enumerate(labels))
    return f'<ul class="legend" aria-label="colours">{items}</ul>' if len(labels) > 1 else ""


def pictured(title: str, path: Path, *, beside: str = "", place: str = "") -> str:
    """A picture file as a figure: small ones enlarged without blur, those wider than `WIDEST` reduced.

    `beside` is said after the title, which leads to `place` where that is given.
    """
    data, kind, width, height = _embedded(path)
    head = link(title, place) if place else escaped(title)
    after = f" <span>{escaped(beside)}</span>" if beside else ""
    alt = escaped(f"samples: {title}" + (f", {beside}" if beside else ""))
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    small = ' class="enlarged"' if kind == "png" else ""
    return (
        f"<figure><figcaption>{head}{after}</figcaption>"
        f'<img{small} alt="{alt}" width="{width}" height="{height}" src="{source}"></figure>'
    )


def _embedded(path: Path) -> tuple[bytes, str, int, int]:
    """Bytes, format and size of a picture as a page holds it."""
    pixels = decode(path)
    height, width = pixels.shape[:2]
    if width <= WIDEST:
        return path.read_bytes(), "png", width, height
    image = Image.fromarray(pixels)
    image.thumbnail((WIDEST, height))
    reduced = io.BytesIO()
    image.convert("RGB").save(reduced, "JPEG", quality=88)
    return reduced.getvalue(), "jpeg", image.width, image.height
