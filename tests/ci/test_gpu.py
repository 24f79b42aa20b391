"""ci/gpu.sh as far as a CPU goes: its time limits, what it keeps, and parts of a dry run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def gpu(monkeypatch):
    """The command's module, with what it imports beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "ci"))
    import gpu

    return gpu


@pytest.fixture
def run(gpu, monkeypatch, tmp_path, capsys):
    """Run the command with parts of Python text; return its code, gpu.json and gpu.log."""
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    monkeypatch.setattr(gpu, "make_package", lambda work: None)

    def run(*texts, seconds=30.0):
        def parts(work, dry):
            named = enumerate(texts)
            return [gpu.Part(f"p{i}", seconds, ("-c", t, str(work))) for i, t in named]

        monkeypatch.setattr(gpu, "parts", parts)
        code = gpu.main(["--out", str(tmp_path / "out")])
        result = json.loads((tmp_path / "out" / "gpu.json").read_text())
        return code, result, (tmp_path / "out" / "gpu.log").read_text()

    return run


def kept(name, value):
    """Text of a part that writes down what it found."""
    return f"import json, pathlib, sys; pathlib.Path(sys.argv[1], '{name}.json').write_text('{value}');"


def test_every_part_runs_though_one_fails(run):
    code, result, log = run(
        "print('no such thing'); exit(3)",
        "import os; os.kill(os.getpid(), 11)",
        kept("p2", 5) + "print('done')",
        "print('pytest is not there'); exit(77)",
    )
    assert code == 1
    assert [(p["name"], p["status"], p["reason"]) for p in result["parts"]] == [
        ("p0", "failed", "no such thing"),
        ("p1", "failed", "killed by SIGSEGV"),
        ("p2", "ok", ""),
        ("p3", "skipped", "pytest is not there"),
    ]
    assert [p["found"] for p in result["parts"]] == [None, None, 5, None]
    assert "no such thing" in log
    assert "done" in log


def test_what_is_skipped_is_no_failure(run):
    assert run("", "exit(77)")[0] == 0


@pytest.mark.slow
def test_a_part_ends_with_its_time_and_so_does_what_it_started(run, tmp_path):
    pid = tmp_path / "pid"
    child = "import subprocess, sys, time; " + kept("p0", 1)
    child += "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    child += f"open({str(pid)!r}, 'w').write(str(c.pid)); time.sleep(600)"
    code, result, _ = run(child, "", seconds=3.0)
    assert code == 1
    first, second = result["parts"]
    assert (first["status"], first["reason"]) == ("timed out", "still at work after 3 s")
    assert first["found"] == 1  # what it knew by then
    assert second["status"] == "ok"
    deadline = time.monotonic() + 10
    stat = Path("/proc", pid.read_text(), "stat")
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "a part's child is still there"
        time.sleep(0.01)


def test_results_are_there_after_every_part(run, tmp_path):
    file = tmp_path / "out" / "gpu.json"
    look = f"import pathlib; text = pathlib.Path({str(file)!r}).read_text(); "
    code, result, _ = run("", look + """assert '"name": "p0"' in text and '"p1"' not in text""")
    assert code == 0, result


@pytest.mark.slow
def test_no_part_begins_that_the_whole_has_no_time_for(run, gpu, monkeypatch):
    monkeypatch.setattr(gpu, "TOTAL", 0.0)
    code, result, _ = run("import time; time.sleep(600)")
    assert code == 1
    assert result["parts"][0]["limit"] == 1.0


def test_all_parts_together_end_within_nine_minutes(gpu):
    assert sum(part.seconds for part in gpu.parts(Path(), False)) <= gpu.TOTAL < 540


def test_a_part_that_does_not_exist_is_named(gpu, capsys):
    with pytest.raises(SystemExit) as end:
        gpu.main(["--parts", "kernel"])
    assert end.value.code == 2
    assert "'kernel'" in capsys.readouterr().err


def test_the_environment_is_not_the_users(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("SORL_BACKEND", "torch")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    there = gpu.environment(tmp_path, False)
    assert not {"SORL_BACKEND", "PYTEST_ADDOPTS"} & set(there)
    assert there["PYTHONPATH"].split(":")[0] == str(tmp_path / "package")
    assert there["PYTHONPATH"].endswith(":/theirs")
    assert there["TRITON_INTERPRET"] == "0"
    assert gpu.environment(tmp_path, True)["TRITON_INTERPRET"] == "1"


def test_headers_of_pybind11_are_torchs_where_it_is_missing(gpu, monkeypatch, tmp_path):
    find = gpu.importlib.util.find_spec
    missing = ("pybind11", "hypothesis")
    monkeypatch.setattr(
        gpu.importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    gpu.make_stand_ins(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "stand_ins")}
    say = "import pybind11; print(pybind11.get_include())"
    include = subprocess.check_output([sys.executable, "-c", say], env=environment, text=True)
    pytest.importorskip("torch")
    assert Path(include.strip(), "pybind11", "pybind11.h").is_file()


TESTS = {
    "tests/kernels/test_toy.py": (
        "import os, pytest\n"
        "from hypothesis import given, settings\n"
        "from hypothesis import strategies as st\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_left_out(): pytest.skip('not here')\n"
        "@settings(max_examples=3)\n"
        "@given(n=st.integers(0, 3), m=st.lists(st.integers(1, 2)))\n"
        "def test_any(n, m): pass\n"
    ),
    "tests/kernels/test_unreadable.py": "import no_such_module\n",
    "tests/kernels/test_z_dies.py": "import os\ndef test_dies(): os._exit(1)\n",
}


@pytest.mark.slow
def test_the_kernels_tests_run_without_plug_ins(gpu, monkeypatch, tmp_path):
    """And without hypothesis; a test that kills its process is named."""
    import gpu_work

    monkeypatch.setattr(gpu_work, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_work, "CORES", 2)
    find = gpu.importlib.util.find_spec
    monkeypatch.setattr(
        gpu.importlib.util, "find_spec", lambda name: None if name == "hypothesis" else find(name)
    )
    for name, text in TESTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    gpu.make_stand_ins(tmp_path)
    there = gpu.environment(tmp_path, False)
    for name in ("PYTHONPATH", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, there[name])
    assert gpu_work.kernels(tmp_path, False) == 1
    known = gpu_work.found("kernels", tmp_path)
    here = "tests/kernels/test_toy.py::test_"
    assert known["passed"] == 1
    assert {k: v.split(": ")[-1] for k, v in known["skipped"].items()} == {
        here + "left_out": "not here",
        here + "any": "hypothesis is not installed",
    }
    assert known["failed"].pop(here + "bad") == "assert 1 == 2"
    (unreadable,) = known["failed"].values()  # in each process
    assert "no_such_module" in unreadable
    assert known["unfinished"] == ["tests/kernels/test_z_dies.py::test_dies"]


def test_the_self_check_keeps_what_it_knows(gpu, monkeypatch, tmp_path):
    """Every way of every task on the GPU, beside the samplers and the CPU's."""
    pytest.importorskip("torch")
    import gpu_work

    from sorl_fast import doctor
    from sorl_fast.ops import selfcheck

    there = {"gpus": [{"device": "cuda:0"}], "versions": {}, "environment": {}}
    good = doctor.Check("numpy", "cpu", "sampler", "fp32", "ok", "")
    monkeypatch.setattr(doctor, "machine", lambda rendered: there)
    monkeypatch.setattr(doctor, "notes", lambda there: [])
    monkeypatch.setattr(doctor, "text", lambda report: "")
    monkeypatch.setattr(doctor, "check_samplers", lambda *_: [good])
    monkeypatch.setattr(doctor, "check_cpu_training", lambda *_: [good])
    wrong = "rollout"

    def examine(wanted, device, form):
        (task,) = wanted
        assert str(device) == "cuda:0"
        status = "disagrees" if task.operation == wrong else "ok"
        return {task.name: {"fused": selfcheck.Result(status, "", {}, {})}}

    monkeypatch.setattr(selfcheck, "examine", examine)
    assert gpu_work.doctor(tmp_path, False) == 1
    known = gpu_work.found("doctor", tmp_path)
    tasks = [check["task"] for check in known["checks"] if check["status"] != "ok"]
    assert tasks == [wrong] * 4  # a precision each
    assert not known["agrees"]
    assert {"velocity", "best_of_n", "adam_ema_step", "words", "sampler"} <= {
        check["task"] for check in known["checks"]
    }
    wrong = ""
    assert gpu_work.doctor(tmp_path, False) == 0


@pytest.mark.slow
def test_dry_run(tmp_path):
    """The parts that a CPU does in little time, the package laid out anew, as on another machine."""
    pytest.importorskip("triton")
    environment = os.environ | {"PYTHON": sys.executable}
    command = [ROOT / "ci" / "gpu.sh", "--dry-run", "--out", tmp_path, "--parts"]
    done = subprocess.run(
        [*command, "machine", "kernels", "train"], env=environment, capture_output=True, text=True
    )
    log = (tmp_path / "gpu.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    result = json.loads((tmp_path / "gpu.json").read_text())
    there, kernels, train = (part["found"] for part in result["parts"])
    assert there["versions"]["torch"]
    assert kernels["passed"] == kernels["selected"] > 20
    assert [(run["backend"], run["updates"]) for run in train] == [
        ("torch", "eager"),
        ("torch", "captured"),
        ("triton", "eager"),
        ("triton", "captured"),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpu.json", "gpu.log"]
