"""A few workers, a few events and a clock, for what one history shows."""

from __future__ import annotations

import contextlib

import polars as pl

from pipeline.errors import Unavailable
from pipeline.testing import MemoryLake, MemoryRedis, MemoryTables
from tests.simulation.machine import DEVICES, SETTINGS, Process, payload_of_rows


class World:
    """Workers on the stores in memory; time moves by hand."""

    def __init__(self):
        self.redis, self.tables, self.seconds = MemoryRedis(), MemoryTables(), 1000.0
        self.workers = []

    def worker(self, partition_series_max=1000, **settings):
        limits = {"partition_series_max": partition_series_max, "device_series_max": 1000, **settings}
        limited = SETTINGS.model_copy(update=limits)
        self.process = Process(f"w{len(self.workers) + 1}", self.redis, self.tables, lambda: self.seconds, limited)
        self.workers.append(self.process.worker)
        self.process.worker.start()
        return self.process.worker

    def turn(self, worker, times=2):
        for _ in range(times):
            self.seconds += 1
            self.redis.now_ms += 1000
            with contextlib.suppress(Unavailable):
                worker.renew()
                worker.turn()

    def send(self, rows):
        """An entry in each partition of (device, metric, value), and how many seconds ago it was where it was not now."""
        now = self.redis.now_ms // 1000
        dated = [(device, metric, now - sum(behind), value) for device, metric, value, *behind in rows]
        for partition in range(SETTINGS.partitions):
            mine = [row for row in dated if DEVICES.get(row[0], 0) == partition]
            if mine:
                self.redis.append(partition, payload_of_rows(mine), len(mine))

    def keep_leases(self):
        """They were renewed while the time went by."""
        self.redis.leases = {
            partition: (token, owner, self.redis.now_ms + SETTINGS.lease_ms) for partition, (token, owner, _) in self.redis.leases.items()
        }

    def hold_no_names(self):
        """As a lake outside of the process: what it has is texts."""

        def texts(frame):
            return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))

        self.tables.rows = {table: [texts(frame) for frame in frames] for table, frames in self.tables.rows.items()}

    def close_windows(self, worker):
        """Time enough for all that is open."""
        for _ in range(8):
            self.redis.now_ms += 20_000
            self.turn(worker)

    def counts(self):
        return MemoryLake(self.tables).counts()

    def counted(self):
        """How many events each metric has in the aggregates."""
        rows = self.tables.table("aggregates").group_by(pl.col("metric").cast(pl.String)).agg(pl.col("count").sum())
        return dict(rows.iter_rows())

    def leave(self, worker):
        worker.stop()
        worker.leave()
