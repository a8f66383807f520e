"""Alert transitions to sinks: at least once, in order per partition, with retry, backoff and a dead-letter stream.

A transition has an id that says which it is, so that a receiver can tell a repeated delivery: one is possible where the
notifier dies between delivering and acknowledging.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from datetime import UTC, datetime
from itertools import product
from typing import ClassVar, Protocol

from redis.exceptions import RedisError

from pipeline import metrics
from pipeline.errors import Unavailable
from pipeline.health import health_of
from pipeline.settings import Settings, backoff_seconds
from pipeline.stores.alertlog import AlertReader
from pipeline.stores.connection import connect, translate

log = logging.getLogger("notifier")

WAIT_SECONDS = 0.1  # for the next transition, between two looks at whether to stop
TRIM_SECONDS = 60.0  # between two times that what is delivered is let go
ACKNOWLEDGE_SECONDS = 0.1  # of deliveries acknowledged together
UNDELIVERED_MAX = 100_000  # transitions in a sink's dead-letter stream


class Sink(Protocol):
    """Where alerts go. `deliver` raises OSError for what a retry may mend."""

    name: str

    def deliver(self, transition: dict) -> None: ...


def transition_id(transition: dict) -> str:
    """Which transition this is: the same in every delivery of it."""
    parts = ("rule", "device", "interface", "metric", "tags", "since", "phase", "severity")
    return "|".join(str(transition[part]) for part in parts)


def since(microseconds: int) -> str:
    """A moment as a person reads it, UTC."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")


def describe(transition: dict) -> str:
    """What, where, how bad, since when, in one line."""
    resolved = transition["phase"] == "resolved"
    tags = " ".join(f"{name}={text}" for name, text in json.loads(transition["tags"] or "{}").items())
    place = " ".join(filter(None, (transition["device"], transition["interface"], transition["metric"], tags and f"({tags})")))
    value, bound = transition["value"], transition["bound"]
    if resolved:
        how = f"back at {value:.6g}, after {duration(transition['time'] - transition['since'])}"
    else:
        how = f"{value:.6g}" if bound is None else f"{value:.6g} {'>' if value > bound else '<'} {bound:.6g}"
    word = "RESOLVED" if resolved else transition["severity"].upper()
    return f"{word:8} {transition['rule']}  {place}  {how}  since {since(transition['since'])}"


def duration(microseconds: int) -> str:
    """A length of time as a person reads it."""
    seconds = microseconds / 1e6
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


class ConsoleSink:
    """One line per alert on standard output: coloured on a terminal, JSON with `as_json`."""

    name = "console"
    _COLOURS: ClassVar = {"CRITICAL": "\x1b[1;31m", "WARNING": "\x1b[33m", "RESOLVED": "\x1b[32m"}

    def __init__(self, *, as_json: bool = False, colour: bool = False) -> None:
        self._as_json, self._colour = as_json, colour

    def deliver(self, transition: dict) -> None:
        if self._as_json:
            line = json.dumps({"id": transition_id(transition), **transition})
        else:
            line = describe(transition)
            if self._colour:
                line = f"{self._COLOURS.get(line.split()[0], '')}{line}\x1b[0m"
        print(line, flush=True)


class Notifier:
    """One process: reads every partition's transitions as its own consumer group."""

    def __init__(self, settings: Settings, sinks: list[Sink]) -> None:
        self._settings = settings
        self._client = connect(settings.redis_url, settings.redis_timeout_seconds)
        self._reader = AlertReader(self._client, settings.partitions, "notifier")
        self._sinks = sinks
        for sink, counter in product(sinks, (metrics.NOTIFIED, metrics.NOTIFY_FAILURES, metrics.NOTIFY_SET_ASIDE)):
            counter.labels(sink.name)  # from 0 on
        self.health = health_of(settings)
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        """Deliver until stopped; what was read and not acknowledged before a crash comes first."""
        opened, pending, failures, trimmed_at = False, True, 0, 0.0
        while not self._stopping.is_set():
            self.health.moved()
            try:
                if not opened:
                    self._reader.open()
                    opened, pending = True, True
                    self.health.worked("start")
                lost = self._reader.lost
                found = self._reader.read(pending=pending, wait_seconds=WAIT_SECONDS)
                if gone := self._reader.lost - lost:
                    log.error("%d transitions were let go before they were delivered: it was away for too long", gone)
                    for sink in self._sinks:
                        metrics.NOTIFY_SET_ASIDE.labels(sink.name).inc(gone)
                self._deliver_all(found)
                if not found and not pending and time.monotonic() - trimmed_at > TRIM_SECONDS:
                    self._reader.trim()
                    trimmed_at = time.monotonic()
                pending = pending and bool(found or gone)
                failures = 0
                self.health.worked("reading")
            except Unavailable as error:
                opened, failures = False, failures + 1  # Redis may come back empty: make the groups again
                self.health.failed("reading", error)
                if failures in (1, 10, 100):
                    log.warning("%s; trying again", error)
                self._stopping.wait(backoff_seconds(failures, self._settings.backoff_max_seconds))

    def _deliver_all(self, found: list[tuple[str, bytes, dict]]) -> None:
        """One by one; acknowledged together as far as that takes no time, for what is delivered and not acknowledged comes again."""
        delivered: list[tuple[str, bytes]] = []
        acknowledged_at = time.monotonic()
        try:
            for stream, entry, transition in found:
                if self._stopping.is_set():
                    break
                if not self._deliver(transition):
                    break
                delivered.append((stream, entry))
                if time.monotonic() - acknowledged_at > ACKNOWLEDGE_SECONDS:
                    self._reader.acknowledge(delivered)
                    delivered, acknowledged_at = [], time.monotonic()
        finally:
            if delivered:
                self._reader.acknowledge(delivered)

    def _deliver(self, transition: dict) -> bool:
        """To each sink, or to its dead-letter stream. False: it is being stopped meanwhile, and the next start delivers it."""
        if transition["phase"] == "pending":
            return True
        for sink in self._sinks:
            for attempt in range(self._settings.notify_retries_max):
                self.health.moved()
                try:
                    sink.deliver(transition)
                    metrics.NOTIFIED.labels(sink.name).inc()
                    self.health.worked(f"delivery to {sink.name}")
                    break
                except OSError as error:
                    metrics.NOTIFY_FAILURES.labels(sink.name).inc()
                    self.health.failed(f"delivery to {sink.name}", error)
                    log.warning("%s: %s", sink.name, error)
                    if self._stopping.wait(backoff_seconds(attempt, self._settings.backoff_max_seconds)):
                        return False
            else:
                self._set_aside(sink, transition)
        return True

    def _set_aside(self, sink: Sink, transition: dict) -> None:
        try:
            self._client.xadd(f"undelivered:{sink.name}", {"t": json.dumps(transition)}, maxlen=UNDELIVERED_MAX)
        except RedisError as error:
            raise translate(error) from error
        metrics.NOTIFY_SET_ASIDE.labels(sink.name).inc()
        log.error("%s: gave up on %s", sink.name, transition_id(transition))
