"""Redis Streams: append by anyone; read, acknowledge, trim and tick by the holder of the partition's lease only.

Every effect of a holder is a Lua script that compares its fencing token first: a zombie gets `Fenced` and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import redis
import redis.asyncio
from redis.exceptions import ConnectionError, NoScriptError, RedisError, TimeoutError

from pipeline.core.recovery import Stand
from pipeline.errors import Invalid, PipelineError, Unavailable
from pipeline.stores import connection as keys
from pipeline.stores.cluster import AsyncCluster, Cluster
from pipeline.stores.connection import (
    CONSUMER,
    GROUP,
    NO_COPIES,
    Copies,
    Scripts,
    format_id,
    format_incarnation,
    parse_id,
    parse_incarnation,
    script,
    translate,
    translated,
)

COUNT_DIGITS_MAX = 9  # of the events of one entry
AOF_SYNC_SECONDS = 2.0  # within which `appendfsync everysec` has brought to the disk what was written before


class Group(NamedTuple):
    """What one partition gets in one append: one stream entry of many bodies' events."""

    partition: int
    events: bytes  # codec.encode of an EVENTS batch, or b""
    event_count: int
    dead_letters: bytes  # codec.encode of a DEAD_LETTERS batch, or b""
    dead_letter_count: int
    keys: tuple[bytes, ...] = ()  # digests of the Idempotency-Keys of the bodies in it
    left: tuple[bytes, ...] = ()  # per key, which rows of its body were not admitted; empty: all were


class Repeated(NamedTuple):
    """Nothing was appended: bodies with these keys are in the partition already, but for the rows that were not admitted then."""

    keys: tuple[bytes, ...]
    left: tuple[bytes, ...] = ()  # as in the Group that brought them


class Entry(NamedTuple):
    """One stream entry as read. A tick has no payloads; `lost` is an entry that was deleted before it was read."""

    id: int
    events: bytes = b""
    event_count: int = 0
    dead_letters: bytes = b""
    dead_letter_count: int = 0
    lost: bool = False

    @property
    def rows(self) -> int:
        """Of both kinds, as it says itself: what it needs of memory goes by them."""
        return self.event_count + self.dead_letter_count


class Opened(NamedTuple):
    """What `open` did."""

    made: bool  # stream and group were absent
    incarnation: int
    moved: int  # entries that had ids behind what was read before them, and those that came after these


class Backlog(NamedTuple):
    """What nobody has read yet of one partition."""

    entries: int
    events: int
    oldest_seconds: float  # age of the oldest of them; 0: there is none
    stream_bytes: int  # of all entries, with those that are read and not settled
    read_events: int  # so far, by whichever holder


class Settlement(NamedTuple):
    """What a holder is done with in one partition."""

    token: int
    entries: Sequence[int]
    trim_before: int


class Appender:
    """The writing end, for asyncio: what the ingest API needs of Redis."""

    def __init__(
        self, client: redis.asyncio.Redis | AsyncCluster, partitions: int, idempotency_seconds: int, copies: Copies = NO_COPIES
    ) -> None:
        self._redis = client
        self._partitions = partitions
        self._copies = copies
        self._retention_ms = idempotency_seconds * 1000
        self._script = script("append")
        self._sha: str | None = None
        self._agreed = False

    async def _agree(self) -> None:
        """Unavailable unless the workers have made as many partitions as this API hashes devices into."""
        if self._agreed:
            return
        found = await self._redis.get(keys.PARTITIONS)
        if found is None:
            raise Unavailable("no worker has opened the streams yet")
        if int(found) != self._partitions:
            raise Unavailable(f"the streams have {int(found)} partitions, this API PIPELINE_PARTITIONS={self._partitions}: set that")
        self._agreed = True

    async def append(self, groups: Sequence[Group]) -> list[int | Repeated | Unavailable]:
        """Append each group as one entry; per group its entry id, or Repeated, or the Unavailable that stopped it."""
        try:
            await self._agree()
            replies = await self._evaluate(groups)
            if any(isinstance(reply, NoScriptError) for reply in replies):  # Redis was restarted; nothing of these ran
                self._sha = None
                missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
                again = await self._evaluate([groups[i] for i in missing])
                for i, reply in zip(missing, again, strict=True):
                    replies[i] = reply
        except Unavailable as error:
            return [error] * len(groups)
        except (RedisError, OSError) as error:
            return [Unavailable(f"Redis: {keys.redact(str(error))}")] * len(groups)
        return [self._result(group, reply) for group, reply in zip(groups, replies, strict=True)]

    async def _evaluate(self, groups: Sequence[Group]) -> list:
        if self._sha is None:
            self._sha = await self._redis.script_load(self._script)
        pipe = self._redis.pipeline(transaction=False)
        for group in groups:
            p = group.partition
            pipe.evalsha(
                self._sha, 4, keys.stream_key(p), keys.books_key(p), keys.idempotency_key(p), keys.left_key(p),
                group.events, group.event_count, group.dead_letters, group.dead_letter_count, self._retention_ms,
                len(group.keys), *group.keys, *group.left,
            )  # fmt: skip
        self._copies.ask(pipe)
        return self._copies.judged(await pipe.execute(raise_on_error=False))

    @staticmethod
    def _result(group: Group, reply: object) -> int | Repeated | Unavailable:
        if isinstance(reply, RedisError):
            error = translate(reply, group.partition)
            return error if isinstance(error, Unavailable) else Unavailable(str(error))
        if isinstance(reply, list):
            left = tuple(reply[1::2])
            return Repeated(tuple(reply[::2]), left if any(left) else ())
        return parse_id(reply)

    async def answer(self, key: bytes) -> bytes | None:
        """The stored first answer of an Idempotency-Key."""
        with translated():
            return await self._redis.get(b"answer:" + key)

    async def store_answer(self, key: bytes, answer: bytes) -> None:
        with translated():
            await self._redis.set(b"answer:" + key, answer, px=self._retention_ms, nx=True)

    async def ready(self) -> None:
        """Unavailable, with the reason, unless Redis answers, takes a write, and every partition has its stream.

        A primary of a cluster that is away takes its partitions along, not the others: so only where none answers.
        """
        with translated():
            await self._agree()
            pipe = self._redis.pipeline(transaction=False)
            pipe.set(keys.PROBE, b"", px=1000)  # a Redis that is full, or a replica, answers all else
            for partition in range(self._partitions):
                pipe.exists(keys.stream_key(partition))
            replies = await pipe.execute(raise_on_error=False)  # else redis-py puts the command into the message
            probe, *found = replies
            away = [reply for reply in found if isinstance(reply, RedisError)]
            if len(away) == len(found):
                raise away[0]
            if isinstance(probe, RedisError) and not isinstance(probe, ConnectionError | TimeoutError):
                raise probe
        missing = [partition for partition, exists in enumerate(found) if exists == 0]
        if missing:
            raise Unavailable(f"no worker has opened partition {missing[0]} yet ({len(missing)} of {self._partitions} are missing)")

    async def close(self) -> None:
        await self._redis.aclose()


class Streams:
    """The holder's end. Each call names the fencing token of its lease. `copies`: what is read counts once so many replicas have it."""

    def __init__(self, client: redis.Redis | Cluster, copies: Copies = NO_COPIES) -> None:
        self._redis = client
        self._copies = copies
        self._scripts = Scripts(client)
        self._moved_at: dict[int, float] = {}  # partition -> when `open` moved entries, or may have: it failed

    def agree(self, partitions: int) -> None:
        """Write down the number of partitions where it is not. Invalid: it is another."""
        with translated():
            if not self._redis.exists(keys.PARTITIONS):  # asked first: a full Redis refuses even a write that does nothing
                self._redis.set(keys.PARTITIONS, partitions, nx=True)
            found = int(self._redis.get(keys.PARTITIONS))
        if found != partitions:
            wanted = f"PIPELINE_PARTITIONS={partitions}"
            raise Invalid(f"this Redis holds streams of {found} partitions, not {wanted}: set that, or use another Redis")

    def open(self, partition: int, token: int, position: int, newest: int, stands: Iterable[Stand], accepted: int | None) -> Opened:
        """Make stream and group at the committed position where they are absent, and let ids go on after `newest`.

        `stands`: of each table, `aggregates` first, or of the holder's own state. Entries behind one of them that it cannot have read
        are moved, in their order: they came after Redis had forgotten its last moments. `accepted`: events of this partition that the
        lake accounts for; the books of a Redis that lost its memory start from it. None: the stream must be there, else Fenced.
        """
        arguments: list = [token, GROUP, format_id(position), "" if accepted is None else accepted, format_id(newest)]
        for stand in stands:
            arguments += [format_id(stand.position), format_incarnation(stand.incarnation)]
        try:
            with translated(partition):
                made, incarnation, moved = self._scripts.call("open", _holder_keys(partition), arguments)
        except Unavailable:
            self._moved_at[partition] = time.monotonic()
            raise
        if moved:
            self._moved_at[partition] = time.monotonic()
        if partition in self._moved_at:  # nothing may be made of it before the disk has it: a second loss would bring back its old ids
            time.sleep(max(self._moved_at.pop(partition) + AOF_SYNC_SECONDS - time.monotonic(), 0))
        return Opened(bool(made), parse_incarnation(incarnation), moved)

    def exists(self, partition: int) -> bool:
        """Whether the partition has its stream."""
        with translated(partition):
            return bool(self._redis.exists(keys.stream_key(partition)))

    def read(self, leases: Mapping[int, int], count: int, after: Mapping[int, int | None]) -> dict[int, list[Entry] | PipelineError]:
        """At most `count` entries of each partition (partition -> token) in one round trip.

        `after[p]` None reads new entries; an id reads the holder's own pending entries after it: at a start, and after
        a reply that got lost. Errors are per partition: Fenced, Restarted, or Unavailable.
        """
        calls = []
        for partition, token in leases.items():
            since = after.get(partition)
            position = ">" if since is None else format_id(since)
            calls.append((_holder_keys(partition), [token, GROUP, CONSUMER, count, position, int(bool(self._copies.least))]))
        try:
            replies = self._scripts.calls("read", calls, self._copies)
        except (RedisError, OSError) as error:
            return dict.fromkeys(leases, Unavailable(f"Redis: {keys.redact(str(error))}"))
        return {partition: _entries(partition, reply) for partition, reply in zip(leases, replies, strict=True)}

    def settle(self, settlements: Mapping[int, Settlement]) -> dict[int, PipelineError]:
        """Per partition acknowledge entries, trim what lies before the oldest unsettled one, and delete them behind it, in one round trip.

        What failed, and how: Fenced, Restarted, or Unavailable. Nothing unread or unsettled may lie before `trim_before`.
        """
        calls = []
        for partition, (token, entries, trim_before) in settlements.items():
            calls.append((_holder_keys(partition), [token, GROUP, format_id(trim_before), *map(format_id, entries)]))
        try:
            replies = self._scripts.calls("settle", calls)
        except (RedisError, OSError) as error:
            return dict.fromkeys(settlements, Unavailable(f"Redis: {keys.redact(str(error))}"))
        return {p: translate(reply, p) for p, reply in zip(settlements, replies, strict=True) if isinstance(reply, RedisError)}

    def tick(self, partition: int, token: int, interval_ms: int) -> None:
        """Append an empty entry if the partition has had none for `interval_ms`. Restarted: it must be opened again."""
        with translated(partition):
            self._scripts.call("tick", _holder_keys(partition), [token, interval_ms])

    def backlog(self, partitions: Sequence[int]) -> dict[int, Backlog]:
        """How far its readers are behind, per partition, in one round trip. Without a lease and without effect."""
        with translated():
            where = [[keys.stream_key(partition), keys.books_key(partition)] for partition in partitions]
            replies = self._scripts.calls("backlog", [(each, [GROUP]) for each in where])
        found = {}
        for partition, reply in zip(partitions, replies, strict=True):
            if isinstance(reply, RedisError):
                raise translate(reply, partition) from reply
            found[partition] = backlog_of(reply)
        return found

    def peek(self, partition: int, after: int, count: int) -> list[Entry]:
        """Entries after an id, without a lease and without effect: for status, books and tests."""
        with translated(partition):
            return [_entry(raw) for raw in self._redis.xrange(keys.stream_key(partition), f"({format_id(after)}", "+", count)]

    def outstanding(self, partition: int) -> list[Entry]:
        """Entries that are not settled: delivered and pending, or not delivered yet. Without a lease and without effect."""
        key = keys.stream_key(partition)
        with translated(partition):
            if not self._redis.exists(key):
                return []
            delivered = parse_id(self._redis.xinfo_groups(key)[0]["last-delivered-id"])
            pending: set[int] = set()
            after = "-"
            while page := self._redis.xpending_range(key, GROUP, after, "+", 1000):
                pending.update(parse_id(item["message_id"]) for item in page)
                after = f"({page[-1]['message_id'].decode()}"
            found, last = [], 0
            while page := self.peek(partition, last, 1000):
                found += [entry for entry in page if entry.id in pending or entry.id > delivered]
                last = page[-1].id
        return found

    def accepted_upto(self, partition: int) -> tuple[int, int]:
        """`accepted` and the last entry that it counts, at one moment; 0 where there is no stream."""
        key = keys.stream_key(partition)
        with translated(partition):
            pipe = self._redis.pipeline(transaction=True)
            pipe.hmget(keys.books_key(partition), "accepted", "expired")
            pipe.xinfo_stream(key)
            (accepted, expired), stream = pipe.execute(raise_on_error=False)
            if isinstance(stream, RedisError):
                if self._redis.exists(key):
                    raise stream
                return int(accepted or 0) - int(expired or 0), 0
        return int(accepted or 0) - int(expired or 0), parse_id(stream["last-generated-id"])

    def accepted(self, partition: int) -> int:
        """Events accepted into this partition since the store was made, taken or set aside.

        But for those that Redis was told of as expired: today the lake itself says how many are.
        """
        with translated(partition):
            accepted, expired = self._redis.hmget(keys.books_key(partition), "accepted", "expired")
        return int(accepted or 0) - int(expired or 0)


def history(streams: Streams, partition: int, token: int, newest: int, count: int) -> Iterator[list[Entry]]:
    """All pending entries of a partition, at most `count` a page: delivered to a holder before, and not settled.

    A Redis that lost the last second may have forgotten that it delivered them: up to `newest`, the last that any table or the
    alerts stand for, new entries are history, too. Raises what `read` tells.
    """
    after: int | None = 0
    last = -1
    while True:
        reply = streams.read({partition: token}, count, {partition: after})[partition]
        if isinstance(reply, PipelineError):
            raise reply
        if reply:
            yield reply
            last = reply[-1].id
        if reply and after is not None:
            after = last
        elif (not reply and after is None) or last >= newest:
            return
        else:
            after = None


def _holder_keys(partition: int) -> list[str]:
    return [keys.lease_key(partition), keys.stream_key(partition), keys.books_key(partition)]


def backlog_of(reply: list[int]) -> Backlog:
    """What the script `backlog` answers."""
    entries, events, oldest_ms, stream_bytes, read_events = reply
    return Backlog(entries, events, oldest_ms / 1000, stream_bytes, read_events)


def _entries(partition: int, reply: object) -> list[Entry] | PipelineError:
    if isinstance(reply, RedisError):
        return translate(reply, partition)
    if not reply:
        return []
    raw_entries = next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1]
    return [_entry(raw) for raw in raw_entries]


def _entry(raw: tuple) -> Entry:
    entry, fields = parse_id(raw[0]), raw[1]
    if fields is None:
        return Entry(entry, lost=True)
    if not isinstance(fields, dict):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    return Entry(entry, fields.get(b"e", b""), _count(fields.get(b"n")), fields.get(b"x", b""), _count(fields.get(b"m")))


def _count(told: bytes | None) -> int:
    """What an entry says that it holds; 0 where that is no number: something else wrote it."""
    return int(told) if told is not None and told.isdigit() and len(told) <= COUNT_DIGITS_MAX else 0
