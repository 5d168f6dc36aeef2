"""The examples and commands of the documentation run as printed, its links lead somewhere, and the site is built."""

import ast
import doctest
import re
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import rdm
from rdm.__main__ import main
from rdm.cli.listing import configuration
from rdm.cli.parser import parser
from rdm.errors import InputError
from rdm.randomness import seeded
from rdm.registry import registries
from tests.processes import Command, module

CHECKOUT = Path(__file__).parent.parent
ROOT = CHECKOUT / "docs"
PAGES = sorted(p for p in ROOT.rglob("*.md") if p.stem != "new_domain" and "generated" not in p.parts)  # its own test
RUN = [page for page in PAGES if re.search("```(python|pycon|console)", page.read_text())]
READ = [p for folder in ("docs", "experiments", "examples") for p in sorted((CHECKOUT / folder).rglob("*.md"))]
READ = sorted(CHECKOUT.glob("*.md")) + [p for p in READ if "generated" not in p.parts]
STUDIES = "experiments", *sorted(path.parent.name for path in (CHECKOUT / "experiments").glob("*/__init__.py"))


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def test_an_encoder_takes_less_than_ten_lines():
    blocks = examples(ROOT / "representations.md")
    assert len(blocks) >= 6 and all(len(block.strip().splitlines()) < 10 for block in blocks)


def test_a_generator_takes_less_than_15_lines():
    nodes = [node for block in examples(ROOT / "generators.md") for node in ast.parse(block).body]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    assert len(classes) >= 2
    for node in classes:
        assert node.end_lineno - min([node.lineno, *(d.lineno for d in node.decorator_list)]) + 1 < 15


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_examples_run_in_order(page, tmp_path, monkeypatch, capsys, untyped):
    """Python, sessions with what they show, commands with what they say, and files that a block's first line names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict = {}
    with ExitStack() as stack:
        for registry in registries.values():
            stack.enter_context(registry.temporarily())
        for kind, block in re.findall(r"^```(python|pycon|console|py|gin)\n(.*?)```", page.read_text(), re.S | re.M):
            if kind == "python":
                run(block, names)
            elif kind == "pycon":
                session(block, names)
            elif kind == "console":
                commands(block, capsys)
            elif name := re.match(r'(?:"""|# )([\w.]+): ', block):
                (tmp_path / name[1]).write_text(block)
    for name in {path.stem for path in tmp_path.glob("*.py")}:
        sys.modules.pop(name, None)


def run(block: str, names: dict) -> None:
    try:
        with seeded(0):
            exec(block, names)
    except InputError as error:
        if 'pip install "rdm-torch[' not in str(error):
            raise
        # the example of an extra that is not installed


def session(block: str, names: dict) -> None:
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(block, names, "session", None, None)
    doctest.DocTestRunner().run(test, out=said.append, clear_globs=False)
    names |= test.globs
    assert not said, "".join(said)


def commands(block: str, capsys: pytest.CaptureFixture) -> None:
    """Each ends with status 0, or says what stands below it."""
    for line, expected in re.findall(r"^\$ (?:python -m )?rdm (.*)\n((?:[^$].*\n)*)", block, re.M):
        status = main(shlex.split(line))
        said = "".join(capsys.readouterr())
        assert " ".join(expected.split()) in " ".join(said.split()) if expected else status == 0, said


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        if "://" in path:
            continue
        found = page.parent / path if path else page
        assert found.is_file(), f"{target}: expected a file, which both a code host and the site show"
        assert found.is_relative_to(page.parent) or found.resolve().is_relative_to(CHECKOUT), target
        assert not heading or heading in headings(found), f"{target}: {sorted(headings(found))}"


def headings(page: Path) -> set[str]:
    """Anchors, as code hosts and the site make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_commands_have_flags_that_there_are_and_configurations_of_the_package(page):
    text = page.read_text().replace("\\\n", " ")
    shown = [*re.findall(r"^```.*?^```$", text, re.S | re.M), *re.findall(r"^ {4}.*$", text, re.M)]
    for line in re.findall(r"^ *(?:\$ )?(?:python -m )?rdm ([a-z].*)$", "\n".join(shown), re.M):
        options = parser().parse_args(shlex.split(re.split(r" & | \| ", line)[0], comments=True))
        if re.match(rf"({'|'.join(STUDIES)})/", str(config := getattr(options, "config", ""))):
            assert configuration(config).is_file()


@pytest.mark.slow
def test_the_site_is_built_without_warnings(tmp_path):
    """With every member, public name and example; nothing is fetched to look at it."""
    pytest.importorskip("sphinx")
    site = tmp_path / "site"
    words = "--fail-on-warning", "--nitpicky", "-b", "html", "-c", "docs", "-d", str(tmp_path / "trees"), ".", str(site)
    building = Command(module, "sphinx", *words, cwd=CHECKOUT)
    said = building.communicate(timeout=300)
    assert building.returncode == 0, said
    pages = {str(page.relative_to(site)): page.read_text() for page in site.rglob("*.html")}
    for kind, registry in registries.items():
        page = pages[f"docs/generated/members/{kind}.html"]
        assert all(f'id="{kind}-{name}"'.replace("_", "-") in page for name in registry), kind
    assert all(f"rdm.{name}" in pages["docs/generated/rdm.html"] for name in rdm.__all__)
    scripts = list((CHECKOUT / "examples" / "gallery").glob("*.py"))
    assert len(scripts) >= 4 and all((site / "_images" / f"{script.stem}.png").stat().st_size for script in scripts)
    outside = {
        text for page in pages.values() for text in re.findall(r'<(?:script|link|img)[^>]*"(https?:[^"]*)"', page)
    }
    assert not outside
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?https?:|@import\s+[\"']?https?:", style.read_text()), style
