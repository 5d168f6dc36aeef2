"""Representations, batteries and references."""

import numpy as np
import pytest
import torch
from torch import nn

import rdm
from rdm.errors import InputError, MismatchError
from rdm.objective import compare
from rdm.reference import Reference
from rdm.representation import Battery, Representation
from rdm.statistic import Moments


def test_pca_is_numpys():
    items = torch.randn(50, 6, dtype=torch.float64) * torch.arange(1.0, 7)
    got = rdm.representation("pca", components=3).fitted(items)(items)
    _, s, vt = np.linalg.svd((items - items.mean(0)).numpy(), full_matrices=False)
    expected = (items - items.mean(0)).numpy() @ vt[:3].T
    np.testing.assert_allclose(np.abs(got.numpy()), np.abs(expected), atol=1e-9)
    white = rdm.representation("pca", components=3, whiten=True).fitted(items)(items)
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(3, dtype=torch.float64))


def test_pca_refuses_more_components_than_rank():
    with pytest.raises(InputError, match="1 <= components <= 2"):
        rdm.representation("pca", components=3).fitted(torch.randn(3, 6))
    with pytest.raises(InputError, match="fitted"):
        rdm.representation("pca")(torch.randn(3, 6))


def test_features_must_be_rows():
    with pytest.raises(InputError, match=r"'bad' must give one row an item, shape \(4, d\); got \(4, 2, 3\)"):
        Representation("bad", nn.Identity())(torch.randn(4, 2, 3))


def test_fingerprints_follow_weights_and_settings():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    prints = {Representation("x", a).fingerprint, Representation("x", b).fingerprint}
    prints |= {Representation("y", a).fingerprint, Representation("x", a, {"pool": 1}).fingerprint}
    assert len(prints) == 4
    b.load_state_dict(a.state_dict())
    assert Representation("x", b).fingerprint in prints


def test_batteries_refuse_confusion():
    pixels = rdm.representation("pixels")
    for members, options, message in (
        ((), {}, "at least one"),
        ((pixels, pixels), {}, "names in a battery must differ"),
        ((pixels,), {"held_out": (pixels,)}, "names in a battery must differ"),
        ((pixels,), {"weights": (1.0, 2.0)}, "expected 1 weights"),
        ((pixels,), {"weights": (-1.0,)}, "not negative"),
    ):
        with pytest.raises(InputError, match=message):
            Battery(members, **options)


def test_a_conditional_representation_sees_the_condition():
    class Joint(nn.Module):
        def forward(self, items, condition):
            return torch.cat([items.flatten(1), nn.functional.one_hot(condition, 3).to(items)], 1)

    joint = Representation("joint", Joint(), conditional=True)
    items, labels = torch.randn(30, 4), torch.arange(30) % 3
    net = nn.Linear(2, 4)
    population = rdm.Population(rdm.objective("mmd"), joint, items, condition=labels, chunk=7)
    population.backward(lambda z, c: net(z), torch.randn(20, 2), torch.arange(20) % 3)
    assert population.terms[0].target.rows.shape == (30, 7) and net.weight.grad.norm() > 0


def test_reference_cache_is_read_and_checked(tmp_path):
    items = torch.rand(20, 1, 4, 4)
    pixels = rdm.representation("pixels")
    first = Reference.measure(items, pixels, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    second = Reference.measure(items, pixels, cache=tmp_path)
    assert torch.equal(first.features, second.features) and path.stat().st_mtime_ns == stamp
    Reference.measure(items + 1e-3, pixels, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    other = Reference.from_features(first.features, **{**first.origin, "fingerprint": "0" * 64})
    other.save(path)
    with pytest.raises(MismatchError, match="fingerprint '0000"):
        Reference.measure(items, pixels, cache=tmp_path)


def test_subset_is_a_uniform_draw_not_the_first_rows():
    reference = Reference.from_features(torch.arange(1000.0)[:, None])
    subset = reference.subset(200)
    assert len(subset.features) == 200 and 400 < subset.features.mean() < 600
    assert torch.equal(subset.features, reference.subset(200).features)
    assert reference.subset(1000) is reference


def test_summaries_do_not_depend_on_chunks(monkeypatch):
    reference = Reference.from_features(torch.randn(50, 3, dtype=torch.float64))
    statistic = Moments(reference.mean)
    whole = reference.summarize(statistic).value
    monkeypatch.setattr(
        Reference, "chunks", lambda self: zip(self.features.split(7), self.weights.split(7), strict=True)
    )
    torch.testing.assert_close(reference.summarize(statistic).value, whole)


def test_compare_takes_an_objective():
    x, y = torch.randn(9, 2), torch.randn(8, 2)
    assert compare(rdm.objective("frechet"), x, y) == rdm.distance("frechet", x, y)
