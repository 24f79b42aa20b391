"""What the report shows of films."""

import pytest
from PIL import Image
from policies import make_policy
from reported import Page, make_run

from sorl_fast.act import policy_file
from sorl_fast.film.strip import STRIP, strip_bytes
from sorl_fast.report import page, write_report


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_pictures", lambda settings: iter(()))
    return make_run(tmp_path / "cube")


def strip_of(policy):
    return strip_bytes(Image.new("RGB", (20, 10), (104, 211, 145)), policy, "Episodes with M = 5.")


def test_without_a_film_a_line_says_how_to_get_one(run):
    shown = Page(write_report([run]))
    assert f"There is no film of cube. sorl-fast film {run} makes one" in shown.text.replace(
        "`", ""
    )
    assert not shown.links


def test_a_strip_is_in_the_page_with_its_caption(run, monkeypatch):
    data = strip_of("a" * 64)
    (run / STRIP).write_bytes(data)
    monkeypatch.setattr(page, "read_strip", lambda folder, _: (data, "Episodes with M = 5."))
    shown = Page(write_report([run]))
    assert shown.links == [page.data_uri(data)]
    assert "Episodes with M = 5." in shown.text
    assert "no film" not in shown.text


def test_the_strip_is_that_of_the_runs_own_policy(run):
    policy_file.save(run / "policy.safetensors", make_policy())
    digest = policy_file.load(run / "policy.safetensors").digest
    settings = page.group_settings([page.load_run(run)])
    (run / STRIP).write_bytes(strip_of(digest))
    films, lines = page._films(settings)
    assert [film["caption"] for film in films] == ["Episodes with M = 5."]
    assert lines == []
    (run / STRIP).write_bytes(strip_of("b" * 64))
    films, (line,) = page._films(settings)
    assert films == []
    assert "another policy" in line
    assert f"sorl-fast film {run}" in line
