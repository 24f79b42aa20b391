"""What is built ahead of time is what a launch builds, whatever its numbers are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sorl_fast.kernels import actor, adam, best_of_n, critic, noise
from sorl_fast.kernels.packing import Sizes
from sorl_fast.kernels.tiles import Tile

ACTOR = Sizes(28, 5, 2, 512, 4, 5, 1, False)
CRITIC = Sizes(28, 5, 1, 512, 4, 1, 2, True)
TILE = Tile(16, 64, 32, 4, 2)
OWN = {"fp32": "*fp32", "tf32": "*fp32", "fp16": "*fp16", "bf16": "*bf16"}


def builds(precision):
    return [
        *actor.aot(ACTOR, precision, TILE),
        *critic.aot(CRITIC, precision, TILE),
        *best_of_n.aot(ACTOR, CRITIC, precision, TILE),
        *adam.aot(ACTOR, precision, TILE),
        *adam.aot(CRITIC, precision, TILE),
        *noise.aot(precision, TILE),
    ]


@pytest.mark.parametrize("precision", list(OWN))
def test_each_names_every_argument(precision):
    for build in builds(precision):
        own = [a for a in build.kernel.arg_names if a not in build.constexprs]
        assert list(build.signature) == own, build.name
        assert set(build.constexprs) <= set(build.kernel.arg_names), build.name
        assert all(build.signature[a][0] == "*" for a in build.divisible), build.name
        assert build.options["enable_fp_fusion"] is True, build.name
        rounded = {"w", "weights", "actor_w", "critic_w", "scratch", "pre", "into", "lefts"}
        kinds = {build.signature[a] for a in rounded & set(own)}
        assert kinds <= {OWN[precision]}, build.name


@pytest.mark.slow
def test_launches_are_what_was_built_ahead():
    """Whatever the numbers of rows and steps, and wherever the inputs begin."""
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("launches.py")],
        capture_output=True, text=True,
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_an_optimiser_adds_both_parts_of_an_actors_gradient():
    for sizes, tensors, parts in ((ACTOR, 10, 2), (CRITIC, 18, 1)):
        for build in adam.aot(sizes, "fp32", TILE):
            assert len(build.signature["grads"]) == tensors * parts


@pytest.mark.parametrize("of", [actor, critic], ids=["actor", "critic"])
def test_no_two_builds_have_one_name(of):
    names = [build.name for build in of.aot(ACTOR if of is actor else CRITIC, "bf16", TILE)]
    assert len(set(names)) == len(names)
