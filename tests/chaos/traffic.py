"""What is sent: bodies of events that can be told apart, each a pure function of seed, gang and number.

A gang is a few devices of different partitions that share a body, as one collector would send them. Body n holds their
samples of one second of event time; a day of event time has few of these seconds, so that no day's files grow for long.
Nearly every (series, window) holds one event, whose value is the row's sum; where it holds several, values are such that
count and sum tell which.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

GANGS = 12
DEVICES = 4  # of a gang
WINDOW_SECONDS = 2
DISORDER_SECONDS = 2
IDLE_AFTER_SECONDS = 30
DAY_BODIES = 90  # seconds of event time in a day; even, so that windows do not straddle days
BODIES_MAX = 1 << 13  # of one gang and leg
SINGLES = 14  # series of a device with one event a window
SEVERAL = 2  # events of one series in one body
FIRST_DAY_MS = int(datetime(2023, 3, 1, tzinfo=UTC).timestamp() * 1000)
FLUSH_MS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
RULES = "rules:\n  - {name: hot, metric: heat, upper: {critical: 0, clear: 0}}\n"
_SLOTS = 64  # ids of one body's events


@dataclass(frozen=True)
class Event:
    device: str
    metric: str
    time_ms: int
    value: int

    @property
    def window_ms(self) -> int:
        return self.time_ms // (WINDOW_SECONDS * 1000) * WINDOW_SECONDS * 1000

    def wire(self) -> dict:
        return {"device": self.device, "metric": self.metric, "timestamp": self.time_ms, "value": self.value}


@dataclass(frozen=True)
class Body:
    """One request. `bad` are texts of events whose value is none: they become dead letters.

    `how`: plain; twice (the same once more after the answer), at_once (to two APIs at the same time), swap (after its
    successor), late (when its windows are long closed), give_up (not sent again when there is no answer), reuse (under
    the key of the body before), broken (cut off).
    """

    gang: int
    number: int
    how: str
    events: list[Event]
    bad: list[str]

    @property
    def key(self) -> str:
        return f"{self.gang}-{self.number - (self.how == 'reuse')}"

    def wire(self) -> list[dict]:
        first = self.events[0]
        broken = [{"device": first.device, "metric": "bad", "timestamp": first.time_ms, "value": text} for text in self.bad]
        return [event.wire() for event in self.events] + broken


def devices(gang: int) -> list[str]:
    return [f"g{gang:02}-d{number}" for number in range(DEVICES)]


def orderly(gang: int) -> bool:
    """Whether this gang sends body after body, and each until it is taken: then its alerts are known in advance."""
    return gang % 3 != 0


def manner(rng: random.Random, gang: int, number: int) -> str:
    """How body `number` is sent."""
    dice = rng.random()
    if dice < 0.05:
        return "twice"
    if dice < 0.10:
        return "at_once"
    if orderly(gang) or number < 2:
        return "plain"
    for how, until in (("swap", 0.20), ("late", 0.25), ("give_up", 0.35), ("reuse", 0.37), ("broken", 0.39)):
        if dice < until:
            return how
    return "plain"


def body(seed: str, gang: int, number: int) -> Body:
    """Body `number` of a gang: one second of event time."""
    rng = random.Random(f"{seed}/{gang}/{number}")
    how = manner(rng, gang, number)
    second_ms = FIRST_DAY_MS + number // DAY_BODIES * 86_400_000 + number % DAY_BODIES * 1000
    first_id = (number * GANGS + gang) * _SLOTS
    found: list[Event] = []

    def event(device: str, metric: str, offset_ms: int) -> Event:
        return Event(device, metric, second_ms + offset_ms, rng.randrange(1, 1 << 11) << 28 | first_id + len(found))

    for device in devices(gang):
        for n in range(number % 2, SINGLES, 2):
            found.append(event(device, f"s{n}", rng.randrange(1000)))
        for offset in rng.sample(range(1000), SEVERAL):
            found.append(event(device, "several", offset))
        heat = event(device, "heat", rng.randrange(1000))
        if rng.random() < 0.6:
            heat = Event(heat.device, heat.metric, heat.time_ms, -heat.value)
        found.append(heat)
    bad = [f"bad-{gang}-{number}"] if rng.random() < 0.05 and how in ("plain", "twice", "at_once") else []
    return Body(gang, number, how, found, bad)


def order(seed: str, gang: int) -> Iterator[Body]:
    """The bodies of a gang in the order in which they are sent: some wait for their successor, some for several."""
    held: list[tuple[int, Body]] = []  # (number of the body before which it goes at the latest, body)
    for number in range(BODIES_MAX):
        one = body(seed, gang, number)
        if one.how in ("swap", "late"):
            held.append((number + (1 if one.how == "swap" else 8), one))
            continue
        yield one
        for due, waiting in [each for each in held if each[0] <= number]:
            held.remove((due, waiting))
            yield waiting
