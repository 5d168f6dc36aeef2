"""The population's gradient is plain autograd's, whatever objective, memory, chunk, rank and randomness."""

import itertools
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rdm
from rdm.errors import InputError, MismatchError, NonFiniteError
from rdm.matching.balance import SelfNormalized, Uniform
from rdm.matching.memory import EMA, NoMemory, Queue
from rdm.matching.real import Real
from rdm.matching.representation import Battery, Representation
from rdm.population.population import Population
from rdm.rehearsing.bound import tensors
from tests import processes
from tests.conftest import objective_cases
from tests.problems import Problem, rank_errors, relative_error
from tests.test_loss import CASES, looped

cases = pytest.mark.parametrize("name, example", objective_cases())
memories = pytest.mark.parametrize("memory", [NoMemory(), EMA(0.9), Queue(130)], ids=["none", "ema", "queue"])
FOLLOWING = [{}, {"riding": True}, {"riding": True, "balanced": True}]


@cases
@memories
@pytest.mark.parametrize("random", [False, True], ids=["deterministic", "dropout-and-crops"])
def test_gradient_of_chunks_is_plain_autograds(name, example, memory, random):
    for rows, chunks in ((60, (None, 7, 60)), (13, (1,))):
        problem = Problem(rdm.objective(name, **example), memory, random=random, rows=rows)
        whole = problem.oracle(None)
        for chunk in chunks:
            expected = problem.oracle(chunk) if random else whole  # what is drawn at random is drawn chunk by chunk
            error = relative_error(problem.gradient(chunk), expected)
            assert error <= 1e-11, f"chunk {chunk} of {rows}"


@cases
@memories
@given(data=st.data())
def test_gradient_for_any_size_chunk_weights_and_decay(name, example, memory, data):
    rows = data.draw(st.integers(12, 40))
    chunk = data.draw(st.integers(1, rows + 3))
    if isinstance(memory, EMA):
        memory = EMA(data.draw(st.floats(0.0, 0.999)))
    if not isinstance(memory, NoMemory):
        memory = replace(memory, **data.draw(st.sampled_from(FOLLOWING)))
    problem = Problem(rdm.objective(name, **example), memory, rows=rows, seed=data.draw(st.integers(0, 999)))
    assert relative_error(problem.gradient(chunk), problem.oracle(chunk)) <= 1e-11


@cases
@memories
def test_self_normalised_balance(name, example, memory):
    objective = rdm.objective(name, **example)
    balance = SelfNormalized(1e-3)
    if not objective.traits.nonnegative:
        with pytest.raises(InputError, match="non-negative objective"):
            Problem(objective, memory, balance).population(None)
        return
    problem = Problem(objective, memory, balance)
    assert relative_error(problem.gradient(7), problem.oracle(7)) <= 1e-11


@memories
@pytest.mark.parametrize("balance", [Uniform(), SelfNormalized(1e-3)], ids=["uniform", "self-normalised"])
def test_each_member_may_have_its_own_objective(memory, balance):
    """The same for every chunk, and the weighted sum of populations of one member each."""
    pairs = itertools.combinations(["frechet", "mmd", "sliced_wasserstein", "drifting"], 2)
    for first, second in pairs:
        objectives = {"all": rdm.objective(first), "second": rdm.objective(second)}
        problem = Problem(objectives, memory, balance)
        assert relative_error(problem.gradient(7), problem.oracle(None)) <= 1e-11
        if balance == Uniform():
            mine = Problem(objectives["all"], memory)
            mine.battery = Battery(problem.battery.members[:1], weights=(1.0,))
            other = Problem(objectives["second"], memory)
            other.battery = Battery(problem.battery.members[1:], weights={"second": 0.7})
            separate = [a + b for a, b in zip(mine.gradient(None), other.gradient(13), strict=True)]
            # directions are drawn from the same stream by both members in turn, and afresh in separate populations
            if not all(each.traits.randomized for each in objectives.values()):
                assert relative_error(problem.gradient(None), separate) <= 1e-11


def test_what_is_given_by_member_names_every_member(untyped):
    items, members = torch.rand(40, 6), [rdm.representation("pixels"), rdm.representation("identity")]
    both = {"pixels": "frechet", "identity": rdm.objective("mmd")}
    made = Population(both, members, items)
    assert [type(term.objective).__name__ for term in made.terms] == ["Frechet", "MMD"]
    assert made.state()["made_by"]["objective"] == "pixels: Frechet, identity: MMD"
    with pytest.raises(MismatchError, match="cannot be restored into one of"):
        made.restore(Population("mmd", members, items).state())
    for wrong, message in (
        ({"pixels": "mmd"}, "objective: expected one for each member; none is given for 'identity'"),
        ({}, "none is given for 'pixels'"),
        ({**both, "pixel": "mmd"}, "objective: no member is called 'pixel'; did you mean 'pixels'"),
        ({**both, "pixels": 3}, "expected an Objective or the registered name of one; got int"),
    ):
        with pytest.raises(InputError, match=message):
            Population(wrong, members, items)
    assert Battery(members, weights={"identity": 2.0, "pixels": 3.0}).member_weights == (3.0, 2.0)
    for weights, message in (({"pixels": 1.0}, "none is given for 'identity'"), ({"a": 1.0}, "is called 'a'"),
                             ({"pixels": 1.0, "identity": -1.0}, "weights of a battery must be")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            Battery(members, weights=weights)
    judges = {"pixels": "mmd", "identity": rdm.objective("mmd", estimator="unbiased")}
    with pytest.raises(InputError, match="needs a non-negative objective; got MMD.*unbiased"):
        Population(judges, members, items, balance=SelfNormalized())


def test_two_ranks_with_unequal_rows(tmp_path):
    """25 and 35 rows on two gloo processes, chunks of 7 or all in turn, against one process and all 60 rows."""
    kinds = (
        NoMemory(),
        *(replace(EMA(0.9), **how) for how in FOLLOWING),
        *(replace(Queue(130), **how) for how in FOLLOWING),
    )
    turns = [(0, 1 + k % 3, 4 + (k + 1) % 3) for k in range(len(objective_cases()))]  # a kind of each for every case
    pairs = [(case, kinds[turn]) for case, some in zip(objective_cases(), turns, strict=True) for turn in some]
    chosen = [(*case.values, memory, (None, 7)[k % 2]) for k, (case, memory) in enumerate(pairs)]
    within = [("classwise", {"objective": each, "classes": 2}) for each in ("frechet", "energy")]
    chosen += [(*case, memory, 7) for case in within for memory in kinds[2::4]]
    chosen = [(*case, None) for case in chosen]
    chosen += [("energy", {}, kinds[2], chunk, live) for chunk, live in ((None, 1), (7, 9), (3, 60), (None, 99))]
    processes.ranks(rank_errors, (str(tmp_path), (25, 35), chosen), 2)
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert len(gradients) == len(chosen)
    for (name, example, memory, chunk, live), gradient in zip(chosen, gradients, strict=True):
        problem = Problem(rdm.objective(name, **example), memory, live=live)
        parts = problem.oracle(None) if live is None else problem.gradient(None)
        expected = torch.cat([g.flatten() for g in parts])
        error = (gradient - expected).norm() / expected.norm()
        assert error <= 1e-11, (name, example, memory, chunk, error)
    loops = torch.load(tmp_path / "loops.pt", weights_only=True)
    for case, got, wanted in zip(CASES, loops, looped(slice(None)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14, msg=str(case))


def test_a_chunk_may_weigh_nothing_but_not_the_population():
    problem = Problem(rdm.objective("mmd", bandwidth=2.0), NoMemory())
    problem.weights[7:21] = 0
    assert relative_error(problem.gradient(7), problem.oracle(None)) <= 1e-11
    problem.weights[:] = 0
    with pytest.raises(InputError, match="weights of the population are all zero"):
        problem.gradient(7)


@pytest.mark.parametrize("chunk", [None, 7])
def test_randomness_goes_on_as_if_there_was_one_pass(chunk):
    problem = Problem(rdm.objective("frechet"), NoMemory(), random=True)
    problem.gradient(chunk)
    after = problem.after
    problem.oracle(chunk)
    assert torch.equal(after, torch.rand(()))


@memories
def test_gradient_share_and_its_compensation(memory):
    """The share is 1, 1 - beta or n / N; dividing by it gives the gradient of weights that do not shrink."""
    share = {NoMemory: 1.0, EMA: 0.1, Queue: 60 / 130}[type(memory)]
    problem = Problem(rdm.objective("mmd", bandwidth=2.0), memory)
    plain = problem.population(7)
    step = plain.backward(problem.net, problem.noise, weights=problem.weights)
    assert step.shares["all"] == pytest.approx(share, rel=1e-12)
    small = [p.grad.clone() for p in problem.net.parameters()]
    problem.net.zero_grad()
    whole = problem.population(7)
    whole.normalize_gradient = True
    whole.backward(problem.net, problem.noise, weights=problem.weights)
    assert relative_error([p.grad * share for p in problem.net.parameters()], small) <= 1e-12


def test_state_survives_a_round_trip():
    for memory in (EMA(0.9), Queue(100)):
        problem = Problem(rdm.objective("frechet"), memory)
        first, second = problem.population(7), Problem(rdm.objective("frechet"), memory).population(None)
        first.backward(problem.net, problem.noise)
        second.restore(first.state())
        for before, after in zip(first.terms, second.terms, strict=True):
            assert torch.equal(before.past.value, after.past.value)
            assert type(before.past) is type(after.past)


def test_encoders_stay_frozen_and_in_evaluation_mode():
    encoder = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)).train()
    representation = Representation("encoder", encoder)
    net = nn.Linear(3, 6)
    population = Population(rdm.objective("frechet"), representation, torch.randn(40, 6), chunk=5)
    net.train()
    population.backward(net, torch.randn(20, 3))
    assert not encoder.training and all(p.grad is None and not p.requires_grad for p in encoder.parameters())
    assert net.weight.grad.norm() > 0


def test_wrong_input_is_named():
    items = torch.randn(40, 6)
    pixels = rdm.representation("pixels")
    with pytest.raises(InputError, match="chunk must be a whole number from 1"):
        Population(rdm.objective("frechet"), pixels, items, chunk=0)
    population = Population(rdm.objective("frechet"), pixels, items, chunk=4)
    net = nn.Linear(3, 6)

    def broken(noise):
        out = net(noise)
        return torch.where(torch.arange(len(out))[:, None] < 2, float("nan"), out)

    with pytest.raises(NonFiniteError, match="'pixels': NaN or infinity in 2 of 4 rows"):
        population.backward(broken, torch.randn(8, 3))
    with pytest.raises(InputError, match="without gradient"):
        population.backward(lambda z: net(z).detach(), torch.randn(8, 3))
    with pytest.raises(InputError, match=r"shape \(5,\) have 5 features under 'pixels', the reference's 6"):
        population.backward(nn.Linear(3, 5), torch.randn(8, 3))
    with pytest.raises(InputError, match="effective number of rows above 1"):
        population.backward(net, torch.randn(1, 3))
    with pytest.raises(InputError, match="at least one row of noise"):
        population.backward(net, torch.randn(0, 3))
    with pytest.raises(NonFiniteError, match="representation 'pixels': NaN or infinity in"):
        Population(rdm.objective("frechet"), pixels, items / 0)


def test_wrong_types_are_named(untyped):
    """What a hostile user gave in place of each argument: one line that says what is expected."""
    items, net, noise = torch.rand(40, 6), nn.Linear(3, 6), torch.randn(8, 3)
    build = {"objective": "energy", "battery": "pixels", "items": items}
    for change, message in (
        ({"objective": None}, "expected an Objective or the registered name of one; got NoneType"),
        ({"objective": type(rdm.objective("energy"))}, r"got the class Energy \(call it\)"),
        ({"objective": "energie"}, "unknown objective 'energie'; did you mean 'energy'"),
        ({"battery": None}, "expected a Representation or the registered name of one; got NoneType"),
        ({"battery": Battery}, r"got the class Battery \(call it\)"),
        ({"battery": []}, "at least one representation"),
        ({"battery": "pixel"}, "did you mean 'pixels'"),
        ({"memory": EMA}, r"got the class EMA \(call it\)"),
        ({"memory": 0.9}, "expected a Memory .* got float"),
        ({"balance": "uniforms"}, "unknown balance 'uniforms'; did you mean 'uniform'"),
        ({"balance": 0.9}, "expected a Balance .* got float"),
        ({"chunk": 2.0}, "chunk must be a whole number from 1 .* got 2.0"),
        ({"items": items.numpy()}, "reference items must be a tensor; got ndarray"),
        ({"items": rdm.dataset("digits")}, "got Dataset; give its images, or give a reference"),
        ({"items": None}, "reference items must be a tensor; got NoneType"),
        ({"condition": torch.zeros(3).long()}, "must have 40 rows, one an item; got 3"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            Population(**{**build, **change})
        assert "\n" not in str(caught.value)
    population = Population("energy", "pixels", items, chunk=4)
    for arguments, message in (
        ((None, noise), "generate must be called as generate\\(noise\\); got NoneType"),
        ((net, noise.numpy()), "noise must be a tensor, one row an item; got ndarray"),
        ((net, noise, torch.zeros(3).long()), "condition for the noise must have 8 rows, one an item; got 3"),
        ((lambda z: None, noise), r"generate\(\) must return a tensor of items; got NoneType"),
        ((lambda z: (net(z), z), noise), "must return a tensor of items; got tuple"),
        ((lambda z: net(z)[:-1], noise), r"one item a row of noise, 4; got shape \(3, 6\)"),
        ((lambda z: net(z).repeat(2, 1), noise), r"one item a row of noise, 4; got shape \(8, 6\)"),
    ):
        for call in (population.backward, population.warm_up):
            with pytest.raises(InputError, match=message):
                call(*arguments)
    with pytest.raises(InputError, match="generator must be Generator or None; got 0"):
        population.backward(net, noise, generator=0)
    for state in (None, [], {}):
        with pytest.raises(InputError, match="state must be dict; got|pasts is missing"):
            population.restore(state)
    for other in (Population("mmd", "pixels", items), Population("energy", "pixels", items, memory="ema"),
                  Population("energy", ["pixels", "identity"], items)):  # fmt: skip
        with pytest.raises(MismatchError, match="cannot be restored into one of {'encoders': \\['pixels'\\]"):
            population.restore(other.state())


def test_names_lists_and_modules_are_taken_where_objects_are():
    net, noise, items = nn.Linear(3, 6), torch.randn(20, 3), torch.rand(40, 6)
    encoder = nn.Linear(6, 2)
    named = Population("frechet", ["pixels", encoder], items, memory="ema")
    pixels, module = rdm.representation("pixels"), Representation("Linear", encoder)
    built = Population(rdm.objective("frechet"), Battery((pixels, module)), items, memory=EMA())
    assert named.backward(net, noise).distances == built.backward(net, noise).distances
    assert list(Population("energy", "untrained", torch.rand(40, 1, 8, 8)).battery.held_out) != []


class Spoilt(nn.Module):
    """A generator that is not the same again, or not row by row."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.calls, self.draw = kind, 0, torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 6))
        self.extra = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 6), n_power_iterations=1)
        with torch.no_grad():  # singular values 1 and .5, and a vector that is far from the first one yet
            self.extra.parametrizations.weight.original.copy_(torch.diag(torch.tensor([0.5, 1, 0.1, 0, 0, 0]))[:, :3])
        self.extra.parametrizations.weight[0]._u.copy_(torch.tensor([1, 0.02, 0, 0, 0, 0]))

    def forward(self, noise):
        self.calls += 1
        if self.kind == "own generator":
            noise = torch.randn(noise.shape, generator=self.draw)
        if self.kind == "one row":
            noise = noise + 3 * (torch.arange(len(noise))[:, None] == 1) * (self.calls > 4)
        if self.kind == "power iteration":
            return self.extra(noise)
        return self.layers(noise)


@pytest.mark.parametrize("kind", ["own generator", "one row", "power iteration"])
def test_other_items_in_the_second_pass_end_the_step(kind):
    torch.manual_seed(0)
    net = Spoilt(kind)
    net.layers.eval()
    population = Population("energy", "pixels", torch.rand(40, 6), chunk=5)
    with pytest.raises(InputError, match="gave other items in the second pass, .* for the same noise; .* GroupNorm"):
        population.backward(net, torch.randn(20, 3))
    population.chunk = None  # one pass: nothing is called again
    population.backward(net, torch.randn(20, 3))
    if kind == "power iteration":  # which ends: the passes agree then
        population.chunk = 5
        for _ in range(60):
            net(torch.randn(2, 3))
        population.backward(net, torch.randn(20, 3))


@pytest.mark.parametrize("memory", [None, "queue"])
def test_items_of_another_shape_are_named_by_it(memory):
    """An encoder that takes any size has other features of them than the reference's."""
    population = rdm.Population("energy", "pixels", torch.rand(20, 1, 8, 8), memory=memory)
    scale = torch.ones((), requires_grad=True)
    with pytest.raises(
        InputError, match=r"items of shape \(1, 7, 7\) have 49 features under 'pixels'.* 64; make items"
    ):
        population.loss(lambda noise: noise.sigmoid() * scale, torch.randn(6, 1, 7, 7))


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: lambda z: net(z)], ids=["module", "function"])
def test_batch_statistics_are_refused_where_they_depend_on_the_chunk(wrap):
    net, noise = Spoilt("batch norm"), torch.randn(20, 3)
    population = Population("energy", "pixels", torch.rand(40, 6), chunk=5)
    with pytest.raises(
        InputError, match=r"takes statistics of the rows of a chunk \(batch norm in train\(\)\); .* eval"
    ):
        population.backward(wrap(net), noise)
    net.eval()
    population.backward(wrap(net), noise)
    apart = nn.Sequential(nn.Linear(3, 12), nn.Unflatten(1, (3, 2, 2)), nn.InstanceNorm2d(3), nn.GroupNorm(1, 3))
    Population("energy", "pixels", torch.rand(40, 3, 2, 2), chunk=5).backward(apart, noise)


def test_rounding_between_the_passes_is_no_other_item():
    """In bfloat16 inside, with kernels chosen by whether a gradient is wanted; even where all items are alike."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 64), nn.GELU(), nn.Linear(64, 6))

    def generate(noise, spread):
        rounded = net(noise).bfloat16().float() if torch.is_grad_enabled() else net(noise)
        return 0.5 + spread * rounded

    for spread in (1.0, 0.0):
        population = Population("energy", "pixels", torch.rand(40, 6), chunk=5)
        population.backward(partial(generate, spread=spread), torch.randn(20, 3))
        with torch.autocast("cpu", torch.bfloat16):
            population.backward(partial(generate, spread=spread), torch.randn(20, 3))


def test_items_in_another_range_are_warned_of_once():
    images = torch.rand(40, 1, 8, 8)
    net = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)), nn.Tanh())
    noise = torch.randn(20, 3)
    for chunk in (None, 5):
        population = Population("energy", "random_convolutions", images, chunk=chunk)
        with pytest.warns(
            UserWarning, match=r"reach from -.* outside those of images .* map them, \(x \+ 1\) / 2 .*clamp=True"
        ):
            population.backward(net, noise)
        population.backward(net, noise)  # warnings are errors here
        Population("energy", "random_convolutions", images, chunk=chunk).backward(lambda z: (net(z) + 1) / 2, noise)


@memories
def test_a_population_pickles_in_the_middle_of_training(memory):
    problem = Problem(rdm.objective("sliced_wasserstein", projections=8), memory)
    problem.battery = Battery((rdm.representation("pca", components=3), *problem.battery.members))
    population = problem.population(7)
    population.backward(problem.net, problem.noise)
    steps = [p.backward(problem.net, problem.noise) for p in (pickle.loads(pickle.dumps(population)), population)]
    assert steps[0].distances == steps[1].distances and steps[0].shares == steps[1].shares


@memories
def test_a_population_moves_and_is_kept_by_the_usual_names(memory, tmp_path, untyped):
    """To a device, here one without numbers: what it holds goes there, and the state comes back from a checkpoint."""
    problem = Problem(rdm.objective("frechet"), memory, rdm.balance("gradient_norm"))
    first, second, gone = (problem.population(7) for _ in range(3))
    first.backward(problem.net, problem.noise)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    gone.load_state_dict(first.state_dict())
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.to("cpu") is second and second.to(torch.device("cpu")).state_dict().keys() == first.state().keys()
    steps = [each.backward(problem.net, problem.noise) for each in (first, second)]
    assert steps[0].distances == steps[1].distances and steps[0].coefficients == steps[1].coefficients
    for term in gone.to("meta").terms:
        held = [*tensors(term.target), *tensors(term.statistic), *tensors(term.past), term.row]
        assert held and all(each.is_meta for each in held)
    with pytest.raises(InputError, match=r"moved to a device, .to\('cuda'\); got torch.float16"):
        first.to(torch.float16)


def test_what_is_printed_is_a_line_a_member():
    """With dimension, input and the weights' hash; of modules and tensors no more than that."""
    items, encoder = torch.rand(40, 6), nn.Linear(6, 2)
    battery = Battery((rdm.representation("pixels"), rdm.representation("pca", components=3)), weights=(1, 0.5))
    assert repr(battery).splitlines() == [
        "Battery of",
        '  pixels: features of items "n ..."; no weights, weight 1',
        '  pca: features of items "n ..."; estimated on the reference, weight 0.5',
    ]
    population = Population("energy", ["pixels", encoder], items, chunk=8, memory="ema")
    head, pixels, last = repr(population).splitlines()
    assert head.startswith("Population by Energy(") and "EMA(decay=0.99" in head and "chunk 8" in head
    assert pixels == '  pixels: 6 features of items "n ..."; no weights, weight 1'
    (member,) = [r for r in population.battery.members if r.name == "Linear"]
    assert (
        last == f'  Linear: 2 features of items "n ..."; 14 parameters, fingerprint {member.fingerprint[:12]}, weight 1'
    )
    several = Population({"pixels": "energy", "Linear": "frechet"}, ["pixels", encoder], items)
    assert "several objectives" in repr(several) and repr(several).splitlines()[2].endswith("Frechet(correction=1)")
    assert repr(rdm.dataset("digits")).endswith("images=float32 [1297, 1, 8, 8], labels=int64 [1297], classes=10)")
    for each in (Real(items), rdm.Reference({}, {}, keys=torch.arange(3)), rdm.Streaming(None, ["fd"])):
        assert "\n" not in repr(each) and "tensor(" not in repr(each)


def test_weights_of_the_battery_scale_the_terms():
    net, noise, items = nn.Linear(3, 6), torch.randn(20, 3), torch.randn(40, 6)
    norms = []
    for weight in (1.0, 2.0):
        battery = Battery((rdm.representation("pixels"),), weights=(weight,))
        net.zero_grad()
        Population(rdm.objective("frechet"), battery, items, balance=Uniform()).backward(net, noise)
        norms.append(net.weight.grad.norm())
    assert norms[1] == pytest.approx(2 * norms[0].item())
