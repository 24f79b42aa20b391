"""What the figures of a part say, in sentences, and what to do about it.

The bounds below are where a sentence turns. They come from one study of cube-single (docs/diagnose.md says
which of its findings), not from theory: the figures are what counts.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

Figures = dict[str, Any]

AGREE = 0.5  # disagreement by spread below which the critics share their order
ALONG, SAME = (
    0.3,
    0.75,
)  # mean |correlation| and part of the same sign from which an order is a bias
OUTLIER = 1.15  # distance of the chosen from the centre, by chance's
ORDERS = 0.3  # rank correlation from which Q orders
STANDS = 0.5  # part of the failures from which standstills are what fails


def advice(part: str, figures: Figures, run: str) -> list[str]:
    """Return what a part's figures say.

    Parameters
    ----------
    part
        Its name.
    figures
        As the functions of `parts` return them.
    run
        The run's folder, for the commands.
    """
    return _SENTENCES[part](figures, run)


def _rules(run: str) -> str:
    return f"`sorl-fast eval {run} --candidates 1 8 --rules argmax medoid nearest`"


def _spread(f: Figures, run: str) -> list[str]:
    head = f"Q's deviation over {f['candidates']} candidates is {f['spread']:.3g}"
    if f["members"] < 2:
        return [
            f"{head}; with one critic there is no disagreement to hold against it.",
            "To know whether to believe it, train with --ensemble 2 or more where the method has it.",
        ]
    if f["ratio"] is None:
        return [f"{head}: it orders nothing. Act with N = 1."]
    said = (
        f"{head}, the critics' disagreement about it {f['disagreement']:.3g} (ratio {f['ratio']:.2f}"
        + (
            f"; their correlation {f['member_correlation']:.2f})."
            if f["member_correlation"] is not None
            else ")."
        )
    )
    if f["ratio"] < AGREE:
        return [
            said,
            "The critics agree on the order of the candidates: what is wrong with it they share, and "
            "neither --q-agg min nor more critics would show it. Look at what follows.",
        ]
    return [
        said,
        "The order of the candidates is within the critics' own disagreement: do not let the highest Q "
        f"choose among many. Compare {_rules(run)}, and train the critic longer.",
    ]


def _bias(f: Figures, run: str) -> list[str]:
    a = f["component"]
    r, same = float(f["correlation"][a]), float(f["same_sign"][a])
    shift, spread = float(f["shift"][a]), float(f["spread"][a])
    said = (
        f"Q goes most with action component {a} (counted from 0): correlation {r:+.2f} over the "
        f"candidates, of that sign at {same:.0%} of {f['observations']} observations; the best by Q is "
        f"{shift:+.3g} from the candidates' mean there, at a spread of {spread:.3g}. Common direction: "
        f"{f['common']:.2f} of 1."
    )
    if abs(r) >= ALONG and same >= SAME:
        word = "less" if r < 0 else "more"
        return [
            said,
            f"That is a bias: wherever it is, argmax takes {word} of component {a}, step after step. "
            f"Choose near the centre instead, {_rules(run)}, or fewer candidates.",
        ]
    return [said, "No component is preferred everywhere: Q's order follows the observation."]


def _centre(f: Figures, run: str) -> list[str]:
    N = f["candidates"][-1]
    name = next(iter(f["distances"]))
    row = f["distances"][name]
    if row[-1] is None:
        return [f"All {N} candidates are the same action: N = 1 does what more would."]
    others = ", ".join(
        f"{rule} {far[-1]:.2f}" for rule, far in f["distances"].items() if rule != name
    )
    said = (
        f"The choice of {name} among {N} is {row[-1]:.2f} times as far from the candidates' centre as one "
        f"at random ({f['rank'][name]:.0%} of the others are nearer)"
        + (f"; {others}." if others else ".")
    )
    losses = f.get("flow_matching")
    if losses:
        told = ", ".join(f"{rule} {loss:.3g}" for rule, loss in losses.items())
        said += f" Flow-matching loss of the choice: {told}."
    if name != "argmax":
        return [said, "Without a critic only the rule `centre` chooses, and it stays near."]
    if row[-1] > OUTLIER:
        least = next(
            n
            for n, far in zip(f["candidates"], row, strict=True)
            if far is not None and far > OUTLIER
        )
        return [
            said,
            f"From N = {least} on argmax picks outliers"
            + (
                ", where the flow fits the data least"
                if losses and losses[name] > OUTLIER * losses["at random"]
                else ""
            )
            + f": take fewer candidates or another rule, {_rules(run)}.",
        ]
    return [said, "The best by Q is no outlier: more candidates do not lead away from the data."]


def _returns(f: Figures, run: str) -> list[str]:
    said = []
    for way in f["ways"]:
        r = way["correlation"]
        told = "nothing: all returns are the same" if r is None else f"{r:+.2f}"
        said.append(
            f"{way['way']}: rank correlation of Q with the return of the next {f['window']} steps {told} "
            f"({way['steps']} steps met)."
        )
    for way in f["ways"]:
        if way["failed"] and way["q_at_failure"] > way["worth_at_failure"]:
            said.append(
                f"{way['way']}: at the end of {way['failed']} failed episodes Q is "
                f"{way['q_at_failure']:.3g}, where going on so is worth {way['worth_at_failure']:.3g}: "
                "failures look good to the critic, so that it does not lead out of them."
            )
    tried = f["tried"]
    if tried is not None and tried["correlation"] is not None:
        error = "" if tried["error"] is None else f" +- {tried['error']:.2f}"
        gain = "" if tried["gain_error"] is None else f" +- {tried['gain_error']:.2g}"
        said.append(
            f"Among {tried['candidates']} candidates of one state, each taken and gone on from with one "
            f"candidate a step: {tried['correlation']:+.2f}{error} ({tried['states']} states, "
            f"{tried['tied']} more where all came to the same); Q's best gains "
            f"{tried['gain']:+.2g}{gain} of return over their mean."
        )
    elif tried is not None:
        said.append("Whichever candidate was taken, the return was the same, at every state tried.")
    known = [way["correlation"] for way in f["ways"] if way["correlation"] is not None]
    if known and min(known) < ORDERS:
        said.append(
            "Q hardly orders what was met by what came of it: train the critic longer or wider, and let "
            "N = 1 or a rule near the centre act until it does."
        )
    elif known:
        said.append(
            "Q tells good states from bad ones. Whether it tells one state's candidates apart is another "
            "matter" + ("." if tried is None else ": the line before (more states: --branches).")
        )
    return said


def _standstills(f: Figures, run: str) -> list[str]:
    said = [
        f"{way['way']}: {way['failed']} of {way['episodes']} episodes failed, {way['stood']} of these in a "
        f"standstill of the last {f['window']} steps; {way['part']:.0%} of all steps stand still."
        for way in f["ways"]
    ]
    failed = sum(way["failed"] for way in f["ways"])
    if not failed:
        return [*said, "Nothing failed: more --episodes would show what does."]
    worst = max(f["ways"], key=lambda way: way["stood"])
    if worst["failed"] and worst["stood"] >= STANDS * worst["failed"]:
        return [
            *said,
            f"Failures of {worst['way']} are standstills: it takes the same action again where nothing "
            f"changes. What varies gets out: N = 1, or {_rules(run)}; or other steps, whose noise ends "
            "elsewhere.",
        ]
    return [*said, "Failures move: they are no standstills, but ways that lead elsewhere."]


def _errors(f: Figures, run: str) -> list[str]:
    matching = f["flow_matching"]
    worst = max(matching, key=lambda e: e["error"])
    mean = sum(e["error"] for e in matching) / len(matching)
    said = [
        f"Flow matching at h = {_fraction(1 / f['finest'])}: mean {mean:.3g}, worst {worst['error']:.3g} "
        f"at t = {_fraction(worst['t'])} (it has the data's own variance in it, and is not 0 at best)."
    ]
    consistency = f["self_consistency"]
    if not consistency:
        return [*said, "There is one grid of steps: no self-consistency to speak of."]
    bad = max(consistency, key=lambda e: e["off"])
    M, t = bad["steps"], bad["t"]
    said.append(
        f"Self-consistency is worst at h = {_fraction(1 / M)}, t = {_fraction(t)}: mean square "
        f"{bad['error']:.3g}, so that such a step ends {bad['off']:.3g} from where its two halves would."
    )
    if t + 1 / M >= 1:
        said.append(
            "No later step mends what the last one misses: act with a smaller last step, such as "
            f"`sorl-fast eval {run} --steps 1/2,1/4,1/4`, or train longer or with a larger --sc-coef. "
            "Whether it matters is told by the distances between whole samples below."
        )
    else:
        said.append(
            "Later steps may mend that; whether they do is told by the distances between whole samples "
            "below."
        )
    return said


def _wasserstein(f: Figures, run: str) -> list[str]:
    to_data = ", ".join(
        f"M = {M} {far:.3g}" for M, far in zip(f["steps"], f["to_data"], strict=True)
    )
    said = [
        f"W2 from the data's neighbours: {to_data} ({f['samples']} actions each; two sets of the policy's "
        f"own are {f['floor']:.3g} apart, and the neighbours are of other observations). The policy's "
        f"spread by {f['spread']:.3g}, the neighbours' by {f['data_spread']:.3g}."
    ]
    if f["to_finest"] is None:
        return [
            *said,
            "The policy has one way to sample: retrain with less pull of Q to come nearer.",
        ]
    finest = f["steps"][-1]
    to_finest = ", ".join(
        f"M = {M} {far:.3g}"
        for M, far in zip(f["steps"], f["to_finest"], strict=True)
        if finest != M
    )
    if to_finest:
        least = next(
            M
            for M, far in zip(f["steps"], f["to_finest"], strict=True)
            if far <= f["floor"] or finest == M
        )
        told = f"from M = {least} on samples cannot be told from those of M = {finest}"
        told = "fewer steps give other actions" if least == finest else told
        said.append(f"W2 from M = {finest}: {to_finest}; {told}.")
    terms = {
        "self-consistency": max(f["to_finest"]),
        "discretisation": f["discretisation"],
        "flow matching": f["flow_to_data"],
    }
    told = ", ".join(f"{name} {far:.3g}" for name, far in terms.items())
    said.append(f"The bound's three terms: {told}.")
    if f["flow_to_data"] <= f["data_spread"]:
        said.append(
            "The last is within the neighbours' own spread: it says nothing against the policy."
        )
        del terms["flow matching"]
    largest = max(terms, key=lambda name: terms[name])
    remedy = {
        "self-consistency": "raise --sc-coef, train longer, or act with more steps",
        "discretisation": "train with a larger --m-disc",
        "flow matching": "train longer or wider; or, since Q pulls the policy from the data on purpose, "
        "lower --q-coef if it is to stay nearer",
    }
    if terms[largest] > f["floor"]:
        said.append(f"To come nearer to the data, {remedy[largest]}.")
    return said


def _fraction(t: float) -> str:
    return str(Fraction(t).limit_denominator(4096))


_SENTENCES: dict[str, Callable[[Figures, str], list[str]]] = {
    "spread": _spread,
    "bias": _bias,
    "centre": _centre,
    "returns": _returns,
    "standstills": _standstills,
    "errors": _errors,
    "wasserstein": _wasserstein,
}
