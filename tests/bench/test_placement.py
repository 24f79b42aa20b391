"""The benchmark of where pages lie: it reads what it says, and writes it down."""

import json

import pytest

pytest.importorskip("sorl_fast._native")

from sorl_fast.bench import peers, placement

from sorl_fast import BadInput


def test_both_rates_are_of_reading():
    for size in (1, 4096, 1 << 20, 64 << 20):  # the last is more than any core's cache
        before, after = peers.import_bench().placed_rates(size, seconds=0.001)
        assert before > 0
        assert after > 0


@pytest.mark.parametrize("times", ["0", "-1", "1001"])
def test_a_number_out_of_bounds_is_refused(times):
    with pytest.raises(BadInput, match=r"times is .* must be in \[1, 1000\]"):
        placement.run(["--times", times])


def test_a_row_for_each_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(placement, "SIZES", {"one": 1 << 16, "other": 1 << 18})
    file = tmp_path / "placement.json"
    assert placement.run(["--json", str(file), "--times", "2"]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["bytes"] for row in rows] == [1 << 16, 1 << 18]
    assert all(len(row["placed_gb_per_s"]) == len(row["gb_per_s"]) == 2 for row in rows)
    assert capsys.readouterr().out.count("placed") == 3
