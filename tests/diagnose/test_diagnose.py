"""A diagnosis of a run, without a simulator: its parts, what is absent, its files and its page."""

import json
import shutil
from dataclasses import replace

import pytest
from diagnosing import SMALL, biased, policy_of, write_run
from forms import FORMS, form_policy

from sorl_fast import cli
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.diagnose import parts as module
from sorl_fast.diagnose.command import diagnose, text
from sorl_fast.diagnose.parts import PARTS
from sorl_fast.diagnose.subject import ways_of
from sorl_fast.errors import BadInput
from sorl_fast.progress import Shown
from sorl_fast.report.diagnosis import diagnosis_of
from sorl_fast.report.runs import Run

WORDS = ["--candidates", "8", "--observations", "12", "--samples", "6", "--no-progress"]
NAMES = [part.name for part in PARTS]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pictures take most of the time: they are drawn where a test is about them."""
    monkeypatch.setattr("sorl_fast.diagnose.command.draw", lambda *_: None)
    monkeypatch.setattr("sorl_fast.diagnose.command.png", lambda _: b"a picture")


def part(result, name):
    return next(p for p in result["parts"] if p["name"] == name)


def absent(result):
    return {p["name"]: p["absent"] for p in result["parts"] if "absent" in p}


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(own_file, tmp_path):
    return write_run(tmp_path / "run", policy_of(), own_file)


def test_a_run_of_own_data_has_all_but_episodes(run):
    seen = []
    result = diagnose(run, SMALL, lambda *x: seen.append(x))
    assert [p["name"] for p in result["parts"]] == NAMES
    none = "there are no episodes: mine is no single task of OGBench, and nothing here simulates it"
    assert absent(result) == {"returns": none, "standstills": none}
    assert part(result, "returns")["says"] == [f"Not examined: {none}."]
    assert json.loads((run / "diagnose.json").read_text()) == result
    pictures = sorted(p.name for p in (run / "figures").iterdir())
    assert pictures == sorted(p["picture"] for p in result["parts"] if "picture" in p)
    assert all(p["says"] for p in result["parts"])
    assert seen == [(i, len(PARTS)) for i in range(len(PARTS) + 1)]
    shown = text(run, result)
    assert all(line in shown for p in result["parts"] for line in p["says"])


@pytest.mark.slow
def test_every_part_has_a_picture(run, monkeypatch):
    monkeypatch.undo()
    result = diagnose(run, SMALL, Shown())
    for found in result["parts"]:
        if "picture" in found:
            data = (run / "figures" / found["picture"]).read_bytes()
            assert data.startswith(b"\x89PNG")
            assert len(data) > 5000


def test_the_same_twice_and_another_seed_is_another(run):
    diagnose(run, SMALL, Shown())
    before = files_of(run)
    diagnose(run, SMALL, Shown())
    assert files_of(run) == before
    diagnose(run, replace(SMALL, seed=4), Shown())
    assert files_of(run) != before


def test_a_bias_of_the_critic_is_found_in_the_policy(run, own_file, tmp_path):
    other = write_run(tmp_path / "biased", biased(policy_of(), 1, -3.0), own_file)
    found = part(diagnose(other, SMALL, Shown()), "bias")
    assert found["figures"]["component"] == 1
    assert found["figures"]["correlation"][1] < -0.7
    assert "argmax takes less of component 1" in found["says"][1]


def test_the_flow_is_asked_about_the_chosen_actions(run):
    losses = part(diagnose(run, SMALL, Shown()), "centre")["figures"]["flow_matching"]
    assert list(losses) == ["at random", "argmax", "medoid:1/2", "nearest:1/4"]
    assert all(0 < loss < 100 for loss in losses.values())


def test_the_triangle_of_distances_holds(run):
    f = part(diagnose(run, SMALL, Shown()), "wasserstein")["figures"]
    assert f["to_finest"][-1] == 0
    for to_finest, to_data in zip(f["to_finest"], f["to_data"], strict=True):
        assert to_data <= to_finest + f["discretisation"] + f["flow_to_data"] + 1e-5


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_examined_as_far_as_it_goes(name, own_file, tmp_path):
    run = write_run(tmp_path / "run", form_policy(FORMS[name], 4, 2), own_file, "fql")
    result = diagnose(run, SMALL, Shown())
    missing = {"returns", "standstills"}
    if name != "euler":
        missing.add("errors")
        assert "no flow" in absent(result)["errors"]
    if name in ("direct", "tanh"):
        missing |= {"spread", "bias", "centre"}
        assert "draws nothing" in absent(result)["centre"]
    assert set(absent(result)) == missing
    assert part(result, "wasserstein")["figures"]["to_finest"] is None


def test_without_critics_those_parts_are_said_to_be_absent(own_file, tmp_path):
    policy = form_policy(FORMS["euler"], 4, 2, E=0)
    run = write_run(tmp_path / "run", policy, own_file, "bc")
    missing = absent(diagnose(run, SMALL, Shown()))
    assert set(missing) == {"spread", "bias", "returns", "standstills"}
    assert missing["spread"] == "the policy has no critic: bc trains none that acts"


def test_data_that_are_gone_are_named_and_may_be_given(run, own_file, tmp_path):
    moved = tmp_path / "elsewhere" / "mine.npz"
    moved.parent.mkdir()
    shutil.move(own_file, moved)
    missing = absent(diagnose(run, SMALL, Shown()))
    assert set(missing) == set(NAMES)
    assert f"no data file {own_file}" in missing["errors"]
    assert "--data" in missing["errors"]
    assert cli.main(["diagnose", str(run), "--data", str(moved), *WORDS]) == 0
    assert set(absent(json.loads((run / "diagnose.json").read_text()))) == {
        "returns",
        "standstills",
    }
    with pytest.raises(BadInput, match="no data file"):
        diagnose(run, replace(SMALL, data=str(tmp_path / "nowhere.npz")), Shown())


def test_data_of_another_size_are_refused(own_file, tmp_path):
    run = write_run(tmp_path / "run", policy_of(O=3), own_file)
    with pytest.raises(BadInput, match=r"O = 4, A = 2, but the policy O = 3, A = 2"):
        diagnose(run, SMALL, Shown())
    assert not (run / "diagnose.json").exists()


@pytest.mark.parametrize("network", ["actor", "critic"])
def test_networks_that_overflow_are_told(network, own_file, tmp_path):
    layers = [[x.copy() for x in layer] for layer in getattr(policy_of(), network)]
    layers[0][0][:] = 3e38
    policy = replace(policy_of(), **{network: tuple(map(tuple, layers))})
    result = diagnose(write_run(tmp_path / "run", policy, own_file), SMALL, Shown())
    json.dumps(result, allow_nan=False)
    told = absent(result)
    assert "was finite" in told["spread"]
    assert ("not finite" in told.get("errors", "")) == (network == "actor")
    assert ("not finite" in told.get("wasserstein", "")) == (network == "actor")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": "9"}, "takes at most 8"),
        ({"steps": "1/2,1/3"}, "must sum to 1"),
        ({"samples": 500}, None),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(run, change, says):
    config = replace(SMALL, **change)
    if says is None:
        found = absent(diagnose(run, config, Shown()))
        assert found["wasserstein"] == "the data have 294 rows, fewer than --samples 500"
        return
    with pytest.raises(BadInput, match=says):
        diagnose(run, config, Shown())


def test_a_run_without_a_policy_and_a_file_are_refused(run, capsys):
    assert cli.main(["diagnose", str(run / "policy.safetensors")]) == 2
    assert "which is a file, but must be a run's folder" in capsys.readouterr().err
    (run / "policy.safetensors").unlink()
    assert cli.main(["diagnose", str(run)]) == 2
    assert "has no policy.safetensors" in capsys.readouterr().err


def test_the_ways_are_one_the_best_of_n_and_the_policys_own():
    policy = policy_of()
    assert [str(way) for way in ways_of(policy, SMALL)] == ["M = 4, N = 1", "M = 4, N = 8, argmax"]
    own = PolicyChoice(steps=[0.5, 0.25, 0.25], candidates=4, rule="medoid")
    chosen = replace(policy, choice=own)
    assert [way.steps.key for way in ways_of(chosen, SMALL)] == ["1/2,1/4,1/4"] * 3
    assert ways_of(chosen, SMALL)[2] == own
    assert len(ways_of(chosen, replace(SMALL, steps="2"))) == 2
    assert len(ways_of(form_policy(FORMS["direct"], 4, 2), SMALL)) == 1


def test_what_stops_it_leaves_what_was_there(run, monkeypatch):
    diagnose(run, SMALL, Shown())
    before = files_of(run)

    def interrupted(subject):
        raise KeyboardInterrupt

    late = PARTS[-1]._replace(figures=interrupted)
    monkeypatch.setattr("sorl_fast.diagnose.command.PARTS", (*PARTS[:-1], late))
    with pytest.raises(KeyboardInterrupt):
        diagnose(run, SMALL, Shown())
    assert files_of(run) == before


def test_a_picture_of_a_part_that_is_gone_goes(run, own_file):
    diagnose(run, SMALL, Shown())
    assert (run / "figures" / "diagnose-errors.png").exists()
    own_file.unlink()
    diagnose(run, SMALL, Shown())
    assert list((run / "figures").iterdir()) == []


# ---- the report's page


def as_run(folder, policy=None):
    return Run(folder, {}, [], [], None, False, policy)


def test_the_page_has_the_parts_or_the_command(run):
    command = f"sorl-fast diagnose {run}"
    assert diagnosis_of(as_run(run)) == {"folder": str(run), "command": command, "parts": []}
    result = diagnose(run, SMALL, Shown())
    found = diagnosis_of(as_run(run, result["policy"]))
    assert found["command"] == ""
    assert [p["title"] for p in found["parts"]] == [p.title for p in PARTS]
    assert [p["says"] for p in found["parts"]] == [p["says"] for p in result["parts"]]
    assert [p["uri"] is None for p in found["parts"]] == ["absent" in p for p in result["parts"]]
    assert diagnosis_of(as_run(run, "another"))["command"] == command
    (run / "figures" / "diagnose-bias.png").unlink()
    assert diagnosis_of(as_run(run))["parts"][1]["uri"] is None


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"policy": "x"}', '{"policy": 1, "parts": [1]}', "{"]
)
def test_a_damaged_file_is_named(run, damage):
    (run / "diagnose.json").write_text(damage)
    with pytest.raises(BadInput, match=r"diagnose\.json cannot be read .*sorl-fast diagnose"):
        diagnosis_of(as_run(run))


def test_a_picture_outside_the_runs_folder_is_not_shown(run):
    diagnose(run, SMALL, Shown())
    values = json.loads((run / "diagnose.json").read_text())
    values["parts"][0]["picture"] = "../../policy.safetensors"
    (run / "diagnose.json").write_text(json.dumps(values))
    assert diagnosis_of(as_run(run))["parts"][0]["uri"] is None


def test_a_window_is_a_quarter_of_the_longest_episode(monkeypatch):
    class Fake:
        def __init__(self, *lengths):
            self.traces = {"way": [type("T", (), {"length": n}) for n in lengths]}

    assert [module.window_of(Fake(5, n)) for n in (5, 80, 200, 1000)] == [2, 20, 50, 50]
