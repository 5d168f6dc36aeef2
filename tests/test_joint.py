"""Joint features: product kernels, balance, conditional training."""

import json

import pytest
import torch
from torch import Tensor, nn

import rdm
from rdm.__main__ import main
from rdm.errors import InputError
from representations.joint import balanced


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    return (-torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * sigma**2)).exp()


@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0])
def test_the_gaussian_kernel_on_joint_features_is_the_product_kernel(beta):
    x, y, table = draw(20, 6), draw(25, 6, seed=1) + 0.5, draw(4, 3, seed=2)
    a, b = torch.arange(20) % 4, torch.arange(25) % 3
    encode = rdm.representation("joint", representation="identity", condition=table, beta=beta)
    assert encode(x, a).shape == (20, 9)
    sigma = 1.7
    got = rdm.distance("mmd", encode(x, a), encode(y, b), bandwidth=sigma, estimator="biased")

    def product(u: Tensor, v: Tensor, s: Tensor, t: Tensor) -> Tensor:
        conditions = gaussian(table[s], table[t], sigma / beta) if beta else 1.0
        return (gaussian(u, v, sigma) * conditions).mean()

    expected = product(x, x, a, a) + product(y, y, b, b) - 2 * product(x, y, a, b)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)


def test_only_the_joint_law_sees_swapped_conditions():
    """The same items under wrong labels: the marginals agree, the pairs do not."""
    labels = torch.arange(60) % 3
    items = draw(60, 2) * 0.1 + labels[:, None]
    encode = rdm.representation("joint", representation="identity", condition=3, beta=1.0)
    swapped = encode(items, (labels + 1) % 3)
    options = {"bandwidth": 1.0, "estimator": "biased"}
    assert rdm.distance("mmd", items, items, **options) < 1e-12
    assert rdm.distance("mmd", swapped, encode(items, labels), **options) > 0.1


def test_balanced_makes_both_sides_equally_wide():
    items, labels = draw(200, 6) * 7, torch.arange(200) % 10
    with pytest.raises(InputError, match="fitted"):
        _pca(4)(items, labels)
    encode = _pca(4).fitted(items, labels)
    features = encode(items, labels)
    beta = float(encode.module.beta)
    assert beta == pytest.approx(balanced(rdm.representation("pca", components=4).fitted(items), items, 10, labels))
    phi = rdm.representation("pca", components=4)
    quarter = rdm.representation("joint", representation=phi, condition=10, beta=("balanced", 0.25))
    assert float(quarter.fitted(items, labels).module.beta) == pytest.approx(beta / 4)
    spread = lambda x: torch.pdist(x).square().median().sqrt()  # noqa: E731
    torch.testing.assert_close(spread(features[:, 4:]), spread(features[:, :4]), rtol=1e-6, atol=0)
    assert encode.fingerprint == _pca(4).fitted(items, labels).fingerprint != _pca(5).fitted(items, labels).fingerprint


def _pca(components: int) -> rdm.Representation:
    return rdm.representation("joint", representation=rdm.representation("pca", components=components), condition=10)


def test_a_representation_of_the_condition():
    text = rdm.representation("token_statistics", vocabulary=9, unigrams=4, bigrams=5)
    prompts = torch.randint(9, (12, 6), generator=torch.Generator().manual_seed(0))
    items = torch.rand(12, 1, 4, 4)
    encode = rdm.representation("joint", representation="pixels", condition=text, beta=2.0)
    torch.testing.assert_close(encode(items, prompts), torch.cat([items.flatten(1), 2 * text(prompts)], 1))
    assert set(encode.module.state_dict()) == {"beta", *(f"tau.encode.module.{k}" for k in text.module.state_dict())}


def test_encoders_that_share_a_table_of_conditions_hold_it_once_on_any_device():
    items, labels, table = draw(12, 5), torch.arange(12) % 3, torch.randn(3, 4)
    phis = rdm.representation("identity"), rdm.representation("whitening", shrinkage=0.1)
    members = [rdm.representation("joint", representation=phi, condition=table) for phi in phis]
    fitted = rdm.Battery(members).fitted(items, labels)
    for battery in (fitted, fitted.to("cpu"), fitted.to("meta")):
        first, second = (member.module.tau.encode.table for member in battery.members)
        assert first.is_set_to(second) if first.device.type == "cpu" else first is second
        assert battery.members[1].module.phi.matrix.device == first.device


def test_wrong_conditions_and_settings():
    items = torch.rand(4, 5)
    encode = rdm.representation("joint", representation="identity", condition=3, beta=1.0)
    for condition, message in (
        (None, "need the condition of every item; got none"),
        (torch.tensor([0, 1, 2, 3]), "must be numbers from 0 to 2, rows of the table; got 0 to 3"),
        (
            torch.rand(4),
            "must be class labels or other numbers of the 3 rows of a table, one an item; got torch.float32",
        ),
        (torch.tensor([0, 1]), "must have 4 rows, one an item; got 2"),
    ):
        with pytest.raises(InputError, match=message):
            encode(items, condition)
    for wrong, message in (
        ({"beta": -1.0}, "beta must be a number"),
        ({"condition": 0}, "a number of classes"),
        ({"representation": encode}, "is conditional"),
        ({"condition": rdm.representation("pca")}, "must be estimated before"),
    ):
        with pytest.raises(InputError, match=message):
            rdm.representation("joint", **{"representation": "identity", "condition": 3, **wrong})
    with pytest.raises(InputError, match='"balanced" cannot be found from the conditions'):
        rdm.representation("joint", representation="identity").fitted(items, torch.zeros(4).long())


def test_a_generator_learns_which_class_is_where():
    """Two classes at -2 and 2: matching items alone may swap them; matching pairs must not."""
    labels = torch.arange(200) % 2
    items = draw(200, 2) * 0.3 + 4 * labels[:, None] - 2
    encode = rdm.representation("joint", representation="identity", condition=2, beta=3.0)
    torch.manual_seed(0)
    net = nn.Embedding(2, 2).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    population = rdm.Population(rdm.objective("energy"), encode, items, condition=labels, chunk=16)
    for _ in range(80):
        optimizer.zero_grad()
        population.backward(lambda z, c: net(c) + 0.3 * z, draw(40, 2), torch.arange(40) % 2)
        optimizer.step()
    torch.testing.assert_close(net.weight.detach(), torch.tensor([[-2.0, -2], [2, 2]]).double(), rtol=0, atol=0.3)


def test_the_class_conditional_flow_trains_on_joint_features_from_gin(tmp_path):
    (tmp_path / "joint.gin").write_text("""
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.matching()]
rdm.train.data = @datasets.digits()
rdm.train.steps = 4
rdm.train.log_every = 1
generators.mlp_flow.width = 32
losses.matching.objective = @objectives.mmd()
losses.matching.population = 64
losses.matching.chunk = 24
losses.matching.battery = @rdm.battery()
rdm.battery.members = [@representations.joint()]
representations.joint.representation = @representations.pca()
representations.pca.components = 16
representations.joint.condition = 10
""")
    assert main(["train", str(tmp_path / "joint.gin"), "--out", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all(0 < line["distance/joint_pca"] < 1 and line["gradient_norm"] > 0 for line in lines)
