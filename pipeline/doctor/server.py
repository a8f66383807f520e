"""Redis: what it is set to, how full it is, whether its clock and ours agree."""

from __future__ import annotations

import time
from collections.abc import Iterator

import redis
from redis.exceptions import ResponseError

from pipeline.doctor.finding import Finding, graded
from pipeline.errors import Invalid
from pipeline.settings import Settings
from pipeline.stores.connection import PARTITIONS, Memory, check_server, memory_of, now_seconds, redact, servers, translated

MEMORY_WARN, MEMORY_BAD = 0.75, 0.9
CLOCK_WARN_SECONDS, CLOCK_BAD_SECONDS = 1.0, 30.0
_MB = 1 << 20


def examine(settings: Settings, client: redis.Redis) -> Iterator[Finding]:
    """Findings on the server. Unavailable: it does not answer."""
    try:
        warnings = check_server(client)
    except Invalid as error:
        yield Finding("redis", "bad", str(error))
        warnings = []
    with translated():
        nodes = {_name(server): (server.info(), _config(server, "appendfsync")) for server in servers(client)}
        partitions = client.get(PARTITIONS)
        before = time.time()
        there = now_seconds(client)
        after = time.time()
    info, _ = next(iter(nodes.values()))
    version = f"{info.get('server_name', 'redis')} {info.get('redis_version')}"
    yield Finding("redis", "ok", f"{version} at {redact(settings.redis_url or '')}")
    for warning in warnings:
        yield Finding("redis", "warn", warning)
    for name, (info, fsync) in nodes.items():
        which = f"node {name}: " if len(nodes) > 1 else ""
        if not warnings:
            yield _durability(which, info, fsync)
        yield _memory(which, memory_of(info))
    yield _clock((before + after) / 2 - there, settings.future_skew_max_seconds)
    if partitions is not None and int(partitions) != settings.partitions:
        text = f"its streams have {int(partitions)} partitions, not PIPELINE_PARTITIONS={settings.partitions}"
        yield Finding("redis", "bad", text, "set that, or use another Redis")


def _name(server: redis.Redis) -> str:
    address = server.connection_pool.connection_kwargs
    return f"{address.get('host')}:{address.get('port')}"


def _config(client: redis.Redis, name: str) -> str:
    try:
        return client.config_get(name).get(name, "unknown")
    except ResponseError:  # CONFIG is often forbidden to an ACL user
        return "unknown"


def _durability(which: str, info: dict, fsync: str) -> Finding:
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding("redis", "bad", f"{which}it cannot write its append-only file", "look at its disk and its log")
    if fsync == "no":
        text = f"{which}appendfsync no: a power cut loses up to half a minute of what was accepted"
        return Finding("redis", "warn", text, "`redis-cli config set appendfsync everysec`")
    lost = {"always": ": a power cut loses nothing", "everysec": ": a power cut loses up to two seconds"}.get(fsync, "")
    return Finding("redis", "ok", f"{which}append-only file, appendfsync {fsync}{lost}")


def _memory(which: str, memory: Memory) -> Finding:
    if not memory.most:
        text = f"{which}memory: {memory.used / _MB:.0f} MB, and no limit: it grows until the machine is full"
        return Finding("redis", "warn", text, "`redis-cli config set maxmemory 1gb`, or what the machine has to spare")
    text = f"{which}memory: {memory.used / _MB:.0f} of {memory.most / _MB:.0f} MB; when it is full the API refuses"
    return graded("redis", memory.share, MEMORY_WARN, MEMORY_BAD, text, "start more workers, or raise maxmemory")


def _clock(ahead_seconds: float, skew_max_seconds: float) -> Finding:
    """Entries are dated by Redis, events without a timestamp by the API's host, and what lies too far ahead is refused."""
    text = f"clocks: this host is {abs(ahead_seconds):.1f} s {'ahead of' if ahead_seconds > 0 else 'behind'} Redis"
    bad = min(CLOCK_BAD_SECONDS, max(skew_max_seconds, CLOCK_WARN_SECONDS))
    return graded("redis", abs(ahead_seconds), CLOCK_WARN_SECONDS, bad, text, "run NTP on both")
