"""The examples of the documentation run as printed."""

import ast
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from rdm.errors import InputError
from rdm.randomness import seeded
from rdm.registry import registries

ROOT = Path(__file__).parent.parent / "docs"
PAGES = sorted(page for page in ROOT.glob("*.md") if page.stem != "new_domain")  # test_new_domain.py


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with ExitStack() as stack:
        for registry in registries.values():
            stack.enter_context(registry.temporarily())
        for block in examples(page):
            try:
                with seeded(0):
                    exec(block, names)
            except InputError as error:
                if 'pip install "rdm-torch[' not in str(error):
                    raise
                # the example of an extra that is not installed
