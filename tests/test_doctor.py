"""The doctor sees what is there, finds a backend that disagrees, and says so in its exit code."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import some_fast

from sorl_fast import cli, doctor, machine
from sorl_fast.act.sampler import Sampler
from sorl_fast.doctor import Check, Report, Sizes

SIZES = Sizes(O=7, A=5, H=64, L=2, E=2, B=9, N=4, M=4, seed=3)
SETS = {
    "sampling": {"fp32": ["scalar", "avx2"], "bf16": ["scalar"]},
    "training": {"fp32": ["avx2"], "bf16": []},
}
GPU = {
    **{"device": "cuda:0", "name": "NVIDIA X", "capability": "9.0", "memory_bytes": 85 * 2**30},
    **{"multiprocessors": 132, "driver": "580.1"},
}


def a_machine(**more):
    there = {
        "system": "Linux 6 x86_64",
        "cpu": "A CPU",
        "cores": 2,
        "instruction_sets": SETS,
        "gpus": [],
        "versions": dict.fromkeys(("sorl_fast", "python", *machine.PACKAGES), "1.0"),
        "environment": dict.fromkeys(machine.ENVIRONMENT),
        "mujoco_rendering": "yes",
    }
    return there | more


def a_report(*statuses):
    checks = [
        Check("native avx2", "cpu", "rollout", "fp32", s, "" if s == "ok" else "value is off")
        for s in statuses
    ]
    return Report(a_machine(), checks, ["/cache/dispatch-0.json"], ["Mind the gap"])


# --- the machine -------------------------------------------------------------------------------------


def test_this_machine():
    there = doctor.machine(rendered=False)
    json.dumps(there)
    assert there["cores"] >= 1
    assert there["versions"]["numpy"] == np.__version__
    assert there["versions"]["sorl_fast"]
    sets = there["instruction_sets"]
    assert sets is None or "scalar" in sets["sampling"]["fp32"]


def test_what_is_not_installed_is_said(monkeypatch):
    def version(name):
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", version)
    assert machine.versions()["ogbench"] is None


def test_what_comes_under_another_name_is_found(monkeypatch):
    modules = {"triton": ["pytorch-triton-rocm"]}
    monkeypatch.setattr(machine, "packages_distributions", lambda: modules)
    monkeypatch.setattr(machine, "version", lambda name: f"of {name}")
    assert machine.versions()["triton"] == "of pytorch-triton-rocm"
    assert machine.versions()["torch"] == "of torch"


@pytest.mark.slow
def test_a_doctor_without_torch_imports_none():
    """A robot's: import, look around, choose what to check."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from sorl_fast import doctor, machine\n"
        "machine.find_spec = lambda name: None\n"
        "there = machine.machine()\n"
        "there['versions']['torch'] = None\n"
        "assert there['gpus'] == [] and there['mujoco_rendering'] == 'mujoco is not installed'\n"
        "assert 'torch' not in [x['backend'] for x in doctor.samplers(there)]\n"
        "assert any('training does not' in note for note in doctor.notes(there))\n"
        "checks = doctor.check_samplers(there, True, print)\n"
        "assert all(c.status == 'ok' for c in checks), checks\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"instruction_sets": None}, "native extension is not there"),
        ({"environment": {"SORL_CPU_ISA": "avx2"}}, "which sampling in bf16 does not have"),
        ({"environment": {"SORL_CPU_ISA": "mmx"}}, "SORL_CPU_ISA is 'mmx'"),
        ({"environment": {"SORL_BACKEND": "cuda"}}, "SORL_BACKEND is 'cuda', but must be"),
        ({"environment": {"SORL_BACKEND": "triton"}}, "there is no GPU"),
        (
            {"environment": {"SORL_BACKEND": "native"}, "instruction_sets": None},
            "SORL_BACKEND is 'native', but",
        ),
        ({"environment": {"SORL_OPS": "numpy"}}, "SORL_OPS is 'numpy', but must be one of native"),
        ({"environment": {"SORL_OPS": "triton"}}, "SORL_OPS is 'triton', but there is no GPU"),
        (
            {"environment": {"SORL_OPS": "native"}, "instruction_sets": None},
            "SORL_OPS is 'native', but",
        ),
        ({"versions": {"torch": None}}, "pip install 'sorl-fast[train]'"),
        ({"gpus": [GPU], "versions": {"triton": None}}, "triton is not installed"),
    ],
    ids=[
        *("no-native", "isa", "no-isa", "backend", "no-gpu", "backend-gone", "ops", "ops-no-gpu"),
        *("ops-gone", "torch", "triton"),
    ],
)
def test_what_the_user_should_know(change, says):
    there = a_machine()
    assert doctor.notes(there) == []
    for name, value in change.items():
        merge = isinstance(value, dict) and isinstance(there[name], dict)
        there[name] = there[name] | value if merge else value
    assert any(says in note for note in doctor.notes(there))


def test_every_backend_that_is_there_is_checked():
    def backends(there):
        return [(x["backend"], x["isa"], x["precision"]) for x in doctor.samplers(there)]

    cpu = [
        ("numpy", "", "fp32"),
        ("native", "scalar", "fp32"),
        ("native", "avx2", "fp32"),
        ("native", "scalar", "bf16"),
        ("torch", "", "fp32"),
    ]
    assert backends(a_machine()) == cpu
    gpu = [("triton", "", p) for p in ("fp32", "tf32", "fp16", "bf16")]
    assert backends(a_machine(gpus=[GPU])) == cpu + gpu
    bare = a_machine(instruction_sets=None)
    bare["versions"]["torch"] = None
    assert backends(bare) == cpu[:1]


@pytest.mark.parametrize(
    ("works", "answer"),
    [(None, "yes"), ("osmesa", "yes, with MUJOCO_GL=osmesa"), ("nothing", "no: no display")],
)
def test_ways_to_render_are_tried(works, answer, monkeypatch):
    def run(worker, items, *, environment, **more):
        ok = environment.get("MUJOCO_GL") == works
        return iter([{"status": "ok" if ok else "crashed", "reason": "no display"}])

    monkeypatch.setattr(machine.isolated, "run", run)
    assert machine.rendering() == answer


# --- samplers ----------------------------------------------------------------------------------------


ALL_SIZES = doctor.sampler_sizes(
    quick=False
)  # the one of seed 5 costs ten times the others together


@pytest.mark.parametrize(
    "sizes",
    some_fast(ALL_SIZES, *(s for s in ALL_SIZES if s.seed != 5)),
    ids=lambda s: f"seed{s.seed}",
)
def test_the_definition_is_accepted(sizes):
    item = {"backend": "numpy", "isa": "", "precision": "fp32", "sizes": [sizes]}
    assert doctor.check_sampler(item, lambda text: None) == {"status": "ok", "reason": ""}


@pytest.mark.slow
@pytest.mark.parametrize("precision", some_fast(["fp32", "fp16"], "fp16"))
def test_the_gpu_sampler_is_accepted(precision):
    """In triton's interpreter."""
    pytest.importorskip("triton")
    policy = doctor.random_policy(SIZES)
    doctor.compare_sampler(Sampler(policy, "triton", precision), policy, SIZES, precision)


class Wrong:
    """A sampler that spoils what another returns."""

    def __init__(self, policy, spoil):
        self._sampler, self._spoil = Sampler(policy, "numpy"), spoil

    def act(self, obs, **more):
        action, info = self._sampler.act(obs, **more)
        return self._spoil(action, info, obs)


SPOILS = {
    "off": (lambda a, i, x: (a + 1e-3, i), "an action is off by 1.0e-03"),
    "nan": (lambda a, i, x: (a * np.nan, i), "not finite"),
    "shape": (lambda a, i, x: (a[:1], i), "wrong shape"),
    "q": (lambda a, i, x: (a, i._replace(q=i.q * 1.01)), "a Q is off"),
    "index": (lambda a, i, x: (a, i._replace(candidate=i.candidate + 4)), "not in 0 to 3"),
    "other": (lambda a, i, x: (a, i._replace(candidate=(i.candidate + 1) % 4)), "is off"),
    "holds-none": (lambda a, i, x: (a + np.isnan(x).any(1)[:, None], i), "does not hold"),
    "says-nothing": (lambda a, i, x: (a, i._replace(status=i.status * 0)), "does not hold"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_a_sampler_that_is_wrong_is_found(name):
    spoil, says = SPOILS[name]
    policy = doctor.random_policy(SIZES)
    with pytest.raises(doctor.Disagrees, match=says):
        doctor.compare_sampler(Wrong(policy, spoil), policy, SIZES, "fp32")
    doctor.compare_sampler(Sampler(policy, "numpy"), policy, SIZES, "fp32")


def test_a_second_best_candidate_is_found():
    """Everything about the loser is right but that it should not have won."""
    policy = doctor.random_policy(SIZES)

    class Loser:
        def act(self, obs, *, call, **more):
            exact = doctor.candidates_of(policy, obs, SIZES, call)
            index = exact.q.argmin(1)
            take = np.arange(SIZES.B), index
            _, info = Sampler(policy, "numpy").act(obs, call=call, **more)
            info = info._replace(candidate=index, q=exact.q[take])
            return exact.actions[take].astype(np.float32), info

    with pytest.raises(doctor.Disagrees, match="below the best"):
        doctor.compare_sampler(Loser(), policy, SIZES, "fp32")


@pytest.mark.parametrize(("precision", "digits"), [("bf16", 7), ("fp16", 10), ("tf32", 10)])
def test_rounding(precision, digits):
    x = np.array([1.0, 1 + 2.0**-digits, 1 + 2.0 ** -(digits + 2), 0.0, -3.0])
    expected = [1.0, 1 + 2.0**-digits, 1.0, 0.0, -3.0]
    assert doctor._rounded(x, precision).tolist() == expected


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("SORL_CPU_ISA", "mine")
    with doctor._instruction_set("avx2"):
        assert os.environ["SORL_CPU_ISA"] == "avx2"
    assert os.environ["SORL_CPU_ISA"] == "mine"
    monkeypatch.delenv("SORL_CPU_ISA")
    with doctor._instruction_set("avx2"):
        pass
    assert "SORL_CPU_ISA" not in os.environ


# --- the report --------------------------------------------------------------------------------------


def test_the_text_names_everything():
    text = doctor.text(a_report("ok", "crashed"))
    for part in ("A CPU", "torch 1.0", "sampling in bf16: scalar", "training in bf16: none"):
        assert part in text
    for part in ("none that torch can use", "CRASHED: value is off", "Mind the gap", "dispatch-0"):
        assert part in text
    assert "1 of 2 checks did not end well" in text
    assert "All 2 checks agree" in doctor.text(a_report("ok", "ok"))
    text = doctor.text(a_report()._replace(machine=a_machine(gpus=[GPU], instruction_sets=None)))
    assert "cuda:0: NVIDIA X, capability 9.0, 85 GiB, driver 580.1" in text


@pytest.mark.parametrize(
    ("status", "code"), [("ok", 0), ("disagrees", 1), ("crashed", 1), ("hung", 1), ("unchecked", 1)]
)
def test_the_exit_code_says_whether_all_agree(status, code, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor, "examine", lambda **more: a_report("ok", status))
    file = tmp_path / "doctor.json"
    assert cli.main(["doctor", "--json", str(file)]) == code
    found = json.loads(file.read_text())
    assert found["agrees"] == (code == 0)
    assert found["checks"][1]["status"] == status
    assert "backend" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_bad_input(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor, "examine", lambda **more: a_report("ok"))
    (tmp_path / "file").write_text("")
    assert cli.main(["doctor", "--json", str(tmp_path / "file" / "x.json")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_gpu_is_examined_and_its_table_kept(monkeypatch, tmp_path):
    """With a CPU in the GPU's place."""
    from sorl_fast.ops import selfcheck, table

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen = []

    def examine(wanted, device, **more):
        seen.append((len(wanted), more["form"]))
        bad = selfcheck.Result("crashed", "SIGSEGV", {}, {})
        return {task.name: {"fused": bad} for task in wanted}

    monkeypatch.setattr(selfcheck, "examine", examine)
    checks, path, note = doctor.check_gpu("cpu", False, print)
    assert seen == [(5 * 4 + 3, "full")]
    assert {c.status for c in checks} == {"crashed"}
    assert len(checks) == 23
    assert note == ""
    assert path == str(table.table_path(table.torch.device("cpu")))
    assert len(table.load(table.torch.device("cpu"))) == 23
    doctor.check_gpu("cpu", True, print)
    assert seen[-1][1] == "short"
    monkeypatch.setattr(table, "cache_folder", lambda: None)
    _, path, note = doctor.check_gpu("cpu", True, print)
    assert path is None
    assert "cannot be kept" in note


@pytest.mark.slow
def test_the_command_finds_this_machine_well(tmp_path):
    file = tmp_path / "doctor.json"
    done = subprocess.run(
        [sys.executable, "-m", "sorl_fast.cli", "doctor", "--quick", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "agree with the definition" in done.stdout
    checks = json.loads(file.read_text())["checks"]
    tasks = {c["task"] for c in checks}
    assert {"sampler", "velocity", "rollout", "critic_ensemble", "adam_ema_step"} <= tasks
