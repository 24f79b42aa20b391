"""The native backend against the definition: numbers, bits, bad numbers, processes, errors."""

import ctypes
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native.twin import errors, make_policy

from sorl_fast import Sampler
from sorl_fast.act import philox
from sorl_fast.act.sampler import Status
from sorl_fast.errors import BadInput

_native = pytest.importorskip("sorl_fast._native", reason="the extension is not built")

# What may be relied on; bf16 for weights as a training starts from.
ACTION = {"fp32": 1e-5, "bf16": 5e-2, "int8": 5e-2}
Q = {"fp32": 2e-5, "bf16": 2e-1, "int8": 2e-1}

PATHS = [(p, isa) for p in ("fp32", "bf16", "int8") for isa in _native.isas(p)]
by_path = pytest.mark.parametrize(("precision", "isa"), PATHS, ids=[f"{i}-{p}" for p, i in PATHS])

SHAPES = {
    "cube": {},
    "humanoid": {"O": 69, "A": 21, "H": 96},
    "all ones": {"O": 1, "A": 1, "H": 1, "depth": 1, "E": 1, "m_disc": 1},
    "odd, min, normalised": {"O": 7, "A": 2, "H": 33, "E": 3, "q_agg": "min", "normalise": True},
    "wide action": {"O": 2, "A": 33, "H": 40, "depth": 2, "bounds": (-0.5, 0.25)},
    "wide observation": {"O": 130, "A": 3, "H": 40, "depth": 2},
    "the paper's": {"H": 512},
}


def sampler(monkeypatch, policy, precision="fp32", isa=None, threads=1):
    if isa is None:
        monkeypatch.delenv("SORL_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("SORL_CPU_ISA", isa)
    return Sampler(policy, backend="native", precision=precision, threads=threads)


@by_path
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, id=name, marks=[pytest.mark.slow] if shape.get("H", 0) > 100 else [])
        for name, shape in SHAPES.items()
    ],
)
@pytest.mark.parametrize(("B", "N"), [(1, 1), (2, 1), (1, 9), (5, 3), (70, 1), (9, 8)])
def test_agrees_with_float64(monkeypatch, precision, isa, shape, B, N):
    policy = make_policy(**shape)
    s = sampler(monkeypatch, policy, precision, isa)
    rng = np.random.default_rng(B * 100 + N)
    obs = rng.normal(size=(B, policy.obs_dim)).astype("f4")
    noise = rng.normal(size=(B, N, policy.act_dim)).astype("f4")
    for M in policy.train_steps:
        action, info = s.act(obs, M, N, noise=noise, return_info=True)
        error = errors(policy, obs, noise, M, action, info)
        assert error.action <= ACTION[precision]
        assert error.q <= Q[precision]
        assert error.regret <= 2 * Q[precision]  # a near tie may pick another candidate
        assert np.all((info.status & ~np.uint32(Status.CLIPPED)) == 0)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_agrees_with_numpy(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    policy = make_policy(
        O=draw(1, 40),
        A=draw(1, 24),
        H=draw(1, 70),
        depth=draw(1, 4),
        E=draw(1, 3),
        m_disc=2 ** draw(0, 4),
        seed=draw(0, 999),
        normalise=data.draw(st.booleans()),
        q_agg=data.draw(st.sampled_from(["mean", "min"])),
    )
    B, N, seed = draw(0, 20), draw(1, 20), draw(0, 2**64 - 1)
    obs = np.random.default_rng(seed).normal(size=(B, policy.obs_dim)).astype("f4")
    M = data.draw(st.sampled_from(policy.train_steps))
    native = Sampler(policy, backend="native", threads=data.draw(st.sampled_from([1, 2])))
    offset = draw(0, 2**31)
    action, info = native.act(obs, M, N, seed=seed, call=7, row_offset=offset, return_info=True)
    noise = philox.normals(seed, B, N, policy.act_dim, 7, offset)
    assert action.shape == (B, policy.act_dim)
    assert action.dtype == np.float32
    if B:
        error = errors(policy, obs, noise, M, action, info)
        assert error.action <= ACTION["fp32"]
        if not 2 <= policy.hidden <= 10:  # LayerNorm over so few units magnifies Q's rounding
            assert error.q <= Q["fp32"]
            assert error.regret <= 2 * Q["fp32"]


@pytest.mark.parametrize("isa", _native.isas("fp32"))
@pytest.mark.parametrize("A", [1, 2, 3, 4, 5, 8, 21])
def test_noise_is_philox(isa, A):
    for seed, call, offset in (
        (0, 0, 0),
        (2**64 - 1, 2**32 - 1, 2**32 - 40),
        (0x123456789ABCDEF, 9, 3),
    ):
        ours = _native.normals(seed, 37, 3, A, call, offset, isa)
        assert np.abs(ours - philox.normals(seed, 37, 3, A, call, offset)).max() <= 5e-7


@by_path
def test_same_bits_on_any_number_of_threads(monkeypatch, precision, isa):
    policy = make_policy(H=200)
    obs = np.random.default_rng(0).normal(size=(150, 28)).astype("f4")
    samplers = [sampler(monkeypatch, policy, precision, isa, threads) for threads in (1, 2, 3)]
    for B, M, N in ((1, 8, 1), (1, 8, 8), (3, 2, 30), (150, 4, 1), (33, 1, 2)):
        results = [s.act(obs[:B], M, N, seed=5, return_info=True) for s in samplers * 2]
        for action, info in results[1:]:
            np.testing.assert_array_equal(action, results[0][0])
            np.testing.assert_array_equal(info.q, results[0][1].q)
            np.testing.assert_array_equal(info.candidate, results[0][1].candidate)


@by_path
def test_a_batch_is_its_rows(monkeypatch, precision, isa):
    policy = make_policy()
    obs = np.random.default_rng(0).normal(size=(70, 28)).astype("f4")
    s = sampler(monkeypatch, policy, precision, isa)
    whole = s.act(obs, 4, seed=3)
    rows = np.stack([s.act(obs[b], 4, seed=3, row_offset=b) for b in range(70)])
    assert np.abs(whole - rows).max() <= ACTION[precision]


BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "1e38": 1e38, "denormal": 1e-41}


@by_path
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("N", [1, 3])
def test_bad_numbers_end_as_numpy_says(monkeypatch, precision, isa, bad, N):
    policy = make_policy(bounds=(-0.5, 0.25))
    ours = sampler(monkeypatch, policy, precision, isa)
    twin = Sampler(policy, backend="numpy")
    rng = np.random.default_rng(1)
    obs = rng.normal(size=(6, 28)).astype("f4")
    noise = rng.normal(size=(6, N, 5)).astype("f4")
    obs[[0, 4], 3] = bad
    noise[2, 0, 1] = bad
    for _ in range(2):  # the second time there is an action to hold
        action, info = ours.act(obs, 2, N, noise=noise, return_info=True)
        expected, other = twin.act(obs, 2, N, noise=noise, return_info=True)
        assert np.isfinite(action).all()
        assert (action >= policy.action_low).all()
        assert (action <= policy.action_high).all()
        if abs(bad) == 1e38:  # what overflows differs with the order of sums
            continue
        np.testing.assert_array_equal(info.status, other.status)
        same = info.candidate == other.candidate
        assert same.all() or precision != "fp32"
        assert np.abs(action - expected)[same].max() <= ACTION[precision]


def _child(queue, policy, obs):
    queue.put(Sampler(policy, backend="native", threads=2).act(obs, 4, 4, seed=1))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.slow
def test_processes(method, tmp_path):
    policy = make_policy()
    obs = np.random.default_rng(0).normal(size=(3, 28)).astype("f4")
    here = Sampler(policy, backend="native", threads=2)
    expected = here.act(obs, 4, 4, seed=1)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue, policy, obs))
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=60), expected)
    child.join()
    np.testing.assert_array_equal(here.act(obs, 4, 4, seed=1), expected)


def test_a_forked_sampler_goes_on():
    policy = make_policy()
    obs = np.random.default_rng(0).normal(size=(1, 28)).astype("f4")
    s = Sampler(policy, backend="native", threads=2)
    expected = s.act(obs, 8, 8, seed=1)
    pid = os.fork()
    if pid == 0:  # its worker threads stayed in the parent
        os._exit(0 if np.array_equal(s.act(obs, 8, 8, seed=1), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_many_samplers_on_many_threads():
    policy = make_policy()
    obs = np.random.default_rng(0).normal(size=(20, 28)).astype("f4")
    expected = Sampler(policy, backend="native").act(obs, 4, 4, seed=2)
    wrong = []

    def work(threads):
        s = Sampler(policy, backend="native", threads=threads)
        for _ in range(20):
            if not np.array_equal(s.act(obs, 4, 4, seed=2), expected):
                wrong.append(threads)

    team = [threading.Thread(target=work, args=(1 + i % 2,)) for i in range(6)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("way", ["act", "act_into"])
def test_other_threads_run_during_a_call(monkeypatch, way):
    policy = make_policy(H=128)
    s = sampler(monkeypatch, policy, isa="scalar")
    obs, out = np.zeros((8000, 28), "f4"), np.empty((8000, 5), "f4")
    calls = {"act": lambda: s.act(obs, 8), "act_into": lambda: s.act_into(obs, out, 8)}
    inside = threading.Event()

    def work():
        inside.set()
        calls[way]()  # some tenths of a second
        inside.clear()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(60)
    turns = 0
    while inside.is_set():
        time.sleep(1e-3)
        turns += 1
    thread.join()
    assert turns > 20  # with the interpreter locked: one or two


def test_act_into_is_act(monkeypatch):
    policy = make_policy()
    s = sampler(monkeypatch, policy)
    obs = np.random.default_rng(0).normal(size=(4, 28)).astype("f4")
    out, status = np.full((4, 5), np.nan, "f4"), np.full(4, 99, "u4")
    s.act_into(obs, out, 4, 8, seed=3, call=2, row_offset=1, status=status)
    action, info = s.act(obs, 4, 8, seed=3, call=2, row_offset=1, return_info=True)
    np.testing.assert_array_equal(out, action)
    np.testing.assert_array_equal(out, s.act(obs, 4, 8, seed=3, call=2, row_offset=1))
    np.testing.assert_array_equal(status, info.status)
    one = np.empty(5, "f4")
    s.act_into(obs[0], one, seed=3)
    np.testing.assert_array_equal(one, s.act(obs[0], seed=3))


def test_without_a_seed_calls_differ(monkeypatch):
    s = sampler(monkeypatch, make_policy())
    obs = np.zeros(28, "f4")
    actions = [s.act(obs) for _ in range(3)]
    out = np.empty(5, "f4")
    s.act_into(obs, out)
    assert len({a.tobytes() for a in [*actions, out]}) == 4


def test_conversions_are_those_of_the_other_backends(monkeypatch):
    s = sampler(monkeypatch, make_policy())
    obs = np.random.default_rng(0).normal(size=(6, 28))
    plain = s.act(obs.astype("f4"), seed=1)
    np.testing.assert_array_equal(s.act(obs, seed=1), plain)
    np.testing.assert_array_equal(s.act(np.asfortranarray(obs.astype("f4")), seed=1), plain)
    np.testing.assert_array_equal(s.act(obs.astype("f4").tolist(), seed=np.int64(1)), plain)
    np.testing.assert_array_equal(s.act(np.repeat(obs, 2, 0).astype("f4")[::2], seed=1), plain)


WRONG_INTO = {
    "obs of float64": ({"obs": np.zeros(28)}, "obs must be a numpy array of float32"),
    "obs of another shape": (
        {"obs": np.zeros(27, "f4")},
        r"obs has the shape \[27\], but must be \[28\]",
    ),
    "obs of three dimensions": (
        {"obs": np.zeros((1, 1, 28), "f4")},
        r"obs has the shape \[1, 1, 28\], but must be \[28\] or \[B, 28\]",
    ),
    "obs in strides": ({"obs": np.zeros(56, "f4")[::2]}, "C-contiguous"),
    "obs a list": ({"obs": [0.0] * 28}, "obs must be a numpy array"),
    "out too small": (
        {"out": np.zeros(4, "f4")},
        r"actions has the shape \[4\], but must be \[5\]",
    ),
    "out read-only": ({"out": np.frombuffer(bytes(20), "f4")}, "read-only"),
    "steps beyond": ({"steps": 17}, "steps is 17, .* takes at most 16"),
    "steps too many": ({"steps": 2049}, "steps is 2049"),
    "no candidate": ({"candidates": 0}, "candidates is 0"),
    "no such seed": ({"seed": -1}, "seed is -1, but must be an integer from 0"),
    "seed of float": ({"seed": 1.0}, r"seed is 1\.0"),
    "call too large": ({"call": 2**32}, "call is 4294967296"),
    "row_offset negative": ({"row_offset": -1}, "row_offset is -1"),
    "last row too large": (
        {"obs": np.zeros((2, 28), "f4"), "out": np.zeros((2, 5), "f4"), "row_offset": 2**32 - 1},
        r"row_offset is 4294967295, but must be at most 2\^32 - B = 4294967294",
    ),
    "noise too small": ({"noise": np.zeros((1, 4), "f4")}, r"noise has the shape \[1, 4\]"),
    "noise of float64": ({"noise": np.zeros(5)}, "noise must be a numpy array of float32"),
    "status of int64": ({"status": np.zeros(1, "i8")}, "status must be a numpy array of uint32"),
}


# Arrays with as many numbers as there must be, in another order. B = 6, N = 2, A = 5.
TURNED = {
    "out": [(5, 6), (30,), (6, 5, 1), (1, 6, 5)],
    "noise": [(2, 6, 5), (6, 5, 2), (12, 5), (60,)],
    "status": [(6, 1), (1, 6), (2, 3)],
}
FOR_ONE = {"out": [(1, 5), (5, 1)], "noise": [(1, 2, 5), (5, 2), (10,)], "status": [(), (1, 1)]}


@pytest.mark.parametrize("B", [6, 1])
def test_act_into_refuses_as_many_numbers_in_another_shape(B):
    s = Sampler(make_policy(), backend="native")
    lead = (B,) if B > 1 else ()
    whole = {"out": (*lead, 5), "noise": (*lead, 2, 5), "status": (B,)}
    dtypes = {"out": "f4", "noise": "f4", "status": "u4"}
    obs = np.zeros((*lead, 28), "f4")

    def arrays(shapes):
        return {name: np.full(shape, 7, dtypes[name]) for name, shape in shapes.items()}

    s.act_into(obs, candidates=2, **arrays(whole))
    for name, shapes in (TURNED if B > 1 else FOR_ONE).items():
        for shape in shapes:
            given = arrays(whole | {name: shape})
            text = (
                f"{'actions' if name == 'out' else name} has the shape {list(shape)}, but must be"
            )
            with pytest.raises(BadInput, match=re.escape(f"{text} {list(whole[name])}")):
                s.act_into(obs, candidates=2, **given)
            assert all((x == 7).all() for x in given.values())
    # the session itself has two more outputs
    session = s._session._session
    for name, dtype in (("candidate", "i4"), ("q", "f4")):
        with pytest.raises(ValueError, match=re.escape(f"{name} has the shape [1, {B}]")):
            out = np.zeros(whole["out"], "f4")
            session.act_into(obs, out, 1, 1, 0, 0, 0, **{name: np.zeros((1, B), dtype)})


@pytest.mark.parametrize(("change", "message"), WRONG_INTO.values(), ids=WRONG_INTO)
def test_act_into_refuses(monkeypatch, change, message):
    s = sampler(monkeypatch, make_policy())
    arguments = {"obs": np.zeros(28, "f4"), "out": np.zeros(5, "f4"), "seed": 1} | change
    with pytest.raises(BadInput, match=message):
        s.act_into(**arguments)


def test_a_refused_act_into_uses_no_call(monkeypatch):
    """What comes after a mistake is what came without it."""
    obs, out, again = np.zeros(28, "f4"), np.empty(5, "f4"), np.empty(5, "f4")
    monkeypatch.setattr("secrets.randbits", lambda bits: 3)
    sampler(monkeypatch, make_policy()).act_into(obs, out)
    s = sampler(monkeypatch, make_policy())
    with pytest.raises(BadInput, match="candidates is 0"):
        s.act_into(obs, again, candidates=0)
    s.act_into(obs, again)
    assert np.array_equal(out, again)


def test_act_into_is_native_only():
    s = Sampler(make_policy(), backend="numpy")
    with pytest.raises(BadInput, match="act_into needs the native backend"):
        s.act_into(np.zeros(28, "f4"), np.zeros(5, "f4"), seed=1)


@pytest.mark.parametrize("threads", [65, 1000])
def test_too_many_threads(monkeypatch, threads):
    with pytest.raises(BadInput, match="threads is"):
        sampler(monkeypatch, make_policy(), threads=threads)


def test_an_instruction_set_that_is_not_there(monkeypatch):
    with pytest.raises(BadInput, match="SORL_CPU_ISA is 'mmx'"):
        sampler(monkeypatch, make_policy(), isa="mmx")


def test_the_environment_picks_the_instruction_set(monkeypatch):
    for precision, isa in PATHS:
        assert sampler(monkeypatch, make_policy(), precision, isa)._session.isa == isa
    fastest = sampler(monkeypatch, make_policy())._session.isa
    assert fastest == _native.isas("fp32")[-1]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names of x86-64")
def test_the_instruction_sets_are_those_of_the_processor():
    line = next(x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags"))
    flags = set(line.split())
    vectors = {"avx512f", "avx512dq", "avx512bw", "avx512vl"}
    needs = {
        "avx2": {"avx2", "fma"},
        "avx_vnni": {"avx2", "fma", "avx_vnni"},
        "avx512": {"avx2", "fma", *vectors},
        "avx512_vnni": {"avx2", "fma", *vectors, "avx512_vnni"},
        "avx512_bf16": {"avx2", "fma", *vectors, "avx512_bf16"},
        "amx": {
            "avx2",
            "fma",
            *vectors,
            "avx512_bf16",
            "avx512_vnni",
            "amx_tile",
            "amx_bf16",
            "amx_int8",
        },
    }
    there = {isa for isa, needed in needs.items() if needed <= flags}
    held = {
        "fp32": {"avx2", "avx512"},
        "bf16": {"avx2", "avx512", "avx512_bf16", "amx"},
        "int8": {"avx2", "avx_vnni", "avx512_vnni", "amx"},
    }
    if "amx" not in _native.isas("bf16"):  # the kernel, or a sandbox, may refuse tiles
        there -= {"amx"}
    for precision, names in held.items():
        assert set(_native.isas(precision)) == {"scalar"} | (names & there)
        if precision != "int8":
            assert set(_native.train_isas(precision)) == names & there


EMULATED = """
import ctypes, itertools, os, sys
import numpy as np
from native.twin import errors, make_policy
from sorl_fast import Sampler, _bench, _native
tiles = ctypes.CDLL(sys.argv[1])
emulated = sys.argv[2] == "emulated"
if emulated:
    assert tiles.emulate_tiles() == 1
    _native._assume_tiles_for_test()
    _bench._assume_tiles_for_test()
assert _native.isas("bf16")[-1] == _native.isas("int8")[-1] == "amx"
# first: what the benchmarks' limit is measured with, on a thread whose tiles nobody has set up yet. It
# multiplies values like a policy's, not zeros, which run at a higher clock
assert _bench.flop_rate("bf16", isa="amx", seconds=0) > 0
assert tiles.tile_products() >= 10_000 or not emulated
assert tiles.odd_tile_operands() == tiles.odd_tile_sums() == 0
before = tiles.tile_products()
assert _bench.flop_rate("int8", isa="amx", seconds=0) > 0
assert tiles.tile_products() >= before + 10_000 or not emulated
rng = np.random.default_rng(0)
odd = {"O": 69, "A": 21, "H": 33, "depth": 2, "E": 3, "q_agg": "min"}
sizes = (1, 8, 1), (1, 2, 3), (1, 1, 16), (1, 1, 17), (2, 1, 20), (33, 1, 1), (90, 1, 1)
for shape in ({}, odd, {"O": 1, "A": 1, "H": 1, "depth": 1}):
    policy = make_policy(**shape)
    pairs = [
        [Sampler(policy, backend="native", precision=p, threads=t) for t in (1, 2)]
        for p in ("bf16", "int8")
    ]
    for samplers, (B, M, N) in itertools.product(pairs, sizes):
        obs = rng.normal(size=(B, policy.obs_dim)).astype("f4")
        noise = rng.normal(size=(B, N, policy.act_dim)).astype("f4")
        action, info = samplers[0].act(obs, M, N, noise=noise, return_info=True)
        error = errors(policy, obs, noise, M, action, info)
        ok = error.action <= 5e-2 and error.q <= 2e-1 and error.regret <= 4e-1
        assert ok, (shape, B, M, N, error)
        again, other = samplers[1].act(obs, M, N, noise=noise, return_info=True)
        assert np.array_equal(again, action) and np.array_equal(other.q, info.q), (shape, B, M, N)
# the paper's width, and what users are told of a trained policy
from native import test_trained as trained
from sorl_fast.act import policy_file
real = policy_file.load(trained.GOLDEN / "trained_policy.safetensors")
for policy, precision, bound in (
    (make_policy(H=512), "bf16", 5e-2),
    (real, "bf16", trained.ACTION["bf16"]),
    (real, "int8", trained.ACTION["int8"]),
):
    ours = Sampler(policy, backend="native", precision=precision)
    obs = np.load(trained.GOLDEN / "trained_observations.npz")["observations"][::8]
    for M, N in ((1, 8), (4, 1), (8, 2)):
        noise = rng.normal(size=(len(obs), N, 5)).astype("f4")
        action, info = ours.act(obs, M, N, noise=noise, return_info=True)
        error = errors(policy, obs, noise, M, action, info)
        assert error.action <= bound, (M, N, error)
        assert error.relative_regret <= trained.REGRET[precision] or bound == 5e-2, (M, N, error)
# the format of int8
from types import SimpleNamespace
from native import test_int8
here = SimpleNamespace(setenv=os.environ.__setitem__)
for shape, (M, B) in itertools.product(test_int8.SHAPES.values(), ((4, 200), (1, 1), (1, 5))):
    test_int8.test_rounds_as_its_twin(here, "amx", shape, M, B)
for layer, (network, N) in itertools.product((0, 2, 3), (("actor", 1), ("critic", 3))):
    test_int8.test_a_bad_number_inside_is_not_rounded_away(here, "amx", layer, np.nan, network, N)
print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="AMX is of x86-64")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the emulator")
def test_amx_emulated(tmp_path):
    """The tiles' object code itself, its instructions emulated where the machine has none."""
    here = Path(__file__).parent
    emulated = "amx" not in _native.isas("bf16")
    if emulated and "amx_tile" in Path("/proc/cpuinfo").read_text():
        pytest.skip("the machine has tiles, but refuses them: nothing to emulate")
    library = tmp_path / "tile_emulator.so"
    command = ["g++", "-std=c++17", "-O2", "-mfma", "-fPIC", "-shared", "-o", library]
    subprocess.run([*command, here / "tile_emulator.cpp"], check=True)
    if "avx512_vnni" not in _native.isas("int8"):
        pytest.skip("the code around the tiles needs AVX-512 and its VNNI")
    done = subprocess.run(
        [sys.executable, "-c", EMULATED, library, "emulated" if emulated else "real"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])},
        timeout=250,
    )
    assert done.stdout == "done\n", done.stderr


def test_the_module_frees_what_it_holds():
    policy = make_policy(H=256)
    libc = ctypes.CDLL(None)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(3):
        Sampler(policy, backend="native", threads=2).act(np.zeros(28, "f4"))
    libc.malloc_trim(0)
    before = resident()
    for _ in range(30):
        Sampler(policy, backend="native", threads=2).act(np.zeros(28, "f4"))
    libc.malloc_trim(0)
    assert resident() - before < 4096  # 16 MiB in pages; thirty leaked models would be 200
