"""Metrics: values against independent packages and formulas, behaviour on known laws, one line for wrong input."""

import inspect
import math
import re

import numpy as np
import pytest
import torch
from scipy import linalg

import rdm
from rdm.errors import InputError
from rdm.judging.measures import asked, measures, split
from rdm.judging.metrics.kernels import kid_subsets
from rdm.judging.ratio import mean_ratio
from rdm.matching.metric import Estimate, Measure, Metric, of_share, student
from rdm.matching.real import Gaussian, Real
from rdm.randomness import stream
from rdm.registry import conventions
from tests.peers import peer

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own


def rows(n: int, d: int = 8, *, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) * torch.linspace(1, 0.2, d) * scale + shift


X, Y = rows(300, seed=1, shift=0.2), rows(250, seed=2)


def test_every_metric_gives_its_interval_seed_and_source():
    logits = rows(300, 5, seed=3)
    for name in rdm.names("metrics"):
        entry = rdm.registry.metrics[name]
        text = inspect.getdoc(entry.build)
        for part in ("Source:", "Shapes:", "Units:", "Cost:"):
            assert part in text + (inspect.getdoc(entry.build.__mro__[1]) or ""), f"{name} says no {part}"
        measure = rdm.metric(name, **({"size": 100, "subsets": 5} if name.startswith("kid") else {}))
        assert isinstance(measure, Measure)
        found = measure(
            logits if measure.logits else X, Real(Y, fresh=rows(280, seed=4), train=rows(200, seed=5)), seed=7
        )
        assert isinstance(found, Metric) and found.seed == 7 and found.low <= found.value <= found.high, name
        assert 250 <= found.n <= 300
        assert (
            measure(logits if measure.logits else X, Real(Y, fresh=rows(280, seed=4), train=rows(200, seed=5)), seed=7)
            == found
        )
        wild = X.clone()
        wild[3, 1] = math.nan
        with pytest.raises(InputError, match="NaN or infinity in 1 of 300 rows"):
            measure(wild, Real(Y, fresh=Y))


def test_frechet_is_torch_fidelitys_and_torchmetrics():
    fid = peer("torch_fidelity.metric_fid")
    stats = [{"mu": v.mean(0).numpy(), "sigma": np.cov(v.numpy(), rowvar=False)} for v in (X, Y)]
    expected = fid.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert rdm.metric("fd")(X, Real(Y)).value == pytest.approx(expected, rel=1e-9)
    assert rdm.metric("fd")(X, Real(None, Gaussian.of(Y))).value == pytest.approx(expected, rel=1e-9)
    torchmetrics = peer("torchmetrics.image.fid")
    other = torchmetrics._compute_fid(X.mean(0), torch.cov(X.T), Y.mean(0), torch.cov(Y.T))
    assert rdm.metric("fd")(X, Real(Y)).value == pytest.approx(float(other), rel=1e-6)


@pytest.mark.parametrize("degree, gamma, coef", [(3, None, 1.0), (2, 0.5, 0.25), (1, 2.0, 0.1)])
def test_kid_is_torch_fidelitys_with_its_seed(degree: int, gamma: float | None, coef: float):
    kid = peer("torch_fidelity.metric_kid")
    options = {"kid_subsets": 6, "kid_subset_size": 60, "rng_seed": 5, "verbose": False}
    options |= {"kid_kernel_poly_degree": degree, "kid_kernel_poly_gamma": gamma, "kid_kernel_poly_coef0": coef}
    expected = kid.kid_features_to_metric(X, Y, kid_kernel="poly", **options)
    options = {"subsets": 6, "size": 60, "degree": degree, "gamma": gamma, "coef": coef}
    got = rdm.metric("kid", **options)(X, Real(Y), seed=5)
    assert got.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    spread = rdm.metric("kid_spread", **options)(X, Real(Y), seed=5)
    assert spread.value == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9)


def test_kid_of_subsets_is_torchmetrics_and_draws_alike_however_many():
    values = kid_subsets(X, Y[:60], subsets=2, size=60, seed=0)
    torchmetrics = peer("torchmetrics.image.kid")
    whole = torchmetrics.poly_mmd(X[:250], Y)
    assert float(kid_subsets(X[:250], Y, subsets=1, size=250, seed=0)[0]) == pytest.approx(float(whole), rel=1e-9)
    assert len(values) == 2
    at_once = kid_subsets(X, Y[:90], subsets=40, size=60, seed=0)
    one_by_one = kid_subsets(X, Y[:90], subsets=2, size=60, seed=0)
    torch.testing.assert_close(at_once[:2], one_by_one, rtol=1e-12, atol=1e-14)


def test_inception_score_is_torch_fidelitys():
    isc = peer("torch_fidelity.metric_isc")
    logits = rows(203, 7, seed=5, scale=4)
    expected = isc.isc_features_to_metric(logits, splits=10, shuffle=False)["inception_score_mean"]
    assert rdm.metric("inception_score", shuffle=False)(logits, None).value == pytest.approx(expected, rel=1e-9)


def test_precision_recall_density_coverage_are_the_peers():
    expected = peer("prdc").compute_prdc(real_features=Y.numpy(), fake_features=X.numpy(), nearest_k=5)
    for name, value in expected.items():
        assert rdm.metric(name)(X, Real(Y)).value == pytest.approx(value, rel=1e-12), name
    few = peer("prdc").compute_prdc(real_features=Y.numpy(), fake_features=X[:7].numpy(), nearest_k=5)
    for name in ("precision", "density", "coverage"):
        assert rdm.metric(name)(X[:7], Real(Y)).value == pytest.approx(few[name], rel=1e-12), name
    prc = peer("torch_fidelity.metric_prc")
    options = {"prc_neighborhood": 3, "prc_batch_size": 64, "save_cpu_ram": False, "verbose": False}
    three = prc.prc_features_to_metric(X, Y, **options)
    for name in ("precision", "recall", "f_score"):
        assert rdm.metric(name, k=3)(X, Real(Y)).value == pytest.approx(three[name], rel=1e-6), name


def test_cmmd_is_the_published_estimator():
    def normalised(v):
        return v / v.norm(dim=1, keepdim=True)

    def mean_kernel(a, b):  # the published code: gamma = 1 / (2 sigma^2), sigma = 10, times 1000, diagonal included
        return float(sum(torch.exp(-(p - q).square().sum() / 200) for p in a for q in b)) / (len(a) * len(b))

    x, y = normalised(X[:40]), normalised(Y[:30])
    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert rdm.metric("cmmd")(X[:40], Real(Y[:30])).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["mmd", "energy"])
def test_kernel_distances_are_the_objectives(name):
    assert rdm.metric(name)(X, Real(Y)).value == pytest.approx(float(rdm.distance(name, X, Y)), rel=1e-12)


def test_sliced_is_the_objective_rooted_and_a_plain_sort():
    measure = rdm.metric("sw", projections=32)
    expected = rdm.distance("sliced_wasserstein", X[:250], Y, projections=32, root=True)
    assert measure(X[:250], Real(Y)).value == pytest.approx(float(expected), rel=1e-9)
    ot = peer("ot")
    g = torch.randn(32, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions = (g / g.norm(dim=1, keepdim=True)).T.numpy()
    other = ot.sliced_wasserstein_distance(X[:250].numpy(), Y.numpy(), projections=directions)
    assert measure(X[:250], Real(Y)).value == pytest.approx(other, rel=1e-9)


def test_frechets_bias_falls_as_one_over_n_and_infinity_removes_it():
    y = rows(40_000, seed=1)
    real = Real(y[:4000], Gaussian.of(y))
    biases = []
    for n in (250, 500, 1000, 2000):
        values = [rdm.metric("fd")(rows(n, seed=10 + s), real).value for s in range(10)]
        biases.append(n * sum(values) / len(values))
    assert max(biases) / min(biases) < 1.4, biases
    found = [rdm.metric("fd_infinity")(rows(500, seed=10 + s), real, seed=s) for s in range(20)]
    assert sum(f.low <= 0 <= f.high for f in found) >= 17
    assert abs(sum(f.value for f in found) / 20) < 0.15 * biases[1] / 500


def test_the_published_line_is_that_of_scipy_and_numpy():
    g, points = stream(3, "subsets"), []
    for size in np.linspace(60, 300, 7).astype(int).tolist():
        x = X[torch.randperm(300, generator=g)[:size]].numpy()
        a, b = (np.cov(side, rowvar=False) for side in (x, Y.numpy()))
        root = linalg.sqrtm(a @ b)
        points.append((1 / size, np.sum((x.mean(0) - Y.numpy().mean(0)) ** 2) + np.trace(a + b - 2 * root.real)))
    intercept = np.polyfit(*zip(*points, strict=True), 1)[1]
    found = rdm.metric("fd_infinity", least=60, points=7)(X, Real(Y), seed=3)
    assert found.value == pytest.approx(float(intercept), rel=1e-8)
    assert found.value < rdm.metric("fd")(X, Real(Y)).value and found.low < found.value < found.high


def test_ratios_of_real_data_are_one_and_grow_with_damage():
    real = Real(rows(600, seed=1), fresh=rows(400, seed=2))
    for name in ("fdr", "sw_r", "mmd_r"):
        measure = rdm.metric(name)
        good = measure(rows(500, seed=3), real)
        assert good.low < 1 < good.high and good.n == 400
        bad = [measure(rows(500, seed=3, shift=s), real) for s in (0.1, 0.3)]
        assert good.value < bad[0].value < bad[1].value and bad[1].low > 1


def test_a_mean_over_members_is_the_arithmetic_mean_of_ratios():
    real = Real(rows(300, seed=1), fresh=rows(200, seed=2))
    wide = Real(rows(300, seed=1, scale=2), fresh=rows(200, seed=2, scale=2))
    measure = rdm.metric("fdr")
    members = [measure.estimate(rows(200, seed=3), real), measure.estimate(rows(200, seed=3, scale=2.2), wide)]
    together = mean_ratio(members, 0)
    assert together.value == pytest.approx(sum(m.value for m in members) / 2)
    twice = mean_ratio([members[0], members[0]], 0)
    assert twice == pytest.approx(measure(rows(200, seed=3), real)), "equal members add no information"


def test_float32_rows_agree():
    for name in ("fd", "mmd", "energy", "sw", "precision"):
        double = rdm.metric(name)(X, Real(Y)).value
        assert rdm.metric(name)(X.float(), Real(Y.float())).value == pytest.approx(double, rel=1e-4), name


def test_wrong_input_is_one_line():
    for name, x, real, message in (
        ("fd", X[:1], Real(Y), "fd needs at least 2 generated rows; got 1"),
        ("fd_infinity", X[:60], Real(Y), "needs at least 64 generated rows; got 60"),
        ("kid_spread", X, Real(Y), "needs at least 1000 generated rows; got 300"),
        ("precision", X[:5], Real(Y), "needs at least 6 generated rows; got 5"),
        ("recall", X[:11], Real(Y), "needs at least 12 generated rows; got 11"),
        ("inception_score", X[:5], Real(Y), "needs at least 10 generated rows; got 5"),
        ("sw", X, Real(None, Gaussian.of(Y)), "sw needs rows of the reference; the reference holds moments only"),
        ("fdr", X, Real(Y), "divides by a fresh real split's distance; this reference holds none"),
        ("fdr", X, Real(Y, fresh=Y), "at distance 0 from the reference; is it disjoint"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            rdm.metric(name)(x, real)
        assert "\n" not in str(caught.value)


def test_intervals_of_shares_and_groups():
    assert of_share(1.0, 0.0, 100, 0)[:3] == (1.0, pytest.approx(0.963, abs=1e-3), 1.0)
    assert student(9) == pytest.approx(2.2622, abs=1e-3)
    assert Estimate(1.0, torch.zeros(5), 0.5).variance == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0, 10])
def test_ties_are_counted_as_defined(dtype: torch.dtype, shift: int):
    """On a lattice, whose arithmetic is exact: density leaves ties out, as prdc does, the others take them in."""
    g = torch.Generator().manual_seed(0)
    rows = (torch.randn(200, 8, generator=g) + shift).to(dtype)
    y, x = torch.randint(0, 3, (2, 200, 3), generator=g) + shift
    within, across = ((p[:, None] - y).square().sum(2) for p in (y, x))
    reach = within.sort(1).values[:, 5]  # the row itself is the first
    expected = {
        "density": (across < reach).double().sum() / (5 * len(x)),
        "precision": (across <= reach).any(1).double().mean(),
        "coverage": (across <= reach).any(0).double().mean(),
    }
    for name, value in expected.items():
        assert math.isclose(rdm.metric(name)(x.to(dtype), Real(y.to(dtype))).value, value, rel_tol=1e-12), name
    assert math.isclose(expected["density"], 0.133, abs_tol=5e-4)  # 1.7 to 1.8 where rounding decides
    assert rdm.metric("density")(rows, Real(rows)).value == 1


def test_density_is_not_below_zero():
    far = torch.cat([Y[:2], Y[:150] + 50])  # two near rows of many: the symmetric interval would reach below
    found = rdm.metric("density")(far, Real(Y))
    assert found.low == 0 < found.value < found.high


def test_metrics_are_named_with_their_hyperparameters():
    found = measures(split("fd, precision(k=3),kid(size=100, subsets=4)"))
    assert list(found) == ["fd", "precision(k=3)", "kid(size=100, subsets=4)"]
    assert found["precision(k=3)"] == rdm.metric("precision", k=3)
    for text, words in (
        ("fd,,", "expected metrics as"), ("fd)", "expected metrics as"), ("precision(3)", "expected a metric as"),
        ("precision(k=open('x'))", "expected a metric as"), ("fid", "unknown metric 'fid'"), ("1", "expected a metric"),
        ("precision(j=3)", "has no hyperparameter 'j'"), ("precision(k=0)", "k must be a whole number"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=re.escape(words)):
            measures(split(text))


@pytest.mark.parametrize("name", rdm.names("conventions"))
def test_conventions_are_metrics_with_a_source(name):
    assert measures(asked(None, name)) and re.search(r"\(20\d\d\)", conventions[name].build.__doc__ or "")
    with pytest.raises(InputError, match="leave --metrics out"):
        asked("fd", name)


def test_a_ratio_over_published_constants_takes_all_rows_and_needs_no_fresh_split():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(300, 3, generator=g, dtype=torch.float64) for _ in range(2))
    real, fd = Real(y, origin={"representation": "mae_cls"}), rdm.metric("fd")(x, Real(y))
    found = rdm.metric("fdr", below="fd_loss")(x, real)
    assert found.value == pytest.approx(fd.value / 0.04284) and found.n == 300 and found.low < found.value < found.high
    assert rdm.metric("fdr", below={"mae_cls": 2.0})(x, real).value == pytest.approx(fd.value / 2)
    with pytest.raises(InputError, match="below has no number for 'mae_cls'; it has clip"):
        rdm.metric("fdr", below={"clip": 1.0})(x, real)
    for below, words in (("paper", "one of 'fresh', 'fd_loss', or numbers"), ({"clip": 0.0}, "positive numbers by")):
        with pytest.raises(InputError, match=words):
            rdm.metric("fdr", below=below)


def test_directions_as_irdm_draws_them_are_other_ones_of_the_same_distance():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 4, generator=g) + 1, torch.randn(200, 4, generator=g)
    ours, theirs = (rdm.metric("sw", directions=name)(x, Real(y)).value for name in ("fixed", "irdm"))
    theta = torch.randn(1024, 4, generator=torch.Generator().manual_seed(0))
    theta = theta / theta.norm(dim=1, keepdim=True)
    gaps = (x @ theta.T).sort(0).values - (y @ theta.T).sort(0).values
    assert theirs == pytest.approx(float(gaps.square().mean().sqrt()), rel=1e-5) and ours == pytest.approx(theirs, 0.02)
