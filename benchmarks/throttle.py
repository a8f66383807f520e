"""`python -m benchmarks.throttle PID EVENTS_PER_SECOND REDIS_URL PARTITIONS`: a worker that takes so many events, and no more.

It is stopped as long as it has read more than that, and so reads much at once and then nothing, as one that has much to do with each
event. What it takes is so known beforehand, and the same on a machine on which others work, as long as it can do that much at all.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import redis

from pipeline.stores.connection import books_key

LOOK_SECONDS = 0.05
SAVED_SECONDS = 0.5  # of the rate may be made up for, where it had nothing to read


def throttle(pid: int, rate: float, client: redis.Redis, partitions: int) -> None:
    """ProcessLookupError: it has ended."""

    def read() -> int:
        pipe = client.pipeline(transaction=False)
        for partition in range(partitions):
            pipe.hget(books_key(partition), "read")
        return sum(int(count or 0) for count in pipe.execute())

    parent, left, at, before = os.getppid(), 0.0, time.monotonic(), read()
    while os.getppid() == parent:
        now, seen = time.monotonic(), read()
        left = min(left + rate * (now - at), rate * SAVED_SECONDS) - (seen - before)
        at, before = now, seen
        os.kill(pid, signal.SIGCONT if left > 0 else signal.SIGSTOP)
        time.sleep(LOOK_SECONDS)
    os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    try:
        throttle(int(sys.argv[1]), float(sys.argv[2]), redis.Redis.from_url(sys.argv[3]), int(sys.argv[4]))
    except (ProcessLookupError, redis.RedisError):
        sys.exit(0)
