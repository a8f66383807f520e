"""The pipeline for one partition in plain Python: one row at a time, dictionaries, nothing vectorised.

Slow on purpose and small enough to argue about; `pipeline.core` must agree with it on every stream, however that is cut.
A row is (device, metric, event time, value); times in microseconds; every series is a 64-bit counter.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from pipeline.core.semantics import NEVER, Semantics


@dataclass
class Device:
    newest: int = NEVER
    arrived: int = NEVER
    closed_to: int = NEVER

    def watermark(self, semantics: Semantics) -> int:
        return max(self.newest - semantics.disorder, self.closed_to)


@dataclass
class Oracle:
    semantics: Semantics
    devices: dict = field(default_factory=lambda: defaultdict(Device))
    open: dict = field(default_factory=dict)  # (device, metric, start) -> [(time, value), ...] in stream order
    last: dict = field(default_factory=dict)  # (device, metric) -> (time, value)
    base: list = field(default_factory=list)  # (device, metric, start, count, repeated, total, last, increase, newest, arrived)
    revised: dict = field(default_factory=lambda: defaultdict(lambda: [0, 0]))  # (device, metric, start) -> [count, total]
    series: dict = field(default_factory=lambda: defaultdict(set))  # device -> its metrics that are known
    dead: list = field(default_factory=list)  # (reason, device, metric, time, value)

    def close(self) -> None:
        width = self.semantics.width
        for key in sorted(k for k in self.open if k[2] + width <= self.devices[k[0]].watermark(self.semantics)):
            raw, device = self.open.pop(key), self.devices[key[0]]
            samples = dict(raw)  # a repeat in an open window: last wins
            times = sorted(samples)
            before, increase = self.last.get(key[:2]), None
            for time in times:
                if before is not None:
                    change = samples[time] - before[1]
                    increase = (increase or 0) + (change if change >= 0 else samples[time])
                before = (time, samples[time])
            self.last[key[:2]] = before
            total = sum(samples[time] for time in times)
            self.base.append((*key, len(samples), len(raw) - len(samples), total, before[1], increase, device.newest, device.arrived))

    def apply(self, now: int, rows: list) -> None:
        sem = self.semantics
        for name, _, start in list(self.open):
            d = self.devices[name]
            if now - d.arrived > sem.idle_after and start + sem.width <= d.newest + (now - d.arrived) - sem.disorder:
                d.closed_to = max(d.closed_to, start + sem.width)
        self.close()
        for name, metric, time, value in rows:
            d = self.devices[name]
            if d.newest - time > sem.lateness_max:
                self.dead.append(("too_late", name, metric, time, value))
                continue
            if metric not in self.series[name]:
                if len(self.series[name]) >= sem.device_series_max or sum(map(len, self.series.values())) >= sem.partition_series_max:
                    self.dead.append(("series_limit", name, metric, time, value))
                    continue
                self.series[name].add(metric)
            start = time // sem.width * sem.width
            late = start + sem.width <= d.watermark(sem)
            d.newest, d.arrived = max(d.newest, time), now
            if late:
                revision = self.revised[name, metric, start]
                revision[0] += 1
                revision[1] += value
            else:
                self.open.setdefault((name, metric, start), []).append((time, value))
            self.close()
        if sum(map(len, self.open.values())) > sem.open_rows_max:
            while sum(map(len, self.open.values())) > sem.open_rows_max * 7 // 8:
                weight = defaultdict(int)
                for (name, _, _), held in self.open.items():
                    weight[name] += len(held)
                name = min(weight, key=lambda n: (-weight[n], n))
                self.devices[name].closed_to = min(start for (n, _, start) in self.open if n == name) + sem.width
                self.close()
