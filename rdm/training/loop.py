"""Training: one loop for classifiers, flow models and the post-training of generators."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from rdm.data.dataset import Data
from rdm.distributed import rank
from rdm.errors import Interrupted, NonFiniteError
from rdm.files.checkpoint import newest_readable
from rdm.numbers import Count, Positive, Seed, Share, Size, Steps, validated
from rdm.progress import progress
from rdm.scaling.arithmetic import Arithmetic, Precision
from rdm.scaling.averages import Average, Averages, as_averages
from rdm.scaling.modules import Compile, Names, compiled, recompute
from rdm.scaling.sharding import sharded
from rdm.scaling.sums import GradientSums
from rdm.scaling.weights import Held, Weights
from rdm.surviving.keeping import Keeping
from rdm.surviving.ranks import expected
from rdm.surviving.saving import Saver
from rdm.surviving.signals import requests
from rdm.training.gradient import Gradients
from rdm.training.loss import Loss, Setting, closing, size_of
from rdm.training.run import Device, Log, Rates, Skips, Tracker
from rdm.training.schedule import Schedule, constant
from rdm.training.state import Trained
from rdm.training.watching import Monitor, draw_grid, watch


@validated
def train(
    *,
    model: nn.Module,
    losses: list[Loss] | tuple[Loss, ...],
    steps: Steps,
    out: Path,
    data: Data | None = None,  # for losses that read real items
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    schedule: Schedule | None = None,
    average: Share | Average | Sequence[Share | Average] | None = None,  # of the weights; the first is shown and kept
    shard: Names = False,  # names of modules that ranks share out; True for the model's lists of layers
    clip: Positive | None = None,  # largest norm of the whole gradient
    precision: Precision = "float32",  # of the generator's products, by autocast
    parameters: Held = "float32",  # how they are held; those in fewer bits have masters in float32
    tf32: bool = False,  # whether float32 products of generator and encoders may drop to ten bits
    checkpointing: Names = False,  # the generator's modules that are computed again in the backward pass
    compile: bool | Compile = False,  # what of it is compiled
    patience: Size = 3,  # steps in a row that may be left out since something of them is not finite
    rank_timeout: Positive = 45.0,  # seconds that ranks wait for one that stays behind, before all end
    seed: Seed = 0,
    device: Device = "cpu",
    log_every: Steps = 10,  # steps
    checkpoint_every: Steps = 500,  # steps
    keep: Count = 2,  # newest checkpoints
    keep_every: Steps | None = None,  # steps, of which one checkpoint each is kept for ever
    keep_hours: Positive | None = None,  # hours of the run, likewise
    keep_lowest: str | None = None,  # a number of the log: the checkpoint where it is lowest is kept
    keep_highest: str | None = None,  # likewise
    monitors: Sequence[Monitor] = (),  # what is measured of the model now and then, into the log
    trackers: Sequence[Tracker] = (),  # other programs that get the log's rows
    samples_every: Size | None = 100,  # steps; 0 or None for no pictures
    cache: Path | None = None,
    resume: bool = False,
    prepared: Callable[[], object] | None = None,  # called when all is set up and nothing is written yet
) -> nn.Module:
    """Minimise the sum of `losses` and return the model (with its first weight average if any), on `device`.

    Writes log.jsonl, samples/ and checkpoints/ into `out`, the latter while training goes on. With `resume`, goes on
    from the newest checkpoint there, bit for bit as if never interrupted; on any other number of ranks, with the random
    states of new ones drawn from the seed. A model that is sharded (`rdm.scaling.sharding`) is returned so.

    Raises:
        InputError: an argument that cannot be used; nothing is written then.
        Interrupted: on Ctrl-C or SIGTERM, after a checkpoint; SIGUSR1 saves one and goes on.
        OSError: the last checkpoint, or three in a row, found the disk full; those before are whole.
        Diverged: features, a distance or the gradient were not finite in more than `patience` steps in a row, none of
            which was taken, or the weights after an update are not.
    """
    # Set up: model, optimizer, schedule, weight averages, losses.
    out, place = Path(out), torch.device(device)
    arithmetic = Arithmetic(place, precision, parameters, tf32=tf32)
    model = sharded(recompute(model.train(), checkpointing), shard, place, parameters)
    weights = Weights(compiled(model, compile), parameters)
    stepper, sums = optimizer(weights.groups), GradientSums(model, weights.stepped)
    rates = Rates(stepper, schedule or constant())
    averages = Averages(as_averages(average), weights, size_of(losses))
    found = newest_readable(out / "checkpoints") if resume else None
    setting = Setting(None if data is None else data.to(place), seed, place, cache, sums.passes, rates.largest)
    with arithmetic():
        for each in (*losses, *monitors):
            each.prepare(model, setting, resumed=found is not None)

    # Go on from the newest checkpoint.
    start, state = found or (0, None)
    saver = Saver(out / "checkpoints", Keeping(keep, keep_every, keep_hours, keep_lowest, keep_highest), start)
    skips = Skips(patience, saver.last)
    run = Trained(weights, stepper, averages, losses, skips, arithmetic.scale, seed)
    if state is not None:
        run.restore(start, state)
    weights.publish()
    gradients = Gradients(weights, losses, sums=sums, arithmetic=arithmetic, clip=clip, device=place)
    if prepared is not None:
        prepared()
    log = Log(out / "log.jsonl", start, trackers, size_of(losses))

    began, shown = time.monotonic(), progress(steps, done=start, quiet=rank() > 0, items=size_of(losses))
    with closing([*losses, weights, log]), requests() as requested, shown as report, saver, expected(rank_timeout):
        saver.shown = log.shown = report.say
        if start == 0 and samples_every:
            with arithmetic():
                draw_grid(out, model, losses, 0, seed, report.say)
        for step in range(start, steps):
            # Gradient: every loss adds its own, each a function of seed, step and rank; summed over ranks and clipped.
            stepper.zero_grad(set_to_none=True)
            rates.at((step + 0.5) / steps)  # the middle of the step: never the 0 of either end
            try:
                record = gradients(step)
            except NonFiniteError as error:
                record = dict[str, float]()
                skips.left_out(step, error, report, last=step + 1 == steps)
            else:
                # Update: parameters, weight averages.
                skips.row = 0
                run.step()

            # Report: log, samples, checkpoint.
            done, seconds = step + 1, run.seconds + time.monotonic() - began
            seen = watch(monitors, model, done, arithmetic, log.first, report.say)
            spent = {"lr": stepper.param_groups[0]["lr"], "skipped": skips.total, "seconds": seconds}
            row: dict[str, float] = {"step": done, **record, **seen, **spent}
            if seen or done % log_every == 0 or done == steps:
                log.write(row)
            report.update(done, record)
            if samples_every and (done % samples_every == 0 or done == steps):
                with arithmetic(), averages.shown():
                    draw_grid(out, model, losses, done, seed, report.say)
            asked = requested()
            if done % checkpoint_every == 0 or done == steps or any(asked):
                saved, where = saver.save(done, run.state(done, seconds), row, log.flush), f"step {done} of {steps}"
                if asked.stop and done < steps:
                    saver.finish()
                    raise Interrupted(f"interrupted at {where}; checkpoint in {saved}; --resume goes on from it")
                if asked.save:
                    report.say(f"SIGUSR1 at {where}: the newest checkpoint is {saver.last()}; going on")
    return run.finish()
