"""How long things take: an answer, an alert, a row in SQL, a recovery, a backlog, a query."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import httpx
import numpy as np
import polars as pl

from benchmarks.load import post_all, post_paced
from benchmarks.system import DEFAULTS, System
from benchmarks.workload import CONTENT_TYPES, START_MS, Workload
from pipeline.core.recovery import Stand
from pipeline.core.schema import AGGREGATES
from pipeline.stores.catalog import open_catalog, write_catalog
from pipeline.stores.connection import alerts_key
from pipeline.stores.lake import Lake
from tests.harness import eventually

HALF_LOAD_SECONDS = 30
WARM_SECONDS = 5  # of the same load before it
PROBE_SECONDS = 0.5
LOOK_SECONDS = 0.3
HISTORY_SERIES, HISTORY_DAYS = 300, 30


def _percentiles(seconds) -> dict:
    return {f"p{share}": float(np.percentile(seconds, share)) for share in (50, 99)} | {"n": len(seconds)}


def half_load(events_per_second: float, say) -> dict:
    """At half of what the system takes: POST to answer, to the alert on the console, and from a window's close to its row in SQL."""
    folder = Path(tempfile.mkdtemp())
    rate = events_per_second / 2
    bodies = Workload(polls=int(rate * (WARM_SECONDS + HALF_LOAD_SECONDS) / 20_000)).bodies("json")
    warm = int(rate * WARM_SECONDS / 1000)
    try:
        with System(folder) as system:
            system.start(workers=2)
            alerts, probes, over = _alerts(system), _Probes(system.url), threading.Event()
            probing = threading.Thread(target=probes.run, args=[over])
            spawning = get_context("spawn")  # threads run here: a fork would take their locks along
            with ProcessPoolExecutor(1, spawning) as beside, spawning.Manager() as manager:
                ended = manager.Event()
                looking = beside.submit(_look, folder / "data", ended)
                post_paced(system.port, bodies[:warm], CONTENT_TYPES["json"], rate / 1000)  # the first steps of a process take longer
                probing.start()
                took = post_paced(system.port, bodies[warm:], CONTENT_TYPES["json"], rate / 1000)
                over.set()
                probing.join()
                time.sleep(2)
                ended.set()
                visible = looking.result(60)
        delays = [alerts[device] - at for device, at in probes.hot_at.items() if device in alerts]
        assert len(delays) > 0.9 * len(probes.hot_at), f"{len(probes.hot_at) - len(delays)} of {len(probes.hot_at)} alerts are missing"
        rows = [seen - probes.closed_at[number] for number, seen in visible.items()]
        found = {"events_per_second": rate, "answer_seconds": _percentiles(took), "alert_seconds": _percentiles(delays),
                 "row_seconds": _percentiles(rows)}  # fmt: skip
        answer, alert, row = (found[f"{name}_seconds"]["p99"] for name in ("answer", "alert", "row"))
        say(f"at {rate:,.0f} events/s: p99 of answers {answer * 1e3:.0f} ms, of alerts {alert:.2f} s, of rows {row:.2f} s")
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Probes:
    """Beside the load, a new device above its threshold, and a sample of one that closes the window of the one before."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.hot_at: dict[str, float] = {}  # device -> when its sample was sent
        self.closed_at: dict[int, float] = {}  # number of the last sample in a window -> when the one that closes it was sent

    def run(self, over: threading.Event) -> None:
        step_ms = (int(DEFAULTS["PIPELINE_WINDOW_SECONDS"]) + int(DEFAULTS["PIPELINE_DISORDER_SECONDS"])) * 1000
        number = 0
        with httpx.Client(timeout=10) as client:  # one for all: to make one takes 50 ms, in which no body would be sent
            while not over.wait(PROBE_SECONDS):
                number += 1
                now = self.hot_at[f"probe-{number}"] = self.closed_at[number - 1] = time.time()
                hot = {"device": f"probe-{number}", "metric": "cpu_pct", "value": 99, "timestamp": int(now * 1000)}
                beat = {"device": "clock", "metric": "beat", "value": number, "timestamp": START_MS + number * step_ms}
                client.post(f"{self._url}/v1/events", json=[hot, beat]).raise_for_status()


def _alerts(system: System) -> dict[str, float]:
    """device -> when the console showed its first alert; a notifier that reads fills it."""
    alerts: dict[str, float] = {}
    notifier = subprocess.Popen(
        [sys.executable, "-u", "-m", "pipeline", "notify", "--json"], env=system.environment, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, cwd=system.folder,
    )  # fmt: skip
    system.others.append(notifier)

    def listen() -> None:
        for line in notifier.stdout:
            alerts.setdefault(json.loads(line)["device"], time.time())

    threading.Thread(target=listen, daemon=True).start()
    eventually(lambda: system.client.exists(alerts_key(0)), 60, "the notifier reads")
    return alerts


def _look(data: Path, over) -> dict[int, float]:
    """When each sample of the clock was seen in SQL first. As a dashboard looks, at what is newer than what it has seen, and in a
    process of its own, so that looking takes no share of what is measured."""
    seen: dict[int, float] = {}
    newest = datetime.fromtimestamp(0)
    query = "SELECT last, window_start FROM aggregates_raw WHERE device = 'clock' AND window_start > ?"
    write_catalog(data / "catalog.duckdb")
    with open_catalog(data) as connection:
        while not over.wait(LOOK_SECONDS):
            for number, window in connection.execute(query, [newest]).fetchall():
                seen.setdefault(int(number), time.time())
                newest = max(newest, window)
    return seen


def write_history(system: System, series: int = HISTORY_SERIES, days: int = HISTORY_DAYS) -> int:
    """A month of aggregates, a file a day, as compaction leaves them; the number of rows."""
    lake = Lake(system.settings.lake)
    lake.create(system.semantics, system.settings.partitions)
    width = system.semantics.width
    rows_a_day = 86_400_000_000 // width
    names = pl.DataFrame({"device": [f"r-{n // 10:04d}" for n in range(series)], "interface": [f"eth{n % 10}" for n in range(series)]})
    names = names.with_columns(metric=pl.lit("in_octets_rate"), tags=pl.lit(""))
    last = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rng = np.random.default_rng(1)
    for day in range(days, 0, -1):
        start = int((last - timedelta(days=day)).timestamp() * 1e6)
        windows = pl.DataFrame({"window": start + np.arange(rows_a_day) * width})
        rows = names.join(windows, how="cross")
        value = pl.Series(rng.lognormal(16, 1, rows.height))
        rows = rows.with_columns(
            partition=pl.lit(0), counter_bits=pl.lit(0), count=pl.lit(6), revision=pl.lit(False), repeated=pl.lit(0),
            newest=pl.col("window") + width, arrived=pl.col("window") + width,
            first_time=pl.col("window"), last_time=pl.col("window") + width - 1,
            **{name: value for name in ("sum", "min", "max", "mean", "stddev", "first", "last", "p50", "p95", "p99")},
        )  # fmt: skip
        have = set(rows.columns)
        frame = rows.select(pl.col(n).cast(t) if n in have else pl.lit(None, t).alias(n) for n, t in AGGREGATES.items())
        lake.commit("aggregates", frame, {0: Stand(days - day + 1)}, {0: days - day or -1})
    lake.refresh_series(system.semantics)
    return series * rows_a_day * days


def recovery(say) -> dict:
    """Kill -9 of one of two workers to all its partitions working again: with an empty lake, and with a month in it."""
    found = {}
    for name in ("empty", "month"):
        folder = Path(tempfile.mkdtemp())
        try:
            with System(folder) as system:
                rows = write_history(system) if name == "month" else 0
                system.start(workers=2)
                workload = Workload(polls=20)
                post_all(system.port, workload.bodies("json"), CONTENT_TYPES["json"])
                eventually(system.read_up, 60, "all is read")
                victim = system.workers[0]
                victim.send_signal(signal.SIGKILL)
                began = time.perf_counter()
                eventually(lambda: system.shares() == [system.settings.partitions], 60, "the other holds all")
                post_all(system.port, workload.bodies("json")[:32], CONTENT_TYPES["json"])
                eventually(system.read_up, 60, "what came after is read by the other")
                found[name] = {"seconds": time.perf_counter() - began, "lease_seconds": system.settings.lease_ms / 1000, "rows": rows}
                say(f"recovery with {rows:,} rows in the lake: {found[name]['seconds']:.2f} s, lease {found[name]['lease_seconds']:.0f} s")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def backlog(repeats: int, say) -> dict:
    """Four million events that wait: how fast one and two workers take them in."""
    workload = Workload(polls=200)
    bodies = workload.bodies("arrow")
    found: dict[int, float] = {}
    for workers in (1, 2):
        rates = sorted(_drained(workload, bodies, workers) for _ in range(repeats))
        found[workers] = rates[len(rates) // 2]
        say(f"backlog, {workers} workers: {found[workers]:,.0f} events/s")
    return found


def _drained(workload: Workload, bodies: list[bytes], workers: int) -> float:
    """Events a second, from when the workers begin until nine tenths are committed: the last windows stay open."""
    folder = Path(tempfile.mkdtemp())
    try:
        with System(folder, PIPELINE_LEASE_MS="60000") as system:  # they sleep, and are not replaced
            system.start(workers)
            for worker in system.workers:
                worker.send_signal(signal.SIGSTOP)
            post_all(system.port, bodies, CONTENT_TYPES["arrow"])
            began = time.perf_counter()
            for worker in system.workers:
                worker.send_signal(signal.SIGCONT)
            most = workload.events.height * 9 // 10
            system.wait_committed(most)
            return most / (time.perf_counter() - began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


QUERIES = {
    "newest windows of a device": "WHERE device = 'r-0003' AND date >= current_date - 2 ORDER BY window_start DESC LIMIT 20",
    "a day of one series": "WHERE device = 'r-0003' AND interface = 'eth1' AND date = current_date - 3",
    "top devices of a day": "SELECT device, max(p99) AS most WHERE date = current_date - 3 GROUP BY ALL ORDER BY most DESC LIMIT 10",
    "a month of a device by the hour": "SELECT time_bucket(INTERVAL 1 HOUR, window_start), avg(mean) WHERE device = 'r-0003' GROUP BY ALL",
    "count of a month": "SELECT count(*)",
}


def queries(say) -> dict:
    """Milliseconds of queries over a month of aggregates, median of 5 in one open connection."""
    folder = Path(tempfile.mkdtemp())
    try:
        system = System(folder)
        rows = write_history(system)
        write_catalog(folder / "data" / "catalog.duckdb")
        found: dict = {"rows": rows, "milliseconds": {}}
        with open_catalog(folder / "data") as connection:
            for name, query in QUERIES.items():
                took = []
                for _ in range(5):
                    began = time.perf_counter()
                    connection.execute(f"FROM aggregates {query}").fetchall()
                    took.append((time.perf_counter() - began) * 1000)
                found["milliseconds"][name] = sorted(took)[2]
                say(f"{name}: {found['milliseconds'][name]:.0f} ms over {rows:,} rows")
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
