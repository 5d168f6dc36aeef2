"""Honest intervals of a run's own evaluation: over 200 draws they cover the ratio 90 to 99 % of the time."""

import pytest
import torch

import rdm
from rdm.data.dataset import Dataset
from rdm.judging.evaluation import Evaluation
from rdm.matching.metric import Metric
from rdm.matching.objective import Objective
from rdm.matching.real import Real
from rdm.matching.representation import Battery
from tests.problems import Given
from tests.test_intervals import DRAWS, SAME, SHIFTED, N, covered, law

DIVIDED = {
    "frechet": rdm.objective("frechet"),
    "sw": rdm.objective("sliced_wasserstein", root=True, projections=4),
    "rff": rdm.objective("mmd_rff", features=64),
}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "classes"), [(SHIFTED, 1), (SAME, 4)])
def test_a_runs_ratio_covers_that_of_new_generated_and_fresh_sets(change, classes):
    """Of the same labels, where there are any. A bootstrap of both sets covered 0.79 (frechet, shifted, one class)."""
    g = torch.Generator().manual_seed(1)
    reference, battery = items(2 * N, classes, g), Battery((rdm.representation("identity"),))

    def once(seed: int) -> dict[str, Metric]:
        evaluation = Evaluation(reference, items(N, classes, g), battery, DIVIDED, seed=seed)
        return evaluation(Given(items(N, classes, g, **change).images))

    found = [once(seed) for seed in range(DRAWS)]
    for name, objective in DIVIDED.items():
        means = [_mean_of(objective, reference, g, **each) for each in (change, SAME)]
        share = covered([metrics[f"{name}/identity"] for metrics in found], means[0] / means[1])
        assert 0.9 <= share <= 0.99, (name, share, means)


def items(n: int, classes: int, g: torch.Generator, **change: float) -> Dataset:
    """Rows of the law inside [0, 1], where items live; classes lie far apart in one coordinate, equally many items."""
    labels = torch.arange(n) % classes
    images = 0.4 + 0.05 * law(n, g, **change)
    images[:, -1] += 0.1 * labels
    return Dataset("law", images, labels, classes=classes)


def _mean_of(objective: Objective, reference: Dataset, g: torch.Generator, **change: float) -> float:
    statistic, target = objective.bind(Real.of(reference.images))
    ones = torch.ones(N, dtype=torch.float64)
    measured = (statistic.measure(items(N, reference.classes, g, **change).images, ones) for _ in range(300))
    values = [float(objective.distance(summary, target)) for summary in measured]
    return sum(values) / len(values)
