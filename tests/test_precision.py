"""How a run computes: masters of weights in fewer bits, autocast for the generator alone, TF32 only where asked for."""

import json
import shutil
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import rdm
from rdm.errors import InputError
from rdm.generators.protocol import Generator
from rdm.losses.matching import Matching
from rdm.losses.weighted import Weighted
from rdm.matching.distances import Samples
from rdm.training.auxiliary import Auxiliary
from rdm.training.loop import train
from rdm.training.loss import Loss
from rdm.training.run import Diverged
from tests.test_train import arguments


class Line(Generator):
    """Two layers, one of them without a gradient; remembers the types that it computed in."""

    shape = (4,)

    def __init__(self):
        super().__init__()
        self.first, self.last, self.frozen = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.seen: set = set()

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        items = self.last(self.first(noise).tanh()) + self.frozen(noise)
        self.seen.add((items.dtype, self.first.weight.dtype, torch.get_float32_matmul_precision()))
        return items


def items() -> Tensor:
    return torch.randn(40, 4, generator=torch.Generator().manual_seed(3)) + 1


class Chunked(Loss):
    """The mean over a few chunks of a squared output, one backward pass each."""

    def prepare(self, model, setting, *, resumed):
        pass

    def backward(self, model, step, scale=1.0):
        total = 0.0
        for chunk in items().chunk(4):
            loss = model(chunk).float().square().sum() / 40
            (scale * loss).backward()
            total += float(loss.detach())
        return {"loss": total}


OPTIMIZERS = [
    partial(torch.optim.SGD, lr=1e-3, momentum=0.9), partial(torch.optim.AdamW, lr=1e-4),
    partial(torch.optim.Adagrad, lr=1e-4), partial(torch.optim.Rprop, lr=1e-4), partial(torch.optim.RMSprop, lr=1e-4),
]  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.func.__name__)
def test_masters_take_the_steps_that_are_written_out_by_hand(tmp_path, optimizer):
    """Gradients of rounded weights, summed over chunks in float32, clipped, stepped in float32; averages of these."""
    torch.manual_seed(0)
    model, slow = Line(), Line()
    slow.load_state_dict(model.state_dict())
    masters = [p for p in slow.parameters() if p.requires_grad]
    stepper, average = optimizer(masters), None
    for _ in range(5):
        rounded = [p.detach().clone() for p in masters]
        summed = [torch.zeros_like(p) for p in masters]
        for chunk in items().chunk(4):
            for p in masters:
                p.data = p.data.bfloat16()
                p.grad = None
            with torch.autocast("cpu", torch.bfloat16):
                (slow(chunk).float().square().sum() / 40).backward()
            for p, total, kept in zip(masters, summed, rounded, strict=True):
                assert p.grad is not None
                total += p.grad.float()
                p.grad, p.data = None, kept.clone()
        for p, total in zip(masters, summed, strict=True):
            p.grad = total
        assert nn.utils.clip_grad_norm_(masters, 0.5) > 0.5
        stepper.step()
        now = [p.detach().clone() for p in masters]
        average = now if average is None else [a.lerp(p, 0.5) for a, p in zip(average, now, strict=True)]
    options = {"optimizer": optimizer, "clip": 0.5, "precision": "bfloat16", "parameters": "bfloat16"}
    for k, kind in enumerate((None, 0.5)):
        again = Line()
        again.load_state_dict(model.state_dict())
        done = train(model=again, losses=[Chunked()], steps=5, out=tmp_path / str(k), average=kind, **options)
        assert {dtype for _, dtype, _ in again.seen} == {torch.bfloat16}
        wanted = masters if kind is None or average is None else average
        for p, expected in zip([p for p in done.parameters() if p.requires_grad], wanted, strict=True):
            torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-8)
            assert p.dtype == torch.float32


def test_steps_that_bfloat16_cannot_hold_add_up(tmp_path):
    """The same loss falls by as much as in float32, where weights that step in bfloat16 would stand still."""
    ends = {}
    for held in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = Line()
        before = model.last.bias.detach().clone()
        options = {"optimizer": partial(torch.optim.SGD, lr=1e-5), "precision": held, "parameters": held}
        train(model=model, losses=[Chunked()], steps=50, out=tmp_path / held, **options)
        ends[held] = model.last.bias.detach() - before
    assert ends["float32"].abs().max() / 50 < 2**-9 * 0.1  # a step, of biases near 0.1: below half their last bit
    torch.testing.assert_close(ends["bfloat16"], ends["float32"], rtol=0.05, atol=1e-7)


class Watched(Samples):
    """Rows, and the types and products that they were measured in."""

    seen: set

    def measure(self, features, weights):
        self.seen.add((features.dtype, torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return super().measure(features, weights)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen: set = set()

    def forward(self, items):
        self.seen.add((items.dtype, torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return items


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("chunk", [None, 3])
def test_the_switches_reach_the_generator_and_not_the_distance(tmp_path, tf32, chunk):
    """And are put back after the run, whatever they were."""
    model, encoder = Line(), Encoder()
    matching = Matching(rdm.objective("energy"), rdm.Battery((rdm.Representation("it", encoder),)), 8, chunk)
    seen: set = set()

    class Watching(Matching):
        def prepare(self, model, setting, *, resumed):
            super().prepare(model, setting, resumed=resumed)
            encoder.seen.clear()
            for term in self.matched.terms:
                assert isinstance(term.statistic, Samples)
                term.statistic = Watched(term.statistic.shift)
                Watched.seen = seen

    matching.__class__ = Watching
    data = rdm.dataset("digits").__class__("rows", items(), torch.zeros(40).long(), 1)
    torch.set_float32_matmul_precision("medium")
    convolutions = torch.backends.cudnn.allow_tf32
    try:
        options = {"precision": "bfloat16", "tf32": tf32, "samples_every": 0}
        train(model=model, losses=[matching], data=data, steps=2, out=tmp_path, **options)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32 == convolutions
    finally:
        torch.set_float32_matmul_precision("highest")
    products = "high" if tf32 else "highest"
    assert model.seen == {(torch.bfloat16, torch.float32, products)}
    assert encoder.seen == {(torch.float32, products, False)}
    assert seen == {(torch.float32, "highest", False)}


def in_float16(out, *, factor: float, **options) -> nn.Module:
    """Some steps on the loss times a factor, with a rate that makes them as long as without."""
    torch.manual_seed(0)
    rate = partial(torch.optim.SGD, lr=1e-3 / factor)
    options = {"precision": "float16", "optimizer": rate, "steps": 8, "log_every": 1, "patience": 0, **options}
    return train(model=Line(), losses=[Weighted(Chunked(), factor)], out=out, samples_every=0, **options)


def logged(out, name: str) -> list[float]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row.get(name, float("nan")) for row in rows]


def test_gradients_too_small_for_float16_are_scaled_into_it(tmp_path, monkeypatch):
    """The loss is 1e-8 of what float16 holds; norm and steps are those of float32, to its three digits."""
    wide = in_float16(tmp_path / "wide", factor=1e-8, precision="float32")
    low = in_float16(tmp_path / "low", factor=1e-8)
    for a, b in zip(low.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4)
    norms = logged(tmp_path / "low", "gradient_norm")
    assert norms == pytest.approx(logged(tmp_path / "wide", "gradient_norm"), rel=5e-3)
    assert set(logged(tmp_path / "low", "loss_scale")) == {2.0**16}
    assert isinstance(low, Line) and {dtype for dtype, _, _ in low.seen} == {torch.float16}
    monkeypatch.setattr("rdm.scaling.loss_scale.FIRST", 1.0)  # what would become of it
    still = in_float16(tmp_path / "unscaled", factor=1e-8)
    assert logged(tmp_path / "unscaled", "gradient_norm") == [0.0] * 8
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(still.parameters(), Line().parameters(), strict=True))


def test_a_scale_that_is_too_large_is_halved_without_a_step_and_doubled_again(tmp_path, monkeypatch):
    """No step that is left out for its sake is counted; a run that is resumed goes on bit for bit."""
    monkeypatch.setattr("rdm.scaling.loss_scale.EVERY", 3)
    options = {"factor": 50.0, "checkpoint_every": 4, "keep": 3, "average": 0.5, "steps": 14}
    done = in_float16(tmp_path / "whole", **options)
    scales, norms = (logged(tmp_path / "whole", name) for name in ("loss_scale", "gradient_norm"))
    taken = [norm == norm for norm in norms]
    falls = taken.index(True)
    assert 1 < falls < 8 and set(logged(tmp_path / "whole", "skipped")) == {0}
    value, none = 2.0 ** (16 - falls), float("nan")
    expected = [none] * falls + [value, value, value, none] * 3
    assert scales == pytest.approx(expected[:14], nan_ok=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for late in sorted((tmp_path / "again" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(late)
    again = in_float16(tmp_path / "again", resume=True, **options)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), done.parameters(), strict=True))
    assert logged(tmp_path / "again", "loss_scale") == pytest.approx(scales, nan_ok=True)


def test_a_gradient_that_no_scale_makes_finite_ends_the_run(tmp_path):
    class Endless(Chunked):
        def backward(self, model, step, scale=1.0):
            found = super().backward(model, step, scale)
            model.first.weight.grad[0, 0] = float("nan")
            return found

    with pytest.raises(Diverged, match="step 16: the gradient is not finite"):
        train(model=Line(), losses=[Endless()], steps=30, out=tmp_path, precision="float16", patience=0)


def test_a_network_beside_the_model_refuses_float16():
    with torch.autocast("cpu", torch.float16), pytest.raises(InputError, match="Linear, trained beside the model, has"):
        Auxiliary(nn.Linear(2, 2), torch.optim.SGD)


@pytest.mark.parametrize("given, message", [
    ({"parameters": "bfloat16"}, "parameters in bfloat16 compute in it; got precision 'float32'"),
    ({"precision": "float8"}, "precision must be 'float32' or 'bfloat16' or 'float16'; got 'float8'"),
    ({"precision": "float16", "parameters": "bfloat16"}, "parameters in bfloat16 compute in it; got precision 'float1"),
    ({"tf32": 1}, "tf32 must be True or False"),
])  # fmt: skip
def test_what_cannot_be_computed_is_refused(tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        train(**{**arguments("flow", tmp_path), **given})
    assert not list(tmp_path.iterdir())
