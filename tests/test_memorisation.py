"""Metrics that see copies of the training set: against slow loops, closed forms, and generators that memorise."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

import rdm
from rdm.errors import InputError
from rdm.matching.real import Gaussian, Real
from tests.oracles import frechet_by_sqrtm

NAMES = "mifid", "authenticity", "c_t", "fld_gap"


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WIDE = 24
TRAIN, REAL, FRESH, HONEST, NOISE = (draw(n, WIDE, k) for k, n in enumerate((300, 320, 280, 240, 240)))
SIDES = Real(REAL, fresh=FRESH, train=TRAIN)
COPIES = {
    "half of it exactly": torch.cat([TRAIN[:120], HONEST[120:]]),
    "all of it with a little noise": TRAIN[:240] + 1e-3 * NOISE,
}
CAUGHT = {  # beyond what honest rows have, intervals included
    "authenticity": lambda copied, honest: copied.high < honest.low - 0.2,
    "c_t": lambda copied, honest: copied.high < -3 < honest.low and abs(honest.value) < 3,
    "fld_gap": lambda copied, honest: copied.high < -5 and honest.low > -5,
    "mifid": lambda copied, honest: copied.low > honest.high,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", COPIES)
def test_a_memoriser_is_caught_and_an_honest_sample_is_not(name, kind):
    options = {"threshold": 0.33} if name == "mifid" else {}
    measure = rdm.metric(name, **options)
    copied, honest = measure(COPIES[kind], SIDES), measure(HONEST, SIDES)
    assert CAUGHT[name](copied, honest), (copied, honest)
    if name == "mifid":
        assert honest == rdm.metric("fd")(HONEST, SIDES), "no factor where nothing is copied"
        assert rdm.metric("fd")(COPIES["half of it exactly"], SIDES).value < 1.2 * honest.value, "fd does not see it"


def test_mifid_by_loops():
    x, train, y = draw(20, 6, 7), draw(15, 6, 8), draw(30, 6, 9)
    x[:5] = train[:5] * 2 + 1e-3
    s = np.mean([min(1 - abs(float(a @ t)) / math.dist(a, 0 * a) / math.dist(t, 0 * t) for t in train) for a in x])
    fd = frechet_by_sqrtm(x, y, 1)
    for threshold, expected in ((1.0, fd / s), (s * 0.99, fd)):
        found = rdm.metric("mifid", threshold=float(threshold))(x, Real(y, train=train))
        assert found.value == pytest.approx(expected, rel=1e-9) and found.low < found.value < found.high
    assert rdm.metric("mifid").threshold == 0.1
    exact = rdm.metric("mifid")(train, Real(y, train=train))
    assert exact.value == pytest.approx(frechet_by_sqrtm(train, y, 1) / 1e-14, rel=0.1), (
        "copies alone: no bound but 1e14"
    )


def test_mifids_interval_is_that_of_new_rows():
    train, real = draw(60, 5, 1), Gaussian(torch.zeros(5).double(), torch.eye(5).double(), 0)
    measure = rdm.metric("mifid", threshold=1.0)
    found = [measure(draw(200, 5, 100 + k) * 1.3, Real(None, real, train=train)) for k in range(60)]
    mean = math.fsum(m.value for m in found) / len(found)
    assert sum(m.low <= mean <= m.high for m in found) >= 52


@pytest.mark.parametrize("d", [1, 3])
def test_authenticity_by_loops(d):
    x, train = draw(40, d, 3), draw(30, d, 4)
    x[:4] = train[:4]
    hits = []
    for row in x:
        gaps = [math.dist(row, t) for t in train]
        k = int(np.argmin(gaps))
        hits.append(gaps[k] > min(math.dist(train[k], t) for i, t in enumerate(train) if i != k))
    found = rdm.metric("authenticity")(x, Real(None, train=train))
    assert found.value == pytest.approx(np.mean(hits), abs=1e-12)
    assert rdm.metric("authenticity")(train, Real(None, train=train)).value == 0


def test_authenticity_of_new_rows_is_one_less_the_chance_of_mutual_neighbours():
    """Of independent points two nearest neighbours are mutual with 2/3 on a line, 6 pi/(8 pi + 3 sqrt 3) in a plane."""
    mutual = {1: 2 / 3, 2: 6 * math.pi / (8 * math.pi + 3 * math.sqrt(3))}
    for d, chance in mutual.items():
        torus = torch.rand(6000, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
        found = rdm.metric("authenticity")(torus[:3000], Real(None, train=torus[3000:]))
        # of 3,000 rows beside as many training ones: a generated row competes with no other generated one
        assert found.value == pytest.approx(1 - chance, abs=0.03)


def test_c_t_by_scipy():
    """Cells by the nearest centre of a k-means of the training rows, which the test has from the same function."""
    from rdm.api import landmarks

    x, train, unseen = draw(200, 2, 1) * 0.8, draw(150, 2, 2), draw(120, 2, 3)
    centres = landmarks(train - train.mean(0), torch.ones(150).double(), 3, method="k-means", seed=0)
    sides = [side - train.mean(0) for side in (x, unseen, train)]
    cells = [((side[:, None] - centres) ** 2).sum(2).argmin(1) for side in sides]
    total = weight = 0.0
    for cell in range(3):
        mine, theirs, known = (side[at == cell] for side, at in zip(sides, cells, strict=True))
        gaps = [torch.cdist(side, known).amin(1).numpy() for side in (mine, theirs)]
        n, m = len(theirs), len(mine)
        u = scipy.stats.mannwhitneyu(*gaps).statistic
        total += n * (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
        weight += n
    found = rdm.metric("c_t")(x, Real(None, fresh=unseen, train=train))
    assert found.value == pytest.approx(total / weight, rel=1e-9)


def test_c_t_of_new_rows_is_standard():
    """One cell: mean 0, and over new generated and unseen rows a variance of 1."""
    train, values = draw(100, 3, 0), []
    for k in range(80):
        sides = Real(None, fresh=draw(60, 3, 1000 + k), train=train)
        values.append(rdm.metric("c_t", cells=1)(draw(60, 3, 2000 + k), sides).value)
    assert abs(np.mean(values)) < 0.35 and 0.7 < np.std(values) < 1.3


def test_the_gap_by_autograd():
    """The published procedure, written out: Adam on the logarithms of the variances through torch's own densities."""
    d, x, train, unseen = 3, draw(25, 3, 1), draw(40, 3, 2), draw(30, 3, 3)
    x[:6] = train[:6]
    mean, spread = unseen.mean(0), unseen.std(0)
    mus, t, u = ((side - mean) / spread for side in (x, train, unseen))

    def logs(rows, centres, widths):
        variances = widths.exp()[:, None, None] * torch.eye(d).double()
        law = torch.distributions.MultivariateNormal(centres, covariance_matrix=variances)
        return law.log_prob(rows[:, None])

    widths = ((torch.cdist(t, mus).square().amin(0) + 1e-3) / d).log().requires_grad_()
    own = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([widths, own], lr=0.5)
    for _ in range(7):
        adam.zero_grad()
        shrunk = t.mean(0) + 0.9 * (t - t.mean(0))
        parts = logs(t, mus, widths) - math.log(25), logs(shrunk, t.mean(0)[None], own)
        (-torch.cat(parts, 1).logsumexp(1).mean() / d).backward()
        adam.step()
        with torch.no_grad():
            widths.clamp_(-40, 40)
    ll = [(logs(side, mus, widths.detach()).logsumexp(1) - math.log(25)).mean() / d for side in (u, t)]
    found = rdm.metric("fld_gap", epochs=7)(x, Real(None, fresh=unseen, train=train))
    assert found.value == pytest.approx(100 * float(ll[0] - ll[1]), rel=1e-8)


def test_without_a_training_set_or_unseen_rows_it_is_said():
    for name in NAMES:
        with pytest.raises(InputError, match="needs the generator's training set; give --train"):
            rdm.metric(name)(HONEST, Real(REAL, fresh=FRESH))
        with pytest.raises(InputError, match="dimension d=24; got d=3"):
            rdm.metric(name)(HONEST, Real(None, train=TRAIN[:, :3]))
    for name in ("c_t", "fld_gap"):
        for sides in (Real(REAL, fresh=TRAIN[:50], train=TRAIN), Real(TRAIN, train=TRAIN)):
            with pytest.raises(InputError, match="100% of the (fresh split|reference)'s are in it"):
                rdm.metric(name)(HONEST, sides)
    with pytest.raises(InputError, match="more than 20 generated rows in some of 3 cells; got 9"):
        rdm.metric("c_t")(HONEST[:9], SIDES)
    with pytest.raises(InputError, match="give fewer cells than 200"):
        rdm.metric("c_t", cells=200)(TRAIN[:1].repeat(50, 1), SIDES)
