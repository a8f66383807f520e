"""`python -m benchmarks.overload`: clients offer five times what the worker can take, one of them most of it.

The worker stands still most of the time, so that the clients and the API fit beside it on a small machine. Figures, a file of
samples and a plot; exit code 1 where something accepted was not aggregated, or Redis came near its limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx
import msgspec
import numpy as np

from pipeline.core.partitions import partition_of
from pipeline.status import status
from tests.harness import NEVER_WAIT, Stack, eventually

DEVICES = 12  # the last is the heavy one
HEAVY_TIMES = 50  # its share
OTHERS_SHARE = 0.8  # of what the worker takes, by the other devices together: alone they would fit
BODY_EVENTS = 500
REDIS_MEMORY_MB = 256
SAMPLE_SECONDS = 0.5
RUNS_SECONDS, STANDS_SECONDS = 0.01, 0.09
HEAVY_LANES = 8
SETTINGS = {
    "PIPELINE_READ_ENTRIES_MAX": "1",
    "PIPELINE_PARTITIONS": "4",
    "PIPELINE_GROUP_EVENTS_MAX": "500",
    "PIPELINE_DISORDER_SECONDS": "20",
    "PIPELINE_RULES_RELOAD_SECONDS": "1",
}
UNLIMITED = "rules: []\n" + NEVER_WAIT
LIMITED = "rules: []\nadmission: {fair: {lag: 3s}, closed: {lag: 20s}, priority: ['*oper-status*']}\n"


@dataclass
class Account:
    """What became of one device's events. `first_time`: taken at the first attempt."""

    offered: int = 0
    first_time: int = 0
    accepted: int = 0
    priority_offered: int = 0
    priority_first_time: int = 0


@dataclass
class Clients:
    """Devices that send at their rate, each body again as long as it is told to wait; what is too old is never sent."""

    url: str
    rates: list[float]
    accounts: list[Account] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of accepted requests
    answers: Counter = field(default_factory=Counter)
    over: bool = False

    def __post_init__(self) -> None:
        self.accounts = [Account() for _ in self.rates]

    async def run(self, seconds: float) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client:
            lanes = [(number, rate, True) for number, rate in enumerate(self.rates[:-1])]
            lanes += [(DEVICES - 1, self.rates[-1] / HEAVY_LANES, lane % 2 == 0) for lane in range(HEAVY_LANES)]
            tasks = [asyncio.create_task(self._lane(client, *lane)) for lane in lanes]
            await asyncio.sleep(seconds)
            self.over = True
            await asyncio.gather(*tasks)

    async def _lane(self, client: httpx.AsyncClient, number: int, rate: float, lenient: bool) -> None:
        """One body in flight; who has to wait falls behind, and skips what it could not send, as a collector with a bound does.

        `lenient`: it understands an answer to a part; else its bodies hold no priority metric, and are taken whole or not at all.
        """
        account, every, next_at, sent = self.accounts[number], BODY_EVENTS / rate, time.monotonic(), 0
        while not self.over:
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            due = max(1, int((time.monotonic() - next_at) / every) + 1)
            next_at += due * every
            account.offered += (due - 1) * BODY_EVENTS  # what it could not even send
            await self._until_taken(client, account, _events(number, sent, priority=lenient), lenient)
            sent += 1

    async def _until_taken(self, client: httpx.AsyncClient, account: Account, events: list[dict], lenient: bool) -> None:
        account.offered += len(events) - lenient
        account.priority_offered += lenient
        headers = {"Content-Type": "application/json", **({"Prefer": "handling=lenient"} if lenient else {})}
        first = True
        while events and not self.over:
            began = time.monotonic()
            answer = await client.post(f"{self.url}/v1/events", content=msgspec.json.encode(events), headers=headers)
            self.answers[answer.status_code] += 1
            left = list(range(len(events)))
            if answer.status_code == 202:
                self.seconds.append(time.monotonic() - began)
                said = answer.json()
                left = said.get("not_admitted", [])
                account.accepted += said["accepted"]
            gone = set(range(len(events))) - set(left)
            if first:
                account.priority_first_time += lenient and 0 in gone
                account.first_time += len(gone) - (lenient and 0 in gone)
            first, events = False, [events[at] for at in left]
            if events:
                await asyncio.sleep(int(answer.headers.get("Retry-After") or said["retry_after_seconds"]))


def _events(number: int, sent: int, *, priority: bool) -> list[dict]:
    """Counters at this moment; the first event may be of a priority metric instead."""
    now = time.time_ns() // 1_000_000
    device = _names()[number]
    rows = [
        {"device": device, "interface": f"eth{place}", "metric": "in-octets", "value": sent, "timestamp": now}
        for place in range(BODY_EVENTS)
    ]
    if priority:
        rows[0] = {"device": device, "metric": "oper-status", "value": 1, "timestamp": now}
    return rows


def _names() -> list[str]:
    return [f"device-{number}" for number in range(DEVICES - 1)] + ["heavy"]


def capacity(stack: Stack, events: int = 40_000) -> float:
    """What the worker takes, in events per second, of a backlog."""
    bodies = [_events(number % DEVICES, number, priority=False) for number in range(events // BODY_EVENTS)]
    with httpx.Client(timeout=30) as client:
        for body in bodies:
            client.post(f"{stack.url}/v1/events", content=msgspec.json.encode(body)).raise_for_status()
    began, before = time.monotonic(), status(stack.settings, stack.client)["backlog_events"]
    eventually(lambda: status(stack.settings, stack.client)["backlog_events"] < before / 5, 120, "most of the backlog is read")
    return 0.8 * before / (time.monotonic() - began)


async def _sampled(stack: Stack, samples: list[dict], over: asyncio.Event) -> None:
    began = time.monotonic()
    while not over.is_set():
        now = await asyncio.to_thread(status, stack.settings, stack.client)
        samples.append({
            "seconds": time.monotonic() - began, "lag_seconds": now["lag_seconds"], "backlog_events": now["backlog_events"],
            "memory_bytes": now["redis"]["memory_bytes"], "state": now["admission"]["state"],
            "states": {each["partition"]: each["admission"] for each in now["partitions"]},
        })  # fmt: skip
        await asyncio.sleep(SAMPLE_SECONDS)


async def _load(stack: Stack, clients: Clients, seconds: float, say) -> list[dict]:
    samples: list[dict] = []
    over = asyncio.Event()
    sampling = asyncio.create_task(_sampled(stack, samples, over))
    await clients.run(seconds)
    stopped = samples[-1]["seconds"]
    say(f"{seconds:.0f} s of load are over; waiting until all is read and open again")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (samples[-1]["state"] == "open" and not samples[-1]["backlog_events"]):
        await asyncio.sleep(SAMPLE_SECONDS)
    over.set()
    await sampling
    for sample in samples:
        sample["load"] = sample["seconds"] <= stopped
    return samples


def measure(seconds: float, folder: Path, say) -> dict:
    """The figures of one overload, and the samples they are from."""
    with Stack(folder, fsync="everysec", **SETTINGS) as stack:
        stack.client.config_set("maxmemory", REDIS_MEMORY_MB * 1024**2)
        stack.start(workers=1)
        threading.Thread(target=_slow_down, args=(stack,), daemon=True).start()
        _rules(stack, UNLIMITED)
        takes = capacity(stack)
        eventually(lambda: not status(stack.settings, stack.client)["backlog_events"], 60, "the backlog is read")
        _rules(stack, LIMITED)
        share = takes / DEVICES
        rates = [OTHERS_SHARE * share] * (DEVICES - 1) + [HEAVY_TIMES * share]
        say(f"the worker takes {takes:,.0f} events/s; {sum(rates):,.0f} are offered, {rates[-1] / sum(rates):.0%} of them by one device")
        clients = Clients(stack.url, rates)
        samples = asyncio.run(_load(stack, clients, seconds, say))
        books = _settled(stack)
    return {**_figures(clients, samples, takes, sum(rates)), "books": books, "samples": samples}


def _slow_down(stack: Stack) -> None:
    """Let the worker run for a tenth of the time only, as on a machine that others need more."""
    worker = stack.workers[0]
    while worker.poll() is None:
        worker.send_signal(signal.SIGCONT)
        time.sleep(RUNS_SECONDS)
        worker.send_signal(signal.SIGSTOP)
        time.sleep(STANDS_SECONDS)


def _rules(stack: Stack, document: str) -> None:
    httpx.put(f"{stack.url}/v1/rules", content=document, timeout=10).raise_for_status()
    time.sleep(2 * float(SETTINGS["PIPELINE_RULES_RELOAD_SECONDS"]) + 1)  # every API has read them


def _settled(stack: Stack) -> dict:
    books: dict = {}

    def balanced() -> bool:
        books.update(stack.books())
        return books["balanced"]

    eventually(balanced, 60, "the books balance")
    return books


def _figures(clients: Clients, samples: list[dict], takes: float, offered: float) -> dict:
    *others, heavy = clients.accounts
    mates = [account for number, account in enumerate(others) if _partition(number) == _partition(DEVICES - 1)]
    drained = next((each["seconds"] for each in samples if not each["load"] and not each["backlog_events"]), None)
    opened = next((each["seconds"] for each in samples if not each["load"] and each["state"] == "open"), None)
    return {
        "worker_events_per_second": takes,
        "offered_times": offered / takes,
        "accepted_events": sum(account.accepted for account in clients.accounts),
        "others_first_time": sum(a.first_time for a in others) / sum(a.offered for a in others),
        "others_in_its_partition_first_time": sum(a.first_time for a in mates) / max(1, sum(a.offered for a in mates)) if mates else None,
        "heavy_first_time": heavy.first_time / heavy.offered,
        "priority_first_time": sum(a.priority_first_time for a in clients.accounts) / sum(a.priority_offered for a in clients.accounts),
        "accepted_p50_ms": float(np.percentile(clients.seconds, 50)) * 1000,
        "accepted_p99_ms": float(np.percentile(clients.seconds, 99)) * 1000,
        "lag_seconds_max": max(each["lag_seconds"] for each in samples),
        "redis_memory_share_max": max(each["memory_bytes"] for each in samples) / (REDIS_MEMORY_MB * 1024**2),
        "opened_after_drain_seconds": None if drained is None or opened is None else max(0.0, opened - drained),
        "changes_of_state": _changes(samples),
        "answers": dict(clients.answers),
    }


def _partition(number: int) -> int:
    return partition_of(_names()[number], int(SETTINGS["PIPELINE_PARTITIONS"]))


def _changes(samples: list[dict]) -> int:
    """The most that one partition has had."""
    partitions = samples[0]["states"]
    of = {p: [each["states"][p] for each in samples] for p in partitions}
    return max(sum(a != b for a, b in pairwise(states)) for states in of.values())


def plot(found: dict, path: Path) -> None:
    """Lag, backlog, memory and state over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    samples = found["samples"]
    at = [each["seconds"] for each in samples]
    figure, axes = pyplot.subplots(4, 1, figsize=(10, 9), sharex=True)
    series = (
        ("lag, s", [each["lag_seconds"] for each in samples]),
        ("unread events", [each["backlog_events"] for each in samples]),
        ("Redis memory, share of its limit", [each["memory_bytes"] / REDIS_MEMORY_MB / 1024**2 for each in samples]),
        ("admission (0 open, 1 fair, 2 closed)", [("open", "fair", "closed").index(each["state"]) for each in samples]),
    )
    for axis, (name, values) in zip(axes, series, strict=True):
        axis.plot(at, values, drawstyle="steps-post" if name.startswith("admission") else "default")
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.axvspan(0, max((each["seconds"] for each in samples if each["load"]), default=0), alpha=0.1)
    axes[-1].set_xlabel(f"seconds; {found['offered_times']:.1f} times what the worker takes is offered while shaded")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    """Run it, print the figures, and leave samples and plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="of load (180)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of overload.json and overload.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.seconds, Path(folder), lambda text: print(f"overload  {text}", file=sys.stderr, flush=True))
    (options.out / "overload.json").write_text(json.dumps(found))
    plot(found, options.out / "overload.png")
    for name, value in found.items():
        if name not in ("samples", "books"):
            shown = f"{value:,.3f}" if isinstance(value, float) else value
            print(f"{name:<36} {shown}")
    accounted = found["books"]["balanced"] and found["redis_memory_share_max"] < 1
    print(f"{'books':<36} {found['books']}")
    return 0 if accounted else 1


if __name__ == "__main__":
    sys.exit(main())
