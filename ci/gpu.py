"""ci/gpu.sh: its parts in turn, each in a process group of its own and within its own seconds.

gpu.json is written anew after every part, so that whatever ends this command leaves what came before.
Only the standard library is used here: what may crash or hang, torch and the driver, is in the parts.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu_work import SKIPPED, found, write_json

ROOT = Path(__file__).resolve().parent.parent
WORK = str(Path(__file__).with_name("gpu_work.py"))
TOTAL = 530.0  # seconds of the whole command
BENCH_SECONDS = 150


class Part(NamedTuple):
    """One part: what it is called, how long it may take, and what Python is given to run it."""

    name: str
    seconds: float
    arguments: tuple[str, ...]


def parts(work: Path, dry: bool) -> list[Part]:
    """Return all parts, in their order; those of a dry run need no GPU."""
    more = ("--dry-run",) if dry else ()

    def own(name: str, seconds: float) -> Part:
        return Part(name, seconds, (WORK, name, str(work), *more))

    bench = ("gpu", "--seconds", str(BENCH_SECONDS), "--json", str(work / "bench.json"), *more)
    return [
        own("machine", 30),
        own("build", 75),
        own("kernels", 120),
        own("doctor", 100),
        Part("bench", BENCH_SECONDS + 10, ("-m", "sorl_fast.bench.cli", *bench)),
        own("train", 45),
    ]


def make_package(work: Path) -> None:
    """Lay the package out as an installed one lies, where the parts will find it."""
    package = work / "package" / "sorl_fast"
    leave = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "sorl_fast", package, ignore=leave)
    for name in ("bench", "kernels"):
        shutil.copytree(ROOT / name, package / name, ignore=leave)


def make_stand_ins(work: Path) -> None:
    """Stand in for what the build and the tests import and this machine may not have."""
    folder = work / "stand_ins"
    folder.mkdir()
    if importlib.util.find_spec("pybind11") is None:
        # torch has its headers
        torch = importlib.util.find_spec("torch")
        include = Path(torch.origin).with_name("include") if torch and torch.origin else None
        (folder / "pybind11.py").write_text(f"def get_include():\n    return {str(include)!r}\n")
    if importlib.util.find_spec("hypothesis") is None:
        (folder / "hypothesis.py").write_text(
            "import pytest\n"
            "def given(*_, **__):\n"
            "    return pytest.mark.skip('hypothesis is not installed')\n"
            "def settings(*_, **__):\n"
            "    return lambda test: test\n"
            "class strategies:\n"
            "    integers = floats = lists = sampled_from = lambda *_, **__: None\n"
        )


def environment(work: Path, dry: bool) -> dict[str, str]:
    """Return the environment of the parts: nothing of the user's decides, nothing is left behind."""
    mine = {
        k: v for k, v in os.environ.items() if not k.startswith(("SORL_", "PYTEST_", "TRITON_"))
    }
    path = [work / "package", work / "stand_ins", ROOT / "tests", ROOT / "ci"]
    return mine | {
        "PYTHONPATH": os.pathsep.join([*map(str, path), mine.get("PYTHONPATH", "")]).rstrip(":"),
        "PYTHONSAFEPATH": "1",  # the folder that this runs in is not the package
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(work / "hypothesis"),
        "TRITON_INTERPRET": "1" if dry else "0",
        "TRITON_CACHE_DIR": str(work / "triton"),
        "XDG_CACHE_HOME": str(work / "cache"),
    }


def run_part(
    part: Part, seconds: float, log: Path, work: Path, variables: Mapping[str, str]
) -> dict[str, Any]:
    """Run a part to its end, or to that of its seconds; return what is known of it.

    Returns
    -------
    dict
        name, status (ok, failed, timed out or skipped), reason, seconds, limit, and found: what the part
        wrote down, however it ended.
    """
    start = time.monotonic()
    with log.open("a") as file:
        file.write(f"\n=== {part.name}, at most {seconds:.0f} s\n")
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, *part.arguments],
            cwd=ROOT, env=dict(variables), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        code = child.wait(seconds)
        status = {0: "ok", SKIPPED: "skipped"}.get(code, "failed")
        reason = "" if status == "ok" else _last_line(log) if code >= 0 else _signal(code)
    except subprocess.TimeoutExpired:
        status, reason = "timed out", f"still at work after {seconds:.0f} s"
    finally:
        _end(child)
    return {
        "name": part.name,
        "status": status,
        "reason": reason,
        "seconds": round(time.monotonic() - start, 1),
        "limit": seconds,
        "found": found(part.name, work),
    }


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Kill the group that a part leads; what hangs in a driver may outlive that: don't wait for ever."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(3)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace")[-4000:].splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _signal(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}"


def _say(known: Mapping[str, Any]) -> None:
    line = f"{known['name']:8s} {known['status']:9s} {known['seconds']:6.1f} s"
    print(line + (f"  {known['reason']}" if known["reason"] else ""), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if no part failed, 1 if one did, 2 for arguments that are none."""
    names = [part.name for part in parts(Path(), False)]
    parser = argparse.ArgumentParser(prog="ci/gpu.sh", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT") or ROOT / "build" / "gpu"),
        help="folder for gpu.json and gpu.log ($OUT, or build/gpu)",
    )
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="only these")
    parser.add_argument(
        "--dry-run", action="store_true", help="small, on the CPU: shows that the command works"
    )
    args = parser.parse_args(argv)
    # so that what runs ends, and the folder of this run goes, when this command is told to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    log, file = args.out / "gpu.log", args.out / "gpu.json"
    log.write_text("")
    result: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "dry_run": args.dry_run,
        "seconds": 0.0,
        "parts": [],
    }
    write_json(file, result)
    with tempfile.TemporaryDirectory(prefix="sorl-gpu-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        make_package(work)
        make_stand_ins(work)
        variables = environment(work, args.dry_run)
        for part in parts(work, args.dry_run):
            if part.name in args.parts:
                seconds = max(1.0, min(part.seconds, TOTAL - (time.monotonic() - start)))
                known = run_part(part, seconds, log, work, variables)
                result["parts"].append(known)
                result["seconds"] = round(time.monotonic() - start, 1)
                write_json(file, result)
                _say(known)
    print(f"{file}\n{log}")
    bad = [known for known in result["parts"] if known["status"] in ("failed", "timed out")]
    if bad:
        print(json.dumps([known["name"] for known in bad]), "did not end well; the log says more")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
