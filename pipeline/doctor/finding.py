"""One line of a diagnosis."""

from __future__ import annotations

from typing import Literal, NamedTuple

Mark = Literal["ok", "warn", "bad"]
MARKS: tuple[Mark, ...] = ("ok", "warn", "bad")


class Finding(NamedTuple):
    """What was looked at, how it is, and what to do where it is not well."""

    topic: str
    mark: Mark
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.mark:<5} {self.topic:<9} {self.text}" + (f"; {self.remedy}" if self.remedy else "")


def graded(topic: str, value: float, warn: float, bad: float, text: str, remedy: str) -> Finding:
    """A number that had better be small: bad from `bad` on, a warning from `warn` on."""
    mark: Mark = "bad" if value >= bad else "warn" if value >= warn else "ok"
    return Finding(topic, mark, text, "" if mark == "ok" else remedy)
