"""The optimiser's kernels against the definition in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sorl_fast.kernels import adam

from sorl_fast.ops import reference

from .place import generator

HYPER = dict(lr=3e-3, b1=0.9, b2=0.999, eps=1e-8, clip_norm=1.0, tau=0.1)
NAMES = ("params", "first", "second", "targets")


def tensors(shapes, seed, parts=1, scale=1.0):
    """State and gradients of a network with these shapes, float32."""
    g = generator(seed)

    def group(spread=1.0):
        return [spread * torch.randn(s, generator=g) for s in shapes]

    state = {name: group() for name in NAMES}
    state["second"] = [x.square() for x in state["second"]]
    return state, [group(scale) for _ in range(parts)]


def run(step_of, state, grads, number, dtype, **hyper):
    """Return the norm and the state after one step, in float64."""
    state = {name: [x.to(dtype, copy=True) for x in group] for name, group in state.items()}
    grads = [[x.to(dtype, copy=True) for x in group] for group in grads]
    more = grads[1] if len(grads) > 1 else ()
    norm = step_of(
        *(state["params"], grads[0], state["first"], state["second"], state["targets"]),
        *(torch.tensor(number),),
        **HYPER | hyper,
        more_grads=more,
    )
    return norm.double(), {name: [x.double() for x in group] for name, group in state.items()}


def assert_equal_steps(state, grads, number, **hyper):
    norm, own = run(adam.adam_ema_step, state, grads, number, torch.float32, **hyper)
    expected_norm, expected = run(
        reference.adam_ema_step, state, grads, number, torch.float64, **hyper
    )
    torch.testing.assert_close(norm, expected_norm, rtol=1e-5, atol=1e-5)
    for name in NAMES:
        for x, y in zip(own[name], expected[name], strict=True):
            bound = 2e-6 * float(y.abs().amax()) if y.numel() else 0.0
            torch.testing.assert_close(x, y, rtol=0, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


MANY = [(i % 3 + 1, 5) for i in range(40)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "shapes",
    [[(1,)], [(5, 3), (3,)], [(2049,)], [(3000, 2), (7,), (2048,), ()], [(0,), (4,)], MANY],
    ids=["one", "two", "ragged", "mixed", "empty", "many"],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_equals_the_definition(shapes, parts, poisoned):
    state, grads = tensors(shapes, seed=1, parts=parts)
    assert_equal_steps(state, grads, number=3)


@pytest.mark.parametrize(
    "hyper",
    [
        dict(b1=0.0),
        dict(b2=0.0),
        dict(tau=1.0),
        dict(ema_before=True),
        dict(clip_norm=float("inf")),
        dict(clip_norm=1e9),
        dict(clip_norm=1e-3, eps=1e-2, lr=1.0),
    ],
    ids=lambda h: " ".join(h),
)
def test_hyperparameters(hyper):
    state, grads = tensors([(300, 9), (9,)], seed=2)
    assert_equal_steps(state, grads, number=1, **hyper)


@pytest.mark.parametrize("number", [1, 2, 1000, 1_000_000, 2**33])
def test_the_number_of_the_step_is_read_on_the_device(number):
    state, grads = tensors([(31, 9), (9,)], seed=3)
    assert_equal_steps(state, grads, number)


def test_programs_are_no_more_than_the_step_adds_up(monkeypatch):
    monkeypatch.setattr(adam, "MOST", 2)
    monkeypatch.setattr(adam, "processors", lambda device: 1000)
    state, grads = tensors([(5 * adam.BLOCK + 1,)], seed=11)
    assert_equal_steps(state, grads, number=3)


def test_a_zero_gradient_is_no_division_by_zero():
    state, grads = tensors([(31, 9), (9,)], seed=4, scale=0.0)
    assert_equal_steps(state, grads, number=2)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=6),
    number=st.integers(1, 10_000),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    parts=st.integers(1, 2),
)
def test_any_sizes(sizes, number, scale, parts):
    state, grads = tensors([(n,) for n in sizes], sum(sizes), parts, scale)
    assert_equal_steps(state, grads, number)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_gradients_do_what_the_definition_does(bad):
    state, grads = tensors([(2100,), (9,)], seed=5)
    grads[0][0][7] = bad
    norm, own = run(adam.adam_ema_step, state, grads, 2, torch.float32)
    expected_norm, expected = run(reference.adam_ema_step, state, grads, 2, torch.float32)
    assert torch.equal(norm.isnan(), expected_norm.isnan())
    for name in NAMES:
        for x, y in zip(own[name], expected[name], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_gradients_stay_as_they_are_and_may_be_views():
    state, _ = tensors([(31, 9)], seed=6)
    wide = torch.randn(9, 40, generator=generator(6))
    view = wide.t()[1:32]
    before = wide.clone()
    assert_equal_steps(state, [[view]], number=2)
    adam.adam_ema_step(
        *(state["params"], [view], state["first"], state["second"], state["targets"]),
        torch.tensor(1),
        **HYPER,
    )
    assert torch.equal(wide, before)


def test_steps_in_a_row_see_new_gradients_and_an_unaligned_one():
    state, grads = tensors([(2500,), (9,)], seed=7)
    flat = torch.randn(2510, generator=generator(7))
    sequence = [grads[0], [flat[1:2501], flat[2501:]], grads[0]]
    expected = {name: [x.double() for x in group] for name, group in state.items()}
    groups = [(s["params"], s["first"], s["second"], s["targets"]) for s in (state, expected)]
    for number, g in enumerate(sequence, 1):
        for (p, m, v, t), step_of in zip(
            groups, (adam.adam_ema_step, reference.adam_ema_step), strict=True
        ):
            own = [x.to(p[0].dtype, copy=True) for x in g]
            own = own if p[0].dtype == torch.float64 else g
            step_of(p, own, m, v, t, torch.tensor(number), **HYPER)
    for name in NAMES:
        for x, y in zip(state[name], expected[name], strict=True):
            torch.testing.assert_close(x.double(), y, rtol=0, atol=3e-6 * float(y.abs().amax()))


def test_who_holds_an_older_version_notices():
    state, grads = tensors([(4,)], seed=8)
    before = [state[name][0]._version for name in NAMES]
    adam.adam_ema_step(
        *(state["params"], grads[0], state["first"], state["second"], state["targets"]),
        torch.tensor(1),
        **HYPER,
    )
    assert all(state[n][0]._version > v for n, v in zip(NAMES, before, strict=True))


def test_a_table_goes_when_its_optimiser_does():
    adam._tables.clear()
    state, grads = tensors([(4,), (2,)], seed=9)
    for _ in range(2):
        adam.adam_ema_step(
            *(state["params"], grads[0], state["first"], state["second"], state["targets"]),
            torch.tensor(1),
            **HYPER,
        )
    assert len(adam._tables) == 1
    del state
    assert len(adam._tables) == 0


def test_moments_that_come_with_other_parameters_are_seen_as_another_set():
    state, grads = tensors([(4,), (2,)], seed=10)
    kept = []  # else the second ones may lie where the first did
    for number in (1, 2):
        before = [x.clone() for x in state["params"]]
        adam.adam_ema_step(
            *(state["params"], grads[0], state["first"], state["second"], state["targets"]),
            torch.tensor(number),
            **HYPER,
        )
        assert not any(torch.equal(x, y) for x, y in zip(state["params"], before, strict=True))
        kept.append(state["params"])
        state["params"] = [x.clone() for x in state["params"]]


def test_without_targets_there_is_no_ema():
    state, grads = tensors([(300, 9), (9,)], seed=2)
    state["targets"] = []
    _, own = run(adam.adam_ema_step, state, grads, 3, torch.float32)
    _, expected = run(reference.adam_ema_step, state, grads, 3, torch.float64)
    for name in ("params", "first", "second"):
        for x, y in zip(own[name], expected[name], strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=2e-6 * float(y.abs().amax()))
