"""A power cut takes the last second of what Redis wrote: the lake may then be ahead of what Redis knows of the same entries."""

from __future__ import annotations

from pipeline.stores.connection import GROUP, stream_key
from pipeline.worker import Worker
from tests.faults.by_hand import PARTITION, append, forget_leases, holder, stack  # noqa: F401 - a fixture


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

    forget_leases(stack)
    second = holder(stack, "second")
    append(stack, 1_700_000_100)
    second.turn()
    second._hand_over(list(second._held))
    assert stack.lake().counts()["aggregated"] == 3, "rows of open windows are gone"
    assert stack.books()["balanced"]
