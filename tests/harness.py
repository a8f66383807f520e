"""Real parts on free ports: a redis-server, the API and workers as processes, a lake in a folder. Ended by pid, always."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import httpx
import polars as pl
import psutil

from pipeline.books import balance
from pipeline.settings import load, semantics_of
from pipeline.stores.connection import connect, stream_key
from pipeline.stores.embedded import EmbeddedRedis
from pipeline.stores.lake import Lake
from pipeline.stores.leases import Leases

SETTINGS = {
    "PIPELINE_WINDOW_SECONDS": "10",
    "PIPELINE_DISORDER_SECONDS": "5",
    "PIPELINE_IDLE_AFTER_SECONDS": "120",
}


ALLOCATOR = "_RJEM_MALLOC_CONF"  # Polars leaves it in the environment of who imports it; a role has its own mind about it
NEVER_WAIT = """
admission:
  fair: {lag: 100h, backlog_events: 1e12, memory_share: 0.97, commit: 100h}
  closed: {lag: 200h, backlog_events: 1e13, memory_share: 0.98, commit: 200h}
  memory_share_max: 1
"""


_GIVEN: set[int] = set()


def free_port(*beyond: int) -> int:
    """A port that nobody has, and those so far `beyond` it with it. None is given twice, and none is of those that the kernel gives
    to outgoing connections (from 32,768 on): between here and the server that binds it, nobody takes it."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768 - max(beyond, default=0))
        ports = {port, *(port + more for more in beyond)}
        if not ports & _GIVEN and all(map(_is_free, ports)):
            _GIVEN.update(ports)
            return port


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        return True
    return False


def eventually(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something holds; say what did not."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


class Stack:
    """One pipeline under `folder`. Use as a context manager. `redis_url`: of a Redis that others run; else it starts one."""

    def __init__(self, folder: Path, fsync: str = "always", redis_url: str | None = None, **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.redis_port = free_port()
        self._runs_redis = redis_url is None
        self.fsync = fsync
        self.redis: subprocess.Popen | None = None
        self.redis_environment: dict[str, str] | None = None  # none: ours
        self.api: subprocess.Popen | None = None
        self.workers: list[subprocess.Popen] = []
        self.others: list[subprocess.Popen] = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PIPELINE_") and k != ALLOCATOR},
            **SETTINGS,
            **settings,
            "PIPELINE_REDIS_URL": redis_url or f"redis://127.0.0.1:{self.redis_port}",
            "PIPELINE_DATA_DIR": str(folder / "data"),
            "PIPELINE_API_PORT": str(self.port),
        }
        names = {k.removeprefix("PIPELINE_").lower(): v for k, v in self.environment.items() if k.startswith("PIPELINE_")}
        self.settings = load(**names)
        self.semantics = semantics_of(self.settings)

    def __enter__(self) -> Stack:
        (self.folder / "redis").mkdir(parents=True, exist_ok=True)
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        if self._runs_redis:
            self.start_redis()
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.workers, *self.others, self.api, self.redis]:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self):
        return connect(self.settings.redis_url, 5)

    def lake(self) -> Lake:
        return Lake(self.settings.lake)

    def start_redis(self) -> None:
        log = (self.folder / "logs" / "redis.log").open("ab")
        self.redis = subprocess.Popen(
            [EmbeddedRedis.binary(), "--port", str(self.redis_port), "--bind", "127.0.0.1", "--dir", str(self.folder / "redis"),
             "--appendonly", "yes", "--appendfsync", self.fsync, "--save", "", "--maxmemory-policy", "noeviction"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.redis_environment,
        )  # fmt: skip
        eventually(self._redis_answers, 20, "Redis answers")

    def _redis_answers(self) -> bool:
        try:
            return connect(self.settings.redis_url, 1).ping()
        except Exception:
            return False

    def kill_redis(self) -> None:
        self.redis.kill()
        self.redis.wait()

    def spawn(self, *arguments: str, **extra: str) -> subprocess.Popen:
        """A `telemetry` subcommand as a process; what it says goes to logs/."""
        number = len(list((self.folder / "logs").iterdir()))
        log = (self.folder / "logs" / f"{number:02}-{arguments[0]}.log").open("ab")
        command = [sys.executable, "-m", "pipeline", *arguments]
        return subprocess.Popen(
            command, env={**self.environment, **extra}, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder
        )

    def start_worker(self, **extra: str) -> subprocess.Popen:
        worker = self.spawn("worker", **extra)
        self.workers.append(worker)
        return worker

    def start_api(self) -> None:
        self.api = self.spawn("ingest")

    def wait_ready(self, seconds: float = 30) -> None:
        def ready() -> bool:
            try:
                return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
            except httpx.HTTPError:
                return False

        eventually(ready, seconds, "the API is ready")

    def start(self, workers: int = 1, seconds: float = 30) -> None:
        for _ in range(workers):
            self.start_worker()
        self.start_api()
        self.wait_ready(seconds)

    def telemetry(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess:
        """Run a `telemetry` command to its end."""
        command = [sys.executable, "-m", "pipeline", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout, cwd=self.folder)

    def post(self, events: list[dict], **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/events", json=events, headers=headers, timeout=10)

    def drained(self) -> bool:
        """Every entry is delivered and settled; ticks may go on."""
        for partition in range(self.settings.partitions):
            if any(entry.event_count or entry.dead_letter_count for entry in self._outstanding(partition)):
                return False
        return True

    def _outstanding(self, partition: int):
        from pipeline.stores.streams import Streams

        return Streams(self.client).outstanding(partition)

    def holders(self) -> dict[str, list[int]]:
        """The partitions that each worker holds, by its name."""
        found: dict[str, list[int]] = {}
        for partition, owner in Leases(self.client, "harness", 1).holders(self.settings.partitions).items():
            if owner:
                found.setdefault(owner, []).append(partition)
        return found

    def admit_all(self) -> None:
        """From now on nobody is asked to wait, whatever the backlog: what comes then is another test's."""
        document = httpx.get(f"{self.url}/v1/rules", timeout=10).text + NEVER_WAIT
        httpx.put(f"{self.url}/v1/rules", content=document, timeout=10).raise_for_status()
        time.sleep(self.settings.rules_reload_seconds + 1)  # the API has read them

    def books(self) -> dict:
        return balance(self.client, self.lake(), self.semantics, self.settings.partitions)

    def aggregates(self) -> pl.DataFrame:
        """The `aggregates` view, through DuckDB, as a user reads it."""
        return self.sql("SELECT * FROM aggregates")

    def sql(self, query: str) -> pl.DataFrame:
        from pipeline.stores.catalog import open_catalog, write_catalog

        path = self.folder / "data" / "catalog.duckdb"
        write_catalog(path)
        with open_catalog(self.settings) as connection:
            return connection.execute(query).pl()

    def stream_length(self) -> int:
        return sum(self.client.xlen(stream_key(partition)) for partition in range(self.settings.partitions))

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted((self.folder / "logs").iterdir()))


def held_mb(pid: int) -> int:
    """The memory that a process holds: what is resident, without what it has given back and the kernel has not needed yet."""
    resident, given_back = psutil.Process(pid).memory_info().rss, 0
    with contextlib.suppress(FileNotFoundError):  # only Linux tells
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        given_back = int(text.partition("LazyFree:")[2].split()[0]) << 10
    return (resident - given_back) >> 20


def peak_mb(pid: int) -> int:
    """The most memory that a process has had; 0 where it is gone, or nobody can tell."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(text.partition("VmHWM:")[2].split()[0]) >> 10


def replay(stack: Stack, files: list[Path], *extra: str) -> dict:
    """`telemetry replay` to its end; its summary."""
    done = stack.telemetry("replay", *map(str, files), "--url", stack.url, "--json", *extra, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def recorded(files: list[Path], width_seconds: int, counters: str) -> duckdb.DuckDBPyRelation:
    """What a plain GROUP BY over the recordings says of every (series, window). `counters`: SQL for "is a counter"."""
    connection = duckdb.connect()
    paths = ", ".join(f"'{file}'" for file in files)
    return connection.sql(f"""
        WITH events AS (
            SELECT device, coalesce(interface, '') AS interface, metric, epoch_ms(timestamp) AS ms, value
            FROM read_parquet([{paths}], union_by_name = true, file_row_number = true, filename = true)
            QUALIFY row_number() OVER (PARTITION BY device, interface, metric, ms ORDER BY filename DESC, file_row_number DESC) = 1
        ), steps AS (
            SELECT *, ms // ({width_seconds} * 1000) * {width_seconds} * 1000 AS window_ms,
                   value - lag(value) OVER (PARTITION BY device, interface, metric ORDER BY ms) AS step
            FROM events
        )
        SELECT device, interface, metric, window_ms, count(*) AS n, sum(value) AS total, min(value) AS least, max(value) AS most,
               sum(CASE WHEN {counters} THEN CASE WHEN step < 0 THEN value ELSE step END END) AS increase
        FROM steps GROUP BY ALL
    """)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
