"""A few workers, a few events and a clock, for what one history shows."""

from __future__ import annotations

import polars as pl

from pipeline.testing import MemoryRedis, MemoryTables
from tests.simulation.machine import SETTINGS, Process, payload_of_rows


class World:
    """Workers on the stores in memory; time moves by hand."""

    def __init__(self):
        self.redis, self.tables, self.seconds = MemoryRedis(), MemoryTables(), 1000.0
        self.started = 0

    def worker(self, partition_series_max=1000):
        limited = SETTINGS.model_copy(update={"partition_series_max": partition_series_max, "device_series_max": 1000})
        self.started += 1
        worker = Process(f"w{self.started}", self.redis, self.tables, lambda: self.seconds, limited).worker
        worker.start()
        return worker

    def turn(self, worker, times=2):
        for _ in range(times):
            self.seconds += 1
            self.redis.now_ms += 1000
            worker.renew()
            worker.turn()

    def send(self, rows):
        """An entry of (device, metric, value), and how many seconds ago it was where it was not now."""
        now = self.redis.now_ms // 1000
        dated = [(device, metric, now - sum(behind), value) for device, metric, value, *behind in rows]
        self.redis.append(0, payload_of_rows(dated), len(rows))

    def hold_no_names(self):
        """As a lake outside of the process: what it has is texts."""

        def texts(frame):
            return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))

        self.tables.rows = {table: [texts(frame) for frame in frames] for table, frames in self.tables.rows.items()}

    def leave(self, worker):
        worker.stop()
        worker.leave()
