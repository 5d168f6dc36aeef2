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
# Rooms from the top floor down. A module may import from its own room and from the floors below, and from no room
# beside its own. Modules of the ground may import each other, in a line without circles.
FLOORS = """
rdm.__main__
rdm.cli
rdm.app
rdm.reports rdm.planning
rdm.judging rdm.training
rdm.rehearsing
rdm.population rdm.scaling
rdm.references rdm.generators rdm.comparing
rdm.matching
rdm.data rdm.surviving
rdm.files rdm.timing rdm.sweeping
rdm.progress rdm.terminal rdm.escape rdm.trust rdm.distributed rdm.randomness rdm.registry rdm.numbers rdm.errors
"""
FLOOR = {room: -k for k, line in enumerate(FLOORS.split("\n")) for room in line.split()}
MEMBERS = (
    "objectives",
    "representations",
    "rdm.datasets",
    "rdm.data.sources",
    "rdm.data.conditions",
    "rdm.judging.metrics",
    "rdm.generators",
    "rdm.losses",
    "rdm.trackers",
    "rdm.monitors",
    "rdm.engines",
)
FACES = "rdm", "rdm.api"  # which hand names on


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


def is_member(name: str) -> bool:
    """Whether a module holds members; the generators' protocol is core."""
    return name != "rdm.generators.protocol" and any(name.startswith(f"{m}.") for m in MEMBERS)


def room(name: str) -> str:
    """Where a module lives: a folder, or a module of the ground by itself."""
    folders = [m for m in (*MEMBERS, *FLOOR) if name == m or name.startswith(f"{m}.")]
    return max(folders, key=len, default=name)


ALL = {dotted(p): p for p in modules("rdm", "objectives", "representations")}
CORE = [p for name, p in ALL.items() if not is_member(name) and name not in (*FACES, *MEMBERS)]


def arrows() -> set[tuple[str, str]]:
    """Rooms that import from rooms; the ground is one, and the face that members import is none."""
    ground = {name for name, floor in FLOOR.items() if floor == min(FLOOR.values())}
    place = {name: "ground" if room(name) in ground else room(name) for name in ALL}
    pairs = {
        (place[name], place[other]) for name, p in ALL.items() if name not in FACES for other in imports(p) & ALL.keys()
    }
    return {(a, b) for a, b in pairs if a != b and b not in FACES}


def test_every_core_module_has_a_room_and_no_room_is_crowded():
    assert {room(dotted(p)) for p in CORE} == set(FLOOR)
    for folder in [ROOT / name.replace(".", "/") for name in FLOOR if "." in name] + [ROOT / "rdm"]:
        if folder.is_dir():
            files = [p for p in folder.glob("*.py") if p.name not in ("__init__.py", "__main__.py")]
            assert len(files) <= 10, f"{folder.name}: {[p.name for p in files]}"
            assert folder.name == "rdm" or ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


@pytest.mark.parametrize("path", CORE, ids=dotted)
def test_imports_point_down(path):
    own = room(dotted(path))
    ground = min(FLOOR.values())
    for name in imports(path) & ALL.keys():
        other = room(name)
        assert other == own or name == "rdm" or FLOOR[other] < FLOOR[own] or FLOOR[own] == ground, (
            f"{dotted(path)} imports {name}, which is not below it"
        )


def test_rooms_are_tied_by_at_most_a_hundred_arrows():
    found = arrows()
    assert len(found) <= 100, sorted(found)


def test_members_import_the_public_face_alone():
    for name, path in ALL.items():
        if is_member(name):
            own = {n for n in ALL if n.startswith(room(name) + ".")}
            foreign = {n for n in imports(path) & ALL.keys() if n not in own} - {"rdm", *MEMBERS}
            shared = {n for n in foreign if n.startswith("objectives.")}  # a metric may judge by an objective's algebra
            assert foreign - shared <= {"rdm.api"}, f"{name} imports {sorted(foreign)}"


def test_no_public_function_hides_a_module():
    for name in rdm.__all__:
        assert f"rdm.{name}" not in ALL, name


@pytest.mark.parametrize("path", CORE, ids=dotted)
def test_the_core_names_no_member(path):
    """No import of a member, and no member's registry name as a string in code."""
    kinds = "objectives representations batteries generators datasets networks metrics sources conditions".split()
    words = {"precision", "rows", "torchvision", "timm", "open_clip"}  # which mean something else in the core
    words |= {"labels", "embeddings", "none"}
    names = {name for kind in kinds for name in registries[kind]} - words
    tree = ast.parse(path.read_text())
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings.add(id(node.body[0].value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            assert node.value not in names, f"{path.name}:{node.lineno} names {node.value!r}"
    assert not [name for name in imports(path) & ALL.keys() if is_member(name)]


def test_members_import_no_members():
    for folder in ("objectives", "representations"):
        for path in modules(folder):
            for name in imports(path):
                top, _, rest = name.partition(".")
                assert top != folder or rest.startswith("_"), f"{dotted(path)} imports {name}"


def test_gin_is_imported_in_one_module_and_gin_torch_nowhere():
    importing = [p for p in modules("rdm", "objectives", "representations") if any(
        n == "gin" or n.startswith("gin.") for n in imports(p))]  # fmt: skip
    assert [dotted(p) for p in importing] == ["rdm.app.config"]
    assert "gin.torch" not in imports(importing[0])


def test_the_terminal_is_written_to_in_one_place():
    """Where names that come from data are escaped; the bar of progress shows by the same functions."""
    for path in modules("rdm", "objectives", "representations"):
        if dotted(path) not in ("rdm.terminal", "rdm.progress"):
            assert not any(n.startswith("rich") for n in imports(path)), dotted(path)
            printed = re.findall(r"^\s*print\((?!flush)(.*)", path.read_text(), re.M)
            assert not printed, dotted(path)


def test_collectives_are_in_one_module_and_sharding_in_one_room():
    for path in modules("rdm", "objectives", "representations"):
        if dotted(path) not in ("rdm.distributed", "rdm.surviving.joining") and room(dotted(path)) != "rdm.scaling":
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
    assert len((ROOT / "rdm" / "training" / "loop.py").read_text().splitlines()) < 150
    for path in modules("rdm", "objectives", "representations"):
        lines = len(path.read_text().splitlines())
        assert lines <= 330, f"{dotted(path)} has {lines} lines"


def test_importing_rdm_loads_no_optional_package_and_starts_no_accelerator():
    """Help needs no torch even; a name is imported when it is read."""
    code = (
        "import sys, rdm, rdm.__main__, contextlib, io\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    rdm.__main__.main(['train', '--help'])\n"
        "early = {'torch', 'numpy', 'rich'} & set(sys.modules)\n"
        "import torch, objectives, representations; rdm.names('objectives'); rdm.names('representations')\n"
        "heavy = {'timm', 'open_clip', 'torchvision', 'transformers', 'diffusers', 'huggingface_hub'}\n"
        "heavy |= {'ot', 'geomloss', 'sklearn', 'matplotlib', 'scipy', 'gin'}\n"
        "print(sorted(early | heavy & set(sys.modules)), torch.cuda.is_initialized())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert shown.stdout.strip() == "[] False", shown.stdout + shown.stderr


def test_packages_are_typed():
    for package in ("rdm", "objectives", "representations", "experiments"):
        assert (ROOT / package / "py.typed").exists()
    assert rdm.__version__ != "0+unknown"


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(rdm, name) is not None for name in rdm.__all__) and set(rdm.__all__) <= set(dir(rdm))
    assert rdm.registry.registries is registries  # a module is found by its name too
    with pytest.raises(AttributeError, match="no attribute 'frechet'"):
        rdm.frechet  # noqa: B018
