"""W1: a fleet that is polled every 10 s, as columns, as HTTP bodies, and its right answer. A seed gives always the same bytes.

500 devices x 8 interfaces x 5 metrics = 20,000 series, an event per series every 10 s for 1,000 s: 2,000,000 events in order
of arrival. A device's 40 events share one timestamp; 1 % arrive up to 15 s late; 0.1 % lie above the threshold of their metric.
Values have two decimals, so that sums are exact in hundredths. Other sizes keep the shape.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc as ipc

START_MS = 1_767_225_600_000  # 2026-01-01, a multiple of a minute
STEP_MS = 10_000
WINDOW_MS = 60_000
INTERFACES = 8
BODY_EVENTS = 1000
THRESHOLDS = {"in_octets_rate": 9.0e8, "out_octets_rate": 9.0e8, "in_errors": 100.0, "cpu_pct": 90.0, "latency_ms": 200.0}
METRICS = list(THRESHOLDS)
CONTENT_TYPES = {"json": "application/json", "arrow": "application/vnd.apache.arrow.stream"}
RULES = "\n".join(f"  - {{name: {metric}-high, metric: {metric}, upper: {{critical: {bound}}}}}" for metric, bound in THRESHOLDS.items())


@dataclass(frozen=True)
class Workload:
    """A fleet of `devices`, polled `polls` times."""

    devices: int = 500
    polls: int = 100
    seed: int = 7

    @property
    def series(self) -> int:
        return self.devices * INTERFACES * len(METRICS)

    @cached_property
    def events(self) -> pl.DataFrame:
        """device, interface, metric, value, timestamp (ms), in order of arrival."""
        rng = np.random.default_rng(self.seed)
        shape = (self.polls, self.devices, INTERFACES)
        phase = rng.integers(0, STEP_MS - 60, self.devices)
        jitter = rng.integers(0, 50, (self.polls, self.devices))
        times = START_MS + np.arange(self.polls)[:, None] * STEP_MS + phase[None, :] + jitter
        base = rng.lognormal(16.5, 1.2, (self.devices, INTERFACES))
        values = [
            np.minimum(base * rng.lognormal(0, 0.25, shape), 8.9e8),
            np.minimum(base * 0.6 * rng.lognormal(0, 0.25, shape), 8.9e8),
            rng.poisson(0.4, shape).astype(float),
            np.clip(rng.uniform(10, 55, (1, self.devices, 1)) + rng.normal(0, 6, shape), 0.5, 88),
            np.clip(rng.gamma(4.0, 3.0, (1, self.devices, INTERFACES)) * rng.lognormal(0, 0.2, shape), 0.1, 190),
        ]
        value = np.stack(values, axis=3).reshape(-1)
        count = value.size
        metric = np.tile(np.arange(len(METRICS)), count // len(METRICS))
        above = rng.choice(count, count // 1000, replace=False)
        bound = np.array(list(THRESHOLDS.values()))[metric[above]]
        most = np.where(metric[above] == 3, 1.10, 2.0)
        value[above] = bound * (1.02 + (most - 1.02) * rng.random(above.size))
        each = INTERFACES * len(METRICS)
        device = np.tile(np.repeat(np.arange(self.devices), each), self.polls)
        interface = np.tile(np.repeat(np.arange(INTERFACES), len(METRICS)), self.polls * self.devices)
        timestamp = np.repeat(times.reshape(-1), each).astype(np.int64)
        late = rng.choice(count, count // 100, replace=False)
        arrival = timestamp.copy()
        arrival[late] += rng.integers(1, 15_001, late.size)
        order = np.argsort(arrival, kind="stable")
        names = {
            "device": ([f"r-{n:04d}" for n in range(self.devices)], device),
            "interface": ([f"eth{n}" for n in range(INTERFACES)], interface),
            "metric": (METRICS, metric),
        }
        columns = {name: pl.Series(texts).gather(codes[order]) for name, (texts, codes) in names.items()}
        return pl.DataFrame({**columns, "value": np.rint(value * 100)[order] / 100, "timestamp": timestamp[order]})

    def bodies(self, form: str, each: int = BODY_EVENTS) -> list[bytes]:
        """The events as HTTP bodies of `each`: "json" arrays, or "arrow" streams with dictionary columns."""
        return [self._body(form, self.events.slice(start, each)) for start in range(0, self.events.height, each)]

    @staticmethod
    def _body(form: str, part: pl.DataFrame) -> bytes:
        if form == "json":
            sink = io.BytesIO()
            part.write_ndjson(sink)
            return b"[" + sink.getvalue().strip().replace(b"\n", b",") + b"]"
        table = part.to_arrow()
        for place, name in enumerate(("device", "interface", "metric")):
            texts = table.column(name).cast(pa.string()).combine_chunks().dictionary_encode()
            table = table.set_column(place, name, texts)
        sink = pa.BufferOutputStream()
        with ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    def last_events(self) -> list[dict]:
        """One event per device, far later: it closes the last windows, and no other."""
        later = START_MS + self.polls * STEP_MS + 3_600_000
        return [{"device": f"r-{n:04d}", "metric": "flush", "value": 1, "timestamp": later} for n in range(self.devices)]

    def answer(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(windows, events above their threshold) by DuckDB, with sums as exact decimals."""
        events = self.events  # noqa: F841 - DuckDB finds it by its name
        windows = duckdb.sql(f"""
            SELECT device, interface, metric, timestamp // {WINDOW_MS} * {WINDOW_MS} AS window_ms, count(*) AS count,
                   sum(value::DECIMAL(18, 2))::DOUBLE AS sum, min(value) AS min, max(value) AS max, stddev_samp(value) AS stddev,
                   quantile_cont(value, .5) AS p50, quantile_cont(value, .95) AS p95, quantile_cont(value, .99) AS p99
            FROM events GROUP BY ALL ORDER BY ALL
        """).pl()
        above = " OR ".join(f"(metric = '{name}' AND value > {bound})" for name, bound in THRESHOLDS.items())
        anomalies = duckdb.sql(f"SELECT device, interface, metric, timestamp, value FROM events WHERE {above} ORDER BY ALL").pl()
        return windows, anomalies

    def write_ndjson(self, path: Path) -> None:
        """The events as one file of lines."""
        self.events.write_ndjson(path)


def differences(lake: duckdb.DuckDBPyConnection, answer: tuple[pl.DataFrame, pl.DataFrame]) -> list[str]:
    """What the tables say otherwise than the right answer; empty: nothing. Sums within 1e-9 of their size."""
    windows, anomalies = answer
    found = lake.execute(
        "SELECT device, interface, metric, epoch_ms(window_start) AS window_ms, count, sum, min, max, stddev, p50, p95, p99 "
        "FROM aggregates WHERE metric <> 'flush' ORDER BY ALL"
    ).pl()
    key = ["device", "interface", "metric", "window_ms"]
    if not found.select(key).equals(windows.select(key)):
        return [f"{found.height} windows, not the {windows.height} of the answer"]
    complaints = []
    for name in ("count", "sum", "min", "max", "stddev", "p50", "p95", "p99"):
        ours, theirs = found[name].cast(pl.Float64), windows[name].cast(pl.Float64)
        slack = 1e-9 * theirs.abs() + (1e-7 * windows["max"].abs() if name == "stddev" else 1e-9)
        wrong = int((~((ours - theirs).abs() <= slack).fill_null(False) & ~(ours.is_null() & theirs.is_null())).sum())
        complaints += [f"{name} differs in {wrong} windows"] if wrong else []
    flagged = lake.execute(
        "SELECT device, interface, metric, epoch_ms(event_time) AS timestamp, value FROM anomalies "
        "WHERE rule = metric || '-high' ORDER BY ALL"
    ).pl()
    if not flagged.equals(anomalies):
        complaints.append(f"{flagged.height} anomalies, not the {anomalies.height} of the answer")
    return complaints
