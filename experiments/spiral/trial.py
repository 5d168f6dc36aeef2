"""Pasts made anew in part, or moved in value: python -m experiments.spiral.trial runs/spiral_start --out FILE.csv.

A trial of what no memory of rdm does, in the setting of memories.gin: from a trained start (start.gin), a rate of 1e-4,
batches of 8 with 24 other items in the population:

batch 8      none.
queue        the newest before the batch.
live         of fresh noise each step, without gradient, as `live=8` of a population of 32.
refresh k    a queue that keeps its noise: each step the k items that were made longest ago are made anew.
moved D      a queue of items that move as the mean of batches does, by its average of decay D.
moved fit    the same by what the last step did to the batch before it, made anew.

"balanced": they follow the batch's mean, and deviations have the whole population's weight, as with
`rdm.Queue(riding=True, balanced=True)`. Noise and drawn real rows are those of the trainer, the same for all.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import rdm
from experiments.memories import Found, as_csv, mean
from rdm.datasets.spiral import SpiralScore
from rdm.errors import InputError
from rdm.files.store import write_text
from rdm.randomness import stream

BATCH, PAST, RATE, CLIP, FLOOR = 8, 24, 1e-4, 2.0, 0.1
BANDWIDTHS = (0.20126, 0.40252, 0.80504, 1.61008, 3.22016)  # as in spiral.gin
ALONE = "batch 8"
PASTS = (ALONE, "queue", "live", "refresh 8", "refresh 24", "moved 0.99", "moved fit")
PASTS += "refresh 24 balanced", "moved fit balanced"
OBJECTIVES = "mmd_nystrom", "mmd"
AGAINST = ALONE, "queue", "live"


class Past:
    """Items before the batch, the noise that they were made of, and when; the newest last."""

    def __init__(self, name: str):
        self.kind, _, self.argument = name.removesuffix(" balanced").partition(" ")
        self.items, self.noise, self.made = torch.empty(0, 64), torch.empty(0, 2), torch.empty(0, dtype=torch.long)
        self.mean: Tensor | None = None

    @torch.no_grad()
    def seen(self, model: nn.Module, batch: Tensor, fresh: Tensor, step: int) -> Tensor:
        """What the distance of this step sees beside the batch."""
        if self.kind == "batch":
            return self.items[:0]
        if self.kind == "live":
            return model(fresh)
        if len(self.items):
            if self.kind == "refresh":
                oldest = self.made.sort(stable=True).indices[: int(self.argument)]
                self.items[oldest], self.made[oldest] = model(self.noise[oldest]), step
            elif self.kind == "moved":
                self.items += self._motion(model, batch)
        return self.items

    def _motion(self, model: nn.Module, batch: Tensor) -> Tensor:
        """What the mean did since the step before."""
        if self.argument == "fit":
            return (model(self.noise[-BATCH:]) - self.items[-BATCH:]).mean(0)
        decay, new = float(self.argument), batch.mean(0)
        before = new if self.mean is None else self.mean
        self.mean = decay * before + (1 - decay) * new
        return self.mean - before

    def take(self, batch: Tensor, noise: Tensor, step: int) -> None:
        """The batch is past now."""
        made = torch.full((len(batch),), step)
        self.items, self.noise = (torch.cat(pair)[-PAST:] for pair in ((self.items, batch), (self.noise, noise)))
        self.made = torch.cat([self.made, made])[-PAST:]


def balanced(batch: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """Both in value as they are; `rdm.population.remembered` has the formula."""
    moves = batch - batch.detach()
    shift, factor = moves.mean(0), (len(batch) + len(past)) / len(batch)
    return batch + (factor - 1) * (moves - shift), past + shift


def trained(name: str, loss: rdm.Loss, start: Path, steps: int, seed: int) -> rdm.Generator:
    """The start after so many steps with this past."""
    model, past = rdm.generator("mlp", weights=str(start)), Past(name)
    adam = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    for step in range(steps):
        noise = torch.randn(BATCH, 2, generator=stream(seed, "noise", step, 0))
        fresh = torch.randn(PAST, 2, generator=stream(seed, "still noise", step))
        batch = model(noise)
        sides = batch, past.seen(model, batch, fresh, step)
        value = loss(
            torch.cat(balanced(*sides) if name.endswith("balanced") else sides),
            generator=stream(seed, "directions", step),
        )
        adam.zero_grad()
        (value * (BATCH + PAST) / BATCH if name == "live" else value).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        cosine = 0.5 * (1 + math.cos(math.pi * (step + 0.5) / steps))
        adam.param_groups[0]["lr"] = RATE * (FLOOR + (1 - FLOOR) * cosine)
        adam.step()
        past.take(batch.detach(), noise, step)
    return model


def rows(start: Path, steps: int, seeds: int) -> Iterator[dict[str, str]]:
    """A record a past and seed."""
    data, judge = rdm.dataset("spiral").images, SpiralScore()
    for name in OBJECTIVES:
        made = rdm.objective("mmd_nystrom", bandwidth=BANDWIDTHS, landmarks=512, method="random")
        if name == "mmd":
            made = rdm.objective("resampled", objective=rdm.objective("mmd", bandwidth=BANDWIDTHS))
        loss = rdm.Loss(made, data)
        for seed in range(seeds):
            for past in PASTS:
                distance = judge(trained(past, loss, start, steps, seed))["distance"].value
                keys = {"objective": name, "population": past, "training": "trained, 1e-4", "seed": str(seed)}
                yield {**keys, "distance": f"{distance:.5g}"}


def table(found: Found, objective: str) -> str:
    """A row a past: the distance, and by how much it is less than another's, seed by seed."""
    heads = ["past", "distance", *(f"less than {each}" for each in AGAINST)]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for past in found.named(1):
        values, cells = {name: found.values((objective, name, "trained, 1e-4")) for name in (past, *AGAINST)}, []
        for other in AGAINST:
            gain = mean([b - v for b, v in zip(values[other], values[past], strict=True)])
            cells.append("" if gain is None or other == past else f"{gain.mean:.4f} ± {gain.half:.4f}")
        lines.append(f"| {past} | {mean(values[past])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write the file, row by row, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", type=Path, help="a run folder of start.gin")
    parser.add_argument("--out", type=Path, required=True, help="a CSV file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    held: list[dict[str, str]] = []
    try:
        for row in rows(options.start, options.steps, options.seeds):
            held.append(row)
            write_text(options.out, as_csv(Found(held)))
    except InputError as error:
        parser.error(str(error))
    for objective in OBJECTIVES:
        print(f"{objective}\n\n{table(Found(held), objective)}\n")


if __name__ == "__main__":
    main()
