"""The seam between two holders: a zombie's commit lands in the lake after the next holder has recovered."""

from __future__ import annotations

import polars as pl
import pytest

from pipeline.core.recovery import Stand
from pipeline.core.schema import AGGREGATES
from pipeline.errors import Unavailable
from pipeline.isolation import step_safely
from pipeline.stores.connection import GROUP, stream_key
from pipeline.stores.streams import Streams
from tests.faults.by_hand import PARTITION, S, append, append_payloads, forget_leases, holder, stack  # noqa: F401 - a fixture
from tests.frames import payload_of
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


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(("first", "then", "refused"), [(2, 100, 1), (100, 1, 0)])
def test_the_next_holder_goes_by_what_was_refused_not_by_its_own_limit(stack, closed, first, then, refused):
    """An entry of which one event was refused and another is in an open window: behind the position, or only behind the dead letters'."""
    stack.settings = stack.settings.model_copy(update={"partition_series_max": first})
    worker = holder(stack, "first")
    at = 1_700_000_000
    late = [("a", "x", (at - 7 * 86_400) * S, 9.0)]  # a dead letter in any case
    append_payloads(stack, (payload_of([("a", "x", at * S, 1.0), ("b", "x", (at + 100) * S, 2.0), ("c", "x", at * S, 3.0), *late]), 4))
    worker.turn()
    if closed:  # the window of `a`: its row carries the position beyond the entry, which `b` keeps pending
        append(stack, at + 200)
        worker.turn()
    worker.leave()
    stands = {table: stack.lake().positions(table, [PARTITION])[PARTITION] for table in ("dead_letters", "aggregates")}
    assert (stands["aggregates"] >= stands["dead_letters"] > 0) == closed
    assert stack.books()["balanced"], stack.books()

    stack.settings = stack.settings.model_copy(update={"partition_series_max": then})
    second = holder(stack, "second")
    append(stack, at + 300)
    second.turn()
    known = second._state.series.select(pl.col("device").cast(pl.String))["device"].to_list()
    assert sorted(known) == (["a", "b"] if refused else ["a", "b", "c"])
    second._hand_over(list(second._held))
    books = stack.books()
    assert books["balanced"] and books["dead_lettered"] == 1 + refused, books


def away(*_: object) -> None:
    raise Unavailable("the lake is away")
