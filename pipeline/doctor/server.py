"""Redis: what it is set to, how full it is, whether its clock and ours agree."""

from __future__ import annotations

import time
from collections.abc import Iterator

import redis
from redis.exceptions import ResponseError

from pipeline.doctor.finding import Finding, graded
from pipeline.errors import Invalid
from pipeline.settings import Settings
from pipeline.stores.connection import PARTITIONS, check_server, now_seconds, redact, server_version, translated

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
        version = server_version(client)
        info = client.info()
        fsync = _config(client, "appendfsync")
        partitions = client.get(PARTITIONS)
        before = time.time()
        there = now_seconds(client)
        after = time.time()
    name = f"{info.get('server_name', 'redis')} {info.get('redis_version')}"
    if version < (7, 0):
        text = f"{name}: a worker cannot settle while its memory is full"
        yield Finding("redis", "warn", text, "7.0 or newer (or Valkey) lets it")
    else:
        yield Finding("redis", "ok", f"{name} at {redact(settings.redis_url or '')}")
    for warning in warnings:
        yield Finding("redis", "warn", warning)
    if not warnings:
        yield _durability(info, fsync)
    yield _memory(info)
    yield _clock((before + after) / 2 - there, settings.future_skew_max_seconds)
    if partitions is not None and int(partitions) != settings.partitions:
        text = f"its streams have {int(partitions)} partitions, not PIPELINE_PARTITIONS={settings.partitions}"
        yield Finding("redis", "bad", text, "set that, or use another Redis")


def _config(client: redis.Redis, name: str) -> str:
    try:
        return client.config_get(name).get(name, "unknown")
    except ResponseError:  # CONFIG is often forbidden to an ACL user
        return "unknown"


def _durability(info: dict, fsync: str) -> Finding:
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding("redis", "bad", "it cannot write its append-only file", "look at its disk and its log")
    if fsync == "no":
        text = "appendfsync no: a power cut loses up to half a minute of what was accepted"
        return Finding("redis", "warn", text, "`redis-cli config set appendfsync everysec`")
    lost = {"always": ": a power cut loses nothing", "everysec": ": a power cut loses up to a second"}.get(fsync, "")
    return Finding("redis", "ok", f"append-only file, appendfsync {fsync}{lost}")


def _memory(info: dict) -> Finding:
    used, most = info["used_memory"], info.get("maxmemory", 0)
    if not most:
        text = f"memory: {used / _MB:.0f} MB, and no limit: it grows until the machine is full"
        return Finding("redis", "warn", text, "`redis-cli config set maxmemory 1gb`, or what the machine has to spare")
    text = f"memory: {used / _MB:.0f} of {most / _MB:.0f} MB; when it is full the API refuses"
    return graded("redis", used / most, MEMORY_WARN, MEMORY_BAD, text, "start more workers, or raise maxmemory")


def _clock(ahead_seconds: float, skew_max_seconds: float) -> Finding:
    """Entries are dated by Redis, events without a timestamp by the API's host, and what lies too far ahead is refused."""
    text = f"clocks: this host is {abs(ahead_seconds):.1f} s {'ahead of' if ahead_seconds > 0 else 'behind'} Redis"
    bad = min(CLOCK_BAD_SECONDS, max(skew_max_seconds, CLOCK_WARN_SECONDS))
    return graded("redis", abs(ahead_seconds), CLOCK_WARN_SECONDS, bad, text, "run NTP on both")
