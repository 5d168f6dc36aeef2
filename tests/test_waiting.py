"""On an accelerator a step waits for the device once, and no operation is between two devices (`tests.elsewhere`)."""

import itertools
import json
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rdm
from rdm.errors import NonFiniteError
from rdm.losses.fsf_dmd import FSFDMD
from rdm.population.population import Population
from rdm.population.term import Step
from rdm.randomness import seeded
from rdm.registry import memories, objectives
from rdm.timing.reads import later, postponed, undone_by, usual
from rdm.training.loss import Setting
from rdm.training.watching import Monitor
from tests.processes import ranks

D, ROWS = 14, 16
MEMORIES = [(name, (memories[name].examples or ({},))[0], None) for name in rdm.names("memories")]
WAYS = [*MEMORIES, ("none", {}, 7)]  # memory, and rows in a chunk
KINDS = "flow", "ema", "fsf_dmd"  # the first two of `tests.test_train`
ALONE = "frechet", "energy", "mmd", "sliced_wasserstein"
STEPS = 5


def objective(name: str) -> Any:
    """One by its first example; one that needs an objective, with that."""
    return rdm.objective(name, **(objectives[name].examples or ({"objective": "energy", "classes": 2},))[0])


def problem(name: str, way: tuple, place: str) -> tuple[Population, nn.Module, torch.Tensor]:
    """A population, what generates it, and noise for it."""
    memory, example, chunk = way
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 24), nn.Tanh(), nn.Linear(24, D))
    items, noise = torch.randn(80, D, generator=g).to(place), torch.randn(ROWS, D, generator=g).to(place)
    options = {"memory": memories.build(memory, **example), "chunk": chunk}
    return Population(objective(name), nn.Flatten(), items, **options), net.to(place), noise


def step_of(population: Population, net: nn.Module, noise: torch.Tensor, step: int) -> Step:
    """One step, which may be run again."""
    undone_by(partial(net.zero_grad, True))
    return population.backward(net, noise, generator=torch.Generator().manual_seed(step))


def steps(name: str, way: tuple, place: str, waits: list[str], count: int = 3) -> tuple[list[int], list[float]]:
    """Waits of some steps, and the last one's gradient."""
    population, net, noise = problem(name, way, place)
    counts = list[int]()
    for step in range(count):
        waits.clear()
        net.zero_grad()
        postponed(partial(step_of, population, net, noise * (1 + step), step), torch.device(place))
        counts.append(len(waits))
    return counts, [float(p.grad.cpu().double().sum()) for p in net.parameters() if p.grad is not None]


def alone(name: str, memory: str, example: dict, place: str, waits: list[str]) -> tuple[list[list[int]], list[float]]:
    """Waits of calls outside of training: of `rdm.Loss`, `Population.loss` and `.backward`; and all their gradients."""
    population, net, noise = problem(name, (memory, example, None), place)
    real = torch.randn(80, D, generator=torch.Generator().manual_seed(1)).to(place)
    loss = rdm.Loss(objective(name), real, memory=memories.build(memory, **example))
    counts, sums = list[list[int]](), list[float]()
    for step in range(3):
        draws = {"generator": torch.Generator().manual_seed(step)}
        ways = [
            lambda draws=draws: loss(net(noise), **draws).backward(),
            lambda draws=draws: population.loss(net, noise, **draws).backward(),
            lambda draws=draws: population.backward(net, noise, **draws),
        ]
        counts.append([])
        for way in ways:
            net.zero_grad()
            waits.clear()
            way()
            counts[-1].append(len(waits))
            sums += [float(p.grad.cpu().double().sum()) for p in net.parameters() if p.grad is not None]
    step = population.latest
    assert step is not None
    numbers = [*step.coefficients.values(), *step.shares.values(), *step.dropped.values()]
    assert all(type(number) is float for number in numbers)
    with pytest.raises(NonFiniteError, match="NaN or infinity in 16 of 16 rows"):
        loss(net(noise) * torch.inf)
    return counts, [*sums, *numbers]


def rows(population: Population) -> int:
    """Held by the memory."""
    past = population.terms[0].past
    assert past is not None
    return len(past.value)


def words_of_nan(place: str) -> list[Any]:
    """What a step says of features that are not finite, and what its memory holds before and after; a good step."""
    population, net, noise = problem("energy", ("queue", {"size": 100}, None), place)
    run = lambda z: postponed(lambda: population.backward(net, z), torch.device(place))[0]  # noqa: E731
    run(noise)
    held = rows(population)
    try:
        run(noise * torch.inf)
        said = ""
    except NonFiniteError as error:
        said = str(error)
    after = rows(population), population._writes
    return [said, held, *after, float(run(noise).loss)]


@dataclass
class Counted(Monitor):
    """How often was waited, after each step."""

    waits: list[str]
    counts: list[int] = field(default_factory=list)
    every: int = 1

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """Nothing."""

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Counts, and gives no number."""
        self.counts.append(len(self.waits))
        return {}


def trained(kind: str, out: Path, place: str, waits: list[str]) -> tuple[list[int], list[float]]:
    """Waits of every step but the first, and sums of the weights of a run, which has bfloat16 nowhere."""
    from tests.test_train import run

    options: dict[str, Any] = {
        "precision": "float32",
        "parameters": "float32",
        "checkpoint_every": 99,
        "samples_every": 0,
    }
    if kind == "fsf_dmd":
        kind = "flow"
        with seeded(0):
            model = rdm.generator("mlp_flow", width=8, depth=1, map=True)
        options |= {"model": model, "losses": [FSFDMD(batch=8)]}
    counted = Counted(waits)
    model = run(kind, out, device=place, steps=STEPS, monitors=[counted], **options)
    counts = [b - a for a, b in pairwise(counted.counts)]
    return counts, [float(p.detach().cpu().double().sum()) for p in model.parameters()]


def look(rank: int, folder: str) -> None:
    """All of it, in a process of its own."""
    from tests.elsewhere import FAR, elsewhere

    found: dict[str, Any] = {"steps": [], "nan": [], "train": {}, "alone": []}
    with elsewhere() as device:
        for name in rdm.names("objectives"):
            for way in WAYS[-1:] if objective(name).traits.waits else WAYS:
                counts, far = steps(name, way, FAR, device.waits)
                where = list(device.waits)
                near = steps(name, way, "cpu", [])[1] if way == WAYS[-1] else None
                found["steps"].append([name, way, counts, where, far, near])
        for name, (memory, example, _) in itertools.product(ALONE, MEMORIES):
            counts, far = alone(name, memory, example, FAR, device.waits)
            where = list(device.waits)
            found["alone"].append([name, memory, counts, where, far, alone(name, memory, example, "cpu", [])[1]])
        found["nan"] = [words_of_nan(place) for place in (FAR, "cpu")]
        for kind in KINDS:
            far, near = (
                trained(kind, Path(folder, f"{kind} {place[:3]}"), place, device.waits) for place in (FAR, "cpu")
            )
            found["train"][kind] = [*far, near[1]]
    Path(folder, "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("waiting")
    ranks(look, (str(folder),), 1)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", rdm.names("objectives"))
def test_a_step_of_a_population_waits_once_and_does_as_on_the_cpu(name, found):
    own = [each[1:] for each in found["steps"] if each[0] == name]
    assert own
    for way, counts, where, far, near in own:
        assert near is None or far == pytest.approx(near, rel=1e-4, abs=1e-5), way
        if objective(name).traits.waits:
            assert min(counts) > 1  # else it has no reason to say so
        else:
            assert min(counts[1:]) == 1, (way, counts, where)  # where a branch is not as expected a step runs again


@pytest.mark.parametrize("name", ALONE)
def test_a_call_outside_of_training_waits_once_and_once_more_where_a_memory_is_written(name, found):
    own = [each[1:] for each in found["alone"] if each[0] == name]
    assert len(own) == len(MEMORIES)
    for memory, counts, where, far, near in own:
        assert far == pytest.approx(near, rel=1e-4, abs=1e-5), memory
        assert all(1 <= count <= 1 + (memory != "none") for count in counts[-1]), (memory, counts, where)
        assert counts[-1][0] == 1, (memory, counts, where)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_training_waits_once_and_does_as_on_the_cpu(kind, found):
    counts, far, near = found["train"][kind]
    assert counts[-2:] == [1, 1]
    assert far == pytest.approx(near, rel=1e-5)


def test_a_step_that_fails_is_undone_and_says_what_it_says_on_the_cpu(found):
    far, near = found["nan"]
    assert "NaN or infinity in 16 of 16 rows" in far[0] and far[:4] == near[:4] and far[1] == far[2] == ROWS
    assert far[4] == pytest.approx(near[4], rel=1e-5)


def test_on_the_cpu_numbers_are_read_at_once():
    read = list[float]()

    def run() -> bool:
        later(torch.tensor(2.0), read.append)
        assert read == [2.0]
        return usual(torch.tensor(False))

    assert postponed(run, torch.device("cpu")) == (False, True)
