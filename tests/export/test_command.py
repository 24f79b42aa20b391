"""`sorl-fast export`: what it writes, what it refuses, and that a wrong graph is never left behind."""

import dataclasses
import sys

import numpy as np
import pytest
from forms import FORMS, form_policy
from policies import make_policy

from sorl_fast import BadInput, cli
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.policy_file import save
from sorl_fast.export import check, command, runtimes
from sorl_fast.export.check import inputs_of, make_case
from sorl_fast.export.onnx import onnx_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def one_runtime(monkeypatch):  # the other takes seconds a graph
    monkeypatch.setattr(command, "installed", lambda: ["onnxruntime"])


@pytest.fixture
def path(tmp_path):
    policy = dataclasses.replace(
        make_policy(normalise=True), choice=PolicyChoice(steps=3, candidates=4, rule="medoid")
    )
    save(tmp_path / "policy.safetensors", policy)
    return tmp_path / "policy.safetensors"


def run(path, *more):
    return cli.main(["export", str(path), "--to", "onnx", *more])


def left(folder):
    return sorted(p.name for p in folder.iterdir())


def acts(path):
    return {p.key: p.value for p in onnx.load(str(path)).metadata_props}["acts"]


def test_by_itself_it_is_the_policys_own(path, tmp_path, capsys):
    out = tmp_path / "a.onnx"
    assert run(tmp_path, "--out", str(out)) == 0  # RUN is a folder
    printed = capsys.readouterr().out
    assert "noise [B, 4, 2]" in printed
    assert "onnxruntime agrees" in printed
    assert acts(out) == "M = 3, N = 4, medoid:1/2"
    assert left(tmp_path) == ["a.onnx", "policy.safetensors"]


def test_flags_choose(path, tmp_path):
    out = tmp_path / "a.onnx"
    way = ["--steps", "1/2,1/4,1/4", "--candidates", "2", "--rule", "soft"]
    assert run(path, *way, "--out", str(out)) == 0
    assert acts(out) == "M = 1/2,1/4,1/4, N = 2, soft:1"


def test_both_runtimes_are_asked(path, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")
    monkeypatch.setattr(command, "installed", runtimes.installed)
    assert run(path, "--out", str(tmp_path / "a.onnx")) == 0
    assert capsys.readouterr().out.count("agrees with numpy") == 2


def wrong_graph(policy, way, *more):
    """The graph of a policy of which one bias is another."""
    (w, b), *more = policy.actor
    return onnx_model(dataclasses.replace(policy, actor=((w, b + 0.05), *more)), way)


def test_a_wrong_graph_is_not_left(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "onnx_model", wrong_graph)
    out = tmp_path / "a.onnx"
    assert run(path, "--out", str(out)) == 2
    assert "onnxruntime makes an action that is" in capsys.readouterr().err
    assert left(tmp_path) == ["policy.safetensors"]
    out.write_bytes(b"before")
    assert run(path, "--out", str(out)) == 2
    assert out.read_bytes() == b"before"
    assert left(tmp_path) == ["a.onnx", "policy.safetensors"]


def test_a_graph_by_another_rule_is_not_left(path, tmp_path, monkeypatch, capsys):
    other = PolicyChoice(steps=3, candidates=4, rule="argmax")
    monkeypatch.setattr(command, "onnx_model", lambda policy, way, *more: onnx_model(policy, other))
    assert run(path, "--out", str(tmp_path / "a.onnx")) == 2
    assert "makes an action that is" in capsys.readouterr().err


def test_a_graph_that_a_runtime_cannot_load_is_not_left(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "onnx_model", lambda *given: b"no graph")
    assert run(path, "--out", str(tmp_path / "a.onnx")) == 2
    assert "onnxruntime cannot load the graph" in capsys.readouterr().err
    assert left(tmp_path) == ["policy.safetensors"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "17"], "steps is 17, but this policy was trained for"),
        (["--steps", "two"], "steps is 'two', but must be"),
        (
            ["--candidates", "0"],
            "candidates is 0, but must be an integer from 1 to 512 by medoid:1/2",
        ),
        (["--candidates", "513"], "from 1 to 512 by medoid:1/2, which compares pairs"),
        (["--candidates", "4097", "--rule", "argmax"], "from 1 to 4096: set --candidates"),
        (["--rule", "best"], "rule is 'best', but must be one of"),
    ],
)
def test_bad_input_is_named(path, tmp_path, capsys, more, message):
    assert run(path, *more, "--out", str(tmp_path / "a.onnx")) == 2
    assert message in capsys.readouterr().err
    assert left(tmp_path) == ["policy.safetensors"]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_form_that_has_no_such_precision_is_named(tmp_path, capsys, precision):
    save(tmp_path / "p", form_policy(FORMS["residual"]))
    out = tmp_path / "a.onnx"
    assert run(tmp_path / "p", "--precision", precision, "--out", str(out)) == 2
    assert "a residual diffusion is exported in fp32 only" in capsys.readouterr().err
    assert not out.exists()


def test_bf16_needs_who_can_judge_it(path, tmp_path, capsys):
    out = tmp_path / "a.onnx"
    assert run(path, "--precision", "bf16", "--out", str(out)) == 2
    assert "none of openvino is installed" in capsys.readouterr().err
    assert not out.exists()


def test_noise_and_precision_are_named_from_python(path, tmp_path):
    for more in ({"noise": "none"}, {"precision": "fp16"}):
        with pytest.raises(BadInput, match="must be one of"):
            command.export(path, tmp_path / "a.onnx", **more)
    assert left(tmp_path) == ["policy.safetensors"]


def test_a_graph_may_draw_and_be_in_8_bits(path, tmp_path, capsys):
    out = tmp_path / "a.onnx"
    assert run(path, "--noise", "philox", "--precision", "int8", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "seed [2], call [1]" in printed
    assert "int8; opset 20" in printed
    ports = [p.name for p in onnx.load(str(out)).graph.input]
    assert ports == ["obs", "seed", "call"]


def test_a_rule_without_its_critic_is_named(tmp_path, capsys):
    save(tmp_path / "p", form_policy(FORMS["euler"], E=0))
    more = ["--candidates", "4", "--out", str(tmp_path / "a.onnx")]
    assert run(tmp_path / "p", *more) == 2
    assert "this policy has no critic to choose the best by" in capsys.readouterr().err
    assert run(tmp_path / "p", *more, "--rule", "centre") == 0


def test_without_a_runtime_it_says_what_to_install(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "installed", list)
    assert run(path, "--out", str(tmp_path / "a.onnx")) == 2
    assert "pip install 'sorl-fast[export]'" in capsys.readouterr().err


def test_without_onnx_it_says_what_to_install(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run(path, "--out", str(tmp_path / "a.onnx")) == 2
    assert "onnx is not installed: pip install 'sorl-fast[export]'" in capsys.readouterr().err


def test_a_folder_that_takes_nothing_is_named(path, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(path, "--out", str(tmp_path / "file" / "a.onnx")) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_near_tie_may_go_either_way_and_nothing_else():
    """Two candidates of nearly the same Q: either will do; the third will not."""
    policy, way = make_policy(critic_out=0.0), PolicyChoice(steps=1, candidates=3)
    case = make_case(policy, way, 1)

    def choosing(n):
        alone = onnx_model(policy, PolicyChoice(steps=1))
        inner = runtimes.RUNTIMES["onnxruntime"](alone)

        def run(inputs):
            return inner({"obs": inputs["obs"], "noise": inputs["noise"][:, n : n + 1]})

        return run

    assert set(inputs_of(policy, way, case)) == {"obs", "noise"}
    policy_apart = make_policy()
    for chosen in (0, 1, 2):  # all the same Q, 0
        near = check._may_win(policy, way, case, 0, check.BOUNDS["fp32"])
        actions, _ = choosing(chosen)({"obs": case.obs, "noise": case.noise})
        assert min(check._error(policy, actions[0], a) for a in near) < 1e-5
    near = check._may_win(
        policy_apart, way, make_case(policy_apart, way, 1), 0, check.BOUNDS["fp32"]
    )
    assert len(near) == 1


def test_check_refuses_a_wrong_mask():
    policy, way = make_policy(), PolicyChoice(steps=1)
    inner = runtimes.RUNTIMES["onnxruntime"](onnx_model(policy, way))

    def blind(inputs):
        actions, good = inner(inputs)
        return actions, np.ones_like(good)

    with pytest.raises(BadInput, match="good"):
        check.check(policy, way, blind, "blind")
