"""What a Redis that lost its last moments forgot had a part in what is committed: nothing else is counted twice for it."""

from __future__ import annotations

import pytest

from pipeline.core.recovery import Stand
from pipeline.testing import MemoryLake
from tests.simulation.world import World


@pytest.mark.parametrize("aggregates", ["behind", "ahead"])
def test_what_came_too_late_after_a_forgotten_event_stays_a_dead_letter(aggregates):
    """Without that event it would be in time for whoever takes over: it goes by the dead letter, before its position and after it."""
    world = World()
    worker = world.worker()
    world.turn(worker)
    world.redis.sync()
    world.send([("a", "x", 3)])
    world.turn(worker, 1)
    world.redis.power_cut()
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
    for _ in range(8):
        world.redis.now_ms += 20_000
        world.turn(second)
    world.leave(second)
    counts = MemoryLake(world.tables).counts()
    assert counts["dead_lettered"] == 1 and counts["aggregated"] == world.redis.accepted[0] - 1
    counted = world.tables.table("aggregates")
    assert counted["device"].unique().to_list() == ["b"], "of the device nothing is known but what was forgotten, and the dead letter"
