"""A replayed update is the update as written, bit for bit, whatever the method."""

import copy

import pytest
import torch
from learn.test_methods import agent as agent
from learn.test_methods import make_data, method_config, method_of
from learn.test_methods import one_thread as one_thread

from sorl_fast import ops
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.noise import GeneratorNoise
from sorl_fast.ops.replay import Arena, Replayed

native = pytest.importorskip("sorl_fast.ops.native", reason="the extension is not built")
pytestmark = pytest.mark.skipif(ops.backend() != "native", reason="no native operations")


class Written(Learner):
    """A learner whose updates run as they are written."""

    def update(self, batch, noise, choice):
        return self.method.update(self, batch, noise, choice)


PRECISIONS = [p for p in ("fp32", "bf16") if native.isas(p)]


def learners(agent):
    return [
        kind(method_of(agent), 5, 3, torch.Generator().manual_seed(0))
        for kind in (Learner, Written)
    ]


@pytest.mark.slow
def test_replays_are_the_update_as_written(agent):
    data, random, host = (
        make_data(),
        torch.Generator().manual_seed(0),
        torch.Generator().manual_seed(1),
    )
    replayed, written = learners(agent)
    noise, choices, said = GeneratorNoise(replayed.method.plan(3), 3, random), {}, []
    for n in range(1, 60):
        choice = replayed.method.choose(host, n)
        choices[choice] = choices.get(choice, 0) + 1
        given = data.sample(16, random), noise.draw(), choice
        said.append([x.update(*given) for x in (replayed, written)])
    assert max(choices.values()) > 2
    for n, (got, expected) in enumerate(said, 1):  # also none is overwritten by a later one
        assert torch.equal(got, expected), n
    for (name, x), y in zip(replayed.state().items(), written.state().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("method", "shape"),
    [
        ("sorl", {"hidden": 300, "depth": 3, "q_coef": 10.0, "clip_norm": 1e-3}),
        ("fql", {"hidden": 130, "depth": 2, "alpha": 10.0, "flow_steps": 2, "ensemble": 3}),
        ("rebrac", {"hidden": 257, "depth": 1}),
    ],
)
def test_what_the_optimiser_packs_on_its_way_is_what_is_packed_later(
    method, shape, threads, precision
):
    """Rows of blocks that end between two chunks, and those of which two threads have a part."""
    agent = method_config(method, "mine", {"batch_size": 16} | shape)
    ops.configure(precision=precision, threads=threads)
    replayed, written = learners(agent)
    data, random = make_data(), torch.Generator().manual_seed(0)
    host = torch.Generator().manual_seed(1)
    noise = GeneratorNoise(replayed.method.plan(3), 3, random)
    for n in range(1, 20):
        choice = replayed.method.choose(host, n)
        given = data.sample(16, random), noise.draw(), choice
        got, expected = (x.update(*given) for x in (replayed, written))
        assert torch.equal(got, expected), n
    for (name, x), y in zip(replayed.state().items(), written.state().values(), strict=True):
        assert torch.equal(x, y), name


def updates(learner, n, choice=None, rows=16):
    """Make updates of one choice; return what the last one said."""
    data, random = make_data(), torch.Generator().manual_seed(0)
    noise = GeneratorNoise(learner.method.plan(3), 3, random)
    choice = choice or learner.method.choose(torch.Generator().manual_seed(0), 1)
    for _ in range(n):
        said = learner.update(data.sample(rows, random), noise.draw(), choice)
    return said


def test_the_third_update_of_a_choice_runs_no_line_of_the_method(agent, monkeypatch):
    learner, written = learners(agent)
    updates(learner, 2), updates(written, 2)
    expected = updates(written, 1)
    with monkeypatch.context() as patch:
        patch.setattr(type(learner.method), "update", lambda *args: pytest.fail("as written"))
        assert torch.equal(updates(learner, 1), expected)


# exp, tanh, or the residual score network, which is PyTorch's
LEFT_TO_PYTORCH = {"iql": 1, "rebrac": 1, "idql": 4}


def test_an_update_is_one_call_of_csrc(agent):
    """Between two there would be PyTorch's code, which csrc's work has pushed out of the caches."""
    learner, _ = learners(agent)
    updates(learner, 2)
    for recording in filter(None, learner._replayed._seen.values()):
        programs = [call for call in recording._calls if call.__qualname__ == "Program.run"]
        others = len(recording._calls) - len(programs)
        expected = LEFT_TO_PYTORCH.get(learner.method.config.method, 0)
        assert (others > 0, len(programs) > 1) == (expected > 0, expected > 0)


@pytest.fixture
def sorl():
    return method_config(
        "sorl", "mine", {"q_coef": 10.0, "batch_size": 16, "hidden": 8, "depth": 2}
    )


def test_what_is_written_to_the_networks_between_updates_is_seen(sorl):
    learner, written = learners(sorl)
    kept = {name: x.clone() for name, x in written.state().items()}
    for x in (learner, written):
        updates(x, 4)
        x.load_state(kept, 0)
    assert torch.equal(updates(learner, 1), updates(written, 1))
    with torch.no_grad():
        for x in (learner, written):
            x.networks["actor"].tensors()["0/w"].data.mul_(0.5)  # torch counts nothing
            ops.forget()
    assert torch.equal(updates(learner, 1), updates(written, 1))


def test_other_settings_are_another_recording(sorl):
    learner, written = learners(sorl)
    updates(learner, 3), updates(written, 3)
    for x in (learner, written):
        adam = x.optimisers["actor"]
        adam.settings = adam.settings._replace(lr=0.5)
    assert torch.equal(updates(learner, 1), updates(written, 1))
    assert torch.equal(updates(learner, 3), updates(written, 3))


def test_a_copy_of_a_learner_leaves_the_original_alone(sorl):
    learner, _ = learners(sorl)
    updates(learner, 3)
    before = {name: x.clone() for name, x in learner.state().items()}
    updates(copy.deepcopy(learner), 3)
    assert all(torch.equal(before[name], x) for name, x in learner.state().items())


def test_a_step_that_reads_a_number_runs_as_written():
    replayed, x = Replayed(), torch.arange(4.0)

    def step(y):
        return y * (1 if float(y.sum()) > 0 else 2)

    signs = [float(replayed("key", [x * sign], step)[1]) for sign in (1, 1, 1, -1)]
    assert signs == [1, 1, 1, -2]


def test_recordings_share_their_large_blocks():
    arena = Arena()
    for _ in range(3):
        arena.begin()
        first = arena.take(1 << 16)
        arena.give(first)
        assert arena.take(1 << 16) is first
        other = arena.take(1 << 16)
    arena.begin()
    assert {id(arena.take(1 << 16)) for _ in range(2)} == {id(first), id(other)}


def test_a_kernel_that_was_asked_for_is_no_call_of_csrc(sorl, monkeypatch):
    """Which is not known how to make again: the update runs as written, each time."""
    monkeypatch.setattr("sorl_fast.ops.program._OURS", {})
    learner, written = learners(sorl)
    assert torch.equal(updates(learner, 4), updates(written, 4))
