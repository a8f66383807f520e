"""The books: every accepted event is aggregated, late, repeated, dead-lettered or in flight. Exact when nothing moves.

What is in flight is not assumed but counted: the entries that the streams still hold are replayed as a new holder would.
`Ledger` is exact also while things move, one partition at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import redis

from pipeline.core.recovery import recover
from pipeline.core.semantics import Semantics
from pipeline.stores.alertlog import NAMED
from pipeline.stores.entries import to_batch
from pipeline.stores.lake import Lake
from pipeline.stores.streams import Entry, Streams


def balance(client: redis.Redis, lake: Lake, semantics: Semantics, partitions: int) -> dict[str, int | bool]:
    """{accepted, aggregated, late, repeated, dead_lettered, in_flight, windows, anomalies, balanced}, in events."""
    streams = Streams(client)
    accepted = sum(streams.accepted(partition) for partition in range(partitions))
    stood = lake.positions("aggregates", range(partitions))
    last_rows = lake.last_rows(range(partitions), semantics)
    in_flight = 0
    ahead: dict[int, list[int]] = {}  # entries beyond the position: some of their events may be dead letters already
    for partition in range(partitions):
        entries = streams.outstanding(partition)
        position = stood[partition]
        refused = lake.refused({partition: [entry.id for entry in entries if entry.id <= position]})[partition]
        in_flight += _in_flight(partition, position, entries, last_rows[partition], refused, semantics)
        ahead[partition] = [entry.id for entry in entries if entry.id > position]
    in_flight -= lake.dead_lettered(ahead)
    counts = lake.counts()
    accepted -= sum(lake.expired(range(partitions)).values())
    accounted = counts["aggregated"] + counts["late"] + counts["repeated"] + counts["dead_lettered"] + in_flight
    return {"accepted": accepted, **counts, "in_flight": in_flight, "balanced": accepted == accounted}


def _in_flight(
    partition: int, position: int, entries: Sequence[Entry], last_rows: pl.DataFrame, refused: pl.DataFrame, semantics: Semantics
) -> int:
    """Events of entries that are not settled: rows of open windows at the position, and all that came in beyond it."""
    replayed = to_batch({partition: [entry for entry in entries if entry.id <= position]})
    state = recover(partition, position, last_rows, replayed, NAMED.to_frame(), refused, semantics)
    return state.open.height + sum(entry.event_count + entry.dead_letter_count for entry in entries if entry.id > position)


ACCOUNTS = ("aggregated", "late", "repeated", "dead_lettered", "in_flight")


class Ledger:
    """The books while everything moves, for gauges and alerts. A partition's figures are those of a moment in which nothing of it
    was committed: what Redis said lies between two looks at the lake that found the same position."""

    def __init__(self, client: redis.Redis, lake: Lake, semantics: Semantics, partitions: int) -> None:
        self._streams = Streams(client)
        self._lake = lake
        self._semantics = semantics
        self._partitions = range(partitions)
        self._figures: dict[int, dict[str, int]] = {}

    def look(self) -> dict[str, int] | None:
        """{accepted, aggregated, late, repeated, dead_lettered, in_flight, imbalance}; None: some partition never stood still yet.

        A partition that did not stand still this time keeps the figures that it had.
        """
        still = self._lake.standing_still()
        stood = still.positions("aggregates", self._partitions)
        seen = {}
        for partition in self._partitions:
            accepted, upto = self._streams.accepted_upto(partition)
            entries = [entry for entry in self._streams.outstanding(partition) if entry.id <= upto]
            seen[partition] = accepted, upto, entries
        stands = self._lake.positions("aggregates", self._partitions)
        seen = {partition: found for partition, found in seen.items() if stands[partition] == stood[partition]}
        ahead = {p: [entry.id for entry in entries if entry.id > stood[p]] for p, (_, _, entries) in seen.items()}
        counted = still.counts_of({p: upto for p, (_, upto, _) in seen.items()}, ahead)
        expired = still.expired(seen)
        last_rows = still.last_rows(seen, self._semantics)
        refused = still.refused({p: [entry.id for entry in entries if entry.id <= stood[p]] for p, (_, _, entries) in seen.items()})
        for partition, *counts in counted.select("partition", *ACCOUNTS[:-1]).iter_rows():
            accepted, _, entries = seen[partition]
            accepted -= expired[partition]
            in_flight = _in_flight(partition, stood[partition], entries, last_rows[partition], refused[partition], self._semantics)
            figures = dict(zip(ACCOUNTS, (*counts, in_flight), strict=True))
            self._figures[partition] = {"accepted": accepted, **figures, "imbalance": accepted - sum(figures.values())}
        if self._figures.keys() < set(self._partitions):
            return None
        return pl.DataFrame(list(self._figures.values())).sum().row(0, named=True)
