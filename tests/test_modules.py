"""Modules by name: activations computed again to the bit, compiled ones in both passes, names as they were."""

import copy

import pytest
import torch
from torch import nn

import rdm
from rdm.errors import InputError
from rdm.planning.sizes import Held, Sizes
from rdm.scaling.modules import Compile, compiled, named, recompute
from tests.test_train import run


class Net(nn.Module):
    """Layers in a list, random ones among them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inlet, self.outlet = nn.Linear(4, 16), nn.Linear(16, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.3)) for _ in range(3))

    def forward(self, x):
        x = self.inlet(x)
        for block in self.blocks:
            x = x + block(x)
        return self.outlet(x)


def gradients(net: nn.Module, chunk: int | None, **encoder) -> list[torch.Tensor]:
    """Of one step of a population, and the random number that follows it."""
    torch.manual_seed(1)
    noise, items = torch.randn(20, 4), torch.randn(40, 6)
    encode = rdm.Representation("tanh", nn.Sequential(nn.Linear(6, 6), nn.Tanh()), **encoder)
    net.zero_grad(set_to_none=True)
    rdm.Population("energy", encode, items, chunk=chunk).backward(net, noise)
    return [*(p.grad.clone() for p in net.parameters() if p.grad is not None), torch.rand(())]


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("low", [False, True])
def test_what_is_computed_again_is_the_same_to_the_bit(chunk, low):
    """Dropout and autocast included; a copy computes by its own weights, and all names stay."""
    plain, again = Net(), recompute(recompute(Net(), ["blocks.*", "blocks.1.0"]), ["blocks.*"])
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        found, expected = gradients(again, chunk), gradients(plain, chunk)
    assert len(found) == 11 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert list(again.state_dict()) == list(plain.state_dict()) and repr(again) == repr(plain)
    assert isinstance(again.blocks[0], nn.Sequential)
    other = copy.deepcopy(again)
    nn.init.zeros_(other.outlet.weight)
    for p in other.blocks.parameters():
        nn.init.zeros_(p)
    x = torch.randn(3, 4)
    plain.eval(), again.eval(), other.eval()
    assert torch.equal(plain(x), again(x)) and torch.equal(other(x), other.outlet.bias.expand(3, -1))


def test_less_is_kept_for_the_backward_pass():
    sizes = []
    for names in (False, True):
        net, kept = recompute(Net(), names), {}
        pack = lambda t, kept=kept: kept.setdefault(t.untyped_storage().data_ptr(), t)  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            net(torch.randn(1000, 4))
        sizes.append(sum(t.untyped_storage().nbytes() for t in kept.values()))
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch, while it traces
@pytest.mark.parametrize("again", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_is_compiled_survives_two_passes(again):
    """Generator and encoder, layers computed again or not; no name changes."""
    plain, fast = Net().eval(), recompute(Net().eval(), again)
    assert compiled(fast, Compile(backend="aot_eager")) is fast
    found, expected = gradients(fast, 8, compile="aot_eager"), gradients(plain, 8)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert list(fast.state_dict()) == list(plain.state_dict())
    copy.deepcopy(fast).load_state_dict(plain.state_dict())


@pytest.mark.parametrize("names, message", [
    (["block.*"], r"Net has no module 'block.\*' that computes; did you mean 'blocks.\d'"),
    (["blocks"], "Net has no module 'blocks' that computes"), (["blocks.*", "x"], "no module 'x'"),
    ("blocks.*", "names of modules must be True or False or a list, each text; got 'blocks.*'"),
    (3, "names of modules must be True or False or a list"),
])  # fmt: skip
def test_names_that_no_module_has_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        named(Net(), names)


def test_true_stands_for_layers_in_lists():
    net = Net()
    assert named(net, True) == list(net.blocks) and named(net, False) == []
    with pytest.raises(InputError, match="Sequential has no nn.ModuleList"):
        named(nn.Sequential(nn.Linear(1, 1)), True)
    with pytest.raises(InputError, match="torch.compile has no backend 'indctor' here; did you mean 'inductor'"):
        Compile(backend="indctor")


def test_a_run_that_computes_again_is_the_same_run(tmp_path):
    plain, again = (
        run("flow", tmp_path / str(names), steps=2, samples_every=0, checkpointing=names).state_dict()
        for names in (False, ["blocks.*"])
    )
    assert all(torch.equal(value, again[name]) for name, value in plain.items())
    with pytest.raises(InputError, match="MLPFlow has no module 'net.*' that computes"):
        run("flow", tmp_path / "x", checkpointing=["net.*"])
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_recomputing_takes_more_than_half_of_the_peak_of_jit_b():
    """At full size, 16 pictures forward and backward above weights and gradients, counted without values."""

    def peak(again: bool) -> int:
        with Sizes()(1), (held := Held()):
            model = rdm.generator("jit_b_256", steps=1, guidance=1.0)
            model = recompute(model) if again else model
            for p in model.parameters():
                p.grad = torch.zeros_like(p) if p.requires_grad else None
            before = held.now
            held.since_now()
            model(torch.zeros(16, 3, 256, 256), torch.zeros(16, dtype=torch.long)).sum().backward()
            found = held.most - before
        held.forget()
        return found

    whole, least = peak(False), peak(True)
    assert 4e9 < whole < 6e9 and least < whole / 2
