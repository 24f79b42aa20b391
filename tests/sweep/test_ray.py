"""The engine of a cluster, on a real Ray: a node is killed, and nothing is lost by it."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from runs import assert_same_run

SCRIPT = Path(__file__).with_name("on_two_nodes.py")
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed: pip install 'sorl-fast[cluster]'",
)


def run(*words):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@needs_ray
def test_a_node_that_is_killed_changes_no_bit(own_file, tmp_path):
    words = ["--methods", "bc", "--envs", "mine", "--seeds", "0-1", "--data", own_file]
    words += ["--hidden", 8, "--depth", 1, "--steps", 1000, "--checkpoint-every", 50]
    words += ["--log-every", 100, "--threads", 1]
    run("-m", "sorl_fast.cli", "sweep", *words, "--out", tmp_path / "local")
    out = run(SCRIPT, *words, "--out", tmp_path / "ray")
    assert "killed a node" in out
    assert "2 runs are done" in out
    begun = []
    for seed in range(2):
        runs = [tmp_path / engine / "mine" / "bc" / f"seed{seed}" for engine in ("local", "ray")]
        assert_same_run(*runs)
        begun.append(Path(f"{runs[1]}.log").read_text().count("$ sorl-fast train"))
    assert sorted(begun) == [1, 2]  # the one on the other node never noticed
    assert not list((tmp_path / "ray").glob(".sweep-*"))


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    from sorl_fast.errors import BadInput
    from sorl_fast.sweep import cluster
    from sorl_fast.sweep.settings import SweepConfig

    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(cluster.importlib, "import_module", missing)
    sweep = SweepConfig(methods=("bc",), envs=("mine",), data="d", out="o", engine="ray")
    with pytest.raises(BadInput, match=r"pip install 'sorl-fast\[cluster\]'"):
        cluster.RayEngine(sweep, 1, tmp_path, False)


class Cluster(types.ModuleType):
    """Ray, as far as it is asked for before a task runs: nodes, and what a task would be given."""

    def __init__(self, *nodes):
        super().__init__("ray")
        self.asked, self.alive = [], True
        self.nodes = lambda: [{"Alive": True, "Resources": resources} for resources in nodes]

    def init(self, **_):
        pass

    def shutdown(self):
        self.alive = False

    def remote(self, _):
        def options(**resources):
            self.asked.append(resources)
            return types.SimpleNamespace(remote=lambda *_: len(self.asked))

        return types.SimpleNamespace(options=options)


@pytest.mark.parametrize(("sharing", "part", "said"), [(1, 1, "a GPU"), (4, 0.25, "0.25 of a GPU")])
def test_a_run_asks_for_its_part_of_a_gpu(monkeypatch, tmp_path, sharing, part, said):
    from sorl_fast.errors import BadInput
    from sorl_fast.sweep import cluster
    from sorl_fast.sweep.settings import SweepConfig

    words = {"methods": ("bc",), "envs": ("mine",), "data": "d", "out": "o", "engine": "ray"}
    sweep = SweepConfig(**words, threads=2, gpus=1, jobs_per_gpu=sharing)
    ray = Cluster({"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    with cluster.RayEngine(sweep, 4, tmp_path, gpu=True) as engine:
        assert engine.room == f"on Ray, 12 CPUs in all, 2 and {said} each"
        assert list(engine.run([], 0)) == []
    (asked,) = ray.asked
    assert (asked["num_cpus"], asked["num_gpus"]) == (2, part)
    ray = Cluster({"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0})  # the GPU is where no CPU is left
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(BadInput) as refused:
        cluster.RayEngine(sweep, 4, tmp_path, gpu=True)
    assert f"has 2 CPUs and {part} GPU for a run: they have 8 and 0 GPUs, 1 and 1 GPUs." in str(
        refused.value
    )
    assert "--jobs-per-gpu" in str(refused.value)
    assert not ray.alive
    with cluster.RayEngine(sweep, 4, tmp_path, gpu=False) as engine:
        assert "GPU" not in engine.room


def test_a_task_on_a_node_without_the_folder_or_of_another_version_says_so(tmp_path):
    from sorl_fast.sweep import cluster
    from sorl_fast.sweep.plan import Job
    from sorl_fast.version import __version__

    job = Job("a/b/seed0", "bc", "a", str(tmp_path / "run"), {}, {}, ())
    mark = tmp_path / ".sweep-x"
    assert (
        "give an --out that all nodes share"
        in cluster._task(job.to_json(), 1, str(mark), __version__)[3]
    )
    Path(f"{mark}-begun").mkdir()
    assert "but the sweep is of 9.9" in cluster._task(job.to_json(), 1, str(mark), "9.9")[3]
