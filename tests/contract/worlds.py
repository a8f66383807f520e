"""What the holder's stores have in common, real and in memory: one suite asks both the same."""

from __future__ import annotations

import asyncio
import time
from copy import deepcopy

from pipeline.errors import Unavailable
from pipeline.stores import connection as keys
from pipeline.stores.alertlog import AlertLog, AlertReader
from pipeline.stores.connection import connect_async, format_id
from pipeline.stores.leases import MEMBERS, Leases
from pipeline.stores.streams import Appender, Group, Streams
from pipeline.testing import MemoryAlertLog, MemoryLeases, MemoryRedis, MemoryStreams


class RedisWorld:
    """A real server, empty but for the number of partitions."""

    def __init__(self, stack, client) -> None:
        self.stack, self.client = stack, client

    def leases(self, owner: str, ttl_ms: int = 60_000) -> Leases:
        return Leases(self.client, owner, ttl_ms)

    def streams(self) -> Streams:
        return Streams(self.client)

    def alertlog(self) -> AlertLog:
        return AlertLog(self.client)

    def append(self, partition: int = 0, events: bytes = b"payload") -> int:
        """An entry of one event; its id. Unavailable where nobody has opened the stream."""

        async def run():
            appender = Appender(connect_async(self.stack.settings.redis_url, 5), 2, 300)
            try:
                return await appender.append([Group(partition, events, 1, b"", 0, ())])
            finally:
                await appender.close()

        (entry,) = asyncio.run(run())
        if isinstance(entry, Unavailable):
            raise entry
        return entry

    def expire(self, partition: int) -> None:
        """The lease of a partition runs out."""
        self.client.delete(keys.lease_key(partition))

    def set_back(self, partition: int, ms: int) -> None:
        """The server's clock is set back: what was to expire does so later."""
        self.client.pexpire(keys.lease_key(partition), self.client.pttl(keys.lease_key(partition)) + ms)
        for member in self.client.zrange(MEMBERS, 0, -1):
            self.client.zincrby(MEMBERS, ms, member)

    def forget(self) -> None:
        """The server loses its memory."""
        self.client.flushall()
        self.client.set(keys.PARTITIONS, 2)

    def saved(self, partition: int) -> object:
        """A stream as it is now."""
        return self.client.dump(keys.stream_key(partition))

    def restart(self, partition: int, saved: object) -> None:
        """As if the server were another run, that knows nothing of what came after `saved`."""
        books = keys.books_key(partition)
        self.client.restore(keys.stream_key(partition), 0, saved, replace=True)
        number, run = self.client.hget(books, "incarnation").split(b"-")
        for name in ("incarnation", "opened"):
            self.client.hset(books, name, b"%b-%d" % (number, int(run) ^ 1))

    def pass_time(self, ms: int) -> None:
        time.sleep(ms / 1000)

    def lose(self, partition: int, entry: int) -> None:
        """Somebody deletes an entry."""
        self.client.xdel(keys.stream_key(partition), format_id(entry))

    def transitions(self) -> list[dict]:
        return AlertReader.all_transitions(self.client, 2)


class MemoryWorld:
    """The twins."""

    def __init__(self) -> None:
        self.redis = MemoryRedis(partitions=2)

    def leases(self, owner: str, ttl_ms: int = 60_000) -> MemoryLeases:
        return MemoryLeases(self.redis, owner, ttl_ms)

    def streams(self) -> MemoryStreams:
        return MemoryStreams(self.redis)

    def alertlog(self) -> MemoryAlertLog:
        return MemoryAlertLog(self.redis)

    def append(self, partition: int = 0, events: bytes = b"payload") -> int:
        return self.redis.append(partition, events, 1)

    def expire(self, partition: int) -> None:
        del self.redis.leases[partition]

    def set_back(self, partition: int, ms: int) -> None:
        self.redis.now_ms -= ms

    def forget(self) -> None:
        self.redis = MemoryRedis(now_ms=self.redis.now_ms + 1, partitions=2)

    def saved(self, partition: int) -> object:
        return deepcopy(self.redis.streams[partition])

    def restart(self, partition: int, saved: object) -> None:
        self.redis.streams[partition] = saved
        self.redis.run += 1

    def pass_time(self, ms: int) -> None:
        self.redis.now_ms += ms

    def lose(self, partition: int, entry: int) -> None:
        del self.redis.streams[partition].entries[entry]

    def transitions(self) -> list[dict]:
        return [each for _, found in sorted(self.redis.transitions.items()) for each in found]
