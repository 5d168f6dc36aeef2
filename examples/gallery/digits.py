"""A one-step generator of digits.

A network of two layers, from noise to pictures of 8 x 8, trained on the Fréchet distance of pixels and of their
principal components; no adversary, no pairs of noise and picture. The upper rows are real.
"""

import sys

import matplotlib.pyplot as plt
import torch

import rdm
from rdm.api import seeded, stream

images = rdm.dataset("digits").images
with seeded(0):
    layers = torch.nn.Linear(16, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64), torch.nn.Sigmoid()
    generator = torch.nn.Sequential(*layers, torch.nn.Unflatten(1, (1, 8, 8)))
population = rdm.Population("frechet", ["pixels", "pca"], images, memory=rdm.EMA(0.8))
optimizer = torch.optim.Adam(generator.parameters(), 3e-3)
for step in range(150):
    optimizer.zero_grad()
    loss = population.loss(generator, torch.randn(512, 16, generator=stream(0, "noise", step)))
    loss.backward()
    optimizer.step()
    if step in (0, 149):
        print(step, {name: round(float(distance), 2) for name, distance in population.latest.distances.items()})
with torch.no_grad():
    drawn = generator(torch.randn(40, 16, generator=stream(0, "shown")))
shown = torch.nn.functional.pad(torch.cat([images[:40], drawn]), (1, 1, 1, 1)).view(4, 20, 10, 10)
rows = shown.transpose(1, 2).reshape(40, 200).repeat_interleave(5, 0).repeat_interleave(5, 1)
plt.imsave(sys.argv[1] if len(sys.argv) > 1 else "digits.png", rows, cmap="gray_r")
