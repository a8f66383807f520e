"""What the leader of the housekeeping tells of the whole: the lake's tables, Redis' memory, who works, the books."""

from __future__ import annotations

import math
import os
import socket

import redis

from pipeline import metrics
from pipeline.books import Ledger
from pipeline.settings import Settings, semantics_of
from pipeline.stores.connection import fullest_memory, now_seconds
from pipeline.stores.lake import Lake
from pipeline.stores.leases import Leases, live_members
from pipeline.stores.reports import Reports

REDIS_SECONDS = 5  # between looks at Redis

_BOOKS = {
    "accepted": metrics.BOOKS_ACCEPTED,
    "aggregated": metrics.BOOKS_AGGREGATED,
    "late": metrics.BOOKS_LATE,
    "repeated": metrics.BOOKS_REPEATED,
    "dead_lettered": metrics.BOOKS_DEAD_LETTERED,
    "in_flight": metrics.BOOKS_IN_FLIGHT,
    "imbalance": metrics.BOOKS_IMBALANCE,
}


class Gauges:
    """One leader's. `known` is False until Redis and the lake were looked at once, and the books are no number until they were, which
    under load may take long: no zero is told of what nobody has looked at."""

    def __init__(self, settings: Settings, client: redis.Redis, leases: Leases) -> None:
        self._settings = settings
        self._redis = client
        self._leases = leases
        self._lake = Lake(settings.lake)
        self._ledger = Ledger(client, Lake(settings.lake), semantics_of(settings), settings.partitions)
        self._seen: set[str] = set()
        self.forget()
        self._books: dict[str, int] | None = None
        self._name = f"housekeeping-{socket.gethostname()}-{os.getpid()}"

    @property
    def known(self) -> bool:
        return self._seen == {"redis", "lake"}

    def forget(self) -> None:
        """Another leads: what was found is old."""
        self._seen.clear()
        for gauge in _BOOKS.values():
            gauge.set(math.nan)

    def look_at_redis(self) -> None:
        """Memory, workers, partitions without a holder."""
        memory = fullest_memory(self._redis)
        metrics.REDIS_MEMORY_USED.set(memory.used)
        metrics.REDIS_MEMORY_MAX.set(memory.most)
        metrics.WORKERS_LIVE.set(len(live_members(self._redis, self._settings.lease_ms)))
        holders = self._leases.holders(self._settings.partitions)
        metrics.PARTITIONS_UNHELD.set(sum(owner is None for owner in holders.values()))
        self._seen.add("redis")
        Reports(self._redis).put(self._name, {"role": "maintenance", "books": self._books})

    def look_at_lake(self) -> None:
        """Each table's size."""
        for table, size in self._lake.sizes().items():
            metrics.LAKE_VERSION.labels(table).set(size["version"])
            metrics.LAKE_FILES.labels(table).set(size["files"])
            metrics.LAKE_ROWS.labels(table).set(size["rows"])
            metrics.LAKE_BYTES.labels(table).set(size["bytes"])
        self._seen.add("lake")

    def look_at_books(self) -> None:
        """The books, once every partition was seen at rest."""
        if (books := self._ledger.look()) is not None:
            for name, gauge in _BOOKS.items():
                gauge.set(books[name])
            self._books = {"at": now_seconds(self._redis), **books}
