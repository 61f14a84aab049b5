import math

import pytest
from scipy import stats

from unlearnx.experiments.comparison import applied, interval, medians, pareto_front, summarise, winner


def test_medians_are_of_numbers_that_all_runs_have():
    runs = [{"a": 3, "b": 0.5, "c": None, "d": "x", "e": 1}, {"a": 1, "b": 0.25, "c": 2.0, "d": "y"}]
    runs.append({**runs[1], "a": 9})
    assert medians(runs) == {"a": 3, "b": 0.25}
    assert medians(runs, ("b", "e", "none")) == {"b": 0.25}


def test_interval_is_that_of_student():
    values = [0.2, 0.35, 0.3, 0.1]
    low, high = stats.t.interval(0.95, 3, loc=stats.tmean(values), scale=stats.sem(values))
    found = interval(values)
    assert (found["low"], found["mean"], found["high"]) == pytest.approx((low, sum(values) / 4, high))


def test_interval_of_one_value_is_the_value():
    assert interval([0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_there_is_no_interval_where_a_value_is_missing(missing):
    assert interval([0.5, missing]) == {"mean": None, "low": None, "high": None}


def measured(gap, seconds, *, is_applied=True):
    return {"measures": {"gap": gap, "seconds": seconds}, "applied": is_applied}


def test_winner_and_front_are_of_methods_that_were_always_applied():
    costs = {"best": (0.1, 9.0), "slower": (0.1, 10.0), "fast": (0.3, 1.0), "beaten": (0.4, 1.5), "twin": (0.3, 1.0)}
    methods = {name: measured(*cost) for name, cost in costs.items()}
    runs = [
        {"original": measured(1, 1), "retrained": measured(0, 1), "methods": {**methods, "refused": measured(0, 0)}},
        {
            "original": measured(1, 1),
            "retrained": measured(0, 1),
            "methods": {**methods, "refused": measured(0, 0, is_applied=False)},
        },
    ]
    summary, names = summarise(runs), applied(runs)
    assert summary["refused"]["gap"]["mean"] == 0
    assert names == list(costs)
    assert winner(summary, names) == "best"
    assert pareto_front(summary, names) == ["best", "fast", "twin"]
    assert winner(summary, []) is None
    assert pareto_front(summary, []) == []
