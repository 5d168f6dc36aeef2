"""The papers' recipes: three steps of each, its network shrunk, encoders without weights, from a reference file."""

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rdm.__main__ import main
from rdm.app.sweep import plan
from rdm.planning.sizes import Sizes
from rdm.registry import generators, networks

ROOT = Path(__file__).parent.parent / "experiments"
RECIPES = sorted(p for paper in ("fd_loss", "irdm", "fsf_dmd") for p in (ROOT / paper).glob("*.gin"))
ALL = bool(os.environ.get("RDM_ALL_RECIPES"))
MIT = {"width": 16, "depth": 2, "heads": 2, "head_depth": 1}
SHRUNK = {
    "pmf": {"size": 8, "patch": 4, "bottleneck": 4, **MIT},
    "imf": {"size": 64, "patch": 4, "decoder": "none", **MIT},
    "jit": {"size": 8, "patch": 4, "width": 16, "depth": 2, "heads": 2, "bottleneck": 4, "context": 3, "start": 1},
    "sit": {"shape": (4, 8, 8), "patch": 4, "width": 16, "depth": 1, "heads": 2, "decoder": "none"},
    "flux2": {
        "size": 32, "layers": 1, "single_layers": 1, "heads": 1, "head_size": 32, "context_size": 8,
        "contexts": "random", "decoder": "none",
    },
}  # fmt: skip
SMALL = {
    "rdm.train.steps": 3, "rdm.train.samples_every": 0, "rdm.train.device": "cpu",
    "losses.matching.population": 12, "losses.matching.chunk": 5, "losses.matching.warm_up": 24,
    "memories.queue.size": 24, "objectives.mmd_nystrom.landmarks": 6, "losses.fsf_dmd.batch": 6,
    "losses.mean_flow.batch": 6, "losses.weighted.start": 1, "losses.weighted.ramp": 1,
}  # fmt: skip


class Fourth(nn.Module):
    """Latents of four channels."""

    def encode(self, images):
        return torch.cat([images, images.mean(1, keepdim=True)], 1)

    def forward(self, images):
        return self.encode(images)


def text_of(recipe: Path) -> str:
    """A recipe with what it includes."""
    text = recipe.read_text()
    return re.sub(r"include '(.*)'", lambda found: text_of(recipe.parent / found[1]), text)


def bound(text: str, name: str) -> str:
    """What a recipe binds a name to at last."""
    found = re.findall(rf"^{re.escape(name)} = (.*)$", text, re.M)
    return found[-1] if found else ""


def shrunk(recipe: Path) -> list[str]:
    """Bindings that make a small thing of a recipe."""
    text = text_of(recipe)
    losses, teachers = bound(text, "rdm.train.losses"), re.findall(r"teacher = @\w+/generators\.(\w+)", text)
    made = {*re.findall(r"generators\.(\w+)", bound(text, "rdm.train.model")), *teachers}
    binds = {f"generators.{name}.{key}": value for name in made for key, value in SHRUNK[name.split("_")[0]].items()}
    binds |= {f"generators.{name}.weights": None for name in made if f"generators.{name}.weights" in text}
    read = [*re.findall(r"losses\.\w+", losses), bound(text, "losses.matching.objective").strip("@()")]
    read += re.findall(r"losses\.\w+", text if "weighted" in losses else "")
    read += ["rdm.train", bound(text, "losses.matching.memory").split(" ")[0].strip("@()")]
    binds |= {key: value for key, value in SMALL.items() if key.rpartition(".")[0] in read}
    if "losses.matching" in read:
        binds |= {"losses.matching.battery": None, "losses.matching.reference": "real.safetensors"}
    if "datasets.files" in text:
        binds["datasets.files.path"] = "latents"
    return [f"{name} = {value!r}" for name, value in binds.items()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a measured reference of small pictures, and latents."""
    folder = tmp_path_factory.mktemp("recipes")
    source = torch.Generator().manual_seed(0)
    pictures = torch.rand(60, 3, 8, 8, generator=source).mul(255).byte().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, images=pictures, labels=np.arange(60) % 10)
    (folder / "data.npz").write_bytes(buffer.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["reference", "data.npz", "--battery", "untrained", "--out", "real.safetensors"]) == 0
        np.savez("features.npz", features=torch.rand(60, 512, generator=source).numpy())
        assert main(["reference", "features.npz", "--out", "features.safetensors"]) == 0
        with networks.temporarily():
            networks.register("fourth")(Fourth)
            assert main(["encode", "data.npz", "--with", "fourth", "--out", "latents"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_recipe_runs_three_steps_shrunk(recipe, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    binds = shrunk(recipe)
    if recipe.parent.name == "irdm" and "flux" in recipe.stem:
        binds += [
            "rdm.battery.members = [@representations.pixels()]",
            "losses.matching.battery = @rdm.battery()",
            "losses.matching.reference = {'pixels': 'features.safetensors'}",
        ]
    given = [word for bind in binds for word in ("--bind", bind)]
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), *given]) == 0


SOME = "fd_loss/base", "irdm/flux_marginal", "fsf_dmd/scratch"
FULL = [p for p in RECIPES if ALL or f"{p.parent.name}/{p.stem}" in SOME]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FULL, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_recipe_dry_runs_at_full_size(recipe, tmp_path, monkeypatch, capsys):
    """Without weights and data; the generator has the published number of parameters, to 1 %.

    Of a few recipes, and of all with RDM_ALL_RECIPES; encoders, which take most of the time, are left out.
    """
    monkeypatch.chdir(tmp_path)
    text = text_of(recipe)
    binds = ["rdm.battery.members = [@representations.pixels()]", "losses.matching.battery = @rdm.battery()"]
    given = [
        word for bind in binds if "losses.matching" in bound(text, "rdm.train.losses") for word in ("--bind", bind)
    ]
    assert main(["train", str(recipe), "--dry-run", *given]) == 0
    said = capsys.readouterr().out
    (name,) = re.findall(r"generators\.(\w+)", bound(text, "rdm.train.model"))
    published = generators[name].notes["parameters"]
    published = float(published[:-1]) * {"M": 1e6, "B": 1e9}[published[-1]]
    count = int(re.findall(r"weights .* ([\d,]+) parameters", said)[0].replace(",", ""))
    assert count == pytest.approx(published, rel=0.01) and "together" in said and "flops a step" in said


SWEEPS = [p for p in sorted(ROOT.glob("*/*.gin")) if "rdm.sweep.grid" in p.read_text()]
MANY = "fd_loss/table_3"  # 24 networks
STARTED = "spiral/memories", "gaming/gaming"  # from what another command makes; the latter is run in test_gaming.py


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_point_of_a_sweep_can_be_built(path, tmp_path):
    """In sizes alone, without weights; every binding of its axes is read by some point."""
    name = f"{path.parent.name}/{path.stem}"
    if name in STARTED or (name == MANY and not ALL) or "cifar" in name or "digits" in name:
        pytest.skip("needs weights, data or half a minute")
    with warnings.catch_warnings(action="ignore"), Sizes()():
        assert len(plan(path, tmp_path)) > 2


def test_every_recipe_opens_with_what_it_needs():
    for recipe in RECIPES:
        text = recipe.read_text()
        assert text.startswith("# ") and "# REQUIRED:" in text and "GPU hours:" in text, recipe
        assert "Reproduces:" in text or "Expected" in text or "Yardstick" in text, recipe
        for name in re.findall(r"@(?:\w+/)?generators\.(\w+)\(\)", text):
            assert name in generators
