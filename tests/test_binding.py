"""What `bind` makes of a reference does not depend on where its rows lie, on chunks or ranks, and is kept."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import rdm
from objectives import _discrepancy
from objectives._discrepancy import KernelTarget, kernel_target, mean_of_pairs
from objectives._kernels import Gaussian, Laplacian, Polynomial, Power
from objectives._pairs import Kernel
from objectives._sides import Side
from objectives._sums import self_sum
from rdm.files.store import read_tensors, write_tensors
from rdm.matching.real import Real
from rdm.references import targets
from rdm.references.landmarks import landmarks
from rdm.references.targets import bound
from tests import processes
from tests.conftest import objective_cases
from tests.test_real import Elsewhere

OBJECTIVES = {
    "frechet": {}, "mmd_rff": {"features": 256, "bandwidth": 2.0}, "mmd_nystrom": {"landmarks": 64, "bandwidth": 2.0},
    "sliced_wasserstein": {}, "energy": {},
}  # fmt: skip


def cloud(n: int, d: int = 8) -> torch.Tensor:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, d, generator=g) * torch.arange(1, d + 1) ** -0.5 + 0.3


class Hashed(Elsewhere):
    """Rows elsewhere that say their hash."""

    identity = "of these rows"


def tensors_of(pair: tuple) -> list[torch.Tensor]:
    """Tensors and numbers of a statistic and a target."""
    held: dict = {}
    numbers: list[float] = []

    def walk(node: object) -> None:
        if isinstance(node, float):
            numbers.append(node)
        for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(each)

    walk(targets._encoded(pair, held))
    return [tensor for _, tensor in held.values()] + [torch.tensor(numbers, dtype=torch.float64)]


def largest_gap(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """The largest relative difference among the tensors of two targets; what is 0 up to rounding counts as .001."""
    both = zip(tensors, others, strict=True)
    return max(float((a.double() - b.double()).norm() / a.double().norm().clamp_min(1e-3)) for a, b in both)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_targets_of_rows_elsewhere_are_those_of_rows_in_memory(name, monkeypatch):
    monkeypatch.setattr("objectives._discrepancy.OWN", 256)
    rows, objective = cloud(20_000), rdm.objective(name, **OBJECTIVES[name])
    here = tensors_of(objective.bind(Real.of(rows)))
    for chunk in (700, 6500):
        assert largest_gap(here, tensors_of(objective.bind(Real(Elsewhere(rows), chunk=chunk)))) <= 1e-10


def ranks(rank: int, folder: str, world: int) -> None:
    """One of some gloo processes: binds its share of every objective, then the last one reads alone what was kept."""
    torch.set_num_threads(1)
    _discrepancy.OWN = 256
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        cache, rows = Path(folder) / "cache", cloud(20_000)
        shared = Real(Hashed(rows), shared=True, chunk=1000)
        for name, options in OBJECTIVES.items():
            objective = rdm.objective(name, **options)
            found = bound(objective, shared, cache)
            if name == "frechet":  # a file that one rank cannot read is read by none
                dist.barrier()
                (path,) = cache.iterdir()
                dist.barrier()
                if rank == 0:
                    path.unlink()
                again = bound(objective, shared, cache)
                assert largest_gap(tensors_of(found), tensors_of(again)) == 0
            torch.save(tensors_of(found), f"{folder}/{name}-{rank}.pt")
        few = Real(cloud(world - 1, 3), shared=True)  # one rank has none
        assert torch.allclose(few.mean, few.rows.double().mean(0))
        if rank == world - 1:
            assert bound(objective, replace(shared, shared=False))  # no collective
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_targets_do_not_depend_on_ranks(tmp_path, world, monkeypatch):
    monkeypatch.setattr(_discrepancy, "OWN", 256)
    processes.ranks(ranks, (str(tmp_path), world), world)
    for name, options in OBJECTIVES.items():
        alone = tensors_of(rdm.objective(name, **options).bind(Real.of(cloud(20_000))))
        for rank in range(world):
            shared = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert largest_gap(alone, shared) <= 1e-10, name


@pytest.mark.parametrize("name, example", objective_cases())
def test_every_target_is_kept_and_read_again(name, example, tmp_path, monkeypatch):
    real, objective = Real.of(cloud(30, 4)), rdm.objective(name, **example)
    statistic, target = bound(objective, real, tmp_path)
    monkeypatch.setattr(type(objective), "bind", rename(type(objective).bind))
    again = bound(objective, real, tmp_path)
    assert type(again[1]) is type(target) and largest_gap(tensors_of((statistic, target)), tensors_of(again)) == 0
    x, weights = cloud(9, 4), torch.ones(9, dtype=torch.float64)
    values = [o.distance(s.measure(x, weights), t) for o, s, t in ((objective, statistic, target), (objective, *again))]
    assert torch.equal(*values)


WITHOUT_TYPE_CHECKS = """
import sys, warnings
from pathlib import Path

import torch
import rdm
from rdm.matching.real import Real
from rdm.references.targets import bound
from rdm.registry import objectives

warnings.simplefilter("error")
real, cache, kept = Real.of(torch.randn(30, 4)), Path("cache"), []
given = [rdm.objective(name, **example) for name, entry in objectives.items() for example in entry.examples]
for _ in range(2):
    for objective in given:
        bound(objective, real, cache)
    kept.append({path: path.stat().st_mtime_ns for path in cache.iterdir()})
assert kept[0] == kept[1] and len(kept[0]) == len(given) > 10 and "jaxtyping" not in sys.modules, kept
"""


def test_targets_are_read_again_where_no_test_checks_annotations(tmp_path):
    """As users run it: what annotations of tensors are there must fit tensors, too."""
    process = processes.Command(exec, WITHOUT_TYPE_CHECKS, {}, cwd=tmp_path)
    assert process.wait() == 0, process.communicate()


def rename(bind: object) -> object:
    """A `bind` of the same annotations that must not be called."""

    def refuse(self: object, reference: object) -> None:
        raise AssertionError("bound again")

    refuse.__annotations__, refuse.__wrapped__ = bind.__annotations__, bind  # in whose module the annotations are read
    return refuse


def test_what_a_target_follows_from_names_its_file(tmp_path):
    rows = cloud(30, 4)
    mmd = rdm.objective("mmd", bandwidth=1.0)
    for objective, real in (
        (mmd, Real.of(rows)),
        (rdm.objective("mmd", bandwidth=2.0), Real.of(rows)),
        (rdm.objective("cmmd"), Real.of(rows)),
        (mmd, Real.of(rows + 1)),
        (mmd, Real.of(rows, torch.arange(1.0, 31.0))),
        (mmd, Real(rows, whole=False)),
        (mmd, Real(Hashed(rows))),
    ):
        before = len(list(tmp_path.iterdir()))
        bound(objective, real, tmp_path)
        assert len(list(tmp_path.iterdir())) == before + 1
    bound(mmd, Real(Elsewhere(rows)), tmp_path)  # rows that do not say their hash
    bound(mmd, Real.of(rows), tmp_path)
    assert len(list(tmp_path.iterdir())) == 7


def test_a_cache_that_cannot_be_used_is_a_warning(tmp_path):
    real, objective = Real.of(cloud(30, 4)), rdm.objective("mmd", bandwidth=1.0)
    expected = tensors_of(bound(objective, real, tmp_path))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    tensors, description = read_tensors(path)
    target = description["bound"]["tuple"][1]["fields"]
    forged = [
        lambda: path.write_bytes(whole[:-7]),
        lambda: path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])),
        lambda: write_tensors(path, tensors, {**description, "key": {**description["key"], "code": "other"}}),
        lambda: write_tensors(path, {k: t * float("nan") for k, t in tensors.items()}, description),
        lambda: write_tensors(path, tensors, {**description, "bound": {"of": "Path", "fields": {}}}),
        lambda: write_tensors(path, tensors, {**description, "bound": {"of": "KernelTarget", "fields": target}}),
        lambda: write_tensors(path, tensors, {**description, "bound": {"tuple": [1, 2]}}),
        lambda: write_tensors(
            path, tensors, {**description, "bound": replaced(description["bound"], "kernel", {"tensor": "000001"})}
        ),
        lambda: write_tensors(
            path, tensors, {**description, "bound": replaced(description["bound"], "kernel", {"of": "Samples"})}
        ),
    ]
    for forge in forged:
        forge()
        with pytest.warns(UserWarning, match="bound again"):
            assert largest_gap(expected, tensors_of(bound(objective, real, tmp_path))) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bound(objective, real, tmp_path)  # it is mended
    path.unlink()
    tmp_path.chmod(0o500)
    (tmp_path.parent / "a file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        bound(objective, real, tmp_path.parent / "a file")
    tmp_path.chmod(0o700)


def replaced(plain: dict, name: str, value: object) -> dict:
    """The description of a bound target with another field."""
    statistic, target = plain["tuple"]
    return {"tuple": [statistic, {**target, "fields": {**target["fields"], name: value}}]}


def test_a_population_starts_again_from_what_was_bound(tmp_path, monkeypatch):
    objective, items = rdm.objective("mmd", bandwidth=1.0), cloud(30, 4)
    given = objective, rdm.representation("pixels"), items
    first = rdm.Population(*given, cache=tmp_path)
    monkeypatch.setattr(type(objective), "bind", rename(type(objective).bind))
    again = rdm.Population(*given, cache=tmp_path)
    for one, other in zip(first.terms, again.terms, strict=True):
        assert largest_gap(tensors_of((one.statistic, one.target)), tensors_of((other.statistic, other.target))) == 0
    with pytest.raises(AssertionError, match="bound again"):
        rdm.Population(*given)


@pytest.mark.parametrize("kernel", [Gaussian((4.0,)), Laplacian((4.0,)), Power(1.0), Power(1.5), Polynomial()])
def test_the_constant_of_many_rows_is_within_its_stated_error(kernel: Kernel, monkeypatch):
    """sd(k) sqrt(2) over the rows on one side, in every kernel and of unequal weights; exact up to `WHOLE` rows."""
    monkeypatch.setattr("objectives._discrepancy.OWN", 500)
    rows, weights = cloud(3000), torch.rand(3000, generator=torch.Generator().manual_seed(1)) + 0.5
    real = Real.of(rows, weights)
    exact: dict[str, KernelTarget] = {e: kernel_target(kernel, real, e)[1] for e in ("biased", "unbiased")}
    fitted, y, b = exact["biased"].kernel, exact["biased"].rows, exact["biased"].weights
    some, ones = y[:1000], torch.ones(1000, dtype=torch.float64) / 1000
    mean = self_sum(fitted, some, ones, diagonal=True)
    pairs = fitted.tile(some, some[:200], same=False).double()
    spread = float((pairs - mean).square().mean().sqrt())
    estimated = mean_of_pairs(fitted, exact["biased"].side, b)
    assert abs(estimated - exact["unbiased"].repulsion) <= 4 * spread * 2**0.5 / 500
    monkeypatch.setattr("objectives._discrepancy.WHOLE", 2999)
    for estimator, target in exact.items():
        found = kernel_target(kernel, real, estimator)[1].repulsion
        assert 0 < abs(found - target.repulsion) <= 4 * spread * 2**0.5 / 500


def test_the_constant_is_without_bias():
    """Over many draws of the rows on one side, and with an error far below that of the pairs within them."""
    y, b = cloud(400, 4).double(), torch.full((400,), 1 / 400, dtype=torch.float64)
    exact = self_sum(Power(1.0), y, b, diagonal=False) / (1 - 1 / 400)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("objectives._discrepancy.OWN", 40)
        for seed in range(300):
            order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
            found.append(mean_of_pairs(Power(1.0), Side(y[order]), b))
    errors = torch.stack(found) - exact
    assert abs(errors.mean()) <= 4 * errors.std() / 300**0.5
    spread = torch.cdist(y, y)[~torch.eye(400, dtype=torch.bool)].std()
    assert 0.3 < errors.std() / (spread * 2**0.5 / 40) < 1.2


def test_k_means_in_batches_is_as_good_as_lloyds_rounds(monkeypatch):
    rows, weights = cloud(9000, 4), torch.ones(9000, dtype=torch.float64)
    found = {}
    for batch in (600, 9000):
        monkeypatch.setattr("rdm.references.landmarks.BATCH", batch)
        for order in (torch.arange(9000), torch.arange(8999, -1, -1)):
            centres = landmarks(rows[order], weights[order], 100, method="k-means", seed=0)
            gap = torch.cdist(rows, centres).amin(1).square().mean()
            assert found.setdefault(batch, gap) == pytest.approx(float(gap), rel=1e-6)
    assert found[600] < 1.05 * found[9000]
