"""The README's examples run as printed."""

import re
import subprocess
import sys
from pathlib import Path

import torch

import rdm
from rdm.memory import EMA, NoMemory, Queue
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
    (tmp_path / "mean_shift.py").write_text(OBJECTIVE)
    code = (
        f"import objectives; objectives.__path__.append({str(tmp_path)!r})\n"
        "import doctest, rdm, torch\n"
        "assert 'mean_shift' in rdm.names('objectives')\n"
        "import objectives.mean_shift\n"
        "failed, tried = doctest.testmod(objectives.mean_shift)\n"
        "assert tried == 2 and not failed\n"
        "print(float(rdm.distance('mean_shift', torch.ones(3, 2), torch.zeros(4, 2))))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout.strip() == "2.0", shown.stderr


def test_the_added_objective_passes_the_tests_of_every_objective():
    with rdm.registry.objectives.temporarily():
        exec(OBJECTIVE, {"__name__": "mean_shift"})
        for test in (every.test_sign_and_identity, every.test_a_doubled_weight_is_a_duplicated_row,
                     every.test_gradient_against_finite_differences):  # fmt: skip
            test("mean_shift", {})
        every.test_wrong_input_is_refused_in_words("mean_shift", {})
        every.test_is_a_frozen_dataclass_with_a_complete_docstring("mean_shift")
        for memory in (NoMemory(), EMA(0.9), Queue(130)):
            problem = Problem(rdm.objective("mean_shift"), memory)
            assert relative_error(problem.gradient(7), problem.oracle(7)) <= 1e-11


def test_files_and_commands_that_the_readme_names_exist():
    root = Path(__file__).parent.parent
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (root / path).exists(), path
    for path in re.findall(r"experiments/[\w/]+\.gin", README):
        assert (root / path).exists(), path
    assert torch.is_tensor(rdm.distance("mmd", torch.randn(4, 2), torch.randn(4, 2), bandwidth="median"))
