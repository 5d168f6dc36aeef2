"""Evaluation: ratios, intervals, accuracy and the collapse monitors on cases with known answers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import rdm
from rdm.data.dataset import Dataset
from rdm.errors import InputError
from rdm.judging.evaluation import Evaluation, Metric, Samples, table
from rdm.matching.representation import Battery, Representation
from tests.problems import Given


def gaussians(n: int, seed: int, *, shift: float = 0.0) -> Dataset:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 10
    images = (torch.randn(n, 1, 2, 2, generator=g) * 0.05 + 0.1 + 0.08 * labels.view(-1, 1, 1, 1) + shift).clamp(0, 1)
    return Dataset(f"gaussians {seed}", images, labels, classes=10)


def evaluation(**changes) -> Evaluation:
    plain = {
        "reference": gaussians(600, 0),
        "fresh": gaussians(200, 1),
        "battery": Battery((rdm.representation("pixels"),)),
        "metrics": {
            "sw": rdm.objective("sliced_wasserstein", root=True, projections=16),
            "frechet": rdm.objective("frechet"),
        },
    }
    return Evaluation(**{**plain, **changes})


def test_real_data_scores_one_with_one_inside_the_interval():
    """A few draws; `test_run_intervals` counts them."""
    inside = 0
    for seed in range(2, 7):
        found = evaluation()(Given(gaussians(200, seed).images))
        metric = found["sw/pixels"]
        inside += metric.low <= 1 <= metric.high
        assert metric.n == 200 and metric.low < metric.value < metric.high
    assert inside >= 4


def test_the_fresh_split_itself_scores_exactly_one():
    found = evaluation()(Given(gaussians(200, 1).images))
    assert found["sw/pixels"].value == 1 and found["frechet/pixels"].value == 1


def test_worse_generators_score_worse():
    values = [evaluation()(Given(gaussians(200, 5, shift=s).images))["sw/pixels"].value for s in (0.0, 0.05, 0.1)]
    assert values == sorted(values) and values[2] > 2 * values[0]


def test_monitors_see_collapse_and_copies():
    train, monitors = gaussians(600, 0), evaluation(metrics={})
    good = monitors(Given(gaussians(200, 3).images))
    assert good["spread"].value == pytest.approx(1, abs=0.1) and good["copies"].value < 0.05
    assert monitors(Given(train.images[:200]))["copies"].value > 0.9
    centres = torch.stack([train.images[train.labels == c].mean(0) for c in range(10)])[torch.arange(200) % 10]
    collapsed = monitors(Given(centres))
    assert collapsed["spread"].value < 0.01
    assert 0 == collapsed["copies"].low < collapsed["copies"].high < 0.05, "Wilson"
    assert good["fresh real: spread"].value == pytest.approx(1, abs=0.1)


def test_the_interval_of_spread_covers_the_mean_distance_of_the_law():
    settings = {"reference": gaussians(600, 0), "metrics": {}}
    found = [evaluation(**settings)(Given(gaussians(200, seed).images))["spread"] for seed in range(1, 201)]
    truth = sum(metric.value for metric in found) / len(found)  # unbiased, given the reference
    inside = sum(metric.low <= truth <= metric.high for metric in found)
    assert truth == pytest.approx(1, abs=0.03) and 180 <= inside <= 198


def test_accuracy_is_the_judges():
    class Judge(nn.Module):
        """Ten logits that pick the class whose mean is nearest."""

        def forward(self, images):
            means = 0.1 + 0.08 * torch.arange(10.0)
            return -(images.flatten(1).mean(1, keepdim=True) - means).abs()

    judged = evaluation(judge=Representation("judge", Judge()))
    assert judged(Given(gaussians(200, 4).images))["accuracy"].value > 0.85
    half = gaussians(200, 4).images.clone()
    half[100:] = 0.1
    assert judged(Given(half))["accuracy"].value == pytest.approx(0.5, abs=0.1)


def test_same_seed_same_numbers_and_compared_generators_have_their_name():
    other = Given(gaussians(200, 6).images)
    twice = [evaluation(compare={"other": other})(Given(gaussians(200, 5).images)) for _ in range(2)]
    assert twice[0] == twice[1]
    assert twice[0]["other: sw/pixels"] == evaluation()(Given(gaussians(200, 6).images))["sw/pixels"]
    rows = table(twice[0], ["other", "fresh real", ""])
    low, high = twice[0]["fresh real: sw/pixels"][1:3]
    assert low * high == pytest.approx(1), "log-normal"
    assert rows[0][0] == "sw/pixels" and rows[0][2] == f"1.00 [{low:.2f}, {high:.2f}]"
    assert rows[-1][0] == "copies" and rows[-1][1] == str(twice[0]["other: copies"])


def test_samples_follow_the_fresh_labels():
    fresh = gaussians(200, 1)
    samples = evaluation().sample(Given(fresh.images + 1))
    assert isinstance(samples, Samples) and torch.equal(samples.labels, fresh.labels)
    assert samples.images.max() <= 1, "clamped before judging"


def test_wrong_settings():
    with pytest.raises(InputError, match="resamples must be a whole number from 2"):
        evaluation(resamples=1)
    with pytest.raises(InputError, match="metric 'kid' is an unbiased estimator; take a biased one"):
        evaluation(metrics={"kid": rdm.objective("kid")})
    with pytest.raises(InputError, match="against items in memory needs fresh"):
        evaluation(fresh=None)
    with pytest.raises(InputError, match="n is of items drawn against a file"):
        evaluation(n=5)
    with pytest.raises(InputError, match="condition is of items drawn against a file"):
        evaluation(condition="all")
    with pytest.raises(InputError, match="expected a file at none.safetensors; there is none"):
        evaluation(reference="none.safetensors", fresh=None)
    with pytest.raises(InputError, match="has its own fresh split; leave fresh out"):
        evaluation(reference="none.safetensors")
    with pytest.raises(InputError, match="the fresh real split is at distance 0 from the reference; is it disjoint"):
        evaluation(fresh=gaussians(600, 0))(Given(gaussians(600, 2).images))
    flat = gaussians(600, 0)
    with pytest.raises(InputError, match="gaussians 0: the items of a class are all equal"):
        evaluation(reference=replace(flat, images=flat.labels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 10))
    assert Metric(1, 0, 2, 3, 4)._asdict() == {"value": 1, "low": 0, "high": 2, "n": 3, "seed": 4}


@pytest.mark.parametrize("n", [11, 30])
def test_few_items_of_a_class_are_judged_and_pictured(n):
    small = evaluation(fresh=gaussians(n, 1))
    assert small(Given(gaussians(n, 2).images))["sw/pixels"].high < 10, "their labels are given, not drawn"
    assert set(small.pictures(Given(gaussians(n, 2).images))) == {"fresh real", "this run"}
    with pytest.raises(InputError, match="two items of some class; gaussians 1 has 10 in all"):
        evaluation(fresh=gaussians(10, 1))


def test_evaluated_images_outside_the_range_are_refused():
    encode = rdm.representation("random_convolutions")
    reference = rdm.dataset("digits")
    evaluation = Evaluation(
        reference,
        replace(reference, images=reference.images * 2),
        rdm.Battery((encode,)),
        {"mmd": rdm.objective("mmd")},
    )
    with pytest.raises(InputError, match=r"takes images .* in \[0, 1\]; got values from 0 to 2, outside in"):
        evaluation(rdm.generator("mlp_flow", width=8))


def test_a_joint_representation_balanced_on_the_reference_can_judge():
    digits = rdm.dataset("digits")
    small, fresh = (
        replace(digits, images=digits.images[k], labels=digits.labels[k]) for k in (slice(60), slice(60, 120))
    )
    joint = rdm.representation("joint", representation="pixels", condition=10, beta="balanced")
    evaluation = Evaluation(small, fresh, rdm.Battery((joint,)), {"mmd": rdm.objective("mmd")}, resamples=2)
    assert evaluation(rdm.generator("mlp_flow", width=8))[f"mmd/{joint.name}"].value > 2
