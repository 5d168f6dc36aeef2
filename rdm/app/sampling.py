"""What `rdm sample` does: draw a run's generator block by block, and write the items where they belong when whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rdm.app import config
from rdm.data.condition import Conditions
from rdm.distributed import barrier, rank, together, world_size
from rdm.errors import CorruptFileError, InputError, Interrupted, MismatchError
from rdm.files.checkpoint import complete_checkpoints, load_weights
from rdm.files.item_sets import FORMS, Block, form_of
from rdm.files.store import digest, read_json, read_tensors, remove_folder, write_json, write_tensors
from rdm.generators.protocol import Generator
from rdm.judging.drawing import BATCH, Drawing, classes_of, in_steps
from rdm.numbers import Count, Seed, validated
from rdm.progress import progress, stop_requests
from rdm.randomness import seeded
from rdm.registry import generators
from rdm.scaling.modules import compiled
from rdm.surviving.ranks import started
from rdm.terminal import say

PLAN = "plan.json"


def device() -> torch.device:
    """The accelerator where there is one; of several that of this rank."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


class Trained(NamedTuple):
    """What a run made, and what its losses ask of it."""

    generator: Generator
    conditions: Conditions | None  # None for the generator's own


def generator_of(folder: Path, *, steps: int | None = None, trusted: bool = False) -> Generator:
    """A run's generator with its newest weights, the first average where there is one, on the device."""
    return trained(folder, steps=steps, trusted=trusted).generator


def trained(folder: Path, *, steps: int | None = None, trusted: bool = False, average: str | None = None) -> Trained:
    """A run's generator with its newest weights, and the conditions that its losses ask for.

    `average` names a weight average, "none" for the weights themselves; by default the run's first where it has one.

    Raises:
        InputError: no run, or one of something else; no such average.
    """
    config.load_run(folder, trusted=trusted)
    plan = config.plan()
    model = plan["model"]
    if not isinstance(model, Generator):
        raise InputError(f"{folder} trained a {type(model).__name__}; expected a generator")
    load_weights(model, str(folder), entry=average)
    conditions = next((loss.conditions for loss in plan["losses"] if loss.conditions is not None), None)
    return Trained(in_steps(compiled(model.to(device()).eval(), plan.get("compile", False)), steps), conditions)


def published(name: str, weights: Path, steps: int | None, arguments: Mapping[str, Any]) -> Trained:
    """A generator by its name with the weights of a public file, its sampling as published where not said otherwise.

    Raises:
        InputError: no generator of this name, or one that takes no weights; no such file.
        MismatchError: the weights are those of another network.
    """
    if name not in generators:
        raise InputError(f"--weights belongs to a generator's name (`rdm list generators`), not to a run; got {name!r}")
    model = generators.build(name, weights=str(weights), **arguments)
    return Trained(in_steps(model.to(device()).eval(), steps), None)


@validated
def sample_run(
    folder: Path,
    out: Path | None = None,
    *,
    n: Count = 50_000,
    steps: Count | None = None,
    seed: Seed = 0,
    condition: str | None = None,
    batch: Count = BATCH,
    average: str | None = None,
    weights: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    trust_config: bool = False,
) -> Path:
    """Draw n items of a generator to a folder, a tar or an .npz, on all ranks; returns where they are.

    Of the run in `folder`; with `weights`, a public file, of the generator that `folder` names, built with `arguments`.

    What is drawn is kept beside `out` block by block until all of it is there: the same command goes on from it.

    Raises:
        InputError: something lies at `out`, or the form cannot hold such items.
        MismatchError: what is kept was drawn otherwise.
        Interrupted: on Ctrl-C or SIGTERM, between blocks.
    """
    out = out or Path("samples") / folder.resolve().name
    with started(), seeded(seed):
        with together():
            if out.exists():
                raise InputError(f"{out} exists already; give another --out, or remove it to draw it again")
            if weights is None and not folder.exists() and str(folder) in generators:
                raise InputError(f"{folder} is a generator and no run; give its weights as --weights FILE")
            if weights is not None:
                generator, asked = published(str(folder), weights, steps, arguments or {})
            else:
                generator, asked = trained(folder, steps=steps, trusted=trust_config, average=average)
            drawing = Drawing(generator, n, seed, classes_of(condition, generator), batch, conditions=asked)
            form = form_of(out, drawing.shape)
            source = (
                _made(folder) if weights is None else {"generator": str(folder), "arguments": repr(arguments or {})}
            )
            plan = source | _plan(drawing, steps)
            kept = out.with_name(f".{out.name}.partial")
        if rank() == 0:
            _begin(kept, plan)
        barrier()
        with together():
            _check(kept, plan)
        _draw(drawing, kept)
        barrier()
        if rank() == 0:
            FORMS[form](out, (_read(kept, k, drawing) for k in range(len(drawing))), n)
            remove_folder(kept)
            say(f"{out}: {n} items of {folder}, seed {seed}")
        barrier()
    return out


def _made(folder: Path) -> dict[str, Any]:
    """Which run the items are of."""
    newest = complete_checkpoints(folder / "checkpoints")[-1]
    return {"run": digest({}, (folder / "config.gin").read_text())[:16], "checkpoint": newest.name}


def _plan(drawing: Drawing, steps: int | None) -> dict[str, Any]:
    """What else they follow from."""
    return {
        "weights": digest(drawing.generator.state_dict()),
        "n": drawing.total,
        "seed": drawing.seed,
        "steps": steps,
        "condition": None if drawing.condition is None else list(drawing.condition),
    }


def _begin(kept: Path, plan: dict[str, Any]) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    if not (kept / PLAN).exists():
        write_json(kept / PLAN, plan)


def _check(kept: Path, plan: dict[str, Any]) -> None:
    """Refuse to go on with what was drawn otherwise."""
    begun = read_json(kept / PLAN)
    for key, value in plan.items():
        was = begun.get(key) if isinstance(begun, dict) else None
        if was != value:
            raise MismatchError(
                f"{kept} was begun with {key} {was!r}; now {value!r}; give the same command or another --out"
            )


def _draw(drawing: Drawing, kept: Path) -> None:
    """This rank's blocks that are not there yet."""
    missing = [k for k in range(len(drawing)) if not _sound(kept, k, drawing)]
    barrier()  # all ranks have looked before one writes
    mine = missing[rank() :: world_size()]
    done = len(drawing) - len(missing)
    quiet = rank() > 0
    with stop_requests(together=False) as stop, progress(len(drawing), done=done, quiet=quiet) as report:
        with drawing.read(mine) as batches:
            for k, batch in zip(mine, batches, strict=True):
                tensors = {"items": stored(batch.values), "labels": batch.labels}
                write_tensors(_block(kept, k), tensors, {"block": k})
                done = min(done + world_size(), len(drawing))
                report.update(done, {})
                if stop():
                    raise Interrupted(f"interrupted; {kept} keeps what is drawn, and the same command goes on from it")


def stored(items: torch.Tensor) -> torch.Tensor:
    """Pictures in 8 bits, rounded; other items as float32."""
    return items.mul(255).round().byte() if items.ndim == 4 else items.float()


def _block(kept: Path, number: int) -> Path:
    return kept / f"{number:06d}.safetensors"


def _sound(kept: Path, number: int, drawing: Drawing) -> bool:
    """Whether a block is there and whole."""
    try:
        _read(kept, number, drawing)
        return True
    except InputError:
        return False


def _read(kept: Path, number: int, drawing: Drawing) -> Block:
    tensors, described = read_tensors(_block(kept, number))
    if described != {"block": number} or set(tensors) != {"items", "labels"}:
        raise CorruptFileError(f"{_block(kept, number)} is another block's; remove it")
    return Block(tensors["items"], tensors["labels"])
