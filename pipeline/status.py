"""How the whole stands now, from what is in Redis: partitions and who holds them, how far they are behind, admission, the books."""

from __future__ import annotations

from typing import Any

import redis

from pipeline.core.admission import OPEN, STATES, worst
from pipeline.core.fleet import SHOWN_MAX
from pipeline.settings import Settings
from pipeline.stores.admission import DECIDE_SECONDS, Decisions, standing
from pipeline.stores.connection import fullest_memory, now_seconds, translated
from pipeline.stores.leases import Leases, live_members
from pipeline.stores.reports import Reports
from pipeline.stores.rulebook import Rulebook
from pipeline.stores.streams import Streams

STALE_TURNS = 20  # decisions that nobody has renewed for so many turns bind nobody


def status(settings: Settings, client: redis.Redis) -> dict[str, Any]:
    """As JSON may hold it; times in seconds since the epoch, by Redis' clock. Unavailable: Redis is away."""
    with translated():
        now = now_seconds(client)
    memory = fullest_memory(client)
    partitions = range(settings.partitions)
    holders = Leases(client, "status", settings.lease_ms).holders(settings.partitions)
    backlog = Streams(client).backlog(partitions)
    decisions = standing(client)
    reports = Reports(client).all()
    workers = {name: said for name, said in reports.items() if said["role"] == "worker"}
    watermarks = {int(p): at for said in workers.values() for p, at in said["fleet"]["watermarks"].items()}
    leader = next((said for said in reports.values() if said["role"] == "maintenance"), {})
    return {
        "at": now,
        "admission": _admission(decisions, now),
        "lag_seconds": max(each.oldest_seconds for each in backlog.values()),
        "backlog_events": sum(each.events for each in backlog.values()),
        "partitions": [
            {
                "partition": partition,
                "holder": holders[partition],
                "lag_seconds": backlog[partition].oldest_seconds,
                "backlog_entries": backlog[partition].entries,
                "backlog_events": backlog[partition].events,
                "stream_bytes": backlog[partition].stream_bytes,
                "watermark": watermarks.get(partition),
                "admission": decisions.of(partition).state,
            }
            for partition in partitions
        ],
        "workers": {name: workers.get(name) for name in sorted({*live_members(client, settings.lease_ms), *workers})},
        "fleet": _fleet([said["fleet"] for said in workers.values()]),
        "redis": {"memory_bytes": memory.used, "memory_max_bytes": memory.most},
        "rules_version": Rulebook(client).version(),
        "books": leader.get("books"),
    }


def _admission(decisions: Decisions, now: float) -> dict[str, Any]:
    """In one word, and why; and of how many partitions each state is."""
    if decisions.number == 0 or now - decisions.at > STALE_TURNS * DECIDE_SECONDS:
        return {"state": OPEN, "reason": "no API decides now", "since": None, "partitions": {}}
    strictest = worst(decisions.partitions.values())
    counts = {state: sum(each.state == state for each in decisions.partitions.values()) for state in STATES}
    return {"state": strictest.state, "reason": strictest.reason, "since": strictest.since or None, "partitions": counts}


def _fleet(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all workers: how many devices, and the worst of each kind."""
    found: dict[str, Any] = {"devices": sum(part["devices"] for part in parts)}
    for kind in ("behind", "ahead", "silent"):
        worst_of_all = sorted((each for part in parts for each in part[kind]["worst"]), key=lambda each: -each[1])[:SHOWN_MAX]
        found[kind] = {"devices": sum(part[kind]["devices"] for part in parts), "worst": worst_of_all}
    return found
