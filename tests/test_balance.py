"""Balances: the published controller, floors at the population's size, pulls of equal size, what checkpoints hold."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import rdm
from rdm.__main__ import main
from rdm.app import config
from rdm.data.dataset import Dataset
from rdm.distributed import sum_gradients
from rdm.errors import InputError, MismatchError, RestrictedError
from rdm.losses.matching import Matching
from rdm.matching.balance import Gated, GradientNorm, SelfNormalized, Terms, Uniform
from rdm.matching.memory import EMA, NoMemory, Queue
from rdm.matching.representation import Battery, Representation
from rdm.population.population import Population
from rdm.population.term import Term
from rdm.registry import balances
from rdm.training.loss import Setting
from tests import processes
from tests.problems import Problem, relative_error


def published(scores, floors, *, total, temperature=2.0, beta=0.5, clip=5.0, relative=False):
    """Weights by a slow controller: one number at a time, as its formulas read; those of a step come from before."""
    weights, smooth = [[1.0] * len(floors)], None
    for row in scores:
        smooth = list(row) if smooth is None else [beta * a + (1 - beta) * b for a, b in zip(smooth, row, strict=True)]
        errors = [(s - b) / b if relative else s - b for s, b in zip(smooth, floors, strict=True)]
        errors = [max(-clip, min(clip, e)) for e in errors]
        above = [e for e in errors if e > 0]
        width = temperature * sum(above) / len(above) if above else 1.0
        mass = sum(math.exp(e / width) for e in above)
        weights.append([total * math.exp(e / width) / mass if e > 0 else 0.0 for e in errors])
    return weights[:-1]


@pytest.mark.parametrize("options", [
    {}, {"relative": True}, {"temperature": 0.5, "total": 10.0}, {"clip": 0.3}, {"decay": 0.9}, {"decay": 0.0},
])  # fmt: skip
def test_the_controller_is_the_published_one_over_200_steps(options):
    g = torch.Generator().manual_seed(0)
    floors = torch.tensor([0.01, 0.3, 2.0, 0.05], dtype=torch.float64)
    fall = torch.linspace(6, 0.2, 200, dtype=torch.float64)[:, None]  # all above their floors, then all below
    scores = floors * fall * (0.3 + torch.rand(200, 4, generator=g, dtype=torch.float64) * 2)
    balance, state, eps = Gated(**options), None, 1e-7
    slow = {key: value for key, value in options.items() if key != "decay"} | {"total": options.get("total", 4.0)}
    expected = published(scores.tolist(), floors.tolist(), beta=options.get("decay", 0.5), **slow)
    seen = set()
    for row, weights in zip(scores, expected, strict=True):
        coefficients, state = balance.coefficients(Terms(row, floors), state)
        assert coefficients * (row + eps) == pytest.approx(torch.tensor(weights, dtype=torch.float64), rel=1e-13, abs=0)
        seen.add(sum(weight > 0 for weight in weights))
    assert {0, 1, 4} <= seen


def gated(
    size: int, *, memory=None, chunk=None, fresh=400, objective="mmd", balance=None
) -> tuple[Population, Problem]:
    """A population with fresh rows, by the gated balance."""
    problem = Problem(rdm.objective(objective), memory or NoMemory(), rows=size)
    population = problem.population(chunk)
    g = torch.Generator().manual_seed(7)
    for term in population.terms:
        items = torch.randn(fresh, 6, generator=g, dtype=torch.float64) @ torch.eye(6, dtype=torch.float64) + 1
        term.fresh = term.representation(items).detach()
    population.weighing.balance = balance or Gated()
    population.weighing.check()
    return population, problem


@pytest.mark.parametrize("objective", ["mmd", "frechet", "sliced_wasserstein"])
def test_floors_follow_the_size_of_the_population(objective):
    """A slow mean over draws of n fresh rows; less the larger n; measured anew when n changes, and only then."""
    population, problem = gated(60, objective=objective)
    calls = []
    for term in population.terms:
        measured = term.floor
        term.floor = lambda rows, measured=measured: calls.append(rows) or measured(rows)
    for rows, expected in ((60, [60, 60]), (60, []), (30, [30, 30]), (60, [60, 60])):
        calls.clear()
        population.backward(problem.net, problem.noise[:rows])
        assert calls == expected
    for term in population.terms:
        few, more = term.floor(30), term.floor(60)
        assert few > more > 0
        g = torch.Generator().manual_seed(11)
        draws = [term.fresh[torch.randperm(len(term.fresh), generator=g)[:60]] for _ in range(40)]
        ones = torch.ones(60, dtype=torch.float64)
        values = torch.stack(
            [
                term.objective.distance(
                    term.statistic.measure(x, ones), term.target, generator=torch.Generator().manual_seed(k)
                )
                for k, x in enumerate(draws)
            ]
        )
        assert abs(more - float(values.mean())) < 4 * float(values.std()) * (1 / 8 + 1 / 40) ** 0.5


@pytest.mark.parametrize("memory, size", [(NoMemory(), 60), (EMA(0.5), 180), (Queue(130), 130)])
def test_floors_are_of_as_many_rows_as_vary_like_the_population(memory, size):
    """With a memory of rows, one over the sum of its squared weights once the memory is old."""
    population, problem = gated(60, memory=memory)
    for _ in range(30):
        population.backward(problem.net, problem.noise)
    term = population.terms[0]
    ((_, measured), _) = population.weighing._floors
    assert measured == size
    batch = term.statistic.measure(torch.randn(60, 6, dtype=torch.float64), torch.ones(60, dtype=torch.float64))
    whole, _ = memory.read(term.past, batch, 60, term.statistic)
    assert float(whole.weight.sum() ** 2 / whole.weight.square().sum()) == pytest.approx(size, rel=0.06)


def test_floors_without_enough_fresh_rows_are_refused():
    items = torch.rand(40, 6)
    with pytest.raises(
        InputError, match="Gated needs fresh real rows .* holds none; make one by rdm reference with --f"
    ):
        Population("mmd", "pixels", items, balance="gated")
    population, problem = gated(60, fresh=59)
    with pytest.raises(InputError, match="floor of a population of 60 under 'all' needs as many .* holds 59; make one"):
        population.backward(problem.net, problem.noise)
    with pytest.raises(InputError, match="needs a non-negative objective"):
        Population(rdm.objective("mmd", estimator="unbiased"), "pixels", items, balance=Gated())


def test_a_gated_term_at_its_floor_pulls_no_more():
    population, problem = gated(60)
    population.backward(problem.net, problem.noise)
    floors = {key[0]: value for key, value in population.weighing._floors.items()}
    population.weighing.state = torch.tensor([floors["all"] / 2, floors["second"] * 3], dtype=torch.float64)
    step = population.backward(problem.net, problem.noise)
    assert step.coefficients["all"] == 0
    assert step.coefficients["second"] == pytest.approx(2 / (float(step.distances["second"]) + 1e-7), rel=1e-12)


def pulls(population: Population, problem: Problem) -> list[float]:
    """Norms of each member's gradient in the items, by plain autograd."""
    norms = []
    for term in population.terms:
        items = problem.net(problem.noise).detach().requires_grad_()
        summary = term.statistic.measure(term.representation(items), torch.ones(len(items), dtype=torch.float64))
        whole, share = population.memory.read(term.past, summary, len(items), term.statistic)
        (found,) = torch.autograd.grad(term.objective.distance(whole, term.target), items)
        norms.append(float(found.norm()) / (share if population.normalize_gradient else 1))
    return norms


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("memory", [NoMemory(), EMA(0.9)], ids=["none", "ema"])
def test_pulls_on_the_items_are_of_equal_size(chunk, memory, normalized):
    """Of the first step its own; of later ones those of the step before, averaged, whatever the chunks."""
    objectives = {"all": rdm.objective("frechet"), "second": rdm.objective("drifting")}  # one has no size of its own
    problem = Problem(objectives, memory, GradientNorm())
    population = problem.population(chunk)
    population.normalize_gradient = normalized
    first = pulls(population, problem)
    step = population.backward(problem.net, problem.noise)
    assert [
        step.coefficients[name] * norm for name, norm in zip(("all", "second"), first, strict=True)
    ] == pytest.approx([1.0, 1.0], rel=1e-11)
    second = pulls(population, problem)
    population.backward(problem.net, problem.noise)
    step = population.backward(problem.net, problem.noise)
    expected = [1 / (0.5 * a + 0.5 * b) for a, b in zip(first, second, strict=True)]
    assert list(step.coefficients.values()) == pytest.approx(expected, rel=1e-11)


def test_a_member_that_pulls_nothing_leaves_the_others_alone():
    balance = GradientNorm()
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        problem = Problem(rdm.objective("mmd"), NoMemory(), balance)
        problem.battery = replace(problem.battery, weights=weights)
        for chunk in (None, 7):
            population = problem.population(chunk)
            for _ in range(3):
                step = population.backward(problem.net, problem.noise)
            assert all(math.isfinite(value) for value in step.coefficients.values())
    coefficients, _ = balance.coefficients(Terms(torch.ones(2), None, torch.tensor([0.0, 0.5])), None)
    assert coefficients.isfinite().all() and coefficients[1] == 2
    assert balance.coefficients(Terms(torch.ones(2), None, torch.zeros(2)), None)[0].isfinite().all()


BALANCES = {"gated": Gated(), "gradient_norm": GradientNorm(), "self_normalized": SelfNormalized(1e-3)}


def trained(
    name: str, chunk: int | None, rows: slice = slice(None), *, interrupted: bool = False
) -> list[torch.Tensor]:
    """Parameters after 4 steps of gradient descent; where interrupted, the last two by another population."""
    population, problem = gated(60, memory=EMA(0.6), chunk=chunk, balance=BALANCES[name])
    stepper = torch.optim.SGD(problem.net.parameters(), lr=1e-2)
    for step in range(4):
        if interrupted and step == 2:
            state = population.state()
            population, _ = gated(60, memory=EMA(0.6), chunk=chunk, balance=BALANCES[name])
            population.balance = BALANCES[name]
            population.restore({**state, "made_by": {**state["made_by"], "balance": type(BALANCES[name]).__name__}})
        stepper.zero_grad()
        population.backward(problem.net, problem.noise[rows])
        sum_gradients(problem.net.parameters())
        nn.utils.clip_grad_norm_(problem.net.parameters(), 0.05)
        stepper.step()
    return [p.detach().clone() for p in problem.net.parameters()]


@pytest.mark.parametrize("name", BALANCES)
def test_steps_are_the_same_for_any_chunk_and_after_a_checkpoint(name):
    whole = trained(name, None)
    assert relative_error(trained(name, 7), whole) <= 1e-11
    for chunk in (None, 7):
        resumed, straight = trained(name, chunk, interrupted=True), trained(name, chunk)
        assert all(torch.equal(a, b) for a, b in zip(resumed, straight, strict=True))


def on_a_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    warm = Problem.__post_init__

    def halved(problem: Problem) -> None:
        warm(problem)
        problem.warm = problem.warm[:40] if rank == 0 else problem.warm[40:]

    Problem.__post_init__ = halved
    floor, measured = Term.floor, list[str]()
    Term.floor = lambda self, rows: measured.append(self.representation.name) or floor(self, rows)
    mine = slice(0, 25) if rank == 0 else slice(25, 60)
    found = {name: trained(name, chunk, mine) for name, chunk in zip(BALANCES, (7, 7, None), strict=True)}
    assert len(measured) == 1, "each rank measures one of two floors"
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_balance_as_one_does(tmp_path):
    processes.ranks(on_a_rank, (str(tmp_path),), 2)
    for name, found in torch.load(tmp_path / "found.pt", weights_only=True).items():
        assert relative_error(found, trained(name, None)) <= 1e-11, name


def test_the_state_of_another_balance_is_refused():
    items, net, noise = torch.rand(40, 6), nn.Linear(3, 6), torch.randn(8, 3)
    first = Population("mmd", ["pixels", "identity"], items, balance="gradient_norm")
    first.backward(net, noise)
    state = first.state()
    assert state["pulls"].shape == state["balance"].shape == (2,)
    with pytest.raises(
        MismatchError, match="'balance': 'GradientNorm'.* cannot be restored into .*'balance': 'Uniform'"
    ):
        Population("mmd", ["pixels", "identity"], items).restore(state)
    for key in ("balance", "pulls"):
        for wrong in (torch.ones(3, dtype=torch.float64), torch.ones(2, dtype=torch.int64), 1.0):
            with pytest.raises(InputError, match=f"{key} must be"):
                first.restore({**state, key: wrong})


MINE = '''\
"""The published controller, by hand."""
from dataclasses import dataclass
from rdm.api import Balance, balances

@balances.register("by_hand")
@dataclass(frozen=True)
class ByHand(Balance):
    """Softmax of the excess over floors."""
    needs_nonnegative = needs_floors = True
    def coefficients(self, terms, state):
        scores = terms.values if state is None else 0.5 * state + 0.5 * terms.values
        e = (scores if state is None else state).sub(terms.floors).clamp(max=5)
        z = (e / (2 * e[e > 0].mean())).masked_fill(e <= 0, -float("inf")).softmax(0) * len(e)
        return (1 if state is None else z.nan_to_num()) / (terms.values + 1e-7), scores
'''


def test_a_balance_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "balance_of_this_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    text = """
import balance_of_this_test
rdm.train.model = @generators.mlp()
rdm.train.losses = [@losses.matching()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 2
losses.matching.objective = @objectives.mmd()
losses.matching.battery = @batteries.untrained()
losses.matching.balance = @balances.by_hand()
"""
    (tmp_path / "x.gin").write_text(text)
    with balances.temporarily():
        with pytest.raises(RestrictedError, match="refuses 'import balance_of_this_test'"):
            config.load(tmp_path / "x.gin", restricted=True)
        config.load(tmp_path / "x.gin")
        (loss,) = config.plan()["losses"]
        assert type(loss.options["balance"]).__name__ == "ByHand"
        mine, problem = gated(60, balance=rdm.balance("by_hand"))
        ours, _ = gated(60)
        for _ in range(5):
            a, b = (each.backward(problem.net, problem.noise).coefficients for each in (mine, ours))
            assert a == pytest.approx(b, rel=1e-13)


def test_balances_are_listed_and_built_by_name_and_logged(capsys):
    assert main(["list", "balances"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")] == sorted(
        ["uniform", "self_normalized", "gated", "gradient_norm"]
    )
    assert rdm.balance("uniform") == Uniform()
    for wrong in ({"decay": 1.0}, {"temperature": 0}, {"eps": -1.0}, {"clip": 0}, {"total": 0.0}, {"relative": 1}):
        with pytest.raises(InputError, match=f"gated: {next(iter(wrong))} must be"):
            rdm.balance("gated", **wrong)
    pixels, half = (
        Representation("pixels", nn.Flatten()),
        Representation("half", nn.Sequential(nn.Flatten(), nn.Tanh())),
    )
    loss = Matching(rdm.objective("mmd"), Battery((pixels, half)), 20, balance=rdm.balance("self_normalized"))
    data = Dataset("grey", torch.rand(50, 16), torch.zeros(50).long(), 3)
    model = rdm.generator("mlp", outputs=16, width=8)
    loss.prepare(model, Setting(data, 0, torch.device("cpu"), None), resumed=False)
    logged = loss.backward(model, 0)
    for name in ("pixels", "half"):
        assert logged[f"coefficient/{name}"] == pytest.approx(1 / (float(logged[f"distance/{name}"]) + 0.01), rel=1e-6)
