"""The record of finished episodes, and evaluations that are added to, never lost."""

import json
import resource

import pytest

from sorl_fast.errors import BadInput
from sorl_fast.simulate.episodes import Episode, Record, Task, keep_evaluation, record_path

CONTEXT = {
    **{"policy": "ab" * 32, "env": "maze", "success_timing": "post", "seed": 3},
    **{"backend": "native", "isa": "avx2", "precision": "fp32", "versions": {"mujoco": "3.2"}},
}
OTHERS = {
    **{"policy": "cd" * 32, "env": "cube", "success_timing": "pre", "seed": 4},
    **{"backend": "numpy", "isa": "avx512", "precision": "int8", "versions": {"mujoco": "4.0"}},
}
EPISODES = {
    Task(M, 1, 3, e): Episode(e % 2 == 0, 7 + e, -0.1 * e, 0.3 / (e + 1))
    for M in (1, 4)
    for e in range(3)
}


def fill(path, context=CONTEXT, episodes=EPISODES, fresh=False):
    with Record(path, context, fresh) as record:
        for task, episode in episodes.items():
            record.add(task, episode)


def test_what_was_added_is_found_again_bit_for_bit(tmp_path):
    path = tmp_path / "new" / "evaluation.episodes.jsonl"
    with Record(path, CONTEXT) as record:
        assert record.done == {}
        assert not path.parent.exists()  # nothing is written before an episode is finished
        for n, (task, episode) in enumerate(EPISODES.items(), 1):
            record.add(task, episode)
            assert len(Record(path, CONTEXT).done) == n  # at once: a kill loses none
        assert record.done == EPISODES
    assert Record(path, CONTEXT).done == EPISODES
    fill(path, episodes={})
    assert path.read_bytes().count(b"\n") == len(EPISODES)


@pytest.mark.parametrize("name", OTHERS)
def test_episodes_of_another_context_are_not_taken_and_not_lost(tmp_path, name):
    path = tmp_path / "record"
    other = CONTEXT | {name: OTHERS[name]}
    fill(path)
    assert Record(path, other).done == {}
    mine = {Task(1, 1, other["seed"], 0): Episode(True, 9, -1.5, 0.25)}
    fill(path, other, mine)
    assert Record(path, other).done == mine
    assert Record(path, CONTEXT).done == EPISODES
    fill(path, other, mine, fresh=True)
    assert Record(path, CONTEXT).done == EPISODES


def test_a_line_cut_short_anywhere_costs_that_episode_alone(tmp_path):
    path = tmp_path / "record"
    fill(path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    task, episode = [*EPISODES.items()][-1]
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        found = Record(path, CONTEXT).done
        assert len(found) == len(EPISODES) - (
            end < len(whole) - 1
        )  # only the line break is missing
        assert found.items() <= EPISODES.items()
        fill(path, episodes={task: episode})
        assert Record(path, CONTEXT).done == EPISODES


@pytest.mark.parametrize(
    "change",
    [
        *({"success": 1}, {"length": 0}, {"length": 2.5}, {"act_seconds": 0}, {"episode": "0"}),
        *({"returned": None}, {"steps": True}, {"candidates": None}),
    ],
    ids=str,
)
def test_a_damaged_line_is_an_episode_to_run_again(tmp_path, change):
    path = tmp_path / "record"
    fill(path)
    first, rest = path.read_bytes().split(b"\n", 1)
    line = json.dumps(json.loads(first) | change).encode()
    path.write_bytes(b"\n".join([line, b"\xff{", b"[]", b"7", b"[" * 5000, rest]))
    found = Record(path, CONTEXT).done
    assert len(found) == len(EPISODES) - 1
    assert found.items() <= EPISODES.items()


def test_fresh_forgets_what_was_there_once_an_episode_is_finished(tmp_path):
    path = tmp_path / "record"
    fill(path)
    fill(path, episodes={}, fresh=True)
    assert Record(path, CONTEXT).done == EPISODES
    task = next(iter(EPISODES))
    again = {task: Episode(False, 1, 0.0, 1.0)}
    fill(path, episodes=again, fresh=True)
    assert Record(path, CONTEXT).done == again


def test_without_a_path_it_is_in_memory_only():
    with Record(None, CONTEXT) as record:
        for task, episode in EPISODES.items():
            record.add(task, episode)
        assert record.done == EPISODES


def test_two_evaluations_may_share_the_file(tmp_path):
    path = tmp_path / "record"
    with Record(path, CONTEXT) as a, Record(path, CONTEXT | {"isa": "sse2"}) as b:
        for task, episode in EPISODES.items():
            a.add(task, episode)
            b.add(task, episode)
    assert Record(path, CONTEXT).done == Record(path, CONTEXT | {"isa": "sse2"}).done == EPISODES


def test_a_record_that_cannot_be_written_or_read_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"file/record.*(cannot|Not a directory)"):
        fill(tmp_path / "file" / "record")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match=r"folder, the record .* cannot be read .*move it away"):
        fill(tmp_path / "folder")


@pytest.mark.parametrize("room", [0, 10], ids=["no room", "room for a part of a line"])
def test_a_full_disk_is_named_and_costs_one_episode(tmp_path, room):
    path = tmp_path / "record"
    *first, (task, episode) = EPISODES.items()
    fill(path, episodes=dict(first))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, old[1]))
    try:
        with pytest.raises(BadInput, match=r"cannot write .*record: .*give the same command again"):
            fill(path, episodes={task: episode})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert Record(path, CONTEXT).done == dict(first)
    fill(path, episodes={task: episode})
    assert Record(path, CONTEXT).done == EPISODES


def row(M, N, episodes, successes=0, rate=1.0):
    return {
        **{"steps": M, "candidates": N, "episodes": episodes, "successes": successes},
        **{"success": successes / episodes, "actions_per_second": rate},
    }


def evaluation(*rows, command="a", **context):
    return CONTEXT | context | {"command": command, "rows": list(rows)}


def test_the_record_lies_beside_its_evaluation(tmp_path):
    assert record_path(tmp_path / "evaluation-int8.json") == (
        tmp_path / "evaluation-int8.episodes.jsonl"
    )


def test_cells_are_added_and_more_episodes_win(tmp_path):
    path = tmp_path / "evaluation.json"
    small = row(1, 1, 5, 5)
    first, aside = keep_evaluation(path, evaluation(row(4, 1, 50, 40), row(1, 1, 50, 2)))
    assert aside is None
    assert first == json.loads(path.read_text())
    assert first["rows"] == [row(1, 1, 50, 2), row(4, 1, 50, 40)]  # by steps, then candidates
    assert first["commands"] == ["a"]
    both = evaluation(small, row(4, 8, 5), row(4, 1, 100, 90), command="b", step=7)
    merged, aside = keep_evaluation(path, both)
    assert aside is None
    assert merged == json.loads(path.read_text())
    assert merged["rows"] == [row(1, 1, 50, 2), row(4, 1, 100, 90), row(4, 8, 5)]
    assert (merged["commands"], merged["step"]) == (["a", "b"], 7)
    again, _ = keep_evaluation(path, both)
    assert again == merged
    fresh, _ = keep_evaluation(path, evaluation(small), fresh=True)
    assert fresh["rows"] == json.loads(path.read_text())["rows"] == [small]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation.json"]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", [*OTHERS, "an older file"])
def test_results_of_another_context_are_moved_aside_not_mixed_in(tmp_path, name, fresh):
    path = tmp_path / "evaluation.json"
    keep_evaluation(path, evaluation(row(1, 1, 50), row(4, 1, 50)))
    if name == "an older file":
        values = json.loads(path.read_text())
        del values["policy"]
        path.write_text(json.dumps(values))
    before = path.read_bytes()
    changed = CONTEXT | ({name: OTHERS[name]} if name in OTHERS else {})
    new, aside = keep_evaluation(path, evaluation(row(2, 1, 3), **changed), fresh)
    assert new["rows"] == json.loads(path.read_text())["rows"] == [row(2, 1, 3)]
    assert new["commands"] == ["a"]
    assert aside == tmp_path / "evaluation-kept-1.json"
    assert aside.read_bytes() == before
    assert keep_evaluation(path, evaluation(row(2, 1, 3), **(changed | {"seed": 99})))[1] == (
        tmp_path / "evaluation-kept-2.json"
    )


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"rows": [7]}', '{"rows": [{}]}'])
def test_what_is_no_evaluation_is_replaced(tmp_path, text):
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    new, aside = keep_evaluation(path, evaluation(row(1, 1, 3)))
    assert aside is None
    assert new["rows"] == [row(1, 1, 3)]


def test_where_it_cannot_be_written_the_earlier_evaluation_stays(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"cannot write .*file/evaluation.json"):
        keep_evaluation(tmp_path / "file" / "evaluation.json", evaluation(row(1, 1, 3)))
