"""The examples of the documentation run as printed."""

import re
from pathlib import Path

import pytest

from rdm.errors import InputError
from rdm.randomness import seeded

ROOT = Path(__file__).parent.parent / "docs"
PAGES = sorted(page for page in ROOT.glob("*.md") if page.stem != "new_domain")  # test_new_domain.py


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def test_an_encoder_takes_less_than_ten_lines():
    blocks = examples(ROOT / "representations.md")
    assert len(blocks) >= 6 and all(len(block.strip().splitlines()) < 10 for block in blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in examples(page):
        try:
            with seeded(0):
                exec(block, names)
        except InputError as error:
            if 'pip install "rdm-torch[' not in str(error):
                raise
            # the example of an extra that is not installed
