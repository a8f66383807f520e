"""What a worker tells of itself in numbers: counters as it goes, gauges every few seconds. It decides nothing."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Collection
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from pipeline import metrics
from pipeline.commits import COMMIT_ORDER
from pipeline.core.alerts import PHASES
from pipeline.core.batch import Output, State
from pipeline.core.cardinality import Fullest, fullest
from pipeline.core.fleet import condition
from pipeline.core.rules import SEVERITIES
from pipeline.core.semantics import Semantics
from pipeline.errors import Unavailable
from pipeline.workerstores import Stores

WATCH_SECONDS = 5


class Standing(NamedTuple):
    """Where a worker stands at one moment."""

    held: Collection[int]
    state: State
    uncommitted_rows: int
    rules_version: int
    committing_seconds: float  # since the commit began that is not done


def count(output: Output) -> None:
    """Add what one step made."""
    rows = output.aggregates
    if rows.height:
        metrics.WINDOWS_CLOSED.inc(rows.height - rows["revision"].sum())
        metrics.EVENTS_REPEATED.inc(rows["repeated"].sum())
    if output.late.height:
        metrics.EVENTS_LATE.inc(output.late.height)
    if output.dead_letters.height:
        metrics.count_reasons(metrics.DEAD_LETTERS, dict(output.dead_letters["reason"].value_counts().iter_rows()))
    if output.transitions.height:
        for phase, severity, transitions in output.transitions.group_by("phase", "severity").agg(pl.len()).iter_rows():
            metrics.ALERT_TRANSITIONS.labels(phase, SEVERITIES[severity - 1]).inc(transitions)


class Watch:
    """The gauges of one worker; those of partitions that it has given away go."""

    def __init__(self, name: str, stores: Stores, semantics: Semantics, standing: Callable[[], Standing]) -> None:
        self._name = name
        self._streams, self._reports = stores.streams, stores.reports
        self._semantics = semantics
        self._standing = standing
        self._shown: set[int] = set()
        for table in COMMIT_ORDER:  # from 0 on: of a counter that begins at its first count, no rate shows that
            metrics.COMMIT_FAILURES.labels(table)
        metrics.show_reasons(metrics.DEAD_LETTERS)
        for phase, severity in product(PHASES, SEVERITIES):
            metrics.ALERT_TRANSITIONS.labels(phase, severity)

    def look(self) -> None:
        """Set every gauge, and say in Redis how it stands. While Redis is away, what was told last stays."""
        at = self._standing()
        metrics.PARTITIONS_HELD.set(len(at.held))
        metrics.OPEN_ROWS.set(at.state.open.height)
        metrics.SERIES_KNOWN.set(at.state.series.height)
        full = fullest(at.state.series, self._semantics)
        metrics.PARTITION_SERIES_SHARE.set(full.partition_share)
        metrics.DEVICE_SERIES_SHARE.set(full.device_share)
        metrics.UNCOMMITTED_ROWS.set(at.uncommitted_rows)
        metrics.RULES_VERSION.set(at.rules_version)
        report = self._report(at, full)
        metrics.DEVICES_SILENT.set(report["fleet"]["silent"]["devices"])
        try:
            self._reports.put(self._name, report)
            found = self._streams.backlog(sorted(at.held))
        except Unavailable:
            return
        for partition in self._shown - found.keys():
            for gauge in (metrics.READ_LAG_SECONDS, metrics.BACKLOG_ENTRIES, metrics.BACKLOG_EVENTS):
                gauge.remove(str(partition))
        for partition, backlog in found.items():
            metrics.READ_LAG_SECONDS.labels(str(partition)).set(backlog.oldest_seconds)
            metrics.BACKLOG_ENTRIES.labels(str(partition)).set(backlog.entries)
            metrics.BACKLOG_EVENTS.labels(str(partition)).set(backlog.events)
        self._shown = set(found)

    def _report(self, at: Standing, full: Fullest) -> dict[str, Any]:
        return {
            "role": "worker",
            "partitions": sorted(at.held),
            "rules_version": at.rules_version,
            "committing_seconds": round(at.committing_seconds, 3),
            "open_rows": at.state.open.height,
            "uncommitted_rows": at.uncommitted_rows,
            "series": at.state.series.height,
            "fullest": full._asdict(),
            "memory_bytes": resident_bytes(),
            "fleet": condition(at.state.devices, self._semantics, time.time_ns() // 1000),
        }


def resident_bytes() -> int | None:
    """Memory of this process, where the system tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None
