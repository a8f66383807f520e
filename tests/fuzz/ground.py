"""A real pipeline under fire: Redis, API and worker as processes, their memory, their logs, and a good neighbour beside."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import polars as pl
import psutil

from tests.harness import Stack, held_mb, peak_mb

SETTINGS = {
    "PIPELINE_PARTITIONS": "4",
    "PIPELINE_TICK_INTERVAL_SECONDS": "1",
    "PIPELINE_IDLE_AFTER_SECONDS": "3600",  # the neighbours' windows close by their own events alone
    "PIPELINE_RULES_RELOAD_SECONDS": "0.5",
    "PIPELINE_REQUEST_SECONDS_MAX": "3",
}
# Beyond these a process leaks, or lets a stranger say how much it takes. What a burst of bodies of the largest size leaves
# in the allocator is within them; the peak is a few bodies of the largest size being decoded and built at once.
GROWTH_MB_MAX = {"api": 350, "worker": 500}
PEAK_MB_MAX = {"api": 1500, "worker": 2000}
SAID_MAX = 3


class Neighbour:
    """A client that does everything right, in one thread, and knows what must be in the lake because of it."""

    DEVICES = 5
    LATENCY_SECONDS_MAX = 15.0

    def __init__(self, url: str, name: str, width_ms: int, requests: int = 10**9) -> None:
        self._url = url
        self._name = name
        self._width_ms = width_ms
        self._start_ms = int(time.time() - 20 * 3600) * 1000
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="neighbour", daemon=True)
        self.expected: dict[tuple[str, int], list[float]] = defaultdict(list)  # (device, window start in ms) -> values
        self.sent = 0
        self.busy = 0
        self.slowest_seconds = 0.0
        self.wrong: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        number = 0
        with httpx.Client(timeout=20) as client:
            while not self._stop.wait(0.02):
                self._post(client, number)
                number += 1

    def _post(self, client: httpx.Client, number: int) -> None:
        device = f"{self._name}-{number % self.DEVICES}"
        at = self._start_ms + number * 500
        events = [{"device": device, "metric": "cpu_pct", "value": number * 4 + i, "timestamp": at + i * 20} for i in range(4)]
        if self._send(client, events, {"idempotency-key": uuid.uuid4().hex} if number % 2 else {}):
            for event in events:
                self.expected[device, event["timestamp"] // self._width_ms * self._width_ms].append(event["value"])
            self.sent += len(events)

    def _send(self, client: httpx.Client, events: list[dict], headers: dict[str, str]) -> bool:
        began = time.monotonic()
        while time.monotonic() - began < 60:
            try:
                response = client.post(f"{self._url}/v1/events", json=events, headers=headers)
            except httpx.TransportError:  # unknown: the same again adds nothing
                time.sleep(0.1)
                continue
            if response.status_code == 202:
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
                if response.json() != {"accepted": len(events), "rejected": 0, "errors": []}:
                    self.wrong.append(f"a good neighbour was told {response.text[:200]}")
                return True
            if response.status_code != 503:
                self.wrong.append(f"a good neighbour was refused: {response.status_code} {response.text[:200]}")
                return False
            self.busy += 1
            time.sleep(0.2)
        self.wrong.append("a good neighbour was not served for 60 s")
        return False

    def stop(self) -> None:
        """Send what closes all windows, and end."""
        self._stop.set()
        self._thread.join(90)
        with httpx.Client(timeout=20) as client:
            now = int(time.time() * 1000)
            closers = [{"device": f"{self._name}-{n}", "metric": "closer", "value": 0, "timestamp": now} for n in range(self.DEVICES)]
            self._send(client, closers, {})

    def lost(self, aggregates: pl.DataFrame) -> int:
        """Samples that are not in the aggregates exactly once."""
        found = {
            (row["device"], int(row["window_start"].timestamp() * 1000)): (row["count"], row["sum"])
            for row in aggregates.with_columns(pl.col("window_start").dt.replace_time_zone("UTC")).iter_rows(named=True)
        }
        return sum(len(values) for key, values in self.expected.items() if found.get(key) != (len(values), float(sum(values))))


class Ground:
    """One running pipeline that the doors share."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.stack = Stack(folder, fsync="everysec", **{**SETTINGS, **settings})
        self._neighbours = 0
        self._seen: dict[Path, int] = {}
        self.pids: dict[str, int] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[Ground]:
        with self.stack:
            self.stack.start()
            self.remember()
            yield self

    def remember(self) -> None:
        """Take the processes as they are for those that must live on."""
        self.pids = {"api": self.stack.api.pid, "worker": self.stack.workers[-1].pid}

    def dead(self) -> list[str]:
        """Processes that have ended by themselves."""
        processes = {"api": self.stack.api, "worker": self.stack.workers[-1]}
        return [f"{name} died: exit code {process.returncode}" for name, process in processes.items() if process.poll() is not None]

    def revive(self) -> None:
        """Start again what died, so that the next input meets a whole pipeline."""
        if self.stack.api.poll() is not None:
            self.stack.start_api()
        if self.stack.workers[-1].poll() is not None:
            self.stack.start_worker()
        self.stack.wait_ready()
        self.remember()

    def memory_mb(self) -> dict[str, int]:
        """The memory that each process holds."""
        return {name: held_mb(pid) for name, pid in self.pids.items() if psutil.pid_exists(pid)}

    def peaks_mb(self) -> dict[str, int]:
        """The most memory that each process ever had."""
        return {name: peak_mb(pid) for name, pid in self.pids.items()}

    def neighbour(self) -> Neighbour:
        self._neighbours += 1
        return Neighbour(self.stack.url, f"good-{self._neighbours}", self.stack.settings.window_seconds * 1000)

    def settled(self, neighbour: Neighbour, seconds: float = 60) -> int:
        """Wait until all that the neighbour sent is committed; how many of its samples are not there exactly once."""
        deadline = time.monotonic() + seconds
        while True:
            rows = self.stack.sql(
                f"SELECT device, window_start, count, sum FROM aggregates WHERE device LIKE '{neighbour._name}-%' AND metric = 'cpu_pct'"
            )
            lost = neighbour.lost(rows)
            if not lost or time.monotonic() > deadline:
                return lost
            time.sleep(0.5)

    def said(self) -> list[str]:
        """Tracebacks and panics in the logs since the last call: what nobody foresaw."""
        found = []
        for path in sorted((self.stack.folder / "logs").iterdir()):
            with path.open("rb") as log:
                log.seek(self._seen.get(path, 0))
                text = log.read().decode(errors="replace")
                self._seen[path] = log.tell()
            for mark in ("Traceback", "panicked at", "Segmentation", "Fatal Python error"):
                if mark in text:
                    at = text.index(mark)
                    lines = [line for line in text[at : at + 6000].splitlines() if line and not line.startswith(" ")]
                    last = next((line for line in lines[1:] if "Error" in line or "Exception" in line or "panic" in line), lines[0])
                    found.append(f"{path.name} shows {mark!r} ({text.count(mark)} times): {last[:200]}")
        return found[:SAID_MAX]


def eventually_right(wrong: Callable[[], list[str]], seconds: float = 60) -> list[str]:
    """What is wrong still after so long: what is under way needs its time."""
    deadline = time.monotonic() + seconds
    while (found := wrong()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found
