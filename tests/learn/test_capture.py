"""Captured updates: what a replay does is what the plain update would have done, bit for bit.

The stand-in for a CUDA graph is a tape of the operations that ran, with the very tensors that they read
and wrote. A number that the host put into an operation stays what it was when the tape was made, as it
does in a graph; so does the address of every tensor.
"""

import os
import signal

import numpy as np
import pytest
import torch
from conftest import own_arrays, some_fast
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sorl_fast import ops
from sorl_fast.config import TrainConfig
from sorl_fast.data.dataset import TransitionData, load_data
from sorl_fast.errors import BadInput, Diverged, Stopped
from sorl_fast.learn import train as train_module
from sorl_fast.learn.algorithms.sorl import Sorl, SorlConfig
from sorl_fast.learn.capture import CapturedUpdates
from sorl_fast.learn.checkpoint import load_latest
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.noise import KeyedNoise
from sorl_fast.learn.train import train

WINDOW = 7


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch):
    monkeypatch.setenv("SORL_OPS", "torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    ops.configure()


def storages(values):
    return {x.untyped_storage().data_ptr() for x in tree_leaves(values) if torch.is_tensor(x)}


class Tape(TorchDispatchMode):
    """Every operation in order: function, arguments, result; and what it wrote over, as it was."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.before = {}
        self.written = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for x in tree_leaves((args, kwargs)):
                if torch.is_tensor(x):
                    self.written.append(x)
                    storage = x.untyped_storage()
                    self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        out = func(*args, **kwargs)
        inputs = storages((args, kwargs))
        new = [x if storages(x).isdisjoint(inputs) else None for x in tree_leaves(out)]
        self.calls.append((func, args, kwargs, new))
        return out

    def undo(self):
        for storage, contents in self.before.values():
            storage.copy_(contents)

    @torch.no_grad()
    def replay(self):
        """Do it all again; torch learns no more of it than of a graph's replay."""
        with _unsafe_preserve_version_counter(tuple(self.written)):
            self._again()

    def _again(self):
        for func, args, kwargs, new in self.calls:
            again = func(*args, **kwargs)
            again = again if isinstance(again, list | tuple) else [again]
            for x, y in zip(new, again, strict=True):
                if torch.is_tensor(x):
                    x.copy_(y)


class TapeRecorder:
    """Counts what it is asked for."""

    def __init__(self, device="cpu"):
        self.runs = self.records = self.replays = 0

    def run(self, function):
        self.runs += 1
        return function()

    def record(self, function):
        self.records += 1
        tape = Tape()
        with tape:
            function()
        tape.undo()

        def replay():
            self.replays += 1
            tape.replay()

        return replay


class NoGraphs(TapeRecorder):
    def record(self, function):
        self.records += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


def agent(**changes):
    base = {"q_coef": 1.0, "hidden": 8, "depth": 2, "batch_size": 12, "m_disc": 4, "m_btt": 2}
    return SorlConfig(**(base | changes))


def setup(config, seed=3, recorder=None):
    """Return updates and what they train, everything seeded."""
    arrays = own_arrays()
    arrays["next_observations"] = arrays["observations"][::-1].copy()
    data = TransitionData(arrays, "mine")
    host = torch.Generator().manual_seed(seed)
    learner = Learner(Sorl(config), data.obs_dim, data.act_dim, host)
    if recorder is None:
        return data, host, learner
    return CapturedUpdates(learner, data, seed, host, WINDOW, recorder), learner


def assert_equal_states(a, b):
    for (name, x), (_, y) in zip(a.state().items(), b.state().items(), strict=True):
        assert torch.equal(x, y), name


def make(updates, count):
    """Make updates and return their metrics."""
    rows = []
    for _ in range(count):
        updates.make()
        if updates.pending == WINDOW:
            rows.append(updates.look())
    rows.append(updates.look())
    return np.concatenate(rows)


CONFIGS = {
    "small": dict(),
    "min": dict(q_agg="min", ensemble=3),
    "one step": dict(m_disc=1, m_btt=1),
    "odd batch": dict(batch_size=7, m_disc=8, m_btt=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", some_fast(CONFIGS, "min", "odd batch"))
def test_replays_equal_a_loop_written_by_hand(name):
    changes = CONFIGS[name]
    config, seed, count = agent(**changes), 3, 40
    recorder = TapeRecorder()
    updates, learner = setup(config, seed, recorder)
    metrics = make(updates, count)

    data, host, other = setup(config, seed)
    other.count_on_device()
    expected, pairs = [], set()
    for number in range(1, count + 1):
        pair = other.method.choose(host, number)
        key = torch.tensor([seed - 2**63, number, 0])
        plan = other.method.plan(data.act_dim)
        source = KeyedNoise(plan, config.batch_size, data.act_dim, len(data), key)
        index, noise = source.draw()
        expected.append(other.update(data.take(index), noise, pair))
        pairs.add(pair)
    np.testing.assert_array_equal(metrics, torch.stack(expected).numpy())
    assert_equal_states(learner, other)

    assert recorder.runs == recorder.records == len(pairs) == len(config.btt_steps) ** 2
    assert recorder.replays == count - len(pairs)


@pytest.mark.slow
def test_a_step_counted_on_the_host_would_be_found_out(monkeypatch):
    monkeypatch.setattr(Learner, "count_on_device", lambda self: None)
    updates, learner = setup(agent(), recorder=TapeRecorder())
    make(updates, 30)
    plain, other = setup(agent(), recorder=NoGraphs())
    make(plain, 30)
    assert not torch.equal(learner.state()["actor/0/w"], other.state()["actor/0/w"])


def test_without_graphs_it_goes_on_and_says_so_once(capsys):
    recorder = NoGraphs()
    updates, learner = setup(agent(), recorder=recorder)
    metrics = make(updates, 20)
    err = capsys.readouterr().err
    assert err.count("cannot be recorded as a CUDA graph: operation not permitted") == 1
    assert "more of it" not in err
    assert recorder.records == recorder.runs == 1

    captured, other = setup(agent(), recorder=TapeRecorder())
    np.testing.assert_array_equal(make(captured, 20), metrics)
    assert_equal_states(learner, other)


def test_the_reason_is_what_went_wrong_first(capsys):
    class EndsBadly(TapeRecorder):
        def record(self, function):
            try:
                raise RuntimeError("operation not permitted when stream is capturing")
            finally:  # as torch.cuda.graph does
                raise RuntimeError("operation failed due to a previous error during capture")

    updates, _ = setup(agent(), recorder=EndsBadly())
    updates.make()
    assert "CUDA graph: operation not permitted when" in capsys.readouterr().err


def test_an_update_that_fails_is_no_capture_failure():
    class Fails(TapeRecorder):
        def run(self, function):
            raise RuntimeError("out of memory")

    updates, _ = setup(agent(), recorder=Fails())
    with pytest.raises(RuntimeError, match="out of memory"):
        updates.make()


@pytest.mark.slow
@pytest.mark.parametrize("made", some_fast([0, 1, 6, 8], 0, 8), ids=lambda n: f"after{n}")
def test_looks_at_any_time_see_each_update_once(made):
    updates, _ = setup(agent(), recorder=TapeRecorder())
    whole = make(updates, 12)
    other, _ = setup(agent(), recorder=TapeRecorder())
    np.testing.assert_array_equal(make(other, made), whole[:made])
    np.testing.assert_array_equal(make(other, 12 - made), whole[made:])


@pytest.mark.parametrize("made", some_fast([1, 5, 9], 9), ids=lambda n: f"after{n}")
def test_updates_that_go_on_elsewhere_are_the_same(made):
    updates, learner = setup(agent(), recorder=TapeRecorder())
    before = make(updates, made)
    state = {name: x.clone() for name, x in learner.state().items()}
    host = updates._host.get_state()
    after = make(updates, 12 - made)

    other, taking_over = setup(agent(), recorder=TapeRecorder())
    other.restore({}, made)
    taking_over.load_state(state, made)
    other._host.set_state(host)
    np.testing.assert_array_equal(make(other, 12 - made), after)
    assert_equal_states(learner, taking_over)
    assert np.isfinite(before).all()


@pytest.mark.slow
def test_equal_seeds_give_equal_bits_and_others_do_not():
    states = []
    for seed in (3, 3, 4):
        updates, learner = setup(agent(), seed, TapeRecorder())
        make(updates, 8)
        states.append(learner.state()["critic/0/w"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_who_holds_an_older_version_of_a_parameter_notices_a_replay():
    updates, learner = setup(agent(m_disc=1, m_btt=1), recorder=TapeRecorder())
    updates.make()
    before = {name: x._version for name, x in learner.state().items()}
    updates.make()
    assert all(x._version > before[name] for name, x in learner.state().items())


# ---- the noise


def test_keyed_noise_is_within_bounds_and_covers_them():
    config = agent(batch_size=3000, m_disc=8)
    key = torch.tensor([5, 1, 0])
    index, noise = KeyedNoise(Sorl(config).plan(2), 3000, 2, 10, key).draw()
    assert index.dtype == torch.int64
    assert set(index.tolist()) == set(range(10))
    assert set((noise["fm_t"] * 8).tolist()) == set(range(8))
    for log2 in (0, 1, 2):
        t = noise["sc_t"][noise["sc_log2_steps"] == log2]
        assert set((t * 2**log2).tolist()) == set(range(2**log2))
    draws = [noise[f"{name}_noise"] for name in ("td", "fm", "sc", "q")]
    for x in draws:
        assert x.shape == (3000, 2)
        assert x.is_contiguous()
        assert abs(float(x.mean())) < 0.05
        assert abs(float(x.std()) - 1) < 0.05
    rest = torch.stack([index, noise["fm_t"], noise["sc_t"]], 1)
    together = np.corrcoef(torch.cat([*draws, rest], 1).T.numpy()) - np.eye(11)
    assert np.abs(together).max() < 0.08


def test_keyed_noise_depends_on_the_key_alone():
    key = torch.tensor([5, 1, 0])
    source = KeyedNoise(Sorl(agent()).plan(2), 12, 2, 300, key)
    (i, a), (j, b) = source.draw(), source.draw()
    assert torch.equal(i, j)
    assert torch.equal(a["q_noise"], b["q_noise"])
    key[1] += 1
    k, c = source.draw()
    assert not torch.equal(i, k)
    assert not torch.equal(a["q_noise"], c["q_noise"])


def test_an_index_of_the_largest_word_is_the_last_transition(monkeypatch):
    words = torch.full((36,), 2**32 - 1)
    monkeypatch.setattr(ops, "words", lambda key, count: words[:count])
    key = torch.zeros(3, dtype=torch.int64)
    index, noise = KeyedNoise(Sorl(agent()).plan(2), 12, 2, 2**31 - 1, key).draw()
    assert set(index.tolist()) == {2**31 - 2}
    assert float(noise["fm_t"].max()) < 1
    assert float(noise["sc_t"].max()) < 1


# ---- the loop


@pytest.fixture
def on_gpu(monkeypatch):
    """Train on the CPU as if it were a GPU; yields the recorders that were made."""
    made = []

    def recorder(device):
        made.append(TapeRecorder())
        return made[-1]

    monkeypatch.setattr(train_module, "_has_graphs", lambda device: True)
    monkeypatch.setattr(train_module, "CudaRecorder", recorder)
    return made


def config(own_file, out, **changes):
    base = {"steps": 30, "log_every": 10, "val_every": 12, "eval_every": 0, "checkpoint_every": 15}
    values = base | {"env": "mine", "data": str(own_file), "out": str(out), "threads": 1} | changes
    return TrainConfig(**values)


def assert_same_run(a, b):
    x, y = load_latest(a / "checkpoints"), load_latest(b / "checkpoints")
    assert x.step == y.step
    assert x.tensors.keys() == y.tensors.keys()
    for name in x.tensors:
        assert np.array_equal(x.tensors[name], y.tensors[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", some_fast([1, 15, 22], 15), ids=lambda k: f"after{k}")
def test_resume_is_bit_for_bit(own_file, tmp_path, stop_at, on_gpu):
    train(agent(), config(own_file, tmp_path / "whole"), progress=False)
    train(agent(), config(own_file, tmp_path / "parts", steps=stop_at), progress=False)
    train(agent(), config(own_file, tmp_path / "parts"), resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert [r.records for r in (on_gpu[0], on_gpu[2])] == [4, min(4, on_gpu[2].runs)]
    assert on_gpu[0].replays == 26
    checkpoint = load_latest(tmp_path / "whole" / "checkpoints")
    assert [n for n in checkpoint.tensors if n.startswith("random/")] == ["random/host"]


@pytest.mark.slow
def test_it_is_the_training_of_its_seed(own_file, tmp_path, on_gpu):
    """The loop draws minibatches from the whole data set and learns."""
    result = train(agent(), config(own_file, tmp_path / "run", steps=60), progress=False)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 6 + 5
    assert np.isfinite(list(result.last.values())).all()
    data = load_data("mine", own_file)
    random = torch.Generator().manual_seed(0)
    learner = Learner(Sorl(agent()), data.train.obs_dim, data.train.act_dim, random)
    tensors = load_latest(tmp_path / "run" / "checkpoints").tensors
    for name, x in learner.state().items():
        assert not np.array_equal(tensors[name], x.numpy()), name


@pytest.mark.slow
def test_sigterm_saves_and_resumes_exactly(own_file, tmp_path, on_gpu, monkeypatch):
    train(agent(), config(own_file, tmp_path / "whole"), progress=False)
    run, make_update = tmp_path / "stopped", CapturedUpdates.make

    def interrupted(self):
        make_update(self)
        if self._made == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(CapturedUpdates, "make", interrupted)
    with pytest.raises(Stopped, match="after 17 updates"):
        train(agent(), config(own_file, run), progress=False)
    monkeypatch.setattr(CapturedUpdates, "make", make_update)
    train(agent(), config(own_file, run), resume=True, progress=False)
    assert_same_run(tmp_path / "whole", run)


def test_a_nonfinite_loss_of_a_replay_names_its_update(own_file, tmp_path, on_gpu, monkeypatch):
    make_update = CapturedUpdates.make

    def broken(self):
        make_update(self)
        if self._made == 21:
            self._metrics[20 % len(self._metrics), 2] = torch.nan

    monkeypatch.setattr(CapturedUpdates, "make", broken)
    with pytest.raises(Diverged, match="fm_loss became nan at update 21"):
        train(agent(), config(own_file, tmp_path / "run"), progress=False)


def test_resume_on_another_kind_of_device_is_refused(own_file, tmp_path, monkeypatch):
    train(agent(), config(own_file, tmp_path / "run", steps=5), progress=False)
    monkeypatch.setattr(train_module, "_device", lambda name: torch.device("cpu"))
    with pytest.raises(BadInput, match=r"device was 'cpu' in .*, but is 'cuda' now"):
        train(
            agent(),
            config(own_file, tmp_path / "run", device="cuda:1"),
            resume=True,
            progress=False,
        )
