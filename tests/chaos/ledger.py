"""What clients were told: of each body whether it was taken, refused, or nobody knows, and when. What is sent is not kept."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

ACCEPTED, REFUSED, UNKNOWN = "accepted", "refused", "unknown"


@dataclass
class Record:
    """One body. Times are seconds since the leg began."""

    gang: int
    number: int
    first_sent: float
    outcome: str = UNKNOWN
    last_sent: float = 0.0
    answered: float | None = None  # by the first answer that says it is taken
    attempts: list[str] = field(default_factory=list)  # what each attempt met, but the last ones of very many


@dataclass
class Ledger:
    """All bodies of a leg; for many threads."""

    records: dict[tuple[int, int], Record] = field(default_factory=dict)
    met: Counter = field(default_factory=Counter)  # what requests met: 202, 503, no answer, ...
    manners: Counter = field(default_factory=Counter)  # kinds of traffic that landed
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, gang: int, number: int, at: float) -> Record:
        with self._lock:
            record = self.records.setdefault((gang, number), Record(gang, number, at))
            record.last_sent = at
        return record

    def meet(self, record: Record, what: str) -> None:
        with self._lock:
            self.met[what] += 1
            if len(record.attempts) < 20:
                record.attempts.append(what)

    def landed(self, manner: str) -> None:
        with self._lock:
            self.manners[manner] += 1

    def count(self, what: str) -> int:
        with self._lock:
            return self.met[what]
