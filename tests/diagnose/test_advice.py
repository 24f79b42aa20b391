"""What the sentences say where figures are clear."""

import numpy as np
import pytest

from sorl_fast.diagnose.advice import advice


def said(part, **figures):
    return " ".join(advice(part, figures, "run"))


SPREAD = {"candidates": 32, "members": 2, "spread": 0.5, "disagreement": 0.1, "ratio": 0.2}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "what is wrong with it they share"),
        ({"ratio": 0.9, "disagreement": 0.45}, "do not let the highest Q choose"),
        ({"members": 1}, "no disagreement"),
        ({"ratio": None, "spread": 0.0}, "Act with N = 1"),
    ],
    ids=["agree", "disagree", "one", "flat"],
)
def test_spread(change, says):
    assert says in said("spread", **SPREAD | {"member_correlation": 0.9} | change)


@pytest.mark.parametrize(
    ("r", "same", "says"),
    [
        (-0.5, 0.95, "argmax takes less of component 1"),
        (0.5, 0.95, "argmax takes more of component 1"),
        (0.1, 0.55, "No component is preferred everywhere"),
        (0.5, 0.6, "No component is preferred everywhere"),
    ],
    ids=str,
)
def test_bias(r, same, says):
    figures = {"component": 1, "correlation": [0, r], "same_sign": [0.5, same], "shift": [0, 0.1]}
    text = said("bias", **figures, spread=[0.1, 0.1], observations=10, common=0.5)
    assert says in text
    assert ("--rules argmax medoid nearest" in text) == ("takes" in says)


@pytest.mark.parametrize(
    ("row", "says"),
    [([1, 1.1, 1.3], "From N = 8 on argmax picks outliers"), ([1, 1, 0.9], "is no outlier")],
    ids=["outlier", "near"],
)
def test_centre(row, says):
    figures = {"candidates": [1, 4, 8], "distances": {"argmax": row, "medoid:1/2": [1, 0.5, 0.4]}}
    figures["rank"] = {"argmax": 0.8, "medoid:1/2": 0.1}
    losses = {"at random": 0.05, "argmax": 0.07, "medoid:1/2": 0.03}
    text = said("centre", **figures, flow_matching=losses)
    assert says in text
    assert "medoid:1/2 0.40" in text
    assert "at random 0.05, argmax 0.07, medoid:1/2 0.03" in text
    assert ("fits the data least" in text) == ("outliers" in says)
    assert "Flow-matching" not in said("centre", **figures, flow_matching=None)


def returns(r, failed=0, tried=None):
    way = {"way": "M = 4, N = 1", "steps": 100, "correlation": r, "failed": failed}
    ends = {"q_at_failure": -33.0, "worth_at_failure": -100.0}
    return said("returns", window=50, ways=[way | ends], tried=tried)


def test_returns():
    assert "Q tells good states from bad ones" in returns(0.7)
    assert "hardly orders" in returns(0.1)
    assert "all returns are the same" in returns(None)
    assert "failures look good to the critic" in returns(0.7, failed=3)
    tried = {"candidates": 8, "correlation": 0.2, "error": 0.1, "states": 5, "tied": 3}
    gains = {"gain": 1.5, "gain_error": 0.5}
    assert "+0.20 +- 0.10 (5 states, 3 more" in returns(0.7, tried=tried | gains)
    assert "the return was the same" in returns(0.7, tried=tried | {"correlation": None})


def test_standstills():
    def way(failed, stood):
        return {"way": "best", "episodes": 9, "failed": failed, "stood": stood, "part": 0.5}

    assert "Failures of best are standstills" in said("standstills", window=50, ways=[way(4, 3)])
    assert "Failures move" in said("standstills", window=50, ways=[way(4, 1)])
    assert "Nothing failed" in said("standstills", window=50, ways=[way(0, 0)])


def test_errors():
    matching = [{"steps": 4, "t": 0.25, "error": 0.5, "off": 0.5}]
    bad = {"steps": 2, "t": 0.5, "error": 0.2, "off": 0.3}
    text = said("errors", finest=4, flow_matching=matching, self_consistency=[bad])
    assert "worst 0.5 at t = 1/4" in text
    assert "ends 0.3 from where its two halves would" in text
    assert "smaller last step" in text
    small = said("errors", finest=4, flow_matching=matching, self_consistency=[bad | {"t": 0.0}])
    assert "Later steps may mend that" in small
    assert "one grid" in said("errors", finest=4, flow_matching=matching, self_consistency=[])


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ((0.5, 0.1, 0.2), "raise --sc-coef"),
        ((0.1, 0.5, 0.2), "larger --m-disc"),
        ((0.1, 0.2, 0.5), "lower --q-coef"),
    ],
    ids=["self-consistency", "discretisation", "flow matching"],
)
def test_wasserstein(terms, says):
    sc, disc, fm = terms
    figures = {
        "steps": [1, 2],
        "to_data": [0.4, 0.3],
        "samples": 64,
        "floor": 0.1,
        "spread": 0.2,
        "data_spread": 0.3,
    }
    figures |= {"to_finest": [sc, 0.0], "discretisation": disc, "flow_to_data": fm}
    text = said("wasserstein", **figures)
    assert says in text
    told = "cannot be told from" if sc <= 0.1 else "fewer steps give other actions"
    assert f"W2 from M = 2: M = 1 {sc:.3g}; " in text
    assert told in text
    assert ("within the neighbours' own spread" in text) == (fm <= 0.3)
    alone = said("wasserstein", **figures | {"steps": [1], "to_data": [0.4], "to_finest": None})
    assert "one way to sample" in alone


def test_figures_may_be_arrays():
    assert "component 0" in said(
        "bias",
        component=0,
        correlation=np.array([0.9]),
        same_sign=np.array([1.0]),
        shift=np.array([0.1]),
        spread=np.array([0.1]),
        observations=3,
        common=1.0,
    )
