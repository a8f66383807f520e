"""The seam between two holders: a zombie's commit lands in the lake after the next holder has recovered."""

from __future__ import annotations

import asyncio
import time

import pytest

from pipeline.core.schema import AGGREGATES
from pipeline.errors import Unavailable
from pipeline.isolation import step_safely
from pipeline.stores.connection import GROUP, connect_async, lease_key, stream_key
from pipeline.stores.streams import Appender, Group, Streams
from pipeline.worker import Worker
from tests.frames import payload
from tests.harness import Stack, eventually

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
    """A worker that has taken all partitions and waits for nobody: its turns are ours to call."""
    worker = Worker(stack.settings, name)
    worker.start()
    worker._membership()
    worker._committed_at = time.monotonic()  # no commit of its own accord
    return worker


def test_what_a_refused_commit_holds_is_never_settled(stack):
    """The new holder's commit is refused, as the zombie's came first; giving the partition back then settles nothing of it."""
    holder(stack, "zombie")  # it freezes at once
    stack.client.delete(*(lease_key(partition) for partition in range(stack.settings.partitions)), "workers")
    second = holder(stack, "second")
    append(stack, 1_700_000_000, 1_700_000_005, 1_700_000_031, 1_700_000_062)  # closes windows
    stood = stack.lake().positions("aggregates", [PARTITION])[PARTITION]
    second.turn()
    assert second._made_rows > 0
    stack.lake().commit("aggregates", AGGREGATES.to_frame(), {PARTITION: stood + 1}, {PARTITION: stood})  # the zombie's

    second._committed_at = -1e9
    second._commit_when_due()
    eventually(lambda: second._commit.done(), 10, "the commit is over")
    waiting = Streams(stack.client).outstanding(PARTITION)
    assert len([entry for entry in waiting if entry.event_count]) == 4
    second._hand_over([PARTITION])
    assert Streams(stack.client).outstanding(PARTITION)[: len(waiting)] == waiting, "entries were settled that no table has"

    third = holder(stack, "third")
    third.turn()
    if PARTITION in third._held:
        third._hand_over(list(third._held))
    assert stack.books()["balanced"]


def test_what_redis_delivers_again_is_not_applied_again(stack):
    """A Redis that failed over may have forgotten what it delivered; what was applied is known by its position."""
    worker = holder(stack, "only")
    append(stack, 1_700_000_000, 1_700_000_005, 1_700_000_031)
    worker.turn()
    before = (worker._state.open.height, worker._made_rows)
    stack.client.xgroup_setid(stream_key(PARTITION), GROUP, "0")
    append(stack, 1_700_000_032)
    worker.turn()
    assert (worker._state.open.height, worker._made_rows) == (before[0] + 1, before[1])
    worker._hand_over(list(worker._held))
    books = stack.books()
    assert books["balanced"] and books["repeated"] == 0 and books["late"] == 0


def test_nothing_is_committed_past_a_commit_that_was_given_up(stack, monkeypatch):
    """At a stop the lake is away, the commit in flight is given up, and the lake is back for the last one: that must not come."""
    worker = holder(stack, "leaving")
    append(stack, 1_700_000_000, 1_700_000_005, 1_700_000_031)
    worker.turn()
    assert worker._made_rows > 0
    real = worker._lake.commit
    monkeypatch.setattr(worker._lake, "commit", away)
    worker._committed_at = -1e9
    worker._commit_when_due()
    worker.stop()
    eventually(lambda: worker._commit.done(), 20, "the commit is given up")
    monkeypatch.setattr(worker._lake, "commit", real)
    append(stack, 1_700_000_062)  # closes another window
    entries, _ = worker._read()
    worker._state, output = step_safely(worker._state, entries, worker._rules, worker._semantics)
    worker._keep(output, worker._state)
    worker.leave()
    assert stack.lake().counts()["windows"] == 0, "a later commit came without the rows of the one before"
    books = stack.books()
    assert books["balanced"] and books["in_flight"] == 4


def away(*_: object) -> None:
    raise Unavailable("the lake is away")
