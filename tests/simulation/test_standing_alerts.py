"""The alerts that stand are in Redis as the worker knows them, and each transition once, whichever call of it failed."""

import contextlib

import pytest

from pipeline.errors import Unavailable
from pipeline.testing import MemoryRedis, MemoryTables
from tests.simulation.machine import DEVICES, Process, payload_of_rows

PARTITION = DEVICES["a"]


class World:
    """One worker, and a device that it hears of."""

    def __init__(self) -> None:
        self.redis, self.seconds = MemoryRedis(), 1000.0
        self.process = Process("one", self.redis, MemoryTables(), lambda: self.seconds)
        self.process.worker.start()
        self.turn()

    def turn(self) -> None:
        self.seconds += 1
        self.redis.now_ms += 1000
        with contextlib.suppress(Unavailable):
            self.process.worker.renew()
            self.process.worker.turn()

    def send(self, value: int, behind_seconds: int = 0, device: str = "a") -> None:
        rows = [(device, "x", self.redis.now_ms // 1000 - behind_seconds, value)]
        self.redis.append(DEVICES[device], payload_of_rows(rows), 1)

    def fail(self, how: str, calls: int, first: int, then: int) -> None:
        """One value, a turn in which a call fails, and another before the next attempt."""
        self.send(first, 1)
        self.process.wire.bend(calls, how)
        self.turn()
        self.send(then)
        for _ in range(3):
            self.turn()

    def stands(self) -> list[bool]:
        """Of each alert that stands, whether it fires."""
        return self.redis.alerts[PARTITION][1]["firing"].to_list()

    def phases(self) -> list[str]:
        return [each["phase"] for each in self.redis.transitions.get(PARTITION, [])]


@pytest.fixture
def world():
    return World()


failures = pytest.mark.parametrize(("how", "calls"), [(how, calls) for how in ("refused", "lost") for calls in range(10)])


@failures
def test_what_passed_without_a_transition_is_gone_from_redis_too(world, how, calls):
    """An alert that clears while it is pending; nothing more comes after the call that failed."""
    world.send(6, 1)
    world.turn()
    assert world.stands() == [False]
    world.send(2)
    world.process.wire.bend(calls, how)
    for _ in range(3):
        world.turn()
    assert world.stands() == [] and world.phases() == ["pending"]


@failures
def test_what_passed_before_the_next_attempt_is_gone_from_redis_too(world, how, calls):
    """It was written, or not, and nobody said so; when Redis answers again it has cleared."""
    world.fail(how, calls, first=6, then=2)
    assert world.redis.alerts.get(PARTITION) is None or world.stands() == []


@failures
def test_a_transition_whose_reply_got_lost_is_raised_once(world, how, calls):
    """More has come before the next attempt, which is for a later position then."""
    world.fail(how, calls, first=1, then=1)
    assert world.stands() == [True] and world.phases() == ["firing"]


def test_what_new_rules_withdraw_is_resolved_where_nothing_came_since(world):
    """The partition stands where its alerts stand; another one's entry brings the rules in."""
    world.send(1)
    world.turn()
    assert world.phases() == ["firing"]
    world.redis.documents.append("rules: []\n")
    world.process.worker._reload_rules()
    world.send(5, device="c")
    world.turn()
    assert world.phases() == ["firing"]
    for _ in range(8):  # a tick comes
        world.turn()
    assert world.phases() == ["firing", "resolved"] and world.stands() == []


@failures
def test_what_new_rules_withdraw_before_the_next_attempt_is_resolved(world, how, calls):
    """Whether Redis took the first attempt nobody said; nothing has come since but new rules, which another partition's entry brings in."""
    world.send(1)
    world.process.wire.bend(calls, how)
    world.turn()
    world.redis.documents.append("rules: []\n")
    for _ in range(2):  # the call that fails may be this one
        world.process.worker._reload_rules()
    world.send(5, device="c")
    for _ in range(8):
        world.turn()
    assert world.phases() in ([], ["firing", "resolved"])
    assert PARTITION not in world.redis.alerts or world.stands() == []
