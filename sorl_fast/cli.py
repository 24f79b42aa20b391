"""Arguments -> config -> one call.

Exit codes: 0 well, 1 a backend disagrees or nothing fits, 2 bad input, 3 diverged, 75 stopped, saved.
"""

import argparse
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .atomic import write_bytes
from .config import (
    DEFAULT_METHOD,
    CollectConfig,
    EvalConfig,
    ExpertConfig,
    ImportConfig,
    TrainConfig,
)
from .diagnose.arguments import add_arguments as add_diagnose_arguments
from .envs import PRESETS, dataset_name, how_to_collect
from .errors import BadInput, Diverged, Stopped
from .export.arguments import add_arguments as add_export_arguments
from .film.arguments import add_film
from .flags import add_flags, flags_of, given, make, path_argument
from .flags import add_progress as _add_progress
from .progress import at_terminal, say
from .progress import progress as show_progress
from .run_path import policy_path
from .stopping import stoppable
from .sweep.arguments import add_arguments, read
from .version import __version__

# Each command imports what it needs inside its function: a robot's `inspect` must not need torch, and
# the simulators' worker processes import this module again.


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Say which extra of the package is missing when an import fails."""
    try:
        yield
    except ModuleNotFoundError as err:
        raise BadInput(f"{err.name} is not installed: pip install 'sorl-fast[{name}]'") from err


@contextmanager
def _nothing_rendered() -> Iterator[None]:
    """Tell MuJoCo, which may be imported here, to look for no way to render, whatever the user has set."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before


def _collect(args: argparse.Namespace) -> int:
    config = make(CollectConfig, given(args, CollectConfig))
    with _extra("train"):
        from .data.collect import collect
    with _nothing_rendered():
        report = collect(config, progress=args.progress)
    if report.already_done:
        print(f"{report.train_path} and {report.val_path} are there already; nothing was changed.")
        return 0
    rate = report.steps / max(report.seconds, 1e-9)
    reached = "" if report.waypoints is None else f"; {report.waypoints:.1f} way-points an episode"
    print(
        f"{report.episodes} + {report.val_episodes} episodes in {report.train_path} and "
        f"{report.val_path.name}: {report.steps} steps in {report.seconds:.0f} s, {rate:.0f} a second"
        f"{reached}"
    )
    return 0


def _expert(args: argparse.Namespace) -> int:
    config = make(ExpertConfig, given(args, ExpertConfig))
    with _nothing_rendered():
        from .expert.train import train_expert

        report = train_expert(config, progress=args.progress)
    done = "had been made before; nothing was changed" if report.already_done else "made"
    found = report.measure
    speed = found["metres_a_second"]
    print(
        f"{report.steps} steps {done}. Expert: {report.path}, mean return {found['return']} over "
        f"{found['episodes']} episodes" + ("" if speed is None else f", {speed} m/s as directed")
    )
    return 0


def _import(args: argparse.Namespace) -> int:
    from .importing import run_import, text_of

    config = make(ImportConfig, given(args, ImportConfig))
    print(text_of(run_import(args.source, config), config))
    return 0


def _envs(args: argparse.Namespace) -> int:
    print(
        "Environments with the paper's settings; five tasks each, default task where -taskK is left out."
    )
    columns = list(dict.fromkeys(k for p in PRESETS.values() for k in p.settings(args.method)))
    texts = {
        k
        for p in PRESETS.values()
        for k, v in p.settings(args.method).items()
        if isinstance(v, str)
    }
    widths = {name: max(len(name), 5 if name in texts else 6) for name in columns}
    head = "".join(f" {name:>{widths[name]}s}" for name in columns)
    print(f"{'family':30s}{head} {'O/A':>6s} {'limit':>5s}  data")
    for p in PRESETS.values():
        source = how_to_collect(p.dataset)
        settings = p.settings(args.method)
        line = "".join(f" {settings[name]!s:>{widths[name]}s}" for name in columns)
        dims = f"{p.obs_dim:3d}/{p.act_dim:<2d}"
        print(f"{p.name:30s}{line} {dims} {p.episode_limit:5d}  {source}")
        if args.tasks:
            for task in p.tasks:
                print(f"    {task}")
    needs = f" --{columns[0].replace('_', '-')}" if columns else " nothing more"
    print(f"Any other environment needs{needs}. Names: FAMILY-singletask-taskK-v0, K = 1 to 5.")
    return 0


def _train(args: argparse.Namespace) -> int:
    from .learn.algorithms import find_method, method_config

    method = find_method(args.method_trained)
    run_flags, agent_flags = given(args, TrainConfig), given(args, method.Config)
    if args.resume and args.go_on:
        raise BadInput(
            "--resume and --go-on were both given, but must not be: --resume takes what is not on the "
            "command line from the run, --go-on from the defaults. Leave one of them out"
        )
    if args.resume and "out" in run_flags:
        # what is not on the command line stays as the run has it
        from .learn.run_folder import RunFolder

        saved_agent, saved_run, _ = RunFolder(run_flags["out"], ()).read_config()
        config = TrainConfig.from_dict(saved_run.to_dict() | run_flags)
        if saved_agent.method != method.Config.method:
            raise BadInput(
                f"--method is {method.Config.method!r}, but {run_flags['out']} was trained by "
                f"{saved_agent.method!r}. Leave --method out, or choose another --out"
            )
        agent = method.Config.from_dict(saved_agent.to_dict() | agent_flags)
    else:
        if dataset_name(run_flags.get("env", "")) == run_flags.get("env"):
            run_flags.setdefault("eval_every", 0)  # nothing here simulates it
        config = make(TrainConfig, run_flags)
        agent = method_config(args.method_trained, config.env, agent_flags)
    with _extra("train"):
        from .learn.train import train
    with _nothing_rendered():
        resume = None if args.go_on else args.resume
        result = train(
            agent, config, resume=resume, command=args.command_line, progress=args.progress
        )
    print(result)
    return 0


def _sweep(args: argparse.Namespace) -> int:
    with _extra("train"):
        from .sweep.command import run_sweep
    with _nothing_rendered():
        return run_sweep(args, args.rest)


def _methods(args: argparse.Namespace) -> int:
    with _extra("train"):
        from .learn.algorithms import METHODS, find_method
    print(
        "Methods of `sorl-fast train --method NAME`, with their flags (--help shows what each does)."
    )
    for name in METHODS:
        method = find_method(name)
        print(f"\n{name:8s} {method.title}")
        flags = " ".join(flags_of(method.Config))
        wrapped = textwrap.fill(flags, 100, break_on_hyphens=False)
        print(textwrap.indent(wrapped, " " * 9))
    return 0


def _check_flags(argv: Sequence[str], method: str) -> None:
    """Raise BadInput for a flag that other methods have, and this one has not."""
    with _extra("train"):
        from .learn.algorithms import METHODS, find_method

    own = flags_of(find_method(method).Config)
    others = {name: flags_of(find_method(name).Config) for name in METHODS if name != method}
    for word in argv:
        name = word.partition("=")[0]
        name = "--" + name.removeprefix("--no-") if name.startswith("--no-") else name
        owners = [other for other, theirs in others.items() if name in theirs]
        if owners and name not in (*own, *flags_of(TrainConfig)):
            raise BadInput(
                f"{name} is a flag of {', '.join(owners)}; {method} has {', '.join(own)}. Leave it out, "
                "or choose another --method"
            )


def _eval(args: argparse.Namespace) -> int:
    config = make(EvalConfig, given(args, EvalConfig))
    policy, folder = policy_path(args.run)
    with _extra("train"):
        from .act.policy_file import load
        from .learn.checkpoint import checkpoint_folders
        from .report import terminal_table
        from .simulate.episodes import evaluation_path, keep_evaluation, record_path
        from .simulate.evaluate import evaluate

    saved = [] if folder is None else checkpoint_folders(folder / "checkpoints")
    if folder is not None:
        env = args.env if args.env is not None and args.env != load(policy).env else None
        kept: Path | None = evaluation_path(folder, config.precision, env)
    else:
        kept = Path(args.json) if args.json else None
    record = None if kept is None else record_path(kept)
    kept_in = "" if record is None else f"finished episodes are kept in {record}"
    shown = show_progress(" episodes", shown=args.progress)
    with shown as bar, stoppable(bar, kept_in) as progress:
        result = evaluate(
            policy, config, env=args.env, progress=progress, record=record, fresh=args.fresh
        )
    result["command"] = args.command_line
    if saved:
        result = {"step": int(saved[-1].name)} | result
    if kept is not None:
        result, aside = keep_evaluation(kept, result, args.fresh)
        if aside is not None:
            print(
                f"{kept} held an evaluation of another policy, seed, backend or version, which is now "
                f"{aside}",
                file=sys.stderr,
            )
    if args.json and folder is not None:
        write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())
    print(terminal_table(result))
    return 0


def _report(args: argparse.Namespace) -> int:
    with _extra("train"):
        from .report import is_study, write_report, write_study
    out = None if args.out is None else Path(args.out)
    runs = [Path(run) for run in args.runs]
    studies = [run for run in runs if is_study(run)]
    if studies and len(runs) > 1:
        raise BadInput(
            f"{studies[0]} is a sweep's folder, but was given with others. Give it alone"
        )
    if not studies and (args.versus or args.backends):
        raise BadInput(
            f"--versus and --backends are for a sweep's folder, but {runs[0]} is none. Leave them out"
        )
    with show_progress(" cells timed", shown=args.progress) as progress:
        how: dict[str, Any] = {"seconds": args.seconds, "again": args.again, "progress": progress}
        how["say"] = print
        if studies:
            path = write_study(runs[0], out, versus=args.versus, backends=args.backends, **how)
        else:
            path = write_report(runs, out, **how)
    print(path)
    return 0


def _recommend(args: argparse.Namespace) -> int:
    from .recommend import recommend, text

    with show_progress(" options", shown=args.progress) as progress:
        result = recommend(args.runs, args.budget_us, evaluation=args.evaluation, progress=progress)
    print(text(result))
    return 0 if result.choice is not None else 1


def _inspect(args: argparse.Namespace) -> int:
    from .act.policy_file import describe, load

    path, _ = policy_path(args.file)
    print(json.dumps(describe(load(path)), indent=1))
    return 0


def _export(args: argparse.Namespace) -> int:
    with _extra("export"):
        from .export.command import export

        way = (args.steps, args.candidates, args.rule, args.noise, args.precision)
        print(export(policy_path(args.run)[0], args.out, *way))
    return 0


def _diagnose(args: argparse.Namespace) -> int:
    with _extra("train"), _nothing_rendered():
        from .diagnose.command import run_diagnose

        return run_diagnose(args)


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import examine, text

    def progress(doing: str) -> None:
        if args.progress and at_terminal():
            print(f"\r\x1b[K{doing[:100]}", end="", file=sys.stderr, flush=True)

    report = examine(quick=args.quick, progress=progress)
    progress("")
    if args.json:
        write_bytes(args.json, (json.dumps(report.to_dict(), indent=1) + "\n").encode())
    print(text(report))
    return 0 if report.agrees else 1


def _method_named(argv: Sequence[str]) -> str | None:
    """Return the method that a command line trains, or None if it trains nothing."""
    if argv[:1] != ["train"]:
        return None
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--method")
    early.add_argument("--out", default="", type=path_argument)
    early.add_argument("--resume", action="store_true")
    args = early.parse_known_args(argv[1:])[0]
    if args.method is None and args.resume and args.out:
        with _extra("train"):
            from .learn.run_folder import RunFolder
        return RunFolder(args.out, ()).read_config()[0].method
    return args.method or DEFAULT_METHOD


def make_parser(method: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `sorl-fast`; `train` has the flags of the method, which needs torch."""
    parser = argparse.ArgumentParser(
        prog="sorl-fast",
        description="Train any-step shortcut policies for offline RL (SORL, arXiv 2505.22866), "
        "evaluate them and look at the results.",
    )
    parser.add_argument("--version", action="version", version=f"sorl-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    sub = commands.add_parser("envs", help="list the environments that have presets")
    sub.add_argument("--tasks", action="store_true", help="also list every single-task name")
    sub.add_argument(
        "--method", default=DEFAULT_METHOD, help=f"whose settings (default: {DEFAULT_METHOD})"
    )
    sub.set_defaults(run_command=_envs)

    sub = commands.add_parser(
        "methods", help="list the methods that can be trained, and their flags"
    )
    sub.set_defaults(run_command=_methods)

    sub = commands.add_parser("collect", help="make an OGBench data set with ogbench's oracles")
    add_flags(sub, CollectConfig, "collection")
    _add_progress(sub)
    sub.set_defaults(run_command=_collect)

    sub = commands.add_parser(
        "expert",
        help="train a policy that moves a body as it is told, for `collect`",
        description="Train an expert by SAC (pip install 'sorl-fast[expert]') in OGBench's online "
        "environment, and write it as a policy file. The same command goes on after a stop, from "
        "FILE.checkpoint.",
    )
    add_flags(sub, ExpertConfig, "expert")
    _add_progress(sub)
    sub.set_defaults(run_command=_expert)

    sub = commands.add_parser(
        "import",
        help="transitions of Minari, LeRobotDataset v3, robomimic or D4RL into an .npz of your own",
    )
    sub.add_argument(
        "source",
        metavar="SOURCE",
        type=path_argument,
        help="a file, a folder, or the name of a Minari data set",
    )
    add_flags(sub, ImportConfig, "import")
    sub.set_defaults(run_command=_import)

    # no abbreviations: --meth would be read after the method has been chosen
    sub = commands.add_parser("train", help="train a policy", allow_abbrev=False)
    add_flags(sub, TrainConfig, "run")
    sub.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --out"
    )
    sub.add_argument(
        "--go-on",
        action="store_true",
        help="start, or go on from the newest checkpoint if there is one in --out: the same command again "
        "and again; all settings are this command's, and one that the run began with otherwise is refused",
    )
    sub.add_argument(
        "--method",
        help=f"what is learned, and how (default: {DEFAULT_METHOD}; with --resume the run's)",
    )
    sub.set_defaults(method_trained=method)
    _add_progress(sub)
    if method is not None:
        with _extra("train"):
            from .learn.algorithms import find_method
        title = f"{method} (defaults are the preset's where --env has one)"
        add_flags(sub, find_method(method).Config, title)
    sub.set_defaults(run_command=_train)

    # what is not here are flags of the methods, which are known only with --methods read
    sub = commands.add_parser(
        "sweep",
        help="train and evaluate many runs: methods x environments x seeds, on all cores or a cluster",
        allow_abbrev=False,
    )
    add_arguments(sub)
    _add_progress(sub)
    sub.set_defaults(run_command=_sweep)

    sub = commands.add_parser("eval", help="success of a policy over steps and candidates")
    sub.add_argument(
        "run", metavar="RUN", type=path_argument, help="a run's folder or a policy file"
    )
    sub.add_argument("--env", help="another environment than the one that the policy names")
    sub.add_argument(
        "--json", metavar="FILE", type=path_argument, help="also write the result here"
    )
    sub.add_argument(
        "--fresh",
        action="store_true",
        help="run finished episodes again too; otherwise an evaluation that was stopped goes on, and "
        "other cells are added to it",
    )
    _add_progress(sub)
    add_flags(sub, EvalConfig, "evaluation")
    sub.set_defaults(run_command=_eval)

    sub = commands.add_parser(
        "report",
        help="one page of pictures and tables about runs",
        description="Write report.html about runs of any methods: for each environment one picture of "
        "actions a second against success, learning curves, losses, tables; and print the Pareto front of "
        "speed and success over all of them. Each cell's speed is measured here, once (speeds.json).",
    )
    sub.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=path_argument,
        help="a run's folder, or alone a sweep's: then study.html, of aggregates over tasks and seeds",
    )
    sub.add_argument(
        "--versus",
        metavar="METHOD",
        default="",
        help="of a sweep: the method that the others' probability of improvement is over",
    )
    sub.add_argument(
        "--backends",
        metavar="B",
        nargs="+",
        default=(),
        help="of a sweep: backends to time the policies on (default: the fastest installed)",
    )
    sub.add_argument(
        "--out",
        metavar="DIR",
        type=path_argument,
        help="where to write (default: the first run's folder)",
    )
    sub.add_argument(
        "--seconds",
        type=float,
        default=0.2,
        help="time for each cell whose speed is measured, at least 200 calls (default: 0.2)",
    )
    sub.add_argument(
        "--again",
        action="store_true",
        help="measure also the speeds that speeds.json beside the report holds",
    )
    _add_progress(sub)
    sub.set_defaults(run_command=_report)

    _add_progress(add_film(commands, policy_path))

    sub = commands.add_parser(
        "recommend",
        help="the method, steps, candidates, precision and threads for a time budget",
        description="Time every evaluated cell of the runs on this machine, name the most successful one "
        "whose p99 is within the budget, and print the Pareto front of p99 and success. Several runs "
        "may be of several methods, evaluated in one environment. Exits with 1 where nothing fits.",
    )
    sub.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=path_argument,
        help="a run's folder that has been evaluated",
    )
    sub.add_argument(
        "--budget-us", type=float, required=True, help="microseconds for an action, at p99"
    )
    sub.add_argument(
        "--evaluation",
        metavar="FILE",
        type=path_argument,
        help="another evaluation than RUN's own",
    )
    _add_progress(sub)
    sub.set_defaults(run_command=_recommend)

    sub = commands.add_parser(
        "export", help="a policy's whole sampler as one graph, for ONNX runtimes"
    )
    add_export_arguments(sub)
    sub.set_defaults(run_command=_export)

    sub = commands.add_parser("diagnose", help="why a run's policy does what it does")
    add_diagnose_arguments(sub)
    sub.set_defaults(run_command=_diagnose)

    sub = commands.add_parser(
        "doctor", help="what is on this machine, and whether every backend computes the same"
    )
    sub.add_argument(
        "--json", metavar="FILE", type=path_argument, help="also write what was found here"
    )
    _add_progress(sub)
    sub.add_argument("--quick", action="store_true", help="fewer shapes, fewer sizes")
    sub.set_defaults(run_command=_doctor)

    sub = commands.add_parser("inspect", help="print what a policy file holds")
    sub.add_argument(
        "file", metavar="FILE", type=path_argument, help="a policy file, or a run's folder"
    )
    sub.set_defaults(run_command=_inspect)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the console script `sorl-fast`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    command = argv[0] if argv else ""
    try:
        method = _method_named(argv)
        if method is not None:
            _check_flags(argv, method)
        parser = make_parser(method)
        if command == "sweep":
            args, rest = read(argv, parser)
        else:
            args, rest = parser.parse_args(argv), []
        args.rest = rest
        if getattr(args, "progress", False) and at_terminal():
            say(f"sorl-fast {command}: starting")  # it may take seconds
        args.command_line = shlex.join(["sorl-fast", *argv])
        return int(args.run_command(args))
    except (BadInput, Diverged, Stopped) as err:
        print(f"sorl-fast {command}: {err}", file=sys.stderr)
        return err.exit_code
    except PermissionError as err:  # of a folder above, which may not even be looked into
        print(
            f"sorl-fast {command}: {err.filename} is not yours to read: choose another path, or ask "
            "its owner",
            file=sys.stderr,
        )
        return BadInput.exit_code
    except KeyboardInterrupt:
        print(f"sorl-fast {command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
