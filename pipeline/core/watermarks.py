"""Each device's event time, judged row by row in stream order, and which windows it closes. It never goes back.

A device's watermark is max(newest - disorder, closed_to): `newest` is the largest event time seen, `closed_to` the end of
the last window closed before its time, by silence or by the bound on open rows. Every rule here depends on one device's
rows and on the ids of its partition's entries alone, never on where the stream is cut into micro-batches.
"""

from __future__ import annotations

import polars as pl

from pipeline.core.semantics import NEVER, Semantics

DEVICES = pl.Schema(
    {"device": pl.Categorical(), "partition": pl.Int32(), "newest": pl.Int64(), "arrived": pl.Int64(), "closed_to": pl.Int64()}
)
# The windows that are open, by device, with the number of rows they hold.
WINDOWS = pl.Schema({"device": pl.Categorical(), "partition": pl.Int32(), "window": pl.Int64(), "rows": pl.UInt32()})
# Windows that close: `newest` and `arrived` are their device's at that moment; recovery reads them back from the lake.
CLOSINGS = pl.Schema({"device": pl.Categorical(), "window": pl.Int64(), "newest": pl.Int64(), "arrived": pl.Int64()})


def judge(rows: pl.DataFrame, devices: pl.DataFrame) -> pl.DataFrame:
    """Add `running`: the newest event time of each row's device up to and including that row.

    A row is late by the watermark before it; using the one after it is the same, as no row lies behind itself.
    """
    known = rows.join(devices.select("device", before="newest"), on="device", how="left", maintain_order="left")
    running = pl.max_horizontal(pl.col("event_time").cum_max().over("device"), pl.col("before").fill_null(NEVER))
    return known.with_columns(running=running).drop("before")


def arrive(devices: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """`devices` with those that are new in `rows`, and `first` and `last`: log times of each one's rows here, or null."""
    arrivals = rows.group_by("device").agg(
        pl.col("partition").first(), first=pl.col("log_time").min(), last=pl.col("log_time").max(), largest=pl.col("running").max()
    )
    joined = devices.join(arrivals, on="device", how="full", coalesce=True)
    return joined.select(
        "device",
        pl.coalesce("partition", "partition_right").alias("partition"),
        pl.col("newest", "arrived", "closed_to").fill_null(NEVER),
        "first",
        "last",
        "largest",
    )


def silent(windows: pl.DataFrame, devices: pl.DataFrame, at: pl.Expr, semantics: Semantics) -> pl.DataFrame:
    """The open windows that silence closes at log time `at` (an expression over `devices`; null: not judged).

    A silent device's windows close as if its event time had moved on with the log since it sent its last row.
    """
    if windows.is_empty():
        return CLOSINGS.to_frame()
    quiet = devices.filter((at - pl.col("arrived") > semantics.idle_after) & (pl.col("arrived") != NEVER))
    if quiet.is_empty():
        return CLOSINGS.to_frame()
    quiet = quiet.select("device", "newest", "arrived", silence=at - pl.col("arrived"))
    passed = pl.col("newest") + pl.col("silence") - semantics.disorder
    closing = windows.join(quiet, on="device").filter(pl.col("window") + semantics.width <= passed)
    return closing.select(list(CLOSINGS))


def passed(windows: pl.DataFrame, devices: pl.DataFrame, rows: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """The open windows that their device's event time has passed, each with the row of `rows` that did it."""
    reached = pl.col("window") + semantics.width + semantics.disorder
    closing = windows.join(devices, on="device").filter(reached <= pl.col("newest")).select("device", "window", reached=reached)
    if closing.is_empty():
        return CLOSINGS.to_frame()
    steps = rows.filter(pl.col("event_time") == pl.col("running")).select("device", "running", "log_time")
    steps = steps.join(closing.select("device").unique(), on="device", how="semi", maintain_order="left")
    steps = steps.unique(["device", "running"], keep="first", maintain_order=True).sort("running", maintain_order=True)
    first = closing.sort("reached").join_asof(
        steps, left_on="reached", right_on="running", by="device", strategy="forward", check_sortedness=False
    )
    return first.select("device", "window", newest="running", arrived="log_time")


def close_early(devices: pl.DataFrame, closings: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """`devices` after windows were closed before their time: `closed_to` moves to the end of the last of them."""
    if closings.is_empty():
        return devices
    ends = closings.group_by("device").agg(end=pl.col("window").max() + semantics.width)
    return (
        devices.join(ends, on="device", how="left", maintain_order="left")
        .with_columns(closed_to=pl.max_horizontal("closed_to", "end"))
        .drop("end")
    )


def heaviest(windows: pl.DataFrame, devices: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """The windows to close so that no partition holds more than `open_rows_max` rows.

    The oldest window of the heaviest device, again and again (ties: the first name), down to seven eighths of the
    bound, so that the next entry does not meet it at once.
    """
    held = windows.group_by("partition").agg(pl.col("rows").sum())
    chosen = []
    for partition, rows in held.filter(pl.col("rows") > semantics.open_rows_max).sort("partition").iter_rows():
        excess = rows - semantics.open_rows_max * 7 // 8
        mine = windows.filter(pl.col("partition") == partition).with_columns(pl.col("device").cast(pl.String))
        weight = dict(mine.group_by("device").agg(pl.col("rows").sum()).iter_rows())
        queue = {
            key[0]: list(group.sort("window", descending=True).select("window", "rows").iter_rows())
            for key, group in mine.group_by("device")
        }
        while excess > 0:
            device = min(weight, key=lambda name: (-weight[name], name))
            window, freed = queue[device].pop()
            weight[device] -= freed
            excess -= freed
            chosen.append((device, window))
    frame = pl.DataFrame(chosen, schema={"device": pl.String(), "window": pl.Int64()}, orient="row").cast({"device": pl.Categorical()})
    return frame.join(devices.select("device", "newest", "arrived"), on="device").select(list(CLOSINGS))
