"""Distances within classes, against the loop over classes written out: chunks, memories, absent ones, kept targets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import rdm
from rdm.errors import InputError
from rdm.matching.memory import EMA, Memory, NoMemory, Queue
from rdm.matching.real import Real
from rdm.references.targets import bound
from tests.problems import Problem, relative_error

INNER = [("frechet", {}), ("mmd_rff", {"features": 32, "bandwidth": 2.0}), ("energy", {}),
         ("sliced_wasserstein", {"projections": 8})]  # fmt: skip
inner = pytest.mark.parametrize("name, example", INNER, ids=[name for name, _ in INNER])
memories = pytest.mark.parametrize("memory", [NoMemory(), EMA(0.8), Queue(50)], ids=["none", "ema", "queue"])


def drawn(n: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    return torch.randn(n, 4, generator=g, dtype=torch.float64) + labels[:, None], labels


def looped(name: str, example: dict, x: Tensor, a: Tensor, classes: Tensor, reference: tuple[Tensor, Tensor]) -> Tensor:
    """The sum over classes, each by itself."""
    y, labels = reference
    source, values = torch.Generator().manual_seed(5), []
    for c in labels.unique():
        here, there = classes == c, labels == c
        if here.any():
            value = rdm.distance(name, x[here], y[there], weights=a[here], generator=source, **example)
            values.append(there.double().mean() * value)
    return torch.stack(values).sum()


def weighted(memory: Memory, past: Tensor, n: int) -> Tensor:
    """Weights of past rows and of n live ones, by the definition of the memory."""
    if isinstance(memory, EMA):
        old, new = memory.decay / len(past), (1 - memory.decay) / n
    else:
        old, new = (1.0 if isinstance(memory, Queue) else 0.0), 1.0
    kept = torch.full((len(past),), old, dtype=torch.float64)
    if isinstance(memory, Queue):
        kept[: max(0, len(past) - (memory.size - n))] = 0
    return torch.cat([kept, torch.full((n,), new, dtype=torch.float64)])


@inner
@memories
def test_a_population_is_the_loop_over_classes(name, example, memory):
    """One batch in the memory, then a step in chunks: its value and gradient."""
    torch.manual_seed(0)
    net, reference = nn.Linear(4, 4).double(), drawn(60, 1)
    (old, old_labels), (noise, labels) = drawn(40, 2), drawn(30, 3)
    member = rdm.representation("joint", representation="identity", condition=3, beta=0.7)
    objective = rdm.objective("classwise", objective=rdm.objective(name, **example), classes=3)
    population = rdm.Population(objective, member, reference[0], condition=reference[1], chunk=7, memory=memory)

    def generate(z: Tensor, condition: Tensor) -> Tensor:
        return net(z) + 0 * condition[:, None]

    population.warm_up(generate, old, old_labels)
    step = population.backward(generate, noise, labels, generator=torch.Generator().manual_seed(5))
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    with torch.no_grad():
        past = net(old)
    rows, classes = torch.cat([past, net(noise)]), torch.cat([old_labels, labels])
    weights = weighted(memory, past, 30)
    kept = weights > 0
    value = looped(name, example, rows[kept], weights[kept], classes[kept], reference)
    value.backward()
    assert torch.isclose(step.loss, value.detach(), rtol=1e-10, atol=1e-13)
    expected = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(found) == 2 and relative_error(found, expected) <= 1e-10


@given(data=st.data())
def test_value_and_gradient_for_any_rows_weights_and_classes(data):
    """Order, scale of weights, absent rows, and classes that one side lacks."""
    n, m, seed = data.draw(st.integers(3, 20)), data.draw(st.integers(6, 20)), data.draw(st.integers(0, 99))
    name, example = data.draw(st.sampled_from([INNER[1], INNER[2]]))
    (x, classes), reference = drawn(n, seed, 4), drawn(m, seed + 1)
    a = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    one_hot = torch.eye(4, dtype=torch.float64)
    try:
        expected = looped(name, example, x.requires_grad_(), a, classes, reference)
    except (InputError, RuntimeError):  # a class of one real row; no class that both have
        return
    (slope,) = torch.autograd.grad(expected, x)
    y = torch.cat([reference[0], one_hot[reference[1]]], 1)
    padded = torch.cat([x.detach(), x.detach()[:1] + 1]), torch.cat([a, a[:1] * 0]), torch.cat([classes, classes[:1]])
    for rows, weights, numbers in (
        (x.detach(), a, classes),
        (x.detach().flip(0), 7 * a.flip(0), classes.flip(0)),
        padded,
    ):
        joined = torch.cat([rows, one_hot[numbers]], 1).requires_grad_()
        options = {"objective": rdm.objective(name, **example), "classes": 4}
        value = rdm.distance("classwise", joined, y, weights=weights, **options)
        assert torch.isclose(value, expected, rtol=1e-9, atol=1e-12)
        (gradient,) = torch.autograd.grad(value, joined)
        assert not gradient[:, 4:].any()
        wanted = slope.flip(0) if rows is not x.detach() and numbers is not classes and len(rows) == n else slope
        torch.testing.assert_close(gradient[:n, :4], wanted, rtol=1e-8, atol=1e-11)


def test_what_one_class_drawn_as_another_costs():
    """Nothing to the marginal law; the distance of the two to the law within classes."""
    y = torch.tensor([[1.0, 1, 0], [5.0, 0, 1]])
    swapped = torch.tensor([[5.0, 1, 0], [1.0, 0, 1]])
    assert rdm.distance("energy", swapped[:, :1], y[:, :1]) == 0
    assert rdm.distance("classwise", swapped, y, objective="energy", classes=2) == 8


def test_a_class_that_is_absent_or_rare_is_left_out_or_named():
    y = torch.tensor([[0.0, 1, 0], [1.0, 1, 0], [4.0, 0, 1], [6.0, 0, 1]])
    x = torch.tensor([[2.0, 1, 0], [3.0, 1, 0], [5.0, 0, 1]], requires_grad=True)
    alone = rdm.distance("frechet", x[:2, :1], y[:2, :1])
    assert rdm.distance("classwise", x[:2], y, objective="frechet", classes=2) == alone / 2
    with pytest.raises(InputError, match="class 1 of the population: .*rows"):
        rdm.distance("classwise", x, y, objective="frechet", classes=2)
    value = rdm.distance("classwise", x, y, objective="frechet", classes=2, least=2)
    assert value == alone / 2 and torch.autograd.grad(value, x)[0].isfinite().all()
    with pytest.raises(InputError, match="no class of the reference has 3 rows in the population"):
        rdm.distance("classwise", x, y, objective="energy", classes=2, least=3)
    with pytest.raises(InputError, match="class 1 of the reference: a covariance|class 1 of the reference: "):
        rdm.distance("classwise", x, y[:3], objective="frechet", classes=2)
    with pytest.raises(InputError, match="takes features of more columns; got 3"):
        rdm.distance("classwise", x, y, objective="energy", classes=3)
    with pytest.raises(InputError, match="d=1 and 2 columns of classes; got 4"):
        rdm.distance("classwise", torch.ones(2, 4), y, objective="energy", classes=2)


@inner
def test_targets_are_kept_and_read_again(tmp_path, recwarn, name, example):
    y, labels = drawn(40, 1)
    objective = rdm.objective("classwise", objective=rdm.objective(name, **example), classes=3)
    real = Real.of(torch.cat([y, torch.eye(3, dtype=torch.float64)[labels]], 1))
    x, ones = real.features[:20] + 0.1, torch.ones(20, dtype=torch.float64)
    values = []
    for _ in range(2):
        statistic, target = bound(objective, real, tmp_path)
        source = torch.Generator().manual_seed(0)
        values.append(objective.distance(statistic.measure(x, ones), target, generator=source))
    assert torch.equal(*values) and len(list(tmp_path.iterdir())) == 1 and not recwarn.list


@memories
@pytest.mark.parametrize("name", ["frechet", "energy"])
def test_chunks_and_weights_in_a_battery(name, memory):
    """Two members, whose last columns say the class, with random weights of rows."""
    problem = Problem(rdm.objective("classwise", objective=name, classes=2), memory)
    for chunk in (None, 7):
        assert relative_error(problem.gradient(chunk), problem.oracle(None)) <= 1e-11
