"""What each process last said of itself: one hash, a field each. Who has said nothing for long is not there."""

from __future__ import annotations

import json
from collections.abc import Mapping

import redis

from pipeline.stores.connection import REPORTS, now_seconds, translated

REPORT_SECONDS_MAX = 20.0  # what was said longer ago is no longer true


class Reports:
    """Say, and read what is said."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def put(self, name: str, facts: dict[str, object]) -> None:
        """Say it, and forget who has been silent for long. Unavailable: Redis is away."""
        with translated():
            now = now_seconds(self._redis)
            self._redis.hset(REPORTS, name, json.dumps({**facts, "at": now}))
            said = self._redis.hgetall(REPORTS)
            if silent := {each.decode() for each in said} - recent(said, now, REPORT_SECONDS_MAX).keys():
                self._redis.hdel(REPORTS, *silent)

    def remove(self, name: str) -> None:
        """It leaves."""
        with translated():
            self._redis.hdel(REPORTS, name)

    def all(self) -> dict[str, dict]:
        """name -> what it said, by those who said something lately."""
        with translated():
            return recent(self._redis.hgetall(REPORTS), now_seconds(self._redis), REPORT_SECONDS_MAX)


def recent(said: Mapping[bytes, bytes], now: float, seconds_max: float) -> dict[str, dict]:
    """Of a hash of what each said, with the time in `at`, that which is not older."""
    found = {name.decode(): json.loads(text) for name, text in sorted(said.items())}
    return {name: each for name, each in found.items() if abs(now - each["at"]) <= seconds_max}
