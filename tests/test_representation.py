"""Representations, batteries and references."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import rdm
from rdm.comparing.pairs import compare
from rdm.data.inputs import images, tokens, waveforms
from rdm.errors import InputError
from rdm.files.store import read_tensors, write_tensors
from rdm.matching.representation import Battery, Representation
from rdm.population.population import Population
from rdm.references.encoded import encoded


def test_pca_is_numpys():
    items = torch.randn(50, 6, dtype=torch.float64) * torch.arange(1.0, 7)
    got = rdm.representation("pca", components=3).fitted(items)(items)
    _, s, vt = np.linalg.svd((items - items.mean(0)).numpy(), full_matrices=False)
    expected = (items - items.mean(0)).numpy() @ vt[:3].T
    np.testing.assert_allclose(np.abs(got.numpy()), np.abs(expected), atol=1e-9)
    white = rdm.representation("pca", components=3, whiten=True).fitted(items)(items)
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("whiten", [False, True])
def test_pca_of_fewer_rows_than_numbers_is_that_of_the_covariance(whiten):
    """By inner products of the rows: the axes of the d x d eigenvectors but for their signs, in time at 16,000."""
    items = torch.randn(12, 40, dtype=torch.float64) * torch.linspace(1, 3, 40)
    got = rdm.representation("pca", components=5, whiten=whiten).fitted(items)(items)
    centred = items - items.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / 12)
    expected = centred @ vectors[:, -5:].flip(1) / (values[-5:].flip(0).sqrt() if whiten else 1)
    torch.testing.assert_close(got.abs(), expected.abs())
    with pytest.raises(InputError, match="1 <= components <= 11, the rank"):
        rdm.representation("pca", components=12).fitted(items)
    wide = torch.rand(60, 16_000)
    features = rdm.representation("pca", components=16, whiten=True).fitted(wide)(wide.double())
    torch.testing.assert_close(features.T @ features / 60, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-9)


def test_pca_refuses_more_components_than_rank():
    with pytest.raises(InputError, match="1 <= components <= 2"):
        rdm.representation("pca", components=3).fitted(torch.randn(3, 6))
    with pytest.raises(InputError, match="fitted"):
        rdm.representation("pca")(torch.randn(3, 6))


def test_features_must_be_rows():
    with pytest.raises(InputError, match=r"'bad' must give one row an item, shape \(4, d\); got \(4, 2, 3\)"):
        Representation("bad", nn.Identity())(torch.randn(4, 2, 3))


def test_fingerprints_follow_weights_and_settings():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    prints = {Representation("x", a).fingerprint, Representation("x", b).fingerprint}
    prints |= {Representation("y", a).fingerprint, Representation("x", a, {"pool": 1}).fingerprint}
    assert len(prints) == 4
    b.load_state_dict(a.state_dict())
    assert Representation("x", b).fingerprint in prints


def test_batteries_refuse_confusion(untyped):
    pixels = rdm.representation("pixels")
    for members, options, message in (
        ((), {}, "at least one"),
        ((pixels, pixels), {}, "names in a battery must differ"),
        ((pixels,), {"held_out": (pixels,)}, "names in a battery must differ"),
        ((pixels,), {"weights": (1.0, 2.0)}, "expected 1 weights"),
        ((pixels,), {"weights": (-1.0,)}, "a number from 0; got -1"),
        ((pixels,), {"weights": ("1",)}, "a number from 0; got '1'"),
        ("pixels", {}, "must be a list of representations; got str"),
        ((pixels, None), {}, "each of the members of a battery must be Representation; got None"),
    ):
        with pytest.raises(InputError, match=message):
            Battery(members, **options)


def test_a_conditional_representation_sees_the_condition():
    class Joint(nn.Module):
        def forward(self, items, condition):
            return torch.cat([items.flatten(1), nn.functional.one_hot(condition, 3).to(items)], 1)

    joint = Representation("joint", Joint(), conditional=True)
    items, labels = torch.randn(30, 4), torch.arange(30) % 3
    net = nn.Linear(2, 4)
    population = rdm.Population(rdm.objective("mmd"), joint, items, condition=labels, chunk=7)
    population.backward(lambda z, c: net(z), torch.randn(20, 2), torch.arange(20) % 3)
    assert population.terms[0].target.rows.shape == (30, 7) and net.weight.grad.norm() > 0


def test_a_condition_of_another_length_is_refused_by_every_encoder(untyped):
    """One of 512 for 1,300 items made a reference of 512 rows."""
    items, pixels = torch.rand(1300, 1, 2, 2), rdm.representation("pixels")
    joint = rdm.representation("joint", condition=3, beta=1.0)
    for each in (pixels, joint, replace(joint, micro_batch=100), rdm.representation("joint", condition=3)):
        for wrong in (512, 1301):
            labels, message = torch.zeros(wrong).long(), f"condition .* must have 1300 rows, one an item; got {wrong}"
            with pytest.raises(InputError, match=message):
                encoded(items, each, condition=labels)
            with pytest.raises(InputError, match=message):
                Population(rdm.objective("energy"), each, items, condition=labels)
            with pytest.raises(InputError, match=message):
                each.fitted(items, labels) if each.module is None else each(items, labels)
    with pytest.raises(InputError, match="condition .* must be a tensor; got list"):
        encoded(items, joint, condition=[0] * 1300)
    with pytest.raises(InputError, match="takes a tensor of .*; got ndarray"):
        encoded(items.numpy(), pixels)


def test_reference_cache_is_read_and_checked(tmp_path):
    items = torch.rand(20, 1, 4, 4)
    pixels = rdm.representation("pixels")
    first = encoded(items, pixels, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    second = encoded(items, pixels, cache=tmp_path)
    assert torch.equal(first.features, second.features) and path.stat().st_mtime_ns == stamp
    encoded(items + 1e-3, pixels, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    tensors, origin = read_tensors(path)
    write_tensors(path, tensors, {**origin, "fingerprint": "0" * 64})
    with pytest.warns(UserWarning, match="fingerprint '0000.*the reference is measured"):
        assert torch.equal(encoded(items, pixels, cache=tmp_path).features, first.features)


def test_compare_takes_an_objective():
    x, y = torch.randn(9, 2), torch.randn(8, 2)
    assert compare(rdm.objective("frechet"), x, y) == rdm.distance("frechet", x, y)


class Quadratic(nn.Module):
    """A smooth encoder of images, one row an item."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3)

    def forward(self, images):
        return self.convolution(images).square().mean((2, 3))


@pytest.mark.parametrize("size", [1, 3, 10, 100])
def test_micro_batches_change_neither_features_nor_gradient(size):
    torch.manual_seed(0)
    whole = Representation("encoder", Quadratic().double(), inputs=images())
    parts = replace(whole, micro_batch=size)
    items = torch.rand(10, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(10, 5, dtype=torch.float64)
    for encode in (whole, parts):
        items.grad = None
        (encode(items) * weights).sum().backward()
        if encode is whole:
            features, gradient = encode(items), items.grad
    torch.testing.assert_close(parts(items), features, rtol=1e-12, atol=0)
    torch.testing.assert_close(items.grad, gradient, rtol=1e-12, atol=1e-15)
    with torch.no_grad():
        torch.testing.assert_close(parts(items), features, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("micro_batch", "chunk", "most"), [(4, 12, 4), (None, 12, 12), (None, None, 24)])
def test_one_micro_batch_of_one_encoder_is_held_at_a_time(micro_batch, chunk, most):
    held = {"now": 0, "most": 0}

    class Saved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.rows = len(x)
            held["now"] += ctx.rows * torch.is_grad_enabled()
            held["most"] = max(held["most"], held["now"])
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            held["now"] -= ctx.rows
            return gradient

    class Counted(nn.Module):
        def forward(self, x):
            if not torch.is_grad_enabled():
                return x
            held["now"] += len(x)
            held["most"] = max(held["most"], held["now"])
            return Saved.apply(x)

    members = tuple(Representation(name, Counted(), micro_batch=micro_batch) for name in ("one", "two"))
    population = rdm.Population(rdm.objective("mmd"), Battery(members), torch.randn(30, 3), chunk=chunk)
    net = nn.Linear(2, 3)
    population.backward(net, torch.randn(24, 2))
    assert held["now"] == 0 and held["most"] == most and net.weight.grad.norm() > 0


@pytest.mark.parametrize("memory", [rdm.NoMemory(), rdm.EMA(0.9)])
@pytest.mark.parametrize("name", ["mmd", "frechet"])
def test_a_population_with_micro_batches_has_the_same_gradient(name, memory):
    items, noise = torch.rand(40, 3, 6, 6, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    torch.manual_seed(0)
    encoder, net = Quadratic().double(), nn.Linear(4, 108).double()
    gradients = []
    for micro_batch, chunk in ((None, None), (3, 8), (3, None)):
        encode = Representation("encoder", encoder, inputs=images(), micro_batch=micro_batch)
        population = rdm.Population(rdm.objective(name), encode, items, chunk=chunk, memory=memory)
        net.zero_grad()
        population.backward(lambda z: net(z).sigmoid().view(-1, 3, 6, 6), noise)
        gradients.append(net.weight.grad.clone())
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-9, atol=1e-12)


def test_precision_is_the_encoders_own_and_features_are_float32():
    torch.manual_seed(0)
    exact = Representation("encoder", Quadratic(), inputs=images())
    half = replace(exact, precision="bfloat16")
    items = torch.rand(4, 3, 6, 6)
    assert half(items).dtype == torch.float32 and half.fingerprint != exact.fingerprint
    assert 0 < (half(items) - exact(items)).abs().max() < 0.02
    with torch.autocast("cpu", torch.bfloat16):  # a trainer's autocast does not reach an encoder in float32
        assert torch.equal(exact(items), exact(items.clone())) and exact(items).dtype == torch.float32
        features = exact(items)
    assert torch.equal(features, exact(items))


def test_clamping_is_a_policy_of_training():
    passing = Representation("encoder", Quadratic(), inputs=images())
    clamping = replace(passing, clamp=True)
    items = torch.rand(4, 3, 6, 6) * 3 - 1
    assert torch.equal(clamping(items), passing(items.clamp(0, 1))) and not torch.equal(passing(items), clamping(items))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (torch.rand(2, 1, 8, 8), r'takes images "n 3 h w" in \[0, 1\]; got shape \(2, 1, 8, 8\); give 3 channels'),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"floating-point numbers; got torch.uint8; .*divided by 255"),
        (torch.rand(0, 3, 8, 8), r"an empty batch of shape \(0, 3, 8, 8\)"),
        (torch.tensor([0.5, torch.nan, 0.5]).view(3, 1, 1, 1).expand(3, 3, 2, 2), r"NaN or infinity in 1 of 3 images"),
        (torch.rand(2, 3, 8, 8) * 2 - 1, r"got values from -.* outside in 2 of 2; rescale or clamp"),
    ],
)
def test_wrong_images_are_refused_in_one_line(items, message):
    encode = Representation("encoder", Quadratic(), inputs=images())
    with pytest.raises(InputError, match=message) as caught:
        encoded(items, encode)
    assert "\n" not in str(caught.value) and "'encoder'" in str(caught.value)


def test_wrong_waveforms_are_refused_in_one_line():
    encode = Representation("ear", nn.Flatten(), inputs=waveforms())
    for items, message in (
        (torch.zeros(2, 100, dtype=torch.int16), "floating-point numbers; got torch.int16; .*divided by 32768"),
        (torch.zeros(2, 2, 100), r'takes waveforms "n samples" in \[-1, 1\]; got shape \(2, 2, 100\)'),
    ):
        with pytest.raises(InputError, match=message):
            encode.check(items)


def test_wrong_tokens_are_refused_and_soft_ones_are_another_form():
    takes = tokens(10)
    for items, message in (
        (torch.full((2, 4), 10), r"got values from 10 to 10, outside in 2 of 2; correct them"),
        (torch.zeros(2, 4, 9), r'takes soft tokens "n length 10" in \[0, 1\]; got shape \(2, 4, 9\)'),
        (torch.full((2, 4, 10), 2.0), r"takes soft tokens .* outside in 2 of 2"),
        (torch.zeros(2, 4, 10).long(), r"takes tokens .* got shape \(2, 4, 10\); give int64 ids"),
    ):
        with pytest.raises(InputError, match=message):
            takes.check_values(items, "it")
    takes.check_values(torch.arange(10)[None], "it")
    takes.check_values(torch.rand(2, 4, 10), "it")
    ids = torch.tensor([[0, 12]])
    assert torch.equal(takes.clamp(ids), ids) and takes.clamp(torch.full((1, 1, 10), 2.0)).max() == 1


def test_an_encoder_stays_in_evaluation_mode_whoever_holds_its_module():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    encode, items = Representation("dropout", module), torch.ones(4, 6)
    nn.ModuleList([module]).train()
    assert torch.equal(encode(items), items) and not module[1].training


def test_training_on_a_held_out_member_needs_the_word():
    pixels, other = rdm.representation("pixels"), Representation("other", nn.Flatten())
    battery = Battery((pixels,), held_out=(other,))
    with pytest.raises(InputError, match="'other' is held out .* held_out=True"):
        battery.training_on("other")
    chosen = battery.training_on("other", held_out=True)
    assert [r.name for r in chosen.members] == ["other"] and [r.name for r in chosen.held_out] == ["pixels"]
    with pytest.raises(InputError, match="did you mean 'other'"):
        battery.training_on("othr")


def test_options_of_running_reach_the_members_they_name():
    pixels, other = rdm.representation("pixels"), Representation("other", nn.Flatten())
    battery = Battery((pixels,), held_out=(other,)).running(micro_batch=4, precision={"other": "bfloat16"})
    assert [(r.micro_batch, r.precision) for r in (*battery.members, *battery.held_out)] == [
        (4, "float32"),
        (4, "bfloat16"),
    ]
    with pytest.raises(InputError, match="no member is called 'othr'; did you mean 'other'"):
        battery.running(precision={"othr": "bfloat16"})


@pytest.mark.slow
def test_compiled_encoders_give_the_same_features():
    torch.manual_seed(0)
    plain = Representation("encoder", Quadratic(), inputs=images())
    fast = replace(plain, compile=True)
    items = torch.rand(4, 3, 6, 6, requires_grad=True)
    torch.testing.assert_close(fast(items), plain(items))
    (one,), (two,) = (torch.autograd.grad(e(items).sum(), items) for e in (plain, fast))
    torch.testing.assert_close(one, two)
    assert fast.fingerprint == plain.fingerprint
    assert torch.equal(replace(pickle.loads(pickle.dumps(fast)), compile=False)(items), plain(items))


def test_components_of_many_rows_in_many_dimensions_are_those_of_all(monkeypatch):
    """By subspace iteration above a size, which is lowered here; signs are free."""
    x = torch.randn(300, 200, generator=torch.Generator().manual_seed(0)) * 0.95 ** torch.arange(200)
    for whiten in (False, True):
        exact = rdm.representation("pca", components=6, whiten=whiten).fitted(x)(x)
        with monkeypatch.context() as small:
            small.setattr("representations.pixels.EXACT", 100)
            found = rdm.representation("pca", components=6, whiten=whiten).fitted(x)(x)
        torch.testing.assert_close(found * (found * exact).sum(0).sign(), exact, rtol=1e-4, atol=1e-4)
