"""What each objective sees.

300 points start in the middle of a ring of eight small Gaussians and follow the gradient of one distance each, all with
the same optimizer. The Fréchet distance is content with the mean and the covariance of the ring; a Gaussian
kernel half as wide as the ring's radius sees the circle, the others its modes. There is no generator: the points are
the parameters.
"""

import math
import sys

import matplotlib.pyplot as plt
import torch

import rdm
from rdm.api import stream

objectives = {
    "frechet": {},
    "sliced_wasserstein": {},
    "energy": {},
    "mmd": {"bandwidth": 0.5},
    "sinkhorn": {"blur": 0.1},
}
draw = stream(0, "ring")
angles = torch.randint(8, (600,), generator=draw) * math.pi / 4
ring = torch.stack([angles.cos(), angles.sin()], 1) + 0.06 * torch.randn(600, 2, generator=draw)
start = 0.4 * torch.randn(300, 2, generator=draw)
figure, axes = plt.subplots(2, 3, figsize=(7.5, 5.2), sharex=True, sharey=True, layout="constrained")
axes[0, 0].scatter(*start.T, s=4, color="tab:blue")
for axis, (name, hyperparameters) in zip(axes.flat, {"the start": None, **objectives}.items(), strict=True):
    axis.scatter(*ring.T, s=2, color="0.75", zorder=0)
    axis.set(title=name, aspect="equal", xticks=[], yticks=[])
    if hyperparameters is None:
        continue
    loss = rdm.Loss(rdm.objective(name, **hyperparameters), ring)
    points = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([points], 0.05)
    for _ in range(120):
        optimizer.zero_grad()
        loss(points).backward()
        optimizer.step()
    axis.scatter(*points.detach().T, s=4, color="tab:blue")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "ring.png", dpi=110)
