"""What the benchmarks of `make bench` share. Shapes and builders are those of `sorl-bench`."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sorl_fast.bench import harness, peers, shapes
from sorl_fast.bench.shapes import Cell, Lane

from sorl_fast import ops
from sorl_fast.act.policy_file import Policy
from sorl_fast.cores import available_cores


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the one choice that there is."""
    parser.addoption(
        "--grid",
        action="store_true",
        help="the sampler's whole grid instead of the lanes of `sorl-bench sampler --quick`",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the sampler's benchmarks their lanes."""
    if "lane" in metafunc.fixturenames:
        lanes = shapes.FULL if metafunc.config.getoption("--grid") else shapes.QUICK
        texts = [f"{lane.cell} {lane.precision} {lane.threads}T" for lane in lanes]
        names = [text.replace("=", "").replace(" ", "-") for text in texts]  # -k takes no "="
        metafunc.parametrize("lane", lanes, ids=names)


@pytest.fixture(scope="session")
def policies() -> Callable[[Cell], Policy]:
    """Return what makes the policy of a cell, once."""
    made: dict[tuple[int, int], Policy] = {}

    def of(cell: Cell) -> Policy:
        dims = (cell.obs_dim, cell.act_dim)
        if dims not in made:
            made[dims] = shapes.make_policy(*dims)
        return made[dims]

    return of


@pytest.fixture(scope="session")
def truth_of(policies: Callable[[Cell], Policy]) -> Callable[[Cell], harness.Truth]:
    """Return what makes the definition's actions of a cell; it keeps the last cell's."""
    last: dict[Cell, harness.Truth] = {}

    def of(cell: Cell) -> harness.Truth:
        if cell not in last:
            last.clear()
            obs, noise = shapes.make_inputs(cell)
            last[cell] = harness.truth(policies(cell), obs, noise, cell.steps)
        return last[cell]

    return of


@pytest.fixture
def checked(
    policies: Callable[[Cell], Policy], truth_of: Callable[[Cell], harness.Truth]
) -> Callable[[Lane], harness.Running]:
    """Return what makes our sampler ready for a lane and holds it against the definition."""

    def of(lane: Lane) -> harness.Running:
        if lane.threads > available_cores():
            pytest.skip(f"only {available_cores()} core for this process")
        cell = lane.cell
        contender = peers.SorlFast(lane.precision, lane.threads)
        running = contender.prepare(cell, policies(cell), *shapes.make_inputs(cell))
        harness.check(contender, running, truth_of(cell))
        return running

    return of


@pytest.fixture
def native_training() -> Iterator[Callable[[str], int]]:
    """Return what makes training native in a precision, on all cores, and returns the threads."""
    native = peers.import_native()
    threads = min(available_cores(), ops.MAX_THREADS)
    before = os.environ.get("SORL_OPS"), torch.get_num_threads()

    def choose(precision: str) -> int:
        if not native.train_isas(precision):
            pytest.skip(f"no native training in {precision} on this processor")
        os.environ["SORL_OPS"] = "native"
        torch.set_num_threads(1)
        ops.configure(precision=precision, threads=threads)
        return threads

    yield choose
    ops.configure(precision="fp32", threads=1)
    torch.set_num_threads(before[1])
    os.environ.pop("SORL_OPS", None)
    if before[0] is not None:
        os.environ["SORL_OPS"] = before[0]


@pytest.fixture
def in_lane(benchmark: Any) -> Callable[[str, str, int], Any]:
    """Return what names the lane, the group that results are compared in, and returns `benchmark`."""

    def of(what: str, precision: str, threads: int) -> Any:
        benchmark.group = f"{what}, {precision}, {threads}T"
        return benchmark

    return of
