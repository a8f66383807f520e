"""`python -m benchmarks.overload`: clients offer five times what the worker can take, one of them most of it.

The worker is slowed down to a rate that is known, so that the clients and the API fit beside it on a small machine; what it did read
while it was behind is a figure of its own. Samples and a plot are left; exit code 1 where something accepted was not aggregated, or
Redis came near its limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
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
from pipeline.stores.streams import Streams
from tests.harness import Stack, eventually

DEVICES = 12  # the last is the heavy one
OTHERS_SHARE = 0.8  # of what the worker takes, by the other devices together: alone they would fit
OFFERED_TIMES = 5.0  # what it takes, by all; the heavy one alone has 84 % of it, 50 times its share
BODY_EVENTS = 500
REDIS_MEMORY_MB = 256
SAMPLE_SECONDS = 0.5
READ_SECONDS = 5.0  # over which the plot shows what was read: a worker reads much at once
WORKER_EVENTS_PER_SECOND = 10_000
BEHIND_EVENTS = 5_000  # with so many unread, in one partition at least, the worker reads what it can
HEAVY_LANES = 8
SETTINGS = {
    "PIPELINE_STEP_ROWS_MAX": "10000",  # a step takes a second then, as that of a whole worker does
    "PIPELINE_LEASE_MS": "20000",  # it is stopped for longer where the throttle was late
    "PIPELINE_READ_ENTRIES_MAX": "16",  # nor does one read take more than some steps, where entries before it were small
    "PIPELINE_PARTITIONS": "4",
    "PIPELINE_DISORDER_SECONDS": "20",
    "PIPELINE_RULES_RELOAD_SECONDS": "1",
}
RULES = "rules: []\n"  # and admission by its defaults


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
            if self.over:
                return
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


def _read(stack: Stack) -> dict[int, int]:
    """Events that the worker has read so far, of each partition."""
    partitions = range(stack.settings.partitions)
    return {partition: each.read_events for partition, each in Streams(stack.client).backlog(partitions).items()}


async def _sampled(stack: Stack, samples: list[dict], over: asyncio.Event) -> None:
    began = time.monotonic()
    while not over.is_set():
        now, read = await asyncio.to_thread(lambda: (status(stack.settings, stack.client), _read(stack)))
        samples.append({
            "seconds": time.monotonic() - began, "read_events": sum(read.values()),
            "lag_seconds": now["lag_seconds"], "backlog_events": now["backlog_events"],
            "memory_bytes": now["redis"]["memory_bytes"], "state": now["admission"]["state"],
            "states": {each["partition"]: each["admission"] for each in now["partitions"]},
            "backlogs": {each["partition"]: each["backlog_events"] for each in now["partitions"]},
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
    takes = WORKER_EVENTS_PER_SECOND
    with Stack(folder, fsync="everysec", **SETTINGS) as stack:
        stack.client.config_set("maxmemory", REDIS_MEMORY_MB * 1024**2)
        stack.start(workers=1)
        slowing = [sys.executable, "-m", "benchmarks.throttle", str(stack.workers[0].pid), str(takes)]
        slowing += [stack.settings.redis_url, str(stack.settings.partitions)]
        stack.others.append(subprocess.Popen(slowing, cwd=Path(__file__).parents[1], stdin=subprocess.DEVNULL))
        _rules(stack, RULES)
        rates = [OTHERS_SHARE * takes / (DEVICES - 1)] * (DEVICES - 1) + [(OFFERED_TIMES - OTHERS_SHARE) * takes]
        heavy = f"{rates[-1] / sum(rates):.0%} of them by one device, {rates[-1] / takes * DEVICES:.0f} times its share"
        say(f"the worker takes {takes:,.0f} events/s; {sum(rates):,.0f} are offered, {heavy}")
        clients = Clients(stack.url, rates)
        samples = asyncio.run(_load(stack, clients, seconds, say))
        books = _settled(stack)
    return {**_figures(clients, samples, takes, sum(rates)), "books": books, "samples": samples}


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


def _figures(clients: Clients, samples: list[dict], takes: int, offered: float) -> dict:
    *others, heavy = clients.accounts
    mates = [account for number, account in enumerate(others) if _partition(number) == _partition(DEVICES - 1)]
    drained = next((each["seconds"] for each in samples if not each["load"] and not each["backlog_events"]), None)
    opened = next((each["seconds"] for each in samples if not each["load"] and each["state"] == "open"), None)
    return {
        "worker_events_per_second": takes,
        "worker_read_per_second_while_behind": _read_while_behind(samples),
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


def _read_while_behind(samples: list[dict]) -> float | None:
    """What the worker did take during the overload, where it had no reason to take less than it can."""
    pairs = [(a, b) for a, b in pairwise(samples) if b["load"] and all(max(each["backlogs"].values()) >= BEHIND_EVENTS for each in (a, b))]
    seconds = sum(b["seconds"] - a["seconds"] for a, b in pairs)
    return sum(b["read_events"] - a["read_events"] for a, b in pairs) / seconds if seconds else None


def _partition(number: int) -> int:
    return partition_of(_names()[number], int(SETTINGS["PIPELINE_PARTITIONS"]))


def _changes(samples: list[dict]) -> int:
    """The most that one partition has had."""
    partitions = samples[0]["states"]
    of = {p: [each["states"][p] for each in samples] for p in partitions}
    return max(sum(a != b for a, b in pairwise(states)) for states in of.values())


def _curves(samples: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Title -> label -> a value for each sample."""
    back = [max(0, place - round(READ_SECONDS / SAMPLE_SECONDS)) for place in range(len(samples))]
    gone = [max(SAMPLE_SECONDS, each["seconds"] - samples[at]["seconds"]) for each, at in zip(samples, back, strict=True)]
    read = [(each["read_events"] - samples[at]["read_events"]) / s for each, at, s in zip(samples, back, gone, strict=True)]
    levels = ("open", "fair", "closed")
    return {
        "lag, s": {"": [each["lag_seconds"] for each in samples]},
        "unread events": {f"partition {p}": [each["backlogs"][p] for each in samples] for p in samples[0]["backlogs"]},
        f"events read per second, over {READ_SECONDS:.0f} s": {"": read},
        "Redis memory, share of its limit": {"": [each["memory_bytes"] / REDIS_MEMORY_MB / 1024**2 for each in samples]},
        "admission (0 open, 1 fair, 2 closed)": {
            f"partition {p}": [levels.index(each["states"][p]) for each in samples] for p in samples[0]["states"]
        },
    }


def plot(found: dict, path: Path) -> None:
    """Lag, backlog, reading, memory and states over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    samples = found["samples"]
    at = [each["seconds"] for each in samples]
    figure, axes = pyplot.subplots(5, 1, figsize=(10, 11), sharex=True)
    for axis, (name, values) in zip(axes, _curves(samples).items(), strict=True):
        for label, each in values.items():
            axis.plot(at, each, drawstyle="steps-post" if name.startswith("admission") else "default", label=label)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylim(bottom=0)
        if len(values) > 1:
            axis.legend(loc="upper right", fontsize=8)
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
