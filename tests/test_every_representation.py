"""What every registered representation must do, with items made from what it says that it takes."""

import copy
import inspect
import pickle
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import rdm
from rdm.data.dataset import Dataset
from rdm.data.inputs import Inputs
from rdm.errors import InputError
from rdm.files.checkpoint import read_checkpoint, snapshot, write_checkpoint
from rdm.generators.protocol import Generator
from rdm.losses.matching import Matching
from rdm.matching.representation import Representation
from rdm.randomness import seeded
from rdm.registry import networks, representations
from rdm.training.loop import train

# Two sizes for every dimension that an encoder leaves open; items of any shape are small images.
SIZES = {"c": (3, 3), "h": (8, 21), "w": (8, 14), "samples": (300, 801), "length": (5, 9)}
ANY_SHAPE: tuple[str | int, ...] = (1, 8, 8)
N = 6
STEP = 1e-8  # of finite differences
CONDITION = torch.arange(N) % 2  # for the conditional ones: class labels that any number of classes has


def build(name: str, folder) -> list[Representation]:
    """The representation with each of its examples; one of a trained network with every network, weights made."""
    try:
        if "network" not in inspect.signature(representations[name].build).parameters:
            return [rdm.representation(name, **example) for example in representations[name].examples]
    except InputError as error:
        if 'pip install "rdm-torch[' in str(error):
            pytest.skip(str(error))
        raise
    made = []
    for network, entry in networks.items():
        if not entry.examples:  # needs weights, and is no classifier
            continue
        with seeded(0):
            module = networks.build(network, **entry.examples[0])
        run = folder / network
        write_checkpoint(run / "checkpoints", 1, snapshot({"model": module.state_dict(), "average": None}))
        made.append(rdm.representation(name, weights=str(run), network=module))
    return made


def draw(inputs: Inputs, size: int = 0, seed: int = 0) -> Tensor:
    """N items that `inputs` describes, strictly inside their range."""
    shape = [n if isinstance(n, int) else SIZES[n][size] for n in inputs.shape or ANY_SHAPE]
    low, high = (0.0, 1.0) if inputs.low is None or inputs.high is None else (inputs.low, inputs.high)
    g = torch.Generator().manual_seed(seed)
    if inputs.integer:
        return torch.randint(int(low), int(high) + 1, (N, *shape), generator=g)
    return low + (high - low) * (0.01 + 0.98 * torch.rand(N, *shape, generator=g))


def encode(representation: Representation, items: Tensor) -> Tensor:
    return representation(items, CONDITION[: len(items)]) if representation.conditional else representation(items)


@pytest.fixture(params=rdm.names("representations"), scope="module")
def cases(request, tmp_path_factory) -> list[Representation]:
    """The registered representation with each example, estimated on items of the smaller size where it needs that."""
    raw = build(request.param, tmp_path_factory.mktemp("weights"))
    return [r.fitted(draw(r.inputs), CONDITION if r.conditional else None) for r in raw]


def floating(representation: Representation) -> Inputs | None:
    """Its differentiable inputs: its own, or the soft form of whole numbers; None where there is none."""
    return representation.inputs.soft if representation.inputs.integer else representation.inputs


def test_features_are_finite_rows_in_float32_at_any_size(cases):
    for representation in cases:
        features = encode(representation, draw(representation.inputs))
        assert features.shape[0] == N and features.ndim == 2 and features.dtype == torch.float32
        assert torch.isfinite(features).all() and not features.requires_grad
        if representation.inputs.shape is not None:  # any tensor: as many features as the tensor says
            larger = encode(representation, draw(representation.inputs, size=1)[:2])
            assert larger.shape == features[:2].shape and torch.isfinite(larger).all()


def test_each_row_depends_on_its_own_item_alone(cases):
    """Within 1e-5 of the largest feature: in a batch of one, among fewer and among other neighbours."""
    for representation in cases:
        items, others = draw(representation.inputs), draw(representation.inputs, seed=1)
        features = encode(representation, items)
        close = {"rtol": 0, "atol": 1e-5 * float(features.abs().max())}
        torch.testing.assert_close(encode(representation, items[:1]), features[:1], **close)
        torch.testing.assert_close(encode(representation, items[:4]), features[:4], **close)
        mixed = encode(representation, torch.cat([items[:2], others[2:]]))
        torch.testing.assert_close(mixed[:2], features[:2], **close)
        assert (mixed[2:] - features[2:]).abs().amax(1).min() > 10 * close["atol"], "features that say nothing"


def test_frozen_deterministic_and_the_same_after_train(cases):
    for representation in cases:
        module, items = representation.module, draw(representation.inputs)[:3]
        assert module is not None and not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())
        features = encode(representation, items)
        assert torch.equal(encode(representation, items), features)
        holder = nn.Linear(2, 2)
        holder.encoder = representation
        holder.train()
        assert torch.equal(encode(representation, items), features)
        assert len(list(holder.parameters())) == len(holder.state_dict()) == 2
        module.train()  # a trainer that holds the encoder's own module
        assert torch.equal(encode(representation, items), features) and not any(m.training for m in module.modules())


def test_gradient_reaches_every_item_and_no_parameter(cases):
    for representation in cases:
        if (inputs := floating(representation)) is None:
            continue
        leaf = draw(inputs).requires_grad_()
        features = encode(representation, leaf)
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
        (features * weights).sum().backward()
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all()
        assert leaf.grad.flatten(1).norm(dim=1).min() > 0
        assert representation.module is not None
        assert all(p.grad is None for p in representation.module.parameters())


def test_gradient_by_finite_differences(cases):
    """Derivative along a random direction against central differences, encoder and items in float64.

    The step is short, so that it crosses next to none of the kinks of a rectifier or a maximum.
    """
    for representation in cases:
        if (inputs := floating(representation)) is None:
            continue
        exact = replace(representation, module=copy.deepcopy(representation.module).double(), precision="float32")
        g = torch.Generator().manual_seed(3)
        leaf = draw(inputs)[:2].double().requires_grad_()
        direction = torch.randn(leaf.shape, generator=g, dtype=torch.float64)
        features = encode(exact, leaf)
        weights = torch.randn(features.shape, generator=g, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((features * weights).sum(), leaf)
        with torch.no_grad():
            ahead, behind = (encode(exact, leaf + h * direction) for h in (STEP, -STEP))
        slope = float(((ahead - behind) * weights).sum() / (2 * STEP))
        error = abs(float((gradient * direction).sum()) - slope)
        assert error <= 1e-5 * float(gradient.norm()), f"{representation.name}: {error / float(gradient.norm()):.2g}"


def test_float64_rounds_what_float32_gives_and_leaves_that_encoder_alone(cases):
    """Features of an encoder in float64, of the same items, within float32's rounding of its own; and as pickled."""
    for representation in cases:
        items = draw(representation.inputs)[:2]
        before = encode(representation, items)
        exact = replace(representation, precision="float64")
        features = encode(exact, items)
        by_hand = replace(representation, module=copy.deepcopy(representation.module).double())
        assert torch.equal(features, encode(by_hand, items.double() if items.is_floating_point() else items))
        close = {"rtol": 0, "atol": 1e-4 * float(before.abs().max())}
        torch.testing.assert_close(features.float(), before, **close)
        assert torch.equal(encode(pickle.loads(pickle.dumps(exact)), items), features)
        assert torch.equal(encode(representation, items), before) and exact.fingerprint != representation.fingerprint


def test_the_same_when_built_again_and_pickled(cases, request, tmp_path):
    """Before and after it is estimated, as spawned workers and trainers that are saved whole need it."""
    again = build(request.node.callspec.params["cases"], tmp_path)
    for representation, raw in zip(cases, again, strict=True):
        copied = pickle.loads(pickle.dumps(raw))
        fitted = copied.fitted(draw(raw.inputs), CONDITION if raw.conditional else None)
        assert fitted.fingerprint == representation.fingerprint
        items = draw(raw.inputs)[:2]
        assert torch.equal(encode(pickle.loads(pickle.dumps(fitted)), items), encode(representation, items))


def test_wrong_items_are_refused_in_one_line(cases):
    for representation in cases:
        items = draw(representation.inputs)
        wrong = [items[:0], items.to(torch.complex64)]
        wrong += [items.double() if representation.inputs.integer else (items * 100).to(torch.uint8)]
        wrong += [] if representation.inputs.shape is None else [items[..., None, None, None]]
        for each in wrong:
            with pytest.raises(InputError, match=re.escape(f"representation {representation.name!r} takes")) as caught:
                encode(representation, each)
            assert "\n" not in str(caught.value)


class Items(Generator):
    """A generator of items in the middle of a range: one parameter, of a shape that no encoder has."""

    def __init__(self, inputs: Inputs, classes: int | None):
        super().__init__()
        self.shape, self.classes = (7,), classes
        self.like, self.inputs = draw(inputs)[0], inputs
        self.mix = nn.Parameter(torch.full((7, self.like.numel()), 0.01))

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        low, high = self.inputs.low, self.inputs.high
        items = torch.sigmoid(noise @ self.mix).view(-1, *self.like.shape)
        return items if low is None or high is None else low + (high - low) * items


def test_training_keeps_the_encoder_out_of_the_checkpoint(cases, tmp_path):
    for i, representation in enumerate(cases):
        if (inputs := floating(representation)) is None:
            continue
        model = Items(inputs, 2 if representation.conditional else None)
        before = copy.deepcopy(representation.module).state_dict()
        data = Dataset("items", draw(representation.inputs), CONDITION, 2)
        losses = [Matching(rdm.objective("energy"), rdm.Battery((representation,)), population=3, chunk=2)]
        train(model=model, losses=losses, data=data, steps=1, out=tmp_path / str(i))
        _, state = read_checkpoint(tmp_path / str(i) / "checkpoints" / "00000001")
        assert set(state["model"]) == {"mix"}
        shapes = {tuple(t.shape) for t in _tensors({k: v for k, v in state.items() if k != "random"})}
        assert shapes <= {(), tuple(model.mix.shape)}
        for key, value in representation.module.state_dict().items():
            assert torch.equal(value, before[key]), f"{representation.name}: training changed {key}"


def _tensors(tree) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    branches = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for branch in branches for tensor in _tensors(branch)]


@pytest.mark.parametrize("name", rdm.names("batteries"))
def test_batteries_encode_the_same_items_or_say_in_one_line_what_is_absent(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no runs are
    try:
        battery = rdm.battery(name)
    except InputError as error:
        assert rdm.registry.batteries[name].needs or "allow_download=True" in str(error)
        assert "\n" not in str(error)
        return
    every = (*battery.members, *battery.held_out)
    inputs = next((r.inputs for r in every if r.inputs.shape is not None), every[0].inputs)
    items = torch.cat([draw(inputs, seed=seed) for seed in range(3)])
    fitted = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(battery)).fitted(items)))
    assert all(len(r(items)) == len(items) for r in (*fitted.members, *fitted.held_out))
