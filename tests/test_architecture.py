"""The arrows between the rooms, and what no source may hold."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {
    "action_map",
    "config",
    "layout",
    "batch",
    "cells",
    "cores",
    "errors",
    "flags",
    "atomic",
    "isolated",
    "progress",
    "status",
    "stopping",
    "version",
}
# room -> what it may import at the top of its modules, beside the leaves and itself
ALLOWED = {
    "envs": set(),
    "data": {"envs", "simulate.workers", "act.policy_file", "act.sampler", "act.form"},
    "expert": {"envs", "act"},
    "export": {"act"},
    "film": {"act", "envs", "simulate"},
    "importing": set(),
    "ops": {"kernels", "_native"},
    "act": {"_native"},
    "simulate": {"envs", "act"},
    "learn": {
        *("data", "envs", "ops", "act.form", "act.policy_file", "simulate"),
        *("act.choice", "act.ood", "act.rules", "act.schedule", "act.selection"),
    },
    "report": {"act", "data", "envs", "film", "learn", "machine", "ops", "simulate"},
    "diagnose": {"act", "data", "envs", "learn", "report", "simulate"},
    "sweep": {"act", "data", "envs", "learn", "simulate", "cli"},
    "recommend": {"act", "machine", "run_path", "simulate.paired"},
    "run_path": set(),
    "machine": {"ops"},
    "doctor": {"act", "data", "learn", "machine", "ops"},
    "cli": {
        *(
            "act",
            "data",
            "envs",
            "expert",
            "export",
            "film",
            "importing",
            "learn",
            "ops",
            "simulate",
        ),
        *("report", "recommend", "run_path", "machine", "doctor", "sweep", "diagnose"),
    },
    "bench": {
        "act",
        "data",
        "envs",
        "export",
        "learn",
        "ops",
        "simulate",
        "report",
        "recommend",
        "doctor",
        "machine",
        "cli",
        "_native",
        "_bench",
        "kernels",
    },
    "kernels": set(),
}
LAZY = {
    "act": {"ops"},  # only inside the function that makes a torch or triton backend
    "run_path": {"report"},  # only to explain a folder that is no run's
}


def sources():
    files = [
        *ROOT.glob("sorl_fast/**/*.py"),
        *ROOT.glob("bench/**/*.py"),
        *ROOT.glob("kernels/**/*.py"),
    ]
    return sorted(files)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "sorl_fast" else parts).removesuffix(".__init__")


def imports(tree: ast.AST, module: str, package: bool):
    """Yield (imported sorl_fast module, whether inside a function)."""
    inside = {
        node
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(f)
    }
    here = module.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            # a module of sorl_fast is `here`; one dot is its package
            up = node.level - (1 if package else 0)
            base = here[: len(here) - up]
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [
                f"sorl_fast.{stem}.{a.name}" if stem else f"sorl_fast.{a.name}" for a in node.names
            ]
        else:
            continue
        for name in names:
            if name.startswith("sorl_fast."):
                yield name.removeprefix("sorl_fast."), node in inside


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    module = module_of(path)
    room = module.split(".")[0]
    if room in LEAVES or module in ("", "sorl_fast", "__init__"):
        return
    for target, lazy in imports(ast.parse(path.read_text()), module, path.name == "__init__.py"):
        top = target.split(".")[0]
        allowed = ALLOWED[room] | (LAZY.get(room, set()) if lazy else set())
        ok = (
            top == room
            or top in LEAVES
            or top.startswith("__")
            or any(target == a or target.startswith(a + ".") for a in allowed)
        )
        assert ok, f"{module} may not import {target}"


def test_in_act_only_the_backends_of_torch_and_triton_reach_ops():
    found = set()
    for path in ROOT.glob("sorl_fast/act/**/*.py"):
        module = module_of(path)
        names = imports(ast.parse(path.read_text()), module, path.name == "__init__.py")
        found |= {module for target, _ in names if target.split(".")[0] == "ops"}
    assert found == {"act.backends.torch", "act.backends.triton"}


@pytest.mark.slow
def test_modules_do_not_import_each_other_in_a_circle():
    """Also not lazily, inside functions; what stands below TYPE_CHECKING is never imported."""
    modules = {module_of(p): p for p in sources()}
    arrows = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text())
        for top in ast.walk(tree):
            if isinstance(top, ast.If) and ast.unparse(top.test) == "TYPE_CHECKING":
                top.body = [ast.Pass()]
        found = set()
        for target, _ in imports(tree, module, path.name == "__init__.py"):
            # `from .room import name`: a module of that name, or else the room itself
            for name in (target, target.rpartition(".")[0]):
                if name in modules and name != module:
                    found.add(name)
                    break
        arrows[module] = found
    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for target in sorted(arrows[module]):
                walk(target, (*above, module))
            done.add(module)

    for module in arrows:
        walk(module, ())


LEARNING = ROOT / "sorl_fast" / "learn"
REUSED = {("ifql", "iql")}  # IFQL is IQL's value and critic with a flow


def test_a_method_knows_no_other_and_not_the_trainer():
    methods = {p.stem for p in (LEARNING / "algorithms").glob("*.py")} - {"__init__", "common"}
    assert len(methods) == 7
    for method in methods:
        path = LEARNING / "algorithms" / f"{method}.py"
        for target, _ in imports(ast.parse(path.read_text()), module_of(path), False):
            parts = target.split(".")
            if parts[:2] == ["learn", "algorithms"] and parts[2] in methods:
                assert (method, parts[2]) in REUSED, f"{method} may not import {target}"
            assert parts[:2] not in (["learn", "train"], ["learn", "capture"], ["learn", "learner"])


# a method's name, its settings and its metrics
METHOD_WORDS = re.compile(r"\b(sorl|iql|ifql|rebrac|fql|idql|q_coef|fm_loss|sc_loss|critic_loss)\b")


@pytest.mark.parametrize(
    "name",
    [
        *("learn/train.py", "learn/capture.py", "learn/checkpoint.py", "learn/learner.py"),
        *("learn/run_folder.py", "cli.py", "report/runs.py", "report/figures.py"),
        *("report/page.py", "report/page.html.jinja"),
        *("report/pareto.py", "report/speeds.py", "report/plotting.py", "recommend.py", "cells.py"),
    ],
)
def test_a_method_is_known_by_its_interface_alone(name):
    text = (ROOT / "sorl_fast" / name).read_text().replace("sorl-fast", "").replace("sorl_fast", "")
    assert METHOD_WORDS.findall(text) == []


def test_leaves_import_only_leaves():
    for leaf in LEAVES:
        path = ROOT / "sorl_fast" / f"{leaf}.py"
        for target, _ in imports(ast.parse(path.read_text()), leaf, False):
            assert target.split(".")[0] in LEAVES, f"{leaf} may not import {target}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle_no_eval_no_code_from_data(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {a.name.split(".")[0] for a in node.names}
            assert not names & {"pickle", "dill", "marshal", "shelve", "cloudpickle", "joblib"}
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.module.split(".")[0] not in {"pickle", "dill", "marshal", "shelve"}
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        assert name not in {"eval", "exec", "compile", "__import__", "torch.load", "torch.save"}
        if name in {"np.load", "numpy.load"}:
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert given.get("allow_pickle") == "False", (
                f"{path}: np.load without allow_pickle=False"
            )


@pytest.mark.parametrize("path", sorted(ROOT.glob("kernels/*.py")), ids=lambda p: p.name)
def test_kernels_need_torch_and_triton_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{path.name} reaches out of kernels"
            names = set() if node.level else {str(node.module).split(".")[0]}
        else:
            continue
        assert names <= {"torch", "triton"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", sorted(ROOT.glob("kernels/*.py")), ids=lambda p: p.name)
def test_kernels_never_wait_for_the_device(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"item", "tolist", "cpu", "numpy", "synchronize", "nonzero"}


# what spells out a network's inputs or its tensors' letters; in two parts, for this file is read too
SPELLED = ("O + A" + " + ", "+ A" + " + 1", "+ A" + " + 2", "wb" + "gc")


@pytest.mark.parametrize(
    "path",
    [p for room in ("sorl_fast", "bench", "tests") for p in sorted(ROOT.glob(f"{room}/**/*.py"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_the_shapes_of_networks_stand_in_one_place(path):
    text = path.read_text()
    if path == ROOT / "sorl_fast" / "layout.py":
        assert all(words in text for words in SPELLED[::3])  # the search finds what is there
        return
    found = [words for words in SPELLED if words in text]
    assert not found, f"{found}: take the layout's words from sorl_fast.layout"


def test_no_file_is_too_long_to_be_read_at_once():
    kinds = ("py", "cpp", "hpp", "c", "h", "sh")
    rooms = ("sorl_fast", "kernels", "bench", "csrc", "tests", "ci", "findings", "integrations")
    found = [p for room in rooms for kind in kinds for p in ROOT.glob(f"{room}/**/*.{kind}")]
    assert len(found) > 250
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in found}
    assert {name: n for name, n in lengths.items() if n > 600} == {}


VARIABLES = re.compile(r"\bSORL_[A-Z_]+")


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_reads_its_own_variable_alone(path):
    """Three variables choose: SORL_BACKEND what acts, SORL_OPS what trains, SORL_CPU_ISA for both."""
    read = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call | ast.Subscript) and "environ" in ast.unparse(node)
        for name in VARIABLES.findall(ast.unparse(node))
    }
    room = module_of(path).split(".")[0]
    others = {"act": {"SORL_OPS"}, "ops": {"SORL_BACKEND"}}
    assert read <= {"SORL_BACKEND", "SORL_OPS", "SORL_CPU_ISA"} - others.get(room, set())


def test_the_arrow_test_can_fail():
    tree = ast.parse("from ..learn import train\n")
    assert list(imports(tree, "data.dataset", package=False)) == [("learn.train", False)]
    assert not any("learn" in a for a in ALLOWED["data"])


def test_only_the_bindings_see_python():
    csrc = ROOT / "csrc"
    files = [p for p in csrc.rglob("*") if p.suffix in (".cpp", ".hpp", ".h", ".c")]
    assert len(files) > 40
    assert {str(p.relative_to(csrc)) for p in files if "pybind11" in p.read_text()} == {
        *("bindings.cpp", "train/bindings.cpp", "train/bindings.hpp", "bench/bindings.cpp"),
        *("parse.hpp", "session_bindings.hpp", "without_gil.hpp"),
    }
