"""The README as a package index shows it, its links whole; all else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINK = re.compile(r"(!?)(\[[^]]*\])\((?!\w+:|#)([^)\s]+)\)")  # one that is relative; ! begins a picture


def whole(link: re.Match[str]) -> str:
    """A link to a file of this version in the repository."""
    picture, text, path = link.groups()
    kind = "raw" if picture else "blob"
    return f"{picture}{text}({PROJECT['urls']['Repository']}/{kind}/v{PROJECT['version']}/{path})"


readme = LINK.sub(whole, (HERE / "README.md").read_text(encoding="utf-8"))
setup(long_description=readme, long_description_content_type="text/markdown")
