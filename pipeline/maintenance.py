"""Housekeeping of the lake by one elected leader: compact, checkpoint, vacuum, expire, the series table, the catalog.

All of it is safe beside writers and readers, so that the lease only keeps two from doing the same work.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from apscheduler.job import Job
from apscheduler.schedulers.background import BackgroundScheduler

from pipeline import metrics
from pipeline.core.semantics import Semantics
from pipeline.errors import Fenced, PipelineError, Unavailable
from pipeline.gauges import REDIS_SECONDS, Gauges
from pipeline.health import COMMIT_PATIENCE_SECONDS, health_of
from pipeline.settings import Settings, semantics_of
from pipeline.stores.catalog import write_catalog
from pipeline.stores.connection import connect
from pipeline.stores.lake import Lake, first_line
from pipeline.stores.leases import Leases
from pipeline.stores.tables import SIDE_TABLES

log = logging.getLogger("maintenance")

LEASE = "maintenance"
CLEAN_EVERY = 10  # turns


class Done(NamedTuple):
    """How one task went."""

    well: bool
    made: int = 0


class Maintenance:
    """One process. It does nothing unless it holds the lease, and waits for its turn otherwise."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._semantics: Semantics = semantics_of(settings)
        client = connect(settings.redis_url, settings.redis_timeout_seconds)
        self._leases = Leases(client, f"{socket.gethostname()}-{os.getpid()}", settings.lease_ms)
        self._gauges = Gauges(settings, client, self._leases)
        self.health = health_of(settings)
        self._looks: list[Job] = []
        self._stopping = threading.Event()
        self._token: int | None = None
        self._turns_until_clean = CLEAN_EVERY

    def stop(self) -> None:
        self._stopping.set()

    def tells(self) -> bool:
        """Whether it leads, and has looked at all that a leader tells of."""
        return self._token is not None and self._gauges.known

    def run(self) -> None:
        """Hold the lease while there is one to have, and run the jobs while it is held."""
        scheduler = BackgroundScheduler()
        seconds = self._settings.compact_interval_seconds
        looks = ((self._look_at_redis, REDIS_SECONDS), (self._look_at_lake, seconds),
                 (self._look_at_books, self._settings.books_interval_seconds))  # fmt: skip
        jobs = [
            scheduler.add_job(job, "interval", seconds=interval, coalesce=True, max_instances=1, misfire_grace_time=None)
            for job, interval in (*looks, (self._tidy, seconds), (self._clean, seconds))
        ]
        self._looks = jobs[: len(looks)]
        # Again and again: it may fail at first, and somebody may delete the file. One that is as it should be costs milliseconds.
        scheduler.add_job(self._catalog, "interval", seconds=seconds, next_run_time=datetime.now(UTC), misfire_grace_time=None)
        scheduler.start()
        try:
            while not self._stopping.is_set():
                self.health.moved()
                self._hold()
                metrics.LEADS.set(self._token is not None)
                self._stopping.wait(self._settings.lease_ms / 3000)
        finally:
            scheduler.shutdown(wait=True)
            if self._token is not None:
                try:
                    self._leases.release(LEASE, self._token)
                except (Fenced, Unavailable) as error:
                    log.warning("released nothing: %s", error)

    def _hold(self) -> None:
        try:
            if self._token is None:
                self._token = self._leases.acquire(LEASE)
                if self._token is not None:
                    self._gauges.forget()
                    for look in self._looks:  # at once: the last leader's figures are gone with it
                        look.modify(next_run_time=datetime.now(UTC))
                    log.info("leads the housekeeping")
                self.health.at_rest()
            elif isinstance(error := self._leases.renew({LEASE: self._token}).get(LEASE), Fenced):
                self._token = None
            elif error is not None:  # it leads on: whether another has taken over is told when Redis answers again
                self.health.failed("reaching Redis", error)
                return
            self.health.worked("reaching Redis")
        except Unavailable as error:
            self._token = None
            self.health.failed("reaching Redis", error)
            log.warning("%s", error)

    def _tidy(self) -> None:
        """Merge small files, and write the table that keeps recovery short."""
        if self._token is None:
            return
        began = time.monotonic()
        lake = Lake(self._settings.lake, self._settings.commit_retries_max)
        gone = 0
        for table in (*SIDE_TABLES, "aggregates"):
            merged = self._attempt(lake.compact, table, self._settings.compact_files_min).made
            metrics.FILES_COMPACTED.labels(table).inc(merged)
            gone += merged
        series = self._attempt(lake.refresh_series, self._semantics).made
        if gone:
            log.info("merged %d files; %s series; %.2f s", gone, series, time.monotonic() - began)

    def _clean(self) -> None:
        """Every tenth turn, and in the next one what failed: expire old days, drop files nobody needs, shorten the logs."""
        if self._token is None:
            return
        self._turns_until_clean -= 1
        if self._turns_until_clean > 0:
            return
        lake = Lake(self._settings.lake, self._settings.commit_retries_max)
        oldest = datetime.now(UTC) - timedelta(days=self._settings.retention_days)
        done = []
        for table in (*SIDE_TABLES, "aggregates", "series"):
            if table != "series":
                done.append(self._attempt(lake.expire, table, oldest))
            done.append(self._attempt(lake.checkpoint, table))
            vacuumed = self._attempt(lake.vacuum, table, self._settings.vacuum_retention_hours)
            metrics.FILES_VACUUMED.labels(table).inc(vacuumed.made)
            done.append(vacuumed)
        if all(each.well for each in done):
            self._turns_until_clean = CLEAN_EVERY

    def _look_at_redis(self) -> None:
        self._look(self._gauges.look_at_redis)

    def _look_at_lake(self) -> None:
        self._look(self._gauges.look_at_lake)

    def _look_at_books(self) -> None:
        self._look(self._gauges.look_at_books)

    def _look(self, job: Callable[[], None]) -> None:
        if self._token is not None:
            self._attempt(job)

    def _catalog(self) -> None:
        self._attempt(write_catalog, Path(self._settings.data_dir) / "catalog.duckdb")

    def _attempt(self, job: Callable[..., int | None], *arguments: object) -> Done:
        """Run one job; what fails is said and tried again next time: a lake that is away must not end the process."""
        name = job.__name__
        what = " ".join([name, *(each for each in arguments if isinstance(each, str))])  # with its table: one may fail, the next not
        try:
            with metrics.HOUSEKEEPING_SECONDS.labels(name).time():
                made = job(*arguments)
            self.health.worked(what)
            return Done(True, made or 0)
        except PipelineError as error:
            why = str(error)
        except Exception as error:
            why = f"{type(error).__name__}: {first_line(error)}"
        metrics.HOUSEKEEPING_FAILURES.labels(name).inc()
        self.health.failed(what, why, COMMIT_PATIENCE_SECONDS)
        log.warning("%s: %s", what, why)
        return Done(False)
