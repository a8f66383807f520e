"""What is done to the pipeline, and when: a pure function of the seed.

Kinds are dealt from a shuffled deck, so that each comes before any comes again; a kind may lie in the deck several times.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

GAP_SECONDS = (0.8, 4.0)  # between two faults; most last longer than the shortest gap, so that some overlap
PAUSE_SECONDS = (1.5, 3.5)  # how long a fault lasts where it lasts


@dataclass(frozen=True)
class Fault:
    """One thing that is done. `victim` and `choice` are numbers that its kind makes its own use of."""

    at_seconds: float
    kind: str
    victim: int
    choice: int
    pause_seconds: float


@dataclass(frozen=True)
class Leg:
    """One run of one profile on a pipeline of its own."""

    number: int
    profile: str
    seed: str
    seconds: float


def faults(seed: str, seconds: float, deck: Sequence[str]) -> list[Fault]:
    """The faults of one leg, in the order of their times."""
    rng = random.Random(f"{seed}/faults")
    found: list[Fault] = []
    at, left = rng.uniform(0.3, 1.0), []
    while at < seconds:
        if not left:
            left = rng.sample(deck, len(deck))
        found.append(
            Fault(round(at, 3), left.pop(), rng.randrange(1 << 16), rng.randrange(1 << 16), round(rng.uniform(*PAUSE_SECONDS), 3))
        )
        at += rng.uniform(*GAP_SECONDS)
    return found


def legs(seed: int, seconds: float, profiles: Sequence[str], leg_seconds_max: float) -> list[Leg]:
    """The profiles in turn, each as often as it takes for no leg to be longer than `leg_seconds_max`."""
    rounds = max(1, -(-int(seconds) // int(leg_seconds_max * len(profiles))))
    each = seconds / (rounds * len(profiles))
    return [Leg(number, profiles[number % len(profiles)], f"{seed}/{number}", each) for number in range(rounds * len(profiles))]
