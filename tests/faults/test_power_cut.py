"""A power cut takes the last second of what Redis wrote: the lake may then be ahead of what Redis knows of the same entries."""

from __future__ import annotations

import os
import shutil

import pytest

from pipeline.stores.alertlog import AlertReader
from pipeline.stores.connection import GROUP, format_id, parse_id, stream_key
from pipeline.stores.rulebook import Rulebook
from pipeline.worker import Worker
from tests.chaos.clocks import Clock, obstacle
from tests.faults.by_hand import PARTITION, append, forget_leases, holder, stack  # noqa: F401 - a fixture
from tests.missing import leave_out


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


@pytest.fixture
def power_cut(stack, tmp_path):
    """Of two calls, what the first has seen is what Redis comes back with at the second, on a machine whose clock is an hour behind."""
    if why := obstacle(tmp_path):
        leave_out(why)
    files, kept = stack.folder / "redis" / "appendonlydir", tmp_path / "kept"
    clock = Clock(tmp_path, "redis")
    clock.set(-3600)

    def save() -> None:
        shutil.copytree(files, kept)

    def cut() -> None:
        stack.kill_redis()
        shutil.rmtree(files)
        shutil.copytree(kept, files)
        stack.redis_environment = {**os.environ, **clock.environment()}
        stack.start_redis()

    return save, cut


def committed_and_forgotten(stack, power_cut) -> tuple[Worker, int]:
    """A worker that has read and committed more than Redis still knows, and up to where."""
    save, cut = power_cut
    worker = holder(stack, "first")
    append(stack, 1_700_000_000)
    worker.turn()
    save()
    append(stack, 1_700_000_001, 1_700_000_031)  # the second closes the first window
    worker.turn()
    commit(worker)
    cut()
    return worker, worker._state.positions[PARTITION]


def newest_id(stack) -> int:
    return parse_id(stack.client.xinfo_stream(stream_key(PARTITION))["last-generated-id"])


def test_what_comes_after_a_power_cut_under_a_clock_set_back_is_counted(stack, power_cut):
    """Its ids lie behind those of entries that the holder has read, and Redis has forgotten: they tell nothing of what was read."""
    worker, read = committed_and_forgotten(stack, power_cut)
    append(stack, 1_700_000_032, 1_700_000_033)
    assert newest_id(stack) <= read, "they got ids of their own"
    worker.turn()  # the stream is opened again
    append(stack, 1_700_000_100)
    worker.turn()
    worker._hand_over(list(worker._held))
    assert stack.lake().counts()["aggregated"] == 5, "what came after the power cut was taken for counted"


def test_the_next_holder_counts_it_too(stack, power_cut):
    """The one that had read the forgotten entries committed them, and died in the same moment."""
    _, read = committed_and_forgotten(stack, power_cut)
    forget_leases(stack)
    append(stack, 1_700_000_005, 1_700_000_032)  # the first of them of a window that is committed
    assert newest_id(stack) <= read, "they got ids of their own"
    second = holder(stack, "second")
    append(stack, 1_700_000_100)
    second.turn()
    second._hand_over(list(second._held))
    # The row of the forgotten entry whose window was open is what a power cut may cost.
    counts = stack.lake().counts()
    assert (counts["aggregated"], counts["late"]) == (3, 1), "what came after the power cut was taken for counted"
