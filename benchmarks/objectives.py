"""Objectives, forward and backward, beside their peers. The reference's own work is done once, outside the time."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

import rdm
from benchmarks import bars
from benchmarks.bars import Bar
from benchmarks.measure import Candidate, interleaved, milliseconds, show, stages
from rdm.matching.objective import Objective
from rdm.matching.real import Real
from rdm.matching.statistic import checked


def bound(name: str, x: Tensor, y: Tensor, **hyperparameters: object) -> Candidate:
    """Our objective, bound once."""
    objective = rdm.objective(name, **hyperparameters)
    statistic, target = objective.bind(Real.of(y))

    def run() -> tuple[Tensor, Tensor]:
        rows = x.detach().requires_grad_()
        value = objective.distance(statistic.measure(*checked(rows)), target)
        return value.detach(), torch.autograd.grad(value, rows)[0]

    return run


def plain(value_of: Callable[[Tensor], Tensor], x: Tensor) -> Candidate:
    """A function of the generated rows, by autograd."""

    def run() -> tuple[Tensor, Tensor]:
        rows = x.detach().requires_grad_()
        value = value_of(rows)
        return value.detach(), torch.autograd.grad(value, rows)[0]

    return run


def mmd(device: str, *, n: int = 1024, m: int = 8192, d: int = 768, sigma: float = 40.0) -> Iterator[Bar]:
    """Gaussian MMD, in bfloat16 too, and five octaves of it, against torch.cdist, geomloss and bare products."""
    x, y = _clouds(device, n, m, d)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * sigma**2))

    exact = bound("mmd", x.double(), y.double(), bandwidth=sigma)()
    candidates = {
        "rdm": bound("mmd", x, y, bandwidth=sigma),
        "rdm, bfloat16 products": bound("mmd", x, y, bandwidth=sigma, products="bfloat16"),
        "(rdm, five octaves, summed)": bound("mmd", x, y, bandwidth=[sigma * 2.0**k for k in range(-2, 3)]),
        "rdm, 4096 random features": bound("mmd_rff", x, y, bandwidth=sigma, features=4096),
        "torch.cdist, autograd": plain(_naive(kernel, x, y, exact), x),
        "geomloss, x 2": plain(_geomloss("gaussian", y, blur=sigma), x),
        "(its two matrix products)": _products(x, y),
    }
    show(f"mmd, gaussian, {n} x {m} x {d}", interleaved(candidates, exact, repeats=5, device=device))
    yield from _of_products("mmd", candidates, device)


def energy(device: str, *, n: int = 1024, m: int = 8192, d: int = 768) -> Iterator[Bar]:
    """Energy distance against torch.cdist with autograd, geomloss and the products alone."""
    x, y = _clouds(device, n, m, d)
    exact = bound("energy", x.double(), y.double())()
    candidates = {
        "rdm": bound("energy", x, y),
        "rdm, bfloat16 products": bound("energy", x, y, products="bfloat16"),
        "torch.cdist, autograd": plain(_naive(lambda a, b: -torch.cdist(a, b), x, y, exact), x),
        "geomloss, x 2": plain(_geomloss("energy", y, blur=1.0), x),
        "(its two matrix products)": _products(x, y),
    }
    show(f"energy, {n} x {m} x {d}", interleaved(candidates, exact, repeats=5, device=device))
    yield from _of_products("energy", candidates, device)


def _of_products(name: str, candidates: Mapping[str, Candidate], device: str) -> Iterator[Bar]:
    """The shortest of interleaved repeats beside each other: bare products, float32, bfloat16."""
    chosen = [candidates[each] for each in ("(its two matrix products)", "rdm", "rdm, bfloat16 products")]
    products, single, rounded = fastest(chosen, device)
    yield Bar(f"{name}: of its matrix products", single / products, most=1.05)
    known = Path("/proc/cpuinfo")
    if device != "cpu" or known.exists() and "avx512_bf16" in known.read_text():
        yield Bar(f"{name}: float32, of bfloat16 products", single / rounded, least=3)


def fastest(candidates: list[Candidate], device: str, repeats: int = 20) -> list[float]:
    """Milliseconds of each, the least of interleaved repeats."""
    rounds = [[milliseconds(run, device) for run in candidates] for _ in range(repeats)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _clouds(device: str, n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g).to(device), torch.randn(m, d, generator=g).to(device) * 1.1


def _naive(
    kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, exact: tuple[Tensor, Tensor]
) -> Callable[[Tensor], Tensor]:
    """The biased value by whole matrices; the reference's own term is a constant, set so that the value is exact."""

    def varying(rows: Tensor) -> Tensor:
        return kernel(rows, rows).mean() - 2 * kernel(rows, y.to(rows)).mean()

    with torch.no_grad():
        constant = float(exact[0] - varying(x.double()))
    return lambda rows: varying(rows) + constant


def _geomloss(loss: str, y: Tensor, *, blur: float) -> Callable[[Tensor], Tensor]:
    """Its convention is half of ours; it works out the reference's own term at every call."""
    import geomloss

    peer = geomloss.SamplesLoss(loss, blur=blur, backend="tensorized")
    return lambda rows: 2 * peer(rows, y)


def _products(x: Tensor, y: Tensor) -> Candidate:
    """The distances' and the gradient's matrix products, in tiles as ours are, and nothing else."""

    def run() -> tuple[Tensor, Tensor]:
        for other in (x, y):
            for block in other.split(2048):
                weights = x @ block.T
                _ = weights @ block
        return x.new_ones(()), x

    return run


def frechet(device: str, *, d: int = 1024) -> None:
    """Fréchet against autograd through eigvalsh of R C R in float64, the published training form; many rows and few."""
    g = torch.Generator().manual_seed(0)
    scales = torch.arange(1, d + 1, dtype=torch.float64)
    y = (torch.randn(4 * d, d, generator=g, dtype=torch.float64) * scales ** (-1.2 / 2)).to(device)
    cy = torch.cov(y.T)
    values, vectors = torch.linalg.eigh(cy)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def published(rows: Tensor) -> Tensor:
        r, c = root.to(rows), torch.cov(rows.T)
        product = r @ c @ r
        overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(1e-30).sqrt().sum()
        return (rows.mean(0) - y.mean(0).to(rows)).square().sum() + c.trace() + cy.trace() - 2 * overlap

    def gram(rows: Tensor) -> Tensor:
        centred = (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
        overlap = torch.linalg.svdvals(centred @ root.to(rows)).sum()
        moved = (rows.mean(0) - y.mean(0).to(rows)).square().sum()
        return moved + centred.square().sum() + cy.trace() - 2 * overlap

    for n in (4 * d, d // 4):
        x = (torch.randn(n, d, generator=g, dtype=torch.float64) * scales ** (-1.3 / 2)).to(device)
        exact = plain(published if n > d else gram, x)()
        candidates = {
            "rdm, float32 features": bound("frechet", x.float(), y.float()),
            "rdm": bound("frechet", x, y),
            "eigvalsh, autograd, float64": plain(published, x),
            "eigvalsh, autograd, float32": plain(published, x.float()),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the population of few rows is singular, as is said
            rows = interleaved(candidates, exact, repeats=3, device=device)
        show(f"frechet, n = {n}, d = {d}, power-law spectra", rows)


def sliced(device: str) -> Iterator[Bar]:
    """Sliced Wasserstein against POT on the same directions, of equal and unequal sizes."""
    import ot

    from objectives._sorted import directions as drawn

    for n, m, d, projections in ((8192, 8192, 768, 256), (2048, 20_000, 512, 128)):
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(n, d, generator=g).to(device), torch.randn(m, d, generator=g).to(device) * 1.1 + 0.1
        directions = drawn(x, projections, None).T.contiguous()

        def pot(rows: Tensor, y: Tensor = y, directions: Tensor = directions) -> Tensor:
            return ot.sliced_wasserstein_distance(rows, y.to(rows), projections=directions.to(rows)) ** 2

        exact = bound("sliced_wasserstein", x.double(), y.double(), projections=projections)()
        candidates = {
            "rdm": bound("sliced_wasserstein", x, y, projections=projections),
            "POT": plain(pot, x),
        }
        title = f"sliced_wasserstein, {n} x {m} x {d}"
        show(f"{title}, {projections} directions", interleaved(candidates, exact, repeats=5, device=device))
        ours, theirs = fastest(list(candidates.values()), device, 5)
        yield Bar(f"{title}: POT, of rdm", theirs / ours, least=12)


def sinkhorn(device: str, *, n: int = 2048, d: int = 512, blur: float = 0.3, scaling: float = 0.73) -> None:
    """Sinkhorn divergence against geomloss' tensorized backend on the same schedule of 13 sweeps; and solved, warm.

    The second table's errors are those to the solution without end. A warm step starts from another draw of the rows.
    """
    import geomloss

    from objectives._sinkhorn import box, extent, temperatures

    g = torch.Generator().manual_seed(0)
    x, y, before = (scale * torch.randn(n, d, generator=g).to(device) / d**0.5 for scale in (1.1, 1.0, 1.1))
    options = {"p": 2, "blur": blur, "scaling": scaling}
    widest = float(extent(box(x), box(y)))
    sweeps = len(temperatures(widest, p=2, blur=blur, scaling=scaling))

    def peer(rows: Tensor) -> Tensor:
        return geomloss.SamplesLoss("sinkhorn", backend="tensorized", **options)(rows, y.to(rows))

    def started(tolerance: float, dtype: torch.dtype = torch.float32) -> Candidate:
        loss = rdm.Loss("sinkhorn", y.to(dtype), tolerance=tolerance, **options)
        loss(before.to(dtype))
        return plain(loss.eval(), x.to(dtype))  # which keeps the state as that step left it

    size = f"{n} x {n} x {d}"
    candidates = {
        "rdm": bound("sinkhorn", x, y, **options),
        "rdm, diameter given": bound("sinkhorn", x, y, diameter=widest, **options),
        "geomloss, tensorized": plain(peer, x),
    }
    rows = interleaved(candidates, plain(peer, x.double())(), repeats=9, device=device)
    show(f"sinkhorn, {size}, {sweeps} sweeps, debiased", rows)
    cold, _, theirs = (row.milliseconds for row in rows)
    candidates = {
        "rdm, warm, tolerance 1e-3": started(1e-3),
        f"rdm, {sweeps} sweeps": candidates["rdm"],
        f"geomloss, {sweeps} sweeps": candidates["geomloss, tensorized"],
    }
    rows = interleaved(candidates, started(1e-10, torch.float64)(), repeats=9, device=device)
    show(f"sinkhorn, {size}, debiased, against the solution", rows)
    warm, _, other = (row.milliseconds for row in rows)
    bars.show(
        [
            Bar("sinkhorn: geomloss' time, of a step's", theirs / cold, least=4),
            Bar("sinkhorn: geomloss' time, of a warm step's", other / warm, least=6),
            Bar("sinkhorn: gradient error of a warm step", rows[0].gradient_error, most=1e-3),
        ]
    )


def references(device: str, *, n: int = 1024, m: int = 50_000, d: int = 256) -> None:
    """Every objective on a reference of many rows: what binding and a step with gradient take, beyond the rows."""
    g = torch.Generator().manual_seed(0)
    x, reference = torch.randn(n, d, generator=g).to(device), torch.randn(m, d, generator=g).to(device)
    held = Real.of(reference)
    print(f"\nreference of {m} x {d} ({m * d * 4 / 2**20:.0f} MiB), {n} generated rows, fixed directions")
    print(f"{'':34}{'bind ms':>9}{'MiB':>8}{'step ms':>9}{'MiB':>8}")
    for name in rdm.names("objectives"):
        if name != "wasserstein":  # exact transport holds its n x m costs, and is for small n and m
            objective = rdm.objective(name, **LARGE.get(name, {}))
            bound: list = []

            def bind(objective: Objective = objective, bound: list = bound) -> None:
                bound.extend(objective.bind(held))

            def step(objective: Objective = objective, bound: list = bound) -> None:
                rows, (statistic, target) = x.detach().requires_grad_(), bound
                torch.autograd.grad(objective.distance(statistic.measure(*checked(rows)), target), rows)

            (first, most), (_, kept), (each, used) = stages([bind, step, step], device)
            print(f"{name:34}{first:9.0f}{most:8.0f}{each:9.0f}{max(kept, used):8.0f}", flush=True)


LARGE = {"resampled": {"objective": "energy", "rows": 1024}, "sinkhorn": {"diameter": 128.0}}


def run(device: str, only: str | None = None) -> None:
    """All of them, or the one of that name, with the bars that they hold."""
    found: list[Bar] = []
    for benchmark in (mmd, energy, frechet, sliced, sinkhorn, references):
        if only in (None, benchmark.__name__):
            found += benchmark(device) or ()
    if found:
        bars.show(found)
