"""Populations: time and peak memory over the number of chunks, beside holding every graph."""

from collections.abc import Callable
from statistics import median

import torch
from torch import nn

import rdm
from benchmarks.bars import Bar, show
from benchmarks.measure import milliseconds, peak
from rdm.matching.representation import Representation
from rdm.planning.sizes import Held
from rdm.population.population import Population
from rdm.registry import networks


def run(device: str, *, chunk: int = 64) -> None:
    """Peak memory must not grow with the number of chunks; holding all graphs grows in proportion."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 3 * 32 * 32),
        nn.Unflatten(1, (3, 32, 32)),
        *[layer for _ in range(3) for layer in (nn.Conv2d(3, 64, 3, padding=1), nn.GELU(), nn.Conv2d(64, 3, 1))],
        nn.Sigmoid(),
    ).to(device)
    items = torch.rand(512, 3, 32, 32, device=device)
    print(f"\npopulation, chunks of {chunk} images, a small convolutional generator")
    print(f"{'':34}{'images':>9}{'ms':>9}{'us/image':>10}{'peak MiB':>10}")
    for name in ("frechet", "mmd"):
        encoder = rdm.representation("random_convolutions", channels=3)
        for chunks in (2, 4, 8, 16) if name == "frechet" else (2, 16):
            noise = torch.randn(chunks * chunk, 64, device=device)
            for label, size in (("two passes", chunk), ("all graphs held", None)):
                population = Population(rdm.objective(name), encoder, items, chunk=size)

                def step(population: Population = population, noise: torch.Tensor = noise) -> None:
                    population.backward(net, noise)

                step()
                spent, used = milliseconds(step, device), peak(step, device)
                line = f"{len(noise):9}{spent:9.0f}{1e3 * spent / len(noise):10.0f}{used:10.0f}"
                print(f"{f'{name}, {chunks} chunks, {label}':34}{line}")


def digits(device: str, *, images: int = 10_240) -> None:
    """A large population of the digits in chunks: beside all graphs of the same chunks, and one chunk's own step.

    The generator of `make demo`, its encoders with random weights (the work is the same), FD with a moving average.
    """
    torch.manual_seed(0)
    net = rdm.generator("mlp_flow", steps=1).to(device)
    encoders = [
        rdm.representation("pixels"),
        Representation("classifier", networks.build("conv_classifier").to(device)),
    ]
    real = torch.rand(2000, 1, 8, 8, device=device)
    noise = net.noise(images, torch.Generator().manual_seed(0)).to(device)

    def step(rows: int, size: int | None) -> Callable[[], object]:
        population = Population("frechet", encoders, real, memory=rdm.EMA(0.8), chunk=size)
        run = lambda: population.backward(net, noise[:rows])  # noqa: E731
        run(), run()  # the memory begins; gradients are held from here on
        return run

    def plain(size: int, *, held: bool) -> Callable[[], object]:
        """Generator and encoders alone: every chunk's graph held, or each chunk without one and then with."""

        def all_features(noise: torch.Tensor) -> torch.Tensor:
            items = net(noise)
            return torch.stack([encoder(items).sum() for encoder in encoders]).sum()

        def run() -> None:
            with torch.set_grad_enabled(held):
                graphs = [all_features(mine) for mine in noise.split(size)]
            if held:
                torch.stack(graphs).sum().backward()
                return
            for mine in noise.split(size):
                all_features(mine).backward()

        return run

    print(f"\npopulation of {images:,} digits in chunks; the most that is held at once, beside one chunk's own step")
    head = ("chunk", "ms", "two plain", "graphs held", "tensors MiB", "one", "resident", "one")
    print("".join(f"{word:>12}" for word in head))
    bars = []
    for size in (64, 256, 1024):
        cases = [step(images, size), plain(size, held=False), plain(size, held=True)]
        times = [[milliseconds(run, device) for run in cases] for _ in range(5)]
        spent, floor, graphs = (median(found) for found in zip(*times, strict=True))
        both = cases[0], step(size, None)
        (most, of_one), (used, one) = map(tensors, both), (peak(run, device) for run in both)
        row = (size, spent, floor, graphs, most, of_one, used, one)
        print("".join(f"{each:12.4g}" for each in row))
        bars.append(Bar(f"10,240 digits in chunks of {size}: time, of all graphs'", spent / graphs, most=1.4))
        bars.append(Bar(f"10,240 digits in chunks of {size}: tensors, of one chunk's step", most / of_one, most=1.1))
    show(bars)


def tensors(run: Callable[[], object]) -> float:
    """MiB of the tensors that a call makes and holds at once, at the most."""
    with (held := Held()):
        run()
    held.forget()
    return held.most / 2**20
