"""A power cut takes the last second of what Redis wrote: the lake may then be ahead of what Redis knows of the same entries."""

from __future__ import annotations

import asyncio
import time

import pytest

from pipeline.stores.connection import GROUP, connect_async, lease_key, stream_key
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


def append(stack, *moments: int) -> None:
    async def run() -> None:
        appender = Appender(connect_async(stack.settings.redis_url, 5), stack.settings.partitions, 300)
        for moment in moments:
            (entry,) = await appender.append([Group(PARTITION, payload("a", "x", moment * S, 1.0), 1, b"", 0)])
            assert isinstance(entry, int), entry
        await appender.close()

    asyncio.run(run())


def holder(stack, name: str) -> Worker:
    """A worker that has taken all partitions; its turns are ours to call, its end is a kill."""
    stack.client.delete(*(lease_key(partition) for partition in range(stack.settings.partitions)), "workers")
    worker = Worker(stack.settings, name)
    worker.start()
    worker._membership()
    worker._committed_at = time.monotonic()  # no commit of its own accord
    return worker


def commit(worker: Worker) -> None:
    """Commit what was made, and die before it is settled."""
    assert worker._commit_until_done(worker._snapshot()) is not None


def forget_delivery(stack) -> None:
    """Redis has the entries, but neither that they were delivered nor that any was acknowledged."""
    stack.client.xgroup_destroy(stream_key(PARTITION), GROUP)
    stack.client.xgroup_create(stream_key(PARTITION), GROUP, "0")


def test_entries_whose_delivery_was_forgotten_are_replayed(stack):
    """They lie before the committed position, and their windows were open at it: nobody but the stream has their rows."""
    first = holder(stack, "first")
    append(stack, 1_700_000_000, 1_700_000_031, 1_700_000_032)  # closes the first window; two rows stay open
    first.turn()
    commit(first)
    assert stack.lake().counts()["aggregated"] == 1
    forget_delivery(stack)

    second = holder(stack, "second")
    append(stack, 1_700_000_100)
    second.turn()
    second._hand_over(list(second._held))
    assert stack.lake().counts()["aggregated"] == 3, "rows of open windows are gone"
    assert stack.books()["balanced"]
