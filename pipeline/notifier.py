"""Alert transitions to sinks: at least once, in order per partition, with retry, backoff and a dead-letter stream.

A transition has an id that says which it is, so that a receiver can tell a repeated delivery: one is possible where the
notifier dies between delivering and acknowledging. Each sink has a consumer group and a thread of its own: one that is away keeps
nothing from the others.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence

from redis.exceptions import RedisError

from pipeline import metrics
from pipeline.alerttexts import transition_id
from pipeline.errors import Unavailable
from pipeline.health import Health, health_of
from pipeline.settings import Settings, backoff_seconds
from pipeline.sinks import REFRESH_SECONDS, Sink
from pipeline.stores.alertlog import AlertLog, AlertReader, told
from pipeline.stores.connection import connect, translate

log = logging.getLogger("notifier")

WAIT_SECONDS = 0.1  # for the next transition, between two looks at whether to stop
TRIM_SECONDS = 60.0  # between two times that what is delivered is let go
ACKNOWLEDGE_SECONDS = 0.1  # of deliveries acknowledged together
UNDELIVERED_MAX = 100_000  # transitions in a sink's dead-letter stream
STOP_SECONDS_MAX = 20.0  # that a sink in the midst of a delivery is waited for: the next start delivers it again
NEW_SINK_SECONDS = 3600.0  # of the past, that a sink which was never there before gets; the console gets all there is


class Notifier:
    """One process: a courier for each sink."""

    def __init__(self, settings: Settings, sinks: Sequence[Sink]) -> None:
        self._settings = settings
        self._reader = AlertReader(connect(settings.redis_url, settings.redis_timeout_seconds), settings.partitions, "notifier")
        self.health = health_of(settings)
        self._stopping = threading.Event()
        self._couriers = [_Courier(settings, sink, self.health, self._stopping) for sink in sinks]

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        """Deliver until stopped; what was read and not acknowledged before a crash comes first."""
        threads = [threading.Thread(target=courier.run, name=courier.sink.name, daemon=True) for courier in self._couriers]
        for thread in threads:
            thread.start()
        seen, trimmed_at = [0] * len(threads), 0.0
        while not self._stopping.wait(WAIT_SECONDS):
            if not all(thread.is_alive() for thread in threads):  # a defect, which its thread has told
                self._stopping.set()
            turns = [courier.turns for courier in self._couriers]
            if all(now != before for now, before in zip(turns, seen, strict=True)):
                self.health.moved()
                seen = turns
            if all(courier.opened for courier in self._couriers):
                self.health.worked("start")
            if all(courier.at_rest for courier in self._couriers) and time.monotonic() - trimmed_at > TRIM_SECONDS:
                trimmed_at = time.monotonic()
                self._trim()
        ends = time.monotonic() + STOP_SECONDS_MAX
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def _trim(self) -> None:
        try:
            self._reader.trim()
        except Unavailable as error:
            log.warning("%s; trying again", error)


class _Courier:
    """Reads every partition's transitions for one sink. `turns` grows as it gets on; `at_rest`: there was nothing to deliver."""

    def __init__(self, settings: Settings, sink: Sink, health: Health, stopping: threading.Event) -> None:
        self.sink = sink
        self.turns, self.opened, self.at_rest = 0, False, False
        self._settings, self._health, self._stopping = settings, health, stopping
        self._client = connect(settings.redis_url, settings.redis_timeout_seconds)
        first = sink.name == "console"
        group, of_the_past = (AlertReader.GROUP, None) if first else (f"{AlertReader.GROUP}-{sink.name}", NEW_SINK_SECONDS)
        self._reader = AlertReader(self._client, settings.partitions, "notifier", group, of_the_past)
        self._alerts = AlertLog(self._client)
        self._refreshed_at = 0.0
        for counter in (metrics.NOTIFIED, metrics.NOTIFY_FAILURES, metrics.NOTIFY_SET_ASIDE):
            counter.labels(sink.name)  # from 0 on

    def run(self) -> None:
        """Until all is to stop."""
        pending, failures, what = True, 0, f"reading for {self.sink.name}"
        while not self._stopping.is_set():
            self.turns += 1
            try:
                if not self.opened:
                    self._reader.open()
                    self.opened, pending = True, True
                lost = self._reader.lost
                found = self._reader.read(pending=pending, wait_seconds=WAIT_SECONDS)
                if gone := self._reader.lost - lost:
                    log.error("%s: %d transitions were let go before they were delivered: it was away for too long", self.sink.name, gone)
                    metrics.NOTIFY_SET_ASIDE.labels(self.sink.name).inc(gone)
                self.at_rest = not found and not pending
                refresh = self.sink.refreshes and not pending
                self._deliver_all(found, refresh)
                if refresh:
                    self._refresh()
                pending = pending and bool(found or gone)
                failures = 0
                self._health.worked(what)
            except Unavailable as error:
                self.opened, self.at_rest, failures = False, False, failures + 1  # Redis may come back empty: make the groups again
                self._health.failed(what, error)
                if failures in (1, 10, 100):
                    log.warning("%s; trying again", error)
                self._stopping.wait(backoff_seconds(failures, self._settings.backoff_max_seconds))

    def _deliver_all(self, found: list[tuple[str, bytes, dict]], refresh: bool) -> None:
        """One by one; acknowledged together as far as that takes no time, for what is delivered and not acknowledged comes again.

        `refresh`: say again between them what stands; thousands of them may take longer than it stays known.
        """
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
                if refresh:
                    self._refresh()
        finally:
            if delivered:
                self._reader.acknowledge(delivered)

    def _deliver(self, transition: dict) -> bool:
        """To the sink, or to its dead-letter stream. False: it is being stopped meanwhile, and the next start delivers it."""
        if transition["phase"] == "pending":
            return True
        sink = self.sink
        for attempt in range(self._settings.notify_retries_max):
            self.turns += 1
            try:
                sink.deliver(transition)
                metrics.NOTIFIED.labels(sink.name).inc()
                self._health.worked(f"delivery to {sink.name}")
                return True
            except Exception as error:  # whatever a sink does, the others go on
                self._failed(error)
                if self._stopping.wait(backoff_seconds(attempt, self._settings.backoff_max_seconds)):
                    return False
        self._set_aside(transition)
        return True

    def _refresh(self) -> None:
        """Say again what stands, where that is due. What fails is said with the next turn that is."""
        if time.monotonic() - self._refreshed_at < REFRESH_SECONDS:
            return
        self._refreshed_at = time.monotonic()
        standing = told(self._alerts.standing(range(self._settings.partitions)).filter("firing"))
        try:
            self.sink.refresh(standing)
            self._health.worked(f"delivery to {self.sink.name}")
        except Exception as error:  # as above
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        metrics.NOTIFY_FAILURES.labels(self.sink.name).inc()
        why = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        self._health.failed(f"delivery to {self.sink.name}", why)
        log.warning("%s: %s", self.sink.name, why)

    def _set_aside(self, transition: dict) -> None:
        try:
            self._client.xadd(f"undelivered:{self.sink.name}", {"t": json.dumps(transition)}, maxlen=UNDELIVERED_MAX)
        except RedisError as error:
            raise translate(error) from error
        metrics.NOTIFY_SET_ASIDE.labels(self.sink.name).inc()
        log.error("%s: gave up on %s", self.sink.name, transition_id(transition))
