"""The self-check refuses every implementation that is wrong, with the right reason, and no right one."""

import pytest
import torch
import wrong_implementations

from sorl_fast.isolated import Unavailable
from sorl_fast.ops import problems, selfcheck, table
from sorl_fast.ops.implementations import (
    GPU,
    NETWORK_OPERATIONS,
    ON_GPU,
    OPERATIONS,
    PLAIN_OPERATIONS,
    PRECISIONS,
    SAMPLING_OPERATIONS,
    SCHEDULED,
    Implementation,
    Network,
    Task,
    _late,
    tasks,
)
from sorl_fast.ops.judge import Disagrees, check_network_operation
from sorl_fast.ops.problems import Case

CPU = torch.device("cpu")
NET = Network(7, 5, 64, 2, 2)
TINY = Network(3, 2, 8, 1, 2)


def item(operation, implementation, registry, *, network=NET, precision="fp32", form="tiny"):
    return {
        **{"operation": operation, "precision": precision, "network": list(network)},
        **{
            "implementation": implementation,
            "device": "cpu",
            "form": form,
            "registry": registry,
            "seed": 0,
        },
    }


def look(operation, implementation, registry, **more):
    """The outcome in this process."""
    return selfcheck.examine_item(
        item(operation, implementation, registry, **more), lambda text: None
    )


@pytest.mark.parametrize("name", wrong_implementations.WRONG)
def test_what_is_wrong_is_refused_with_the_reason(name):
    operation, _, says = wrong_implementations.WRONG[name]
    # candidates must be several for best_of_n
    form = "small" if operation in SAMPLING_OPERATIONS else "tiny"
    outcome = look(operation, name, "wrong_implementations:ALL", form=form)
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


# of those in fp32 the first use, below, examines all but what follows a schedule
@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [t for t in tasks(NET, ("fp16", "fp32")) if t.precision == "fp16" or t.operation == SCHEDULED],
    ids=lambda task: f"{task.operation}-{task.precision}",
)
def test_the_kernels_are_accepted(task):
    pytest.importorskip("triton")
    found = look(task.operation, "fused", GPU, precision=task.precision)
    assert found["reason"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["fused", "chain", "reference"])
def test_a_critic_without_action_is_examined_like_any_other(implementation):
    pytest.importorskip("triton")
    value = Network(7, 0, 64, 2, 2)
    assert look("critic_ensemble", implementation, GPU, network=value)["reason"] == ""
    wrong = look("critic_ensemble", "member", "wrong_implementations:ALL", network=value)
    assert "value is off" in wrong["reason"]


@pytest.mark.slow
def test_a_first_use_examines_the_kernels_and_chooses(tmp_path, monkeypatch):
    """The whole implementation: child, kernels, times, table, choice; then another process's first use."""
    pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def examine(wanted, device):
        return selfcheck.examine(wanted, device, form="tiny timed")

    sizes = NET.layout(critic=False)
    chosen = table.Chooser(CPU, examine).choice("rollout", "fp32", sizes, 4)
    assert chosen in ("chain", "reference")  # the interpreter is never the fastest
    found = table.load(CPU)
    wanted = {t.name for t in tasks(NET, ("fp32",)) if t.operation != SCHEDULED}
    assert wanted == set(found)  # what follows a schedule is examined where one is first asked for
    for implementations in found.values():
        assert {result.status for result in implementations.values()} == {"ok"}
        assert all(result.forward for result in implementations.values())
    assert table.Chooser(CPU, None).choice("rollout", "fp32", sizes, 4) == chosen


def test_noise_drawn_from_a_key_is_accepted():
    for operation, form in (("rollout", "tiny"), ("best_of_n", "small")):
        assert (
            look(operation, "fused", "wrong_implementations:RIGHT_KEY", form=form)["reason"] == ""
        )


def test_low_precision_is_not_accepted_as_float32():
    implementation = ON_GPU["velocity"]["chain"]

    def cheats(*args, precision):
        return implementation.function(*args, precision="bf16")

    task, case = Task("velocity", "fp32", NET), Case(NET, 5, 1, 1, 0)
    with pytest.raises(Disagrees, match="value is off"):
        check_network_operation(Implementation(cheats), task, case, CPU, print)


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_bounds_of_low_precision_are_tight(precision):
    """A hundredth wrong is noticed wherever rounding alone can't explain it."""

    def off(*args, precision):
        return 1.03 * ON_GPU["velocity"]["chain"].function(*args, precision="fp32")

    task, case = Task("velocity", precision, NET), Case(NET, 37, 1, 1, 0)
    with pytest.raises(Disagrees, match="value is off by 3"):
        check_network_operation(Implementation(off), task, case, CPU, print)


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
    implementation = Implementation(wrong_implementations.right("velocity"))
    selfcheck.check_replay(implementation, Task("velocity", "fp32", TINY), CPU, print, Afresh())


def test_a_recording_that_does_not_follow_is_refused():
    implementation = Implementation(wrong_implementations.right("velocity"))
    with pytest.raises(Disagrees, match="as a CUDA graph"):
        selfcheck.check_replay(implementation, Task("velocity", "fp32", TINY), CPU, print, Frozen())


def test_a_module_that_is_missing_is_a_reason_and_no_harm(monkeypatch):
    missing = {"velocity": {"fused": Implementation(_late("no_such_module", "velocity"))}}
    monkeypatch.setattr(wrong_implementations, "MISSING", missing, raising=False)
    outcome = look("velocity", "fused", "wrong_implementations:MISSING")
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

    full = {"velocity": {"fused": Implementation(out_of_memory)}}
    monkeypatch.setattr(wrong_implementations, "FULL", full, raising=False)
    with pytest.raises(Unavailable, match="free memory"):
        look("velocity", "fused", "wrong_implementations:FULL")


def test_times_by_rows():
    for operation in NETWORK_OPERATIONS:
        outcome = look(operation, "reference", GPU, network=TINY, form="tiny timed")
        assert set(outcome["forward"]) == {4, 16}
        assert set(outcome["backward"]) == (set() if operation in SAMPLING_OPERATIONS else {4, 16})
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
        return wrong_implementations.right("velocity")(actor, obs, *rest, precision=precision)

    monkeypatch.setattr(
        wrong_implementations,
        "SMALL",
        {"velocity": {"fused": Implementation(small)}},
        raising=False,
    )
    outcome = look(
        "velocity", "fused", "wrong_implementations:SMALL", network=TINY, form="tiny timed"
    )
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
    """Implementations that crash, hang or raise, among others that are right: each its own status."""
    seen = []
    found = selfcheck.examine(
        [Task("velocity", "fp32", TINY)],
        CPU,
        form="tiny",
        registry="wrong_implementations:ENDING",
        silence=10,
        progress=lambda done, total, text: seen.append((done, total)),
    )
    (implementations,) = found.values()
    statuses = {implementation: result.status for implementation, result in implementations.items()}
    assert statuses == {
        "right": "ok",
        "ragged": "disagrees",
        "raises": "failed",
        "exits": "crashed",
        "segfaults": "crashed",
        "hangs": "hung",
        "prints": "ok",
    }
    assert "shared memory" in implementations["raises"].reason
    assert "code 7" in implementations["exits"].reason
    assert "SIGSEGV" in implementations["segfaults"].reason
    assert "nothing for 10 s" in implementations["hangs"].reason
    assert "values and gradients" in implementations["hangs"].reason  # where it was
    assert seen == [(i, 7) for i in range(7)]
