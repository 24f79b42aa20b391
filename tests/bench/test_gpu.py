"""The GPU benchmark as far as a CPU goes: its order, its refusals, its arithmetic, a dry run."""

import json
import logging
import math

import pytest

torch = pytest.importorskip("torch")
bench = pytest.importorskip("sorl_fast.bench.gpu")

from sorl_fast.bench.cli import main  # noqa: E402
from sorl_fast.bench.gpu_contenders import UPDATE_OPERATIONS  # noqa: E402
from sorl_fast.bench.shapes import Cell, flop, make_policy, weights_held  # noqa: E402

from sorl_fast import ops  # noqa: E402
from sorl_fast.errors import BadInput  # noqa: E402
from sorl_fast.ops import reference, selfcheck  # noqa: E402
from sorl_fast.ops.implementations import ON_GPU, Implementation  # noqa: E402

CPU = torch.device("cpu")
PLAIN = {"torch-eager": "reference", "cublas-graph": "chain"}  # neither compiles nor interprets
SMALL = bench.DRY._replace(checks=())


@pytest.fixture
def plain(monkeypatch):
    """Only the contenders that are there on any machine."""
    monkeypatch.setattr(bench, "CONTENDERS", PLAIN)


class Event:
    """A CUDA event's stand-in: every call takes 2 ms."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def elapsed_time(self, end):
        assert isinstance(end, Event)
        return 2.0


@pytest.fixture
def events(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)


def times_of(row):
    return [row[name] for name in ("p50_us", "p99_us", "wall_p50_us", "limit_fraction")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_dry_run(tmp_path, capsys, monkeypatch):
    pytest.importorskip("triton")
    # the compiler's trace: thousands of empty lines, should this fail
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    file = tmp_path / "gpu.json"
    code = main(["gpu", "--dry-run", "--json", str(file)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "nothing was measured" in said
    result = json.loads(file.read_text())
    assert result["dry_run"] is True
    assert result["device"] is None
    assert result["sections"] == list(bench.ENDS)
    assert {entry["status"] for entry in result["check"]} == {"ok"}
    done = {(row["operation"], row["contender"]) for row in result["rows"] if not row["note"]}
    assert done == {
        (operation, contender)
        for operation in ("rollout", "best_of_n", "update")
        for contender in bench.CONTENDERS
    }
    for row in result["rows"]:
        assert times_of(row) == [None] * 4
    limits = result["limits"]
    assert limits["copy_gb_per_s"] is None
    assert set(limits["product_tflops"].values()) == {None}


def test_without_a_gpu_nothing_is_estimated(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 2
    assert "add --dry-run" in capsys.readouterr().err


def test_compiled_and_interpreted_kernels_are_not_confused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BadInput, match="Unset it"):
        bench._device(dry=False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setitem(bench.sys.modules, "triton", None)
    with pytest.raises(BadInput, match="TRITON_INTERPRET=1"):
        bench._device(dry=True)


def test_when_time_is_up_the_rest_is_left_out_and_says_so():
    now = iter([0.0])
    run = bench.Bench(CPU, bench.DRY, clock=lambda: next(now, bench.LIMIT + 1))
    for name in ("check", "rollout", "best_of_n", "update"):
        run._section = name
        getattr(run, name)()
    assert [entry["status"] for entry in run.result["check"]] == ["skipped: no time left"]
    assert {row["contender"] for row in run.result["rows"]} == set(bench.CONTENDERS)
    for row in run.result["rows"]:
        assert row["note"].startswith("skipped")
        assert row["max_error"] is None
        assert times_of(row) == [None] * 4


def test_fewer_seconds_shorten_every_section():
    now = iter([0.0])
    run = bench.Bench(CPU, bench.DRY, clock=lambda: next(now, 30.0), seconds=bench.LIMIT / 4)
    for name, end in bench.ENDS.items():
        run._section = name
        assert run.left() == end / 4 - 30.0


@pytest.mark.parametrize("seconds", ["59", "481", "nan"])
def test_seconds_that_cannot_be_kept(seconds, capsys):
    assert main(["gpu", "--dry-run", "--seconds", seconds]) == 2
    assert f"seconds is {seconds}, but must be from 60 to 480" in capsys.readouterr().err


def test_the_sections_end_within_eight_minutes():
    assert list(bench.ENDS.values()) == sorted(bench.ENDS.values())
    assert max(bench.ENDS.values()) < bench.LIMIT <= 480


def test_torch_compile_takes_no_time_from_the_others(monkeypatch):
    """Half a minute a size: whoever comes after it might find no time left."""
    order = []
    run = bench.Bench(CPU, SMALL)
    monkeypatch.setattr(run, "_try", lambda row, *_: order.append(row["contender"]))
    for name in ("rollout", "best_of_n", "update"):
        getattr(run, name)()
        first = order.index("torch-compile")
        assert set(order[first:]) == {"torch-compile"}
        assert set(order) == set(bench.CONTENDERS)
        order.clear()


@pytest.mark.slow
def test_torch_compile_does_not_begin_what_it_cannot_end(monkeypatch):
    left = bench.COMPILING - 1
    run = bench.Bench(CPU, SMALL, clock=lambda: 0.0)
    run.dry = False
    monkeypatch.setattr(run, "left", lambda: left)
    for name, begins in (("torch-compile", False), ("torch-eager", True)):
        row = {"operation": "rollout", "contender": name, "precision": "fp32", "rows": 1}
        assert run._try(row, lambda: "begun", "not") == ("begun" if begins else "not")


@pytest.mark.slow
def test_a_way_that_the_check_refused_is_not_run(plain, monkeypatch):
    def examine(tasks, device, **_):
        wrong = selfcheck.Result("disagrees", "off by 1", {}, {})
        fine = selfcheck.Result("ok", "", {}, {})
        return {task.name: {"chain": wrong, "reference": fine} for task in tasks}

    monkeypatch.setattr(selfcheck, "examine", examine)
    run = bench.Bench(CPU, bench.DRY)
    for name in ("check", "rollout", "update"):
        run._section = name
        getattr(run, name)()
    for row in run.result["rows"]:
        if row["contender"] == "cublas-graph":
            assert row["note"] == "refused: rollout disagrees: off by 1"
        else:
            assert row["note"] is None


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0.01, math.nan], ids=["off", "nan"])
def test_wrong_actions_are_not_timed(wrong, plain, monkeypatch, events):
    right = bench.chain_call
    monkeypatch.setattr(bench, "chain_call", lambda *args: lambda: right(*args)() + wrong)
    run = bench.Bench(CPU, SMALL)
    run._section, run.dry = "update", False
    run.limits()
    run.rollout()
    for row in run.result["rows"]:
        if row["contender"] == "cublas-graph":
            assert "from the definition's" in row["note"]
            assert times_of(row) == [None] * 4
        else:
            assert row["p50_us"] == 2000


@pytest.mark.slow
def test_a_wrong_update_is_not_timed(plain, monkeypatch):
    off = Implementation(lambda *args, precision: reference.critic_ensemble(*args) + 0.1)
    monkeypatch.setitem(ON_GPU["critic_ensemble"], "chain", off)
    run = bench.Bench(CPU, SMALL)
    run._section = "update"
    run.update()
    good, bad = run.result["rows"]
    assert good["note"] is None
    assert good["max_error"] == 0
    assert bad["note"].startswith("refused: ")
    assert bad["max_error"] > 1e-3


@pytest.mark.slow
def test_one_that_fails_does_not_stop_the_others(plain, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of\nresources")

    monkeypatch.setattr(bench, "chain_call", fail)
    run = bench.Bench(CPU, SMALL)
    run._section = "rollout"
    run.rollout()
    notes = [row["note"] for row in run.result["rows"]]
    assert notes == [None, "failed: RuntimeError: out of resources"] * 2


@pytest.mark.slow
def test_times_fractions_and_table(plain, events):
    run = bench.Bench(CPU, SMALL)
    run.dry = run.result["dry_run"] = False
    run._section = "update"
    run.limits()
    limits = run.result["limits"]
    n = SMALL.side // 2
    assert limits["copy_gb_per_s"] == pytest.approx(2 * SMALL.copied / 2e-3 / 1e9)
    assert limits["product_tflops"]["fp32"] == pytest.approx(2 * n**3 / 2e-3 / 1e12)
    run.rollout()
    run.update()
    cell = Cell(1, 2, 1)
    policy = make_policy(28, 5, SMALL.hidden)
    arithmetic = flop(cell, policy) / limits["product_tflops"]["fp32"] / 1e12
    memory = (4 * weights_held(cell, policy) + 4 * 33) / limits["copy_gb_per_s"] / 1e9
    row = run.result["rows"][0]
    assert row["p50_us"] == row["p99_us"] == 2000
    assert row["wall_p50_us"] > 0
    assert row["limit_fraction"] == pytest.approx(max(arithmetic, memory) / 2e-3)
    assert all(row["note"] is None for row in run.result["rows"])
    run.result["device"] = {"name": "a GPU", "driver": "1"}
    assert "a GPU, driver 1" in bench.text(run.result)
    json.dumps(run.result)


@pytest.mark.slow
def test_a_crash_keeps_what_came_before(plain, monkeypatch, tmp_path):
    def crash(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.Bench, "best_of_n", crash)
    run = bench.Bench(CPU, SMALL, tmp_path / "gpu.json")
    with pytest.raises(KeyboardInterrupt):
        run.run()
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["sections"] == ["limits", "check", "rollout"]
    assert len(result["rows"]) == 4


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True)])
def test_tf32_is_a_setting_that_compilers_can_read(precision, allowed):
    before = torch.get_float32_matmul_precision()
    with bench.products(precision), bench.chain.products(precision):
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    assert torch.get_float32_matmul_precision() == before


def test_routes_are_put_back():
    before = {name: getattr(ops, name) for name in UPDATE_OPERATIONS}
    with pytest.raises(ZeroDivisionError), bench.routed("chain", "bf16"):
        assert ops.rollout is not before["rollout"]
        assert ops.rollout.keywords == {"precision": "bf16"}
        assert ops.words is ON_GPU["words"]["reference"].function
        raise ZeroDivisionError
    assert all(getattr(ops, name) is function for name, function in before.items())


@pytest.mark.slow
def test_a_failure_shows_in_the_exit_code(plain, monkeypatch, capsys):
    monkeypatch.setattr(bench, "DRY", SMALL._replace(updates=()))
    assert main(["gpu", "--dry-run"]) == 0
    monkeypatch.setattr(bench, "BOUND", {"fp32": -1.0})
    assert main(["gpu", "--dry-run"]) == 1
    assert "refused" in capsys.readouterr().out
