"""The self-check refuses every way that is wrong, with the right reason, and none that is right."""

import pytest
import torch
import wrong_ways

from sorl_fast.isolated import Unavailable
from sorl_fast.ops import problems, selfcheck, table
from sorl_fast.ops.judge import Disagrees, check_network_operation
from sorl_fast.ops.problems import Case
from sorl_fast.ops.ways import (
    GPU,
    NETWORK_OPERATIONS,
    OPERATIONS,
    PLAIN_OPERATIONS,
    PRECISIONS,
    WAYS_OF_GPU,
    Network,
    Task,
    Way,
    _late,
    tasks,
)

CPU = torch.device("cpu")
NET = Network(7, 5, 64, 2, 2)
TINY = Network(3, 2, 8, 1, 2)


def item(operation, way, registry, *, network=NET, precision="fp32", form="tiny"):
    return {
        **{"operation": operation, "precision": precision, "network": list(network)},
        **{"way": way, "device": "cpu", "form": form, "registry": registry, "seed": 0},
    }


def look(operation, way, registry, **more):
    """The outcome in this process."""
    return selfcheck.examine_item(item(operation, way, registry, **more), lambda text: None)


@pytest.mark.parametrize("name", wrong_ways.WRONG)
def test_what_is_wrong_is_refused_with_the_reason(name):
    operation, _, says = wrong_ways.WRONG[name]
    # candidates must be several for best_of_n
    form = "small" if operation == "best_of_n" else "tiny"
    outcome = look(operation, name, "wrong_ways:WAYS", form=form)
    assert outcome["status"] == "disagrees"
    assert says in outcome["reason"]
    assert "seed=" in outcome["reason"]  # the case can be made again


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_reference_is_accepted(operation, precision):
    assert look(operation, "reference", GPU, precision=precision)["status"] == "ok"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("operation", NETWORK_OPERATIONS)
def test_an_honest_low_precision_is_accepted(operation, precision):
    assert look(operation, "chain", GPU, precision=precision)["reason"] == ""


# --- the kernels, in triton's interpreter; bf16 needs the repair that only tests/kernels has


@pytest.mark.parametrize(
    "task",
    {task.name: task for p in ("fp32", "fp16") for task in tasks(NET, (p,))}.values(),
    ids=lambda task: f"{task.operation}-{task.precision}",
)
def test_the_kernels_are_accepted(task):
    pytest.importorskip("triton")
    found = look(task.operation, "fused", GPU, precision=task.precision)
    assert found["reason"] == ""


@pytest.mark.parametrize("way", ["fused", "chain", "reference"])
def test_a_critic_without_action_is_examined_like_any_other(way):
    pytest.importorskip("triton")
    value = Network(7, 0, 64, 2, 2)
    assert look("critic_ensemble", way, GPU, network=value)["reason"] == ""
    wrong = look("critic_ensemble", "member", "wrong_ways:WAYS", network=value)
    assert "value is off" in wrong["reason"]


@pytest.mark.slow
def test_a_first_use_examines_the_kernels_and_chooses(tmp_path, monkeypatch):
    """The whole way: child, kernels, times, table, choice; then another process's first use."""
    pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def examine(wanted, device):
        return selfcheck.examine(wanted, device, form="tiny timed")

    sizes = NET.layout(critic=False)
    chosen = table.Chooser(CPU, examine).choice("rollout", "fp32", sizes, 4)
    assert chosen in ("chain", "reference")  # the interpreter is never the fastest
    found = table.load(CPU)
    assert {t.name for t in tasks(NET, ("fp32",))} == set(found)
    for ways in found.values():
        assert {result.status for result in ways.values()} == {"ok"}
        assert all(result.forward for result in ways.values())
    assert table.Chooser(CPU, None).choice("rollout", "fp32", sizes, 4) == chosen


def test_noise_drawn_from_a_key_is_accepted():
    for operation, form in (("rollout", "tiny"), ("best_of_n", "small")):
        assert look(operation, "fused", "wrong_ways:RIGHT_KEY", form=form)["reason"] == ""


def test_low_precision_is_not_accepted_as_float32():
    way = WAYS_OF_GPU["velocity"]["chain"]

    def cheats(*args, precision):
        return way.function(*args, precision="bf16")

    task, case = Task("velocity", "fp32", NET), Case(NET, 5, 1, 1, 0)
    with pytest.raises(Disagrees, match="value is off"):
        check_network_operation(Way(cheats), task, case, CPU, print)


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_bounds_of_low_precision_are_tight(precision):
    """A hundredth wrong is noticed wherever rounding alone can't explain it."""

    def off(*args, precision):
        return 1.03 * WAYS_OF_GPU["velocity"]["chain"].function(*args, precision="fp32")

    task, case = Task("velocity", precision, NET), Case(NET, 37, 1, 1, 0)
    with pytest.raises(Disagrees, match="value is off by 3"):
        check_network_operation(Way(off), task, case, CPU, print)


class Afresh:
    """A recorder that runs the function at every replay."""

    def run(self, function):
        return function()

    def record(self, function):
        return function


class Frozen(Afresh):
    """A recorder whose replays return what the recording did."""

    def record(self, function):
        result = function()
        return lambda: result


def test_a_recording_that_follows_is_accepted():
    way = Way(wrong_ways.right("velocity"))
    selfcheck.check_replay(way, Task("velocity", "fp32", TINY), CPU, print, Afresh())


def test_a_recording_that_does_not_follow_is_refused():
    way = Way(wrong_ways.right("velocity"))
    with pytest.raises(Disagrees, match="as a CUDA graph"):
        selfcheck.check_replay(way, Task("velocity", "fp32", TINY), CPU, print, Frozen())


def test_a_module_that_is_missing_is_a_reason_and_no_harm(monkeypatch):
    missing = {"velocity": {"fused": Way(_late("no_such_module", "velocity"))}}
    monkeypatch.setattr(wrong_ways, "MISSING", missing, raising=False)
    outcome = look("velocity", "fused", "wrong_ways:MISSING")
    assert outcome["status"] == "failed"
    assert "no_such_module is not installed" in outcome["reason"]
    assert outcome["harmless"]


def test_a_device_that_cannot_be_used_blames_nobody():
    broken = item("velocity", "reference", GPU) | {"device": "cuda:63"}
    with pytest.raises(Unavailable, match="cuda:63"):
        selfcheck.examine_item(broken, print)


def test_too_little_memory_blames_nobody(monkeypatch):
    def out_of_memory(*args, precision):
        raise torch.OutOfMemoryError("CUDA out of memory")

    full = {"velocity": {"fused": Way(out_of_memory)}}
    monkeypatch.setattr(wrong_ways, "FULL", full, raising=False)
    with pytest.raises(Unavailable, match="free memory"):
        look("velocity", "fused", "wrong_ways:FULL")


def test_times_by_rows():
    for operation in NETWORK_OPERATIONS:
        outcome = look(operation, "reference", GPU, network=TINY, form="tiny timed")
        assert set(outcome["forward"]) == {4, 16}
        assert set(outcome["backward"]) == (set() if operation == "best_of_n" else {4, 16})
        assert all(us > 0 for us in outcome["forward"].values())
    for operation in PLAIN_OPERATIONS:
        outcome = look(operation, "reference", GPU, network=TINY, form="tiny timed")
        assert len(outcome["forward"]) == 1


def test_a_gpu_is_timed_on_its_own_stream(monkeypatch):
    """Also where another GPU is the current one, whose stream has nothing to do."""
    device, recorded = torch.device("cuda:1"), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            recorded.append(stream)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    assert selfcheck.microseconds(lambda: None, device, 0.0) == pytest.approx(3000)
    assert set(recorded) == {"stream of cuda:1"}


def test_rows_that_do_not_fit_are_left_out(monkeypatch):
    def small(actor, obs, *rest, precision):
        if len(obs) > 10:
            raise torch.OutOfMemoryError
        return wrong_ways.right("velocity")(actor, obs, *rest, precision=precision)

    monkeypatch.setattr(wrong_ways, "SMALL", {"velocity": {"fused": Way(small)}}, raising=False)
    outcome = look("velocity", "fused", "wrong_ways:SMALL", network=TINY, form="tiny timed")
    assert set(outcome["forward"]) == {4}


def test_the_same_seed_gives_the_same_cases():
    task, form = Task("rollout", "fp32", NET), problems.FORMS["full"]
    assert list(problems.cases(task, form, 3)) == list(problems.cases(task, form, 3))
    assert list(problems.cases(task, form, 3)) != list(problems.cases(task, form, 4))


def test_names_leave_out_what_does_not_matter():
    other = NET._replace(members=5)
    assert Task("rollout", "bf16", NET).name == Task("rollout", "bf16", other).name
    assert Task("best_of_n", "bf16", NET).name != Task("best_of_n", "bf16", other).name
    assert Task("adam_ema_step", "bf16", NET).name == "adam_ema_step"


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_rounding_keeps_the_right_bits(precision):
    bits = {"tf32": 10, "fp16": 10, "bf16": 7}[precision]
    x = torch.tensor([1.0, 1 + 2.0**-bits, 1 + 2.0 ** -(bits + 2), -3.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 1 + 2.0**-bits, 1.0, -3.0], dtype=torch.float64)
    assert problems.rounded(x, precision).equal(expected)


@pytest.mark.slow
def test_children_blame_who_is_to_blame():
    """Ways that crash, hang or raise, among others that are right: each its own status."""
    seen = []
    found = selfcheck.examine(
        [Task("velocity", "fp32", TINY)],
        CPU,
        form="tiny",
        registry="wrong_ways:ENDING",
        silence=10,
        progress=lambda done, total, text: seen.append((done, total)),
    )
    (ways,) = found.values()
    statuses = {way: result.status for way, result in ways.items()}
    assert statuses == {
        "right": "ok",
        "ragged": "disagrees",
        "raises": "failed",
        "exits": "crashed",
        "segfaults": "crashed",
        "hangs": "hung",
        "prints": "ok",
    }
    assert "shared memory" in ways["raises"].reason
    assert "code 7" in ways["exits"].reason
    assert "SIGSEGV" in ways["segfaults"].reason
    assert "nothing for 10 s" in ways["hangs"].reason
    assert "values and gradients" in ways["hangs"].reason  # where it was
    assert seen == [(i, 7) for i in range(7)]
