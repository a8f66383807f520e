"""Housekeeping of the lake by one elected leader: compact, checkpoint, vacuum, expire, the series table, the catalog.

All of it is safe beside writers and readers, so that the lease only keeps two from doing the same work.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apscheduler.schedulers.background import BackgroundScheduler

from pipeline.core.semantics import Semantics
from pipeline.errors import Fenced, PipelineError, Unavailable
from pipeline.settings import Settings, semantics_of
from pipeline.stores.catalog import write_catalog
from pipeline.stores.connection import connect
from pipeline.stores.lake import SIDE_TABLES, Lake, first_line
from pipeline.stores.leases import Leases
from pipeline.stores.streams import Streams

log = logging.getLogger("maintenance")

LEASE = "maintenance"


class Maintenance:
    """One process. It does nothing unless it holds the lease, and waits for its turn otherwise."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._semantics: Semantics = semantics_of(settings)
        client = connect(settings.redis_url, settings.redis_timeout_seconds)
        self._streams = Streams(client)
        self._leases = Leases(client, f"{socket.gethostname()}-{os.getpid()}", settings.lease_ms)
        self._stopping = threading.Event()
        self._token: int | None = None

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        """Hold the lease while there is one to have, and run the jobs while it is held."""
        scheduler = BackgroundScheduler()
        seconds = self._settings.compact_interval_seconds
        for job, interval in ((self._tidy, seconds), (self._clean, 10 * seconds)):
            scheduler.add_job(job, "interval", seconds=interval, coalesce=True, max_instances=1, misfire_grace_time=None)
        scheduler.add_job(self._catalog, "date")
        scheduler.start()
        try:
            while not self._stopping.is_set():
                self._hold()
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
                    log.info("leads the housekeeping")
            elif isinstance(self._leases.renew({LEASE: self._token}).get(LEASE), Fenced):
                self._token = None
        except Unavailable as error:
            self._token = None
            log.warning("%s", error)

    def _tidy(self) -> None:
        """Merge small files, and write the table that keeps recovery short."""
        if self._token is None:
            return
        began = time.monotonic()
        lake = Lake(self._settings.lake, self._settings.commit_retries_max)
        gone = sum(self._attempt(lake.compact, table, self._settings.compact_files_min) or 0 for table in (*SIDE_TABLES, "aggregates"))
        series = self._attempt(lake.refresh_series, self._semantics)
        if gone:
            log.info("merged %d files; %s series; %.2f s", gone, series, time.monotonic() - began)

    def _clean(self) -> None:
        """Expire old days, drop files nobody needs, shorten the logs."""
        if self._token is None:
            return
        lake = Lake(self._settings.lake, self._settings.commit_retries_max)
        oldest = datetime.now(UTC) - timedelta(days=self._settings.retention_days)
        for table in (*SIDE_TABLES, "aggregates", "series"):
            if table != "series":
                for partition, events in (self._attempt(lake.expire, table, oldest) or {}).items():
                    self._streams.expired(partition, events)
            self._attempt(lake.checkpoint, table)
            self._attempt(lake.vacuum, table, self._settings.vacuum_retention_hours)

    def _catalog(self) -> None:
        self._attempt(write_catalog, Path(self._settings.data_dir) / "catalog.duckdb")

    @staticmethod
    def _attempt(job, *arguments):
        """Run one job; what fails is said and tried again next time: a lake that is away must not end the process."""
        try:
            return job(*arguments)
        except PipelineError as error:
            log.warning("%s: %s", job.__name__, error)
        except Exception as error:
            log.warning("%s: %s: %s", job.__name__, type(error).__name__, first_line(error))
        return None
