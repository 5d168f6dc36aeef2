"""The README's examples run as printed."""

import dataclasses
import inspect
import itertools
import re
import subprocess
import sys
import types
from pathlib import Path

import torch

import rdm
from rdm.matching.memory import EMA, NoMemory, Queue
from rdm.randomness import seeded
from tests import test_every_objective as every
from tests.problems import Problem, relative_error

README = (Path(__file__).parent.parent / "README.md").read_text()
TRAINING, OBJECTIVE = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_readers_own_generator_in_twelve_lines():
    assert len(TRAINING.strip().splitlines()) <= 12
    distances = {}
    for steps in (1, 100):
        names: dict = {}
        with seeded(0):
            exec(TRAINING.replace("range(100)", f"range({steps})"), names)
        distances[steps] = names["taken"].distances
    assert set(distances[100]) == {"pixels", "pca", "random_convolutions"}
    assert all(distances[100][k] < distances[1][k] / 3 for k in distances[1])


def test_an_objective_is_added_by_one_file(tmp_path):
    (tmp_path / "marginal_energy.py").write_text(OBJECTIVE)
    code = (
        f"import objectives; objectives.__path__.append({str(tmp_path)!r})\n"
        "import doctest, rdm, torch\n"
        "assert 'marginal_energy' in rdm.names('objectives')\n"
        "import objectives.marginal_energy\n"
        "failed, tried = doctest.testmod(objectives.marginal_energy)\n"
        "assert tried == 2 and not failed\n"
        "print(float(rdm.distance('marginal_energy', torch.ones(3, 2), torch.zeros(4, 2))))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout.strip() == "4.0", shown.stderr


def test_the_added_objective_passes_the_tests_of_every_objective(monkeypatch):
    module = types.ModuleType("marginal_energy")
    monkeypatch.setitem(sys.modules, "marginal_energy", module)  # where unpickling looks for its class
    with rdm.registry.objectives.temporarily():
        exec(OBJECTIVE, vars(module))
        tests = {name: test for name, test in vars(every).items() if name.startswith("test_")}
        assert len(tests) >= 14
        for test in tests.values():
            for arguments in _arguments(test):
                test(**arguments)
        for memory in (NoMemory(), EMA(0.9), Queue(130)):
            problem = Problem(rdm.objective("marginal_energy"), memory)
            assert relative_error(problem.gradient(7), problem.oracle(7)) <= 1e-11


def _arguments(test) -> list[dict]:
    """What pytest would call a test with, for the README's objective alone."""
    marks = {mark.args[0]: mark.args[1] for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"}
    over = {key: values for key, values in marks.items() if key.partition(",")[0] == "name"}
    if not any(_members(values) >= set(rdm.names("objectives")) - {"marginal_energy"} for values in over.values()):
        return []  # a test of no member, or of some
    own = {
        "name": ["marginal_energy"],
        "example": [{}],
        "parameter": [f.name for f in dataclasses.fields(rdm.registry.objectives["marginal_energy"].build)],
    }
    others = {key: values for key, values in marks.items() if key not in over}
    taken = {key: values for key, values in {**own, **others}.items() if key in inspect.signature(test).parameters}
    assert set(taken) == set(inspect.signature(test).parameters), test
    return [dict(zip(taken, values, strict=True)) for values in itertools.product(*taken.values())]


def _members(cases) -> set[str]:
    """Names in the first place of a test's cases."""
    values = [getattr(case, "values", case) for case in cases]
    return {value if isinstance(value, str) else value[0] for value in values}


def test_paths_that_the_readme_names_exist():
    root = Path(__file__).parent.parent
    for path in re.findall(r"experiments/[\w/]+\.gin", README):
        assert (root / path).exists(), path
    assert torch.is_tensor(rdm.distance("mmd", torch.randn(4, 2), torch.randn(4, 2), bandwidth="median"))
