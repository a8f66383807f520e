"""The pipeline as its real processes, all defaults on, and what each of them costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from benchmarks.workload import RULES, Workload
from pipeline.stores.connection import stream_key
from pipeline.stores.rulebook import DEFAULT
from tests.harness import NEVER_WAIT, Stack, eventually, peak_mb

DEFAULTS = {"PIPELINE_WINDOW_SECONDS": "60", "PIPELINE_DISORDER_SECONDS": "20", "PIPELINE_IDLE_AFTER_SECONDS": "60"}
DRAINED_SECONDS_MAX = 300


class System(Stack):
    """Redis with AOF everysec, the API and workers, with the default rules and those of the workload."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, fsync="everysec", **{**DEFAULTS, **settings})

    def start(self, workers: int = 2) -> None:
        super().start(workers)
        document = DEFAULT.read_text().rstrip() + "\n" + RULES + "\n" + NEVER_WAIT
        httpx.put(f"{self.url}/v1/rules", content=document, timeout=10).raise_for_status()
        fair = sorted((len(range(n, self.settings.partitions, workers)) for n in range(workers)), reverse=True)
        eventually(lambda: self.shares() == fair, 60, "fair shares")
        eventually(lambda: self.logs().count("rules version 2") >= workers, 20, "every worker has the rules")

    def shares(self) -> list[int]:
        """How many partitions each worker holds, most first."""
        return sorted(map(len, self.holders().values()), reverse=True)

    def processes(self) -> dict[str, psutil.Process]:
        """What is measured, by name."""
        running = {"redis": self.redis, "api": self.api, **{f"worker {n}": worker for n, worker in enumerate(self.workers, 1)}}
        return {name: psutil.Process(process.pid) for name, process in running.items() if process and process.poll() is None}

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time of each process so far."""
        return {name: sum(process.cpu_times()[:2]) for name, process in self.processes().items()}

    def peak_mb(self) -> dict[str, int]:
        """The largest resident size that each process has had."""
        return {name: peak_mb(process.pid) for name, process in self.processes().items()}

    def wait_committed(self, events: int) -> None:
        """Until so many events are in the tables."""
        lake = self.lake()

        def committed() -> bool:
            counts = lake.counts()
            return counts["aggregated"] + counts["late"] >= events

        eventually(committed, DRAINED_SECONDS_MAX, "all is committed")

    def read_up(self) -> bool:
        """Whether every entry was delivered to a worker."""
        for partition in range(self.settings.partitions):
            stream = stream_key(partition)
            if self.client.xinfo_groups(stream)[0]["last-delivered-id"] != self.client.xinfo_stream(stream)["last-generated-id"]:
                return False
        return True

    def wait_at_rest(self) -> None:
        """Until all that came is read, and what could be made of it is committed."""
        eventually(self.read_up, DRAINED_SECONDS_MAX, "all is read")
        time.sleep(2 * self.settings.commit_interval_ms / 1000)

    def close_windows(self, workload: Workload) -> None:
        """Let the workload's last windows close."""
        events = workload.last_events()
        for start in range(0, len(events), 1000):
            assert self.post(events[start : start + 1000]).status_code == 202


def cpu_of(command: list[str], *, cwd: Path) -> tuple[float, str]:
    """CPU seconds of a whole process, start-up included, and what it printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd, env={**os.environ, "POLARS_MAX_THREADS": "2"})
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[2]} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, printed
