"""Reference rows drawn at each call: which, how many, and that the objective sees nothing else."""

import pytest
import torch

import rdm
from rdm.errors import InputError
from rdm.matching.distances import Samples
from rdm.matching.memory import Queue
from rdm.matching.objective import Objective, Traits
from rdm.matching.real import Real
from rdm.matching.representation import Representation
from rdm.population.population import Population

Y = torch.arange(1000.0, dtype=torch.float64)[:, None]
ZERO = torch.zeros(7, 1, dtype=torch.float64)


class Seen(Objective):
    """An objective whose target tells what it was bound to."""

    def __init__(self) -> None:
        self.references: list[Real] = []

    @property
    def traits(self) -> Traits:
        return Traits()

    def bind(self, reference):
        self.references.append(reference)
        return Samples(reference.mean), None

    def distance(self, summary, target, *, generator=None):
        return summary.value.square().mean()


def drawn(rows, *, seed: int | None = None, weights=None) -> Real:
    inner = Seen()
    source = None if seed is None else torch.Generator().manual_seed(seed)
    options = {"objective": inner, "rows": rows, "generator": source, "reference_weights": weights}
    rdm.distance("resampled", ZERO, Y, **options)
    return inner.references[-1]


def test_rows_are_drawn_without_replacement_and_keep_their_weights():
    weights = Y[:, 0] + 1
    seen = [drawn(200, seed=seed, weights=weights) for seed in range(40)]
    for reference in seen:
        assert len(reference.features.unique()) == 200
        assert torch.equal(reference.masses, reference.features[:, 0] + 1)
    assert len({tuple(reference.features[:, 0].tolist()) for reference in seen}) == 40
    counts = torch.cat([r.features[:, 0] for r in seen]).long().bincount(minlength=1000)
    assert abs(counts.double().var() / (40 * 0.2 * 0.8) - 1) < 0.2  # binomial: every row is as likely


def test_without_a_generator_the_rows_stay():
    assert torch.equal(drawn(50).features, drawn(50).features)
    assert torch.equal(drawn(50, seed=3).features, drawn(50, seed=3).features)


def test_as_many_rows_as_the_population_or_the_reference_has():
    assert len(drawn(None, seed=0).features) == 7
    assert torch.equal(drawn(1000, seed=0).features, Y) and torch.equal(drawn(5000, seed=0).features, Y)
    inner = Seen()
    identity = Representation("all", torch.nn.Flatten())
    population = Population(rdm.objective("resampled", objective=inner), identity, Y, memory=Queue(12))
    net = torch.nn.Linear(1, 1).double()
    for expected in (7, 12, 12):
        population.backward(net, torch.randn(7, 1, dtype=torch.float64))
        assert len(inner.references[-1].features) == expected


def test_all_rows_give_the_objective_itself():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 3, generator=g), torch.randn(40, 3, generator=g) + 50
    for name in ("frechet", "mmd", "sliced_wasserstein", "sinkhorn", "drifting", "kid"):
        value = rdm.distance("resampled", x, y, objective=name, rows=40)
        assert torch.isclose(value, rdm.distance(name, x, y), rtol=1e-5), name


def test_the_gradient_is_right_in_the_mean():
    """Of the energy distance, whose gradient is linear in the reference."""
    x = torch.tensor([[200.0], [700.0]], dtype=torch.float64, requires_grad=True)
    (whole,) = torch.autograd.grad(rdm.distance("energy", x, Y), x)
    source = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        value = rdm.distance("resampled", x, Y, objective="energy", rows=20, generator=source)
        found.append(torch.autograd.grad(value, x)[0])
    error = (torch.stack(found).mean(0) - whole) / (torch.stack(found).std(0) / 400**0.5)
    assert error.abs().max() < 3.5


def test_wrong_settings():
    with pytest.raises(InputError, match="rows must be a whole number from 1"):
        rdm.objective("resampled", objective="mmd", rows=0)
    with pytest.raises(InputError, match="unknown objective"):
        rdm.objective("resampled", objective="none_such")
