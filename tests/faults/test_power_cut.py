"""A power cut takes the last second of what Redis wrote: the lake may then be ahead of what Redis knows of the same entries."""

from __future__ import annotations

from pipeline.stores.alertlog import AlertReader
from pipeline.stores.connection import GROUP, format_id, stream_key
from pipeline.stores.rulebook import Rulebook
from pipeline.worker import Worker
from tests.faults.by_hand import PARTITION, append, forget_leases, holder, stack  # noqa: F401 - a fixture


def commit(worker: Worker) -> None:
    """Commit what was made, and die before it is settled."""
    assert worker._commit_until_done(worker._snapshot()) is not None


def forget_delivery(stack, after: int = 0) -> None:
    """Redis has the entries, but neither that those after an id were delivered nor that any of them was acknowledged."""
    key = stream_key(PARTITION)
    for pending in stack.client.xpending_range(key, GROUP, f"({format_id(after)}", "+", 100):
        stack.client.xack(key, GROUP, pending["message_id"])
    stack.client.xgroup_setid(key, GROUP, format_id(after))


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


def test_what_anomalies_and_alerts_are_ahead_with_is_not_made_again(stack):
    """The holder died between the two tables, and then the deliveries were forgotten, too."""
    stack.client.delete("rules")
    Rulebook(stack.client).set("rules: [{name: high, metric: x, upper: {critical: 0.5}}]")
    first = holder(stack, "first")
    append(stack, 1_700_000_000, 1_700_000_031)  # closes the first window
    first.turn()
    commit(first)
    position = first._state.positions[PARTITION]
    append(stack, 1_700_000_032, 1_700_000_060)  # closes the next one
    first.turn()
    snapshot = first._snapshot()
    snapshot.rows.pop("aggregates")
    assert first._commit_until_done(snapshot) is not None
    assert stack.lake().counts()["anomalies"] == 4 and stack.lake().counts()["windows"] == 1
    forget_delivery(stack, position)

    forget_leases(stack)
    second = holder(stack, "second")
    append(stack, 1_700_000_100)
    second.turn()
    second._hand_over(list(second._held))
    assert stack.lake().counts()["anomalies"] == 5
    fired = AlertReader.all_transitions(stack.client, stack.settings.partitions)
    assert [each["phase"] for each in fired] == ["firing"]
