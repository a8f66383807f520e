"""The alerts that stand are in Redis as the worker knows them, whichever call of it failed."""

import contextlib

import pytest

from pipeline.errors import Unavailable
from pipeline.testing import MemoryRedis, MemoryTables
from tests.simulation.machine import DEVICES, Process, payload_of_rows


@pytest.mark.parametrize("how", ["refused", "lost"])
@pytest.mark.parametrize("calls", range(8))
def test_what_passed_without_a_transition_is_gone_from_redis_too(how, calls):
    """An alert that clears while it is pending; nothing more comes after the call that failed."""
    redis, tables, seconds = MemoryRedis(), MemoryTables(), [1000.0]
    process = Process("one", redis, tables, lambda: seconds[0])
    partition = DEVICES["a"]

    def turn() -> None:
        seconds[0] += 1
        redis.now_ms += 100
        with contextlib.suppress(Unavailable):
            process.worker.turn()

    def send(value: int, behind_seconds: int) -> None:
        redis.append(partition, payload_of_rows([("a", "x", redis.now_ms // 1000 - behind_seconds, value)]), 1)

    process.worker.start()
    turn()
    send(6, 1)
    turn()
    assert redis.alerts[partition][1]["firing"].to_list() == [False]
    send(2, 0)
    process.wire.bend(calls, how)
    for _ in range(3):
        turn()
    assert redis.alerts[partition][1].is_empty()
