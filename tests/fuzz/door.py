"""What a door is, what one try of it gives, and the report of all."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol


class Verdict(NamedTuple):
    """The class of the answer, and what is wrong with it; "" where nothing is."""

    answer: str
    wrong: str = ""


class Door(Protocol):
    """Input `number` of a seed is a pure function of the two, so that one can be tried again alone."""

    name: str
    threads: int

    def show(self, seed: int, number: int) -> tuple[str, bytes]:
        """The kind of an input, and the input itself, as it is saved where it does harm."""
        ...

    def attempt(self, seed: int, number: int) -> Verdict:
        """Send it, and judge the answer."""
        ...

    def finish(self) -> list[str]:
        """What is found wrong in the end, when all is said."""
        ...


def rng_of(seed: int, door: str, number: int) -> random.Random:
    """The randomness of one input, and of no other."""
    return random.Random(f"{seed}/{door}/{number}")


@dataclass
class Tally:
    """What happened at one door."""

    door: str
    tried: int = 0
    seconds: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")  # seconds, and the input that took them
    crashes: int = 0
    memory_mb: dict[str, tuple[int, int]] = field(default_factory=dict)  # process -> before, after
    neighbours_sent: int = 0
    neighbours_lost: int = 0
    violations: list[str] = field(default_factory=list)

    def told(self) -> dict[str, object]:
        """As JSON shows it."""
        return {**vars(self), "answers": dict(self.answers), "seconds": round(self.seconds, 1)}


class Evidence:
    """Inputs that did harm, as files."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed

    def keep(self, door: Door, number: int) -> Path:
        """Save input `number` of a door; where."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _, content = door.show(self._seed, number)
        path = self._folder / f"{door.name}-{self._seed}-{number}.bin"
        path.write_bytes(content)
        return path


def table(tallies: list[Tally]) -> str:
    """The report as text, one row per door."""
    classes = sorted({answer for tally in tallies for answer in tally.answers})
    head = ["door", "tried", "s", *classes, "crashes", "memory MB before > after", "neighbours", "lost", "violations"]
    rows = [head]
    for tally in tallies:
        memory = ", ".join(f"{name} {before} > {after}" for name, (before, after) in tally.memory_mb.items())
        answers = [str(tally.answers[name]) for name in classes]
        rows.append(
            [
                tally.door,
                str(tally.tried),
                f"{tally.seconds:.0f}",
                *answers,
                str(tally.crashes),
                memory,
                str(tally.neighbours_sent),
                str(tally.neighbours_lost),
                str(len(tally.violations)),
            ]
        )
    notes = [f"slowest at {t.door}: {t.slowest[1]}, {t.slowest[0]:.1f} s" for t in tallies if t.slowest[0] >= 1]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *notes])
