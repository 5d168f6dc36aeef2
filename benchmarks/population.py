"""Populations: time and peak memory over the number of chunks, beside holding every graph."""

import torch
from torch import nn

import rdm
from benchmarks.measure import milliseconds, peak
from rdm.population.population import Population


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
