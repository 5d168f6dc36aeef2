"""Work that is the same on every rank is shared out: who does it, and that nothing else shows it."""

from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import rdm
from rdm.distributed import sum_gradients
from rdm.errors import NonFiniteError
from rdm.matching.objective import UNDIVIDED, Objective, Portion
from rdm.matching.real import Real
from rdm.matching.representation import Battery, Representation
from rdm.population.population import Population
from tests import processes
from tests.conftest import objective_cases
from tests.problems import D, Problem

CALLS: Counter[str] = Counter()


def counted(objective: Objective, name: str, *, fails: int = -1) -> Objective:
    """The objective, whose distances are counted under a name; one of them is not finite."""
    kind: Any = type(objective)

    def called(method: str) -> Any:
        def call(self, *args, **options):
            CALLS[f"{method} {name}"] += all(each is not UNDIVIDED for each in args)  # a distance may be its only part
            if CALLS[f"{method} {name}"] == fails:
                raise NonFiniteError("a sum has no end")
            return getattr(kind, method)(self, *args, **options)

        return call

    made = type(kind.__name__, (kind,), {method: called(method) for method in ("distance", "part")})
    object.__setattr__(objective, "__class__", made)
    return objective


class Case(NamedTuple):
    """Objectives of as many members, and how the population is made and asked."""

    objectives: list[tuple[str, dict]]
    options: dict
    chunk: int | None = 7
    steps: int = 2
    fails: int = -1  # call of the last member's distance


FD = ("frechet", {})
SW, DRAWN = ("sliced_wasserstein", {"projections": 5}), ("resampled", {"objective": "energy", "rows": 50})
CASES = {
    "one": Case([FD], {}),
    "one, in one pass": Case([FD], {"memory": "ema"}, chunk=None),
    "three": Case([FD] * 3, {"memory": rdm.EMA(0.7)}),
    "three, in one pass": Case([FD] * 3, {"memory": rdm.Queue(90)}, chunk=None),
    "balanced by gradients": Case([FD, ("mmd", {}), FD], {"balance": "gradient_norm", "memory": rdm.Queue(130)}),
    "followed": Case([FD] * 3, {"memory": rdm.EMA(0.9), "tolerance": 0.2}, steps=4),
    "started": Case([("sinkhorn", {"blur": 2.0})] * 2, {"memory": rdm.Queue(90), "tolerance": 1e-9}, steps=3),
    "drawn first": Case([DRAWN, SW, FD], {"balance": "self_normalized"}),
    "drawn last": Case([SW, FD, DRAWN], {}, chunk=None),
    "drawn alike": Case([SW, FD, SW], {"memory": rdm.EMA(0.5)}),
    "drawn alike, in one pass": Case([SW, ("sliced_energy", {"projections": 3})], {}, chunk=None),
    "kernels": Case([("mmd", {}), ("energy", {}), ("cmmd", {})], {"normalize_gradient": True, "memory": rdm.EMA(0.8)}),
    "not finite": Case([FD] * 3, {"memory": rdm.EMA(0.7)}, steps=3, fails=2),
}


def battery(count: int) -> Battery:
    torch.manual_seed(4)
    layers = [
        nn.Flatten(),
        nn.Sequential(nn.Linear(D + 2, D), nn.Tanh()),
        nn.Sequential(nn.Linear(D + 2, 3), nn.Tanh()),
    ]
    names = "first", "second", "third"
    members = [Representation(name, layer.double()) for name, layer in zip(names, layers, strict=True)]
    return Battery(members[:count], weights=(1.0, 0.7, 0.4)[:count])


def taken(case: Case, rows: slice) -> dict[str, Any]:
    """A few steps of gradient descent on some of the rows, with one generator: what each left."""
    CALLS.clear()
    problem = Problem(rdm.objective("mmd"), rdm.NoMemory())
    members = battery(len(case.objectives))
    last = members.members[-1].name
    chosen = {
        each.name: counted(rdm.objective(name, **given), each.name, fails=case.fails if each.name == last else -1)
        for each, (name, given) in zip(members.members, case.objectives, strict=True)
    }
    population = Population(chosen, members, problem.items, chunk=case.chunk, **case.options)
    stepper = torch.optim.SGD(problem.net.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(5)
    gradients, distances, said = list[Tensor](), list[Tensor](), list[str]()
    for _ in range(case.steps):
        stepper.zero_grad()
        try:
            step = population.backward(
                problem.net, problem.noise[rows], weights=problem.weights[rows], generator=generator
            )
        except NonFiniteError as error:
            said.append(str(error))
            continue
        sum_gradients(problem.net.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in problem.net.parameters() if p.grad is not None]))
        distances.append(torch.stack([*step.distances.values(), step.loss]))
        distances.append(torch.tensor([*step.coefficients.values(), *step.shares.values()], dtype=torch.float64))
        said.append(str({name: report.get("exact", report.get("annealed")) for name, report in step.solvers.items()}))
        stepper.step()
    kept = {name: list((solved or {}).values()) for name, solved in population.state().get("solvers", {}).items()}
    return {
        "gradients": gradients, "distances": distances, "said": said, "generator": generator.get_state(),
        "calls": dict(CALLS), "kept": [each for held in kept.values() for each in held],
    }  # fmt: skip


def on_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = slice(0, 25) if rank == 0 else slice(25, 60)
    torch.save({name: taken(case, mine) for name, case in CASES.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    processes.ranks(on_a_rank, (str(folder),), 2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_what_is_shared_out_is_what_one_process_finds(on_two, name):
    alone, ranks = taken(CASES[name], slice(None)), [found[name] for found in on_two]
    for found in ranks:
        for key in ("gradients", "distances"):
            assert len(found[key]) == len(alone[key]) > 0
            for got, wanted in zip(found[key], alone[key], strict=True):
                assert (got - wanted).norm() <= 1e-12 * wanted.norm(), key
        assert torch.equal(found["generator"], alone["generator"])
    for got, wanted in zip(ranks[0]["kept"], ranks[1]["kept"], strict=True):
        assert torch.equal(got, wanted)
    assert len(ranks[0]["kept"]) == len(alone["kept"])
    if CASES[name].fails < 0:
        assert ranks[0]["said"] == ranks[1]["said"] == alone["said"]


@pytest.mark.parametrize("name", CASES)
def test_every_distance_is_computed_once_or_in_parts(on_two, name):
    case, (first, second) = CASES[name], (found[name]["calls"] for found in on_two)
    members = [each.name for each in battery(len(case.objectives)).members]
    for member in members:
        whole = first.get(f"distance {member}", 0) + second.get(f"distance {member}", 0)
        parts = first.get(f"part {member}", 0), second.get(f"part {member}", 0)
        expected = 0 if "tolerance" in case.options else case.steps
        assert (whole, parts) in [(expected, (0, 0)), (0, (expected, expected))], member
        if case.objectives[members.index(member)] in (FD, DRAWN):
            assert whole == expected
    if name in ("three", "not finite"):  # in several chunks, both have something to do
        assert all(any(each.startswith("distance") for each in calls) for calls in (first, second))


def test_what_is_not_finite_where_it_is_computed_is_named_on_all_ranks(on_two):
    texts = [found["not finite"]["said"][1] for found in on_two]
    own = "the distance under 'third': a sum has no end"
    assert sorted(texts, key=len)[0] == own and sorted(texts, key=len)[1] in (f"rank 0: {own}", f"rank 1: {own}")


DIVISIBLE = [case for case in objective_cases() if rdm.objective(case.values[0], **case.values[1]).divisible]


@pytest.mark.parametrize("name, example", DIVISIBLE)
@pytest.mark.parametrize("drawn", [False, True])
def test_parts_of_a_distance_sum_to_it(monkeypatch, name, example, drawn):
    """Value and gradients, each piece of work done once; more parts than pieces are empty ones."""
    monkeypatch.setattr("objectives._sums.TILE", (8, 16))
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 4, generator=g, dtype=torch.float64) * s + s for n, s in ((30, 1.0), (40, 2.0)))
    mass, objective = torch.rand(30, generator=g, dtype=torch.float64), rdm.objective(name, **example)
    statistic, target = objective.bind(Real.of(y))

    def taken(portions: list[Portion | None]) -> list[tuple[Tensor, ...]]:
        found, drawn_state = list[tuple[Tensor, ...]](), None
        for portion in portions:
            rows, weights = x.clone().requires_grad_(), mass.clone().requires_grad_()
            summary = statistic.measure(rows, weights)
            source = torch.Generator().manual_seed(1) if drawn else None
            options = {"generator": source}
            value = (
                objective.distance(summary, target, **options)
                if portion is None
                else objective.part(summary, target, portion, **options)
            )
            found.append((value.detach(), *torch.autograd.grad(value, (rows, weights))))
            if source is not None:  # every part leaves the generator alike
                assert drawn_state is None or torch.equal(source.get_state(), drawn_state)
                drawn_state = source.get_state()
        return found

    (whole,) = taken([None])
    for of in (1, 2, 3, 200):
        parts = taken([Portion(k, of) for k in range(of)])
        for got, wanted in zip(map(sum, zip(*parts, strict=True)), whole, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-13)
        shares = [float(part[1].norm() / whole[1].norm()) for part in parts]
        assert of == 1 or of == 200 or min(shares) > 1e-3, "each has something to do"
    assert shares.count(0.0) > 100
