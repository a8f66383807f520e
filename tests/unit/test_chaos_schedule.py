"""What `make chaos` does and sends is a function of the seed alone, and its traffic can be told apart."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from tests.chaos import traffic
from tests.chaos.profiles import BARRIERS, PROFILES
from tests.chaos.schedule import faults, legs
from tests.chaos.verdict import _who


def test_a_seed_gives_the_same_faults_and_another_gives_others():
    deck = PROFILES["local-always"].deck()
    assert faults("7/0", 300, deck) == faults("7/0", 300, deck) != faults("8/0", 300, deck)
    assert traffic.body("7/0", 3, 5) == traffic.body("7/0", 3, 5) != traffic.body("8/0", 3, 5)


def test_a_longer_run_begins_like_a_shorter_one():
    deck = PROFILES["s3"].deck()
    short = faults("7/2", 60, deck)
    assert faults("7/2", 600, deck)[: len(short)] == short


def test_every_kind_comes_as_often_as_it_lies_in_the_deck():
    """So that an hour has each of them at least twenty times, those of one profile in a third of it."""
    for profile in PROFILES.values():
        found = Counter(fault.kind for fault in faults("1/0", 1200, profile.deck()))
        assert set(found) == set(profile.kinds)
        assert min(found[kind] for kind in profile.own) >= 30
        assert min(found.values()) >= 10


def test_legs_take_the_time_and_the_profiles_in_turn():
    found = legs(7, 3600, list(PROFILES), 300)
    assert sum(leg.seconds for leg in found) == 3600 and max(leg.seconds for leg in found) <= 300
    assert [leg.profile for leg in found[:4]] == ["local-always", "local-everysec", "s3", "local-always"]
    assert len({leg.seed for leg in found}) == len(found) == 12
    assert [leg.seconds for leg in legs(7, 120, list(PROFILES), 300)] == [40, 40, 40]


def test_events_can_be_told_apart():
    """No value comes twice, most windows of a series hold one event, and bodies that wait for others are sent all the same."""
    bodies = [body for gang in range(traffic.GANGS) for body in islice(traffic.order("7/0", gang), 100)]
    events = [event for body in bodies for event in body.events]
    assert len({event.value for event in events}) == len(events) and max(abs(event.value) for event in events) < 2**40
    rows = Counter((event.device, event.metric, event.window_ms) for event in events)
    assert sum(count == 1 for count in rows.values()) > 0.8 * len(rows)
    for gang in range(traffic.GANGS):
        numbers = [body.number for body in bodies if body.gang == gang]
        assert len(set(numbers)) == len(numbers) and set(range(85)) <= set(numbers)
        assert (numbers == sorted(numbers)) == traffic.orderly(gang)


def test_count_and_sum_of_a_row_tell_its_events():
    events = [(event, None) for event in traffic.body("7/0", 1, 0).events[:4]]

    class Taken:
        outcome = "accepted"

    events = [(event, Taken) for event, _ in events]
    values = [event.value for event, _ in events]
    assert [n for *_, n in _who(events, 4, sum(values))] == [1, 1, 1, 1]
    assert [n for *_, n in _who(events, 3, sum(values) - values[2])] == [1, 1, 0, 1]
    assert [n for *_, n in _who(events, 5, sum(values) + values[0])] == [2, 1, 1, 1]
    assert [n for *_, n in _who(events, 4, 17)] == [-1, -1, -1, -1]


def test_every_barrier_is_a_kind():
    for barriers in BARRIERS.values():
        for barrier in barriers:
            assert all(f"kill {barrier}" in profile.kinds for profile in PROFILES.values())
