"""An evaluation as a table of text: what `sorl-fast eval` prints.

N candidates, M Euler steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..act.rules import ARGMAX
from ..simulate.episodes import Cell, cell_of, cell_order
from ..simulate.paired import sign_test
from .runs import episodes_text

Row = Mapping[str, Any]


def span(mean: float, low: float, high: float) -> str:
    """Return success and its interval, given in %."""
    return f"{mean:.0f}% [{low:.0f}, {high:.0f}]"


def counts_differ(counts: Iterable[int]) -> bool:
    """Whether the cells of a table have different numbers of episodes: each then says its own."""
    return len(set(counts)) > 1


def counted_span(percent: tuple[float, float, float], episodes: int, differ: bool) -> str:
    """Return `span`, with the number of episodes where cells `differ` in it."""
    return span(*percent) + f" n={episodes}" * differ


def rate(number: float) -> str:
    """Return a number of actions a second."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def terminal_table(evaluation: Mapping[str, Any]) -> str:
    """Return an evaluation as a small text table: a line an M, a column an N and a rule.

    Below it, where other rules than argmax were evaluated, the p-values of paired tests.

    Parameters
    ----------
    evaluation
        What `sorl_fast.simulate.evaluate.Evaluator.run` returns.

    Returns
    -------
    str
        Lines without a final line break. A cell is success, its 95% interval and actions a second, of a
        policy with chunks also calls a second.
    """
    rows = {cell_of(row): row for row in evaluation["rows"]}
    cells = sorted(rows, key=cell_order)
    columns = columns_of(cells)
    table = [["", *columns.values()]]
    differ = counts_differ(row["episodes"] for row in rows.values())
    for M in dict.fromkeys(cell.steps for cell in cells):
        found = [rows.get(Cell(M, *column)) for column in columns]
        table.append([f"M = {M}", *("-" if row is None else _text(row, differ) for row in found)])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    episodes = episodes_text([row["episodes"] for row in rows.values()])
    chunked = any("calls_per_second" in row for row in rows.values())
    rates = "actions (calls)" if chunked else "actions"
    lines = [
        f"{evaluation['env']}: success [95% interval] and {rates} per second of the policy alone",
        f"{episodes} episodes a cell, success_timing={evaluation['success_timing']}",
    ]
    for line in table:
        texts = [text.rjust(width) for text, width in zip(line, widths, strict=True)]
        lines.append("   ".join(texts).rstrip())
    return "\n".join([*lines, *paired_tests(evaluation["rows"])])


def columns_of(ways: Iterable[Cell]) -> dict[tuple[int, str], str]:
    """Return the columns of a table of ways to act, (N, rule), and what stands above each.

    By N, then the rule, argmax first; rules are named where there is another than argmax.
    """
    found = {(way.candidates, way.rule) for way in ways}
    columns = sorted(found, key=lambda c: (c[0], c[1] != str(ARGMAX), c[1]))
    several = any(rule != str(ARGMAX) for _, rule in columns)
    return {(N, rule): f"N = {N}" + f" {rule}" * (several and N > 1) for N, rule in columns}


def _text(row: Row, differ: bool) -> str:
    values = 100 * row["success"], 100 * row["ci_low"], 100 * row["ci_high"]
    percent = counted_span(values, row["episodes"], differ)
    calls = f" ({rate(row['calls_per_second'])})" if "calls_per_second" in row else ""
    return f"{percent} {rate(row['actions_per_second'])}{calls}/s"


def paired_tests(rows: Sequence[Row]) -> list[str]:
    """Return a line a cell of another rule than argmax: p-values against argmax and one candidate.

    Of McNemar's exact test, episode by episode, on as many episodes as both cells have; how many is said
    where that is not all of either.
    """
    found = {cell_of(row): row for row in rows}
    lines = []
    for cell in sorted(found, key=cell_order):
        if cell.rule == str(ARGMAX):
            continue
        against = {
            "argmax": Cell(cell.steps, cell.candidates),
            "N = 1": Cell(cell.steps, 1),
        }
        texts = []
        for name, other in against.items():
            if other in found and "outcomes" in found[other] and "outcomes" in found[cell]:
                a, b = ([digit == "1" for digit in found[c]["outcomes"]] for c in (cell, other))
                n = min(len(a), len(b))
                p = sign_test(a[:n], b[:n])
                gain = 100 * (sum(a[:n]) - sum(b[:n])) / n
                over = f" over the {n} common episodes" * (len(a) != len(b))
                texts.append(f"{gain:+.0f} against {name}{over} (p = {p:.2g})")
        if texts:
            way = f"M = {cell.steps}, N = {cell.candidates}, {cell.rule}"
            lines.append(f"{way}: {', '.join(texts)}")
    return ["Paired, in points of success:", *lines] if lines else []
