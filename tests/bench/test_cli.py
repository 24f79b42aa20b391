"""What a benchmark raises ends in a sentence and an exit code."""

import argparse
import importlib

import pytest
from sorl_fast.bench import cli, overhead
from sorl_fast.bench.harness import Disagreement

from sorl_fast.errors import BadInput


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (BadInput("blocks is 0"), 2, "sorl-bench overhead: blocks is 0"),
        (
            Disagreement("act and act_into differ"),
            1,
            "sorl-bench overhead: act and act_into differ",
        ),
        (ModuleNotFoundError(name="torch"), 2, "torch is not installed: pip install"),
    ],
)
def test_errors(monkeypatch, capsys, error, code, says):
    def run(argv):
        raise error

    monkeypatch.setattr(overhead, "run", run)
    assert cli.main(["overhead"]) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.BENCHMARKS)
def test_a_home_folder_is_expanded_everywhere(name, monkeypatch):
    class Parser(Exception):
        pass

    def parse_args(self, argv):
        raise Parser(self)

    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    module = importlib.import_module(f"sorl_fast.bench.{name}")
    with pytest.raises(Parser) as found:
        module.run([])
    for action in found.value.args[0]._actions:
        if action.metavar in ("FILE", "PROGRAM"):
            assert action.type("~/x") == "/home/me/x", action.dest
