"""The race as a whole, with contenders that are all the definition: rows, ratios, files."""

import json
from pathlib import Path

import numpy as np
import pytest
from sorl_fast.bench import harness, peers, sampler, shapes
from sorl_fast.bench.harness import Figures, Running
from sorl_fast.bench.limits import Limits, Rates
from sorl_fast.bench.shapes import Cell, Lane

from sorl_fast.act.reference import best_of_n
from sorl_fast.errors import BadInput

KEYS = [
    *("contender", "precision", "isa", "threads", "batch", "steps", "candidates", "obs_dim"),
    *("act_dim", "form", "p50_us", "p99_us", "p999_us", "max_us", "actions_per_second"),
    *("limit_fraction", "max_abs_error"),
]
ONE = Lane(Cell(1, 2, 3, 3, 2), "fp32", 1)
MANY = Lane(Cell(4, 2, 1, 3, 2), "fp32", 1)


class Fake:
    """The definition under any name; `off` is added to its actions."""

    def __init__(self, name, isa=None, off=0.0, precision="fp32", threads=1):
        self.name, self.isa, self.off = name, isa, off
        self.precision, self.threads = precision, threads

    def prepare(self, cell, policy, obs, noise):
        actions = best_of_n(policy, obs, noise, cell.steps).action + np.float32(self.off)
        cpp = None if self.isa is None else lambda calls: [1e-6] * calls
        return Running(lambda: actions, lambda a: a, isa=self.isa, cpp=cpp)


class FakeNative:
    """Says what a native module says, of a machine that nobody brings to its limit."""

    rate = 1e15

    @staticmethod
    def isas(precision):
        return ["scalar", "fast"] if precision == "fp32" else ["scalar"]

    @staticmethod
    def flop_rate(precision, isa=None, threads=1, seconds=0.05):
        return FakeNative.rate

    @staticmethod
    def read_rate(size, threads=1, seconds=0.05):
        return FakeNative.rate


@pytest.fixture
def policy():
    return shapes.make_policy(3, 2, hidden=8)


@pytest.fixture
def limits(policy):
    rates = Rates(lambda precision, threads: 1e9, lambda size, threads: 1e9)
    return Limits([ONE, MANY], {ONE.cell.network: policy}, rates)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(harness, "PAUSE", 0.0)


@pytest.fixture
def small(monkeypatch, policy):
    """Make `sampler.run --quick` a race of fakes over two small lanes."""
    rivals = [Fake("peer")]
    monkeypatch.setattr(peers, "import_native", lambda: FakeNative)
    monkeypatch.setattr(peers, "import_bench", lambda: FakeNative)
    monkeypatch.setattr(peers, "make_peers", lambda names: rivals)
    monkeypatch.setattr(sampler, "_ours", lambda isas: [Fake("sorl-fast", isa="fast")])
    monkeypatch.setattr(shapes, "make_policy", lambda O, A, form: policy)
    monkeypatch.setattr(shapes, "QUICK", (ONE, MANY))
    return rivals


def row(contender, p50, lane=ONE, isa=None):
    values = (contender, lane.precision, isa, lane.threads, *lane.cell)
    values += (p50, p50, p50, p50, 1e6 / p50, 0.5, 0.0)
    return dict(zip(KEYS, values, strict=True))


def test_rows_have_the_fields_of_the_schema(policy, limits):
    contenders = [Fake("sorl-fast", isa="fast"), Fake("peer")]
    rows = sampler.race([ONE], contenders, policy, limits, 0.001, cold_calls=5)
    assert [list(r) for r in rows] == [KEYS] * len(rows)
    assert [r["contender"] for r in rows] == [
        *("sorl-fast", "peer", "sorl-fast c++", "sorl-fast cold", "peer cold")
    ]
    assert [r["isa"] for r in rows] == ["fast", None, "fast", "fast", None]
    for r in rows:
        assert r["p50_us"] <= r["p99_us"] <= r["p999_us"] <= r["max_us"]
        assert r["actions_per_second"] == pytest.approx(1e6 / r["p50_us"])
        assert r["limit_fraction"] == pytest.approx(limits.seconds(ONE) * 1e6 / r["p50_us"])
        assert 0 <= r["max_abs_error"] < 1e-5
        assert sampler.in_lane(r, ONE)
        assert not sampler.in_lane(r, ONE._replace(threads=2))
    json.dumps(rows, allow_nan=False)


def test_only_contenders_of_the_lanes_race_and_batches_are_not_cold(policy, limits):
    contenders = [Fake("sorl-fast"), Fake("peer", precision="bf16"), Fake("peer", threads=2)]
    rows = sampler.race([MANY], contenders, policy, limits, 0.001, cold_calls=5)
    assert [r["contender"] for r in rows] == ["sorl-fast"]
    assert rows[0]["actions_per_second"] == pytest.approx(4e6 / rows[0]["p50_us"])


def test_the_scalar_path_is_left_out_of_large_cells(policy, limits, monkeypatch):
    contenders = [Fake("sorl-fast", isa="fast"), Fake("sorl-fast", isa="scalar")]
    rows = sampler.race([MANY], contenders, policy, limits, 0.001, 0)
    assert {r["isa"] for r in rows} == {"fast", "scalar"}
    monkeypatch.setattr(sampler, "SCALAR_FLOP", shapes.flop(MANY.cell, policy) - 1)
    rows = sampler.race([MANY], contenders, policy, limits, 0.001, 0)
    assert {r["isa"] for r in rows} == {"fast"}


def test_a_wrong_contender_stops_the_race_before_anything_is_timed(policy, limits, monkeypatch):
    def timed(*args, **kwargs):
        raise AssertionError("timed")

    monkeypatch.setattr(harness, "interleave", timed)
    contenders = [Fake("sorl-fast"), Fake("mutant", off=1e-3)]
    with pytest.raises(harness.Disagreement, match=r"mutant .*an action is 0\.00"):
        sampler.race([MANY], contenders, policy, limits, 0.001, 0)


def test_compare_takes_the_default_isa_and_the_fastest_peer_of_the_lane():
    other = ONE._replace(precision="bf16")
    rows = [
        row("peer", 1.0, MANY),
        row("peer", 2.0, other),
        row("sorl-fast", 100.0, isa="fast"),
        row("sorl-fast", 90.0, isa="scalar"),
        row("sorl-fast c++", 80.0, isa="fast"),
        row("slow", 400.0),
        row("quick", 250.0),
        row("quick cold", 10.0),
    ]
    ours, best, ratio = sampler.compare(ONE, rows)
    assert (ours["p50_us"], best["contender"], ratio) == (100.0, "quick", 2.5)
    assert sampler.compare(ONE, rows[:3])[1:] == (None, None)
    assert sampler.compare(MANY, rows)[0] is None


def test_summary_judges_each_lane_by_its_floor(monkeypatch):
    monkeypatch.setattr(shapes, "FLOORS", {ONE: 2.0})
    rows = [row("sorl-fast", 100.0), row("peer", 180.0)]
    rows += [row("sorl-fast", 100.0, MANY), row("peer", 101.0, MANY)]
    alone = ONE._replace(precision="int8")
    rows.append(row("sorl-fast", 100.0, alone))
    lines = sampler.summary([ONE, MANY, alone, ONE._replace(threads=2)], rows).splitlines()
    assert "1.80 x, floor 2: SHORT by 10%" in lines[2]
    assert "1.01 x, floor 1: reached" in lines[3]
    assert "int8 1T       100.0 us" in lines[4]
    assert lines[4].endswith("no peer")
    assert lines[5] == "1 of 2 lanes are short of their floor"
    assert lines[6] == "sorl-fast is the fastest in all 2 lanes with a peer"
    rows[3] = row("peer", 100.0, MANY)  # as fast is not the fastest
    last = sampler.summary([ONE, MANY, alone], rows).splitlines()[-1]
    assert last == (
        "sorl-fast is the fastest in 1 of 2 lanes with a peer; not in B=4 M=2 N=1 O=3 fp32 1T (1.00 x)"
    )
    assert sampler.summary([alone], rows).endswith("0 of 0 lanes are short of their floor")


def test_lane_text_has_the_cpp_and_cold_columns_beside_their_call():
    rows = [row("sorl-fast", 100.0, isa="fast"), row("sorl-fast c++", 98.5, isa="fast")]
    rows += [row("peer", 250.0), row("peer cold", 777.5)]
    title, _, ours, peer = sampler.lane_text(ONE, rows).strip().splitlines()
    assert title.startswith("B=1 M=2 N=3 O=3, fp32, 1 thread ")
    assert ours.split()[:2] == ["sorl-fast", "fast"]
    assert ours.split()[-1] == "98.5"
    assert peer.split()[-1] == "777.5"
    assert "2.50" in peer


def test_run_writes_the_whole_file(small, tmp_path, capsys):
    path = tmp_path / "new" / "sampler.json"
    argv = ["--quick", "--seconds", "0.001", "--cold-calls", "1", "--json", str(path)]
    assert sampler.run(argv) == 0
    values = json.loads(path.read_text())
    assert set(values) == {"limits", "machine", "rows"}
    assert {tuple(r) for r in values["rows"]} == {tuple(KEYS)}
    # the small lanes have no floor of their own: faster than every peer is what they must be
    assert {(r["batch"], r["contender"]) for r in values["rows"]} == {
        *((1, c) for c in ("sorl-fast", "peer", "sorl-fast c++", "sorl-fast cold", "peer cold")),
        *((4, c) for c in ("sorl-fast", "peer", "sorl-fast c++")),
    }
    assert [p.name for p in path.parent.iterdir()] == ["sampler.json"]
    out = capsys.readouterr().out
    assert "lanes are short of their floor" in out
    assert values["machine"]["cpu"] in out


def test_a_stop_keeps_the_finished_cells_whole(small, tmp_path, capsys, monkeypatch):
    class WrongLater(Fake):
        def prepare(self, cell, policy, obs, noise):
            self.off = 0.0 if cell.batch == 1 else 0.1
            return super().prepare(cell, policy, obs, noise)

    small[:] = [WrongLater("peer")]
    path = tmp_path / "sampler.json"
    path.write_text("old")
    argv = ["--quick", "--seconds", "0.001", "--cold-calls", "0", "--json", str(path)]
    assert sampler.run(argv) == 1
    assert {r["batch"] for r in json.loads(path.read_text())["rows"]} == {1}
    assert [p.name for p in tmp_path.iterdir()] == ["sampler.json"]
    assert "B=4 M=2 N=1 O=3: peer" in capsys.readouterr().err


def test_nothing_is_written_over_if_the_first_check_fails(small, tmp_path):
    small[:] = [Fake("peer", off=0.1)]
    path = tmp_path / "sampler.json"
    path.write_text("old")
    assert sampler.run(["--quick", "--seconds", "0.001", "--json", str(path)]) == 1
    assert path.read_text() == "old"


def test_a_file_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "sampler.json"
    with pytest.raises(BadInput, match="cannot write"):
        sampler.run(["--quick", "--seconds", "0.001", "--cold-calls", "0", "--json", str(path)])


def test_a_write_that_fails_leaves_the_old_file(small, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    path = tmp_path / "sampler.json"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BadInput, match="No space left"):
        sampler.run(["--quick", "--seconds", "0.001", "--cold-calls", "0", "--json", str(path)])
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("sampler.json", "old")]


def test_lanes_with_more_threads_than_cores_are_left_out(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shapes, "QUICK", (ONE, ONE._replace(threads=2)))
    monkeypatch.setattr(sampler, "available_cores", lambda: 1)
    path = tmp_path / "sampler.json"
    argv = ["--quick", "--seconds", "0.001", "--cold-calls", "0", "--json", str(path)]
    assert sampler.run(argv) == 0
    assert {r["threads"] for r in json.loads(path.read_text())["rows"]} == {1}
    assert "only 1 core for this process" in capsys.readouterr().out


def test_quick_leaves_torch_compile_out(small, monkeypatch):
    asked = []
    monkeypatch.setattr(peers, "make_peers", lambda names: asked.append(list(names)) or [])
    argv = ["--quick", "--seconds", "0.001", "--cold-calls", "0"]
    assert sampler.run(argv) == 0
    assert sampler.run([*argv, "--peers", "torch-compile"]) == 0
    assert sampler.run([*argv, "--peers"]) == 0
    assert asked == [["torch-eager", "onnxruntime", "openvino"], ["torch-compile"], []]


def test_cells_of_ones_own(small, tmp_path):
    path = tmp_path / "sampler.json"
    argv = ["--seconds", "0.001", "--cold-calls", "0", "--json", str(path)]
    assert sampler.run(["--cells", "1,2,3,3,2", "4,2,1,3,2", *argv]) == 0
    cells = [
        (r["batch"], r["steps"], r["candidates"]) for r in json.loads(path.read_text())["rows"]
    ]
    assert set(cells) == {(1, 2, 3), (4, 2, 1)}
    assert shapes.parse_cell("256,4,8") == Cell(256, 4, 8)
    for text in ("", "1", "1,3,1", "0,4,1", "1,4,1,28", "1,4,x", "1,16,1"):
        with pytest.raises(BadInput, match=f"^{text!r} is no cell: give B,M,N"):
            sampler.run(["--cells", text, *argv])


def test_ours_come_at_every_isa_the_default_first():
    isas = {"fp32": ["scalar", "avx2"], "bf16": ["scalar"], "int8": ["scalar"]}
    found = [(c.precision, c.threads, c.isa) for c in sampler._ours(isas)]
    assert found == [
        *(("fp32", t, isa) for t in (1, 2) for isa in ("avx2", "scalar")),
        *((p, t, "scalar") for p in ("bf16", "int8") for t in (1, 2)),
    ]
    assert {c.isa for c in sampler._ours({})} == {None}


@pytest.mark.slow
def test_the_picture(small, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "sampler.png"
    argv = ["--quick", "--seconds", "0.001", "--cold-calls", "0", "--png", str(path)]
    assert sampler.run(argv) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_row_beyond_the_limit_fails_the_benchmark_and_is_named(
    small, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(FakeNative, "rate", 1e3)
    path = tmp_path / "sampler.json"
    argv = ["--quick", "--seconds", "0.001", "--cold-calls", "0", "--json", str(path)]
    assert sampler.run(argv) == 1
    rows = json.loads(path.read_text())["rows"]  # what was measured is kept
    assert min(r["limit_fraction"] for r in rows) > 1.05
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(rows) + 1
    assert said[0].startswith("sorl-bench sampler: B=1 M=2 N=3 O=3, fp32, 1T: sorl-fast fast, ")
    assert said[0].endswith(f" us, is {rows[0]['limit_fraction']:.0%} of the machine's limit")
    assert "nothing can be above 105%" in said[-1]


def test_show_judges_the_limit_too(tmp_path, capsys):
    rows = [row("sorl-fast", 9.0), {**row("peer", 9.0), "limit_fraction": 1.2}]
    assert sampler.run(["--show", written(tmp_path / "a", rows)]) == 1
    assert "fp32, 1T: peer, 9.0 us, is 120% of" in capsys.readouterr().err


def written(path, rows, cpu="a cpu"):
    machine = {"cpu": cpu, "cores": 2, "versions": {}, "commit": "abc"}
    path.write_text(json.dumps({"limits": {}, "machine": machine, "rows": rows}))
    return str(path)


def test_show_reads_files_of_before_there_were_forms(tmp_path, capsys):
    old = [{k: v for k, v in row("sorl-fast", 9.0).items() if k != "form"}]
    new = row("sorl-fast", 9.0, ONE._replace(cell=ONE.cell._replace(steps=1, form="direct")))
    assert sampler.run(["--show", written(tmp_path / "a", [new, *old])]) == 0
    first, second = capsys.readouterr().out.strip().splitlines()[1:3]
    assert first.split()[:4] == ["B=1", "M=2", "N=3", "O=3"]
    assert second.split()[:5] == ["B=1", "M=1", "N=3", "O=3", "direct"]


def test_show_makes_one_run_of_several(tmp_path, capsys):
    first = written(
        tmp_path / "a", [row("sorl-fast", 9.0), row("peer", 9.0), row("sorl-fast", 5.0, MANY)]
    )
    second = written(tmp_path / "b", [row("sorl-fast", 10.0), row("peer", 20.0)])
    assert sampler.run(["--show", first, second]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert "B=1 M=2 N=3" in lines[1] and "2.00 x" in lines[1]  # the second file's ratio
    assert "B=4 M=2 N=1" in lines[2] and "no peer" in lines[2]
    assert lines[3] == "0 of 1 lanes are short of their floor"
    assert lines[4] == "sorl-fast is the fastest in all 1 lanes with a peer"


@pytest.mark.slow
def test_show_draws(tmp_path):
    pytest.importorskip("matplotlib")
    path = written(tmp_path / "a", [row("sorl-fast", 9.0), row("onnxruntime", 9.0)])
    assert sampler.run(["--show", path, "--png", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_show_refuses_what_is_not_one_run(tmp_path):
    here = written(tmp_path / "a", [row("sorl-fast", 9.0)])
    there = written(tmp_path / "b", [row("sorl-fast", 9.0)], cpu="another")
    with pytest.raises(BadInput, match="cpu is 'another' in the first and 'a cpu' in the second"):
        sampler.run(["--show", here, there])
    for text in ("{}", "[]", "x", '{"rows": [{"batch": 1}]}'):
        (tmp_path / "b").write_text(text)
        with pytest.raises(BadInput, match="b is not what `sorl-bench sampler --json` writes"):
            sampler.run(["--show", here, str(tmp_path / "b")])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seconds", "0"], "seconds is 0.0, but must be above 0"),
        (["--seconds", "nan"], "seconds is nan"),
        (["--cold-calls", "-1"], "cold-calls is -1, but must be in"),
        (["--quick", "--cells", "1,1,1"], "leave it or --cells out"),
        (["--form", "all", "--cells", "1,1,1"], "--form all has cells of its own"),
        (["--form", "euler", "--cells", "1,8,1"], r"M one of \(10,\)"),
        (["--show", "x.json", "--form", "all"], "--show measures nothing: leave"),
        (["--rounds", "0"], "rounds is 0, but must be in"),
        (["--show", "x.json", "--quick"], "--show measures nothing: leave"),
        (["--show", "missing.json"], "missing.json is not what"),
    ],
)
def test_bad_arguments(small, argv, message):
    with pytest.raises(BadInput, match=message):
        sampler.run(argv)


def test_a_picture_without_matplotlib(small, monkeypatch):
    monkeypatch.setattr(sampler, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="--png needs matplotlib"):
        sampler.run(["--quick", "--png", "x.png"])


def test_figures_are_what_the_rows_hold():
    assert Figures._fields == ("p50_us", "p99_us", "p999_us", "max_us")
