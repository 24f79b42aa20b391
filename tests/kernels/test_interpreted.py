"""An interpreter that is wrong about bf16 is refused; the tests' own is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from policies import make_policy
from sorl_fast.kernels.interpreted import bf16_is_right

from sorl_fast import Sampler, ops
from sorl_fast.act.policy_file import save

AS_IT_COMES = """
import sys
from sorl_fast import BadInput, Sampler, ops

for precision in ("fp32", "tf32", "fp16", "bf16"):
    for use in (
        lambda: Sampler.load(sys.argv[1], backend="triton", precision=precision),
        lambda: ops.configure(precision=precision, device="cpu"),
    ):
        try:
            use()
            print(precision, "is taken")
        except BadInput as err:
            print(precision, err)
"""


def test_the_tests_interpreter_is_right(monkeypatch):
    assert bf16_is_right()
    Sampler(make_policy(H=64), backend="triton", precision="bf16")
    monkeypatch.setenv("SORL_OPS", "triton")
    monkeypatch.setattr(ops, "_precision", dict(ops._precision))
    ops.configure(precision="bf16")


@pytest.mark.slow
def test_the_interpreter_as_it_comes_is_refused(tmp_path):
    save(tmp_path / "policy.safetensors", make_policy(H=64))
    done = subprocess.run(
        [sys.executable, "-c", AS_IT_COMES, tmp_path / "policy.safetensors"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1", "SORL_OPS": "triton"},
    )
    lines = done.stdout.splitlines()
    assert lines[:6] == [f"{p} is taken" for p in ("fp32", "tf32", "fp16") for _ in range(2)]
    assert len(lines) == 8
    for line in lines[6:]:
        assert line.startswith("bf16 precision is 'bf16', but triton interprets")
        assert "Unset TRITON_INTERPRET, or choose precision fp32" in line
