"""How many series there may be: those that are known go on, new ones are taken while their device and partition have room.

A series is known from its first event that is not too late, for good. Nothing is ever forgotten, so a limit that is met
stays met: which series are known is a function of the stream, and of one entry either all events of a series are taken or none.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from pipeline.core.schema import SERIES_NAMES
from pipeline.core.semantics import NEVER, Semantics
from pipeline.core.setaside import SERIES_LIMIT, TOO_LATE, dead_rows

NEAR_SHARE = 0.8  # of a limit: from here on it is told


class Fullest(NamedTuple):
    """The partition and the device that are closest to their limit, and the share of it that they have."""

    partition: int | None = None
    partition_share: float = 0.0
    device: str | None = None
    device_share: float = 0.0


def fullest(series: pl.DataFrame, semantics: Semantics) -> Fullest:
    """Of the series that are known; of none: nothing is full."""
    if series.is_empty():
        return Fullest()
    partition, of_partition = series["partition"].value_counts().sort("count", "partition", descending=[True, False]).row(0)
    device, of_device = series.group_by("device").len().top_k(1, by="len").row(0)
    return Fullest(partition, of_partition / semantics.partition_series_max, device, of_device / semantics.device_series_max)


def taken(events: pl.DataFrame, series: pl.DataFrame, devices: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """The new series of `events` (in stream order; `series` is null where it is not known) that are taken: partition and names.

    The event times of those that are refused count here, but only behind the moment in which their device or partition was
    full, when nothing new is taken whatever the time.
    """
    known, names = series, list(SERIES_NAMES)
    new = events.filter(pl.col("series").is_null() & ~_beyond(events, devices, pl.lit(True), semantics))
    new = new.select("partition", *names).unique(names, keep="first", maintain_order=True)
    for column, most in (("device", semantics.device_series_max), ("partition", semantics.partition_series_max)):
        held = known.group_by(column).agg(held=pl.len().cast(pl.Int64))
        place = pl.col("held").fill_null(0) + pl.int_range(pl.len()).over(column)
        new = new.join(held, on=column, how="left", maintain_order="left").filter(place < most).drop("held")
    return new


def aside(events: pl.DataFrame, devices: pl.DataFrame, semantics: Semantics) -> list[pl.DataFrame]:
    """The events of no known series as dead letters: too late, or else beyond the limit. `events` are all, in stream order."""
    unknown = pl.col("series").is_null()
    beyond = _beyond(events, devices, ~unknown, semantics)
    return [
        dead_rows(events.filter(unknown & beyond), "timestamp", TOO_LATE),
        dead_rows(events.filter(unknown & ~beyond), "series", SERIES_LIMIT),
    ]


def _beyond(events: pl.DataFrame, devices: pl.DataFrame, counts: pl.Expr, semantics: Semantics) -> pl.Series:
    """Which events are too late, where those that `counts` is true of move their device's event time. Devices by name."""
    before = events.select("device").join(devices.select("device", "newest"), on="device", how="left", maintain_order="left")["newest"]
    moved = pl.when(counts).then(pl.col("event_time")).cum_max().forward_fill().over("device")
    running = pl.max_horizontal(moved, before).fill_null(NEVER)
    return events.select(beyond=running - pl.col("event_time") > semantics.lateness_max)["beyond"]
