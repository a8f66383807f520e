"""The pipeline under fire: Redis, two APIs, three workers and housekeeping as processes that are started again when they die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import httpx

from pipeline.stores.connection import connect
from pipeline.stores.lake import Lake
from tests.chaos.clocks import Clock
from tests.chaos.ledger import Ledger
from tests.chaos.objectstore import ObjectStore
from tests.chaos.powercut import AppendOnlyFile
from tests.chaos.profiles import BARRIERS
from tests.chaos.traffic import DISORDER_SECONDS, IDLE_AFTER_SECONDS, RULES, WINDOW_SECONDS
from tests.harness import Stack, eventually, free_port

ROOT = Path(__file__).parents[2]
WORKERS, APIS = 3, 2
LEASE_MS = 1000
STOP_SECONDS = 40
START_SECONDS = 15  # after which a process has its signal handlers
SETTINGS = {
    "PIPELINE_WINDOW_SECONDS": str(WINDOW_SECONDS),
    "PIPELINE_DISORDER_SECONDS": str(DISORDER_SECONDS),
    "PIPELINE_IDLE_AFTER_SECONDS": str(IDLE_AFTER_SECONDS),
    "PIPELINE_LATENESS_MAX_SECONDS": str(30 * 86_400),
    "PIPELINE_TICK_INTERVAL_SECONDS": "2",
    "PIPELINE_LEASE_MS": str(LEASE_MS),
    "PIPELINE_POLL_INTERVAL_MS": "100",
    "PIPELINE_COMMIT_INTERVAL_MS": "500",
    "PIPELINE_REDIS_TIMEOUT_SECONDS": "2",
    "PIPELINE_BACKOFF_MAX_SECONDS": "1",
    "PIPELINE_COMPACT_INTERVAL_SECONDS": "2",
    "PIPELINE_COMPACT_FILES_MIN": "4",
    "POLARS_MAX_THREADS": "1",
}


class Arena(Stack):
    """A `Stack` whose processes are `tests.chaos.process`, with clocks of their own, kept at their number."""

    def __init__(self, folder: Path, fsync: str, *, clocks: bool, store: ObjectStore | None = None, **settings: str) -> None:
        super().__init__(folder, fsync, **{**SETTINGS, **settings})
        self.store = store
        self.ledger = Ledger()
        self.aof = AppendOnlyFile(folder / "redis")
        self.losses: list[float] = []  # when Redis may have lost what it had answered, by `clock`
        self._began = time.monotonic()
        self.control = folder / "control"
        for name in ("arm", "landed"):
            (self.control / name).mkdir(parents=True, exist_ok=True)
        self.clocks = {name: Clock(self.control, name) for name in ("worker", "ingest", "maintain", "redis")}
        self._faked = clocks
        if clocks:
            self.redis_environment = {**os.environ, **self.clocks["redis"].environment()}
        self.ports = [free_port() for _ in range(APIS)]
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        self.port = self.ports[0]
        self.apis: list[subprocess.Popen | None] = [None] * APIS
        self.maintainer: subprocess.Popen | None = None
        self.wanted_workers = WORKERS
        self.unexpected: list[str] = []  # processes that ended and were not told to
        self._doomed: Counter[int] = Counter()  # pids whose end is a fault's work, and how many faults are at it
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._tender = threading.Thread(target=self._tend, name="tender")
        # One fault at a time of each part.
        self.redis_busy, self.lake_busy, self.clock_busy = threading.Lock(), threading.Lock(), threading.Lock()
        self.barrier_busy = {barrier: threading.Lock() for barrier in (*chain(*BARRIERS.values()), "lost_reply")}

    def clock(self) -> float:
        """Seconds since this arena was made; faults and traffic are told apart by it."""
        return time.monotonic() - self._began

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._tender.is_alive():
            self._tender.join()
        self.others += [process for process in (*self.apis, self.maintainer) if process is not None]
        super().__exit__(*error)

    def spawn(self, *arguments: str, **extra: str) -> subprocess.Popen:
        role = arguments[0]
        path = self.folder / "logs" / f"{len(list((self.folder / 'logs').iterdir())):03}-{role}.log"
        environment = {
            **self.environment, **extra, "PYTHONPATH": str(ROOT), "CHAOS_CONTROL": str(self.control),
            **(self.clocks[role].environment() if self._faked else {}),
        }  # fmt: skip
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.process", *arguments],
                env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder,
            )  # fmt: skip
        process.log, process.began = path, time.monotonic()
        return process

    def begin(self) -> None:
        """Start everything, and wait until events are taken and judged by the rules of the traffic."""
        for _ in range(WORKERS):
            self.start_worker()
        for number in range(APIS):
            self._start_api(number)
        self.maintainer = self.spawn("maintain")
        self.wait_ready(60)

        def ruled() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.put(f"{self.url}/v1/rules", content=RULES).status_code == 200
            return False

        eventually(ruled, 60, "the rules are set")
        version = f"rules version {httpx.get(f'{self.url}/v1/rules').headers['X-Rules-Version']}"
        eventually(lambda: all(version in worker.log.read_text() for worker in self.workers), 60, "every worker has the rules")
        self._tender.start()

    def _start_api(self, number: int) -> None:
        self.apis[number] = self.spawn("ingest", PIPELINE_API_PORT=str(self.ports[number]))

    # Who is there

    def alive(self) -> list[subprocess.Popen]:
        """Workers that run and are not about to die of a fault."""
        with self._lock:
            return [worker for worker in self.workers if worker.poll() is None and not self._doomed[worker.pid]]

    def of_role(self, role: str) -> list[subprocess.Popen]:
        """The processes of a role that run."""
        with self._lock:
            all_of = {"worker": self.workers, "ingest": self.apis, "maintain": [self.maintainer]}[role]
            return [process for process in all_of if process.poll() is None]

    def held_by_pid(self) -> dict[int, list[int]]:
        """pid -> partitions held, as Redis has it."""
        return {int(owner.split("-")[-2]): partitions for owner, partitions in self.holders().items()}

    @property
    def client(self):
        return connect(self.settings.redis_url, 2)

    def lake(self) -> Lake:
        return Lake(self.settings.lake, storage_options=self.store.environment() if self.store else None)

    @contextlib.contextmanager
    def doom(self, process: subprocess.Popen):
        """From here on the end of this process is no surprise, and no other fault takes it for its victim; if it goes on
        after this although it was not told to end, it is one of the others again."""
        with self._lock:
            self._doomed[process.pid] += 1
        try:
            yield
        finally:
            with self._lock:  # `poll` says None to one of two threads that ask at the same moment
                if process.poll() is None:
                    self._doomed[process.pid] -= 1

    def terminate(self, process: subprocess.Popen) -> None:
        """SIGTERM: it will end, sooner or later."""
        with self._lock:
            self._doomed[process.pid] += 1
        process.terminate()

    def join(self) -> subprocess.Popen:
        """One worker more."""
        with self._lock:
            self.wanted_workers += 1
            return self.start_worker()

    def leave(self) -> None:
        """One worker less is wanted: the next that ends is not started again."""
        with self._lock:
            self.wanted_workers = max(WORKERS, self.wanted_workers - 1)

    def _tend(self) -> None:
        """Start again what ended; note what ended by itself."""
        while not self._over.wait(0.1):
            with self._lock:
                for worker in [worker for worker in self.workers if worker.poll() is not None]:
                    self.workers.remove(worker)
                    self._note_end(worker)
                while len(self.workers) < self.wanted_workers:
                    self.start_worker()
                for number, api in enumerate(self.apis):
                    if api.poll() is not None:
                        self._note_end(api)
                        self._start_api(number)
                if self.maintainer.poll() is not None:
                    self._note_end(self.maintainer)
                    self.maintainer = self.spawn("maintain")

    def _note_end(self, process: subprocess.Popen) -> None:
        killed = process.returncode == -signal.SIGKILL and any(
            not marker.name.startswith("clock") for marker in (self.control / "landed").glob(f"*@{process.pid}-*")
        )
        if not self._doomed[process.pid] and not killed:
            words = process.log.read_text(errors="replace").strip().splitlines()[-1:]
            self.unexpected.append(f"{process.log.name} (pid {process.pid}) ended with {process.returncode}: {' '.join(words)}")

    def end(self) -> None:
        """No more starts; workers hand over and leave, and the rest stops."""
        self._over.set()
        self._tender.join()
        leaving = [*self.workers, self.maintainer, *self.apis]
        for process in leaving:
            process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        deadline = told + STOP_SECONDS
        for process in leaving:
            try:
                ended = process.wait(max(0.1, deadline - time.monotonic()))
                unaware = ended == -signal.SIGTERM and told - process.began < START_SECONDS  # it was just starting
                if ended != 0 and not unaware:
                    self.unexpected.append(f"{process.log.name} ended with {process.returncode} on SIGTERM")
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGUSR1)  # where it stands goes to its log
                time.sleep(0.5)
                self.unexpected.append(f"{process.log.name} (pid {process.pid}) did not stop within {STOP_SECONDS} s of SIGTERM")
