"""CPU seconds per million events: of the workload against the limit, by number of series and workers, and of small requests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx
import psutil

from benchmarks.load import post_all
from benchmarks.system import System, cpu_of
from benchmarks.workload import BODY_EVENTS, CONTENT_TYPES, Workload, differences
from pipeline.stores.catalog import open_catalog, write_catalog
from tests.harness import eventually, free_port

ROOT = Path(__file__).parents[1]
SMALL_REQUESTS = 20_000
KNOWN_POLLS = 12  # two windows, of which one has closed


def w1(repeats: int, say) -> dict:
    """The workload with JSON and with Arrow bodies, HTTP to committed tables, and the limit beside them, by turns."""
    workload = Workload()
    answer = workload.answer()
    bodies = {form: workload.bodies(form) for form in CONTENT_TYPES}
    runs: dict[str, list[dict]] = {form: [] for form in CONTENT_TYPES}
    limits = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w1.ndjson"
        workload.write_ndjson(path)
        for turn in range(repeats):
            seconds, printed = cpu_of([sys.executable, "-m", "benchmarks.limit", str(path)], cwd=ROOT)
            assert json.loads(printed) == {"windows": answer[0].height, "anomalies": answer[1].height}, printed
            limits.append(seconds / workload.events.height * 1e6)
            for form in CONTENT_TYPES:
                runs[form].append(run(workload, bodies[form], form, answer))
                say(f"{turn + 1}/{repeats} {form}: {runs[form][-1]['cpu']:.2f} CPU-s per M events, limit {limits[-1]:.2f}")
    limit = median(limits)
    found = {form: {**_middle(each), "ratio": median(run["cpu"] for run in each) / limit} for form, each in runs.items()}
    return {"limit": limit, "limits": limits, **found}


def run(workload: Workload, bodies: list[bytes], form: str, answer=None, workers: int = 2) -> dict:
    """One run of the workload; with an answer it only counts if the tables hold just that."""
    folder = Path(tempfile.mkdtemp())
    try:
        with System(folder) as system:
            system.start(workers)
            before = system.cpu_seconds()
            began = time.perf_counter()
            posting = post_all(system.port, bodies, CONTENT_TYPES[form])
            system.close_windows(workload)
            system.wait_committed(workload.events.height)
            whole = time.perf_counter() - began
            after = system.cpu_seconds()
            parts = _per_million(before, after, workload.events.height)
            peak = system.peak_mb()
            if answer is not None:
                write_catalog(folder / "data" / "catalog.duckdb")
                with open_catalog(folder / "data") as lake:
                    if wrong := differences(lake, answer):
                        raise SystemExit(f"the result is wrong, so the figure is none: {'; '.join(wrong)}")
            return {"cpu": sum(parts.values()), "parts": parts, "events_per_second": workload.events.height / whole,
                    "posted_per_second": workload.events.height / posting, "peak_mb": peak}  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _known_fleet(workload: Workload, bodies: list[bytes]) -> dict:
    """Cost of what comes after the first polls, when every series is known and as many windows close as open."""
    first = KNOWN_POLLS * workload.series // BODY_EVENTS
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, System(Path(folder)) as system:
        system.start(workers=2)
        post_all(system.port, bodies[:first], CONTENT_TYPES["json"])
        system.wait_at_rest()
        before = system.cpu_seconds()
        post_all(system.port, bodies[first:], CONTENT_TYPES["json"])
        system.wait_at_rest()
        parts = _per_million(before, system.cpu_seconds(), workload.events.height - first * BODY_EVENTS)
        return {"cpu": sum(parts.values()), "parts": parts, "peak_mb": system.peak_mb()}


def _per_million(before: dict[str, float], after: dict[str, float], events: int) -> dict[str, float]:
    """CPU seconds of each process per million events."""
    return {name: (after[name] - before[name]) / events * 1e6 for name in before}


def _middle(runs: list[dict]) -> dict:
    """The run of the median cost."""
    return sorted(runs, key=lambda run: run["cpu"])[len(runs) // 2] | {"all": [run["cpu"] for run in runs]}


def scaling(repeats: int, say) -> dict:
    """Cost per event of a fleet that is known, by its number of series, with two workers; by number of workers with 20,000 series."""
    found: dict[str, dict] = {"series": {}, "workers": {}}
    for devices, polls in ((25, 1998), (500, 102), (5000, 12)):
        workload = Workload(devices, KNOWN_POLLS + polls)
        bodies = workload.bodies("json")
        known = _middle([_known_fleet(workload, bodies) for _ in range(repeats)])
        found["series"][workload.series] = known
        say(f"{workload.series:,} series: {known['cpu']:.2f} CPU-s per M events")
    workload = Workload()
    bodies = workload.bodies("json")
    for workers in (1, 2, 4):
        found["workers"][workers] = _middle([run(workload, bodies, "json", workers=workers) for _ in range(repeats)])
        say(f"{workers} workers: {found['workers'][workers]['cpu']:.2f} CPU-s per M events")
    return found


def small_requests(repeats: int, say) -> dict:
    """One event per POST: CPU of our API beside that of an endpoint that only reads, by number of connections."""
    body = json.dumps({"device": "r-0001", "interface": "eth0", "metric": "cpu_pct", "value": 12.5, "timestamp": 1_767_225_600_000})
    bodies = [body.encode()] * SMALL_REQUESTS
    found: dict[int, dict] = {}
    port = free_port()
    empty = subprocess.Popen([sys.executable, "-m", "benchmarks.empty", str(port)], cwd=ROOT)
    folder = Path(tempfile.mkdtemp())
    try:
        eventually(lambda: _answers(port), 20, "the empty endpoint answers")
        with System(folder) as system:
            system.start(workers=1)
            for connections in (16, 64, 128):
                ratios, costs = [], []
                for _ in range(repeats):
                    theirs = _cpu_while(empty.pid, lambda: post_all(port, bodies, "application/json", connections))  # noqa: B023
                    ours = _cpu_while(system.api.pid, lambda: post_all(system.port, bodies, "application/json", connections))  # noqa: B023
                    ratios.append(ours / theirs)
                    costs.append(ours / SMALL_REQUESTS * 1e6)
                found[connections] = {"ratio": median(ratios), "microseconds": median(costs)}
                say(f"{connections} connections: {median(ratios):.2f} times an empty endpoint")
    finally:
        empty.kill()
        empty.wait()
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _answers(port: int) -> bool:
    try:
        return httpx.post(f"http://127.0.0.1:{port}/v1/events", content=b"{}", timeout=2).status_code == 202
    except httpx.HTTPError:
        return False


def _cpu_while(pid: int, work) -> float:
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    work()
    return sum(process.cpu_times()[:2]) - before
