"""Which events and closed windows lie beyond a bound: each is an anomaly, and a sample for the alerts."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from pipeline.core.alerts import SAMPLES, level
from pipeline.core.rules import STATISTICS

# Given a filter on `series`: the newest event time of each, as `newest_time`.
Newest = Callable[[pl.Expr], pl.DataFrame]
BREACHES = pl.Schema(
    {
        **SAMPLES,
        "window": pl.Int64(),
        "statistic": pl.String(),
        "is_late": pl.Boolean(),
        "stale": pl.Boolean(),
        "arrived": pl.Int64(),
    }
)


def guards(bounds: pl.DataFrame) -> pl.DataFrame:
    """Per series the mildest bounds on single events: what lies within them concerns no rule."""
    return (
        bounds.filter("event")
        .group_by("series")
        .agg(
            guard_upper=pl.min_horizontal("upper_warning", "upper_critical").min(),
            guard_lower=pl.max_horizontal("lower_warning", "lower_critical").max(),
        )
    )


def event_samples(rows: pl.DataFrame, bounds: pl.DataFrame, active: pl.DataFrame, newest: Newest) -> pl.DataFrame:
    """BREACHES of single events under every rule on events, of those series alone that breach or have an alert.

    `rows` are in stream order, with guard_upper and guard_lower of their series. `stale` are those that a newer sample of
    their series overtook, and late ones: they may be anomalies, but no alert goes by them.
    """
    breaching = rows.filter((pl.col("value") > pl.col("guard_upper")) | (pl.col("value") < pl.col("guard_lower")))
    concerned = pl.concat([breaching["series"], active["series"]]).unique()
    if concerned.is_empty():
        return BREACHES.to_frame()
    of_concerned = pl.col("series").is_in(concerned.implode())
    samples = rows.filter(of_concerned).join(newest(of_concerned), on="series", how="left", maintain_order="left")
    on_time = pl.when(~pl.col("is_late")).then("event_time")
    stale = pl.col("is_late") | (pl.col("event_time") < pl.max_horizontal("newest_time", on_time.cum_max().over("series"))).fill_null(False)
    samples = samples.with_columns(stale=stale).join(bounds.filter("event"), on="series", maintain_order="left")
    return samples.with_columns(level()).select(
        "rule", "series", "partition", "entry", pl.col("event_time").alias("time"), "value", "level", "bound", "for_us",
        pl.lit(None, pl.Int64).alias("window"), "statistic", "is_late", "stale", pl.col("log_time").alias("arrived"),
    )  # fmt: skip


def window_samples(summaries: pl.DataFrame, bounds: pl.DataFrame, width: int) -> pl.DataFrame:
    """BREACHES of closed windows: the statistic that each rule on windows asks for; without a value, none.

    `summaries` have the partition; its revisions are not judged.
    """
    asked = bounds.filter(~pl.col("event"))
    if asked.is_empty() or summaries.is_empty():
        return BREACHES.to_frame()
    joined = summaries.filter(~pl.col("revision")).join(asked, on="series", maintain_order="left")
    value = pl.coalesce(pl.when(pl.col("statistic") == name).then(pl.col(name).cast(pl.Float64)) for name in STATISTICS)
    return (
        joined.with_columns(value=value).filter(pl.col("value").is_not_null()).with_columns(level())
        .select(
            "rule", "series", "partition", pl.lit(None, pl.Int64).alias("entry"), (pl.col("window") + width).alias("time"), "value",
            "level", "bound", "for_us", "window", "statistic", pl.lit(False).alias("is_late"),
            pl.lit(False).alias("stale"), "arrived",
        )
    )  # fmt: skip


def first_of_each(breaches: pl.DataFrame, earlier: pl.DataFrame, bounds: pl.DataFrame) -> pl.DataFrame:
    """`breaches` of single events without those that repeat one: a client's retry of an event is no second anomaly.

    `earlier`: the open rows before; a sample with the same time that breached the same rule was reported then. A late
    row's window is closed, so that nothing says whether it repeats another: each is reported.
    """
    late, on_time = breaches.filter("is_late"), breaches.filter(~pl.col("is_late"))
    if on_time.is_empty():
        return breaches
    key = ["series", "time", "rule"]
    on_time = on_time.unique(key, keep="first", maintain_order=True)
    same = earlier.select("series", "value", time="event_time").join(
        on_time.select("series", "time").unique(), on=["series", "time"], how="semi"
    )
    if same.height:
        reported = same.join(bounds.filter("event"), on="series").with_columns(level()).filter(pl.col("level") >= 1)
        on_time = on_time.join(reported.select(key), on=key, how="anti", maintain_order="left")
    return pl.concat([on_time, late])
