"""A healthy fleet of the simulator as a recording, for `telemetry replay`: what must work anywhere has no other data."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from simulator.effects import Effects
from simulator.fleet import build_fleet
from simulator.polls import Polls
from simulator.signals import EPOCH_MS, Signals

SECONDS = 480
DAY_MS = 86_400_000
BACK_MS = 2 * 365 * DAY_MS  # to 2023: what closes its windows comes later


def recorded_fleet(folder: Path, devices: int = 24) -> Path:
    """The file. Without counters of 32 bits: of their wraps a GROUP BY knows nothing."""
    fleet = build_fleet(7, 2, devices, 6)
    began = EPOCH_MS + DAY_MS
    events = Polls(Signals(fleet), 5000).events(Effects(), began, began + SECONDS * 1000)
    names = fleet.series.select("device", "interface", "metric", "kind")[events["series"].to_numpy()]
    value = pl.coalesce(pl.col("integer").cast(pl.Float64), "number")
    stamp = pl.from_epoch(pl.col("stamp") - BACK_MS, "ms").dt.replace_time_zone("UTC")
    whole = pl.concat([events, names], how="horizontal").filter(pl.col("kind") != "counter32")
    path = folder / "fleet.parquet"
    whole.select("device", "interface", "metric", value=value, timestamp=stamp).write_parquet(path)
    return path
