"""What each process last said of itself: one hash, a field each. Who has said nothing for long is not there."""

from __future__ import annotations

import json

import redis

from pipeline.stores.connection import REPORTS, translated

REPORT_SECONDS_MAX = 20.0  # what was said longer ago is no longer true


class Reports:
    """Say, and read what is said."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def put(self, name: str, facts: dict[str, object]) -> None:
        """Say it, and forget who has been silent for long. Unavailable: Redis is away."""
        with translated():
            now = self._now()
            self._redis.hset(REPORTS, name, json.dumps({**facts, "at": now}))
            old = [each for each, said in self._read().items() if abs(now - said["at"]) > REPORT_SECONDS_MAX]
            if old:
                self._redis.hdel(REPORTS, *old)

    def remove(self, name: str) -> None:
        """It leaves."""
        with translated():
            self._redis.hdel(REPORTS, name)

    def all(self) -> dict[str, dict]:
        """name -> what it said, by those who said something lately."""
        with translated():
            now = self._now()
            return {name: said for name, said in sorted(self._read().items()) if abs(now - said["at"]) <= REPORT_SECONDS_MAX}

    def _now(self) -> float:
        seconds, micros = self._redis.time()
        return seconds + micros / 1e6

    def _read(self) -> dict[str, dict]:
        return {name.decode(): json.loads(said) for name, said in self._redis.hgetall(REPORTS).items()}
