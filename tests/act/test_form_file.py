"""Format 2: forms go round through a file, and every damage of one is refused by name."""

import json

import numpy as np
import pytest
from forms import FORMS, STEPS, form_policy
from policies import make_policy
from policy_bytes import check_same, unpack
from policy_bytes import refused as refused_by_name
from policy_bytes import seal_any as seal

from sorl_fast import BadInput, Sampler
from sorl_fast.act.form import Diffusion, Direct, Euler, Tanh
from sorl_fast.act.policy_file import Policy, describe, dumps, load, loads, save

NAN, INF, HUGE = float("nan"), float("inf"), 3**900
every = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@every
@pytest.mark.parametrize("E", [0, 1, 3], ids=lambda e: f"E{e}")
def test_a_form_goes_round(form, E, tmp_path):
    policy = form_policy(form, O=4, A=3, H=5, depth=3, E=E, normalise=True)
    save(tmp_path / "p.safetensors", policy)
    again = load(tmp_path / "p.safetensors")
    check_same(again, policy)
    assert again.form == form
    assert again.train_steps == form.steps
    assert unpack(dumps(policy))[1]["format"] == 2
    text = json.dumps(describe(policy))
    assert f'"kind": "{form.kind}"' in text
    assert f'"acts_with": "M = {", ".join(map(str, form.steps))}, no other"' in text
    assert again.digest == policy.digest
    obs = np.linspace(-1, 1, 4)
    np.testing.assert_array_equal(Sampler(again).act(obs, seed=1), Sampler(policy).act(obs, seed=1))


def test_without_a_form_the_file_stays_what_it_was():
    _, meta, _ = unpack(dumps(make_policy()))
    assert meta["format"] == 1
    assert "form" not in meta


def test_numbers_are_rounded_to_float32_once():
    form = Direct(reads_noise=False, temperature=0.1, noise_scale=1 / 3)
    assert form.temperature == np.float32(0.1)
    assert loads(dumps(form_policy(form))).form == form


# --- what is refused


def refused(data, message):
    assert "but must be" in refused_by_name(data, message)


NUMBER = [None, "1", True, [1.0], NAN, INF, -INF, 1e39, HUGE, {}]
COUNT = [None, "1", True, 1.0, -1, HUGE]
LIST = [None, 1.0, "x", {}, [], [0.5] * 4, [0.5] * 6, [[0.5]] * 5]
LIST += [[0.5, 0.5, x, 0.5, 0.5] for x in (None, "1", True, [1.0], NAN, INF, 1e39, HUGE)]
WRONG = {
    "euler": {"counts": [None, 1, "3", [], [0], [-1], [3, 3], [10, 3], [1025], [1.0], [True], [None],
                         [*range(1, 13)], [HUGE]]},
    "direct": {
        "reads_noise": [None, 0, 1, "true", []],
        "temperature": [*NUMBER, -0.5], "noise_scale": [*NUMBER, -0.5],
        "noise_clip": [*NUMBER[1:], 0, 0.0, 1e-60, -1.0],
    },
    "diffusion": {
        "times": LIST, "z_scales": LIST, "v_scales": LIST,
        "noise_scales": [*LIST, [0.5, -0.5, 0.5, 0.5, 0.5]],
        "clip": [*NUMBER[1:], 0, -1.0], "temperature": [*NUMBER, -0.5],
        "blocks": [*COUNT, 1, 65], "frequencies": [*COUNT, 1, 2**31],
    },
    "residual": {"blocks": [*COUNT, 0, 1, 3, 65], "frequencies": [*COUNT, 0, 2, 4, 2**31 - 1]},
}  # fmt: skip
WRONG["tanh"] = WRONG["direct"]
CASES = [(k, n, v) for k, names in WRONG.items() for n, values in names.items() for v in values]


@pytest.mark.parametrize(
    ("kind", "name", "value"), CASES, ids=[f"{k}-{n}={str(v)[:24]}" for k, n, v in CASES]
)
def test_a_wrong_field_of_a_form_is_refused(kind, name, value):
    header, meta, body = unpack(dumps(form_policy(FORMS[kind])))
    data = seal(header, meta | {"form": meta["form"] | {name: value}}, body)
    # another size of network is a matter of the tensors
    sizes = kind == "residual" and type(value) is int
    refused(
        data, "" if sizes or name == "times" else f"form {'' if 'blocks' in name else name[:4]}"
    )


@every
def test_a_field_that_is_missing_or_unknown_is_named(form):
    header, meta, body = unpack(dumps(form_policy(form)))
    for name in meta["form"]:
        rest = {k: v for k, v in meta["form"].items() if k != name}
        says = "form kind is None" if name == "kind" else f"form {name} is missing"
        refused(seal(header, meta | {"form": rest}, body), says)
        renamed = rest | {name.upper(): meta["form"][name]}
        refused(seal(header, meta | {"form": renamed}, body), "form ")
    more = meta["form"] | {"colour": 1}
    refused(seal(header, meta | {"form": more}, body), "form colour is 1, but must be absent")


@pytest.mark.parametrize(
    "value", [None, 1, "direct", [], {}, {"kind": "sac"}, {"kind": ["tanh"]}, {"kind": 1}], ids=str
)
def test_what_is_no_form_is_refused(value):
    header, meta, body = unpack(dumps(form_policy(FORMS["direct"])))
    refused(seal(header, meta | {"form": value}, body), "form")


def test_format_and_form_belong_together():
    header, meta, body = unpack(dumps(form_policy(FORMS["direct"])))
    refused(seal(header, meta | {"format": 1}, body), "form is {'kind': 'direct'")
    refused(seal(header, meta | {"format": 3}, body), "choice is missing")
    refused(seal(header, meta | {"format": 99}, body), "format is 99, but must be 1, 2, 3, 4, 5")
    without = {k: v for k, v in meta.items() if k != "form"}
    refused(seal(header, without, body), "form is missing")
    header, meta, body = unpack(dumps(make_policy()))
    refused(seal(header, meta | {"format": 2}, body), "form is missing")


@pytest.mark.parametrize("name", ["m_disc", "m_btt"])
def test_a_form_has_its_own_step_counts(name):
    header, meta, body = unpack(dumps(form_policy(FORMS["euler"])))
    refused(
        seal(header, meta | {"m_disc": 2, name: 2}, body),
        "is 2, but must be 1 where there is a form",
    )


@every
def test_tensors_must_be_the_forms(form):
    policy = form_policy(form)
    header, meta, body = unpack(dumps(policy))
    refused(seal(header, meta | {"ensemble": 0}, body), "tensors is ")
    refused(seal(header, meta | {"ensemble": 3}, body), "critic/0/")
    for name in header:
        rest = {k: v for k, v in header.items() if k != name}
        refused(seal(rest, meta, body), "tensors is ")
        refused(seal(rest | {"actor/99/w": header[name]}, meta, body), f"{name} is missing")
        longer = header[name] | {"shape": [1, *header[name]["shape"]]}
        refused(seal(header | {name: longer}, meta, body), f"{name} shape is")
        first, last = header[name]["data_offsets"]
        raw = body[:first] + np.float32(NAN).tobytes() + body[first + 4 :]
        refused(seal(header, meta, raw), f"{name}[")
        assert last > first


def test_a_residual_policy_is_not_taken_for_another(tmp_path):
    header, meta, body = unpack(dumps(form_policy(FORMS["residual"])))
    plain = meta["form"] | {"blocks": 0, "frequencies": 0}
    refused(seal(header, meta | {"form": plain}, body), "tensors is ")


def test_without_a_form_there_are_critics():
    with pytest.raises(BadInput, match="ensemble is 0, but must be an integer from 1"):
        make_policy(ensemble=0, critic=())
    policy = form_policy(FORMS["direct"], E=0)
    fields = {name: getattr(policy, name) for name in Policy.__dataclass_fields__}
    with pytest.raises(BadInput, match="critic is 3 layers, but must be 0 layers"):
        Policy(**fields | {"critic": form_policy(FORMS["direct"]).critic})
    with pytest.raises(BadInput, match="form is 'direct', but must be None, or a Form"):
        Policy(**fields | {"form": "direct"})


def test_more_actions_than_the_counter_of_later_noise_has_are_refused():
    header, meta, body = unpack(dumps(form_policy(FORMS["diffusion"])))
    refused(
        seal(header, meta | {"act_dim": 2**26}, body),
        "act_dim is 67108864, but must be below 67108864",
    )
    header, meta, body = unpack(dumps(form_policy(FORMS["diffusion quiet"])))
    refused(seal(header, meta | {"act_dim": 2**26}, body), "actor/0/w shape is")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Euler(counts=3), "form counts is 3, but must be a list"),
        (lambda: Euler(counts=(2, 1)), r"form counts\[1\] is 1, but must be from 1 to 1024, above"),
        (lambda: Direct(reads_noise=True, temperature=1.0), "form temperature is 1.0, but must be 0"),
        (lambda: Tanh(reads_noise=False, noise_clip=0.0), "form noise_clip is 0.0, but must be null"),
        (lambda: Diffusion(**STEPS, clip=1.0, blocks=1), "form frequencies is 0, but must be"),
        (lambda: Diffusion(**STEPS | {"times": (0.0,) * 256}, clip=None), "times is 256 steps, but"),
        (lambda: Direct(reads_noise=False, noise_scale=2.0**128 - 2.0**80), "noise_scale is"),
    ],
    ids=["list", "ascending", "temperature", "clip", "frequencies", "steps", "float32"],
)  # fmt: skip
def test_a_form_out_of_its_bounds_is_named(make, message):
    with pytest.raises(BadInput, match=message):
        make()
