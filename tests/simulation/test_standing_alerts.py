"""The alerts that stand are in Redis as the worker knows them, and each transition once, whichever call of it failed."""

import pytest

from tests.simulation.machine import DEVICES
from tests.simulation.world import World

PARTITION = DEVICES["a"]


class Watched(World):
    """One worker, and a device that it hears of."""

    def __init__(self):
        super().__init__()
        self.only = self.worker()
        self.turns(1)

    def turns(self, times):
        self.turn(self.only, times)

    def value(self, value, behind_seconds=0, device="a"):
        self.send([(device, "x", value, behind_seconds)])

    def fail(self, how, calls, first, then):
        """One value, a turn in which a call fails, and another before the next attempt."""
        self.value(first, 1)
        self.process.wire.bend(calls, how)
        self.turns(1)
        self.value(then)
        self.turns(3)

    def stands(self):
        """Of each alert that stands, whether it fires."""
        return self.redis.alerts[PARTITION][1]["firing"].to_list()

    def phases(self):
        return [each["phase"] for each in self.redis.transitions.get(PARTITION, [])]


@pytest.fixture
def world():
    return Watched()


failures = pytest.mark.parametrize(("how", "calls"), [(how, calls) for how in ("refused", "lost") for calls in range(10)])


@failures
def test_what_passed_without_a_transition_is_gone_from_redis_too(world, how, calls):
    """An alert that clears while it is pending; nothing more comes after the call that failed."""
    world.value(6, 1)
    world.turns(1)
    assert world.stands() == [False]
    world.value(2)
    world.process.wire.bend(calls, how)
    world.turns(3)
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
    world.value(1)
    world.turns(1)
    assert world.phases() == ["firing"]
    world.redis.documents.append("rules: []\n")
    world.only._reload_rules()
    world.value(5, device="c")
    world.turns(1)
    assert world.phases() == ["firing"]
    world.turns(8)  # a tick comes
    assert world.phases() == ["firing", "resolved"] and world.stands() == []


@failures
def test_what_new_rules_withdraw_before_the_next_attempt_is_resolved(world, how, calls):
    """Whether Redis took the first attempt nobody said; nothing has come since but new rules, which another partition's entry brings in."""
    world.value(1)
    world.process.wire.bend(calls, how)
    world.turns(1)
    world.redis.documents.append("rules: []\n")
    for _ in range(2):  # the call that fails may be this one
        world.only._reload_rules()
    world.value(5, device="c")
    world.turns(8)
    assert world.phases() in ([], ["firing", "resolved"])
    assert PARTITION not in world.redis.alerts or world.stands() == []
