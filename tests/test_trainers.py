"""A population's loss in every trainer of people's: the exact gradient, or an error in words."""

import contextlib
import copy
import io
import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import rdm
from rdm.api import require
from rdm.distributed import sum_gradients
from rdm.errors import InputError, NonFiniteError
from rdm.matching.representation import Battery
from rdm.population.population import Population
from tests.problems import Problem, relative_error

HELD: list[DistributedDataParallel] = []  # torch's wrappers, which may wait for ever when they go

chunks = pytest.mark.parametrize("chunk", [None, 7], ids=["whole", "chunks"])


@pytest.fixture
def problem() -> Problem:
    return Problem(rdm.objective("energy"), rdm.EMA(0.9), random=True)


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def loss_of(problem: Problem, chunk: int | None, generate=None, population: Population | None = None) -> Tensor:
    """A loss that draws as the oracle does; of a fresh population, or of one."""
    population = population or problem.population(chunk)
    problem.net.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    draw = torch.Generator().manual_seed(5)
    return population.loss(generate or problem.net, problem.noise, weights=problem.weights, generator=draw)


@chunks
@pytest.mark.parametrize(
    "name, memory, balance",
    [("energy", "queue", "uniform"), ("frechet", "ema", "gradient_norm"), ("sliced_wasserstein", "none", "uniform")],
)
def test_it_is_what_backward_gives(chunk, name, memory, balance):
    """In gradient, value, memory, balance and random state; dropout and crops are replayed behind the trainer's own."""
    problem = Problem(rdm.objective(name), rdm.memory(memory), rdm.balance(balance), random=True)
    first, second = problem.population(chunk), problem.population(chunk)
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(5)
    step = first.backward(problem.net, problem.noise, weights=problem.weights, generator=generator)
    expected = gradients(problem.net)
    value = loss_of(problem, chunk, population=second)
    torch.rand(3)
    before = torch.get_rng_state()
    value.backward()
    assert relative_error(gradients(problem.net), expected) <= 1e-12
    assert torch.equal(torch.get_rng_state(), before) and second.latest == step and torch.equal(value, step.loss)
    assert repr(first.state()) == repr(second.state())


def loss_of_kept(problem: Problem, chunk: int | None, generate: Any) -> Tensor:
    """The same beside gradients that are there."""
    before = [p.grad for p in problem.net.parameters()]
    value = loss_of(problem, chunk, generate)
    for p, gradient in zip(problem.net.parameters(), before, strict=True):
        p.grad = gradient
    return value


def plain(problem: Problem, chunk: int | None) -> None:
    loss_of(problem, chunk).backward()


def compiled(problem: Problem, chunk: int | None) -> None:
    loss_of(problem, chunk, torch.compile(problem.net, backend="eager")).backward()


def compiled_encoders(problem: Problem, chunk: int | None) -> None:
    problem.battery = problem.battery.running(compile="eager")
    loss_of(problem, chunk).backward()


def accelerated(problem: Problem, chunk: int | None) -> None:
    """Accelerate: its autocast, half of the loss each time, its clipping at a norm that nothing reaches."""
    accelerate = pytest.importorskip("accelerate")
    try:
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
        forward = problem.net.forward
        net = accelerator.prepare(problem.net)
        for _ in range(2):
            with accelerator.accumulate(net), accelerator.autocast():
                value = loss_of_kept(problem, chunk, net)
            accelerator.backward(value)
        accelerator.clip_grad_norm_(net.parameters(), 1e9)
        problem.net.forward = forward
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def in_lightning(problem: Problem, chunk: int | None) -> None:
    """Automatic optimization under bf16-mixed, two batches accumulated, clipped at a norm that nothing reaches."""
    with contextlib.suppress(InputError):  # lightning imports it, which is mended first where it does not fit
        require("torchvision", extra="vision", owner="lightning")
    lightning, kept = pytest.importorskip("lightning"), []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = problem.net

        def training_step(self, batch):
            return loss_of_kept(problem, chunk, self.net)

        def on_before_optimizer_step(self, optimizer):
            kept.extend(gradients(self.net))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, precision="bf16-mixed", accumulate_grad_batches=2,
        gradient_clip_val=1e9, enable_model_summary=False, **quiet,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(range(2), batch_size=None))
    for p, gradient in zip(problem.net.parameters(), kept, strict=True):
        p.grad = gradient


def by_grad(problem: Problem, chunk: int | None) -> None:
    found = torch.autograd.grad(loss_of(problem, chunk), list(problem.net.parameters()))
    for p, gradient in zip(problem.net.parameters(), found, strict=True):
        p.grad = gradient


def autocast(problem: Problem, chunk: int | None) -> None:
    """Around the call and not the backward pass; it leaves float64 layers alone, and distances leave it."""
    with torch.autocast("cpu", torch.bfloat16):
        value = loss_of(problem, chunk)
    value.backward()


def scaler(problem: Problem, chunk: int | None) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(problem, chunk)).backward()
    scaler.unscale_(torch.optim.SGD(problem.net.parameters(), 0.1))


def accumulation(problem: Problem, chunk: int | None) -> None:
    """The mean over two micro-batches, here twice the same."""
    for value in [loss_of(problem, chunk) / 2 for _ in range(2)]:
        value.backward()


def own_loss_beside(problem: Problem, chunk: int | None) -> None:
    own = sum((p**2).sum() for p in problem.net.parameters())
    (loss_of(problem, chunk) + own).backward()
    for p in problem.net.parameters():
        p.grad -= 2 * p.detach()


def clipping(problem: Problem, chunk: int | None) -> None:
    plain(problem, chunk)
    size = nn.utils.clip_grad_norm_(problem.net.parameters(), 1e-3)
    for p in problem.net.parameters():
        p.grad *= (size + 1e-6) / 1e-3


@chunks
@pytest.mark.parametrize(
    "use",
    [
        plain,
        by_grad,
        autocast,
        scaler,
        accumulation,
        own_loss_beside,
        clipping,
        pytest.param(compiled, marks=pytest.mark.slow),
        pytest.param(compiled_encoders, marks=pytest.mark.slow),
        pytest.param(accelerated, marks=pytest.mark.slow),
        pytest.param(in_lightning, marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")]),
    ],
    ids=lambda use: use.__name__,
)
def test_the_gradient_is_plain_autograds(problem, chunk, use):
    expected = problem.oracle(chunk)
    problem.net.zero_grad(set_to_none=True)
    use(problem, chunk)
    bound = 1e-5 if use is accelerated else 1e-11  # its items are float32
    assert relative_error(gradients(problem.net), expected) <= bound


@chunks
def test_frozen_layers_and_hooks(problem, chunk):
    """A hook runs once, on the whole gradient, also where it is no linear one."""
    expected = problem.oracle(chunk)
    handles = [p.register_hook(torch.square) for p in problem.net.parameters()]
    plain(problem, chunk)
    assert relative_error(gradients(problem.net), [g.square() for g in expected]) <= 1e-11
    for handle in handles:
        handle.remove()
    problem.net[0].requires_grad_(False)
    plain(problem, chunk)
    assert relative_error(gradients(problem.net), expected[2:]) <= 1e-11 and problem.net[0].weight.grad is None


@chunks
def test_the_second_pass_is_in_the_calls_autocast_and_outside_of_the_encoders(chunk):
    net, seen = nn.Linear(8, 6), []
    net.register_forward_hook(lambda module, given, items: seen.append((items.dtype, torch.is_grad_enabled())))
    population = Population("energy", "pixels", torch.rand(40, 6), chunk=chunk)
    with torch.autocast("cpu", torch.bfloat16):
        value = population.loss(net, torch.randn(20, 8))  # its items are bfloat16, the encoder's float32
    value.backward()
    assert {dtype for dtype, _ in seen} == {torch.bfloat16} and net.weight.grad is not None
    assert [grad for _, grad in seen] == ([True] if chunk is None else [True, False, False, True, True, True])


@chunks
def test_a_loss_scale_keeps_what_is_small_and_shows_what_is_too_large(chunk):
    """Items in float16, whose gradient of 1e-9 and less is nothing there; the scale comes before it is rounded."""
    scale, noise = nn.Parameter(torch.ones(6)), torch.rand(40, 6)
    battery = Battery([rdm.representation("pixels")], weights=[1e-8])
    population = Population("energy", battery, torch.rand(40, 6) / 2, chunk=chunk)
    optimizer = torch.optim.SGD([scale], 1.0)

    def step(factor: float, half: bool = True) -> Tensor:
        optimizer.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=factor)
        generate = lambda z: scale.half() * z.half() if half else scale * z  # noqa: E731
        scaler.scale(population.loss(generate, noise)).backward()
        scaler.unscale_(optimizer)
        found = scale.grad.clone()
        scaler.step(optimizer)
        scaler.update()
        assert (scaler.get_scale() < factor) == (not bool(found.isfinite().all()))
        return found

    exact = step(1.0, half=False)
    scale.data.fill_(1)
    assert relative_error([step(1.0)], [exact]) > 0.5
    scale.data.fill_(1)
    assert relative_error([step(2.0**30)], [exact]) < 5e-3
    scale.data.fill_(1)
    assert not step(2.0**50).isfinite().any() and torch.equal(scale.data, torch.ones(6))  # the step is left out


@chunks
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_loss_without_backward_changes_nothing(problem, chunk, without):
    population = problem.population(chunk)
    before = repr(population.state())
    value = loss_of(problem, chunk, population=population)
    with without():
        measured = loss_of(problem, chunk, population=population)
    assert repr(population.state()) == before and torch.allclose(measured, value.detach(), rtol=1e-12)
    assert not measured.requires_grad and population.latest.distances
    value.backward(retain_graph=True)
    written = repr(population.state())
    with pytest.raises(InputError, match="backward pass of a population's loss runs once"):
        value.backward()
    assert written != before and repr(population.state()) == written


def saved(tensor: Tensor) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return file


def test_what_cannot_be_exact_is_an_error_in_words(problem):
    population, net, noise = problem.population(7), problem.net.eval(), problem.noise
    with pytest.raises(InputError, match="noise must not require a gradient; compute it inside generate"):
        population.loss(net, nn.Linear(8, 8).double()(noise))
    with pytest.raises(InputError, match="generate.. gave items without gradient"):
        population.loss(lambda z: net(z).detach(), noise)
    with pytest.raises(InputError, match="cannot be followed through a checkpoint with use_reentrant=True"):
        population.loss(lambda z: checkpoint(net, z.clone().requires_grad_(), use_reentrant=True), noise)
    population.loss(lambda z: checkpoint(net, z, use_reentrant=False), noise).backward()
    other = nn.Linear(8, 6).double()
    other.load_state_dict({"weight": torch.zeros(6, 8), "bias": torch.zeros(6)})
    value = population.loss(lambda z: net(z) + (other(z) if z[0, 0] != noise[0, 0] else 0), noise)
    with pytest.raises(InputError, match="reaches other parameters in this chunk than in the first"):
        value.backward()
    value = population.loss(net, noise)
    torch.optim.SGD(net.parameters(), 1.0).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    added = population.backward(net, noise).loss
    for wanted in (added, torch.amp.GradScaler("cpu").scale(added), added / 2):  # accelerate, lightning divide
        with pytest.raises(InputError, match=r"added the gradient of its loss already; take .*Population.loss"):
            wanted.backward()
    (added + net[0].weight.square().sum()).backward()  # another loss beside has one
    kept = torch.load(saved(added), weights_only=True), copy.deepcopy(added), torch.stack([added, added]).mean()
    assert {type(each) for each in kept} == {Tensor} and {f"{each:.9f}" for each in kept} == {f"{added:.9f}"}
    with torch.no_grad(), pytest.raises(InputError, match="weighs by gradients and has none yet"):
        Problem(problem.objective, rdm.NoMemory(), rdm.balance("gradient_norm")).population(7).loss(net, noise)


def test_gradients_that_are_cleared_are_warned_of_once():
    net, noise = nn.Linear(8, 6), torch.randn(20, 8)
    population = Population("energy", "pixels", torch.rand(40, 6), chunk=7)
    for step in range(6):  # as a trainer that clears them after the call and before its own step
        if step == 2:
            with pytest.warns(UserWarning, match=r"cleared and no parameter has changed in 2 steps.*Population.loss"):
                population.backward(net, noise)
        else:
            population.backward(net, noise)
        net.zero_grad()
    population = Population("energy", "pixels", torch.rand(40, 6))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(4):
        population.backward(net, noise)  # accumulated over two steps each
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_loss_scale_that_a_gradient_never_had_is_refused(scaled):
    net, noise = nn.Linear(8, 6), torch.randn(20, 8)
    population = Population("energy", "pixels", torch.rand(40, 6), chunk=7)
    optimizer, scaler = torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cpu")
    for step in range(5):  # also in later steps, which are not looked at
        optimizer.zero_grad()
        scaler.scale(torch.ones(()))  # as a trainer does with a loss of its own
        population.backward(net, noise, scale=scaler.get_scale() if scaled else 1.0)
        scaler.unscale_(optimizer)
        if not scaled and step == 0:
            with pytest.raises(InputError, match="came to the optimizer divided by 65536, a loss scale that it never"):
                scaler.step(optimizer)
            return
        nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
        scaler.step(optimizer)
        scaler.update()


def of_two(problem: Problem, rank: int) -> dict:
    """A rank's rows of 60, and what draws for both alike."""
    mine = slice(0, 25) if rank == 0 else slice(25, 60)
    draw = torch.Generator().manual_seed(5)
    return {"noise": problem.noise[mine], "weights": problem.weights[mine], "generator": draw}


def in_averaging(problem: Problem, population: Population, rank: int) -> None:
    """A trainer's step inside the forward pass of the wrapper, as Lightning's."""

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = problem.net

        def forward(self, noise: Tensor) -> Tensor:
            population.backward(self.net, **of_two(problem, rank))
            return noise

    HELD.append(DistributedDataParallel(Module()))
    HELD[-1](torch.zeros(2))


def uses_on_two_ranks(problem: Problem, population: Population, rank: int) -> Iterator[tuple[str, Any]]:
    """Names of uses and what each does; gradients are those of the whole population afterwards."""
    net, given = problem.net, lambda: of_two(problem, rank)

    def wrapped(**options: Any) -> DistributedDataParallel:
        HELD.append(DistributedDataParallel(net, **options))
        return HELD[-1]

    def beside(model: nn.Module) -> None:
        own = model(problem.noise).square().sum()  # the same on both ranks, so that an average leaves it alone
        (population.loss(model, **given()) + own).backward()
        alone = torch.autograd.grad(net(problem.noise).square().sum(), list(net.parameters()))
        for p, gradient in zip(net.parameters(), alone, strict=True):
            p.grad -= gradient

    def accumulated(model: DistributedDataParallel) -> None:
        with model.no_sync():
            (population.loss(model, **given()) / 2).backward()
        population.restore(state)
        (population.loss(model, **given()) / 2).backward()

    def scaled(model: nn.Module) -> None:
        scaler = torch.amp.GradScaler("cpu")
        with torch.autocast("cpu", torch.bfloat16):
            value = population.loss(model, **given())
        scaler.scale(value).backward()
        scaler.unscale_(torch.optim.SGD(net.parameters(), 0.1))

    def twice(model: nn.Module) -> None:  # the wrapper's buckets are made anew after its first step
        population.loss(model, **given()).backward()
        net.zero_grad()
        population.restore(state)
        population.loss(model, **given()).backward()

    state = population.state()
    yield "plain", lambda: population.loss(net, **given()).backward()
    yield "backward and sum_gradients", lambda: (population.backward(net, **given()), sum_gradients(net.parameters()))
    yield "wrapped", lambda: twice(wrapped())
    yield "wrapped, a function", lambda: population.loss(nn.Sequential(wrapped(), nn.Identity()), **given()).backward()
    yield "wrapped, unused", lambda: twice(wrapped(find_unused_parameters=True))
    yield "wrapped, views", lambda: twice(wrapped(gradient_as_bucket_view=True))
    yield "wrapped, static", lambda: twice(wrapped(static_graph=True))
    yield "wrapped, own loss beside", lambda: beside(wrapped())
    yield "wrapped, accumulated", lambda: accumulated(wrapped())
    yield "wrapped, scaled", lambda: scaled(wrapped())
    yield "error: averaged over ranks before it is whole", lambda: population.backward(wrapped(), **given())
    yield "error: inside DistributedDataParallel", lambda: in_averaging(problem, population, rank)
    more = nn.Linear(8, 6).double()
    other = [net, lambda z: net(z) + more(z)][rank]
    yield "error: the same parameters on every rank", lambda: population.loss(other, **given())
    yield "error: NaN or infinity in", lambda: population.loss(lambda z: net(z) / rank, **given())
    if population.chunk is None:
        return
    moved = lambda z: net(z) + 1.0 * next(calls)  # noqa: E731
    calls = itertools.count() if rank else itertools.repeat(0)
    yield "error: gave other items in the second pass", lambda: population.loss(moved, **given()).backward()


def on_a_rank(rank: int, folder: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    for chunk in (None, 7):
        problem = Problem(rdm.objective("energy"), rdm.EMA(0.9))
        population = problem.population(chunk)
        state = population.state()
        for name, use in uses_on_two_ranks(problem, population, rank):
            problem.net.zero_grad(set_to_none=True)
            population.restore(state)
            torch.manual_seed(3)
            try:
                use()
                words = ""
            except (InputError, NonFiniteError) as error:
                words = str(error)
            found[f"{name}, {chunk}"] = words, [p.grad for p in problem.net.parameters() if words == ""]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # see HELD


def test_two_ranks_get_the_gradient_of_both_however_they_are_wrapped(tmp_path):
    """Or an error in words on both; 25 and 35 rows."""
    torch.multiprocessing.spawn(on_a_rank, (str(tmp_path),), nprocs=2)
    problem = Problem(rdm.objective("energy"), rdm.EMA(0.9))
    expected = problem.oracle(None)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, (words, gradient) in found.items():
            if name.startswith("error: "):
                assert name.removeprefix("error: ").rpartition(",")[0] in words, (rank, name, words)
            else:
                assert not words, (rank, name, words)
                assert relative_error(gradient, expected) <= 1e-11, (rank, name)
