"""Workers whose turns a test calls, on a real server and real tables: what happens when is decided there."""

from __future__ import annotations

import asyncio
import time

import pytest

from pipeline.stores.connection import connect_async, lease_key
from pipeline.stores.streams import Appender, Group
from pipeline.worker import Worker
from tests.frames import payload
from tests.harness import Stack

S = 1_000_000
PARTITION = 3


@pytest.fixture
def stack(tmp_path):
    with Stack(tmp_path, fsync="everysec", PIPELINE_COMMIT_INTERVAL_MS="600000", PIPELINE_LEASE_MS="60000") as running:
        yield running


def append(stack: Stack, *moments: int) -> None:
    """An entry of one event at each of these seconds."""
    append_payloads(stack, *((payload("a", "x", moment * S, 1.0), 1) for moment in moments))


def append_payloads(stack: Stack, *payloads: tuple[bytes, int]) -> None:
    """Entries of these payloads, each with the number of its events."""

    async def run() -> None:
        appender = Appender(connect_async(stack.settings.redis_url, 5), stack.settings.partitions, 300)
        for events, count in payloads:
            (entry,) = await appender.append([Group(PARTITION, events, count, b"", 0)])
            assert isinstance(entry, int), entry
        await appender.close()

    asyncio.run(run())


def holder(stack: Stack, name: str) -> Worker:
    """A worker that has taken all partitions that are free, and waits for nobody."""
    worker = Worker(stack.settings, name)
    worker.start()
    worker._membership()
    worker._committed_at = time.monotonic()  # no commit of its own accord
    return worker


def forget_leases(stack: Stack) -> None:
    """Whoever held something is a zombie from here on."""
    stack.client.delete(*(lease_key(partition) for partition in range(stack.settings.partitions)), "workers")
