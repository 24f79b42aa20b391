"""The dispatch table: kept whole or not at all, read only where it was made, obeyed."""

import json
import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sorl_fast import isolated
from sorl_fast.errors import BadInput
from sorl_fast.layout import Layout
from sorl_fast.ops import table
from sorl_fast.ops.implementations import NAMES, NETWORK_OPERATIONS, OPERATIONS, SCHEDULED, Task
from sorl_fast.ops.selfcheck import STATUSES, Result

CPU = torch.device("cpu")
SIZES = Layout.actor(28, 5, 64, 2)
CRITIC = Layout.critic(28, 5, 64, 2, 3)
GOOD = Result("ok", "", {1: 10.0, 256: 20.0}, {1: 30.0, 256: 60.0})
NEVER = {
    "disagrees": "value is off by 1.0e-03",
    "failed": "OutOfResources: shared memory",
    "crashed": "the process was killed by SIGSEGV",
    "hung": "said nothing for 180 s",
    "unchecked": "a second process can't use cuda:0",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sorl-fast"


class Examiner:
    """Stands in for `selfcheck.examine`: gives everything the same results, and counts."""

    def __init__(self, **implementations):
        self.implementations = implementations or {"fused": GOOD, "reference": GOOD}
        self.calls = []

    def __call__(self, wanted, device):
        self.calls.append([task.name for task in wanted])
        return {task.name: dict(self.implementations) for task in wanted}


def chooser(examiner):
    return table.Chooser(CPU, examiner)


# --- the file ----------------------------------------------------------------------------------------

times = st.dictionaries(st.integers(1, 2**20), st.floats(1e-3, 1e9), max_size=4)
results = st.builds(Result, st.sampled_from(STATUSES), st.text(max_size=20), times, times)
entries = st.dictionaries(
    st.text(max_size=20), st.dictionaries(st.sampled_from(NAMES), results), max_size=4
)


@pytest.mark.slow
@given(entries)
def test_what_is_written_is_read(found):
    made_for = {"gpu": "x", "driver": "y"}
    assert table.parse(table.dump(found, made_for), made_for) == found


def test_a_table_goes_through_its_file(cache):
    found = {"velocity bf16": {"fused": GOOD, "reference": GOOD}}
    path = table.save(CPU, found)
    assert path.parent == cache
    assert [p.name for p in cache.iterdir()] == [path.name]
    assert table.load(CPU) == found
    more = {"rollout bf16": {"fused": Result("crashed", "SIGSEGV", {}, {})}}
    table.save(CPU, more)
    assert table.load(CPU) == found | more


def test_what_was_not_checked_is_not_kept():
    unchecked = Result("unchecked", "busy", {}, {})
    table.save(CPU, {"a": {"fused": unchecked, "reference": GOOD}, "b": {"fused": GOOD}})
    assert set(table.load(CPU)) == {"b"}


KEYS = ("gpu", "driver", "torch", "triton", "sorl_fast", "source")


def test_the_key_names_everything_that_matters():
    assert set(table.key(CPU)) == set(KEYS)


@pytest.mark.parametrize("name", KEYS)
def test_another_key_reads_another_table(name, monkeypatch):
    old = table.table_path(CPU)
    table.save(CPU, {"a": {"fused": GOOD}})
    other = table.key(CPU) | {name: "another"}
    monkeypatch.setattr(table, "key", lambda device: other)
    assert table.table_path(CPU) != old
    assert table.load(CPU) == {}
    # nor is one believed that lies where this one's should
    old.replace(table.table_path(CPU))
    assert table.load(CPU) == {}


def test_other_kernels_make_another_key(tmp_path, monkeypatch):
    before = table._source_digest()
    source = tmp_path / "ops"
    source.mkdir()
    for path in Path(table.__file__).parent.glob("*.py"):
        (source / path.name).write_bytes(path.read_bytes())
    with (source / "chain.py").open("a") as file:
        file.write("# changed\n")
    table._source_digest.cache_clear()
    monkeypatch.setattr(table, "__file__", str(source / "table.py"))
    try:
        assert table._source_digest() != before
    finally:
        table._source_digest.cache_clear()


def damaged():
    """Bytes that are nearly a table."""
    whole = table.dump({"a": {"fused": GOOD}}, table.key(CPU))

    def change(*path, value):
        content = json.loads(whole)
        place = content
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        return json.dumps(content).encode()

    result = ("entries", "a", "fused")
    return {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "no-json": b"\xff\x00",
        "list": b"[]",
        "number": b"3",
        "deep": b"[" * 100_000,
        "format": change("format", value=0),
        "no-key": change("key", value=None),
        "entries": change("entries", value=[1]),
        "implementation": change("entries", "a", value={"magic": {}}),
        "status": change(*result, "status", value="fine"),
        "no-times": change(*result, "forward", value=None),
        "rows": change(*result, "forward", value={"many": 1.0}),
        "no-rows": change(*result, "forward", value={"0": 1.0}),
        "time-text": change(*result, "forward", value={"1": "x"}),
        "negative": change(*result, "forward", value={"1": -1.0}),
        "nan": change(*result, "forward", value={"1": float("nan")}),
    }


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_table_is_made_anew(name):
    path = table.table_path(CPU)
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged()[name])
    assert table.load(CPU) == {}
    examiner = Examiner()
    assert chooser(examiner).choice("velocity", "bf16", SIZES, 1) == "fused"
    assert len(examiner.calls) == 1
    assert Task("velocity", "bf16", table._network(SIZES)).name in table.load(CPU)


def test_no_absolute_cache_folder_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert table.cache_folder() == tmp_path / ".cache" / "sorl-fast"


# --- choosing ----------------------------------------------------------------------------------------


def test_the_fastest_at_the_nearest_count_is_chosen():
    fused = Result("ok", "", {1: 50.0, 256: 60.0, 65536: 100.0}, {1: 1.0, 256: 1.0})
    chain = Result("ok", "", {1: 10.0, 256: 70.0, 65536: 300.0}, {1: 2.0, 256: 0.5})
    choose = chooser(Examiner(fused=fused, chain=chain, reference=GOOD)).choice
    for rows, implementation in ((1, "chain"), (4, "chain"), (100, "reference"), (10**6, "fused")):
        assert choose("rollout", "bf16", SIZES, rows) == implementation
    assert choose("rollout", "bf16", SIZES, 1, grad=True) == "fused"
    assert choose("rollout", "bf16", SIZES, 200, grad=True) == "chain"


@pytest.mark.parametrize(
    ("implementations", "chosen"),
    [
        ({"fused": Result("ok", "", {}, {}), "chain": GOOD}, "chain"),
        ({"chain": Result("ok", "", {}, {}), "fused": Result("ok", "", {}, {})}, "fused"),
        ({"chain": Result("ok", "", {}, {}), "reference": GOOD}, "reference"),
        ({}, "reference"),
        ({"reference": Result("disagrees", "x", {}, {})}, "reference"),
    ],
    ids=["timed", "untimed", "only-reference-timed", "nothing", "none-good"],
)
def test_what_remains_is_used(implementations, chosen):
    assert table.best(implementations, 7) == chosen


def test_a_count_that_did_not_fit_is_not_chosen():
    fits = Result("ok", "", {1: 9.0, 65536: 900.0}, {})
    assert table.best({"fused": Result("ok", "", {1: 1.0}, {}), "chain": fits}, 65536) == "chain"
    assert table.best({"fused": Result("ok", "", {1: 1.0}, {}), "chain": fits}, 2) == "fused"


@pytest.mark.parametrize("status", NEVER)
def test_a_way_that_is_not_right_is_never_used_and_said_once(status):
    fast = Result(status, NEVER[status], {1: 0.1}, {1: 0.1})
    examiner = Examiner(fused=fast, chain=GOOD, reference=GOOD._replace(forward={1: 11.0}))
    choose = chooser(examiner).choice
    with pytest.warns(RuntimeWarning) as seen:
        assert choose("rollout", "bf16", SIZES, 1) == "chain"
    (warning,) = seen
    text = str(warning.message)
    assert "its fused form of rollout bf16 O28 A5 H64 L2 E1" in text
    assert "but the chain form" in text
    assert NEVER[status] in text
    for rows in (1, 2, 300):
        assert choose("rollout", "bf16", SIZES, rows) == "chain"  # a warning would be an error


def test_a_table_read_back_still_refuses_and_says_so():
    broken = Result("disagrees", "value is off", {1: 0.1}, {})
    with pytest.warns(RuntimeWarning):
        chooser(Examiner(fused=broken, reference=GOOD)).choice("rollout", "bf16", SIZES, 1)
    again = Examiner()
    with pytest.warns(RuntimeWarning, match="disagrees with the definition: value is off"):
        assert chooser(again).choice("rollout", "bf16", SIZES, 1) == "reference"
    assert again.calls == []


def test_the_first_use_examines_a_network_once():
    examiner = Examiner()
    choose = chooser(examiner).choice
    for operation in OPERATIONS:
        if operation == SCHEDULED:  # of few policies: by itself, when it is asked for
            continue
        sizes = SIZES if operation in NETWORK_OPERATIONS else None
        choose(operation, "bf16", sizes, 256)
        choose(operation, "bf16", sizes, 3)
    assert len(examiner.calls) == 1
    assert len(examiner.calls[0]) == len(set(examiner.calls[0])) == 7
    choose("rollout", "fp32", SIZES, 1)  # another precision: nothing twice
    assert not set(examiner.calls[1]) & set(examiner.calls[0])
    choose("critic_ensemble", "bf16", CRITIC, 1)  # another critic, the same actor
    assert examiner.calls[2] == [
        "critic_ensemble bf16 O28 A5 H64 L2 E3",
        "best_of_n bf16 O28 A5 H64 L2 E3",
    ]
    choose("critic_ensemble", "bf16", replace(CRITIC, act=0, members=1), 1)  # a value: alone
    assert examiner.calls[3] == ["critic_ensemble bf16 O28 A0 H64 L2 E1"]
    choose(SCHEDULED, "bf16", CRITIC, 1)
    assert examiner.calls[4] == ["best_of_n_scheduled bf16 O28 A5 H64 L2 E3"]
    fresh = Examiner()  # another process
    assert chooser(fresh).choice("rollout", "bf16", SIZES, 1) == "fused"
    assert fresh.calls == []


def test_the_first_use_says_what_takes_its_time(caplog):
    with caplog.at_level(logging.WARNING):
        chooser(Examiner()).choice("rollout", "bf16", SIZES, 1)
    assert "first use on this GPU" in caplog.text


@pytest.mark.parametrize("cause", ["file-in-the-way", "no-home"])
def test_a_cache_that_cannot_be_written_does_not_break_anything(cause, tmp_path, monkeypatch):
    if cause == "file-in-the-way":
        (tmp_path / "cache").write_text("")
    else:
        monkeypatch.setattr(table, "cache_folder", lambda: None)
    examiner = Examiner()
    choose = chooser(examiner).choice
    with pytest.warns(RuntimeWarning, match="made anew in every process") as seen:
        assert choose("rollout", "bf16", SIZES, 1) == "fused"
    assert len(seen) == 1
    assert choose("rollout", "fp16", SIZES, 1) == "fused"  # not said again
    assert choose("rollout", "bf16", SIZES, 9) == "fused"
    assert len(examiner.calls) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_does_not_break_anything(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.warns(RuntimeWarning, match="made anew in every process"):
        assert chooser(Examiner()).choice("rollout", "bf16", SIZES, 1) == "fused"


def test_when_no_child_can_be_started_the_reference_serves(monkeypatch):
    def nothing(worker, items, **more):
        return iter([{"status": "unchecked", "reason": "busy"}] * len(items))

    monkeypatch.setattr(isolated, "run", nothing)
    choose = table.Chooser(CPU).choice
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert choose("rollout", "bf16", SIZES, 1) == "reference"
    assert all("could not be checked: busy" in str(w.message) for w in seen)
    assert table.load(CPU) == {}  # tried again next time


@pytest.mark.parametrize(
    ("operation", "precision", "says"),
    [("nothing", "bf16", "operation is 'nothing'"), ("rollout", "fp8", "precision is 'fp8'")],
)
def test_unknown_names_are_named(operation, precision, says):
    with pytest.raises(BadInput, match=says):
        chooser(Examiner()).choice(operation, precision, SIZES, 1)


def test_the_module_keeps_one_table_a_device(monkeypatch):
    examiner = Examiner()
    monkeypatch.setattr(table, "_choosers", {CPU: chooser(examiner)})
    assert table.choice("rollout", "bf16", SIZES, 1, device=CPU) == "fused"
    assert len(examiner.calls) == 1
