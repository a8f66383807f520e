"""How the devices of a worker are: whose clock is behind or ahead, who is silent, and how far event time has come."""

from __future__ import annotations

import polars as pl

from pipeline.core.semantics import NEVER, Semantics

SHOWN_MAX = 5  # devices named of each kind
SKEW_US = 2_000_000  # an event from further in the future than its way could explain
BEHIND_US = 60_000_000


def condition(devices: pl.DataFrame, semantics: Semantics, now_us: int) -> dict[str, object]:
    """Counts of devices, and the worst of each kind with how many seconds.

    `devices`: watermarks.DEVICES. `behind`: what it sends is older than a minute when it arrives; `ahead`: its clock is;
    `silent`: nothing came for `idle_after`. `watermarks`: per partition, of the device that is furthest behind and not silent.
    """
    known = devices.filter(pl.col("newest") > NEVER, pl.col("arrived") > NEVER).with_columns(
        pl.col("device").cast(pl.String), late_us=pl.col("arrived") - pl.col("newest"), silent_us=now_us - pl.col("arrived")
    )
    silent = pl.col("silent_us") > semantics.idle_after
    kinds = {
        "behind": (known.filter(~silent & (pl.col("late_us") > BEHIND_US)), "late_us"),
        "ahead": (known.filter(~silent & (pl.col("late_us") < -SKEW_US)).with_columns(-pl.col("late_us")), "late_us"),
        "silent": (known.filter(silent), "silent_us"),
    }
    watermark = pl.max_horizontal(pl.col("newest") - semantics.disorder, "closed_to")
    watermarks = known.filter(~silent).group_by("partition").agg(watermark.min())
    found: dict[str, object] = {"devices": devices.height, "watermarks": {str(p): at / 1e6 for p, at in watermarks.iter_rows()}}
    for kind, (rows, column) in kinds.items():
        worst = rows.sort(column, descending=True).head(SHOWN_MAX).select("device", column)
        found[kind] = {"devices": rows.height, "worst": [[device, round(us / 1e6, 1)] for device, us in worst.iter_rows()]}
    return found
