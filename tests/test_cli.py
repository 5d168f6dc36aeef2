"""The command line's own commands: lists from an index, show, completion, the package's gin files by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rdm
from rdm.__main__ import main
from rdm.cli import index as indexed
from rdm.cli.index import index, members
from rdm.cli.listing import configuration
from rdm.registry import registries

ROOT = Path(__file__).parent.parent
QUICK = """
import contextlib, io, sys
from rdm.__main__ import main
for words in ("--help", "--version", "list", "list objective --json", "list experiments", "completion words li"):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
        main(words.split())
    assert said.getvalue(), words
assert not {"torch", "numpy", "rich", "gin"} & set(sys.modules)
"""


def printed(capsys, *words: str, status: int = 0) -> str:
    capsys.readouterr()
    assert main(words) == status
    said = capsys.readouterr()
    return said.err if status else said.out


def test_help_and_lists_import_nothing_slow():
    index()  # which writes it
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, cwd="/", env=environment)
    assert shown.returncode == 0, shown.stderr


def test_the_index_is_what_the_registries_hold_and_made_anew_when_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("RDM_CACHE", str(tmp_path / "cache"))
    assert index() == index() == members()
    (place,) = (tmp_path / "cache").iterdir()
    whole = json.loads(place.read_text())
    for text in ("{", "[]", json.dumps({**whole, "stamp": "another"}), json.dumps({**whole, "members": {"a": [1]}})):
        place.write_text(text)
        assert index() == members() and json.loads(place.read_text()) == whole, text


def test_the_index_depends_on_sources_and_on_installed_packages(tmp_path, monkeypatch):
    (tmp_path / "objectives").mkdir()
    (file := tmp_path / "objectives" / "mine.py").write_text("one")
    monkeypatch.setattr(indexed, "HOME", tmp_path)
    stamps = [indexed._stamp()]
    file.write_text("other")
    stamps.append(indexed._stamp())
    (facts := tmp_path / "theirs-1.5.dist-info").mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.5\n")
    (facts / "entry_points.txt").write_text("[rdm.members]\ntheirs = theirs.members\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    stamps.append(indexed._stamp())
    (package := tmp_path / "theirs").mkdir()
    (package / "members.py").write_text("")
    stamps.append(indexed._stamp())
    assert len(set(stamps)) == 4 and stamps[-1] == indexed._stamp()


def test_lists(capsys):
    plain = printed(capsys, "list", "objective")
    assert plain == printed(capsys, "list", "objectives") and plain.startswith("objectives:\n  classwise  ")
    found = json.loads(printed(capsys, "list", "--json"))
    assert [row["name"] for row in found["objectives"]] == rdm.names("objectives") and "memories" not in found
    assert "weights absent" in printed(capsys, "list", "representations", "--weights")
    assert "  digits/frechet_ema  " in printed(capsys, "list", "experiments")
    assert "rdm list takes one of objectives" in printed(capsys, "list", "lawyers", status=2)


def test_show_gives_docstring_parameters_defaults_and_an_example(capsys):
    text = printed(capsys, "show", "mmd_rff")
    entry = registries["objectives"]["mmd_rff"]
    assert text.startswith("mmd_rff (objective)\n\n" + entry.summary)
    assert 'rdm.objective("mmd_rff", ' in text and "@objectives.mmd_rff()" in text and "\n  features " in text
    both = printed(capsys, "show", "kid")
    assert "kid (objective)" in both and "kid (metric)" in both
    assert "kid (objective)" not in printed(capsys, "show", "metrics.kid") == printed(capsys, "show", "metric/kid")
    text = printed(capsys, "show", "inception")
    assert "licence: Apache-2.0" in text and "weights: " in text
    assert "default 'pool3'; 'pool3' or 'logits'" in text and "default 299; a whole number" in text
    assert "did you mean 'frechet'" in printed(capsys, "show", "frechett", status=2)
    text = printed(capsys, "show", "digits/mmd_exact.gin")
    assert "include 'post_train.gin'" in text and "\nin a shell: rdm train digits/mmd_exact\n" in text
    assert "rdm sweep spiral/memories" in printed(capsys, "show", "spiral/memories")
    assert "did you mean 'digits/flow'" in printed(capsys, "show", "digits/flows", status=2)


@pytest.mark.parametrize("kind", sorted(registries))
def test_every_member_is_shown(capsys, kind):
    for name in registries[kind]:
        assert "parameters:" in printed(capsys, "show", f"{kind}.{name}")


def test_gin_files_of_the_package_go_by_name_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    for name in ("digits/classifier", "experiments/digits/classifier.gin", "digits/classifier.gin"):
        assert configuration(Path(name)) == ROOT / "experiments" / "digits" / "classifier.gin"
    assert "did you mean 'digits/frechet_ema'" in printed(capsys, "train", "digits/frechet_em", status=2)
    assert "`rdm list experiments` names" in printed(capsys, "sweep", "zz", status=2)
    (tmp_path / "digits" / "classifier").write_text("rdm.train.none = 1")
    assert "digits/classifier:1" in printed(capsys, "train", "digits/classifier", status=2), "what is there goes first"


@pytest.mark.parametrize("words, said", [
    ([], "COMMAND"), (["help"], "COMMAND"), (["help", "train"], "CONFIG.gin"), (["--version"], rdm.__version__),
])  # fmt: skip
def test_bare_help_and_version(capsys, words, said):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0 and said in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_flags_and_names():
    cases = {"evaluate x --ref": "--reference", "list objecti": "objectives", "show mmd_r": "mmd_r mmd_rff"}
    cases |= {"reference x --battery pixels,pc": "pixels,pca", "train digits/frech": "digits/frechet_ema"}
    script = [f'rdm() {{ {sys.executable} -m rdm "$@"; }}', 'eval "$(rdm completion bash)"']
    for words in cases:
        script.append(f"COMP_WORDS=(rdm {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _rdm_complete")
        script.append('echo "${COMPREPLY[@]}"')
    shown = subprocess.run(["bash", "-c", "\n".join(script)], capture_output=True, text=True)
    assert shown.stdout.splitlines() == list(cases.values()), shown.stderr
