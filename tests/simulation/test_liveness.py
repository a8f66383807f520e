"""A worker reads on while the lake is away and partitions are to change hands; and what it could not tell is told by the next one."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import Unavailable
from pipeline.testing import Crash
from tests.frames import break_core
from tests.simulation.machine import DEVICES
from tests.simulation.world import World

TWO_RULES = """rules:
  - {name: gone, metric: x, upper: {critical: 5}}
  - {name: link, metric: y, lower: {critical: 1}}
"""
ONE_RULE = "rules:\n  - {name: link, metric: y, lower: {critical: 1}}\n"


def away(*_: object) -> None:
    raise Unavailable("the lake is away")


class Real(World):
    """Workers whose commits take their own thread, and real time."""

    def worker(self, **settings):
        worker = super().worker(**settings)
        worker._committer, worker._clock = ThreadPoolExecutor(1), time.monotonic
        return worker

    def turn(self, worker, times=1):
        """Time enough that it looks at its membership, and commits."""
        for _ in range(times):
            self.redis.now_ms += 600
            worker._member_due = 0.0
            with contextlib.suppress(Unavailable):
                worker.renew()
                worker.turn()


@pytest.fixture
def real():
    world = Real()
    yield world
    for worker in world.workers:
        worker.stop()


def closing_rows(world, worker):
    """Rows of a window that closed, which no commit has yet."""
    world.send([("a", "x", 2), ("c", "x", 2)])
    world.turn(worker)
    world.redis.now_ms += 15_000
    world.keep_leases()
    worker._committed_at = worker._clock() + 3600  # not now
    world.send([("a", "x", 2), ("c", "x", 2)])
    world.turn(worker)
    assert worker._made_rows


def test_a_worker_that_is_to_hand_over_reads_on_while_the_lake_is_away(real, monkeypatch):
    """It keeps its partitions, and hands over once the lake is back."""
    monkeypatch.setattr("pipeline.worker.HAND_OVER_SECONDS", 1.0)
    one = real.worker()
    real.turn(one, 3)
    closing_rows(real, one)
    commit, one._lake.commit = one._lake.commit, away
    other = real.worker()
    other._leases.heartbeat()  # it is there, and should have one of them
    position = dict(one._state.positions)

    def turns():
        for _ in range(6):
            real.send([("a", "x", 2), ("c", "x", 2)])
            real.turn(one)

    turning = threading.Thread(target=turns, daemon=True)
    turning.start()
    turning.join(5)  # once it waits for as long as a commit may take, then not at all
    assert not turning.is_alive()
    assert all(one._state.positions[partition] > at for partition, at in position.items()) and len(one._held) == 2
    one._lake.commit = commit
    deadline = time.monotonic() + 20
    while len(one._held) == 2 and time.monotonic() < deadline:
        other._leases.heartbeat()
        real.turn(one)
        time.sleep(0.05)
    assert len(one._held) == 1


def test_a_partition_that_cannot_be_recovered_holds_up_nobody_while_a_commit_hangs(real):
    one = real.worker()
    real.turn(one, 3)
    closing_rows(real, one)
    hangs = threading.Event()
    one._lake.commit = lambda *_: hangs.wait(30) and away()
    one._reading_lake.stands = away
    one._committed_at = 0.0
    real.turn(one)
    assert one._commit is not None and not one._commit.done()
    partition = DEVICES["c"]
    one._held.pop(partition), one._leases.release(partition, real.redis.leases[partition][0])
    one._state = one._state.without_partition(partition)
    began = time.monotonic()
    real.turn(one, 3)  # takes it, fails, and gives it up, each time
    assert time.monotonic() - began < 1 and partition not in one._held
    hangs.set()


@pytest.mark.parametrize("ends", ["leaves", "dies"])
def test_an_alert_that_nobody_answered_for_is_raised_by_the_next_holder(ends):
    """New rules come in with another partition's entry, so it cannot be offered again as it was: nor may its events be committed."""
    world = World()
    one = world.worker()
    world.turn(one)
    world.redis.documents.append(TWO_RULES)
    one._reload_rules()
    world.send([("a", "x", 9)])
    world.turn(one)
    one._committed_at = world.seconds + 3  # none just now
    world.redis.now_ms += 15_000
    world.keep_leases()
    apply, refused = one._alertlog.apply, []

    def refusing(*arguments):
        if not refused:
            refused.append(arguments)
            away()
        return apply(*arguments)

    one._alertlog.apply = refusing
    world.send([("a", "y", 0)])  # once: it also closes the window before
    world.turn(one, 1)
    assert refused
    world.redis.documents.append(ONE_RULE)
    one._reload_rules()
    world.send([("c", "x", 1)])
    one._committed_at = 0.0
    world.turn(one, 1)
    if ends == "leaves":
        world.leave(one)
    else:
        if one._commit is not None:
            one._commit.done()  # it is made when it is looked at
        world.redis.now_ms += 4000  # its leases run out
    other = world.worker()
    for _ in range(4):
        world.send([("c", "x", 1), ("a", "z", 1)])
        world.turn(other, 3)
    world.close_windows(other)
    told = [(each["rule"], each["phase"]) for each in world.redis.transitions[DEVICES["a"]]]
    assert sorted(told) == [("gone", "firing"), ("gone", "resolved"), ("link", "firing")]
    assert sorted(world.tables.table("anomalies")["rule"]) == ["gone", "link"]


def test_rules_that_got_a_number_again_are_applied():
    """A Redis that forgot its last second forgot a version: its number goes to the next."""
    world = World()
    one = world.worker()
    world.turn(one)
    world.redis.documents.append("rules:\n  - {name: high, metric: x, upper: {critical: 100}}\n")
    one._reload_rules()
    world.send([("a", "x", 50)])
    world.turn(one)
    world.redis.documents[-1] = "rules:\n  - {name: high, metric: x, upper: {critical: 10}}\n"
    one._reload_rules()
    world.send([("a", "x", 50)])
    world.turn(one)
    assert [each["phase"] for each in world.redis.transitions[DEVICES["a"]]] == ["firing"]


def test_events_of_an_entry_that_broke_the_core_are_dead_letters_also_after_a_recovery(monkeypatch):
    """Their entry is pending still, but the position is beyond it."""
    break_core(monkeypatch, "metric", "w", ValueError("broken"))
    world = World()
    one = world.worker()
    world.turn(one)
    world.send([("a", "x", 5)])
    world.turn(one)
    world.redis.now_ms += 9000
    world.send([("a", "w", 7)])  # its window is open still when the one before closes
    world.redis.now_ms += 10_000
    world.keep_leases()
    world.send([("a", "x", 5)])  # closes a window: a commit passes the entry that breaks

    def die(*_):
        raise Crash

    one._streams.settle = die
    with pytest.raises(Crash):
        world.turn(one, 4)
    world.redis.now_ms += 10_000
    other = world.worker()
    world.turn(other, 3)
    world.send([("a", "x", 5)])
    world.close_windows(other)
    assert world.counted() == {"x": 3} and world.counts()["dead_lettered"] == 1 and sum(world.redis.accepted.values()) == 4


def test_a_device_whose_clock_stands_still_keeps_no_entries_but_its_own():
    """Its window never closes; those of the others do, and their entries go."""
    world = World()
    one = world.worker(open_rows_max=1000)
    world.turn(one)
    stands = world.redis.now_ms // 1000
    lengths = []
    for _ in range(4):
        for second in range(30):
            world.send([("a", "x", 5)])
            if second % 6 == 0:
                world.send([("b", "y", 1, world.redis.now_ms // 1000 - stands)])
            world.turn(one, 1)
        lengths.append(len(world.redis.streams[DEVICES["b"]].entries))
    assert max(lengths) < 60  # a window's entries, and five of its own in each half minute
