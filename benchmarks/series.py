"""Memory of one worker by the number of series that it knows, and under a device that goes on inventing series."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.load import post_all
from benchmarks.system import System
from benchmarks.workload import Workload
from tests.harness import eventually, peak_mb

POLLS = 12  # two minutes: what is open is twice a window
REST_SECONDS = 8
INVENTED = 1_000_000
BODY_EVENTS = 5_000


def memory(repeats: int, say) -> dict:
    """{series: {rest_mb, peak_mb}} with all defaults on; and before, while and after a device invents a million of them."""
    found: dict = {"series": {}, "invented": {}}
    for devices in (500, 5_000, 10_000):
        workload = Workload(devices, POLLS)
        found["series"][workload.series] = max((_known(workload) for _ in range(repeats)), key=lambda run: run["peak_mb"])
        say(f"{workload.series:,} series: {found['series'][workload.series]}")
    found["invented"] = _flooded()
    say(f"{INVENTED:,} invented: {found['invented']}")
    return found


def _known(workload: Workload) -> dict:
    folder = Path(tempfile.mkdtemp())
    try:
        with System(folder) as system:
            system.start(workers=1)
            post_all(system.port, workload.bodies("arrow"), "application/vnd.apache.arrow.stream")
            system.close_windows(workload)
            system.wait_committed(workload.events.height)
            time.sleep(REST_SECONDS)
            return {"rest_mb": _rest_mb(system), "peak_mb": peak_mb(system.workers[0].pid)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flooded() -> dict:
    """One device, every event of a series of its own; its limit is met at once."""
    folder = Path(tempfile.mkdtemp())
    try:
        with System(folder) as system:
            system.start(workers=1)
            found: dict = {"rest_mb": []}
            for turn in range(5):
                for start in range(0, INVENTED // 5, BODY_EVENTS):
                    names = range(turn * INVENTED // 5 + start, turn * INVENTED // 5 + start + BODY_EVENTS)
                    event = {"device": "inventor", "metric": "x", "value": 1}
                    sent = system.post([{**event, "interface": f"tunnel-to-nowhere-{n:08}"} for n in names])
                    assert sent.status_code == 202, sent.text
                eventually(system.read_up, 60, "all is read")
                time.sleep(REST_SECONDS)
                found["rest_mb"].append(_rest_mb(system))
            dead = system.lake().counts()["dead_lettered"]
            return {**found, "peak_mb": peak_mb(system.workers[0].pid), "dead_lettered": dead}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rest_mb(system: System) -> int:
    return psutil.Process(system.workers[0].pid).memory_info().rss // 2**20
