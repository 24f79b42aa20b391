"""The control loop's accounting, on a clock that only moves when told to."""

import json
import re
import typing
from pathlib import Path

import numpy as np
import pytest
from sorl_fast.bench import loop, peers, shapes
from sorl_fast.bench.harness import Running

from sorl_fast.act import policy_file
from sorl_fast.act.reference import best_of_n
from sorl_fast.errors import BadInput

MS = 1_000_000
REPORT = """memory is not locked (Cannot allocate memory): page faults may occur
avx512, bf16, M = 8, N = 1, 1 thread(s), 1000 Hz for 10 s
latency  p50     123.4  p99     234.5  p99.9     345.6  max     456.7 us
wake-up  p50       1.0  p99       2.0  p99.9       3.0  max       4.0 us
missed 7 of 10000 deadlines; status bits seen: 8
"""


class World:
    """Acts take the given milliseconds each, sleeps overshoot by `late`, sensing takes `sensing`."""

    def __init__(self, acts, late=0.0, sensing=0.0):
        self.now = 0
        self.acts = iter(acts)
        self.late, self.sensing = late, sensing
        self.sensed = []
        self.started = []
        self.woken = []

    def run(self, periods):
        clock = {"clock": lambda: self.now, "sleep": self.sleep, "woken": self.woken.append}
        return loop.figures_of([loop.run_loop(self.act, self.sense, 100.0, periods, **clock)])

    def sleep(self, ns):
        assert ns > 0
        self.now += ns + round(self.late * MS)

    def sense(self, period):
        self.sensed.append(period)
        self.started.append(self.now)
        self.now += round(self.sensing * MS)

    def act(self):
        self.now += round(next(self.acts) * MS)


# Periods of 10 ms, the first beginning at 10 ms.
@pytest.mark.parametrize(
    ("acts", "periods", "missed", "sensed"),
    [
        pytest.param([1, 1, 1], 3, 0, [0, 1, 2], id="in time"),
        pytest.param([10, 10], 2, 0, [0, 1], id="just in time"),
        pytest.param([10.1, 1], 3, 2, [0, 2], id="late: its own and the one that had begun"),
        pytest.param([1, 20, 1], 4, 2, [0, 1, 3], id="until the very end of the next"),
        pytest.param([35, 1], 5, 4, [0, 4], id="three more had begun"),
        pytest.param([15, 15, 15], 6, 6, [0, 2, 4], id="always late"),
        pytest.param([1, 35], 3, 2, [0, 1], id="not beyond the last period"),
        pytest.param([10.1], 1, 1, [0], id="one period"),
    ],
)
def test_missed_deadlines(acts, periods, missed, sensed):
    world = World(acts)
    figures = world.run(periods)
    assert (figures.periods, figures.missed) == (periods, missed)
    assert world.sensed == sensed
    assert world.started == [10 * MS * (p + 1) for p in sensed]
    assert world.woken == world.started


def test_parts_of_a_loop_are_joined():
    world = World([1, 15, 2, 3])
    times = [
        loop.run_loop(world.act, world.sense, 100.0, n, lambda: world.now, world.sleep)
        for n in (3, 2)
    ]
    figures = loop.figures_of(times)
    assert (figures.periods, figures.missed) == (5, 2)
    assert figures.latency.max_us == pytest.approx(15000)
    assert figures.jitter.max_us == pytest.approx(max(times[0].jitter) / 1000)


def test_latency_is_the_act_alone_and_wake_up_the_delay():
    figures = World([1, 2, 3], late=0.5, sensing=4).run(3)
    assert figures.latency == pytest.approx((2000.0, 3000.0, 3000.0, 3000.0))
    assert figures.wake_up == pytest.approx((500.0,) * 4)
    assert figures.missed == 0


def test_sensing_counts_towards_the_deadline():
    assert World([7, 1], sensing=4).run(2).missed == 2


def test_jitter_is_the_deviation_of_the_time_between_actions():
    assert World([3, 3, 3]).run(3).jitter == pytest.approx((0.0,) * 4)
    # delivered at 11, 24, 31: 13 and 7 apart
    assert World([1, 4, 1]).run(3).jitter == pytest.approx((3000.0,) * 4)
    # one period is lost: delivered at 25, 31, 41
    assert World([15, 1, 1]).run(4).jitter.max_us == pytest.approx(4000.0)
    assert World([1]).run(1).jitter == (0.0,) * 4


def test_a_sleep_that_returns_early_is_slept_again():
    world = World([1, 1])
    slept = []

    def nap(ns):
        slept.append(ns)
        world.now += min(ns, 4 * MS)

    times = loop.run_loop(world.act, world.sense, 100.0, 2, clock=lambda: world.now, sleep=nap)
    figures = loop.figures_of([times])
    assert world.started == [10 * MS, 20 * MS]
    assert slept == [10 * MS, 6 * MS, 2 * MS, 9 * MS, 5 * MS, 1 * MS]
    assert figures.wake_up.max_us == 0.0


def test_read_example():
    row = loop.read_example(REPORT)
    assert row["contender"] == "sorl-fast c++"
    assert (row["isa"], row["missed"], row["periods"]) == ("avx512", 7, 10000)
    assert list(row["latency"].values()) == [123.4, 234.5, 345.6, 456.7]
    assert list(row["wake_up"].values()) == [1.0, 2.0, 3.0, 4.0]
    assert "missed 7 of 10000" in loop.row_text(row | {"precision": "bf16", "threads": 1})


@pytest.mark.parametrize("line", range(1, 5))
def test_another_programs_output_is_refused(line):
    lines = REPORT.splitlines()
    del lines[line]
    with pytest.raises(BadInput, match="which is no report of control_loop"):
        loop.read_example("\n".join(lines))


class Definition:
    """The definition as a contender; `off` is added to its actions."""

    precision, threads = "fp32", 1

    def __init__(self, name, off=0.0):
        self.name, self.off = name, off

    def prepare(self, cell, policy, obs, noise):
        return Running(
            lambda: best_of_n(policy, obs, noise, cell.steps).action + np.float32(self.off),
            lambda actions: actions,
        )


class FakeNative:
    """Says what a native module says."""

    @staticmethod
    def isas(precision):
        return ["scalar"]

    @staticmethod
    def burn(rounds):
        FakeNative.burnt.append(rounds)

    burnt: typing.ClassVar[list[int]] = []


@pytest.fixture
def rivals(monkeypatch):
    found = [Definition("onnxruntime")]
    monkeypatch.setattr(peers, "import_native", lambda: FakeNative)
    monkeypatch.setattr(peers, "import_bench", lambda: FakeNative)
    monkeypatch.setattr(peers, "make_peers", lambda names, **_: found)
    monkeypatch.setattr(loop, "SorlFast", lambda precision, threads: Definition("sorl-fast"))
    return found


@pytest.fixture
def policy_path(tmp_path):
    path = tmp_path / "policy.safetensors"
    policy_file.save(path, shapes.make_policy(3, 2, hidden=8))
    return str(path)


def test_run_puts_the_same_loop_of_the_peer_beside(rivals, policy_path, tmp_path, capsys):
    path = tmp_path / "loop.json"
    argv = ["--hz", "1000", "--seconds", "0.02", "--policy", policy_path, "--json", str(path)]
    assert loop.run([*argv, "--steps", "2", "--candidates", "3"]) == 0
    values = json.loads(path.read_text())
    contenders = ["sorl-fast", "onnxruntime", "registers only"]
    assert [row["contender"] for row in values["rows"]] == contenders
    assert [row["periods"] for row in values["rows"]] == [20, 20, 20]
    assert (values["steps"], values["candidates"]) == (2, 3)
    assert set(values["rows"][0]["jitter"]) == {"p50_us", "p99_us", "p999_us", "max_us"}
    out = capsys.readouterr().out
    assert len(re.findall(r"missed \d+ of 20 deadlines", out)) == 3
    assert len(re.findall(r"latency .* p99\.9 / p50 \d", out)) == 3


def test_the_machines_own_tail_is_that_of_a_call_as_long(monkeypatch):
    burnt = []

    def burn(rounds):  # a microsecond for ten rounds, and sometimes a neighbour's
        burnt.append(rounds)
        clock[0] += rounds * 1e-7 + (1e-3 if len(burnt) % 7 == 0 else 0.0)

    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    args = loop._parse(["--hz", "1000", "--seconds", "0.002"])
    row = loop._machine(burn, 250.0, args)
    assert row["contender"] == "registers only"
    assert burnt[-1] == 2500
    assert row["periods"] == 2
    loop._machine(burn, 1e-6, args)
    assert burnt[-1] == 1  # never nothing


def test_run_alone_and_the_example(rivals, policy_path, tmp_path, capsys):
    example = tmp_path / "control_loop"
    example.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/args\ncat <<'end'\n{REPORT}end\n")
    example.chmod(0o755)
    argv = ["--hz", "500", "--seconds", "0.01", "--policy", policy_path, "--precision", "bf16"]
    assert loop.run([*argv, "--alone", "--example", str(example)]) == 0
    out = capsys.readouterr().out
    assert "\nonnxruntime" not in out
    assert "sorl-fast c++ avx512 bf16, 1 thread: missed 7 of 10000 deadlines" in out
    given = (tmp_path / "args").read_text().split()
    assert given[0] == policy_path
    assert given[1:7] == ["--hz", "500", "--steps", "8", "--seconds", "1"]
    assert given[7:] == ["--candidates", "1", "--threads", "1", "--precision", "bf16"]


def test_without_onnxruntime_it_says_how_to_go_on(monkeypatch, policy_path):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"not installed: .*, or leave it out with --alone"):
        loop.run(["--seconds", "0.01", "--policy", policy_path])


def test_the_advised_build_makes_the_example():
    asked = re.search(r"-D(\w+)=ON", loop.BUILD_EXAMPLE)[1]
    lists = Path(__file__).parents[2] / "csrc" / "CMakeLists.txt"
    assert re.search(rf"if\({asked}\).*control_loop", lists.read_text(), re.DOTALL)


def test_an_example_that_fails(rivals, policy_path, tmp_path):
    example = tmp_path / "control_loop"
    example.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    example.chmod(0o755)
    argv = ["--hz", "500", "--seconds", "0.01", "--policy", policy_path, "--alone"]
    with pytest.raises(BadInput, match="ended with 3: broken"):
        loop.run([*argv, "--example", str(example)])


def test_a_wrong_contender_is_not_looped(rivals, policy_path, capsys):
    rivals[:] = [Definition("onnxruntime", off=0.1)]
    assert loop.run(["--hz", "500", "--seconds", "0.01", "--policy", policy_path]) == 1
    assert "onnxruntime" in capsys.readouterr().err


def test_without_the_right_to_real_time(rivals, policy_path, capsys, monkeypatch):
    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(loop.os, "sched_setscheduler", refuse)
    argv = ["--hz", "500", "--seconds", "0.01", "--policy", policy_path, "--alone"]
    assert loop.run([*argv, "--fifo"]) == 0
    out = capsys.readouterr().out
    assert "SCHED_FIFO is not allowed (Operation not permitted)" in out
    assert "missed" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--hz", "0"], r"hz is 0\.0, but must be in \[1, 100000\]. Set --hz"),
        (["--hz", "nan"], "hz is nan"),
        (["--seconds", "0"], r"seconds is 0\.0, but must be in"),
        (["--seconds", "0.01", "--hz", "10"], "less than one period"),
        (["--candidates", "0"], "candidates is 0, but must be in"),
        (["--steps", "3"], "steps is 3, but must be one of 1, 2, 4, 8. Set --steps"),
        (["--example", "/no/such/program"], "is not a program. Build it"),
        (["--policy", "/no/such/file"], "is not a file that exists"),
    ],
)
def test_bad_arguments(rivals, argv, message):
    with pytest.raises(BadInput, match=message):
        loop.run(argv)


@pytest.mark.slow
def test_beside_a_deadline(capsys, monkeypatch):
    """Each loop runs all periods, and what the calls with a deadline did is told; no peer need be there."""
    monkeypatch.setattr(peers, "make_peers", lambda *_, **__: pytest.fail("a peer was asked for"))
    assert (
        loop.run([*("--deadline", "900", "--seconds", "0.2", "--candidates", "4", "--load", "1")])
        == 0
    )
    printed = capsys.readouterr().out
    for name in ("fixed", "deadline", "registers only"):
        assert re.search(rf"^{name} .*missed \d+ of 200 deadlines", printed, re.MULTILINE)
    assert re.search(r"^  \d+ calls, \d+ cut short, of which \d+ held", printed, re.MULTILINE)
    assert re.search(r"^missed beyond 'registers only': -?\d+ with fixed", printed, re.MULTILINE)
    for wrong in ("0", "1001"):
        with pytest.raises(BadInput, match="but must be above 0 and at most a period, 1000 us"):
            loop.run(["--deadline", wrong])
