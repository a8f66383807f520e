"""The seam between two holders: a zombie's commit lands in the lake after the next holder has recovered."""

from __future__ import annotations

from pipeline.core.recovery import Stand
from pipeline.core.schema import AGGREGATES
from pipeline.errors import Unavailable
from pipeline.isolation import step_safely
from pipeline.stores.connection import GROUP, stream_key
from pipeline.stores.streams import Streams
from tests.faults.by_hand import PARTITION, append, forget_leases, holder, stack  # noqa: F401 - a fixture
from tests.harness import eventually


def test_what_a_refused_commit_holds_is_never_settled(stack):
    """The new holder's commit is refused, as the zombie's came first; giving the partition back then settles nothing of it."""
    holder(stack, "zombie")  # it freezes at once
    forget_leases(stack)
    second = holder(stack, "second")
    append(stack, 1_700_000_000, 1_700_000_005, 1_700_000_031, 1_700_000_062)  # closes windows
    stood = stack.lake().positions("aggregates", [PARTITION])[PARTITION]
    second.turn()
    assert second._made_rows > 0
    stack.lake().commit("aggregates", AGGREGATES.to_frame(), {PARTITION: Stand(stood + 1)}, {PARTITION: stood})  # the zombie's

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
    worker._state, output = step_safely(worker._state, entries, worker._rulekeeper.rules, worker._semantics)
    worker._keep(output, worker._state)
    worker.leave()
    assert stack.lake().counts()["windows"] == 0, "a later commit came without the rows of the one before"
    books = stack.books()
    assert books["balanced"] and books["in_flight"] == 4


def away(*_: object) -> None:
    raise Unavailable("the lake is away")
