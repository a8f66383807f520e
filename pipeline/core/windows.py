"""Tumbling windows over event time: what a closed window says of each of its series, and what late rows add.

A window is [start, start + width). Each of its rows is aggregated once, when it closes. A repeated (series, event time)
in it is one sample: the last in stream order. Rows are sorted before anything is summed, so that a replay agrees to the
last bit.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.core import counters
from pipeline.core.runs import Runs
from pipeline.core.schema import STATISTICS, marked, of_series, placed
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
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def window_of(event_time: pl.Expr, width: int) -> pl.Expr:
    """The start of the window that an event time falls into."""
    return event_time.floordiv(width) * width


def summarise(closed: pl.DataFrame, closings: pl.DataFrame, series: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """SUMMARIES, by series and window, of windows that close, from all their rows (OPEN_ROWS) in stream order.

    `closings` (CLOSINGS) say when each did. `series` holds at the place of each series its partition, device_number,
    before_value, before_exact and before_time: the last sample of it in a closed window.
    """
    rows = _sorted(closed.select("series", "window", "event_time", "counter_bits", "value", "exact"))
    again = (rows["series"] == rows["series"].shift(-1)) & (rows["event_time"] == rows["event_time"].shift(-1))
    repeated = pl.lit(0, pl.UInt32)
    if again.any():
        again = again.fill_null(False)  # of the last row, which none follows
        repeated = pl.Series(_runs(rows).sum(again.cast(pl.UInt32).to_numpy()))
        rows = rows.filter(~again)
    runs = _runs(rows)
    quantiles = pl.DataFrame(runs.quantiles(rows["value"].to_numpy(), QUANTILES))
    summaries = _statistics(rows, runs).hstack(quantiles).with_columns(repeated=repeated)
    summaries = of_series(summaries, series, "partition", "device_number")
    summaries = summaries.join(closings, on=["device_number", "window"], how="left", maintain_order="left")
    counted = rows["series"].filter(rows["counter_bits"] > 0)
    if not counted.is_empty():
        of_counters = rows.with_columns(run=runs.numbers()).filter(marked(counted, series.height)[rows["series"]])
        summaries = _with_increase(summaries, _with_steps(of_counters, series, semantics))
    return _shape(summaries, revision=False)


def revise(late: pl.DataFrame) -> pl.DataFrame:
    """SUMMARIES of late rows: each counts; quantiles and increase are left to the base row.

    `newest` and `arrived` are the device's after the last of them.
    """
    rows = _sorted(late)
    runs = _runs(rows)
    device = runs.first(rows["partition", "device_number"])
    latest = [pl.Series(name, runs.max(rows[name].to_numpy())) for name in ("newest", "arrived")]
    summaries = _statistics(rows, runs).hstack([*device.get_columns(), *latest])
    return _shape(summaries.with_columns(repeated=pl.lit(0, pl.UInt32)), revision=True)


def _sorted(rows: pl.DataFrame) -> pl.DataFrame:
    """By series and event time; rows that agree in both stay in their order."""
    return rows[np.lexsort((rows["event_time"].to_numpy(), rows["series"].to_numpy()))]


def _runs(rows: pl.DataFrame) -> Runs:
    return Runs.of(rows, "series", "window")


def _statistics(rows: pl.DataFrame, runs: Runs) -> pl.DataFrame:
    values = rows["value"].to_numpy()
    first, last = runs.first(rows), runs.last(rows)
    total = runs.sum(values)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        apart = values - runs.each(first["value"].to_numpy())  # from the first, so that values that are all the same have no spread at all
        squares = runs.sum((apart - runs.each(runs.sum(apart) / runs.counts)) ** 2)
        stddev = np.sqrt(squares / (runs.counts - 1))
    return pl.DataFrame(
        {
            "series": first["series"],
            "window": first["window"],
            "count": runs.counts,
            "sum": total,
            "min": runs.min(values),
            "max": runs.max(values),
            "mean": total / runs.counts,
            "stddev": pl.Series(stddev).fill_nan(None),  # of one row there is none
            "first": first["value"],
            "last": last["value"],
            "last_exact": last["exact"],
            "first_time": first["event_time"],
            "last_time": last["event_time"],
            "counter_bits": last["counter_bits"],
        }
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
    """`rows` of counters with their steps; `run` is the place of each one's summary."""
    rows = rows.filter(rows["step"].is_not_null())
    runs = Runs.of(rows, "run")
    columns = {name: rows[name].to_numpy() for name in ("step", "quality_code", "event_time", "before_time")}
    steps = pl.DataFrame({
        "increase": runs.sum(columns["step"]),
        "quality_code": runs.max(columns["quality_code"]),
        "elapsed": runs.max(columns["event_time"]) - runs.min(columns["before_time"]),
    })
    rate = pl.when(pl.col("elapsed") > 0).then(pl.col("increase") / pl.col("elapsed") * 1e6)
    place = placed(pl.int_range(len(runs), dtype=pl.UInt32, eager=True), runs.first(rows[["run"]])["run"], summaries.height)
    return summaries.hstack(steps.with_columns(rate=rate)[place])


def _shape(summaries: pl.DataFrame, *, revision: bool) -> pl.DataFrame:
    have = set(summaries.columns)
    return summaries.with_columns(revision=pl.lit(revision)).select(
        pl.col(name).cast(dtype) if name in have or name == "revision" else pl.lit(None, dtype).alias(name)
        for name, dtype in SUMMARIES.items()
    )
