"""Populations with a memory: a step beside the published one, whatever the queue's size; and a bound module's price."""

import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

import rdm
from benchmarks.bars import Bar, show
from benchmarks.measure import milliseconds, peak
from rdm.api import Cat, Gaussian, Memory, checked
from rdm.population.loss import Loss


class Law(NamedTuple):
    """Rows of a power-law spectrum, its eigenvectors turned a little from the reference's."""

    root: Tensor  # d d
    reference: Gaussian
    source: torch.Generator

    @classmethod
    def of(cls, d: int, device: str) -> "Law":
        """Covariances of eigenvalues i^-1.3 and i^-1.2."""
        g, numbers = torch.Generator().manual_seed(0), torch.arange(1, d + 1, dtype=torch.float64)
        skew = torch.randn(d, d, generator=g) * 0.05 / d**0.5
        root = torch.linalg.matrix_exp(skew - skew.T) * numbers.float() ** -0.65
        fit = Gaussian(torch.zeros(d, dtype=torch.float64), torch.diag(numbers**-1.2), 50_000)
        return cls(root.T.to(device), fit.to(device), g)

    def draw(self, n: int) -> Tensor:
        """Rows "n d"."""
        return torch.randn(n, len(self.root), generator=self.source).to(self.root) @ self.root


def filled(law: Law, memory: Memory, rows: int) -> Loss:
    """A Fréchet loss whose memory holds so many rows."""
    loss = Loss("frechet", law.reference, memory=memory)
    held: Any = loss._held
    for start in range(0, rows, 5000):
        new = law.draw(min(5000, rows - start))
        ones = torch.ones(len(new), dtype=torch.float64, device=new.device)
        if start and not memory.keeps_rows:  # an average of all, not one that fades
            held.past = held.past.mixed(start, held.statistic.measure(new, ones), 1.0)
            held.past = held.past.scale(1 / held.past.mass)
        else:
            held.write(held.statistic.measure(new, ones), Cat(new, ones))
    return loss


def pulled(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of one step."""
    rows = x.detach().requires_grad_()
    return torch.autograd.grad(loss(rows), rows)[0]


def published(law: Law, past: Tensor, share: float) -> Callable[[Tensor], Tensor]:
    """The step of the published training code: moments joined, eigvalsh of R C R in float64, autograd through it."""
    values, vectors = torch.linalg.eigh(law.reference.covariance)
    root, trace = (vectors * values.sqrt()) @ vectors.T, values.sum()

    def value(rows: Tensor) -> Tensor:
        wide = rows.double()
        first = share * wide.mean(0)
        covariance = (1 - share) * past + share * (wide.T @ wide / len(wide)) - torch.outer(first, first)
        product = root @ covariance @ root
        overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(1e-30).sqrt().sum()
        return first.square().sum() + covariance.trace() + trace - 2 * overlap

    return value


def followed(device: str, *, d: int = 2048, n: int = 256, rows: int = 50_000, steps: int = 258) -> Iterator[Bar]:
    """Steps within a tolerance beside the published one and the exact one; the exact ones are in the mean."""
    law = Law.of(d, device)
    memories: list[tuple[Memory, str]] = [(rdm.EMA(0.999), "ema .999"), (rdm.Queue(rows), f"queue {rows}")]
    for memory, name in memories:
        exact = filled(law, memory, rows)
        held: Any = exact._held
        held.past = memory.caught_up(held.past, n, held.statistic)  # with the sum that a step of n rows finds
        loss = Loss("frechet", law.reference, memory=memory, tolerance=1e-3)
        loss._held.past = held.past  # which no step changes in place
        value = held.past.summed(rows - n, held.statistic) if memory.keeps_rows else held.past
        peer = published(law, value.value[1:] / value.mass, 1e-3 if not memory.keeps_rows else n / rows)
        x = law.draw(n)
        exact.eval()
        both: list[list[float]] = [[], []]
        for _ in range(3):
            for times, f in zip(both, (peer, exact), strict=True):
                times.append(milliseconds(lambda f=f, x=x: pulled(f, x), device))
        ours = min(both[1]) / min(both[0])
        used = [peak(lambda f=f, x=x: pulled(f, x), device) for f in (peer, exact)]
        spent, reports, between, errors = list[float](), list[dict[str, float]](), both[0], list[float]()
        while len(reports) < steps and sum(r["exact"] for r in reports) < 2:  # from one exact step to the next
            x, asked, found = law.draw(n), len(reports) % 64 == 40, list[Tensor]()
            if asked:
                held.past = memory.caught_up(loss._held.past, n, held.statistic)
                between.append(milliseconds(lambda peer=peer, x=x: pulled(peer, x), device))
            spent.append(milliseconds(lambda loss=loss, x=x, found=found: found.append(pulled(loss, x)), device))
            reports.append(loss.report)
            if asked:
                wanted = pulled(exact, x)
                errors.append(float((found[0] - wanted).norm() / wanted.norm()))
        theirs, cycle, usual = median(between), sum(spent[1:]) / len(spent[1:]), spent[1:-1]
        error, bound = max(errors), max(r.get("bound", 0.0) for r in reports[:-1])
        print(f"\nfrechet, {name}, d = {d}, n = {n}: tolerance 1e-3, exact once in {len(spent) - 1} steps")
        print(f"{'':34}{'ms':>9}{'ratio':>8}{'grad err':>10}{'peak MiB':>10}")
        print(f"{'eigvalsh, autograd, float64':34}{theirs:9.0f}{1:8.2f}{'':>10}{used[0]:10.0f}")
        print(f"{'rdm, exact':34}{ours * theirs:9.0f}{1 / ours:8.2f}{0:10.1e}{used[1]:10.0f}")
        print(f"{'rdm, a followed step':34}{median(usual):9.0f}{theirs / median(usual):8.2f}{error:10.1e}")
        print(f"{'rdm, exact ones included':34}{cycle:9.0f}{theirs / cycle:8.2f}{bound:10.1e}, the largest bound")
        yield Bar(f"{name}: a followed step, of the published one's", theirs / median(usual), least=8)
        yield Bar(f"{name}: exact ones included", theirs / cycle, least=25)
        yield Bar(f"{name}: gradient error of a followed step", error, most=1e-3)
        yield Bar(f"{name}: the exact step, of the published one's time", ours, most=0.9)
        yield Bar(f"{name}: the exact step, of its memory", used[1] / used[0], most=0.5)


def queues(device: str, *, d: int = 256, n: int = 256, sizes: tuple[int, int] = (2_000, 50_000)) -> Iterator[Bar]:
    """A step of a queue, whatever its size."""
    law = Law.of(d, device)
    losses = [filled(law, rdm.Queue(size), size) for size in sizes]
    times: list[list[float]] = [[], []]
    for _ in range(40):
        x = law.draw(n)
        for k, loss in enumerate(losses):
            times[k].append(milliseconds(lambda loss=loss, x=x: pulled(loss, x), device))
    small, large = (median(each) for each in times)
    print(f"\nfrechet, d = {d}, n = {n}: {small:.1f} ms with a queue of {sizes[0]}, {large:.1f} ms with {sizes[1]}")
    yield Bar(f"queue: a step of {sizes[1]} rows, of {sizes[0]}", large / small, most=1.2)


SIZES = {(1024, 8192, 256): 16, (256, 1024, 64): 200}  # generated, real, dimensions; and repeats


def bound(device: str) -> Iterator[Bar]:
    """`rdm.Loss` beside its objective on the target that it is bound to, and beside `rdm.distance`."""
    cases: list[tuple[str, dict[str, Any]]] = [("mmd", {"bandwidth": 22.0}), ("energy", {}), ("frechet", {})]
    for (n, m, d), repeats in SIZES.items():
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(n, d, generator=g).to(device), torch.randn(m, d, generator=g).to(device) * 1.1
        print(f"\nrdm.Loss, {n} x {m} x {d}")
        for name, options in [*cases, ("sliced_wasserstein", {})]:
            ours, direct = _beside(rdm.Loss(name, y, **options), x, device, repeats)
            whole = milliseconds(
                lambda f=name, o=options, x=x, y=y: pulled(lambda r: rdm.distance(f, r, y, **o), x), device
            )
            print(f"{name:34}{ours:9.2f} ms{ours / direct:8.3f} of the bound objective{whole:9.1f} ms by rdm.distance")
            yield Bar(f"rdm.Loss: {name}, {n} x {m} x {d}, of its bound objective", ours / direct, most=1.02)


def _beside(loss: Loss, x: Tensor, device: str, repeats: int) -> tuple[float, float]:
    """Milliseconds of a loss and of its objective alone, each the lower quartile, with the order drawn each time."""
    held = loss._held

    def direct(rows: Tensor) -> Tensor:
        return held.objective.distance(held.statistic.measure(*checked(rows)), held.target)

    both, spent = [loss, direct], {loss: list[float](), direct: list[float]()}
    source = random.Random(0)
    for _ in range(repeats):
        source.shuffle(both)
        for each in both:
            spent[each].append(milliseconds(partial(pulled, each, x), device))
    ours, theirs = (sorted(spent[each])[repeats // 4] for each in (loss, direct))
    return ours, theirs


def run(device: str, only: str | None = None) -> list[Bar]:
    """All of them, with the bars that they hold."""
    bars = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for benchmark in (bound, queues, followed):
            if only in (None, "memories", benchmark.__name__):
                bars += benchmark(device)
    show(bars)
    return bars
