"""What a worker tells of itself in numbers: counters as it goes, gauges every few seconds. It decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import polars as pl

from pipeline import metrics
from pipeline.core.batch import Output, State
from pipeline.errors import Unavailable
from pipeline.stores.streams import Streams

WATCH_SECONDS = 5


class Standing(NamedTuple):
    """Where a worker stands at one moment."""

    held: Collection[int]
    state: State
    uncommitted_rows: int
    rules_version: int
    events_per_entry: float  # of those read last


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
            metrics.ALERT_TRANSITIONS.labels(phase, ("warning", "critical")[severity - 1]).inc(transitions)


class Watch:
    """The gauges of one worker; those of partitions that it has given away go."""

    def __init__(self, streams: Streams, standing: Callable[[], Standing]) -> None:
        self._streams = streams
        self._standing = standing
        self._shown: set[int] = set()

    def look(self) -> None:
        """Set every gauge. How far behind it is cannot be told while Redis is away: what was told last stays."""
        at = self._standing()
        metrics.PARTITIONS_HELD.set(len(at.held))
        metrics.OPEN_ROWS.set(at.state.open.height)
        metrics.SERIES_KNOWN.set(at.state.series.height)
        metrics.UNCOMMITTED_ROWS.set(at.uncommitted_rows)
        metrics.RULES_VERSION.set(at.rules_version)
        try:
            found = self._streams.backlog(sorted(at.held))
        except Unavailable:
            return
        for partition in self._shown - found.keys():
            for gauge in (metrics.READ_LAG_SECONDS, metrics.BACKLOG_ENTRIES, metrics.BACKLOG_EVENTS):
                gauge.remove(str(partition))
        for partition, backlog in found.items():
            metrics.READ_LAG_SECONDS.labels(str(partition)).set(backlog.oldest_seconds)
            metrics.BACKLOG_ENTRIES.labels(str(partition)).set(backlog.entries)
            metrics.BACKLOG_EVENTS.labels(str(partition)).set(round(backlog.entries * at.events_per_entry))
        self._shown = set(found)
