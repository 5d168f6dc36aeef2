"""What is built and installed: the loss beside torch and numpy alone; the wheel and what it is built from."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALONE = """
import re, sys
from importlib.metadata import packages_distributions, requires


def needed(name, found):
    "A distribution and all that it cannot do without, by the normalised name."
    name = re.split(r"[^\\w.-]", name)[0].lower().replace("_", "-")
    if name not in found:
        found.add(name)
        for other in requires(name) or []:
            if "extra ==" not in other and not other.startswith(("nvidia", "cuda", "triton")):
                needed(other, found)
    return found


def find_spec(name, path=None, target=None):
    if name in foreign:
        raise ModuleNotFoundError(f"No module named {name!r}, which is blocked", name=name)


kept = needed("torch", needed("numpy", {"rdm-torch"}))
of = {top: {d.lower().replace("_", "-") for d in names} for top, names in packages_distributions().items()}
foreign = {top for top, names in of.items() if not names & kept} - {"_distutils_hack"}
assert {"rich", "gin", "PIL", "safetensors", "jaxtyping", "scipy"} <= foreign, sorted(foreign)
sys.meta_path.insert(0, type("Blocked", (), {"find_spec": staticmethod(find_spec)}))

import torch
import rdm

x, y = torch.randn(64, 3, requires_grad=True), torch.randn(128, 3)
for name in ("frechet", "mmd", "sinkhorn", "sliced_wasserstein"):
    (slope,) = torch.autograd.grad(rdm.distance(name, x, y), x)
    assert slope.norm() > 0, name
rdm.Loss("mmd", y, memory="queue", bandwidth="median")(x).backward()
assert x.grad.norm() > 0

images = torch.rand(256, 1, 8, 8)
generator = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (1, 8, 8)))
objective = rdm.objective("mmd", bandwidth="median")
population = rdm.Population(objective, rdm.battery("untrained"), images, chunk=64, memory=rdm.EMA(0.8))
population.backward(generator, torch.randn(128, 4))
assert generator[0].weight.grad.norm() > 0
population.loss(generator, torch.randn(128, 4)).backward()
assert not foreign & {name.partition(".")[0] for name in sys.modules}
from rdm.__main__ import main
assert main(["train", "x.gin"]) == 2
"""


def test_the_loss_needs_torch_and_numpy_alone(tmp_path):
    """Distances, a loss and a population's step, with every other distribution's modules blocked."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == "rdm: the command line needs gin; pip install rdm-torch brings it\n"


def test_the_conda_recipe_asks_for_what_the_metadata_do():
    recipe = yaml.safe_load(jinja2.Template((ROOT / "conda" / "meta.yaml").read_text()).render(PYTHON="python"))
    assert recipe["package"] == {"name": PROJECT["name"], "version": PROJECT["version"]}
    assert recipe["about"]["home"] == PROJECT["urls"]["Repository"]
    assert recipe["build"]["entry_points"] == [f"{name} = {at}" for name, at in PROJECT["scripts"].items()]
    asked = {f"python {PROJECT['requires-python']}"}
    asked |= {re.sub("^torch ", "pytorch ", each.replace(">=", " >=")) for each in PROJECT["dependencies"]}
    assert set(recipe["requirements"]["run"]) == asked


def test_a_release_is_built_once_tested_and_published_without_a_token():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert [jobs[name].get("needs") for name in ("build", "test", "publish")] == [None, "build", "test"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"} and "tag" in jobs["publish"]["if"]
    classified = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert jobs["test"]["strategy"]["matrix"]["python"] == classified


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    """What a command prints, from outside of the checkout."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    shown = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=cwd, env={**clean, **environment})
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return shown.stdout


def files(folder: Path) -> set[str]:
    """What a source folder holds, but for what is made there."""
    made = {".venv", ".git", "runs", "build", "dist", "generated", "__pycache__"}
    made |= {".pytest_cache", ".ruff_cache", ".hypothesis"}
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {str(p) for p in found if not made & set(p.parts) and not any(n.endswith(".egg-info") for n in p.parts)}


def built(folder: Path) -> tuple[Path, Path]:
    """The sdist of a copy of this checkout, unpacked, and the wheel that is built from it."""
    source = folder / "source"
    for name in files(ROOT):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    backend = "from setuptools import build_meta; build_meta.build_{}({!r})"
    run(sys.executable, "-c", backend.format("sdist", str(folder)), cwd=source)
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / packed.name.removesuffix(".tar.gz")
    run(sys.executable, "-c", backend.format("wheel", str(folder)), cwd=unpacked)
    (wheel,) = folder.glob("*.whl")
    return unpacked, wheel


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    return built(tmp_path_factory.mktemp("built"))


@pytest.mark.slow
def test_the_sdist_holds_all_and_the_wheel_what_is_used(distributions):
    unpacked, wheel = distributions
    left = {name for name in files(ROOT) - files(unpacked) if not name.startswith((".ci", ".pre-commit", ".gitignore"))}
    assert not left, "of a clean checkout; of yours, remove what is none of it"
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {name.partition("/")[0] for name in names} - {f"rdm_torch-{PROJECT['version']}.dist-info"}
    assert folders == {"rdm", "objectives", "representations", "experiments"}
    used = {name for name in files(ROOT) if name.startswith(("rdm/", "objectives/", "representations/"))}
    assert not used - names and not [name for name in names if name.endswith((".md", ".png"))]


@pytest.mark.slow
def test_a_package_index_shows_whole_links_to_what_is_there(distributions):
    _, wheel = distributions
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    said = email.message_from_string(archive.read(name).decode())
    home, version = PROJECT["urls"]["Repository"], PROJECT["version"]
    assert said.get_all("Project-URL") == [f"{what}, {where}" for what, where in PROJECT["urls"].items()]
    assert said["Description-Content-Type"] == "text/markdown" and said["Author"] == "The rdm authors"
    text = said.get_payload()
    assert isinstance(text, str)
    links = re.findall(r"(!?)\[[^]]*\]\(([^)]*)\)", text)
    own = [link for _, link in links if link.startswith(home)]
    assert len(own) > 8 and all(link.startswith(("https://", "#")) for _, link in links)
    for picture, link in links:
        if link.startswith(home):
            kind, tag, path = link.removeprefix(f"{home}/").split("/", 2)
            assert (kind, tag) == ("raw" if picture else "blob", f"v{version}")
            assert (ROOT / path.partition("#")[0]).exists(), path
    assert re.sub(rf"{home}/(raw|blob)/v{version}/", "", text).strip() == (ROOT / "README.md").read_text().strip()


USE = """
import sys
from pathlib import Path
import numpy as np
import rdm, objectives, representations
from rdm.__main__ import main

site = Path(sys.prefix)
assert all(site in Path(module.__file__).parents for module in (rdm, objectives, representations))
assert main(["train", "digits/classifier", "--dry-run"]) == 0
assert main(["sweep", "sweep.gin", "--out", "swept", "--restricted"]) == 0
assert main(["report", "swept"]) == 0
np.savez("pictures.npz", np.random.default_rng(0).random((200, 4, 4)))
assert main(["reference", "pictures.npz", "--battery", "rings", "--out", "r.safetensors"]) == 0
assert main(["evaluate", "pictures.npz", "--reference", "r.safetensors", "--json", "judged.json"]) == 0
import torch
assert rdm.distance("energy", torch.ones(4, 3), torch.zeros(5, 3)).item() > 0
"""


@pytest.mark.slow
def test_the_wheel_and_the_example_package_are_installed_and_used(distributions, tmp_path):
    """By the script and by main, restricted, with nothing said of the members but that they are installed."""
    _, wheel = distributions
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "new", cwd=tmp_path)
    python = tmp_path / "new" / "bin" / "python"
    (site,) = (tmp_path / "new").glob("lib/python*/site-packages")
    others = [place for place in sys.path if place.endswith("site-packages")]  # torch and the rest, after its own
    (site / "others.pth").write_text("\n".join(others) + "\n")
    shutil.copytree(ROOT / "examples" / "own_members", tmp_path / "rings")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    run(*pip, "--no-build-isolation", "--ignore-installed", wheel, tmp_path / "rings", cwd=tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    for name in ("rings.gin", "sweep.gin"):
        shutil.copy(ROOT / "examples" / "own_members" / name, work)
    assert run(python.with_name("rdm"), "--version", cwd=work) == f"rdm {PROJECT['version']}\n"
    listed = run(python.with_name("rdm"), "list", cwd=work)
    assert "mean_gap" in listed and "sliced_wasserstein" in listed
    run(python, "-c", USE, cwd=work)
    points = [json.loads(p.read_text()) for p in work.glob("swept/points/*/result.json")]
    assert len(points) == 2 and all(p["steps"] == 100 for p in points) and (work / "swept/report.html").exists()
    metrics = json.loads((work / "judged.json").read_text())["metrics"]
    assert any(name.startswith("fd/radius") for name in metrics), sorted(metrics)
