"""Every script of findings/ says what it found, when and with what, and can be run by somebody else."""

import os
import re
import subprocess
from datetime import date
from pathlib import Path

import pytest

FINDINGS = Path(__file__).parent.parent / "findings"
SCRIPTS = sorted(FINDINGS.glob("*.sh"))
FIELDS = ("Expected", "Happens", "Versions", "Date", "Matters")
each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def header(text):
    """The fields of the comment at a script's head, each of one or more lines; a title may come first."""
    found = {}
    for line in text.splitlines()[1:]:
        if not line.startswith("#"):
            break
        if match := re.match(r"# ([A-Z]\w+): (.*)", line):
            name, rest = match.groups()
            assert name not in found, f"{name} twice"
            found[name] = rest
        elif found:
            found[name] += " " + line.strip("# ")
    return found


def installed(text):
    """What a script's pip installs: all that is no option."""
    whole = text.replace("\\\n", " ")
    for line in whole.splitlines():
        if match := re.search(r"\bpip[\w.]*[\"']?\s+install\s+([^#;&|]*)", line):
            yield from (word for word in match[1].split() if not word.startswith("-"))


def test_there_are_some():
    assert len(SCRIPTS) >= 6
    others = {path.name for path in FINDINGS.iterdir()} - {path.name for path in SCRIPTS}
    assert others == {"README.md"}


@each
def test_can_be_run(script):
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail\n" in text
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@each
def test_says_what_was_seen_and_when(script):
    said = header(script.read_text())
    assert tuple(said) == FIELDS
    assert all(len(value) > 7 for value in said.values())
    assert date.fromisoformat(said["Date"]) >= date(2026, 1, 1)
    assert re.search(r"\d+\.\d+", said["Versions"])


@each
def test_leaves_nothing_behind_and_needs_nothing_of_this_package(script):
    text = script.read_text()
    assert re.search(r"""^(\w+)=\$\(mktemp -d\)\ntrap 'rm -rf "\$\1"' EXIT$""", text, re.MULTILINE)
    assert not re.search(r"\b(from|import)\s+sorl_fast|sorl-(fast|bench)\b", text)


@each
def test_installs_only_what_it_pins_and_names(script):
    text = script.read_text()
    versions = header(text)["Versions"]
    for package in installed(text):
        name, equals, version = package.strip("\"'").partition("==")
        assert equals, f"{package} has no =="
        if "$" not in version:  # else one of several
            assert f"{name} {version}" in versions, f"Versions does not name {name} {version}"
