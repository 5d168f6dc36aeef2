"""Registries: names taken and unknown, temporary members, hints."""

import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rdm
from rdm.errors import InputError, UnknownNameError
from rdm.registry import Registry, objectives


def test_a_taken_name_is_an_error_that_names_both():
    registry = Registry("thing")
    registry.register("a")(dict)
    with pytest.raises(InputError, match=r"thing 'a' is taken by builtins.dict.*builtins.list"):
        registry.register("a")(list)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown objective 'frechett'; did you mean 'frechet'"):
        rdm.objective("frechett")
    with pytest.raises(UnknownNameError, match="known: "):
        rdm.objective("zzzz")
    with pytest.raises(InputError, match="no hyperparameter 'bandwith'; did you mean 'bandwidth'"):
        rdm.objective("mmd", bandwith=1.0)
    with pytest.raises(InputError, match="representation 'mobilenet' needs weights; `rdm show mobilenet` says"):
        rdm.representation("mobilenet")
    with pytest.raises(InputError, match="names\\(\\) takes one of objectives"):
        rdm.names("lawyers")


SLOW = Registry("thing", "slow_members")


def test_threads_wait_for_the_first_look_up(tmp_path, monkeypatch):
    """Eight threads at once see every member, and one that fails to be imported is tried again."""
    package = tmp_path / "slow_members"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "late.py").write_text("raise OSError('no')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OSError, match="no"):
        list(SLOW)
    (package / "late.py").write_text(
        "import time\nfrom tests.test_registry import SLOW\ntime.sleep(0.1)\n"
        "SLOW.register('late')(dict)\nassert 'late' in SLOW\n"
    )
    importlib.invalidate_caches()
    barrier, seen = threading.Barrier(8), []
    threads = [threading.Thread(target=lambda: (barrier.wait(), seen.append(list(SLOW)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["late"]] * 8


def test_temporary_members_go():
    with objectives.temporarily():
        objectives.register("passing")(dict)
        assert "passing" in rdm.names("objectives")
    assert "passing" not in rdm.names("objectives")


@pytest.mark.parametrize("kind", ["objectives", "representations", "batteries", "generators", "datasets"])
def test_every_member_says_what_it_is(kind):
    assert rdm.names(kind) == sorted(rdm.names(kind))
    for entry in rdm.registry.registries[kind].values():
        assert entry.summary.endswith("."), f"{kind}.{entry.name} has no one-line summary"


TYPED = {
    "rdm.objective('energy')": "Objective",
    "rdm.battery('untrained')": "Battery",
    "rdm.representation('pixels')": "Representation",
    "rdm.metric('fd')": "Measure",
    "rdm.memory('ema')": "Memory",
    "rdm.balance('uniform')": "Balance",
    "rdm.generator('mlp')": "Generator",
    "rdm.distance('energy', x, x)": "Tensor",
    "rdm.Population('energy', 'pixels', x).to('cpu')": "Population",
    "rdm.Population('energy', 'pixels', x).loss(torch.nn.Linear(2, 2), x)": "Tensor",
}
WRONG = "rdm.objective(3)", "rdm.objective('energy').nothing", "rdm.Population('energy', 'pixels', x, chunk='all')"


def test_a_type_checker_knows_what_names_build(tmp_path):
    """Names are any text, since other packages have members too; a wrong one is an error when it is built."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    lines = ["import rdm, torch", "x = torch.zeros(2, 2)", *(f"reveal_type({text})" for text in TYPED), *WRONG]
    (tmp_path / "user.py").write_text("\n".join(lines))
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(Path(rdm.__file__).parents[1])]}))
    run = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    found = json.loads(subprocess.run(run, capture_output=True, text=True).stdout)["generalDiagnostics"]
    said = [(each["range"]["start"]["line"], each["severity"], each["message"].splitlines()[0]) for each in found]
    revealed = {line: text.rpartition(" is ")[2].strip('"') for line, kind, text in said if kind == "information"}
    assert list(revealed.values()) == list(TYPED.values())
    assert {line for line, kind, _ in said if kind == "error"} == {len(lines) - k for k in (1, 2, 3)}
