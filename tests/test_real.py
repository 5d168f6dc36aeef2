"""The real side: samples are uniform, sums do not depend on chunks, moments stand in for rows, lacks are named."""

import pytest
import torch

import rdm
from rdm.errors import InputError
from rdm.matching.real import Gaussian, Real, Rows
from rdm.matching.statistic import Moments
from rdm.registry import objectives

SOURCE = torch.Generator().manual_seed(0)
ROWS = torch.randn(50, 3, generator=SOURCE, dtype=torch.float64)
ROWS = ROWS @ torch.randn(3, 3, generator=SOURCE, dtype=torch.float64) + 2


class Elsewhere(Rows):
    """Rows behind the interface of those on disk."""

    def __init__(self, rows: torch.Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dimension(self) -> int:
        return self.rows.shape[1]

    def take(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.rows[numbers]

    def span(self, start: int, stop: int) -> torch.Tensor:
        return self.rows[start:stop]


def test_a_sample_is_a_uniform_draw_not_the_first_rows():
    real = Real.of(torch.arange(1000.0)[:, None])
    sample = real.held("a test", 200)
    assert len(sample.features) == 200 and 400 < sample.features.mean() < 600 and not sample.whole
    assert torch.equal(sample.features, real.held("a test", 200).features)
    assert real.held("a test", 1000).features is real.features


def test_rows_of_weight_zero_are_not_drawn():
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 3.0])
    for most in (2, 3, None):
        held = Real.of(torch.arange(5.0)[:, None], weights).held("a test", most)
        assert len(held.features) == (most or 3)
        assert torch.equal(held.masses, weights.double()[held.features[:, 0].int()])


@pytest.mark.parametrize("weights", [None, torch.rand(50, generator=SOURCE) + 0.1])
def test_rows_elsewhere_are_rows_in_memory(weights):
    here = Real.of(ROWS, weights)
    there = Real(Elsewhere(ROWS), weights=here.weights)
    torch.testing.assert_close(there.mean, here.mean, rtol=1e-14, atol=0)
    assert torch.equal(there.held("a test", 20).features, here.held("a test", 20).features)
    features, masses = (torch.cat(part) for part in zip(*there.chunks(7), strict=True))
    assert torch.equal(features, ROWS) and torch.equal(masses, here.masses)
    statistic = Moments(here.mean)
    torch.testing.assert_close(there.summarize(statistic).value, here.summarize(statistic).value)


@pytest.mark.parametrize("correction", [0, 1])
def test_moments_alone_train_frechet_as_rows_of_these_moments_do(correction):
    x = torch.randn(40, 3, generator=SOURCE, dtype=torch.float64).requires_grad_()
    fit = Gaussian.of(ROWS)
    values = []
    for real in (Real.of(ROWS), Real(None, fit), Real(ROWS[:7], fit, whole=False)):
        objective = rdm.objective("frechet", correction=correction)
        statistic, target = objective.bind(real)
        value = objective.distance(statistic.measure(x, torch.ones(40, dtype=torch.float64)), target)
        values.append((value.detach(), *torch.autograd.grad(value, x)))
    for value, gradient in values[1:]:
        torch.testing.assert_close(value, values[0][0], rtol=1e-10, atol=0)
        torch.testing.assert_close(gradient, values[0][1], rtol=1e-10, atol=1e-12)


def test_a_covariance_of_unsaid_n_is_taken_as_it_is():
    fit = Gaussian.of(ROWS)
    unsaid = Real(None, Gaussian(fit.mean, fit.covariance, 0))
    for target in [rdm.objective("frechet", correction=c).bind(unsaid)[1] for c in (0, 1)]:
        torch.testing.assert_close(target.factor @ target.factor.T, fit.covariance)


@pytest.mark.parametrize("name", [n for n in objectives if n not in ("frechet", "classwise")])
def test_what_the_reference_lacks_is_named_with_the_command(name):
    moments = Real(None, Gaussian.of(ROWS), origin={"path": "real.npz"})
    with pytest.raises(InputError, match="real.npz holds moments only; make it by rdm reference"):
        rdm.objective(name, **objectives[name].examples[0]).bind(moments)


@pytest.mark.parametrize("name", ["mmd_rff", "mmd_nystrom"])
def test_objectives_that_see_every_row_refuse_a_sample(name):
    sample = Real(ROWS[:9], Gaussian.of(ROWS), whole=False, origin={"path": "real.safetensors"})
    with pytest.raises(InputError, match="real.safetensors holds a sample of 9 of them; .*--rows all"):
        rdm.objective(name, bandwidth=1.0).bind(sample)
