"""Honest intervals: over 200 draws from a known law, the 95 % interval covers the truth 90 to 99 % of the time.

The truth is the mean over new generated sets of the same size (of 300 draws, or in closed form), given the real
side; ratios draw both sides of the line anew.
"""

import pytest
import torch

import rdm
from rdm.matching.metric import Measure, Metric
from rdm.matching.real import Real

N, D, DRAWS, MORE = 200, 16, 200, 100
SMALL = {
    "kid": {"size": 100, "subsets": 20},
    "kid_spread": {"size": 100, "subsets": 20},
    "sw": {"projections": 64},
    "sw_r": {"projections": 64},
}
SAME, SHIFTED, WIDER = {}, {"shift": 0.2}, {"shift": 0.05, "scale": 1.1}
LAWS = {"same": SAME, "shifted": SHIFTED, "wider": WIDER}
CLOSED = {"fd_infinity", "kid_spread", "fld_gap"}  # the last one's interval is over real rows, given the samples


def law(n: int, g: torch.Generator, *, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    rows = torch.randn(n, D, generator=g, dtype=torch.float64)
    return rows * torch.arange(1, D + 1, dtype=torch.float64) ** -0.5 * scale + shift


def covered(found: list[Metric], truth: float) -> float:
    return sum(f.low <= truth <= f.high for f in found) / len(found)


@pytest.mark.slow
@pytest.mark.parametrize("change", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("name", [n for n in rdm.names("metrics") if n not in CLOSED])
def test_the_interval_covers_the_mean_of_new_sets(name, change):
    measure, g = rdm.metric(name, **SMALL.get(name, {})), torch.Generator().manual_seed(1)
    y = law(N if name.startswith("sw") else 2 * N, g)
    train = law(2 * N, g) if measure.trained else None
    ratio = name in ("fdr", "sw_r", "mmd_r")
    draws, more = (DRAWS, MORE) if not ratio else (DRAWS, 0)

    def once(seed: int) -> Metric:
        real = Real(y, fresh=law(N, g) if ratio else None, train=train)
        return measure(law(N, g, **change), real, seed=seed)

    found = [once(seed) for seed in range(draws)]
    if ratio:
        truth = _mean_distance(measure, y, g, change) / _mean_distance(measure, y, g, {})
    else:
        values = [f.value for f in found] + [once(seed).value for seed in range(more)]
        truth = sum(values) / len(values)
    assert 0.9 <= covered(found, truth) <= 0.99, (covered(found, truth), truth)


def _mean_distance(measure: Measure, y: torch.Tensor, g: torch.Generator, change: dict) -> float:
    values = [measure.distance.estimate(law(N, g, **change), Real(y)).value for _ in range(300)]
    return sum(values) / len(values)


@pytest.mark.slow
@pytest.mark.parametrize("change", LAWS.values(), ids=LAWS)
def test_fd_at_infinity_covers_the_populations_distance(change):
    """At equality, where the truth is close to 99 % (0.988 in 3,600 draws), 200 draws would not tell."""
    g, roots = torch.Generator().manual_seed(1), torch.arange(1, D + 1, dtype=torch.float64) ** -0.5
    truth = D * change.get("shift", 0) ** 2 + float((roots * (change.get("scale", 1) - 1)).square().sum())
    measure = rdm.metric("fd_infinity")
    found = [measure(law(N, g, **change), Real(law(2 * N, g)), seed=s) for s in range(DRAWS if change else 8 * DRAWS)]
    assert 0.9 <= covered(found, truth) <= 0.99, covered(found, truth)


@pytest.mark.slow
@pytest.mark.parametrize("change", LAWS.values(), ids=LAWS)
def test_the_published_line_covers_its_mean(change):
    g = torch.Generator().manual_seed(1)
    measure, real = rdm.metric("fd_infinity", least=50, points=10), Real(law(2 * N, g))
    found = [measure(law(N, g, **change), real, seed=seed) for seed in range(DRAWS + MORE)]
    truth = sum(f.value for f in found) / len(found)
    assert 0.9 <= covered(found, truth) <= 0.99, covered(found, truth)
