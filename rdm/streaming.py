"""A metric fed batch by batch, as torchmetrics' users expect: update, compute, reset, merges over ranks."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from rdm.accumulate import Reservoir, merged
from rdm.distributed import concatenated, gather, rank
from rdm.errors import InputError
from rdm.metric import Gaussian, Measure, Metric, Real
from rdm.randomness import stream
from rdm.registry import metrics
from rdm.representation import Representation
from rdm.statistic import checked

SIDES = "generated", "real"


class Streaming:
    """Metrics of everything seen so far: float64 moments and a uniform sample of rows, whatever the number of items.

    Args:
        representation: the encoder, on images "n c h w" as uint8 or float in [0, 1]; None for rows "n d" as they are.
        names: metrics, of those that `rdm.names("metrics")` lists and that compare two sides.
        rows: sampled rows kept a side. The moments are of all items, so `fd` is exact; others are of the sample.
        seed: of the sample.

    >>> import torch
    >>> metric = Streaming(None, ["fd"])
    >>> metric.update(torch.tensor([[0.0], [2.0]]), real=True)
    >>> metric.update(torch.tensor([[3.0]]), real=False)
    >>> metric.update(torch.tensor([[5.0]]), real=False)
    >>> metric.compute()["fd"].value
    9.0
    """

    def __init__(self, representation: Representation | None, names: Sequence[str], *, rows: int = 4096, seed: int = 0):
        self.representation, self.names, self.rows, self.seed = representation, tuple(names), rows, seed
        self._measures: dict[str, Measure] = {name: metrics.build(name) for name in self.names}
        self.fits: dict[str, Gaussian | None] = {}
        self.samples: dict[str, Reservoir] = {}
        self.seen: dict[str, int] = {}
        self.reset(real=True)

    def reset(self, *, real: bool = False) -> None:
        """Forget the generated side; the real one too where asked for."""
        for side in SIDES if real else SIDES[:1]:
            self.fits[side], self.samples[side], self.seen[side] = None, Reservoir(self.rows), 0

    def update(self, images: Tensor, *, real: bool) -> None:
        """Take in a batch of one side.

        Raises:
            InputError: float images outside [0, 1], another dtype, or features that are not finite.
        """
        side = SIDES[real]
        rows = self._features(images, side)
        fit = _fit(rows)
        before = self.fits[side]
        self.fits[side] = fit if before is None else merged(before, fit)
        source = stream(self.seed, side, rank(), self.seen[side])
        keys = torch.randint(2**62, (len(rows),), generator=source)
        self.samples[side].add(keys, {"rows": rows.float()})
        self.seen[side] += len(rows)

    def merge(self, other: "Streaming") -> None:
        """Take in what another object of other items has seen."""
        for side in SIDES:
            mine, theirs = self.fits[side], other.fits[side]
            self.fits[side] = theirs if mine is None else mine if theirs is None else merged(mine, theirs)
            self.samples[side].merge(other.samples[side].state())
            self.seen[side] += other.seen[side]

    def compute(self) -> dict[str, Metric]:
        """Every metric with its interval, of all ranks' items; equal on every rank."""
        real, made = (self._whole(side) for side in (SIDES[1], SIDES[0]))
        side = Real(real[1], real[0])
        return {name: m.streamed(*made, side, seed=self.seed) for name, m in self._measures.items()}

    def _whole(self, side: str) -> tuple[Gaussian, Tensor]:
        """Fit and sample of one side over all ranks, of which some may have seen nothing."""
        fit = self.fits[side]
        shapes = gather(torch.tensor([0, 0] if fit is None else [fit.n, len(fit.mean)]))
        n, d = sum(int(shape[0]) for shape in shapes), max(int(shape[1]) for shape in shapes)
        if n < 2:
            raise InputError(f"compute needs at least 2 {side} items; got {n}; update first")
        if fit is None:
            fit = Gaussian(torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64), 0)
        parts = zip(gather(fit.mean), gather(fit.covariance), shapes, strict=True)
        fits = [Gaussian(mean, covariance, int(shape[0])) for mean, covariance, shape in parts if shape[0] > 0]
        none = {"keys": torch.zeros(0, dtype=torch.int64), "rows": torch.zeros(0, d)}
        state = self.samples[side].state() or none
        keys, rows = concatenated(state["keys"]), concatenated(state["rows"])
        return reduce(merged, fits), rows[keys.argsort()[: self.rows]]

    def _features(self, images: Tensor, side: str) -> Tensor:
        if self.representation is None:
            return checked(images.detach(), side=f"{side} rows")[0].cpu()
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if not images.is_floating_point():
            raise InputError(f"{side} images must be uint8 or float in [0, 1]; got {images.dtype}")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise InputError(f"{side} float images must lie in [0, 1]; got {low:.3g} to {high:.3g}; scale them")
        self.representation.check(images)
        with torch.no_grad():
            return checked(self.representation(images), side=f"{side} features")[0].cpu()


def _fit(rows: Tensor) -> Gaussian:
    """Of a batch, which may be one row."""
    if len(rows) > 1:
        return Gaussian.of(rows)
    return Gaussian(rows[0].double(), torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64), 1)
