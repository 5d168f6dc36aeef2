"""Members of installed packages, and a folder of the user's that is called as one of rdm's."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import rdm
from rdm import registry
from rdm.errors import InputError

ROOT = Path(__file__).parent.parent
MEMBERS = """
from rdm.api import InputError, objectives
try:
    objectives.register("energy")(lambda: None)  # before rdm's own are imported
except InputError as error:
    assert "'energy' is taken by objectives.energy.Energy" in str(error)
else:
    raise AssertionError("the name was free")
assert "energy" in objectives  # a look-up while it is imported

@objectives.register("theirs")
def theirs():
    "An objective of a package."
    return objectives.build("energy")
"""
LOOKS = """
import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import rdm
    assert {"energy", "theirs"} <= set(rdm.names("objectives")), rdm.names("objectives")
assert any("rename that folder" in str(w.message) for w in said), said
import objectives
assert hasattr(objectives, "__path__") and not hasattr(objectives, "MINE")
"""


def package(folder: Path, code: str) -> None:
    """An installed package as pip leaves it, whose entry point names a module."""
    facts = folder / "theirs-1.5.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.5\n")
    (facts / "entry_points.txt").write_text("[rdm.members]\ntheirs = their_members\n")
    (folder / "their_members.py").write_text(code)


def python(code: str, *folders: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (*folders, ROOT)))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)


def test_installed_members_are_found_beside_rdm_s_own_whatever_lies_in_the_folder(tmp_path):
    package(tmp_path, MEMBERS)
    mine = tmp_path / "work" / "objectives"
    mine.mkdir(parents=True)
    (mine / "__init__.py").write_text("MINE = True")
    shown = python(LOOKS, tmp_path, cwd=mine.parent)
    assert shown.returncode == 0, shown.stderr


def test_a_folder_imported_under_a_name_of_rdm_s_is_named(tmp_path, monkeypatch):
    mine = types.ModuleType("objectives")
    mine.__file__ = str(tmp_path / "objectives" / "__init__.py")
    monkeypatch.setitem(sys.modules, "objectives", mine)
    with pytest.raises(InputError, match=f"{tmp_path}/objectives is imported under that name; rename that folder"):
        rdm.registry.Registry("thing").build("any")


def test_a_package_whose_members_cannot_be_imported_is_named(tmp_path, monkeypatch):
    package(tmp_path, "raise OSError('no such thing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_installed", {"begun": False, "done": False})
    for _ in range(2):  # every time, until it is mended
        with pytest.raises(InputError, match=r"theirs 1\.5: its module their_members .*OSError: no such thing.*mend"):
            rdm.names("objectives")
