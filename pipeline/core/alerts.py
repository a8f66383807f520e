"""Alerts as transitions: pending -> firing -> resolved, per rule and series, with hysteresis and a for-duration.

A sample raises (beyond a bound), clears (within every clear level) or holds (between the two: the alert stays as it is).
An alert is pending from the first sample that raises; it fires with the first sample that raises once it has stood for `for`, fires
anew when it grows from warning to critical, and is resolved by the first sample that clears. One that clears while pending leaves
no trace.
Judged in stream order, over event time: no clock, so that a replay finds the same transitions.
"""

from __future__ import annotations

import polars as pl

from pipeline.core.schema import stacked

PHASES = ("pending", "firing", "resolved")
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
    key = ["rule", "series"]
    # Where no alert stands and nothing raises one, nothing changes: that is most of them.
    moved = stacked([samples.filter(pl.col("level") >= 1)[key], active[key]]) if samples.height else NO_TRANSITIONS
    samples = samples.join(moved, on=key, how="semi", maintain_order="left") if moved.height else samples.clear()
    if samples.is_empty():
        return NO_TRANSITIONS, active
    touched = samples[key]
    standing = active.join(touched, on=key, how="semi", maintain_order="left")
    first = standing.with_columns(level="severity", entry=pl.lit(None, pl.Int64), for_us=pl.lit(0, pl.Int64), known=True)
    rows = pl.concat([first, samples.with_columns(known=False)], how="diagonal").sort(key, maintain_order=True)

    # Of few rows a call costs more than what it computes: a column is made beside others wherever none of them needs it.
    # `alert` numbers (rule, series), `run` the stretches in which one stands, with what follows until the next.
    other = ((pl.col("rule") != pl.col("rule").shift(1)) | (pl.col("series") != pl.col("series").shift(1))).fill_null(True)
    raised = pl.when(pl.col("level") >= 1).then(True).when(pl.col("level") == 0).then(False)
    rows = rows.with_columns(other=other, alert=other.cum_sum())
    rows = rows.with_columns(latched=raised.forward_fill().over("alert").fill_null(False))
    before = pl.col("latched").shift(1).fill_null(False) & ~pl.col("other")
    start = pl.col("latched") & ~before
    rows = rows.with_columns(start=start, stop=~pl.col("latched") & before, run=(start | pl.col("other")).cum_sum())
    rows = rows.with_columns(
        time=pl.col("time").cum_max().over("run"),
        severity=pl.col("level").fill_null(0).cum_max().over("run"),
        since=pl.coalesce("since", "time").first().over("run"),
    )
    # Once an alert fires it fires until it clears, also when a new version of the rules asks for longer.
    mature = pl.col("latched") & (
        (pl.col("level") >= 1).fill_null(False) & (pl.col("time") - pl.col("since") >= pl.col("for_us")) & ~pl.col("known")
        | pl.col("firing").fill_null(False)
    )
    firing = mature.cum_max().over("run") & pl.col("latched")
    none = pl.lit(0, pl.Int8)
    rows = rows.with_columns(firing=firing, fired=pl.when(firing).then("severity").otherwise(none))
    fired_before = pl.when(~pl.col("other")).then(pl.col("fired").shift(1)).fill_null(none)
    phase = (
        pl.when("known").then(None)
        .when("stop").then(pl.when(fired_before > 0).then(pl.lit("resolved")))
        .when(pl.col("fired") > pl.when("start").then(none).otherwise(fired_before)).then(pl.lit("firing"))
        .when(pl.col("start") & ~pl.col("firing")).then(pl.lit("pending"))
    )  # fmt: skip
    # What a resolved alert was: its severity and start are those of the run that ends.
    judged = rows.with_columns(
        phase=phase,
        bound=pl.col("bound").forward_fill().over("alert"),
        severity=pl.when("stop").then(fired_before).otherwise("severity"),
        since=pl.when("stop").then(pl.col("since").shift(1)).otherwise("since"),
    )
    transitions = judged.filter(pl.col("phase").is_not_null())[list(TRANSITIONS)]
    goes_on = (pl.col("rule") == pl.col("rule").shift(-1)) & (pl.col("series") == pl.col("series").shift(-1))
    last = judged.filter(~goes_on.fill_null(False) & pl.col("latched"))[list(ACTIVE)]
    untouched = active.join(touched, on=key, how="anti", maintain_order="left") if standing.height else active
    return transitions, stacked([untouched, last])


def withdraw(active: pl.DataFrame, bounds: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(TRANSITIONS, ACTIVE after) when the rules change: what no rule asks of its series any more is resolved."""
    if active.is_empty():
        return NO_TRANSITIONS, active
    key = ["rule", "series"]
    gone = active.join(bounds[key], on=key, how="anti", maintain_order="left")
    kept = active.join(bounds[key], on=key, how="semi", maintain_order="left")
    none = {"value": pl.lit(None, pl.Float64), "entry": pl.lit(None, pl.Int64)}
    return gone.filter("firing").with_columns(phase=pl.lit("resolved"), **none).select(list(TRANSITIONS)), kept
