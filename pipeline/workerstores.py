"""What a worker remembers with: its stores in Redis and the lake, as the settings name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipeline.settings import Settings
from pipeline.stores.alertlog import AlertLog
from pipeline.stores.connection import check_server, connect, copies_of
from pipeline.stores.lake import Lake
from pipeline.stores.leases import Leases
from pipeline.stores.reports import Reports
from pipeline.stores.rulebook import Rulebook
from pipeline.stores.streams import Streams


@dataclass(frozen=True)
class Stores:
    """What a worker remembers with. `lake` is the committer's, `reading_lake` recovery's: a handle is not for two threads."""

    streams: Streams
    leases: Leases
    alertlog: AlertLog
    rulebook: Rulebook
    lake: Lake
    reading_lake: Lake
    reports: Reports
    check: Callable[[], list[str]]  # whether the server will do; what there is to warn of


def connected(settings: Settings, owner: str) -> Stores:
    """The stores that the settings name."""
    client = connect(settings.redis_url, settings.redis_timeout_seconds)
    lakes = [Lake(settings.lake, settings.commit_retries_max) for _ in range(2)]
    leases = Leases(client, owner, settings.lease_ms)
    streams = Streams(client, copies_of(settings))
    return Stores(streams, leases, AlertLog(client), Rulebook(client), *lakes, Reports(client), partial(check_server, client))
