"""Admission, shared through Redis: what is seen of the partitions, what each replica was offered, and what holds for all.

Whoever finds the last decisions old enough makes the next ones; of two that do at once, the first writes and both go by that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import redis
import redis.asyncio

from pipeline.core.admission import Decision, Demand, Limits, Signals, decide, read_rate
from pipeline.stores import connection as keys
from pipeline.stores.connection import GROUP, memory_of, script, translated
from pipeline.stores.reports import REPORT_SECONDS_MAX, recent
from pipeline.stores.streams import backlog_of

DECISIONS = "admission:decisions"
DEMAND = "admission:demand"
DECIDE_SECONDS = 0.5
DEMAND_SECONDS_MAX = 5.0  # what a replica said longer ago is no longer true


@dataclass(frozen=True)
class Decisions:
    """What holds for all partitions. `at`: seconds, by Redis' clock; `read`: events read by then, per partition."""

    number: int = 0
    at: float = 0.0
    partitions: Mapping[int, Decision] = field(default_factory=dict)
    read: Mapping[int, float] = field(default_factory=dict)
    rates: Mapping[int, float] = field(default_factory=dict)

    def of(self, partition: int) -> Decision:
        return self.partitions.get(partition, _OPEN)

    @cached_property
    def noted(self) -> dict[int, Decision]:
        """The partitions where it matters who sends how much: asked for with each group of bodies."""
        return {partition: each for partition, each in self.partitions.items() if each.noted}


_OPEN = Decision()


def dumped(decisions: Decisions) -> str:
    """As it is kept: the number, then JSON."""
    standing = {partition: asdict(each) for partition, each in decisions.partitions.items()}
    whole = {"at": decisions.at, "partitions": standing, "read": dict(decisions.read), "rates": dict(decisions.rates)}
    return f"{decisions.number} {json.dumps(whole)}"


def loaded(text: bytes | None) -> Decisions:
    """What `dumped` wrote; nothing stands where it is something else."""
    try:
        number, _, rest = (text or b"").partition(b" ")
        whole = json.loads(rest)
        return Decisions(
            int(number), float(whole["at"]),
            {int(partition): Decision(**each) for partition, each in whole["partitions"].items()},
            {int(partition): float(count) for partition, count in whole["read"].items()},
            {int(partition): float(rate) for partition, rate in whole["rates"].items()},
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError):
        return Decisions()


def standing(client: redis.Redis) -> Decisions:
    """What holds now. Unavailable: Redis is away."""
    with translated():
        return loaded(client.get(DECISIONS))


class Desk:
    """A replica's end."""

    def __init__(self, client: redis.asyncio.Redis, partitions: int, replica: str) -> None:
        self._redis = client
        self._partitions = partitions
        self._replica = replica
        self._told = False  # whether our demand stands in Redis
        self._backlog, self._decide = script("backlog"), script("decide")

    async def turn(self, demand: Mapping[int, Demand], limits: Limits) -> Decisions:
        """Say what was offered here, and get what holds; made anew if it is due. Unavailable: Redis is away."""
        with translated():
            seconds, micros = await self._redis.time()
            now = seconds + micros / 1e6
            if demand or self._told:
                await self._redis.hset(DEMAND, self._replica, json.dumps({"at": now, "demand": {p: asdict(d) for p, d in demand.items()}}))
                self._told = bool(demand)
            before = loaded(await self._redis.get(DECISIONS))
            if 0 <= now - before.at < DECIDE_SECONDS * 0.9:
                return before
            signals, read = await self._signals(before, now)
            demands = await self._demands(now)
            made = next_decisions(before, signals, read, demands, limits, now)
            return loaded(await self._redis.eval(self._decide, 1, DECISIONS, before.number, dumped(made)))

    async def _signals(self, before: Decisions, now: float) -> tuple[dict[int, Signals], dict[int, float]]:
        pipe = self._redis.pipeline(transaction=False)
        for partition in range(self._partitions):
            pipe.eval(self._backlog, 2, keys.stream_key(partition), keys.books_key(partition), GROUP)
        seen = await pipe.execute()
        memory, said = await self._redis.info("memory"), await self._redis.hgetall(keys.REPORTS)
        share = memory_share(memory)
        commit = slowest_commit(recent(said, now, REPORT_SECONDS_MAX))
        elapsed = now - before.at
        signals, read = {}, {}
        for partition, backlog in enumerate(map(backlog_of, seen)):
            read[partition] = float(backlog.read_events)
            rate = before.rates.get(partition, 0.0)
            if 0 < elapsed < 10 and partition in before.read:
                rate = read_rate(rate, max(0.0, read[partition] - before.read[partition]) / elapsed, elapsed, before.of(partition).state)
            signals[partition] = Signals(backlog.oldest_seconds, float(backlog.events), share, commit, rate)
        return signals, read

    async def _demands(self, now: float) -> dict[int, Demand]:
        found: dict[int, Demand] = {}
        kept = await self._redis.hgetall(DEMAND)
        said = recent(kept, now, DEMAND_SECONDS_MAX)
        if silent := {name.decode() for name in kept} - said.keys():
            await self._redis.hdel(DEMAND, *silent)
        for replica in said.values():
            for partition, each in replica["demand"].items():
                classes = {int(step): tuple(pair) for step, pair in each.pop("classes").items()}
                found[int(partition)] = found.get(int(partition), Demand()).plus(Demand(classes, **each))
        return found


def next_decisions(
    before: Decisions, signals: Mapping[int, Signals], read: Mapping[int, float], demands: Mapping[int, Demand], limits: Limits, now: float
) -> Decisions:
    """The decisions after `before`, of every partition."""
    standing = {p: decide(before.of(p), seen, demands.get(p, Demand()), limits, now) for p, seen in signals.items()}
    return Decisions(before.number + 1, now, standing, read, {p: seen.read_events_per_second for p, seen in signals.items()})


def memory_share(memory: Mapping[str, Any]) -> float:
    """How much of its limit Redis has in use; 0 where it has none."""
    infos = [each for each in memory.values() if isinstance(each, dict)] or [memory]  # a cluster tells node by node
    return max(memory_of(each).share for each in infos)


def slowest_commit(reports: Mapping[str, dict]) -> float:
    """How long the oldest commit of the workers that is not done has been going on, in seconds."""
    return max((said.get("committing_seconds", 0.0) for said in reports.values()), default=0.0)
