"""What the build of the site makes: a page of every registry and of the public names, the gallery, formulas as MathML.

Nothing here names a member, a function or an example: what is registered, public or in examples/gallery is shown.
"""

import contextlib
import inspect
import io
import json
import re
import runpy
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from pygments.lexers.python import PythonLexer
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util import logging
from sphinx.util.osutil import FileAvoidWrite

import rdm
import rdm.api
from rdm.cli.show import BUILT, examples, facts, parameters
from rdm.registry import Entry, Registry, registries

DOCS = Path(__file__).parent
GENERATED = DOCS / "generated"  # ignored by git
GALLERY = DOCS.parent / "examples" / "gallery"
UNKNOWN_TO_DOCUTILS = {r"\\[bB]igg?[lr]?(?![a-zA-Z])": "", r"\\dots(?![a-zA-Z])": r"\\ldots"}
log = logging.getLogger(__name__)


def setup(app: Any) -> dict[str, bool]:
    """Make the pages before anything is read."""
    app.connect("builder-inited", make)
    app.connect("autodoc-process-docstring", lambda app, what, name, thing, options, lines: escape(lines))
    app.add_lexer("gin", PythonLexer)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True}


def make(app: Any) -> None:
    """Write the pages that follow from the code."""
    for kind in registries:
        _write(f"members/{kind}.rst", members(kind, app.config))
    shown = [name for name in rdm.__all__ if not isinstance(getattr(getattr(rdm, name), "__self__", None), Registry)]
    _write("rdm.rst", public("rdm", shown, "What `import rdm` gives", _builders()))
    others = [name for name in sorted(rdm.api.__all__) if name not in rdm.__all__]
    _write("rdm_api.rst", public("rdm.api", others, "What members import besides: rdm.api", []))
    _write("measured.md", measured(json.loads((DOCS.parent / "benchmarks" / "bars.json").read_text())))
    _write("gallery.md", gallery(sorted(GALLERY.glob("*.py"))))


def _write(name: str, lines: Iterable[str]) -> None:
    place = GENERATED / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileAvoidWrite(str(place)) as file:  # a page that is the same is not read again
        file.write("\n".join(lines) + "\n")


def members(kind: str, config: Any) -> Iterator[str]:
    """A page of a registry, in reStructuredText: what `rdm show` prints of each member."""
    yield from _title(kind.capitalize(), "=")
    for entry in registries[kind].values():
        yield f".. _{kind}.{entry.name}:\n"
        yield from _title(entry.name, "-")
        docstring = (inspect.getdoc(entry.build) or "").splitlines()
        escape(docstring)
        yield from GoogleDocstring(docstring, config).lines()
        yield from ("", *(f"* {fact}" for fact in _escaped(facts(entry))), "")
        yield from _parameters(entry)
        yield from (".. code-block:: text", "", *(f"   {line}" for line in examples(kind, entry)), "")


def _parameters(entry: Entry) -> Iterator[str]:
    if rows := parameters(entry):
        yield from (".. list-table::", "   :header-rows: 1", "")
        for row in (("parameter", "default", "takes"), *rows):
            name, default, takes = _escaped(row)
            yield f"   * - {name}\n     - {default.removeprefix('default ')}\n     - {takes}"
        yield ""


def public(module: str, names: Iterable[str], title: str, before: Iterable[str]) -> Iterator[str]:
    """A page of a module's classes and functions."""
    yield from _title(title, "=")
    yield from before
    yield f".. currentmodule:: {module}\n"
    for name in names:
        value = getattr(sys.modules[module], name)
        if inspect.isclass(value):
            yield f".. autoclass:: {name}\n   :members:\n"
        elif inspect.isroutine(value):
            yield f".. autofunction:: {name}\n"


def _builders() -> Iterator[str]:
    yield "Each of these builds a member by its name, with hyperparameters by keyword; a page lists what there is.\n"
    yield from (".. list-table::", "")
    yield from (f"   * - ``rdm.{name}(...)``\n     - :doc:`members/{kind}`" for kind, name in sorted(BUILT.items()))
    yield ""


def measured(bars: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What benchmarks measured last, beside what was aimed at, as a table in Markdown."""
    yield "| what | measured | aimed at | |\n| --- | --- | --- | --- |"
    for name, bar in bars.items():
        aim = f"at most {bar['most']}" if "most" in bar else f"at least {bar['least']}"
        yield f"| {name} | {bar['got']} | {aim} | {'' if bar['holds'] else 'missed'} |"
    yield f"\nOn {', '.join(sorted({bar['on'] for bar in bars.values()}))}."


def gallery(scripts: Iterable[Path]) -> Iterator[str]:
    """Run every example and show its picture, what its docstring says and its code, in Markdown."""
    for script in scripts:
        title, _, said = inspect.cleandoc(_docstring(script)).partition("\n")
        picture = GENERATED / "gallery" / f"{script.stem}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        printed = draw(script, picture)
        code = script.read_text().split('"""', 2)[2].strip()
        yield f"## {title.rstrip('.')}\n\n{said.strip()}\n\n![{title}](gallery/{picture.name})\n"
        if printed:
            yield f"It prints:\n\n```text\n{printed}```\n"
        place = script.relative_to(DOCS.parent)
        yield f"<details><summary>{place}</summary>\n\n```python\n{code}\n```\n\n</details>\n"


def draw(script: Path, picture: Path) -> str:
    """Run an example, which saves its picture where its argument says, and return what it prints."""
    said, before = io.StringIO(), sys.argv
    sys.argv = [str(script), str(picture)]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
    return said.getvalue()


def _docstring(script: Path) -> str:
    return script.read_text().split('"""', 2)[1]


def _title(text: str, line: str) -> tuple[str, ...]:
    return text, line * len(text), ""


def escape(lines: list[str]) -> None:
    """Take bars and asterisks in a docstring's prose, where they are mathematics, as they are."""
    indent = None  # of a block of formulas or code
    for number, line in enumerate(lines):
        own = len(line) - len(line.lstrip())
        if indent is not None and line.strip() and own <= indent:
            indent = None
        if indent is None and not line.lstrip().startswith((">>>", "...")):
            if line.rstrip().endswith("::") or line.lstrip().startswith(".. "):
                indent = own
            else:
                lines[number] = _escaped([line])[0]


def _escaped(texts: Iterable[str]) -> list[str]:
    return ["".join(part if k % 2 else re.sub(r"[|*]", r"\\\g<0>", part)
                    for k, part in enumerate(re.split(r"(`+[^`]*`+)", text))) for text in texts]  # fmt: skip


def _inline(self: Any, node: Any) -> None:
    self.body.append(_mathml(node, as_block=False))
    raise SkipNode


def _block(self: Any, node: Any) -> None:
    self.body.append(f'<div class="formula">{_mathml(node, as_block=True)}</div>')
    raise SkipNode


def _mathml(node: Any, as_block: bool) -> str:
    """A formula as browsers draw it themselves: no script and no font is fetched."""
    text = node.astext()
    for pattern, instead in UNKNOWN_TO_DOCUTILS.items():
        text = re.sub(pattern, instead, text)
    try:
        return tex2mathml(text, as_block=as_block)
    except MathError as error:
        log.warning("%s in the formula %s", error, text, location=node)
        return ""
