"""The rules of the architecture: import directions, one gin, no member named in the core, complete docstrings."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rdm
from rdm.registry import registries

ROOT = Path(__file__).parent.parent
# A module may import those in its own line and below only.
LAYERS = """
rdm.__main__
rdm.commands rdm.sweep rdm.judge_commands
rdm.config rdm.sweep_report
rdm.explain
rdm.bindings
rdm.gallery
rdm.report
rdm.judge rdm.streaming
rdm.train rdm.evaluate rdm.measure
rdm.run rdm.partial
rdm.records
rdm.losses
rdm.population
rdm.memory rdm.balance rdm.distributed rdm.replay rdm.resumed
rdm.reference_file
rdm.accumulate rdm.reference_schema
rdm.ratio
rdm.metric
rdm.objective
rdm.landmarks
rdm.distances
rdm.reference
rdm.representation
rdm.items
rdm.source rdm.generator rdm.checkpoint rdm.augmentation rdm.data rdm.randomness rdm.schedule rdm.pictures rdm.progress
rdm.statistic rdm.store rdm.inputs rdm.schema
rdm.registry
rdm.terminal rdm.numbers rdm.trust
rdm.escape
rdm.errors rdm.autocast
"""
RANK = {name: -i for i, line in enumerate(LAYERS.split("\n")) for name in line.split()}
MEMBERS = {"objectives", "representations", "rdm.generators", "rdm.datasets", "rdm.metrics", "rdm.sources"}


def modules(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Names of the modules imported anywhere in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


CORE = [p for p in modules("rdm") if not any(dotted(p).startswith(m) for m in MEMBERS) and dotted(p) != "rdm"]


def test_every_core_module_has_its_place():
    assert {dotted(p) for p in CORE} == set(RANK)


@pytest.mark.parametrize("path", CORE, ids=dotted)
def test_imports_point_down(path):
    own = RANK[dotted(path)]
    for name in imports(path) & set(RANK):
        assert RANK[name] <= own and name != dotted(path), f"{dotted(path)} imports {name} from above"


def test_evaluation_imports_nothing_of_the_trainer():
    seen, todo = set(), ["rdm.evaluate"]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += [n for n in imports(ROOT / (name.replace(".", "/") + ".py")) if n in RANK]
    assert not seen & {"rdm.train", "rdm.losses", "rdm.run", "rdm.population"}


@pytest.mark.parametrize("path", CORE, ids=dotted)
def test_the_core_names_no_member(path):
    """No import of a member, and no member's registry name as a string in code."""
    kinds = "objectives representations batteries generators datasets networks metrics sources".split()
    words = {"precision", "rows"}  # which mean something else in the core
    names = {name for kind in kinds for name in registries[kind]} - words
    tree = ast.parse(path.read_text())
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings.add(id(node.body[0].value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            assert node.value not in names, f"{path.name}:{node.lineno} names {node.value!r}"
    assert not [name for name in imports(path) if any(name == m or name.startswith(f"{m}.") for m in MEMBERS)]


def test_members_import_no_members():
    for folder in ("objectives", "representations"):
        for path in modules(folder):
            for name in imports(path):
                top, _, rest = name.partition(".")
                assert top != folder or rest.startswith("_"), f"{dotted(path)} imports {name}"


def test_gin_is_imported_in_one_module_and_gin_torch_nowhere():
    importing = [p for p in modules("rdm", "objectives", "representations") if any(
        n == "gin" or n.startswith("gin.") for n in imports(p))]  # fmt: skip
    assert [dotted(p) for p in importing] == ["rdm.config"]
    assert "gin.torch" not in imports(importing[0])


def test_the_terminal_is_written_to_in_one_place():
    """Where names that come from data are escaped; the bar of progress shows by the same functions."""
    for path in modules("rdm", "objectives", "representations"):
        if dotted(path) not in ("rdm.terminal", "rdm.progress"):
            assert not any(n.startswith("rich") for n in imports(path)), dotted(path)
            printed = re.findall(r"^\s*print\((?!flush)(.*)", path.read_text(), re.M)
            assert not printed, dotted(path)


def test_collectives_are_in_one_module():
    for path in modules("rdm", "objectives", "representations"):
        if dotted(path) != "rdm.distributed":
            assert not any(n.startswith("torch.distributed") for n in imports(path)), dotted(path)


def test_nothing_unpickles_or_seeds_globally_or_hides_errors():
    forbidden = {
        r'\bpickle\b(?!\.find_class": "unpickle")': "pickle",  # but for the event that rdm.trust refuses
        r"torch\.load\((?!.*weights_only=True)": "torch.load",
        r"Image\.open\((?!.*formats=)": "Image.open without formats",
        r"allow_pickle=True": "allow_pickle", r"nan_to_num": "nan_to_num", r"except\s*:": "a bare except",
        r"np\.random\.seed": "a global seed",
    }  # fmt: skip
    for path in modules("rdm", "objectives", "representations"):
        for pattern, what in forbidden.items():
            assert not re.search(pattern, path.read_text()), f"{dotted(path)} uses {what}"
        if path.name != "randomness.py":
            seeds = re.findall(r"torch\.manual_seed", path.read_text())
            assert not seeds or path.name == "commands.py", f"{dotted(path)} seeds torch"


@pytest.mark.parametrize("package", ["rdm", "objectives", "representations"])
def test_public_things_have_docstrings(package):
    for path in modules(package):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{dotted(path)} has no docstring"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{dotted(path)}.{node.name} has no docstring"


def test_members_docstrings_give_shapes_and_cost():
    for kind in ("representations", "generators"):
        for entry in registries[kind].values():
            text = inspect.getdoc(entry.build) or ""
            assert "Shapes:" in text and "Cost:" in text, f"{kind}.{entry.name}"


def test_the_training_loop_stays_readable():
    assert len((ROOT / "rdm" / "train.py").read_text().splitlines()) < 150
    for path in modules("rdm", "objectives", "representations"):
        lines = len(path.read_text().splitlines())
        assert lines <= 330, f"{dotted(path)} has {lines} lines"


def test_importing_rdm_loads_no_optional_package_and_starts_no_accelerator():
    code = (
        "import sys, torch, rdm, objectives, representations; rdm.names('objectives'); rdm.names('representations')\n"
        "heavy = {'timm', 'open_clip', 'torchvision', 'transformers', 'diffusers', 'huggingface_hub'}\n"
        "heavy |= {'ot', 'geomloss', 'sklearn', 'matplotlib', 'scipy', 'gin'}\n"
        "print(sorted(heavy & set(sys.modules)), torch.cuda.is_initialized())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert shown.stdout.strip() == "[] False", shown.stdout + shown.stderr


def test_packages_are_typed():
    for package in ("rdm", "objectives", "representations", "experiments"):
        assert (ROOT / package / "py.typed").exists()
    assert rdm.__version__ != "0+unknown"
