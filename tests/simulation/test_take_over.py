"""How soon a dead worker's partitions are another's."""

import pytest

from pipeline.testing import MemoryRedis, MemoryTables
from tests.simulation.machine import SETTINGS, Process

TURN_MS = 10  # the main loop comes by so often


@pytest.mark.parametrize("late_ms", range(0, SETTINGS.lease_ms // 6, 70))
def test_what_a_dead_worker_held_is_taken_as_soon_as_its_lease_is_over(late_ms):
    """At whatever moment between two of the survivor's looks the other was heard last."""
    redis, tables, seconds = MemoryRedis(), MemoryTables(), [1000.0]

    def pass_ms(ms: int) -> None:
        redis.now_ms += ms
        seconds[0] += ms / 1000

    one, other = (Process(name, redis, tables, lambda: seconds[0]) for name in ("one", "other"))
    for process in (one, other):
        process.worker.start()
        process.worker.turn()
        pass_ms(late_ms)
    for _ in range(3 * SETTINGS.lease_ms // TURN_MS):
        for process in (one, other):
            process.worker.turn()
            process.worker.renew()
        pass_ms(TURN_MS)
    assert len({owner for _, owner, _ in redis.leases.values()}) == SETTINGS.partitions == 2
    died = redis.now_ms
    while {owner for _, owner, _ in redis.leases.values()} != {"other"}:
        assert redis.now_ms - died <= SETTINGS.lease_ms + SETTINGS.lease_ms / 60 + 2 * TURN_MS
        other.worker.turn()
        other.worker.renew()
        pass_ms(TURN_MS)
