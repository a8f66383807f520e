"""The truth about injected faults, written down, and compared with the alerts that somebody raised.

A truth frame has one row per fault: id, kind, device, interface, peer_device, peer_interface, start, end (exclusive),
seen (the series that show it: device, interface, metric), how, expected_visible, shown (events sent that show it).
Times are event time, UTC. As a file: NDJSON, one line per fault, appended when the fault is over.
"""

from datetime import timedelta
from pathlib import Path

import polars as pl

from simulator.faults import Fault
from simulator.fleet import Fleet

_TIME = pl.Datetime("us", "UTC")
SCHEMA = {
    "id": pl.Int64,
    "kind": pl.String,
    "device": pl.String,
    "interface": pl.String,
    "peer_device": pl.String,
    "peer_interface": pl.String,
    "start": _TIME,
    "end": _TIME,
    "seen": pl.List(pl.Struct({"device": pl.String, "interface": pl.String, "metric": pl.String})),
    "how": pl.String,
    "expected_visible": pl.Boolean,
    "shown": pl.Int64,
}


def truth_frame(fleet: Fleet, faults: list[Fault], shown: dict[int, int], until_ms: int | None = None) -> pl.DataFrame:
    """Name the places of `faults`. One that was still on at `until_ms`, when the run ended, ends there."""
    names, ports, series = fleet.devices["device"], fleet.interfaces, fleet.series.select("device", "interface", "metric")
    rows = []
    for fault in faults:
        peer = None if fault.port is None else ports["peer"][fault.port]
        rows.append(
            {
                "id": fault.number,
                "kind": fault.kind,
                "device": names[fault.device],
                "interface": "" if fault.port is None else ports["interface"][fault.port],
                "peer_device": None if peer is None else names[ports["at"][peer]],
                "peer_interface": None if peer is None else ports["interface"][peer],
                "start": fault.start * 1000,
                "end": (fault.end if until_ms is None else min(fault.end, until_ms)) * 1000,
                "seen": series[fault.seen].to_dicts(),
                "how": fault.how,
                "expected_visible": fault.visible,
                "shown": shown.get(fault.number, 0),
            }
        )
    return pl.DataFrame(rows, schema=SCHEMA | {"start": pl.Int64, "end": pl.Int64}).with_columns(pl.col("start", "end").cast(_TIME))


def append_truth(path: Path, truth: pl.DataFrame) -> None:
    """Add rows to a truth file, so that a killed run loses only the faults it was in."""
    with path.open("ab") as file:
        file.write(truth.with_columns(pl.col("start", "end").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")).write_ndjson().encode())


def read_truth(path: Path) -> pl.DataFrame:
    """A truth file as a frame; an empty file is a frame without rows."""
    if not path.stat().st_size:
        return pl.DataFrame(schema=SCHEMA)
    texts = pl.read_ndjson(path, schema=SCHEMA | {"start": pl.String, "end": pl.String})
    return texts.with_columns(pl.col("start", "end").str.to_datetime(time_unit="us", time_zone="UTC"))


def match_faults(truth: pl.DataFrame, alerts: pl.DataFrame, grace: timedelta = timedelta(seconds=30)) -> pl.DataFrame:
    """The truth with `outcome` and `delay` (start of the fault to the first alert on it; null without one).

    alerts: device, interface, metric, rule, severity, fired_at (event time). A fault is `found` when an alert on a series
    that shows it fired from start to end + grace. Without one it is `missed`, or `not expected`: nothing of it can be seen
    by thresholds (`expected_visible` is false), or no event that shows it was sent. An alert counts for every fault
    it fits; alerts that fit none are not judged here.
    """
    shows = truth.select("id", "start", "end", "seen").explode("seen").unnest("seen").drop_nulls("metric")
    texts = pl.col("device", "interface", "metric").cast(pl.String).fill_null("")  # a frame made of no alerts has no types
    fired = alerts.select(texts, pl.col("fired_at").cast(_TIME))
    first = (
        shows.join(fired, on=["device", "interface", "metric"])
        .filter(pl.col("fired_at").is_between(pl.col("start"), pl.col("end") + grace))
        .group_by("id")
        .agg(delay=(pl.col("fired_at") - pl.col("start")).min())
    )
    expected = pl.col("expected_visible") & (pl.col("shown") > 0)
    outcome = pl.when(pl.col("delay").is_not_null()).then(pl.lit("found"))
    outcome = outcome.when(expected).then(pl.lit("missed")).otherwise(pl.lit("not expected"))
    return truth.join(first, on="id", how="left", maintain_order="left").with_columns(outcome=outcome)


def count_outcomes(matched: pl.DataFrame) -> dict[str, int]:
    """{"injected", "found", "missed", "not_expected"}; injected is the sum of the others."""
    count = dict(matched["outcome"].value_counts().iter_rows())
    names = {"found": "found", "missed": "missed", "not expected": "not_expected"}
    return {"injected": matched.height} | {key: count.get(outcome, 0) for outcome, key in names.items()}
