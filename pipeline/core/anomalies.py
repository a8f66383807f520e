"""Which events and closed windows lie beyond a bound: each is an anomaly, and a sample for the alerts."""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.core.alerts import SAMPLES, level
from pipeline.core.schema import marked, parted, stacked
from pipeline.core.semantics import NEVER

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

NO_BREACHES = BREACHES.to_frame()


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


def of_events(
    rows: pl.DataFrame, earlier: pl.DataFrame, series: pl.DataFrame, bounds: pl.DataFrame, active: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(samples, anomalies among them), BREACHES of single events under every rule on events; of those series alone that breach or
    have an alert.

    `rows` are in stream order, with guard_upper and guard_lower of their series; `earlier` the open rows before. `series` holds
    at the place of each its before_time. `stale` are samples that a newer one of their series overtook, and late ones: they may be
    anomalies, but no alert goes by them.
    """
    beyond = (rows["value"] > rows["guard_upper"]) | (rows["value"] < rows["guard_lower"])
    concerned = pl.concat([rows["series"].filter(beyond), active["series"]])
    samples = rows.filter(marked(concerned, series.height)[rows["series"]]) if concerned.len() else rows.clear()
    if samples.is_empty():
        return NO_BREACHES, NO_BREACHES
    of_these = marked(samples["series"], series.height)
    earlier, bounds = earlier.filter(of_these[earlier["series"]]), bounds.filter(of_these[bounds["series"]] & bounds["event"])
    on_time = pl.when(~pl.col("is_late")).then("event_time").cum_max().over("series")
    known = series["before_time"].fill_null(NEVER).to_numpy().copy()
    np.maximum.at(known, earlier["series"].to_numpy(), earlier["event_time"].to_numpy())
    newest = pl.max_horizontal(pl.Series(known)[samples["series"]], on_time)
    samples = (
        samples
        .with_columns(stale=pl.col("is_late") | (pl.col("event_time") < newest).fill_null(False))
        .join(bounds, on="series", maintain_order="left")
        .with_columns(level())
        .select(
            "rule", "series", "partition", "entry", pl.col("event_time").alias("time"), "value", "level", "bound", "for_us",
            pl.lit(None, pl.Int64).alias("window"), "statistic", "is_late", "stale", pl.col("log_time").alias("arrived"),
        )
    )  # fmt: skip
    return samples, _first_of_each(samples.filter(pl.col("level") >= 1), earlier, bounds)


def _first_of_each(breaches: pl.DataFrame, earlier: pl.DataFrame, bounds: pl.DataFrame) -> pl.DataFrame:
    """`breaches` of single events without those that repeat one: a client's retry of an event is no second anomaly.

    A sample of `earlier` with the same time that breached the same rule was reported then. A late row's window is closed, so that
    nothing says whether it repeats another: each is reported.
    """
    if breaches["is_late"].all():
        return breaches
    key = ["series", "time", "rule"]
    late, on_time = parted(breaches, "is_late")
    on_time = on_time.unique(key, keep="first", maintain_order=True)
    same = earlier.rename({"event_time": "time"}).join(on_time, on=["series", "time"], how="semi")
    if same.height:
        reported = same.join(bounds, on="series").with_columns(level()).filter(pl.col("level") >= 1)
        on_time = on_time.join(reported, on=key, how="anti", maintain_order="left")
    return stacked([on_time, late])


def window_samples(summaries: pl.DataFrame, bounds: pl.DataFrame, width: int) -> pl.DataFrame:
    """BREACHES of closed windows: the statistic that each rule on windows asks for; none where it is no number, as where a sum overflows.

    `summaries` have the partition; its revisions are not judged.
    """
    asked = bounds.filter(~bounds["event"]) if summaries.height else bounds.clear()
    if asked.is_empty():
        return NO_BREACHES
    names = asked["statistic"].unique().to_list()
    judged = summaries.filter(~summaries["revision"])[["series", "partition", "window", "arrived", *names]]
    value = pl.coalesce(pl.when(pl.col("statistic") == name).then(pl.col(name).cast(pl.Float64)) for name in names)
    return (
        judged.join(asked, on="series", maintain_order="left")
        .with_columns(value=value).filter(pl.col("value").is_finite()).with_columns(level())
        .select(
            "rule", "series", "partition", pl.lit(None, pl.Int64).alias("entry"), (pl.col("window") + width).alias("time"), "value",
            "level", "bound", "for_us", "window", "statistic", pl.lit(False).alias("is_late"),
            pl.lit(False).alias("stale"), "arrived",
        )
    )  # fmt: skip
