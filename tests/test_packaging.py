"""What is built and installed: the loss beside torch and numpy alone; the wheel and what it is built from."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
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
