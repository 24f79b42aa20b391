"""Format 4: actions in a robot's own units, by the same bits on every backend, held and bounded in them."""

import dataclasses
import json
import re

import numpy as np
import pytest
from acting import every, observations
from forms import FORMS, form_policy
from hypothesis import given
from hypothesis import strategies as st
from policies import make_policy
from policy_bytes import check_same, refused, unpack
from policy_bytes import seal_any as seal

from sorl_fast import BadInput, Sampler
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.philox import normals
from sorl_fast.act.policy_file import describe, dumps, load, save
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.session import Status, rest
from sorl_fast.action_map import ActionMap, ranges_of

NAN, INF, HUGE = float("nan"), float("inf"), 3**900
LOW, HIGH = (-2.5, 0.1), (0.7, 3.3)
UNITS = ActionMap(LOW, HIGH)
# what can make a difference of a bit: sizes that are no power of two, far from 0, a constant, the bounds
MAPS = {
    "odd": (LOW, HIGH),
    "far": ((1000.1, -3e-5), (1000.7, 1e-5)),
    "wide": ((-(2.0**126), 2.0**-100), (2.0**126, 2.0**-99)),
    "constant": ((0.3, -1.0), (0.3, 1.0)),
    "zero": ((0.0, 0.0), (0.0, 1.0)),
}
each = pytest.mark.parametrize("pair", MAPS.values(), ids=MAPS)
NUMBERS = st.one_of(
    st.just(0.0), st.floats(2.0**-100, 2.0**126), st.floats(-(2.0**126), -(2.0**-100))
)


def mapped(policy=None, units=UNITS):
    policy = make_policy(normalise=True) if policy is None else policy
    return dataclasses.replace(policy, action_map=units)


# --- the map itself


@given(low=NUMBERS, high=NUMBERS, parts=st.lists(st.floats(-1, 1, width=32), min_size=1))
def test_what_comes_out_is_finite_within_the_range_and_in_order(low, high, parts):
    low, high = sorted((np.float32(low), np.float32(high)))
    units = ActionMap([low], [high])
    a = np.sort(np.array([-1, *parts, 1], np.float32))[:, None]
    y = units.to_units(a)
    assert y.dtype == np.float32
    assert np.isfinite(y).all()
    assert (y >= low).all()
    assert (y <= high).all()
    assert (np.diff(y[:, 0]) >= 0).all()
    assert y[0, 0] == low
    np.testing.assert_allclose(y[-1, 0], high, rtol=0, atol=2e-7 * max(abs(low), abs(high)))


@given(low=st.integers(-800, 800), size=st.integers(1, 800))
def test_it_undoes_what_it_did(low, size):
    units = ActionMap([low / 8], [(low + size) / 8])
    there = np.linspace(units.low.astype(float), units.high.astype(float), 7)
    a = units.from_units(there)
    np.testing.assert_allclose(a[:, 0], np.linspace(-1, 1, 7), atol=1e-9)
    np.testing.assert_allclose(units.to_units(a.astype(np.float32)), there, rtol=0, atol=4e-5)


def test_a_constant_component_is_0_and_comes_back_as_it_was():
    units = ActionMap([0.3], [0.3])
    np.testing.assert_array_equal(units.from_units(np.float32([[0.3]])), [[0]])
    np.testing.assert_array_equal(
        units.from_units(np.array([[0.3], [0.4], [0.2]])), [[0], [INF], [-INF]]
    )
    np.testing.assert_array_equal(
        units.to_units(np.float32([[-1], [0.2], [1]])), np.full((3, 1), np.float32(0.3))
    )


def test_its_numbers_cannot_be_written_to():
    numbers = np.array(LOW, np.float32)
    units = ActionMap(numbers, HIGH)
    numbers[0] = 99
    assert units.low[0] == np.float32(LOW[0])
    for array in (units.low, units.high):
        with pytest.raises(ValueError, match=r"writeable|WRITEABLE"):
            array.flags.writeable = True


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        ([0.0], [2.0**127], "action_map high[0] is"),
        ([-1.0, NAN], [1.0, 1.0], "action_map low[1] is nan, but must be 0 or of a magnitude"),
        ([-INF], [1.0], "action_map low[0] is -inf"),
        ([0.0], [2.0**-101], "action_map high[0] is"),
        ([HUGE], [1.0], "action_map low is"),
        ([1.0], [-1.0], "action_map low[0] is 1.0, but must be at most high[0] = -1.0"),
        ([0.0, 0.0], [1.0], "action_map high is of 1 components, but must be of 2"),
        (0.0, 1.0, "action_map low is of shape [], but must be of shape [A]"),
        ([], [], "action_map low is of shape [0]"),
        (["a"], [1.0], "action_map low is ['a']"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_map_is_refused(low, high, says):
    with pytest.raises(BadInput, match=re.escape(says)):
        ActionMap(low, high)


def test_ranges_are_read_from_text():
    assert ranges_of("data") is None
    assert ranges_of("-2,2") == [(-2, 2)]
    assert ranges_of("-2,2:0,0.08: 1e-3 , 1") == [(-2, 2), (0, 0.08), (1e-3, 1)]


@pytest.mark.parametrize(
    "text",
    ["", "2", "1,-1", "a,b", "-1,1,2", "-1,1:", "nan,1", "0,inf", "Data", "0,1e-40"],
    ids=repr,
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(BadInput, match=r"action_range is .* is no LOW,HIGH"):
        ranges_of(text)


# --- the file


@pytest.mark.parametrize(
    "choice", [None, PolicyChoice(steps=4, candidates=2)], ids=["plain", "choice"]
)
@pytest.mark.parametrize("form", [None, "direct"], ids=["shortcut", "form"])
def test_a_map_goes_round(choice, form, tmp_path):
    policy = make_policy() if form is None else form_policy(FORMS[form])
    if choice is not None and form is not None:
        choice = PolicyChoice(steps=1, candidates=2)
    policy = mapped(dataclasses.replace(policy, choice=choice))
    save(tmp_path / "p.safetensors", policy)
    again = load(tmp_path / "p.safetensors")
    check_same(again, policy)
    np.testing.assert_array_equal(again.action_map.low, np.float32(LOW))
    np.testing.assert_array_equal(again.action_map.high, np.float32(HIGH))
    assert again.choice == choice
    assert again.form == policy.form
    meta = unpack(dumps(policy))[1]
    assert meta["format"] == 4
    assert list(meta)[-5:] == ["form", "choice", "action_map", "config", "sha256"]
    shown = json.loads(json.dumps(describe(policy)))["action_map"]
    assert shown == {"low": np.float32(LOW).tolist(), "high": np.float32(HIGH).tolist()}


def test_without_a_map_the_files_stay_what_they_were():
    plain = make_policy()
    for policy, number in (
        (plain, 1),
        (form_policy(FORMS["euler"]), 2),
        (dataclasses.replace(plain, choice=PolicyChoice(steps=2)), 3),
    ):
        without = dataclasses.replace(mapped(policy), action_map=None)
        assert dumps(without) == dumps(policy)
        assert unpack(dumps(policy))[1]["format"] == number


VALUES = [None, 1, "x", [], {}, [1.0], [1.0, None], [1.0, "2"], [1.0, True], [0.0, NAN], [0.0, INF]]
VALUES += [
    [0.0, 0.0, 0.0],
    [0.0, 1e39],
    [0.0, HUGE],
    [0.0, 1e-40],
    [5.0, 5.0],
    [-5.0, -5.0],
    [[0.0], 1.0],
]


@pytest.mark.parametrize("name", ["low", "high"])
@pytest.mark.parametrize("value", VALUES, ids=lambda v: str(v)[:20])
def test_a_wrong_field_of_a_map_is_refused(name, value):
    if (name, value) in (("low", [-5.0, -5.0]), ("high", [5.0, 5.0])):
        return  # right
    header, meta, body = unpack(dumps(mapped()))
    changed = {"action_map": meta["action_map"] | {name: value}}
    refused(seal(header, meta | changed, body), "action_map ")


def test_a_field_that_is_missing_unknown_or_of_another_format_is_named():
    header, meta, body = unpack(dumps(mapped()))
    for value in (None, 1, [LOW, HIGH], "data"):
        refused(seal(header, meta | {"action_map": value}, body), "action_map is ")
    for name in ("low", "high"):
        rest = {k: v for k, v in meta["action_map"].items() if k != name}
        refused(seal(header, meta | {"action_map": rest}, body), f"action_map {name} is missing")
    more = meta["action_map"] | {"unit": "rad"}
    refused(
        seal(header, meta | {"action_map": more}, body),
        "action_map unit is rad, but must be absent",
    )
    for name in ("form", "choice", "action_map"):
        rest = {k: v for k, v in meta.items() if k != name}
        refused(seal(header, rest, body), f"{name} is missing")
    for number in (1, 2, 3):
        refused(seal(header, meta | {"format": number}, body), "but must be absent")
    refused(seal(header, meta | {"format": 5}, body), "chunk is missing")


def test_a_map_of_another_policy_is_refused():
    with pytest.raises(
        BadInput, match=r"action_map is of 3 components, but must be of act_dim = 2"
    ):
        mapped(units=ActionMap([0] * 3, [1] * 3))
    with pytest.raises(BadInput, match=r"action_map is .*but must be None, or an ActionMap"):
        mapped(units=(LOW, HIGH))
    for name, value in (("action_low", [-1.0, -1.5]), ("action_high", [1.0, 2.0])):
        with pytest.raises(
            BadInput, match=re.escape(f"{name}[1] is {value[1]}, but must be in [-1, 1]")
        ):
            mapped(make_policy(**{name: np.array(value)}))


# --- obeyed


@every
@each
def test_every_backend_returns_the_map_of_what_it_returned(backend, pair):
    """The bits of the definition's map of its own unmapped action; Q, candidate and status as before."""
    plain, units = make_policy(normalise=True), ActionMap(*pair)
    obs = observations(9)
    obs[4, 1] = NAN
    for steps, N, rule in (
        (1, 1, "argmax"),
        (4, 5, "argmax"),
        (2, 4, "medoid"),
        ("1/2,1/4,1/4", 3, "soft"),
    ):
        call = {"steps": steps, "candidates": N, "rule": rule, "seed": 7, "return_info": True}
        latent, before = Sampler(plain, backend).act(obs, **call)
        action, info = Sampler(mapped(plain, units), backend).act(obs, **call)
        good = ~np.isnan(obs).any(1)
        np.testing.assert_array_equal(action[good], units.to_units(latent[good]))
        np.testing.assert_array_equal(
            action[~good], np.broadcast_to(rest(mapped(plain, units)), (1, 2))
        )
        for x, y in zip(info, before, strict=True):
            np.testing.assert_array_equal(x, y)
        assert action.dtype == np.float32


@every
@pytest.mark.parametrize("form", ["euler", "direct noisy", "diffusion"])
def test_forms_are_mapped_too(backend, form):
    plain = form_policy(FORMS[form])
    latent = Sampler(plain, backend).act(observations(5), seed=3)
    action = Sampler(mapped(plain), backend).act(observations(5), seed=3)
    np.testing.assert_array_equal(action, UNITS.to_units(latent))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_other_precisions_are_mapped_too(precision):
    plain = make_policy(H=64)
    latent = Sampler(plain, "native", precision).act(observations(70), 4, 3, seed=3)
    action = Sampler(mapped(plain), "native", precision, threads=2).act(
        observations(70), 4, 3, seed=3
    )
    np.testing.assert_array_equal(action, UNITS.to_units(latent))


@every
def test_the_callers_noise_is_in_no_units(backend):
    noise = normals(1, 3, 4, 2)
    obs = observations(3)
    latent = Sampler(make_policy(), backend).act(obs, 2, 4, noise=noise)
    action = Sampler(mapped(make_policy()), backend).act(obs, 2, 4, noise=noise)
    np.testing.assert_array_equal(action, UNITS.to_units(latent))


@every
def test_what_is_held_is_in_the_robots_units(backend):
    sampler = Sampler(mapped(), backend)
    bad, good = np.full(3, NAN), np.array([0.1, -0.2, 0.3])
    at_first, info = sampler.act(bad, seed=0, return_info=True)
    np.testing.assert_array_equal(
        at_first, np.float32([0, 0.1])
    )  # 0, clipped to [-2.5, 0.7], [0.1, 3.3]
    assert info.status & Status.HELD
    acted = sampler.act(good, 4, seed=0)
    held, info = sampler.act(bad, 4, seed=1, return_info=True)
    np.testing.assert_array_equal(held, acted)
    assert info.status & Status.HELD
    np.testing.assert_array_equal(sampler.act(good, noise=np.full((1, 2), INF)), acted)
    sampler.reset()
    np.testing.assert_array_equal(sampler.act(bad, seed=2), at_first)


@every
def test_actions_at_the_bounds_are_those_of_the_range(backend):
    low, high = np.float32(LOW), np.float32(HIGH)
    for out, bound in ((-5.0, low), (5.0, high)):
        policy = mapped(make_policy(actor_out=out))
        action, info = Sampler(policy, backend).act(np.zeros(3), seed=0, return_info=True)
        assert info.status & Status.CLIPPED
        np.testing.assert_array_equal(action, policy.bounds[int(out > 0)])
        np.testing.assert_allclose(action, bound, rtol=0, atol=3e-7)
        assert (action >= low).all()
        assert (action <= high).all()


def test_tighter_bounds_of_the_networks_are_tighter_ones_of_the_robot():
    policy = mapped(make_policy(actor_out=5.0, action_high=np.array([0.0, 0.5])))
    np.testing.assert_array_equal(policy.bounds[1], UNITS.to_units(np.float32([0, 0.5])))
    for backend in ("numpy", "torch", "native"):
        np.testing.assert_array_equal(
            Sampler(policy, backend).act(np.zeros(3), seed=0), policy.bounds[1]
        )


def test_act_into_and_the_plain_call_of_native_map():
    policy = mapped()
    obs = observations(2)
    sampler = Sampler(policy, "native")
    out = np.zeros((2, 2), np.float32)
    sampler.act_into(obs, out, 4, 2, seed=5)
    expected = UNITS.to_units(Sampler(make_policy(normalise=True), "native").act(obs, 4, 2, seed=5))
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(sampler.act(obs, 4, 2, seed=5), expected)


def test_a_tensor_gives_a_tensor_in_units():
    torch = pytest.importorskip("torch")
    obs = torch.from_numpy(observations(4))
    action = Sampler(mapped(), "torch").act(obs, 4, seed=1)
    latent = Sampler(make_policy(normalise=True), "torch").act(obs, 4, seed=1)
    np.testing.assert_array_equal(action.numpy(), UNITS.to_units(latent.numpy()))


def test_the_definition_in_float64_is_mapped_in_float64():
    obs, noise = observations(3).astype(np.float64), normals(1, 3, 2, 2)
    plain = make_policy()
    latent = best_of_n(plain, obs, noise, 2, dtype=np.float64).action
    action = best_of_n(mapped(plain), obs, noise, 2, dtype=np.float64).action
    assert action.dtype == np.float64
    np.testing.assert_array_equal(action, UNITS.to_units(latent))
