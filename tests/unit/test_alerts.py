"""Alerts as transitions: pending -> firing -> resolved, with hysteresis and a for-duration, judged over event time."""

from __future__ import annotations

import math
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.alerts import ACTIVE, SAMPLES, evaluate, level, withdraw
from pipeline.core.batch import step
from pipeline.core.rules import BOUNDS, parse
from tests.frames import SEMANTICS, S, batch, run

COLUMNS = ["phase", "severity", "since", "time", "value"]


def rules(version: int = 1, **rule):
    """A document of one rule on events of metric m."""
    return parse({"rules": [{"name": "high", "metric": "m", **rule}]}, version, {})


def transitions(values, *, step_s=1, metric="m", **rule):
    """(phase, severity, since, time, value) of one series; `values` come a second apart, from event time 0 on."""
    samples = [("r1", metric, n * step_s, value) for n, value in enumerate(values)]
    _, output = run(batch([(0, samples)]), rules=rules(**rule))
    found = output.transitions.with_columns(pl.col("since", "time") // S)
    return found.select(COLUMNS).rows()


def test_it_fires_at_once_without_a_for_duration():
    """One sample beyond the bound is enough, and the first within it resolves."""
    assert transitions([1, 6, 7, 5], upper={"warning": 5}) == [("firing", 1, 1, 1, 6), ("resolved", 1, 1, 3, 5)]


def test_a_bound_itself_is_not_beyond():
    assert transitions([5, 5], upper={"warning": 5}) == []
    assert transitions([5, 5], lower={"warning": 5}) == []


def test_pending_then_firing_then_resolved():
    """Pending from the first sample beyond; firing with the first after the for-duration."""
    found = transitions([1, 6, 6, 6, 6, 1], upper={"warning": 5}, **{"for": "3s"})
    assert found == [("pending", 1, 1, 1, 6), ("firing", 1, 1, 4, 6), ("resolved", 1, 1, 5, 1)]


def test_what_clears_while_pending_leaves_no_trace():
    """No firing, no resolved; the next one begins anew."""
    found = transitions([6, 6, 1, 6, 6, 6, 6], upper={"warning": 5}, **{"for": "3s"})
    assert found == [("pending", 1, 0, 0, 6), ("pending", 1, 3, 3, 6), ("firing", 1, 3, 6, 6)]


def test_between_clear_and_bound_it_stays_as_it_is():
    """A value that trembles around the bound is one alert, not many; the band raises nothing by itself."""
    bounds = {"warning": 5, "clear": 3}
    assert transitions([4, 4], upper=bounds) == []
    assert transitions([6, 4, 6, 4, 3.5, 3, 4], upper=bounds) == [("firing", 1, 0, 0, 6), ("resolved", 1, 0, 5, 3)]


def test_in_the_band_time_goes_on_and_nothing_fires():
    """One spike is no alert, wherever the values stay after it; the next sample beyond the bound fires at once if `for` has gone by."""
    asked = {"upper": {"warning": 5, "clear": 3}, "for": "2s"}
    assert transitions([6, 4, 4, 4], **asked) == [("pending", 1, 0, 0, 6)]
    assert transitions([6, 4, 4, 4, 7, 4], **asked) == [("pending", 1, 0, 0, 6), ("firing", 1, 0, 4, 7)]
    assert transitions([6, 4, 4, 4, 3, 7], **asked) == [("pending", 1, 0, 0, 6), ("pending", 1, 5, 5, 7)]


def test_it_fires_anew_when_it_grows_to_critical():
    """Once; and it stays critical until it clears, however mild it becomes in between."""
    found = transitions([6, 6, 9, 6, 9, 1], upper={"warning": 5, "critical": 8})
    assert found == [("firing", 1, 0, 0, 6), ("firing", 2, 0, 2, 9), ("resolved", 2, 0, 5, 1)]


def test_growth_while_pending_fires_once_as_critical():
    found = transitions([6, 9, 6], upper={"warning": 5, "critical": 8}, **{"for": "2s"})
    assert found == [("pending", 1, 0, 0, 6), ("firing", 2, 0, 2, 6)]


def test_a_firing_alert_grows_without_waiting_again():
    """The for-duration keeps out short spikes; this one stands already."""
    found = transitions([6, 6, 6, 9], upper={"warning": 5, "critical": 8}, **{"for": "2s"})
    assert found[-1] == ("firing", 2, 0, 3, 9)


def test_upper_and_lower_bounds_are_one_alert():
    """From too high to too low it never cleared."""
    both = {"upper": {"warning": 8}, "lower": {"warning": 2, "critical": 0}}
    found = transitions([5, 9, 1, -1, 5], **both)
    assert found == [("firing", 1, 1, 1, 9), ("firing", 2, 1, 3, -1), ("resolved", 2, 1, 4, 5)]


def test_each_side_clears_at_its_own_level():
    """Above the upper clear level it holds, whatever the lower side says, and the reverse."""
    both = {"upper": {"warning": 8, "clear": 6}, "lower": {"warning": 2, "clear": 4}}
    assert [row[0] for row in transitions([9, 7, 3, 6.5, 5], **both)] == ["firing", "resolved"]
    assert transitions([9, 7, 3, 6.5], **both) == [("firing", 1, 0, 0, 9)]


@pytest.mark.parametrize(
    ("value", "found"),
    [(11, (2, 10)), (10, (1, 8)), (9, (1, 8)), (8, (None, None)), (7, (None, None)), (6, (0, None)), (4, (0, None)), (3, (None, None)),
     (1, (1, 2)), (-1, (2, 0))],
)  # fmt: skip
def test_levels(value, found):
    """2 critical, 1 warning, 0 clear, null hold; and the bound that the value lies beyond."""
    bounds = {
        "upper_warning": 8.0, "upper_critical": 10.0, "upper_clear": 6.0,
        "lower_warning": 2.0, "lower_critical": 0.0, "lower_clear": 4.0,
    }  # fmt: skip
    assert pl.DataFrame({"value": float(value), **bounds}).select(level()).row(0) == found


def machine(samples, for_us):
    """The same for one series, sample by sample: (transitions, alert that stands or None)."""
    out, alert = [], None
    for time, value, found in samples:
        if alert is None:
            if (found or 0) < 1:
                continue
            alert = {"severity": found, "since": time, "time": time, "fired": 0}
            new = True
        else:
            new = False
        alert["time"] = max(alert["time"], time)
        if found == 0:
            if alert["fired"]:
                out.append(("resolved", alert["fired"], alert["since"], alert["time"], value))
            alert = None
            continue
        alert["severity"] = max(alert["severity"], found or 0)
        if alert["fired"] or ((found or 0) >= 1 and alert["time"] - alert["since"] >= for_us):
            if alert["severity"] > alert["fired"]:
                out.append(("firing", alert["severity"], alert["since"], alert["time"], value))
                alert["fired"] = alert["severity"]
        elif new:
            out.append(("pending", alert["severity"], alert["since"], alert["time"], value))
    return out, alert


def samples_frame(rows):
    """SAMPLES of (rule, time, value, level) rows."""
    full = [(rule, 0, 0, 1, time, float(value), found, None if not found else 5.0, 3) for rule, time, value, found in rows]
    return pl.DataFrame(full, schema=SAMPLES, orient="row")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 9), st.sampled_from([0, 1, 2, None])), max_size=25),
    st.lists(st.integers(0, 25), max_size=4),
)
def test_several_samples_at_once_are_the_same_as_one_by_one(steps, cuts):
    """Any number of samples in one call, cut anywhere, give the transitions of a plain state machine per rule."""
    time, rows = 0, []
    for rule, ahead, value, found in steps:
        time += ahead
        rows.append((rule, time if value else max(0, time - 2), value, found))  # some go back in time
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    active, outputs = ACTIVE.to_frame(), []
    for start, end in pairwise(edges):
        moved, active = evaluate(samples_frame(rows[start:end]), active)
        outputs.append(moved)
    whole = pl.concat(outputs)
    for rule in "ab":
        wanted, alert = machine([row[1:] for row in rows if row[0] == rule], 3)
        assert whole.filter(pl.col("rule") == rule).select(COLUMNS).rows() == wanted
        stands = active.filter(pl.col("rule") == rule).select("severity", "since", "time", "firing").rows()
        assert stands == ([] if alert is None else [(alert["severity"], alert["since"], alert["time"], alert["fired"] > 0)])


def test_rules_that_are_withdrawn_resolve_what_fires():
    """What a new version no longer asks of a series is over; what was pending leaves no trace."""
    state, _ = run(batch([(0, [("r1", "m", 0, 9), ("r2", "m", 0, 9)])]), rules=rules(upper={"warning": 5}))
    assert state.active["firing"].to_list() == [True, True]
    others = rules(2, upper={"warning": 5}, device="r2")
    state, output = step(state, batch([]), others, SEMANTICS)
    assert output.transitions.select("rule", "phase", "severity", "value").rows() == [("high", "resolved", 1, None)]  # no value cleared it
    assert state.active.height == 1
    state, output = step(state, batch([]), others, SEMANTICS)
    assert output.transitions.is_empty()

    pending, _ = run(batch([(0, [("r1", "m", 0, 9)])]), rules=rules(upper={"warning": 5}, **{"for": "1m"}))
    assert pending.active["firing"].to_list() == [False]
    resolved, kept = withdraw(pending.active, BOUNDS.to_frame())
    assert resolved.is_empty() and kept.is_empty()


def test_a_new_version_judges_the_next_sample():
    """Looser bounds resolve with the next sample within them, not by themselves; a longer `for` does not take back what fires."""
    state, _ = run(batch([(0, [("r1", "m", 0, 9)])]), rules=rules(upper={"warning": 5}))
    looser = rules(2, upper={"warning": 50}, **{"for": "1m"})
    state, output = step(state, batch([]), looser, SEMANTICS)
    assert output.transitions.is_empty() and state.active["firing"].to_list() == [True]
    _, output = step(state, batch([(1, [("r1", "m", 1, 9)])]), looser, SEMANTICS)
    assert output.transitions["phase"].to_list() == ["resolved"]


def test_each_series_has_an_alert_of_its_own():
    """The same rule on two devices."""
    rows = [("r1", "m", 0, 9), ("r2", "m", 0, 1), ("r2", "m", 1, 9), ("r1", "m", 1, 1)]
    state, output = run(batch([(0, rows)]), rules=rules(upper={"warning": 5}))
    assert sorted(output.transitions.select("phase", "value").rows()) == [("firing", 9), ("firing", 9), ("resolved", 1)]
    assert state.active.height == 1


def test_a_rule_on_windows_is_judged_when_a_window_closes():
    """The statistic is the value, the window's end the time; for-durations count from end to end."""
    asked = rules(on="window", statistic="mean", upper={"warning": 5}, **{"for": "10s"})
    rows = [("r1", "m", time, value) for time, value in ((1, 4), (2, 8), (11, 7), (21, 1), (200, 0))]
    _, output = run(batch([(0, rows)]), rules=asked)
    found = output.transitions.with_columns(pl.col("since", "time") // S).select(COLUMNS).rows()
    assert found == [("pending", 1, 10, 10, 6), ("firing", 1, 10, 20, 7), ("resolved", 1, 10, 30, 1)]
    anomalies = output.anomalies.select(pl.col("event_time", "window") // S, "statistic", "value", "bound", "severity", "rules_version")
    assert anomalies.rows() == [(10, 0, "mean", 6, 5, "warning", 1), (20, 10, "mean", 7, 5, "warning", 1)]


@pytest.mark.parametrize("statistic", ["sum", "mean"])
def test_a_statistic_that_overflows_raises_nothing(statistic):
    """Values within what a float holds, whose sum is not: no alert could say by how much."""
    asked = rules(on="window", statistic=statistic, upper={"warning": 5})
    state, output = run(batch([(0, [("r1", "m", 1, 1.7e308), ("r1", "m", 2, 1.7e308), ("r1", "m", 200, 0)])]), rules=asked)
    assert output.aggregates["sum"].to_list() == [math.inf]
    assert output.anomalies.is_empty() and output.transitions.is_empty() and state.active.is_empty()


def test_a_repeated_event_is_no_second_anomaly():
    """Nor a second alert: in one batch, over two, and where a client sends the whole body again."""
    hot = [("r1", "m", 1, 9), ("r1", "m", 2, 9)]
    asked = rules(upper={"warning": 5, "critical": 20})
    _, output = run(batch([(0, hot + hot)]), batch([(1, hot)]), rules=asked)
    assert output.anomalies["event_time"].to_list() == [S, 2 * S]
    assert output.transitions["phase"].to_list() == ["firing"]


def test_an_anomaly_says_how_far_beyond_its_bound_it_lies():
    """In units of the bound; near 0 in units of 1."""
    _, output = run(batch([(0, [("r1", "m", 1, 15)])]), rules=rules(upper={"warning": 10}))
    assert output.anomalies.select("value", "bound", "score", "severity", "rule").row(0) == (15, 10, 0.5, "warning", "high")
    _, output = run(batch([(0, [("r1", "m", 1, -3)])]), rules=rules(lower={"critical": 0}))
    assert output.anomalies.select("value", "bound", "score", "severity").row(0) == (-3, 0, 3, "critical")
