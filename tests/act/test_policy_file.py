"""The policy file: equal bytes for equal policies, what a Policy refuses, and the file system."""

import copy
import dataclasses
import hashlib
import json
import os
import re
import stat
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from policies import golden_policy, make_policy
from policy_bytes import DATA, POLICY, check_same, unpack

from sorl_fast import BadInput
from sorl_fast.act import policy_file
from sorl_fast.act.policy_file import describe, dumps, load, loads, save
from sorl_fast.layout import LETTERS


def fields_of(policy):
    return {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}


@pytest.mark.parametrize(
    "dims",
    [
        *({}, {"O": 1, "A": 1, "H": 1, "depth": 1, "E": 1, "m_disc": 1}, {"q_agg": "min"}),
        *({"depth": 11}, {"E": 5, "H": 3}, {"normalise": True}, {"env": 'é "x"\\ \x00 \U0001f916'}),
        {
            "config": {"a": [[[]], {}], "b" * 256: {str(i): i for i in range(256)}},
            "env": "x" * 4096,
        },
        {"config": {"zz": [1, 2.5, None, True, {"b": "ü", "a": "0" * 64}], "aa": -0.0}},
        {"action_low": [-0.1, -1e-3], "action_high": [1 / 3, 2e5]},
    ],
    ids=str,
)
def test_round_trip(dims, tmp_path):
    policy = make_policy(**dims)
    path = tmp_path / "deep" / "policy.safetensors"
    save(path, policy)
    back = load(path)
    check_same(policy, back)
    for name, value in fields_of(policy).items():
        if name not in ("actor", "critic"):
            np.testing.assert_equal(getattr(back, name), value)
    assert path.read_bytes() == dumps(policy)


def test_round_trip_of_the_authors_weights():
    policy, _ = golden_policy()
    check_same(policy, loads(dumps(policy)))


def test_equal_policies_give_equal_bytes():
    assert dumps(make_policy(normalise=True)) == DATA
    assert dumps(make_policy(config={"a": 1, "b": {"d": 2, "c": 3}})) == dumps(
        make_policy(config={"b": {"c": 3, "d": 2}, "a": 1})
    )
    assert dumps(make_policy(salt=1)) != dumps(make_policy())


def test_save_replaces_the_file_whole(tmp_path):
    path = tmp_path / "p.safetensors"
    save(path, make_policy(salt=1))
    save(path, POLICY)
    assert path.read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_bytes_are_frozen():
    # closed-form weights: a change here means that files differ between versions of sorl-fast
    assert unpack()[1]["sha256"] == (
        "384e47010880cfc769b8bb69e85a82f9d24fb1f3cfd0bd38c743cb1ea2834713"
    )


def test_layout_is_that_of_the_safetensors_library(tmp_path):
    save(tmp_path / "p.safetensors", POLICY)
    with safetensors.safe_open(tmp_path / "p.safetensors", framework="np") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert list(meta) == ["sorl_fast"]
    assert list(json.loads(meta["sorl_fast"])) == [
        *("format", "obs_dim", "act_dim", "hidden", "depth", "ensemble", "m_disc", "m_btt"),
        *("q_agg", "env", "action_low", "action_high", "obs_mean", "obs_std", "config", "sha256"),
    ]
    assert set(tensors) == {
        *(f"actor/{i}/{part}" for i in range(3) for part in "wb"),
        *(f"critic/{i}/{part}" for i in range(2) for part in ("w", "b", "g", "c")),
        *("critic/2/w", "critic/2/b"),
    }
    assert tensors["actor/0/w"].shape == (3 + 2 + 2, 8)
    assert tensors["critic/0/w"].shape == (2, 3 + 2 + 1, 8)
    np.testing.assert_array_equal(tensors["critic/1/g"], POLICY.critic[1][2])


def test_digest_is_of_the_file_with_its_digits_zeroed():
    digest = unpack()[1]["sha256"].encode()
    assert DATA.count(digest) == 1
    assert hashlib.sha256(DATA.replace(digest, b"0" * 64)).hexdigest().encode() == digest


def test_nothing_of_time_host_or_path_inside(tmp_path):
    save(tmp_path / "p.safetensors", POLICY)
    data = (tmp_path / "p.safetensors").read_bytes()
    for secret in (str(tmp_path), os.uname().nodename, str(Path.home())):
        assert len(secret) < 4 or secret.encode() not in data


def test_policy_is_immutable():
    w = np.ones((7, 8), np.float32)
    actor = ((w, POLICY.actor[0][1]), *POLICY.actor[1:])
    policy = dataclasses.replace(POLICY, actor=actor)
    w[:] = 5
    assert (policy.actor[0][0] == 1).all()
    arrays = [a for layer in (*policy.actor, *policy.critic) for a in layer]
    for a in (*arrays, policy.action_low, policy.action_high, policy.obs_mean, policy.obs_std):
        assert a.dtype == np.float32
        assert a.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            a[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            a.flags.writeable = True
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.m_disc = 4


def test_a_pickled_policy_is_the_same_and_immutable():
    for copied in (copy.deepcopy(POLICY), ForkingPickler.loads(ForkingPickler.dumps(POLICY))):
        check_same(copied, POLICY)
        assert not copied.actor[0][0].flags.writeable


def test_policy_takes_lists_views_and_other_real_types():
    actor = [[np.asfortranarray(w, np.float64), list(b)] for w, b in POLICY.actor]
    policy = dataclasses.replace(POLICY, actor=actor, action_low=[-1, -1], obs_std=POLICY.obs_std)
    assert dumps(policy) == DATA


@pytest.mark.parametrize(("m_disc", "steps"), [(1, (1,)), (2, (1, 2)), (16, (1, 2, 4, 8, 16))])
def test_train_steps(m_disc, steps):
    assert make_policy(m_disc=m_disc).train_steps == steps


def test_arguments_in_the_wrong_order_are_named(tmp_path):
    path = tmp_path / "policy.safetensors"
    order = r"save\(path, policy\): first the path, then the policy"
    with pytest.raises(BadInput, match=f"policy is a PosixPath, but must be a Policy: {order}"):
        save(POLICY, path)
    with pytest.raises(BadInput, match=f"policy is a str, .*: {order}"):
        save(POLICY, str(path))
    with pytest.raises(BadInput, match=r"path is a Policy, .*: load\(path\)"):
        load(POLICY)
    for wrong in (path, str(path), POLICY):
        with pytest.raises(BadInput, match=r"data is a \w+, .*: loads\(data\); load\(path\)"):
            loads(wrong)
    for wrong in (path, DATA):
        for of in (dumps, policy_file.digest, describe):
            with pytest.raises(BadInput, match=r"policy is a \w+, but must be a Policy"):
                of(wrong)
    assert not [*tmp_path.iterdir()]


def test_describe():
    text = describe(POLICY)
    json.dumps(text)
    assert text["steps"] == [1, 2, 4, 8]
    assert text["acts_with"] == (
        "any M from 1 to 16, or a schedule of at most 16 step sizes (trained for 1, 2, 4, 8)"
    )
    assert text["actor_parameters"] == (7 * 8 + 8) + (8 * 8 + 8) + (8 * 2 + 2)
    assert text["critic_parameters"] == 2 * ((6 * 8 + 24) + (8 * 8 + 24) + (8 + 1))
    assert text["sha256"] == unpack()[1]["sha256"] == policy_file.digest(POLICY)
    assert text["bytes"] == len(DATA)


# --- what a Policy refuses, made in Python

NAN, INF = float("nan"), float("inf")
RECURSIVE = {}
RECURSIVE["a"] = RECURSIVE


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return {"a": value}


BAD_FIELDS = {
    **{
        f"{n}={v}": ({n: v}, f"{n} is {v!r}")
        for n in ("obs_dim", "depth")
        for v in (0, -1, 2.0, True)
    },
    "hidden=None": ({"hidden": None}, "hidden is None"),
    "ensemble=2^31": ({"ensemble": 2**31}, "ensemble is 2147483648"),
    "m_disc=3": ({"m_disc": 3}, "m_disc is 3, but must be a power of two"),
    "m_disc=2^11": ({"m_disc": 2**11}, "a power of two from 1 to 1024"),
    "m_btt=0": ({"m_btt": 0}, "m_btt is 0"),
    "m_btt>m_disc": ({"m_btt": 16}, "m_btt is 16, but must be at most m_disc = 8"),
    "q_agg=max": ({"q_agg": "max"}, "q_agg is 'max', but must be mean or min"),
    "env too long": ({"env": "é" * 2049}, "text of at most 4096 bytes of UTF-8"),
    "env=None": ({"env": None}, "env is None, but must be text"),
    "env=surrogate": ({"env": "\ud800"}, "env is '\\ud800'"),
    "low=high": ({"action_low": [-1, 1]}, "action_low[1] is 1.0, but must be below action_high[1]"),
    "low=nan": ({"action_low": [NAN, -1]}, "action_low[0] is nan, but must be finite"),
    "high=inf": ({"action_high": [1, INF]}, "action_high[1] is inf, but must be finite"),
    "high=1e39": ({"action_high": [1, 1e39]}, "action_high[1] is inf"),
    "low too long": ({"action_low": [-1] * 3}, "action_low shape is [3], but must be [2]"),
    "low=scalar": ({"action_low": -1.0}, "action_low shape is [], but must be [2]"),
    "mean alone": ({"obs_std": None}, "obs_std is None, but must be given together"),
    "std alone": ({"obs_mean": None}, "obs_mean is None, but must be given together"),
    "mean=nan": ({"obs_mean": [0, 0, NAN]}, "obs_mean[2] is nan"),
    "std=0": ({"obs_std": [1, 0, 1]}, "obs_std[1] is 0.0, but must be above 0"),
    "std<0": ({"obs_std": [1, 1, -1]}, "obs_std[2] is -1.0, but must be above 0"),
    "std underflows": ({"obs_std": [1, 1, 1e-60]}, "obs_std[2] is 0.0"),
    "std=bool": ({"obs_std": [True] * 3}, "obs_std dtype is 'bool'"),
    "config=nan": ({"config": {"a": NAN}}, "plain finite JSON values"),
    "config=object": ({"config": {"a": object()}}, "plain finite JSON values"),
    "config=surrogate": ({"config": {"a": "\ud800"}}, "plain finite JSON values"),
    "config deep": ({"config": nested(60)}, "config is nested deeper, but must be at most 60"),
    "config keys": ({"config": {"a": dict.fromkeys(map(str, range(257)))}}, "at most 256 keys"),
    "config key": ({"config": {"a" * 257: 1}}, "each of at most 256 bytes"),
    "config=recursive": ({"config": RECURSIVE}, "plain finite JSON values"),
    "config=list": ({"config": [1]}, "config is [1], but must be a dict"),
    "config too long": ({"config": {"a": "x" * 2**20}}, "at most 1048576 bytes: shorten config"),
    "actor short": ({"actor": POLICY.actor[1:]}, "actor is 2 layers, but must be depth + 1 = 3"),
    "critic short": ({"critic": POLICY.critic[:-1]}, "critic is 2 layers"),
    "actor part": ({"actor": (POLICY.actor[0][:1], *POLICY.actor[1:])}, "actor/0 is 1 arrays"),
    "critic last": ({"critic": (*POLICY.critic[:2], POLICY.critic[1])}, "critic/2 is 4 arrays"),
}


@pytest.mark.parametrize(("change", "message"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_policy_refuses(change, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        dumps(dataclasses.replace(POLICY, **change))


@pytest.mark.parametrize("network", ["actor", "critic"])
@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_policy_refuses_a_non_finite_weight_and_says_where(network, value):
    layers = [[a.copy() for a in layer] for layer in getattr(POLICY, network)]
    layers[1][0][..., 3, 4] = value
    at = "[3, 4]" if network == "actor" else "[0, 3, 4]"
    with pytest.raises(BadInput, match=re.escape(f"{network}/1/w{at} is {value}, but must be")):
        dataclasses.replace(POLICY, **{network: layers})


@pytest.mark.parametrize("name", list(unpack()[0]))
def test_policy_refuses_a_wrong_shape_of_any_tensor(name):
    network, i, part = name.split("/")
    layers = [list(layer) for layer in getattr(POLICY, network)]
    a = layers[int(i)][LETTERS.index(part)]
    layers[int(i)][LETTERS.index(part)] = np.concatenate([a, a])
    with pytest.raises(BadInput, match=f"{name} shape is"):
        dataclasses.replace(POLICY, **{network: layers})


def test_policy_refuses_other_dtypes():
    layers = [[a.astype(complex) for a in layer] for layer in POLICY.actor]
    with pytest.raises(BadInput, match="actor/0/w dtype is 'complex128'"):
        dataclasses.replace(POLICY, actor=layers)


# --- the file system


@pytest.mark.parametrize("name", ["absent.safetensors", "a\0b"], ids=["absent", "nul"])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(BadInput, match=r"is not a file that exists. Give the policy.safetensors"):
        load(tmp_path / name)


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(BadInput, match=r"cannot be read: File name too long. Check its path and"):
        load(tmp_path / ("x" * 300))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"is a folder. Give the policy.safetensors of a run"):
        load(tmp_path)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="is not a file that exists"):
        load(tmp_path / "pipe")


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "p", POLICY)

    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(policy_file.Path, "read_bytes", denied)
    with pytest.raises(
        BadInput, match=r"cannot be read: Permission denied. Check its path and permissions"
    ):
        load(tmp_path / "p")


def test_load_names_the_file(tmp_path):
    (tmp_path / "p.safetensors").write_bytes(DATA[:-5])
    with pytest.raises(BadInput, match=re.escape(f"policy file {tmp_path / 'p.safetensors'}: ")):
        load(tmp_path / "p.safetensors")


def test_save_into_a_file_as_folder_is_refused_and_changes_nothing(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="cannot write"):
        save(tmp_path / "file" / "policy.safetensors", POLICY)
    assert (tmp_path / "file").read_text() == "mine"


def test_save_on_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.safetensors"
    save(path, POLICY)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"No space left on device. Free some space"):
        save(path, make_policy(salt=1))
    assert path.read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]
    assert stat.S_ISREG(path.stat().st_mode)
