"""What is made of a policy is made once: packed weights, its file's bytes, its digest."""

import copy
import gc
import subprocess
import sys
import threading
import weakref
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from policies import make_policy

from sorl_fast import Sampler
from sorl_fast.act import policy_file
from sorl_fast.act.backends import native


@pytest.fixture(autouse=True)
def no_isa(monkeypatch):
    monkeypatch.delenv("SORL_CPU_ISA", raising=False)


@pytest.fixture
def packed(monkeypatch):
    """The precision of each packing of the native backend."""
    seen = []
    real = native.make_model

    def make_model(module, policy, precision):
        seen.append(precision)
        return real(module, policy, precision)

    monkeypatch.setattr(native, "make_model", make_model)
    return seen


def native_sampler(policy, precision="fp32"):
    return Sampler(policy, backend="native", precision=precision)


def test_native_samplers_of_a_policy_share_its_packed_weights(packed):
    policy = make_policy()
    samplers = [native_sampler(policy, p) for p in ("fp32", "bf16", "fp32", "bf16", "fp32")]
    assert packed == ["fp32", "bf16"]
    native_sampler(make_policy())
    assert packed == ["fp32", "bf16", "fp32"]  # another policy, though an equal one
    actions = [s.act([0.1, 0.2, 0.3], 2, 4, seed=1).tolist() for s in samplers]
    assert actions[0] == actions[2] == actions[4]
    assert actions[1] == actions[3]


def test_an_instruction_set_has_a_packing_of_its_own(packed, monkeypatch):
    policy = make_policy()
    fastest = native_sampler(policy).isa
    monkeypatch.setenv("SORL_CPU_ISA", "scalar")
    assert [native_sampler(policy).isa for _ in range(2)] == ["scalar"] * 2
    monkeypatch.setenv("SORL_CPU_ISA", fastest)
    assert native_sampler(policy).isa == fastest
    assert len(packed) == 2 - (fastest == "scalar")


def test_samplers_share_neither_their_last_action_nor_their_seed():
    policy = make_policy()
    one, two = native_sampler(policy), native_sampler(policy)
    good = one.act([0.1, 0.2, 0.3], seed=1)
    bad = [float("nan")] * 3
    assert one.act(bad).tolist() == good.tolist()
    assert two.act(bad).tolist() == [0.0, 0.0]


def test_threads_that_begin_at_once_pack_once(packed):
    policy = make_policy()
    start = threading.Barrier(8)

    def begin():
        start.wait()
        native_sampler(policy)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert packed == ["fp32"]


def test_what_could_not_be_made_is_made_when_it_can(packed, monkeypatch):
    policy = make_policy()
    monkeypatch.setenv("SORL_CPU_ISA", "z80")
    for _ in range(2):
        with pytest.raises(ValueError, match="SORL_CPU_ISA is 'z80'"):
            native_sampler(policy)
    monkeypatch.delenv("SORL_CPU_ISA")
    assert native_sampler(policy).act([0.0] * 3).shape == (2,)


MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
from policies import make_policy
from sorl_fast import Sampler

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096

policy = make_policy(O=28, A=5, H=512, depth=4)
samplers = [Sampler(policy, backend="native")]
before = resident()
samplers += [Sampler(policy, backend="native") for _ in range(20)]
weights = sum(a.nbytes for layers in (policy.actor, policy.critic) for l in layers for a in l)
print((resident() - before) / weights)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_twenty_more_samplers_are_scratch_and_no_twenty_copies_of_the_weights():
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) < 10.0  # scratch is in pages of 2 MiB


def test_torch_samplers_share_the_copies_on_a_device():
    policy = make_policy()
    with torch.inference_mode():  # what is made here is read outside of it too
        Sampler(policy, backend="torch").act(torch.zeros(3))
    copies = []
    for _ in range(2):
        sampler = Sampler(policy, backend="torch")
        sampler.act(torch.zeros(3))
        copies.append(sampler._session._on(torch.device("cpu")))
    assert copies[0] is copies[1]
    assert not copies[0][0][0][0].is_inference()


@pytest.mark.slow
def test_what_was_made_dies_with_the_policy():
    policy = make_policy()
    sampler = Sampler(policy, backend="torch")
    sampler.act([0.0] * 3)
    weight = weakref.ref(sampler._session._on(torch.device("cpu"))[0][0][0])
    del sampler
    gc.collect()
    assert weight() is not None  # for the next sampler
    del policy
    gc.collect()
    assert weight() is None


def test_a_policy_is_written_and_hashed_once_however_many_ask(monkeypatch):
    policy = make_policy()
    written = []
    real = policy_file.dumps
    monkeypatch.setattr(policy_file, "dumps", lambda p: written.append(p) or real(p))
    sent = [ForkingPickler.dumps(policy) for _ in range(3)]
    digests = {policy.digest, policy_file.digest(policy), policy_file.describe(policy)["sha256"]}
    assert len(written) == 1
    assert digests == {policy_file.digest(ForkingPickler.loads(sent[0]))}
    assert policy.file_bytes == real(policy)


def test_a_copy_shares_nothing_made(packed):
    policy = make_policy()
    native_sampler(policy)
    native_sampler(copy.copy(policy))
    assert len(packed) == 2
