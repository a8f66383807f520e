"""The books: every accepted event is aggregated, late, repeated, dead-lettered or in flight. Exact when nothing moves.

What is in flight is not assumed but counted: the entries that the streams still hold are replayed as a new holder would.
"""

from __future__ import annotations

import redis

from pipeline.core.recovery import recover
from pipeline.core.semantics import Semantics
from pipeline.stores.alertlog import NAMED
from pipeline.stores.entries import to_batch
from pipeline.stores.lake import Lake
from pipeline.stores.streams import Streams


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
        replayed = to_batch({partition: [entry for entry in entries if entry.id <= position]})
        state = recover(partition, position, last_rows[partition], replayed, NAMED.to_frame(), semantics)
        beyond = [entry for entry in entries if entry.id > position]
        in_flight += state.open.height + sum(entry.event_count + entry.dead_letter_count for entry in beyond)
        ahead[partition] = [entry.id for entry in beyond]
    in_flight -= lake.dead_lettered(ahead)
    counts = lake.counts()
    accounted = counts["aggregated"] + counts["late"] + counts["repeated"] + counts["dead_lettered"] + in_flight
    return {"accepted": accepted, **counts, "in_flight": in_flight, "balanced": accepted == accounted}
