"""What every registered objective must do; registering one tests it."""

import dataclasses
import inspect
import pickle

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rdm
from rdm.errors import InputError, NonFiniteError
from rdm.matching.real import Real
from tests.conftest import objective_cases
from tests.distributions import Pair, pairs

cases = pytest.mark.parametrize("name, example", objective_cases())


def value(name: str, example: dict, pair: Pair, seed: int = 0) -> torch.Tensor:
    x, a, y, b = pair
    g = torch.Generator().manual_seed(seed)
    return rdm.distance(name, x, y, weights=a, reference_weights=b, generator=g, **example)


@cases
@given(pair=pairs())
def test_sign_and_identity(name, example, pair):
    objective = rdm.objective(name, **example)
    if objective.traits.nonnegative:
        assert value(name, example, pair) >= 0
    if objective.traits.zero_at_identity:
        same = pair._replace(y=pair.x, b=pair.a)
        tolerance = 1e-7 if example.get("root") else 1e-12
        assert abs(value(name, example, same)) <= tolerance * (1 + pair.x.square().sum())


@cases
@given(pair=pairs())
def test_symmetry_and_translation(name, example, pair):
    objective = rdm.objective(name, **example)
    straight = value(name, example, pair)
    x, a, y, b = pair
    if objective.traits.symmetric:
        assert torch.isclose(straight, value(name, example, Pair(y, b, x, a)), rtol=1e-9, atol=1e-11)
    if objective.traits.translation_invariant:
        assert torch.isclose(straight, value(name, example, Pair(x + 3, a, y + 3, b)), rtol=1e-9, atol=1e-11)


@cases
@given(pair=pairs())
def test_order_of_rows_and_scale_of_weights_do_not_matter(name, example, pair):
    x, a, y, b = pair
    y_, b_ = (y.flip(0), b.flip(0)) if rdm.objective(name, **example).traits.exhaustive else (y, b)
    moved = Pair(x.flip(0), 7 * a.flip(0), y_, b_ / 3)
    assert torch.isclose(value(name, example, pair), value(name, example, moved), rtol=1e-9, atol=1e-11)


@cases
@given(pair=pairs())
def test_a_weight_of_zero_is_an_absent_row(name, example, pair):
    x, a, y, b = pair
    padded = Pair(
        torch.cat([x, x[:2] + 1]), torch.cat([a, a[:2] * 0]), torch.cat([y, y[:1]]), torch.cat([b, b[:1] * 0])
    )
    assert torch.isclose(value(name, example, pair), value(name, example, padded), rtol=1e-9, atol=1e-11)


@cases
@given(pair=pairs())
def test_a_doubled_weight_is_a_duplicated_row(name, example, pair):
    objective = rdm.objective(name, **example)
    x, a, y, b = pair
    doubled = pair._replace(a=torch.cat([2 * a[:2], a[2:]]))
    repeated = pair._replace(x=torch.cat([x[:2], x]), a=torch.cat([a[:2], a]))
    same = torch.isclose(value(name, example, doubled), value(name, example, repeated), rtol=1e-9, atol=1e-11)
    # an estimator that corrects for n takes a duplicate for an independent draw; both must be seen
    assert bool(same) == objective.traits.plug_in


@cases
@given(pair=pairs(most=9))  # every entry is moved twice
def test_gradient_against_finite_differences(name, example, pair):
    if not rdm.objective(name, **example).traits.conservative:
        return  # the member's own tests compare its gradient with its definition
    x = pair.x.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rows: value(name, example, pair._replace(x=rows)), (x,), atol=1e-5, rtol=1e-4
    )


@cases
@given(pair=pairs(most=9), equal=st.booleans())
def test_weights_learn_or_are_refused(name, example, pair, equal):
    """The gradient in the generated rows' weights against finite differences, and that of the rows beside it."""
    if equal and len(pair.x) == len(pair.y):  # the same levels on both sides: a kink of what sorts or transports
        pair = pair._replace(x=pair.x[1:], a=pair.a[1:])
    a = (torch.ones_like(pair.a) if equal else pair.a).requires_grad_()
    if not rdm.objective(name, **example).traits.learned_weights:
        with pytest.raises(InputError, match="weights must not require grad.*learns no weights"):
            value(name, example, pair._replace(a=a))
        return
    x = pair.x.clone().requires_grad_()
    of_rows, of_weights = torch.autograd.grad(value(name, example, pair._replace(x=x, a=a)), (x, a))
    (alone,) = torch.autograd.grad(value(name, example, pair._replace(x=x, a=a.detach())), x)
    torch.testing.assert_close(of_rows, alone, rtol=1e-9, atol=1e-12)
    assert abs(a.detach() @ of_weights) <= 1e-9 * (1 + of_weights.abs().max())  # the weights' scale does not count
    checked = lambda w: value(name, example, pair._replace(a=w))  # noqa: E731
    assert torch.autograd.gradcheck(checked, (a,), atol=1e-5, rtol=1e-4, fast_mode=True)


@cases
def test_a_gradient_that_would_be_dropped_is_refused(name, example):
    x, y, w = torch.randn(9, 3), torch.randn(8, 3), torch.ones(8)
    learned, other = y.clone().requires_grad_(), x.clone().requires_grad_()
    symmetric = rdm.objective(name, **example).traits.symmetric
    for rows, reference, options, message in (
        (x, learned, {}, r"y \(reference\) must not require grad.*give the generated rows first"),
        (other, learned, {}, r"distance\(y, x.detach\(\)\)" if symmetric else "detach it$"),
        (other, y, {"reference_weights": w.clone().requires_grad_()}, "reference_weights must not require grad"),
    ):
        with pytest.raises(InputError, match=message):
            rdm.distance(name, rows, reference, **options, **example)
    with torch.no_grad():  # nothing is asked for
        assert rdm.distance(name, other, learned, **example) == rdm.distance(name, x, y, **example)
    population = rdm.Population(rdm.objective(name, **example), rdm.representation("pixels"), y)
    with pytest.raises(InputError, match="weights of the population must not require grad.*rdm.distance"):
        population.backward(torch.nn.Linear(3, 3), x, weights=torch.ones(9, requires_grad=True))


@cases
def test_float32_and_half_precision_stay_near_float64(name, example):
    g = torch.Generator().manual_seed(3)
    x, y = (
        torch.randn(60, 5, generator=g, dtype=torch.float64) * 1.3,
        torch.randn(80, 5, generator=g, dtype=torch.float64),
    )
    exact = rdm.distance(name, x, y, **example)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)):
        low = x.to(dtype).requires_grad_()
        got = rdm.distance(name, low, y.to(dtype), **example)
        assert abs(got - exact) <= bound * (1 + abs(exact)), dtype
        (gradient,) = torch.autograd.grad(got, low)
        assert gradient.dtype == dtype and torch.isfinite(gradient).all()


@cases
def test_far_off_centre_in_float32(name, example):
    g = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, 5, generator=g) * 0.1 + 100 for n in (60, 80))
    exact = rdm.distance(name, x.double(), y.double(), **example)
    assert torch.isclose(rdm.distance(name, x, y, **example), exact, rtol=2e-5, atol=1e-6)


@cases
@pytest.mark.parametrize("degenerate", ["identical", "constant", "rank-deficient", "one row", "constant reference"])
def test_degenerate_input_is_finite_or_a_named_error(name, example, degenerate):
    g = torch.Generator().manual_seed(5)
    x, y = torch.randn(12, 6, generator=g), torch.randn(15, 6, generator=g)
    if degenerate == "identical":
        x = y.clone()
    elif degenerate == "constant":
        x = torch.ones(12, 6)
    elif degenerate == "rank-deficient":
        x, y = x[:, :2] @ torch.randn(2, 6, generator=g), y[:, :3] @ torch.randn(3, 6, generator=g)
    elif degenerate == "one row":
        x = x[:1]
    else:
        y = torch.ones(15, 6)
    x.requires_grad_()
    try:
        got = rdm.distance(name, x, y, **example)
    except InputError as error:
        assert degenerate in ("one row", "constant reference"), error
        return
    (gradient,) = torch.autograd.grad(got, x)
    assert torch.isfinite(got) and torch.isfinite(gradient).all()


@cases
def test_particles_flow_to_the_reference_as_another_objective_judges(name, example):
    g = torch.Generator().manual_seed(1)
    y = torch.randn(64, 3, generator=g, dtype=torch.float64)
    x = (torch.randn(64, 3, generator=g, dtype=torch.float64) * 0.5 + 1.5).requires_grad_()
    judge = ("sliced_wasserstein", {}) if name != "sliced_wasserstein" else ("frechet", {})

    def judged() -> float:
        return float(rdm.distance(judge[0], x.detach(), y, **judge[1]))

    before, first = judged(), float(rdm.distance(name, x.detach(), y, **example))
    optimizer = torch.optim.Adam([x], 0.05)
    bounded = rdm.objective(name, **example).traits.bounded_below
    best = before
    for step in range(300):
        optimizer.zero_grad()
        rdm.distance(name, x, y, generator=g, **example).backward()
        optimizer.step()
        if not bounded and step % 5 == 0:  # leads there, and may run off later
            best = min(best, judged())
    assert (judged() if bounded else best) < before / 10
    assert float(rdm.distance(name, x.detach(), y, **example)) < first


@cases
def test_a_row_that_runs_off_pays_where_the_value_is_bounded_below(name, example):
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(12, 3, generator=g, dtype=torch.float64) + shift for shift in (0.0, 1.0))
    lowest = 0.0
    for far in (-1e10, 1e10):
        rows = x.clone()
        rows[0, 0] = far
        lowest = min(lowest, float(rdm.distance(name, rows, y, **example)))
    assert (lowest > -100) == rdm.objective(name, **example).traits.bounded_below


@cases
def test_same_generator_same_value(name, example):
    objective = rdm.objective(name, **example)
    g = torch.Generator().manual_seed(2)
    pair = Pair(torch.randn(9, 3, generator=g), torch.ones(9), torch.randn(8, 3, generator=g) + 1, torch.ones(8))
    assert value(name, example, pair, seed=1) == value(name, example, pair, seed=1)
    assert (value(name, example, pair, seed=1) != value(name, example, pair, seed=2)) == objective.traits.randomized


@cases
def test_targets_pickle_before_and_after_they_are_used(name, example):
    x, y = torch.randn(11, 4, dtype=torch.float64), torch.randn(14, 4, dtype=torch.float64)
    bound = objective, statistic, target = (
        rdm.objective(name, **example),
        *rdm.objective(name, **example).bind(Real.of(y)),
    )
    fresh = pickle.dumps(bound)
    expected = objective.distance(statistic.measure(x, torch.ones(11, dtype=torch.float64)), target)
    for copied in (fresh, pickle.dumps(bound)):
        objective, statistic, target = pickle.loads(copied)
        got = objective.distance(statistic.measure(x, torch.ones(11, dtype=torch.float64)), target)
        assert torch.equal(got, expected)


@cases
def test_wrong_input_is_refused_in_words(name, example):
    x, y = torch.randn(5, 3), torch.randn(6, 3)
    nan = x.clone()
    nan[1:3, 0] = float("nan")
    refused = [
        (x[:0], y, {}, "empty"),
        (x[:, 0], y, {}, r"shape \(n, d\)"),
        (x, torch.randn(6, 4), {}, "dimension"),
        (nan, y, {}, "2 of 5 rows"),
        (x, y, {"weights": torch.tensor([1.0, -1, 1, 1, 1])}, "negative"),
        (x, y, {"weights": torch.zeros(5)}, "all zero"),
        (x, y, {"reference_weights": torch.ones(5)}, r"shape \(6,\)"),
        (x.long(), y, {}, "floating point"),
    ]
    for rows, reference, options, message in refused:
        with pytest.raises(ValueError, match=message):
            rdm.distance(name, rows, reference, **options, **example)
    with pytest.raises(NonFiniteError, match="reference"):
        rdm.distance(name, y, nan, **example)


@pytest.mark.parametrize("name, options", [
    ("sliced_wasserstein", {}), ("sliced_wasserstein", {"p": 3, "root": True}),
    ("max_sliced_wasserstein", {"p": 1})])  # fmt: skip
def test_sliced_costs_of_huge_float32_features_are_those_of_float64(name, options):
    x, y = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) * 2.0**90 for n in (9, 8))
    x.requires_grad_()
    value = rdm.distance(name, x, y, **options)
    exact = rdm.distance(name, x.detach().double(), y.double(), **options)
    assert torch.isclose(value.detach(), exact, rtol=1e-4, atol=0) and torch.autograd.grad(value, x)[0].isfinite().all()
    with pytest.raises(InputError, match="leave float64"):
        rdm.distance(name, x, y, p=64)


def test_what_no_number_holds_is_said():
    x, y = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) * 1e19 for n in (9, 8))
    value = rdm.distance("kid", x.requires_grad_(), y)
    with pytest.raises(NonFiniteError, match=r"a gradient of .*e\+9\d is beyond torch.float32; scale the features"):
        value.backward()
    with pytest.raises(NonFiniteError, match="x .generated.: values beyond 1e\\+50"):
        rdm.distance("mmd", x.detach().double() * 1e200, y)


def test_what_is_no_dense_tensor_of_numbers_is_one_line(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the tests' own checker of annotations
    x, y = torch.randn(5, 3), torch.randn(6, 3)
    wrong = [
        {"y": y.numpy()}, {"x": x.numpy()}, {"x": x.to_sparse()}, {"y": y.to("meta")}, {"y": y.to(torch.float8_e4m3fn)},
        {"x": torch.nested.nested_tensor([x[:2], x], layout=torch.jagged)}, {"generator": 0},
        {"weights": torch.full((5,), 1e308, dtype=torch.float64)},
        {"weights": torch.ones(5, dtype=torch.complex64)}, {"weights": "x"}, {"weights": {}},
        {"reference_weights": torch.ones(6).to_sparse()},
    ]  # fmt: skip
    for changed in wrong:
        with pytest.raises(InputError) as caught:
            rdm.distance("energy", **{"x": x, "y": y, **changed})
        assert next(iter(changed)).split("_")[-1] in str(caught.value) and "\n" not in str(caught.value)


@cases
def test_the_inputs_are_left_alone(name, example):
    x, y = torch.randn(9, 3, requires_grad=True), torch.randn(8, 3)
    copies = x.detach().clone(), y.clone()
    state = torch.get_rng_state()
    rdm.distance(name, x, y, **example).backward()
    assert torch.equal(x, copies[0]) and torch.equal(y, copies[1])
    assert torch.equal(state, torch.get_rng_state())


HYPERPARAMETERS = [
    pytest.param(name, field.name, id=f"{name}-{field.name}")
    for name in rdm.names("objectives")
    for field in dataclasses.fields(rdm.registry.objectives[name].build)
    if rdm.registry.objectives[name].examples
]


@pytest.mark.parametrize("name, parameter", HYPERPARAMETERS)
def test_a_wrong_hyperparameter_is_refused_by_its_name(name, parameter):
    """Of any type, at either edge of a number's range: refused in one line that names it, or taken and kept."""
    example = next(e for e in rdm.registry.objectives[name].examples if parameter in e or parameter != "objective")
    for wrong in (object(), float("nan"), -float("inf"), 1j, -1e300, 1e-300, torch.ones(2), {}, [], [[1.0]], b"x", len):
        with pytest.raises(InputError, match=rf"^{name}: {parameter} must be .*; got ") as caught:
            rdm.objective(name, **{**example, parameter: wrong})
        assert "\n" not in str(caught.value)
    for value in (None, True, "x", "1", 2.5, 10**12, 1e300, float("inf"), [1.0, None], (True,), -(2**80)):
        try:
            built = rdm.objective(name, **{**example, parameter: value})
        except InputError as error:  # where fields must agree, the line names all of them
            assert parameter in str(error) or value in ("x", "1"), error
        else:
            assert getattr(built, parameter) is value


@pytest.mark.parametrize("name, wrong", [
    ("sliced_wasserstein", {"root": "x"}), ("sliced_wasserstein", {"p": float("inf")}),
    ("sliced_wasserstein", {"p": 1e300}), ("max_sliced_wasserstein", {"p": float("nan")}),
    ("sinkhorn", {"debias": "x"}), ("sinkhorn", {"blur": "0.1"}), ("sinkhorn", {"diameter": 1e300}),
    ("frechet", {"correction": 2.5}), ("frechet", {"correction": True}), ("sliced_energy", {"projections": 2.5}),
    ("mmd", {"bandwidth": 1e-320}), ("mmd", {"bandwidth": True}), ("mmd_nystrom", {"seed": "x"}),
    ("mmd_nystrom", {"landmarks": 10**12}), ("mmd_rff", {"orthogonal": "x"}), ("mmd_rff", {"features": "128"}),
    ("drifting", {"temperatures": 0.05}), ("resampled", {"objective": "mmd", "rows": 2.5}),
])  # fmt: skip
def test_hyperparameters_that_were_once_taken(name, wrong):
    with pytest.raises(InputError, match=list(wrong)[-1] + " must be"):
        rdm.objective(name, **wrong)


@pytest.mark.parametrize("name", rdm.names("objectives"))
def test_is_a_frozen_dataclass_with_a_complete_docstring(name):
    build = rdm.registry.objectives[name].build
    assert dataclasses.is_dataclass(build) and build.__dataclass_params__.frozen
    text = inspect.getdoc(build)
    for part in (".. math::", "Source:", "Shapes:", "Units:", "Cost:", "Raises:", ">>> "):
        assert part in text, f"{name}: the docstring lacks {part!r}"
    order = [text.index(part) for part in (".. math::", "Source:", "Shapes:", "Units:", "Cost:", "Raises:", ">>> ")]
    assert order == sorted(order)
