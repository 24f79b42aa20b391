"""How many microseconds an action takes, here and with the runtimes that one could pick instead.

`sorl-bench sampler --json FILE`. Ratios count only within one run on an otherwise idle machine; a peer is
compared only at the same cell, precision and number of threads. `--form` races the other forms of policies;
`--against PYTHON` another build of sorl-fast instead of the peers.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sorl_fast.act import policy_file
from sorl_fast.act.form import SHORTCUT
from sorl_fast.act.policy_file import Policy
from sorl_fast.atomic import write_bytes, write_file
from sorl_fast.cores import available_cores
from sorl_fast.errors import BadInput
from sorl_fast.flags import path_argument

from . import against, forms, harness, peers, shapes
from .harness import Contender, Figures, Running
from .limits import Limits, native_rates, refuse_beyond
from .peers import SorlFast
from .shapes import Cell, Lane

OURS = "sorl-fast"
# A time of another kind is a contender of its own: a call from C++, and one on cold caches.
CPP, COLD = " c++", " cold"
# The scalar path is a fallback for machines that nobody times; above this it would take minutes.
SCALAR_FLOP = 1e9

Row = dict[str, Any]


def run(argv: Sequence[str]) -> int:
    """Race everyone over the grid; print a table, and write the rows as JSON and a picture if asked to.

    Before anything is timed, every contender's actions are held against the definition in float64.
    The JSON is rewritten, whole, after each cell.

    Parameters
    ----------
    argv
        The command line after `sorl-bench sampler`.

    Returns
    -------
    int
        0, or 1 if a contender's actions were wrong, a row is beyond the machine's limit or, with
        `--against`, a build died.

    Raises
    ------
    BadInput
        The native module or a peer is not installed, an argument is wrong, or a file cannot be written.
    """
    args = _parse(argv)
    if args.show:
        return _show(args.show, args.png)
    native = peers.import_native()
    if args.against:
        return _against(args, native)
    names = [p for p in peers.PEERS if not (args.quick and p == "torch-compile")]
    rivals = peers.make_peers(names if args.peers is None else args.peers)
    isas = {precision: native.isas(precision) for precision in shapes.PRECISIONS}
    lanes = _lanes(args)
    contenders: list[Contender] = [*_ours({} if args.quick else isas), *rivals]
    policies = {cell.network: _policy(cell) for cell in dict.fromkeys(lane.cell for lane in lanes)}

    result: dict[str, Any] = {"machine": harness.machine(isas, peers.PACKAGES)}
    print(_headline(result["machine"]))
    limits = Limits(lanes, policies, native_rates(peers.import_bench()))
    result["limits"] = limits.to_dict()
    print(_limits_text(result["limits"]))
    result["rows"] = []
    for cell in dict.fromkeys(lane.cell for lane in lanes):
        here = [lane for lane in lanes if lane.cell == cell]
        try:
            policy = policies[cell.network]
            rows = race(
                here, contenders, policy, limits, args.seconds, args.cold_calls, args.rounds
            )
        except harness.Disagreement as err:
            print(f"sorl-bench sampler: {cell}: {err}", file=sys.stderr)
            return 1
        result["rows"] += rows
        for lane in here:
            print(lane_text(lane, rows), flush=True)
        if args.json:
            write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())
    print(summary(lanes, result["rows"]))
    if args.png:
        _plot(args.png, lanes, result)
    return refuse_beyond("sampler", result["rows"], _described)


def _against(args: argparse.Namespace, native: Any) -> int:
    """Race another build in the same lanes."""
    isas = {precision: native.isas(precision) for precision in shapes.PRECISIONS}
    machine = harness.machine(isas, peers.PACKAGES)
    print(_headline(machine))
    with tempfile.TemporaryDirectory(prefix="sorl-bench-") as folder:
        asked = questions(_lanes(args), Path(folder))
        block = args.seconds / args.rounds
        return against.race(args.against, asked, machine, block, args.rounds, args.json)


def questions(lanes: Sequence[Lane], folder: Path) -> Iterator[against.Question]:
    """Yield what two builds are asked in each lane; its files are written to `folder` before.

    Both act with the same weights, observations and noise, and are held against the definition.
    """
    for cell in dict.fromkeys(lane.cell for lane in lanes):
        policy = _policy(cell)
        files = {name: str(folder / f"{name}.npy") for name in ("obs", "noise")}
        files["policy"] = str(folder / "policy.safetensors")
        policy_file.save(files["policy"], policy)
        obs, noise = shapes.make_inputs(cell, policy.draws)
        np.save(files["obs"], obs)
        np.save(files["noise"], noise)
        expected = harness.truth(policy, obs, noise, cell.steps)

        for lane in (lane for lane in lanes if lane.cell == cell):
            fields = {"precision": lane.precision, "threads": lane.threads, **cell._asdict()}

            def judge(
                interface: str,
                answers: Sequence[Any],
                expected: harness.Truth = expected,
                precision: str = lane.precision,
            ) -> list[float]:
                return [
                    harness.judge(name, np.array(actions), expected, precision)
                    for name, actions in zip(against.NAMES, answers, strict=True)
                ]

            request = {**fields, **files}
            text = f"{cell!s:24s} {lane.precision} {lane.threads}T"
            yield against.Question(fields, text, {"act_into": request, "act": request}, judge)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sorl-bench sampler", description=__doc__)
    parser.add_argument(
        "--json", metavar="FILE", type=path_argument, help="write limits, machine and rows here"
    )
    parser.add_argument(
        "--png", metavar="FILE", type=path_argument, help="write a picture of the medians here"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only the cells that have a floor, in int8 too, without torch-compile: under 90 s; with "
        "--form all of its cells",
    )
    parser.add_argument(
        "--cells",
        nargs="+",
        metavar="B,M,N",
        help="these instead of the whole grid; B,M,N,O,A for another O than 28 and A than 5",
    )
    parser.add_argument(
        "--form",
        choices=[SHORTCUT, *forms.NAMES, "all"],
        default=SHORTCUT,
        help="how the policy's networks become an action; all: every one but the shortcut",
    )
    parser.add_argument(
        "--peers", nargs="*", metavar="PEER", help=f"of {', '.join(peers.PEERS)} (default: all)"
    )
    parser.add_argument(
        "--against",
        metavar="PYTHON",
        help="race another build of sorl-fast instead of the peers: the interpreter of an environment that "
        "has one",
    )
    parser.add_argument(
        "--seconds", type=float, help="time a contender and cell (default: 2, quick 0.3)"
    )
    parser.add_argument(
        "--cold-calls", type=int, help="calls on cold caches, B = 1 (default: 200, quick 50)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"blocks that a contender's time is spread over (default: {harness.ROUNDS}, with --against "
        f"{against.ROUNDS}); fewer if calls take seconds",
    )
    parser.add_argument(
        "--show",
        nargs="+",
        type=path_argument,
        metavar="FILE",
        help="measure nothing: compare what earlier runs on one machine wrote with --json, as if it were "
        "one run (with --png: draw it)",
    )
    args = parser.parse_args(argv)
    if args.against and (
        args.show or args.png or args.peers is not None or args.cold_calls is not None
    ):
        raise BadInput(
            "--against races no peers: leave --show, --png, --peers and --cold-calls out"
        )
    if args.rounds is None:
        args.rounds = against.ROUNDS if args.against else harness.ROUNDS
    args.seconds = (0.3 if args.quick else 2.0) if args.seconds is None else args.seconds
    args.cold_calls = (50 if args.quick else 200) if args.cold_calls is None else args.cold_calls
    if not 0 < args.seconds < 3600:
        raise BadInput(f"seconds is {args.seconds}, but must be above 0 and below 3600")
    if not 0 <= args.cold_calls < 10**6:
        raise BadInput(f"cold-calls is {args.cold_calls}, but must be in [0, 1000000)")
    if not 1 <= args.rounds <= 100:
        raise BadInput(f"rounds is {args.rounds}, but must be in [1, 100]")
    if args.show and (args.quick or args.cells or args.json or args.form != SHORTCUT):
        raise BadInput("--show measures nothing: leave --quick, --cells, --form and --json out")
    if args.form == "all" and args.cells:
        raise BadInput("--form all has cells of its own: leave --cells out, or name one form")
    if args.quick and args.cells:
        raise BadInput("--quick has cells of its own: leave it or --cells out")
    if args.png and find_spec("matplotlib") is None:
        raise BadInput("--png needs matplotlib: pip install 'sorl-fast[train]'")
    return args


def _lanes(args: argparse.Namespace) -> list[Lane]:
    """Return the lanes asked for, but those that this machine has too few cores for."""
    lanes = shapes.QUICK if args.quick else shapes.FULL
    if args.form != SHORTCUT or args.cells:
        cells: list[Cell] = []
        for name in forms.NAMES if args.form == "all" else [args.form]:
            form = forms.make_form(name)
            counts = shapes.POWERS if form is None else form.steps
            if args.cells:
                cells += [shapes.parse_cell(text, name, counts) for text in args.cells]
            elif form is not None:
                cells += shapes.form_cells(name, form)
        lanes = shapes.lanes_of(cells)
    cores = available_cores()
    left = [lane for lane in lanes if lane.threads <= cores]
    if len(left) < len(lanes):
        print(f"only {cores} core for this process: nothing is measured with more threads")
    return left


def _policy(cell: Cell) -> Policy:
    """Return the policy of a cell's shape and form."""
    return shapes.make_policy(cell.obs_dim, cell.act_dim, form=forms.make_form(cell.form))


def _ours(isas: Mapping[str, Sequence[str]]) -> list[SorlFast]:
    """Return our contenders, the default instruction set's (the last of each list) first."""
    return [
        SorlFast(precision, threads, isa)
        for precision in shapes.PRECISIONS
        for threads in shapes.THREADS
        for isa in reversed(isas.get(precision, [None]))
    ]


def race(
    lanes: Sequence[Lane],
    contenders: Iterable[Contender],
    policy: Any,
    limits: Limits,
    seconds: float,
    cold_calls: int,
    rounds: int = harness.ROUNDS,
) -> list[Row]:
    """Check and time everyone who may run in one of the lanes, all of the same cell.

    Returns
    -------
    list of dict
        Rows of the JSON: the calls from Python, then ours from C++, then, if B = 1, those on cold
        caches.

    Raises
    ------
    harness.Disagreement
        A contender's actions are wrong.
    """
    cell = lanes[0].cell
    assert all(lane.cell == cell for lane in lanes)
    obs, noise = shapes.make_inputs(cell, policy.draws)
    expected = harness.truth(policy, obs, noise, cell.steps)
    racing: list[tuple[Lane, Contender, Running, float]] = []
    for contender in contenders:
        lane = Lane(cell, contender.precision, contender.threads)
        slow = getattr(contender, "isa", None) == "scalar"
        if lane not in lanes or (slow and shapes.flop(cell, policy) > SCALAR_FLOP):
            continue
        running = contender.prepare(cell, policy, obs, noise)
        racing.append((lane, contender, running, harness.check(contender, running, expected)))

    def row(entry: tuple[Lane, Contender, Running, float], kind: str, figures: Figures) -> Row:
        lane, contender, running, error = entry
        return {
            "contender": contender.name + kind,
            "precision": lane.precision,
            "isa": running.isa,
            "threads": lane.threads,
            "batch": cell.batch,
            "steps": cell.steps,
            "candidates": cell.candidates,
            "obs_dim": cell.obs_dim,
            "act_dim": cell.act_dim,
            "form": cell.form,
            **figures._asdict(),
            "actions_per_second": cell.batch / (figures.p50_us * 1e-6),
            "limit_fraction": limits.fraction(lane, figures.p50_us),
            "max_abs_error": error,
        }

    runners = [entry[2] for entry in racing]
    warm = [Figures.of(times) for times in harness.interleave(runners, seconds, rounds)]
    rows = [row(entry, "", figures) for entry, figures in zip(racing, warm, strict=True)]
    for entry, figures in zip(racing, warm, strict=True):
        if entry[2].cpp is not None:
            times = harness.time_cpp(entry[2], seconds, figures.p50_us * 1e-6, rounds)
            rows.append(row(entry, CPP, Figures.of(times)))
    if cell.batch == 1 and cold_calls > 0:
        calls = -(-cold_calls // rounds)
        evict = harness.CacheEvictor()
        cold = harness.interleave(runners, 0.0, rounds, between=evict, least=calls, most=calls)
        rows += [row(entry, COLD, Figures.of(t)) for entry, t in zip(racing, cold, strict=True)]
    return rows


def _show(paths: Sequence[str], png: str | None) -> int:
    """Print the summary of what earlier runs measured, and draw it; a lane's last run counts."""
    machine: dict[str, Any] = {}
    by_lane: dict[Lane, list[Row]] = {}
    for path in paths:
        try:
            result = json.loads(Path(path).read_text())
            lanes: dict[Lane, list[Row]] = {}
            for row in result["rows"]:
                lanes.setdefault(_lane_of(row), []).append(row)
            here = {key: result["machine"][key] for key in ("cpu", "cores", "versions", "commit")}
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as err:
            raise BadInput(
                f"{path} is not what `sorl-bench sampler --json` writes: {err!r}"
            ) from None
        for key, value in here.items():
            if machine.setdefault(key, value) != value:
                raise BadInput(
                    f"{path} and {paths[0]} cannot be shown as one run: {key} is {value!r} in the first "
                    f"and {machine[key]!r} in the second"
                )
        by_lane |= lanes
    lanes_found = sorted(by_lane, key=_place)
    rows = [row for lane in lanes_found for row in by_lane[lane]]
    print(summary(lanes_found, rows))
    if png:
        _plot(png, lanes_found, {"machine": machine, "rows": rows})
    return refuse_beyond("sampler", rows, _described)


def _described(row: Row) -> str:
    """Return a row's lane, contender and median."""
    lane = _lane_of(row)
    name = f"{row['contender']} {row['isa'] or ''}".rstrip()
    return f"{lane.cell}, {lane.precision}, {lane.threads}T: {name}, {row['p50_us']:.1f} us"


def _place(lane: Lane) -> tuple[Any, ...]:
    """Order lanes as the grid does: by form, the small shape first, cells by size, precision, threads."""
    cell = lane.cell
    form = (SHORTCUT, *forms.NAMES).index(cell.form)
    return (form, cell.network, cell[:3], shapes.PRECISIONS.index(lane.precision), lane.threads)


def _lane_of(row: Row) -> Lane:
    """Return the lane that a row was measured in."""
    sizes = (row[f] for f in ("batch", "steps", "candidates", "obs_dim", "act_dim"))
    cell = Cell(*sizes, form=row.get("form", SHORTCUT))  # older files have no other
    return Lane(cell, row["precision"], row["threads"])


def in_lane(row: Row, lane: Lane) -> bool:
    """Return whether a row was measured in the lane."""
    return lane == _lane_of(row)


def compare(lane: Lane, rows: Sequence[Row]) -> tuple[Row | None, Row | None, float | None]:
    """Return our row of a lane, that of its fastest peer, and how many times as fast ours is.

    Ours is the call from Python at the default instruction set, the first of our rows; each is None if
    it was not measured, and the ratio if either is.
    """
    here = [
        row for row in rows if in_lane(row, lane) and not row["contender"].endswith((CPP, COLD))
    ]
    ours = next((row for row in here if row["contender"] == OURS), None)
    rivals = [row for row in here if row["contender"] != OURS]
    best = min(rivals, key=lambda row: float(row["p50_us"]), default=None)
    if ours is None or best is None:
        return ours, best, None
    return ours, best, best["p50_us"] / ours["p50_us"]


def lane_text(lane: Lane, rows: Sequence[Row]) -> str:
    """Return the lane's table: a line each contender, fastest first; `x` is its median over ours."""
    here = [row for row in rows if in_lane(row, lane)]
    ours, _, _ = compare(lane, rows)

    def other(row: Row, kind: str) -> str:
        name = row["contender"] + kind
        found = [r for r in here if r["contender"] == name and r["isa"] == row["isa"]]
        return f"{found[0]['p50_us']:10.1f}" if found else f"{'':10s}"

    lines = [
        f"\n{lane.cell}, {lane.precision}, {lane.threads} thread{'s' * (lane.threads > 1)}"
        "   (microseconds)",
        f"  {'':25s} {'p50':>10s} {'p99':>10s} {'p99.9':>10s} {'max':>10s} {'x':>6s} {'limit':>6s} "
        f"{'error':>8s} {'C++ p50':>10s} {'cold p50':>10s}",
    ]
    warm = [row for row in here if not row["contender"].endswith((CPP, COLD))]
    for row in sorted(warm, key=lambda row: float(row["p50_us"])):
        name = f"{row['contender']} {row['isa'] or ''}"
        times = " ".join(f"{row[k]:10.1f}" for k in ("p50_us", "p99_us", "p999_us", "max_us"))
        ratio = f"{row['p50_us'] / ours['p50_us']:6.2f}" if ours else f"{'':6s}"
        lines.append(
            f"  {name:25s} {times} {ratio} {row['limit_fraction']:6.1%} {row['max_abs_error']:8.1e} "
            f"{other(row, CPP)} {other(row, COLD)}"
        )
    return "\n".join(lines)


def summary(lanes: Sequence[Lane], rows: Sequence[Row]) -> str:
    """Return a line each lane: our median, the best peer's, the ratio, and the floor it must reach.

    The last line says whether we are the fastest in every lane that a peer runs in, or names the others.
    """
    lines = ["\nMedian of sorl-fast against the best peer of the same precision and threads"]
    raced = short = 0
    lost: list[str] = []
    for lane in lanes:
        ours, best, ratio = compare(lane, rows)
        if ours is None:
            continue
        line = (
            f"  {lane.cell!s:24s} {lane.precision} {lane.threads}T  {ours['p50_us']:10.1f} us, "
            f"{ours['limit_fraction']:4.0%} of the limit; "
        )
        if best is None or ratio is None:
            lines.append(line + "no peer")
            continue
        floor = shapes.floor(lane)
        reached = ratio >= floor
        raced += 1
        short += not reached
        if ratio <= 1:
            lost.append(f"{lane.cell} {lane.precision} {lane.threads}T ({ratio:.2f} x)")
        verdict = "reached" if reached else f"SHORT by {1 - ratio / floor:.0%}"
        lines.append(
            f"{line}{best['contender']:13s} {best['p50_us']:10.1f} us: {ratio:5.2f} x, floor {floor:g}: "
            f"{verdict}"
        )
    lines.append(f"{short} of {raced} lanes are short of their floor")
    if raced:
        where = f"in all {raced} lanes with a peer"
        if lost:
            where = f"in {raced - len(lost)} of {raced} lanes with a peer; not in {', '.join(lost)}"
        lines.append(f"sorl-fast is the fastest {where}")
    return "\n".join(lines)


def _headline(machine: Mapping[str, Any]) -> str:
    text = harness.headline(machine)
    if "amx" not in machine["isas"]["bf16"]:
        text += "\nno AMX here: the floors of bf16 were set for machines that have it"
    return text


def _limits_text(limits: Mapping[str, Any]) -> str:
    rates = ", ".join(
        f"{r['precision']} {r['gflops']:.0f} GFLOP/s {r['threads']}T" for r in limits["gflops"]
    )
    reads = ", ".join(
        f"{r['gb_per_s']:.0f} GB/s at {r['bytes_per_thread'] / 1e6:.1f} MB {r['threads']}T"
        for r in limits["read"]
    )
    return f"limits: {rates}; reading {reads}"


def _plot(path: str | os.PathLike[str], lanes: Sequence[Lane], result: Mapping[str, Any]) -> None:
    """Draw the medians as multiples of the machine's limit, for calls take from microseconds to seconds.

    A panel for each precision and number of threads, a column for each cell.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullFormatter

    rows = result["rows"]
    groups = list(dict.fromkeys((lane.precision, lane.threads) for lane in lanes))
    cells = {group: [lane.cell for lane in lanes if lane[1:] == group] for group in groups}
    shared = len({tuple(of) for of in cells.values()}) == 1  # named under the last panel
    markers = dict(zip((OURS, *peers.PEERS), "os^vD", strict=True))
    colours = {name: f"C{i}" for i, name in enumerate(markers)}
    height = 2.2 * len(groups) + 1.4 * (1 if shared else len(groups))
    figure = Figure(figsize=(12, height), layout="constrained")
    panels = figure.subplots(len(groups), squeeze=False)[:, 0]
    for panel, group in zip(panels, groups, strict=True):
        for name, marker in markers.items():
            points = []
            for x, cell in enumerate(cells[group]):
                lane = Lane(cell, *group)
                found = [r for r in rows if in_lane(r, lane) and r["contender"] == name]
                if found:  # the first is that of the default instruction set
                    points.append((x, 1 / found[0]["limit_fraction"]))
            if points:
                panel.plot(*zip(*points, strict=True), marker, color=colours[name], label=name)
        panel.axhline(1, color="black", linewidth=0.8, label="machine's limit")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        last = group == groups[-1]
        names = [str(cell) if last or not shared else "" for cell in cells[group]]
        panel.set_xticks(range(len(names)), names, rotation=40, ha="right")
        panel.set_ylabel("median / limit")
        precision, threads = group
        panel.set_title(f"{precision}, {threads} thread{'s' * (threads > 1)}")
        panel.grid(axis="y", alpha=0.3)
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    figure.suptitle(f"{result['machine']['cpu']}, {result['machine']['cores']} cores")
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=90))
