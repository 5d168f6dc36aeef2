"""Which metric sees which fault.

390 real digits are blurred, made noisy or come from half of the classes, and are judged against other real digits by 16
principal components. A dot is a value, a line its 95 % interval. Precision does not see missing classes; recall does.
"""

import sys

import matplotlib.pyplot as plt
import torch

import rdm
from rdm.api import Real, stream

digits = rdm.dataset("digits", split="all")
order = torch.randperm(len(digits), generator=stream(0, "order"))
images, labels = digits.images[order].flatten(1), digits.labels[order]
judged, classes = images[1000:], labels[1000:]
noise = torch.randn(judged.shape, generator=stream(0, "noise"))
encode = rdm.representation("pca", components=16).fitted(images[:600])
blurred = torch.nn.functional.avg_pool2d(judged.view(-1, 1, 8, 8), 3, 1, 1).flatten(1)
real = Real(rows=encode(images[:600]), fresh=encode(images[600:1000]))
sets = {
    "clean": judged,
    "blur": blurred,
    "noise": (judged + 0.15 * noise).clamp(0, 1),
    "5 classes": judged[classes < 5],
}
metrics = "fdr", "sw_r", "precision", "recall"
figure, axes = plt.subplots(2, 2, figsize=(7, 5), layout="constrained")
for axis, name in zip(axes.flat, metrics, strict=True):
    for place, rows in enumerate(sets.values()):
        found = rdm.metric(name)(encode(rows[:390]), real, seed=0)
        axis.plot([place, place], [found.low, found.high], color="tab:blue")
        axis.plot(place, found.value, "o", color="tab:blue")
    axis.set(title=name, xticks=range(len(sets)), xticklabels=sets, xlim=(-0.5, len(sets) - 0.5))
    axis.set_ylim(bottom=0)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "faults.png", dpi=110)
