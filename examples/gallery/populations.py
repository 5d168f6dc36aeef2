"""Why the population is large and the batch need not be.

The gradient of a distance between distributions from n items is that of another problem when n is small: here it is
compared with the gradient from 4,096 items, by cosine, for each objective. `Population` computes the gradient of n
items in chunks of any size, so that n is bounded by time and not by memory.
"""

import sys

import matplotlib.pyplot as plt
import torch

import rdm
from rdm.api import seeded, stream

images = rdm.dataset("digits").images
with seeded(0):
    layers = torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.Sigmoid()
    generator = torch.nn.Sequential(*layers, torch.nn.Unflatten(1, (1, 8, 8)))
battery = rdm.Battery((rdm.representation("pca", components=16),))


def gradient(population, n, seed):
    generator.zero_grad()
    population.loss(generator, torch.randn(n, 16, generator=stream(seed, "noise"))).backward()
    return torch.cat([p.grad.flatten() for p in generator.parameters()])


figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
sizes = [32, 64, 128, 256, 512, 1024]
for name in ("frechet", "energy", "sliced_wasserstein"):
    population = rdm.Population(name, battery, images, chunk=512)
    whole = gradient(population, 4096, seed=0)
    cosines = [[torch.cosine_similarity(gradient(population, n, s), whole, 0).item() for s in (1, 2, 3)] for n in sizes]
    axis.plot(sizes, [sum(each) / 3 for each in cosines], "o-", label=name)
axis.set(xscale="log", xlabel="population n", ylabel="cosine with n = 4,096", xticks=sizes, xticklabels=sizes)
axis.minorticks_off()
axis.legend(frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "populations.png", dpi=110)
