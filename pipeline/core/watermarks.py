"""Each device's event time, judged row by row in stream order, and which windows it closes. It never goes back.

A device's watermark is max(newest - disorder, closed_to): `newest` is the largest event time seen, `closed_to` the end of
the last window closed before its time, by silence or by the bound on open rows. Every rule here depends on one device's
rows and on the ids of its partition's entries alone, never on where the stream is cut into micro-batches.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.core.runs import Runs
from pipeline.core.schema import by_place, placed
from pipeline.core.semantics import NEVER, Semantics

# Every device known. Its number, by which all else names it, is its place here; only `State.without_partition` moves it.
DEVICES = pl.Schema(
    {"device": pl.Categorical(), "partition": pl.Int32(), "newest": pl.Int64(), "arrived": pl.Int64(), "closed_to": pl.Int64()}
)
# The windows that are open, by device, with the number of rows they hold.
WINDOWS = pl.Schema({"device_number": pl.UInt32(), "window": pl.Int64(), "rows": pl.UInt32()})
# Windows that close: `newest` and `arrived` are their device's at that moment; recovery reads them back from the lake.
CLOSINGS = pl.Schema({"device_number": pl.UInt32(), "window": pl.Int64(), "newest": pl.Int64(), "arrived": pl.Int64()})
NO_CLOSINGS = CLOSINGS.to_frame()


def of_device(frame: pl.DataFrame, devices: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """`frame` with columns of the device that each row's `device_number` names."""
    return by_place(frame, "device_number", devices, *columns)


def numbered(devices: pl.DataFrame) -> pl.DataFrame:
    """`devices` with the number of each, as a column to join on."""
    return devices.with_row_index("device_number")


def running(rows: pl.DataFrame, devices: pl.DataFrame) -> pl.Expr:
    """The newest event time of each row's device up to and including that row.

    A row is late by the watermark before it; using the one after it is the same, as no row lies behind itself.
    """
    before = devices["newest"][rows["device_number"]]
    return pl.max_horizontal(pl.col("event_time").cum_max().over("device_number"), before)


def strides(rows: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """How the devices of `rows` move on, a row per device and window end that its event time has come to, in the order of both.

    `passed` counts window ends; `running` and `first` are event and log time of the row that came to it, `largest` and
    `last` those of the last row before the next.
    """
    of_device = np.argsort(rows["device_number"].to_numpy(), kind="stable")  # and within it in stream order, as event time goes on
    moves = rows["device_number", "running", "log_time"][of_device]
    moves = moves.with_columns(passed=(moves["running"] - semantics.disorder) // semantics.width)
    runs = Runs.of(moves, "device_number", "passed")
    last = runs.last(moves)
    return runs.first(moves).rename({"log_time": "first"}).with_columns(last["running"].alias("largest"), last["log_time"].alias("last"))


def arrive(devices: pl.DataFrame, moves: pl.DataFrame) -> pl.DataFrame:
    """`devices` with `first` and `last`, the log times of each one's rows in this round, and `largest`, its event time after them.

    Null for a device without rows. `moves`: its strides.
    """
    runs = Runs.of(moves, "device_number")
    first, last = runs.first(moves), runs.last(moves)
    said = (first["first"], last["last"], last["largest"])
    return devices.hstack([placed(values, first["device_number"], devices.height) for values in said])


def silent(windows: pl.DataFrame, devices: pl.DataFrame, at: str, semantics: Semantics) -> pl.DataFrame:
    """The open windows that silence closes at the log time in column `at` of `devices` (null: not judged).

    A silent device's windows close as if its event time had moved on with the log since it sent its last row.
    """
    silence = devices[at] - devices["arrived"]
    quiet = (silence > semantics.idle_after) & (devices["arrived"] != NEVER)
    if windows.is_empty() or not quiet.any():
        return NO_CLOSINGS
    passed = (devices["newest"] + silence - semantics.disorder).zip_with(quiet, pl.Series([None], dtype=pl.Int64))
    ends = windows["window"] + semantics.width
    return of_device(windows.filter(ends <= passed[windows["device_number"]]), devices, "newest", "arrived").select(list(CLOSINGS))


def passed(windows: pl.DataFrame, devices: pl.DataFrame, moves: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """The open windows that their device's event time has passed, each with the row that did it, as its strides tell."""
    due = windows["window"] + semantics.width <= (devices["newest"] - semantics.disorder)[windows["device_number"]]
    if not due.any():
        return NO_CLOSINGS
    closing = windows.filter(due).with_columns(passed=(pl.col("window") + semantics.width).floordiv(semantics.width))
    first = closing.sort("passed").join_asof(
        moves.sort("passed"), on="passed", by="device_number", strategy="forward", check_sortedness=False
    )
    return first.select("device_number", "window", newest="running", arrived="first")


def close_early(devices: pl.DataFrame, closings: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """`devices` after windows were closed before their time: `closed_to` moves to the end of the last of them."""
    if closings.is_empty():
        return devices
    return devices.with_columns(closed_to=pl.max_horizontal("closed_to", last_closed(devices, closings) + semantics.width))


def last_closed(devices: pl.DataFrame, closings: pl.DataFrame) -> pl.Series:
    """The start of the last window of each device that closes; null: none does.

    Windows of a device close in their order, so that this parts all its rows into those that are closed and those still open.
    """
    last = closings.group_by("device_number").agg(pl.col("window").max())
    return placed(last["window"], last["device_number"], devices.height)


def heaviest(windows: pl.DataFrame, devices: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """The windows to close so that no partition holds more than `open_rows_max` rows.

    The oldest window of the heaviest device, again and again (ties: the first name), down to seven eighths of the
    bound, so that the next entry does not meet it at once.
    """
    windows = of_device(windows, devices, "partition", "device").with_columns(pl.col("device").cast(pl.String))
    held = windows.group_by("partition").agg(pl.col("rows").sum())
    chosen = []
    for partition, rows in held.filter(pl.col("rows") > semantics.open_rows_max).sort("partition").iter_rows():
        excess = rows - semantics.open_rows_max * 7 // 8
        mine = windows.filter(pl.col("partition") == partition)
        queue = {
            key: list(group.sort("window", descending=True).select("window", "rows").iter_rows())
            for key, group in mine.group_by("device", "device_number")
        }
        weight = {key: sum(rows for _, rows in held_by) for key, held_by in queue.items()}
        while excess > 0:
            device = min(weight, key=lambda key: (-weight[key], key))
            window, freed = queue[device].pop()
            weight[device] -= freed
            excess -= freed
            chosen.append((device[1], window))
    frame = pl.DataFrame(chosen, schema={"device_number": pl.UInt32(), "window": pl.Int64()}, orient="row")
    return of_device(frame, devices, "newest", "arrived").select(list(CLOSINGS))
