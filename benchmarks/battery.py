"""A battery in a population: images a second beside its encoders alone, peak memory beside the largest of them."""

import torch
from torch import nn

import rdm
from benchmarks.measure import milliseconds, peak
from rdm.matching.representation import Battery, Representation
from rdm.population.population import Population
from rdm.registry import representations


def run(device: str, *, n: int = 16, repeats: int = 5) -> None:
    """One step over n images whose pixels are the parameters, so that nothing but the battery costs time."""
    torch.manual_seed(0)
    battery = Battery(tuple(_encoders())).to(device)
    items = torch.rand(64, 3, 128, 128, device=device)
    images = torch.rand(n, 3, 128, 128, device=device, requires_grad=True)
    population = Population(rdm.objective("mmd"), battery, items)

    def bare(members: tuple[Representation, ...]) -> None:
        for encoder in members:
            encoder(images).square().sum().backward()
        images.grad = None

    def step() -> None:
        population.backward(lambda noise: images * 1.0, torch.zeros(n, 1, device=device))
        images.grad = None

    members = tuple(population.battery.members)
    times: dict[str, list[float]] = {"bare": [], "population": []}
    for _ in range(repeats):
        times["bare"].append(milliseconds(lambda: bare(members), device))
        times["population"].append(milliseconds(step, device))
    alone, whole = (min(times[name]) for name in ("bare", "population"))
    largest = max(peak(lambda m=member: bare((m,)), device) for member in members)
    used = peak(step, device)
    print(f"\nbattery of {', '.join(m.name for m in members)}; {n} images, forward and backward")
    print(f"{'encoders alone':34}{1e3 * n / alone:9.1f} images/s{largest:10.0f} MiB, the largest alone")
    print(f"{'population':34}{1e3 * n / whole:9.1f} images/s{used:10.0f} MiB")
    print(f"{'ratio (bars 0.95 and 1.2)':34}{alone / whole:9.3f}{used / largest:19.2f}")


def _encoders() -> list[Representation]:
    def sized(width: float) -> Representation:
        return representations.build("mobilenet", weights="random", width=width, size=128, name=f"mobilenet {width}")

    convolutions = representations.build("random_convolutions", channels=3, width=32, layers=3)
    return [sized(1.0), sized(0.5), convolutions, Representation("pixels", nn.Flatten())]
