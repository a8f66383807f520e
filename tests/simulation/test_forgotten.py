"""A Redis that lost its last moments: nothing else is counted twice for it, or left out."""

from __future__ import annotations

import pytest

from pipeline.core.recovery import Stand
from pipeline.errors import Unavailable
from tests.simulation.world import World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def worker(world):
    """One that holds both partitions, and has read what Redis has forgotten."""
    worker = world.worker()
    world.turn(worker)
    world.redis.sync()
    world.send([("a", "forgotten", 3), ("c", "forgotten", 3)])
    world.turn(worker, 1)
    world.redis.power_cut()
    return worker


@pytest.mark.parametrize("aggregates", ["behind", "ahead"])
def test_what_came_too_late_after_a_forgotten_event_stays_a_dead_letter(world, worker, aggregates):
    """Without that event it would be in time for whoever takes over: it goes by the dead letter, before its position and after it."""
    world.turn(worker, 1)
    if aggregates == "ahead":
        world.send([("b", "y", 3, 50)])
    world.send([("a", "x", 3, 90), ("b", "y", 3)])
    world.turn(worker)
    stands = {table: world.tables.stands.get((table, 0), Stand()).position for table in ("dead_letters", "aggregates")}
    assert stands["dead_letters"] == world.redis.streams[0].last
    assert stands["aggregates"] == (-1 if aggregates == "behind" else stands["dead_letters"])
    world.redis.leases.clear()

    second = world.worker()
    world.close_windows(second)
    world.leave(second)
    assert world.counted() == {"y": 1 + (aggregates == "ahead")} and world.counts()["dead_lettered"] == 1


@pytest.mark.parametrize("how", ["refused", "lost"])
@pytest.mark.parametrize("calls", range(12))
def test_whichever_call_fails_before_redis_forgets_again(world, worker, calls, how):
    """Also that by which a stream is opened: a worker that does not know in which incarnation it reads must not read on."""
    world.redis.now_ms -= 20_000
    world.send([("a", "x", 3, 15), ("c", "x", 3, 15)])
    world.process.wire.bend(calls, how)
    world.turn(worker)
    world.redis.sync()
    world.turn(worker)
    world.redis.power_cut()
    world.send([("a", "y", 3), ("c", "y", 3)])
    world.close_windows(worker)
    world.leave(worker)
    assert {**world.counted(), "forgotten": 2} == {"x": 2, "y": 2, "forgotten": 2}


def test_what_others_brought_is_taken_while_one_partition_cannot_be_opened(world, worker, monkeypatch):
    """As where one primary of a cluster is away."""
    real = worker._streams.open

    def away(partition, *arguments):
        if partition == 1:
            raise Unavailable("the primary is away")
        return real(partition, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(worker._streams, "open", away)
        for _ in range(3):
            world.send([("a", "x", 3), ("c", "x", 3)])
            world.turn(worker)
    world.turn(worker, 40)  # no jump: who lost its leases would read all again
    world.leave(worker)
    assert {**world.counted(), "forgotten": 2} == {"x": 6, "forgotten": 2}
