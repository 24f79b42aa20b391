"""The tables and the page: report.html, self-contained, with the figures beside it as PNGs.

N candidates, M Euler steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..atomic import write_bytes
from ..envs import find_preset
from ..envs.family import Preset
from ..errors import BadInput
from ..film.strip import read_strip
from ..learn.algorithms import METHODS, find_method
from ..version import __version__
from .diagnosis import diagnoses
from .figures import PICTURES
from .pareto import front_lines, front_of, front_text, points_of
from .plotting import data_uri, png
from .runs import (
    Cell,
    Run,
    Setting,
    by_environment,
    episodes_of,
    group_settings,
    load_run,
    other_rules,
    short_names,
)
from .speeds import with_speeds
from .table import columns_of, counted_span, counts_differ, rate

_TIMING = {
    "post": "on the state after each action (success_timing=post, as in the paper)",
    "pre": "on the state before each action (success_timing=pre; the paper judged the one after)",
}
_ONE_SEED = (
    "Intervals are Wilson's 95% intervals over episodes: one training seed, so they say nothing about "
    "how much another seed would differ."
)
_SEVERAL_SEEDS = (
    "Over several seeds, success is the mean over seeds and its interval the wider of two: the 95% t "
    "interval over seeds, and Wilson's 95% interval over all their episodes. With one seed it is "
    "Wilson's."
)


def _notes(settings: Sequence[Setting]) -> list[str]:
    """What a reader must know before believing a number."""
    notes = []
    names = _names(settings)
    for run in (run for setting in settings for run in setting.runs):
        name = names[run.folder]
        if run.evaluation is None:
            notes.append(
                f"{name} has not been evaluated: no success is shown for it. Run "
                f"`sorl-fast eval {run.folder}`."
            )
        elif not run.complete:
            notes.append(
                f"{name} has no evaluation.json: the last periodic evaluation, after "
                f"{run.evaluation['step']:,} updates, stands in. Run `sorl-fast eval {run.folder}` "
                "for the full grid."
            )
        elif run.outdated:
            step = run.evaluation.get("step")
            after = f" after {step:,} updates" if step else ""
            notes.append(
                f"{name} was evaluated{after} and trained on since: run `sorl-fast eval {run.folder}` "
                "again."
            )
        steps, every = run.train["steps"], run.train.get("log_every", 0)
        if run.log and every and run.log[-1]["step"] + every < steps:
            notes.append(
                f"{name} logged {run.log[-1]['step']:,} of its {steps:,} updates: it was stopped, "
                "or is still training."
            )
        if not run.log:
            notes.append(
                f"{name} has no log lines: no losses are shown for it. A `--log-every` above the number of "
                "updates writes none."
            )
    for setting in settings:
        counts = {cell.seeds for cell in setting.cells}
        if len(counts) > 1:
            notes.append(f"{setting.label}: not every seed has every cell; the counts are stated.")
    if len({setting.env for setting in settings}) > 1:
        notes.append("The settings are in different environments: their success is not comparable.")
    if len({run.timing for s in settings for run in s.runs if run.timing}) > 1:
        notes.append(
            "The settings judge success at different times (post and pre): not comparable as they are."
        )
    return notes + few_episodes(cell for s in settings for cell in s.cells)


def _names(settings: Sequence[Setting]) -> dict[Path, str]:
    """Return what each run's folder is called in a sentence."""
    return short_names([run.folder for setting in settings for run in setting.runs])


def few_episodes(cells: Iterable[Cell]) -> list[str]:
    """Return a note where some cell's percentage says little, else none."""
    if all(cell.episodes >= 50 for cell in cells):
        return []
    return ["Cells have fewer than 50 episodes: read the intervals, not the percentages."]


def _grid(setting: Setting) -> dict[str, Any]:
    columns = columns_of(cell.way for cell in setting.cells)
    lines = [
        (M, [setting.cell(M, N, rule) for N, rule in columns])
        for M in dict.fromkeys(cell.steps for cell in setting.cells)
    ]
    return {
        "label": setting.label,
        "seeds": len(setting.runs),
        "episodes": episodes_of(setting.cells) if setting.cells else "0",
        "columns": list(columns.values()),
        "lines": lines,
        "differ": counts_differ(cell.episodes for cell in setting.cells),
        "ruled": bool(other_rules(setting.cells)),
        "front": [point.cell for point in front_of(points_of([setting]))],
        "cells": setting.cells,
    }


def _paper(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Our cells of argmax at the smallest N beside the paper's figures, where its table has the family."""
    lines = []
    for setting in settings:
        preset = find_preset(setting.env)
        plain = [cell for cell in setting.cells if cell.is_plain]
        if preset is None or not plain:
            continue
        smallest = min(cell.candidates for cell in plain)
        cells = [cell for cell in plain if cell.candidates == smallest]
        lines.append(
            {
                "label": setting.label,
                "preset": preset,
                "published": _published(preset, setting.method),
                "cells": cells,
                "candidates": smallest,
                "seeds": len(setting.runs),
                "episodes": episodes_of(cells),
                "data": _data_words(setting.runs[0]),
            }
        )
    return lines


def _published(preset: Preset, method: str) -> str:
    """Return a figure of the paper's table in words; "-" where it has none."""
    result = preset.paper.get(method)
    return "-" if result is None else result.words


def _published_table(presets: Sequence[Preset]) -> list[list[str]]:
    """Return the paper's figures: a head, then a line a method, a column a family."""
    families = list({preset.name: preset for preset in presets}.values())
    lines = [["method", *(preset.name for preset in families)]]
    for method in METHODS:
        figures = [_published(preset, method) for preset in families]
        if set(figures) - {"-"}:
            lines.append([find_method(method).title.partition(":")[0], *figures])
    return lines


def _data_words(run: Run) -> str:
    data = run.config.get("data") or {}
    words = []
    for key, text in (("transitions", "transitions"), ("episodes", "episodes")):
        if isinstance(data.get(key), int):
            words.append(f"{data[key]:,} {text}")
    return ", ".join(words) or "not recorded"


def _runs(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    lines = []
    for setting in settings:
        for run in setting.runs:
            logged = [line for line in run.log if "updates_per_second" in line]
            last = logged[-1] if logged else {}
            rates = sorted(line["updates_per_second"] for line in logged)
            evaluation = run.evaluation or {}
            if run.complete:
                source = "evaluation.json"
            else:
                source = "eval.jsonl, last line" if run.evaluation else "not evaluated"
            if evaluation:
                precision = evaluation.get("precision", "fp32")
                source += (
                    f" ({evaluation.get('backend')} {precision}, seed {evaluation.get('seed')})"
                )
            lines.append(
                {
                    "folder": str(run.folder),
                    "label": setting.label,
                    "seed": run.train["seed"],
                    "updates": f"{last['step']:,}" if last else "not logged",
                    "minutes": f"{last['seconds'] / 60:,.1f}"
                    if "seconds" in last
                    else "not logged",
                    "rate": f"{rates[len(rates) // 2]:,.1f}" if rates else "not logged",
                    "device": run.train.get("device", "not recorded"),
                    "evaluation": source,
                    "data": _data_words(run),
                    "versions": dict(run.config.get("versions") or {}),
                    "eval_versions": dict(evaluation.get("versions") or {}),
                    "commands": commands_of(run),
                }
            )
    return lines


def _films(settings: Sequence[Setting]) -> tuple[list[dict[str, str]], list[str]]:
    """Return the runs' strips of films, and lines on those that there are not."""
    shown, lines, without = [], [], []
    named = _names(settings)
    for run in (run for setting in settings for run in setting.runs):
        found = read_strip(run.folder, run.policy)
        if found is None:
            without.append(run.folder)
        elif isinstance(found, str):
            lines.append(f"{named[run.folder]} {found}")
        else:
            name, caption = named[run.folder], found[1]
            shown.append({"name": name, "caption": caption, "uri": data_uri(found[0])})
    if without:
        names = ", ".join(named[folder] for folder in without)
        lines.append(
            f"There is no film of {names}. `sorl-fast film {without[0]}` makes one, of episodes that "
            "succeed and that fail."
        )
    return shown, lines


def commands_of(run: Run) -> list[str]:
    """Return the command lines of the training, its resumptions too, and of the evaluation, each once.

    Without --no-progress, which changes what a terminal shows alone.
    """
    found: list[Any] = []
    for values in (run.config, run.evaluation or {}):
        found += values.get("commands") or [values.get("command")]
    texts = (str(text).replace(" --no-progress", "") for text in found if text)
    return list(dict.fromkeys(texts))


def _config_table(settings: Sequence[Setting]) -> list[tuple[str, list[str], bool]]:
    """Return (field, its value in each setting, whether settings differ) of agent and training."""
    columns = []
    for setting in settings:
        train = {k: v for k, v in setting.runs[0].train.items() if k not in ("seed", "out")}
        seeds = ", ".join(str(run.train["seed"]) for run in setting.runs)
        columns.append(setting.runs[0].agent | train | {"seeds": seeds})
    names = list(dict.fromkeys(name for column in columns for name in column))
    table = []
    for name in names:
        values = [_value(column.get(name)) for column in columns]
        table.append((name, values, len(set(values)) > 1))
    return table


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _gpu(settings: Sequence[Setting]) -> str:
    used = {str(run.train.get("device", "cpu")) for s in settings for run in s.runs}
    trained = sorted(device for device in used if device != "cpu")
    if trained:
        return f"Training used {', '.join(trained)}; acting was not yet measured on a GPU."
    return "Not yet measured on a GPU."


def write_report(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    seconds: float = 0.2,
    again: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write report.html and figures/*.png about the runs, and speeds.json if anything was timed.

    Parameters
    ----------
    runs
        Run folders, at least one. Those that differ in their seed alone are aggregated; others are
        compared side by side, those of one environment in one picture of speed and success.
    out
        The folder to write into; by default the first run's.
    seconds
        Time for each cell whose speed is measured; finite and at least 0. At least 200 calls are made.
    again
        Measure also what `out` has the speed of; see `speeds.with_speeds`.
    progress
        Called with (cells timed, cells to time).
    say
        Called with the Pareto front of each environment, as a table of text.

    Returns
    -------
    Path
        report.html: one file, pictures included, without any reference to the network.

    Raises
    ------
    BadInput
        A folder or file is missing, empty or damaged, a seed is there twice, `seconds` is out of its
        bounds, or `out` cannot be written; the message names it and the remedy.
    """
    if not runs:
        raise BadInput("no run to report on. Give at least one: `sorl-fast report RUN`")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise BadInput(f"seconds is {seconds!r}, but must be finite and at least 0. Set --seconds")
    settings = group_settings([load_run(Path(run)) for run in runs])
    out = Path(runs[0]) if out is None else Path(out)
    settings, clock = with_speeds(settings, out / "speeds.json", seconds, again, progress)
    why = diagnoses([run for setting in settings for run in setting.runs])
    written = set()
    pictures = []
    for name, title, data, caption in list(_pictures(settings)):  # all drawn before any is written
        path = out / "figures" / f"{name}.png"
        write_bytes(path, data)
        written.add(path)
        pictures.append({"title": title, "caption": caption, "uri": data_uri(data)})
    for picture in PICTURES:  # of an earlier report: they would show other results
        for path in (out / "figures").glob(f"{picture.name}*.png"):
            if path not in written:
                path.unlink()
    path = out / "report.html"
    write_bytes(path, _render(settings, pictures, clock, why).encode())
    for env, some in by_environment(settings).items():
        if say is not None and points_of(some):
            say(front_text(env, some, clock))
    return path


def _pictures(settings: Sequence[Setting]) -> Iterator[tuple[str, str, bytes, str]]:
    """Yield the name, title, PNG and caption of each picture that has something to show."""
    for picture in PICTURES:
        parts = by_environment(settings) if picture.by_environment else {"": settings}
        for env, some in parts.items():
            figure = picture.draw(some)
            if figure is None:
                continue
            apart = len(parts) > 1
            name = f"{picture.name}-{_file_name(env)}" if apart else picture.name
            title = f"{picture.title}: {env}" if apart else picture.title
            yield name, title, png(figure), picture.caption(some)


def _file_name(env: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", env)


def _span(cell: Cell, differ: bool = False) -> str:
    return counted_span(cell.percent, cell.episodes, differ)


def rendered(name: str, values: Mapping[str, Any]) -> str:
    """Return a page: one of this room's templates, filled."""
    from jinja2 import Environment, StrictUndefined

    room = files("sorl_fast.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"span": _span, "rate": rate}
    template = environment.from_string(room.joinpath(name).read_text("utf-8"))
    style = room.joinpath("style.css").read_text("utf-8")
    return template.render(version=__version__, style=style, **values)


def _render(
    settings: Sequence[Setting],
    pictures: Sequence[Mapping[str, str]],
    clock: str,
    why: Sequence[Mapping[str, Any]],
) -> str:
    several = any(len(setting.runs) > 1 for setting in settings)
    timings = sorted({run.timing for s in settings for run in s.runs if run.timing})
    films, no_films = _films(settings)
    paper = _paper(settings)
    values: dict[str, Any] = {
        "films": films,
        "no_films": no_films,
        "envs": sorted({setting.env for setting in settings}),
        "settings": settings,
        "several_settings": len(settings) > 1,
        "ruled": bool(other_rules(cell for s in settings for cell in s.cells)),
        "scheduled": any(isinstance(cell.steps, str) for s in settings for cell in s.cells),
        "notes": _notes(settings),
        "timings": [_TIMING.get(timing, f"as success_timing={timing} says") for timing in timings],
        "intervals": _SEVERAL_SEEDS if several else _ONE_SEED,
        "grids": [_grid(setting) for setting in settings if setting.cells],
        "pictures": pictures,
        "clock": clock,
        "fronts": [
            (env, front_lines(some))
            for env, some in by_environment(settings).items()
            if points_of(some)
        ],
        "paper": paper,
        "published": _published_table([line["preset"] for line in paper]),
        "diagnoses": why,
        "runs": _runs(settings),
        "config": _config_table(settings),
        "gpu": _gpu(settings),
    }
    return rendered("page.html.jinja", values)
