"""Every command of ours in README and docs is one that the command line takes: parsed, not run."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import sorl_fast.bench.cli

import sorl_fast.cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench" / "README.md"]
MAINS = {"sorl-fast": sorl_fast.cli.main, "sorl-bench": sorl_fast.bench.cli.main}


def commands(text):
    """The commands of ours in fenced blocks without a language; one with `...` is no whole one."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        if language:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] in MAINS and "..." not in words:
                found.append(words)
    return found


ALL = {
    f"{page.relative_to(ROOT)}: {' '.join(words)}": words
    for page in PAGES
    for words in commands(page.read_text())
}


class Parsed(BaseException):
    """The words were all understood."""


@pytest.fixture
def parsing(monkeypatch):
    whole, known = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args

    def parse_args(self, *args, **options):
        whole(self, *args, **options)
        raise Parsed

    def parse_known_args(self, args=None, namespace=None):
        namespace, rest = known(self, args, namespace)
        if self.prog == "sorl-fast" and args[:1] == ["sweep"]:  # what is left is the methods'
            raise Parsed
        return namespace, rest

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)


def parses(words):
    program, *rest = words
    if "train" in rest[:1] and "--resume" in rest and "--method" not in rest:
        rest += ["--method", "sorl"]  # which it reads in the run's folder
    with pytest.raises(Parsed):
        MAINS[program](rest)


@pytest.mark.parametrize("words", ALL.values(), ids=ALL)
def test_a_documented_command_is_understood(words, parsing):
    parses(words)


@pytest.mark.parametrize(
    "line", ["sorl-fast train --env e --data d --out o --stepz 3", "sorl-bench sampler --quik"]
)
def test_another_is_not(line, parsing):
    with pytest.raises(SystemExit):
        parses(shlex.split(line))


def test_links_lead_somewhere():
    missing = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert missing == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
