"""The frames that travel, declared once, in Polars types; stores/codec.py derives their Arrow form.

Times inside the pipeline are Int64 microseconds since the epoch, UTC (`*_time`, `newest`, `arrived`, `closed_to`).
The id of a stream entry is one Int64: milliseconds of its arrival, shifted left by 20, plus its sequence number;
so ids order like Redis orders them, and fit a Delta `txn` version.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

SEQUENCE_BITS = 20  # 2**20 entries a millisecond and partition; 2**43 ms last until the year 2248

# One measurement. `tags` is canonical JSON with sorted keys, "" for none. `counter_bits` is 0 for a gauge, else the
# width at which the counter wraps: 32, 53 (a 64-bit counter that a float64 exporter wraps) or 64.
# `exact` is the value as an integer where float64 cannot hold it (|value| >= 2**53), else null.
EVENTS = pl.Schema(
    {
        "device": pl.Categorical(),
        "interface": pl.Categorical(),
        "metric": pl.Categorical(),
        "tags": pl.Categorical(),
        "counter_bits": pl.UInt8(),
        "value": pl.Float64(),
        "exact": pl.UInt64(),
        "event_time": pl.Int64(),
    }
)

# An event set aside, with its reason. `event` is its JSON text (cut to a bound), so that it can be re-driven.
DEAD_LETTERS = pl.Schema(
    {
        "device": pl.String(),
        "field": pl.String(),
        "reason": pl.String(),
        "event": pl.String(),
    }
)


def entry_id(milliseconds: int, sequence: int) -> int:
    """The Int64 form of the stream id `milliseconds-sequence`."""
    return milliseconds << SEQUENCE_BITS | sequence


def split_entry_id(entry: int) -> tuple[int, int]:
    """(milliseconds, sequence) of an Int64 entry id; the inverse of `entry_id`."""
    return entry >> SEQUENCE_BITS, entry & ((1 << SEQUENCE_BITS) - 1)


def log_time(entry: pl.Expr) -> pl.Expr:
    """The moment of an entry's arrival in microseconds: what its id says, never a clock."""
    return entry.cast(pl.Int64).floordiv(1 << SEQUENCE_BITS) * 1000


SERIES_NAMES = ("device", "interface", "metric", "tags")

PLACE = {"partition": pl.Int32(), **{name: pl.Categorical() for name in SERIES_NAMES}}

# What is said of a window's samples. Times in microseconds.
STATISTICS = {
    "count": pl.UInt32(),
    "sum": pl.Float64(),
    "min": pl.Float64(),
    "max": pl.Float64(),
    "mean": pl.Float64(),
    "stddev": pl.Float64(),  # of the sample (n - 1); null for one row
    "first": pl.Float64(),
    "last": pl.Float64(),
    "first_time": pl.Int64(),
    "last_time": pl.Int64(),
    "p50": pl.Float64(),  # linear between closest ranks, as DuckDB's quantile_cont
    "p95": pl.Float64(),
    "p99": pl.Float64(),
    "increase": pl.Float64(),
    "rate": pl.Float64(),  # increase a second, over the event time it took
    "repeated": pl.UInt32(),  # samples of the open window that a later one with the same time replaced
    "last_exact": pl.UInt64(),  # the last value where float64 cannot hold it
}

# What a worker makes of a micro-batch, as the lake's tables take it. `counter_bits` 0: a gauge.
AGGREGATES = pl.Schema(
    {
        **PLACE,
        "window": pl.Int64(),
        "counter_bits": pl.UInt8(),
        **STATISTICS,
        "quality": pl.String(),  # of the increase: ok, gap, wrap, reset
        "revision": pl.Boolean(),  # made of late rows
        "newest": pl.Int64(),  # its device's newest event time and last arrival when the row was made
        "arrived": pl.Int64(),
    }
)
LATE = pl.Schema(
    {**PLACE, "event_time": pl.Int64(), "window": pl.Int64(), "lateness": pl.Int64(), "value": pl.Float64(), "entry": pl.Int64()}
)
ANOMALIES = pl.Schema(
    {
        **PLACE,
        "event_time": pl.Int64(),  # of the event; of a window: its end
        "window": pl.Int64(),  # null: a single event
        "rule": pl.String(),
        "rules_version": pl.Int32(),
        "severity": pl.String(),
        "statistic": pl.String(),
        "value": pl.Float64(),
        "bound": pl.Float64(),
        "score": pl.Float64(),  # distance beyond the bound, in units of the bound; higher is odder
        "arrived": pl.Int64(),  # log time of the entry that showed it
    }
)
DEAD_ROWS = pl.Schema({"partition": pl.Int32(), "entry": pl.Int64(), **DEAD_LETTERS})

# A frame without rows is made once where it may be: making one costs as much as a join of two. Not one with names: for as long as
# it is there, so is every name that was ever read (pipeline/names.py).
NO_DEAD_ROWS = DEAD_ROWS.to_frame()
_BUT_PLACE = {
    tuple(schema): pl.Schema({name: dtype for name, dtype in schema.items() if name not in PLACE}).to_frame()
    for schema in (AGGREGATES, LATE, ANOMALIES)
}
_UNMARKED = pl.Series([False])


def stacked(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One or more frames of one schema, one below the other; those without rows cost nothing."""
    filled = [frame for frame in frames if frame.height]
    return pl.concat(filled) if len(filled) > 1 else filled[0] if filled else frames[0]


def by_place(frame: pl.DataFrame, number: str, known: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """`frame` with columns of the row of `known` whose place the column `number` says: no join."""
    return frame.hstack([known[column][frame[number]] for column in columns])


def of_series(frame: pl.DataFrame, series: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """`frame` with columns of the series that each row's `series` numbers."""
    return by_place(frame, "series", series, *columns)


def marked(numbers: pl.Series, count: int) -> pl.Series:
    """Of the numbers from 0 to `count` - 1, which are among `numbers`: a Boolean for each, to be looked up by place.

    `marks[column]` says of each row what `column.is_in(numbers)` does, for half of what that costs.
    """
    return _UNMARKED.new_from_index(0, count).scatter(numbers, True)


def placed(values: pl.Series, numbers: pl.Series, count: int) -> pl.Series:
    """A column of `count` rows: `values` at the places that `numbers` say, null elsewhere; to be looked up by place."""
    return pl.Series(values.name, [None], dtype=values.dtype).new_from_index(0, count).scatter(numbers, values)


def parted(rows: pl.DataFrame, flag: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows whose Boolean `flag` is true, the others). Mostly it is true of none, which costs nothing."""
    return (rows.filter(flag), rows.filter(~rows[flag])) if rows[flag].any() else (rows.clear(), rows)


def without_rows(schema: pl.Schema, nowhere: pl.DataFrame) -> pl.DataFrame:
    """A frame of AGGREGATES, LATE or ANOMALIES without rows. `nowhere`: its columns PLACE, which have names, without rows."""
    return nowhere.hstack(_BUT_PLACE[tuple(schema)])
