"""Alerts as transitions: pending -> firing -> resolved, per rule and series, with hysteresis and a for-duration.

A sample raises (beyond a bound), clears (within every clear level) or holds (between the two: the alert stays as it is).
An alert is pending from the first sample that raises; it fires with the first sample that raises once it has stood for `for`, fires
anew when it grows from warning to critical, and is resolved by the first sample that clears. One that clears while pending leaves
no trace.
Judged in stream order, over event time: no clock, so that a replay finds the same transitions.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.core.runs import Runs
from pipeline.core.schema import marked, stacked

PHASES = ("pending", "firing", "resolved")
_PENDING, _FIRING, _RESOLVED, _NONE = range(4)  # places in PHASES, and one beyond
_HOLD = -1  # a level that neither raises nor clears
# Alerts that stand. `severity` 1 is warning, 2 critical; `value` is its last sample's, `bound` the one last breached. A transition that
# resolves has the value that cleared it; null: none did, no rule asks for it any more.
ACTIVE = pl.Schema(
    {
        "rule": pl.String(),
        "series": pl.UInt32(),
        "partition": pl.Int32(),
        "severity": pl.Int8(),
        "firing": pl.Boolean(),
        "since": pl.Int64(),
        "time": pl.Int64(),
        "value": pl.Float64(),
        "bound": pl.Float64(),
    }
)
TRANSITIONS = pl.Schema({**ACTIVE, "phase": pl.String(), "entry": pl.Int64()})
NO_TRANSITIONS = TRANSITIONS.to_frame()
# A value to be judged by a rule, in stream order. `time` is event time.
SAMPLES = pl.Schema(
    {"rule": pl.String(), "series": pl.UInt32(), "partition": pl.Int32(), "entry": pl.Int64(), "time": pl.Int64(), "value": pl.Float64(),
     "level": pl.Int8(), "bound": pl.Float64(), "for_us": pl.Int64()}
)  # fmt: skip


def level() -> list[pl.Expr]:
    """`level` (2 critical, 1 warning, 0 clear, null hold) and the `bound` that the value lies beyond, over value and BOUNDS."""
    value = pl.col("value")
    above = {name: value > pl.col(f"upper_{name}") for name in ("critical", "warning")}
    below = {name: value < pl.col(f"lower_{name}") for name in ("critical", "warning")}
    clear = (value <= pl.col("upper_clear")).fill_null(True) & (value >= pl.col("lower_clear")).fill_null(True)
    critical, warning = above["critical"] | below["critical"], above["warning"] | below["warning"]
    found = pl.when(critical.fill_null(False)).then(2).when(warning.fill_null(False)).then(1).when(clear).then(0)
    bound = (
        pl.when(above["critical"]).then(pl.col("upper_critical"))
        .when(below["critical"]).then(pl.col("lower_critical"))
        .when(above["warning"]).then(pl.col("upper_warning"))
        .when(below["warning"]).then(pl.col("lower_warning"))
    )  # fmt: skip
    return [found.cast(pl.Int8).alias("level"), bound.alias("bound")]


def evaluate(samples: pl.DataFrame, active: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(TRANSITIONS, ACTIVE after) of SAMPLES in stream order, given the ACTIVE before."""
    if samples.is_empty():
        return NO_TRANSITIONS, active
    # Where no alert stands and nothing raises one, nothing changes: that is most series.
    count = 1 + max(samples["series"].max(), active["series"].max() or 0)
    concerned = pl.concat([samples["series"].filter(samples["level"] >= 1), active["series"]])
    samples = samples.filter(marked(concerned, count)[samples["series"]])
    if samples.is_empty():
        return NO_TRANSITIONS, active
    touched = marked(samples["series"], count)[active["series"]]
    first = active.filter(touched).with_columns(level="severity", entry=pl.lit(None, pl.Int64), for_us=pl.lit(0, pl.Int64), known=True)
    rows = pl.concat([first, samples.with_columns(known=False)], how="diagonal").sort("rule", "series", maintain_order=True)

    # Mostly these are few rows, on which a step in numpy costs a hundredth of one in Polars. `of_alerts` are the rows of one alert;
    # `of_lives` stretches in which one stands, with what follows until the next.
    told_at, wanted_for, known = (rows[name].to_numpy() for name in ("time", "for_us", "known"))
    level = rows["level"].fill_null(_HOLD).to_numpy()
    other = rows.select(rule=pl.col("rule").rle_id(), series="series")
    of_alerts = Runs.of(other, "rule", "series")
    began = of_alerts.begins
    latched = level[_newest(began | (level != _HOLD))] >= 1
    before = _shifted(latched, began, False)
    start, stop = latched & ~before, ~latched & before
    of_lives = Runs(start | began)
    time = of_lives.cum_max(told_at)
    severity = of_lives.cum_max(np.maximum(level, 0))
    since = of_lives.each(of_lives.first(rows.select(pl.coalesce("since", "time")))["since"].to_numpy())
    # Once an alert fires it fires until it clears, also when a new version of the rules asks for longer.
    due = (level >= 1) & (time - since >= wanted_for) & ~known
    firing = of_lives.cum_max(latched & (due | rows["firing"].fill_null(False).to_numpy())) & latched
    fired = np.where(firing, severity, 0)
    fired_before = _shifted(fired, began, 0)
    phase = np.select(
        [known, stop, fired > np.where(start, 0, fired_before), start & ~firing],
        [_NONE, np.where(fired_before > 0, _RESOLVED, _NONE), _FIRING, _PENDING],
        _NONE,
    )
    # What a resolved alert was: its severity and start are those of the life that ends.
    judged = rows.with_columns(
        severity=pl.Series(np.where(stop, fired_before, severity)).cast(pl.Int8),
        firing=firing,
        since=np.where(stop, _shifted(since, began, 0), since),
        time=time,
        bound=rows["bound"].gather(_newest(began | rows["bound"].is_not_null().to_numpy())),
    )
    moved = np.flatnonzero(phase != _NONE)
    transitions = judged[moved].with_columns(phase=pl.Series(PHASES).gather(phase[moved]))
    last = of_alerts.last(judged.with_columns(latched=latched))
    return transitions.select(list(TRANSITIONS)), stacked([active.filter(~touched), last.filter(last["latched"])[list(ACTIVE)]])


def _newest(said: np.ndarray) -> np.ndarray:
    """Of each row, the last one up to it of which that is `said`. The first is."""
    return np.maximum.accumulate(np.where(said, np.arange(len(said)), 0))


def _shifted(values: np.ndarray, began: np.ndarray, first: int | bool) -> np.ndarray:
    """The value of the row before; `first` where a row begins something."""
    return np.where(began, first, np.roll(values, 1))


def withdraw(active: pl.DataFrame, bounds: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(TRANSITIONS, ACTIVE after) when the rules change: what no rule asks of its series any more is resolved."""
    if active.is_empty():
        return NO_TRANSITIONS, active
    key = ["rule", "series"]
    gone = active.join(bounds[key], on=key, how="anti", maintain_order="left")
    kept = active.join(bounds[key], on=key, how="semi", maintain_order="left")
    none = {"value": pl.lit(None, pl.Float64), "entry": pl.lit(None, pl.Int64)}
    return gone.filter("firing").with_columns(phase=pl.lit("resolved"), **none).select(list(TRANSITIONS)), kept
