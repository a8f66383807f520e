"""The limit of the machine: one Polars query over the same events in memory, with the same statistics, in one process.

`python -m benchmarks.limit FILE.ndjson` prints what it found; who starts it measures what it cost, start-up included.
"""

from __future__ import annotations

import json
import sys

import polars as pl

from benchmarks.workload import THRESHOLDS, WINDOW_MS

SCHEMA = {"device": pl.String, "interface": pl.String, "metric": pl.String, "value": pl.Float64, "timestamp": pl.Int64}


def main(path: str) -> None:
    """Parse, group by series and window, and flag what lies above a threshold."""
    events = pl.read_ndjson(path, schema=SCHEMA)
    value = pl.col("value")
    windows = events.group_by("device", "interface", "metric", pl.col("timestamp") // WINDOW_MS * WINDOW_MS).agg(
        value.len().alias("count"),
        value.sum().alias("sum"),
        value.min().alias("min"),
        value.max().alias("max"),
        value.mean().alias("mean"),
        value.std().alias("stddev"),
        value.first().alias("first"),
        value.last().alias("last"),
        *(value.quantile(share, "linear").alias(name) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))),
    )
    bounds = pl.DataFrame({"metric": list(THRESHOLDS), "bound": list(THRESHOLDS.values())})
    above = events.join(bounds, on="metric").filter(pl.col("value") > pl.col("bound"))
    print(json.dumps({"windows": windows.height, "anomalies": above.height}))


if __name__ == "__main__":
    main(sys.argv[1])
