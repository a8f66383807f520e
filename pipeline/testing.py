"""The stores in memory, beside the real ones under the same contract, and faults to order: whole runs in milliseconds.

`MemoryRedis` and `MemoryLake` are what outlives a process; the classes named after the real stores are one process's ends of
them. Every call goes over that process's `Wire`, where a plan can refuse it, lose its reply, or end the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import polars as pl

from pipeline.core.recovery import LAST_ROWS, Stand
from pipeline.core.schema import SEQUENCE_BITS, SERIES_NAMES, entry_id, split_entry_id
from pipeline.core.semantics import NEVER, Semantics
from pipeline.core.setaside import REFUSED, refused_of
from pipeline.errors import Fenced, Invalid, PipelineError, Restarted, Unavailable
from pipeline.stores.alertlog import KEY, NAMED, differences
from pipeline.stores.connection import RUN_BITS
from pipeline.stores.rulebook import Version
from pipeline.stores.streams import Entry, Opened, Settlement
from pipeline.stores.tables import TABLES


class Crash(BaseException):
    """The process ends here, as by kill -9."""


@dataclass
class Wire:
    """The calls of one process to its stores. `bend` makes one of the next go wrong.

    Of the partitions in `away` nothing in Redis is reached, as where one primary of a cluster is gone.
    """

    calls: int = 0
    away: set[int | str] = field(default_factory=set)
    _at: int = -1
    _how: str = ""

    def bend(self, after_calls: int, how: str) -> None:
        """The call after so many others is "refused", its reply "lost", or the process "dies before" or "dies after" it."""
        self._at, self._how = self.calls + after_calls, how

    def call(self, effect: Callable, *arguments: object) -> object:
        """Make a call. Unavailable, or Crash, by plan."""
        how = self._how if self.calls == self._at else ""
        self.calls += 1
        if how == "refused":
            raise Unavailable("the store is away")
        if how == "dies before":
            raise Crash
        found = effect(*arguments)
        if how == "lost":
            raise Unavailable("the reply got lost")
        if how == "dies after":
            raise Crash
        return found

    def each(self, effect: Callable, partitions: Iterable[int | str]) -> dict[int | str, object]:
        """One call with an effect on each of them; what an effect raises stands in its place, and so does Unavailable for all."""
        wanted = list(partitions)
        try:
            return self.call(lambda: {partition: self._one(effect, partition) for partition in wanted})
        except Unavailable as error:
            return dict.fromkeys(wanted, error)

    def _one(self, effect: Callable, partition: int | str) -> object:
        try:
            return self.reach(effect, partition)
        except PipelineError as error:
            return error

    def reach(self, effect: Callable, partition: int | str, *arguments: object) -> object:
        """The effect on a partition in Redis. Unavailable: it is away."""
        if partition in self.away:
            raise Unavailable(f"the primary of partition {partition} is away")
        return effect(partition, *arguments)


@dataclass
class _Stream:
    entries: dict[int, Entry] = field(default_factory=dict)  # by id, growing
    last: int = 0
    delivered: int = 0
    pending: list[int] = field(default_factory=list)
    incarnation: int = 0
    opened: int = 0
    incarnations: dict[int, int] = field(default_factory=dict)  # of entries

    def go_on_after(self, entry: int) -> None:
        """Let the next id be greater; before a millisecond has too many, ids go on in the next."""
        milliseconds, sequence = split_entry_id(entry)
        self.last = entry if sequence < 1 << SEQUENCE_BITS - 1 else entry_id(milliseconds + 1, 0)


@dataclass
class MemoryRedis:
    """What a Redis holds. `now_ms` is its clock, moved by hand, either way; `run` tells its starts apart."""

    now_ms: int = 1_700_000_000_000
    run: int = 1
    partitions: int | None = None
    streams: dict[int, _Stream] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)
    leases: dict[int | str, tuple[int, str, int]] = field(default_factory=dict)  # token, owner, until
    fences: dict[int | str, int] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)
    alerts: dict[int, tuple[int, pl.DataFrame]] = field(default_factory=dict)
    transitions: dict[int, list[dict]] = field(default_factory=dict)
    documents: list[str] = field(default_factory=list)
    appended: dict[int, list[Entry]] = field(default_factory=dict)  # all there ever was, for an oracle
    synced: MemoryRedis | None = None  # what the disk has of it

    def append(self, partition: int, events: bytes = b"", event_count: int = 0) -> int:
        """What the API does: the id of the new entry. Unavailable: nobody has opened the stream."""
        if partition not in self.streams:
            raise Unavailable("NOSTREAM")
        stream = self.streams[partition]
        added = self.add(stream, Entry(0, events, event_count))
        self.appended.setdefault(partition, []).append(stream.entries[added])
        self.accepted[partition] = self.accepted.get(partition, 0) + event_count
        return added

    def add(self, stream: _Stream, entry: Entry) -> int:
        """Put an entry at the end, under an id of now: that one."""
        added = max(entry_id(self.now_ms, 0), stream.last + 1)
        stream.entries[added] = entry._replace(id=added)
        stream.incarnation = stream.incarnations[added] = self.incarnation(stream)
        stream.go_on_after(added)
        return added

    def incarnation(self, stream: _Stream) -> int:
        """Which incarnation of the stream it is now."""
        number, run = divmod(stream.incarnation, 1 << RUN_BITS)
        return stream.incarnation if run == self.run else (number + 1) << RUN_BITS | self.run

    def sync(self) -> None:
        """What it holds is on the disk."""
        self.synced = None
        self.synced = deepcopy(self)

    def power_cut(self) -> None:
        """It starts again with what was on the disk, in a run that no other was."""
        kept = {name: getattr(self, name) for name in ("now_ms", "appended", "synced")}
        vars(self).update(vars(deepcopy(self.synced)) | kept | {"run": self.run + 1})

    def holder(self, partition: int | str) -> tuple[int, str] | None:
        """(token, owner) of the lease that runs now."""
        token, owner, until = self.leases.get(partition, (0, "", 0))
        return (token, owner) if until > self.now_ms else None

    def opened(self, partition: int) -> _Stream:
        """The stream of a partition. Restarted: its holder has not opened it in this incarnation."""
        stream = self.streams.get(partition, _Stream())
        if stream.opened != self.incarnation(stream):
            raise Restarted("Redis was started again, or another one took over")
        return stream

    def fence(self, partition: int, token: int) -> None:
        """Fenced unless this is the token of the lease that runs."""
        current = self.holder(partition)
        if current is None or current[0] != token:
            raise Fenced(partition, f"fencing token {token} is behind {current[0] if current else 'none'}")


class MemoryStreams:
    """`stores.streams.Streams`, the holder's end."""

    def __init__(self, redis: MemoryRedis, wire: Wire | None = None) -> None:
        self._redis = redis
        self._wire = wire or Wire()
        self._in_doubt: set[int] = set()

    def agree(self, partitions: int) -> None:
        if self._redis.partitions is None:
            self._redis.partitions = partitions
        if self._redis.partitions != partitions:
            raise Invalid(f"this Redis holds streams of {self._redis.partitions} partitions, not PIPELINE_PARTITIONS={partitions}")

    def open(self, partition: int, token: int, position: int, newest: int, stands: Iterable[Stand], accepted: int | None) -> Opened:
        try:
            opened = self._wire.call(self._wire.reach, self._open, partition, token, position, newest, list(stands), accepted)
        except Unavailable:
            self._in_doubt.add(partition)
            raise
        if opened.moved or partition in self._in_doubt:  # nothing is made of what was moved before the disk has it
            self._redis.sync()
        self._in_doubt.discard(partition)
        return opened

    def _open(self, partition: int, token: int, position: int, newest: int, stands: list[Stand], accepted: int | None) -> Opened:
        self._redis.fence(partition, token)
        made = partition not in self._redis.streams
        if made and accepted is None:
            raise Fenced(partition, "its stream is gone: Redis lost its memory")
        if made:
            self._redis.streams[partition] = _Stream(delivered=max(position, 0))
            self._redis.accepted[partition] = accepted
        stream = self._redis.streams[partition]
        stream.go_on_after(max(stream.last, newest))  # ids must not run backwards
        current = self._redis.incarnation(stream)
        unopened = stream.opened != current
        stream.incarnation = stream.opened = current

        def unseen(entry: int) -> bool:
            of = stream.incarnations[entry]
            beyond = [stand.incarnation for stand in stands if entry <= stand.position]
            if stands and entry <= stands[0].position:  # it alone decides
                beyond = beyond[:1]
            return any(known and of != known and (of == current or of >> RUN_BITS >= known >> RUN_BITS) for known in beyond)

        moved = [entry for entry in stream.entries if unseen(entry)]
        if moved and unopened:  # nobody has read of this incarnation: what came after them stays after them
            later = [entry for entry in stream.entries if entry > moved[0] and stream.incarnations[entry] == current]
            moved = sorted({*moved, *later})
        for number in moved:
            self._redis.add(stream, stream.entries.pop(number))
        stream.pending = [entry for entry in stream.pending if entry not in moved]
        return Opened(made, current, len(moved))

    def exists(self, partition: int) -> bool:
        return self._wire.call(self._wire.reach, self._redis.streams.__contains__, partition)

    def read(self, leases: Mapping[int, int], count: int, after: Mapping[int, int | None]) -> dict[int, list[Entry] | PipelineError]:
        def one(partition: int) -> list[Entry]:
            self._redis.fence(partition, leases[partition])
            stream = self._redis.opened(partition)
            if after.get(partition) is not None:
                ids = [entry for entry in stream.pending if entry > after[partition]][:count]
                return [stream.entries.get(entry, Entry(entry, lost=True)) for entry in ids]
            new = [entry for number, entry in stream.entries.items() if number > stream.delivered][:count]
            if new:
                stream.delivered = new[-1].id
                stream.pending += [entry.id for entry in new]
            return new

        return self._wire.each(one, leases)

    def settle(self, settlements: Mapping[int, Settlement]) -> dict[int, PipelineError]:
        def one(partition: int) -> None:
            token, settled, trim_before = settlements[partition]
            self._redis.fence(partition, token)
            stream, gone = self._redis.opened(partition), set(settled)
            stream.pending = [entry for entry in stream.pending if entry not in gone]
            stream.entries = {number: entry for number, entry in stream.entries.items() if number >= trim_before and number not in gone}

        return {partition: error for partition, error in self._wire.each(one, settlements).items() if error is not None}

    def tick(self, partition: int, token: int, interval_ms: int) -> None:
        self._wire.call(self._wire.reach, self._tick, partition, token, interval_ms)

    def _tick(self, partition: int, token: int, interval_ms: int) -> None:
        self._redis.fence(partition, token)
        if self._redis.now_ms - split_entry_id(self._redis.opened(partition).last)[0] >= interval_ms:
            self._redis.append(partition)

    def peek(self, partition: int, after: int, count: int) -> list[Entry]:
        return [entry for number, entry in self._redis.streams[partition].entries.items() if number > after][:count]

    def outstanding(self, partition: int) -> list[Entry]:
        stream = self._redis.streams.get(partition, _Stream())
        return [entry for number, entry in stream.entries.items() if number in stream.pending or number > stream.delivered]

    def accepted(self, partition: int) -> int:
        return self._redis.accepted.get(partition, 0)


class MemoryLeases:
    """`stores.leases.Leases`."""

    def __init__(self, redis: MemoryRedis, owner: str, ttl_ms: int, wire: Wire | None = None) -> None:
        self._redis, self._owner, self._ttl_ms = redis, owner, ttl_ms
        self._wire = wire or Wire()

    def heartbeat(self, *, leaving: bool = False) -> dict[str, int]:
        return self._wire.call(self._heartbeat, leaving)

    def _heartbeat(self, leaving: bool) -> dict[str, int]:
        now = self._redis.now_ms
        members = {name: min(at, now) for name, at in self._redis.members.items() if name != self._owner and at > now - self._ttl_ms}
        self._redis.members = members if leaving else {**members, self._owner: now}
        return {name: now - at for name, at in self._redis.members.items()}

    def holders(self, partitions: int) -> dict[int, str | None]:
        def one(partition: int) -> str | None:
            held = self._redis.holder(partition)
            return held[1] if held else None

        return self._wire.call(lambda: {partition: self._wire.reach(one, partition) for partition in range(partitions)})

    def tend(self, partitions: int) -> dict[int, str | None]:
        return self._wire.call(lambda: {partition: self._wire.reach(self._tend, partition) for partition in range(partitions)})

    def _tend(self, partition: int) -> str | None:
        if (held := self._redis.holder(partition)) is None:
            return None
        token, owner, until = self._redis.leases[partition]
        self._redis.leases[partition] = (token, owner, min(until, self._redis.now_ms + self._ttl_ms))
        return held[1]

    def acquire(self, partition: int | str) -> int | None:
        return self._wire.call(self._wire.reach, self._acquire, partition)

    def _acquire(self, partition: int | str) -> int | None:
        if self._redis.holder(partition) is not None:
            return None
        number = self._redis.fences[partition] = max(self._redis.fences.get(partition, 0) + 1, self._redis.now_ms)
        token = number * 10**10 + self._redis.run
        self._redis.leases[partition] = (token, self._owner, self._redis.now_ms + self._ttl_ms)
        return token

    def renew(self, leases: Mapping[int | str, int]) -> dict[int | str, PipelineError]:
        def one(partition: int | str) -> None:
            self._redis.fence(partition, leases[partition])
            self._redis.leases[partition] = (leases[partition], self._owner, self._redis.now_ms + self._ttl_ms)

        return {partition: error for partition, error in self._wire.each(one, leases).items() if error is not None}

    def release(self, partition: int | str, token: int) -> None:
        self._wire.call(self._wire.reach, self._release, partition, token)

    def _release(self, partition: int | str, token: int) -> None:
        self._redis.fence(partition, token)
        del self._redis.leases[partition]


class MemoryAlertLog:
    """`stores.alertlog.AlertLog`."""

    def __init__(self, redis: MemoryRedis, wire: Wire | None = None) -> None:
        self._redis = redis
        self._wire = wire or Wire()

    def load(self, partition: int) -> tuple[int, pl.DataFrame]:
        return self._wire.call(self._wire.reach, self._load, partition)

    def _load(self, partition: int) -> tuple[int, pl.DataFrame]:
        return self._redis.alerts.get(partition, (-1, NAMED.to_frame()))

    def apply(
        self, partition: int, token: int, position: int, before: pl.DataFrame, after: pl.DataFrame, transitions: Sequence[tuple[int, dict]]
    ) -> None:
        self._wire.call(self._wire.reach, self._apply, partition, token, position, before, after, transitions)

    def _apply(
        self, partition: int, token: int, position: int, before: pl.DataFrame, after: pl.DataFrame, transitions: Sequence[tuple[int, dict]]
    ) -> None:
        self._redis.fence(partition, token)
        stands, known = self._redis.alerts.get(partition, (-1, NAMED.to_frame()))
        if position <= stands:
            return
        changed, gone = differences(before, after)
        kept = known.join(pl.concat([changed, gone]), on=KEY, how="anti", maintain_order="left")
        self._redis.alerts[partition] = (position, pl.concat([kept, changed]))
        self._redis.transitions.setdefault(partition, []).extend(each for offered, each in transitions if offered > stands)

    def standing(self, partitions: Iterable[int]) -> pl.DataFrame:
        return pl.concat([self._redis.alerts.get(partition, (-1, NAMED.to_frame()))[1] for partition in partitions])


class MemoryRulebook:
    """What a worker asks of `stores.rulebook.Rulebook`."""

    def __init__(self, redis: MemoryRedis, default: str = "rules: []\n", wire: Wire | None = None) -> None:
        self._redis, self._default = redis, default
        self._wire = wire or Wire()

    def version(self) -> int:
        return self._wire.call(lambda: len(self._redis.documents))

    def get(self) -> Version:
        return self._wire.call(lambda: Version(len(self._redis.documents), self._redis.documents[-1], "", 0))

    def set_default(self) -> None:
        if not self._redis.documents:
            self._redis.documents.append(self._default)

    def restore(self, document: str) -> None:
        if not self._redis.documents:
            self._redis.documents.append(document)


class MemoryReports:
    """`stores.reports.Reports`, of one process."""

    def __init__(self) -> None:
        self._said: dict[str, dict] = {}

    def put(self, name: str, facts: dict[str, object]) -> None:
        self._said[name] = facts

    def remove(self, name: str) -> None:
        self._said.pop(name, None)

    def all(self) -> dict[str, dict]:
        return dict(self._said)


@dataclass
class MemoryTables:
    """What the tables of a lake hold: rows as the core makes them, and how far each partition stands in each table."""

    rows: dict[str, list[pl.DataFrame]] = field(default_factory=lambda: {name: [] for name in TABLES})
    stands: dict[tuple[str, int], Stand] = field(default_factory=dict)

    def table(self, name: str) -> pl.DataFrame | None:
        """All rows of a table; None: it has none."""
        return pl.concat(self.rows[name]) if self.rows[name] else None


class MemoryLake:
    """`stores.lake.Lake`: what a worker asks of it."""

    def __init__(self, tables: MemoryTables, wire: Wire | None = None) -> None:
        self._tables = tables
        self._wire = wire or Wire()

    def create(self, semantics: Semantics, partitions: int) -> None:
        """They are there."""

    def stands(self, table: str, partitions: Iterable[int]) -> dict[int, Stand]:
        wanted = list(partitions)
        return self._wire.call(lambda: {partition: self._tables.stands.get((table, partition), Stand()) for partition in wanted})

    def commit(self, table: str, rows: pl.DataFrame, stands: Mapping[int, Stand], expected: Mapping[int, int]) -> None:
        self._wire.call(self._commit, table, rows, stands, expected)

    def _commit(self, table: str, rows: pl.DataFrame, stands: Mapping[int, Stand], expected: Mapping[int, int]) -> None:
        for partition in stands:
            found = self._tables.stands.get((table, partition), Stand()).position
            if found != expected[partition]:
                raise Fenced(partition, f"the lake stands at position {found}, not at {expected[partition]}: another worker has written")
        self._tables.rows[table].append(rows)
        self._tables.stands.update({(table, partition): stand for partition, stand in stands.items()})

    def last_rows(self, partitions: Iterable[int], semantics: Semantics) -> dict[int, pl.DataFrame]:
        wanted = sorted(partitions)
        return self._wire.call(lambda: {partition: self._last_rows(partition, semantics) for partition in wanted})

    def _last_rows(self, partition: int, semantics: Semantics) -> pl.DataFrame:
        rows = self._tables.table("aggregates")
        rows = None if rows is None else rows.filter(pl.col("partition") == partition)
        if rows is None or rows.is_empty():
            return LAST_ROWS.to_frame()
        key = list(SERIES_NAMES)
        base = rows.filter(~pl.col("revision")).sort("window", maintain_order=True).group_by(key, maintain_order=True)
        base = base.agg(pl.col("last", "last_exact", "last_time").last(), closed_to=pl.col("window").max() + semantics.width)
        seen = rows.group_by(key, maintain_order=True).agg(pl.col("newest", "arrived").max())
        joined = seen.join(base, on=key, how="left", maintain_order="left").with_columns(pl.col("closed_to").fill_null(NEVER))
        return joined.select(pl.col(name).cast(dtype) for name, dtype in LAST_ROWS.items())

    def refused(self, entries: Mapping[int, Sequence[int]]) -> dict[int, pl.DataFrame]:
        return self._wire.call(lambda: {partition: self._refused(partition, ids) for partition, ids in entries.items()})

    def _refused(self, partition: int, entries: Sequence[int]) -> pl.DataFrame:
        if (rows := self._tables.table("dead_letters")) is None:
            return REFUSED.to_frame()
        rows = rows.lazy().filter(pl.col("partition") == partition, pl.col("entry").is_in(list(entries)))
        return refused_of(rows).collect()

    def counts(self) -> dict[str, int]:
        """As the real lake's, for the books."""
        found = {"aggregated": 0, "late": 0, "repeated": 0, "windows": 0}
        if (rows := self._tables.table("aggregates")) is not None:
            base, revisions = rows.filter(~pl.col("revision")), rows.filter("revision")
            found = {"aggregated": base["count"].sum(), "late": revisions["count"].sum(), "repeated": rows["repeated"].sum(),
                     "windows": base.height}  # fmt: skip
        counts = {name: 0 if (rows := self._tables.table(name)) is None else rows.height for name in ("dead_letters", "anomalies")}
        return {**found, "dead_lettered": counts["dead_letters"], "anomalies": counts["anomalies"]}

    def accounted(self, partitions: Iterable[int]) -> dict[int, int]:
        found = dict.fromkeys(partitions, 0)
        if (rows := self._tables.table("aggregates")) is not None:
            sums = rows.group_by("partition").agg(pl.col("count").sum() + pl.col("repeated").sum())
            found |= {partition: count for partition, count in sums.iter_rows() if partition in found}
        if (rows := self._tables.table("dead_letters")) is not None:
            for partition, count in rows.group_by("partition").len().iter_rows():
                found[partition] = found.get(partition, 0) + count
        return found
