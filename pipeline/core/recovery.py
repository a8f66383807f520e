"""Position + pending entries + last rows -> the state a worker resumes with. The lake is the checkpoint.

Entries at or before the position give back the devices' event times; their rows in windows that were closed at the
position are counted already, all others are open. Entries after the position are not this module's: they go through `step`.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from pipeline.core.batch import SERIES, Batch, State
from pipeline.core.schema import SERIES_NAMES, log_time, stacked
from pipeline.core.semantics import NEVER, Semantics
from pipeline.core.setaside import without_refused
from pipeline.core.watermarks import DEVICES, WINDOWS, numbered
from pipeline.core.windows import OPEN_ROWS, window_of

# What the lake says of one partition's series: its last sample in a base row, and over all its rows the newest event time
# and the last arrival of its device, and the end of its last window that closed.
LAST_ROWS = pl.Schema(
    {
        **{name: pl.Categorical() for name in SERIES_NAMES},
        "last": pl.Float64(),
        "last_exact": pl.UInt64(),
        "last_time": pl.Int64(),
        "newest": pl.Int64(),
        "arrived": pl.Int64(),
        "closed_to": pl.Int64(),
    }
)


class Stand(NamedTuple):
    """How far a thing that outlives a Redis has come in a partition: entry id, and the incarnation of the stream that it read."""

    position: int = -1
    incarnation: int = 0  # none is known


def recover(
    partition: int,
    position: int,
    last_rows: pl.DataFrame,
    replayed: Batch,
    active: pl.DataFrame,
    refused: pl.DataFrame,
    semantics: Semantics,
) -> State:
    """The state of `partition` at `position`.

    `last_rows`: LAST_ROWS. `replayed`: pending entries at or before the position. `active`: the alerts that stand, as
    ACTIVE with names in place of `series`. `refused`: REFUSED, which of the events in those entries are dead letters.
    """
    events = without_refused(replayed.events, refused)
    events = events.with_columns(log_time=log_time(pl.col("entry")), window=window_of(pl.col("event_time"), semantics.width))
    names = list(SERIES_NAMES)
    times = _device_times(last_rows, events)
    watermark = pl.max_horizontal(pl.col("newest") - semantics.disorder, "closed_to")
    open_rows = events.join(times, on="device", maintain_order="left").filter(pl.col("window") + semantics.width > watermark)
    known = stacked([last_rows[names], open_rows[names], active[names]]).unique(maintain_order=True)
    devices = (
        known.select("device").unique(maintain_order=True)  # also one of which nothing is known but an alert
        .join(times, on="device", how="left", maintain_order="left")
        .with_columns(pl.col("newest", "arrived", "closed_to").fill_null(NEVER), partition=pl.lit(partition, pl.Int32))
        .select(list(DEVICES))
    )  # fmt: skip
    series = (
        known.with_columns(partition=pl.lit(partition, pl.Int32), series=pl.int_range(known.height, dtype=pl.UInt32, eager=True))
        .join(numbered(devices)[["device", "device_number"]], on="device", maintain_order="left")
        .join(last_rows, on=names, how="left", maintain_order="left")
        .with_columns(before_value="last", before_exact="last_exact", before_time="last_time", guard_upper=None, guard_lower=None)
        .select(pl.col(name).cast(dtype) for name, dtype in SERIES.items())
    )
    open_rows = open_rows.join(series[["series", "device_number", *names]], on=names, maintain_order="left")[list(OPEN_ROWS)]
    return State(
        positions={partition: position},
        series=series,
        devices=devices,
        windows=open_rows.group_by("device_number", "window").agg(rows=pl.len()).select(list(WINDOWS)),
        open=open_rows,
        active=active.join(series.select("series", *names), on=names)
        .drop(names)
        .select("rule", "series", pl.lit(partition, pl.Int32).alias("partition"), "severity", "firing", "since", "time", "value", "bound"),
        rules=None,
    )


def active_of(alerts: pl.DataFrame, state: State) -> pl.DataFrame:
    """Alerts that stand, with names, as ACTIVE of this state."""
    return alerts.join(state.series.select("series", "partition", *SERIES_NAMES), on=SERIES_NAMES).select(state.active.columns)


def _device_times(last_rows: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """device, newest, arrived, closed_to (null: never) of each device with a row or an event."""
    in_lake = last_rows[["device", "newest", "arrived", "closed_to"]]
    newest = stacked([in_lake[["device", "newest"]], events.select("device", newest="event_time")])
    newest = newest.group_by("device").agg(pl.col("newest").max())
    arrived = events.select("device", arrived="log_time", closed_to=pl.lit(None, pl.Int64))
    arrived = stacked([in_lake.drop("newest"), arrived]).group_by("device").agg(pl.col("arrived", "closed_to").max())
    return newest.join(arrived, on="device", how="left")
