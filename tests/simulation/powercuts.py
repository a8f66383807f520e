"""The same machine on a Redis that loses its last moments, with a clock that jumps: what an event may come to then.

What Redis forgot is counted once or not at all: whoever had read it may still commit it, or die. All else is counted exactly once,
also what got the id of a forgotten entry. (An anomaly or a dead letter may stand twice: of the side tables, which are written first,
where a zombie commits at last what it had read before, and so fences off who has read on since.)
"""

from __future__ import annotations

import polars as pl
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.simulation.machine import DEVICES, SETTINGS, Machine, faults_seen, payload_of_rows

ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from((0, 0, 1, 6, 15, 30, 90, -20))), min_size=1, max_size=4)


class PowerCuts(Machine):
    """Every event is a series of its own, so that it can be found again."""

    settings = SETTINGS.model_copy(update={"partition_series_max": 10_000, "device_series_max": 10_000})

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[bytes, list[str]] = {}  # payload -> its metrics
        self.forgotten: set[bytes] = set()
        self.numbered = 0

    @rule(rows=ROWS)
    def send(self, rows: list) -> None:
        now, at = self._now(), self.numbered
        self.numbered += len(rows)
        for partition in range(SETTINGS.partitions):
            mine = [(device, f"m{at + n}", now - behind, 5) for n, (device, behind) in enumerate(rows) if DEVICES[device] == partition]
            if mine and partition in self.redis.streams:
                payload = payload_of_rows(mine)
                self.redis.append(partition, payload, len(mine))
                self.events[payload] = [metric for _, metric, _, _ in mine]

    @rule(
        read=ROWS, after=ROWS, number=st.integers(0, 5), turns=st.integers(0, 3), seconds=st.sampled_from((0, -2, -20)),
        calls=st.integers(0, 8), how=st.sampled_from(("", "", "refused", "lost")),
    )  # fmt: skip
    def power_cut(self, read: list, after: list, number: int, turns: int, seconds: int, calls: int, how: str) -> None:
        """Some of what a worker had read is forgotten, more comes before anybody looks, and who looks may have a call go wrong."""
        faults_seen["power cut"] += 1
        self.redis.sync()
        self.send(read)
        self.work(number, turns)
        before = self._payloads()
        self.redis.power_cut()
        self.forgotten |= before - self._payloads()
        self.redis.now_ms += seconds * 1000
        self.send(after)
        if how and self.processes:
            self.work(number, 1, after=calls, how=how)

    def _payloads(self) -> set[bytes]:
        return {entry.events for stream in self.redis.streams.values() for entry in stream.entries.values()}

    def _judge(self) -> None:
        rows, letters = self.tables.table("aggregates"), self.tables.table("dead_letters")
        sums = [] if rows is None else rows.group_by(pl.col("metric").cast(pl.String)).agg(pl.col("count").sum()).iter_rows()
        counted = dict(sums)
        dead = set() if letters is None else {event.split('"metric":"')[1].split('"')[0] for event in letters["event"]}
        for payload, metrics in self.events.items():
            for metric in metrics:
                times, least = counted.get(metric, 0) + (metric in dead), int(payload not in self.forgotten)
                assert least <= times <= 1, f"{metric} was counted {times} times; forgotten by Redis: {not least}"
