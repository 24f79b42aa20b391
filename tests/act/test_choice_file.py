"""Format 3: a policy's own way to act goes round through a file, is obeyed, and is refused by name."""

import dataclasses
import json
import re

import numpy as np
import pytest
from acting import observations
from forms import FORMS, form_policy
from policies import make_policy
from policy_bytes import check_same, refused, unpack
from policy_bytes import seal_any as seal

from sorl_fast import BadInput, Sampler
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.policy_file import describe, dumps, load, loads, save
from sorl_fast.act.rules import ARGMAX, rule_of
from sorl_fast.act.schedule import schedule_of

HUGE, NAN = 3**900, float("nan")
CHOICES = {
    "medoid": {"rule": "medoid:1/2", "steps": 4, "candidates": 8},
    "argmax": {"rule": "argmax", "steps": 1, "candidates": 1},
    "sizes": {"rule": "nearest:1/4", "steps": [0.5, 0.25, 0.25], "candidates": 32},
    "many": {"rule": "soft:3/2", "steps": 16, "candidates": 4096},
    "thirds": {"rule": "better:1/3", "steps": [1 / 3, 2 / 3], "candidates": 2},
}
each = pytest.mark.parametrize("values", CHOICES.values(), ids=CHOICES)


def chosen(values=CHOICES["medoid"], policy=None):
    policy = make_policy(normalise=True) if policy is None else policy
    return dataclasses.replace(policy, choice=PolicyChoice(**values))


@each
def test_a_choice_goes_round(values, tmp_path):
    policy = chosen(values)
    save(tmp_path / "p.safetensors", policy)
    again = load(tmp_path / "p.safetensors")
    check_same(again, policy)
    assert again.choice == policy.choice
    assert again.digest == policy.digest != make_policy(normalise=True).digest
    meta = unpack(dumps(policy))[1]
    assert meta["format"] == 3
    assert meta["form"] is None
    assert meta["choice"] == values
    assert list(meta)[-4:] == ["form", "choice", "config", "sha256"]
    assert json.loads(json.dumps(describe(policy)))["choice"] == values


def test_a_form_goes_round_with_a_choice():
    policy = chosen(
        {"rule": "centre", "steps": 1, "candidates": 4}, form_policy(FORMS["direct"], E=0)
    )
    again = loads(dumps(policy))
    check_same(again, policy)
    assert again.form == FORMS["direct"]
    assert again.choice == policy.choice


def test_without_a_choice_the_files_stay_what_they_were():
    for policy, number in ((make_policy(), 1), (form_policy(FORMS["euler"]), 2)):
        with_one = chosen({"steps": policy.train_steps[-1]}, policy)
        assert unpack(dumps(with_one))[1]["format"] == 3
        without = dataclasses.replace(with_one, choice=None)
        assert dumps(without) == dumps(policy)
        assert unpack(dumps(policy))[1]["format"] == number


def test_sizes_that_nearly_sum_to_1_are_made_to():
    header, meta, body = unpack(dumps(chosen()))
    sizes = {"choice": meta["choice"] | {"steps": [0.5, 0.2500001, 0.25]}}
    policy = loads(seal(header, meta | sizes, body))
    assert abs(sum(policy.choice.steps.sizes) - 1) < 1e-15
    even = {"choice": meta["choice"] | {"steps": [0.25] * 4}}
    assert loads(seal(header, meta | even, body)).choice == chosen().choice


# --- obeyed


@pytest.mark.parametrize("backend", ["numpy", "torch", "native"])
@pytest.mark.parametrize("name", ["medoid", "sizes", "thirds"])
def test_a_call_that_does_not_say_acts_by_it(backend, name):
    values, obs = CHOICES[name], observations(3)
    sampler, plain = Sampler(chosen(values), backend), Sampler(make_policy(normalise=True), backend)
    expected = plain.act(obs, **values, seed=1, return_info=True)
    found = sampler.act(obs, seed=1, return_info=True)
    np.testing.assert_array_equal(found[0], expected[0])
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_array_equal(a, b)
    for other in ({"steps": 1}, {"candidates": 3}, {"rule": "argmax"}):
        np.testing.assert_array_equal(
            sampler.act(obs, **other, seed=1), plain.act(obs, **(values | other), seed=1)
        )


def test_without_one_the_defaults_are_the_papers():
    own = make_policy().own
    assert (own.rule, own.steps, own.candidates) == (ARGMAX, schedule_of(1), 1)
    assert form_policy(FORMS["euler"]).own.steps.key == 3


@pytest.mark.parametrize(
    "values",
    [CHOICES["medoid"], CHOICES["sizes"], {"steps": 16}, {"steps": 4, "candidates": 8}],
    ids=["rule", "sizes", "M", "argmax"],
)
def test_the_fastest_backend_acts_so(values, monkeypatch):
    monkeypatch.delenv("SORL_BACKEND", raising=False)
    sampler = Sampler(chosen(values))
    assert sampler.backend == "native"
    action = sampler.act(observations(2), seed=3)
    twin = Sampler(chosen(values), "numpy").act(observations(2), seed=3)
    np.testing.assert_allclose(action, twin, rtol=0, atol=1e-5)
    out = np.zeros_like(action)
    sampler.act_into(observations(2), out, seed=3)
    np.testing.assert_array_equal(out, action)


# --- refused

NUMBER = [None, "4", True, 1.0, 0, -1, HUGE, [4], {}]
SIZES = [[], [1.0], [0.5], [0.5, 0.25], [0.5, 0.5, 0.0], [1.5, -0.5], [0.5, "0.5"], [0.5, None]]
SIZES += [[0.5, True], [0.5, NAN], [[0.5], 0.5], [0.1] * 11, [1 / 32] * 30 + [1 / 16], [0.5, HUGE]]
WRONG = {
    "rule": [None, 1, "", "best", "medoid", "medoid:0.5", "medoid:2/4", "medoid:2", "argmax:1", []],
    "steps": [*NUMBER[:4], *NUMBER[4:7], {}, "1/2,1/4,1/4", 17, 2049, *SIZES],
    "candidates": [*NUMBER, 4097],
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{n}={str(v)[:20]}" for n, v in CASES])
def test_a_wrong_field_of_a_choice_is_refused(name, value):
    header, meta, body = unpack(dumps(chosen()))
    data = seal(header, meta | {"choice": meta["choice"] | {name: value}}, body)
    refused(data, name if name == "steps" else f"choice {name}")


@pytest.mark.parametrize("value", [None, 1, "medoid", [], {}], ids=str)
def test_what_is_no_choice_is_refused(value):
    header, meta, body = unpack(dumps(chosen()))
    refused(seal(header, meta | {"choice": value}, body), "choice ")


def test_a_field_that_is_missing_unknown_or_of_another_format_is_named():
    header, meta, body = unpack(dumps(chosen()))
    for name in meta["choice"]:
        rest = {k: v for k, v in meta["choice"].items() if k != name}
        refused(seal(header, meta | {"choice": rest}, body), f"choice {name} is missing")
    more = meta["choice"] | {"colour": 1}
    refused(seal(header, meta | {"choice": more}, body), "choice colour is 1, but must be absent")
    for name in ("form", "choice"):
        rest = {k: v for k, v in meta.items() if k != name}
        refused(seal(header, rest, body), f"{name} is missing")
    refused(seal(header, meta | {"format": 1}, body), "form is None, but must be absent")
    refused(seal(header, meta | {"format": 2}, body), "choice is {'rule'")
    rest = {k: v for k, v in meta.items() if k != "choice"}
    refused(seal(header, rest | {"format": 2}, body), "form is None")


def test_a_choice_that_the_policy_cannot_make_is_refused():
    for policy, values, says in (
        (
            make_policy(m_disc=2),
            {"steps": 5},
            "steps is 5, but choice: the policy was trained for 1, 2",
        ),
        (
            form_policy(FORMS["euler"]),
            {"steps": 4},
            "steps is 4, but choice: the policy acts with 3",
        ),
        (
            form_policy(FORMS["direct"], E=0),
            {"steps": 1, "candidates": 2},
            "candidates is 2, but this policy has no critic",
        ),
    ):
        with pytest.raises(BadInput, match=re.escape(says)):
            chosen(values, policy)
    with pytest.raises(BadInput, match="choice is 'medoid', but must be None, or a PolicyChoice"):
        dataclasses.replace(make_policy(), choice="medoid")
    with pytest.raises(BadInput, match="choice candidates is 0"):
        PolicyChoice(steps=1, candidates=0)
    with pytest.raises(BadInput, match="choice rule is 'best'"):
        PolicyChoice(steps=1, rule="best")
    with pytest.raises(BadInput, match="choice steps is 0"):
        PolicyChoice(steps=0)


def test_a_choice_is_told_in_a_line():
    assert str(PolicyChoice(steps="1/2,1/4,1/4")) == "M = 1/2,1/4,1/4, N = 1"
    made = PolicyChoice(steps=4, candidates=8, rule=rule_of("medoid"))
    assert str(made) == "M = 4, N = 8, medoid:1/2"
