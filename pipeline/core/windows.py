"""Tumbling windows over event time: what a closed window says of each of its series, and what late rows add.

A window is [start, start + width). Each of its rows is aggregated once, when it closes. A repeated (series, event time)
in it is one sample: the last in stream order. Rows are sorted before anything is summed, so that a replay agrees to the
last bit.
"""

from __future__ import annotations

import polars as pl

from pipeline.core import counters
from pipeline.core.schema import STATISTICS, marked, of_series
from pipeline.core.semantics import Semantics

OPEN_ROWS = pl.Schema(
    {
        "series": pl.UInt32(),
        "partition": pl.Int32(),
        "device_number": pl.UInt32(),
        "window": pl.Int64(),
        "event_time": pl.Int64(),
        "entry": pl.Int64(),
        "counter_bits": pl.UInt8(),
        "value": pl.Float64(),
        "exact": pl.UInt64(),
    }
)

# What one closed window, or one round of late rows, says of one series.
SUMMARIES = pl.Schema(
    {
        "series": pl.UInt32(),
        "partition": pl.Int32(),
        "device_number": pl.UInt32(),
        "window": pl.Int64(),
        "counter_bits": pl.UInt8(),
        **STATISTICS,
        "quality_code": pl.UInt8(),  # index into counters.QUALITIES
        "revision": pl.Boolean(),
        "newest": pl.Int64(),
        "arrived": pl.Int64(),
    }
)

NO_SUMMARIES = SUMMARIES.to_frame()


def window_of(event_time: pl.Expr, width: int) -> pl.Expr:
    """The start of the window that an event time falls into."""
    return event_time.floordiv(width) * width


def summarise(closed: pl.DataFrame, closings: pl.DataFrame, series: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """SUMMARIES, by series and window, of windows that close, from all their rows (OPEN_ROWS) in stream order.

    `closings` (CLOSINGS) say when each did. `series` holds at the place of each series its partition, device_number,
    before_value, before_exact and before_time: the last sample of it in a closed window.
    """
    rows = closed.select("series", "window", "event_time", "counter_bits", "value", "exact")
    rows = rows.sort("series", "event_time", maintain_order=True)
    kept = (pl.col("series") != pl.col("series").shift(-1)) | (pl.col("event_time") != pl.col("event_time").shift(-1))
    rows = rows.with_columns(kept=kept.fill_null(True))
    repeats = rows.filter(~pl.col("kept")).group_by("series", "window").agg(repeated=pl.len())
    if not repeats.is_empty():
        rows = rows.filter("kept")
    summaries = _statistics(rows)
    summaries = of_series(summaries, series, "partition", "device_number")
    summaries = summaries.join(closings, on=["device_number", "window"], how="left", maintain_order="left")
    counted = rows["series"].filter(rows["counter_bits"] > 0)
    if not counted.is_empty():
        of_counters = rows.filter(marked(counted, series.height)[rows["series"]])
        summaries = _with_increase(summaries, _with_steps(of_counters, series, semantics))
    if repeats.is_empty():
        summaries = summaries.with_columns(repeated=pl.lit(0, pl.UInt32))
    else:
        summaries = summaries.join(repeats, on=["series", "window"], how="left", maintain_order="left").with_columns(
            pl.col("repeated").fill_null(0)
        )
    return _shape(summaries, revision=False)


def revise(late: pl.DataFrame) -> pl.DataFrame:
    """SUMMARIES of late rows: each counts; quantiles and increase are left to the base row.

    `newest` and `arrived` are the device's after the last of them.
    """
    rows = late.sort("series", "event_time", maintain_order=True)
    device = [pl.col("partition", "device_number").first(), pl.col("newest", "arrived").max()]
    return _shape(_statistics(rows, *device, quantiles=False).with_columns(repeated=pl.lit(0, pl.UInt32)), revision=True)


def _statistics(rows: pl.DataFrame, *more: pl.Expr, quantiles: bool = True) -> pl.DataFrame:
    value = pl.col("value")
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99} if quantiles else {}
    return rows.group_by("series", "window", maintain_order=True).agg(
        value.len().alias("count"),
        value.sum().alias("sum"),
        value.min().alias("min"),
        value.max().alias("max"),
        value.mean().alias("mean"),
        value.std().alias("stddev"),
        value.first().alias("first"),
        value.last().alias("last"),
        pl.col("exact").last().alias("last_exact"),
        pl.col("event_time").first().alias("first_time"),
        pl.col("event_time").last().alias("last_time"),
        pl.col("counter_bits").last(),
        *more,
        *(value.quantile(share, "linear").alias(name) for name, share in shares.items()),
    )


def _with_steps(rows: pl.DataFrame, series: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    same = pl.col("series") == pl.col("series").shift(1)
    rows = of_series(rows, series, "before_value", "before_exact", "before_time")
    rows = rows.with_columns(
        pl.when(same).then(pl.col(column).shift(1)).otherwise(pl.col(f"before_{name}")).alias(f"before_{name}")
        for name, column in (("value", "value"), ("exact", "exact"), ("time", "event_time"))
    )
    if rows["exact"].null_count() == rows.height and rows["before_exact"].null_count() == rows.height:
        return rows.with_columns(counters.step_columns(semantics.counter_gap))
    beyond = pl.col("exact").is_not_null() | pl.col("before_exact").is_not_null()
    parts = [
        rows.with_row_index("order").filter(~beyond).with_columns(counters.step_columns(semantics.counter_gap)),
        rows.with_row_index("order").filter(beyond).with_columns(counters.exact_step_columns(semantics.counter_gap)),
    ]
    return pl.concat(parts).sort("order").drop("order")


def _with_increase(summaries: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    steps = (
        rows.filter(pl.col("step").is_not_null())
        .group_by("series", "window")
        .agg(
            increase=pl.col("step").sum(),
            quality_code=pl.col("quality_code").max(),
            elapsed=pl.col("event_time").max() - pl.col("before_time").min(),
        )
    )
    rate = pl.when(pl.col("elapsed") > 0).then(pl.col("increase") / pl.col("elapsed") * 1e6)
    return summaries.join(steps, on=["series", "window"], how="left", maintain_order="left").with_columns(rate=rate)


def _shape(summaries: pl.DataFrame, *, revision: bool) -> pl.DataFrame:
    have = set(summaries.columns)
    return summaries.with_columns(revision=pl.lit(revision)).select(
        pl.col(name).cast(dtype) if name in have or name == "revision" else pl.lit(None, dtype).alias(name)
        for name, dtype in SUMMARIES.items()
    )
