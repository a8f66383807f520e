"""Alerts in Redis: what stands now, and the stream of transitions, moved together with the position they stand for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

import polars as pl
import redis

from pipeline.core.alerts import ACTIVE
from pipeline.core.rules import SEVERITIES
from pipeline.core.schema import SERIES_NAMES
from pipeline.errors import Unavailable
from pipeline.stores import connection as keys
from pipeline.stores.cluster import Cluster
from pipeline.stores.connection import Scripts, now_seconds, translated

POSITION = b"@position"
TRANSITIONS_MAX = 100_000  # of one partition, kept for readers that were away
DELIVERED_MAX = 10_000  # of one partition, once all are delivered: half a kilobyte each, in Redis' memory
_STATE = ("severity", "firing", "since", "time", "value", "bound")
NAMED = pl.Schema(
    {**{name: pl.Categorical() for name in SERIES_NAMES}, **{k: v for k, v in ACTIVE.items() if k not in ("series", "partition")}}
)


KEY = ("rule", *SERIES_NAMES)


def differences(before: pl.DataFrame, after: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(alerts that are new or others now, alerts that are gone), of NAMED frames. The last time and value of one are no difference."""
    changed = after.join(before, on=[*KEY, "severity", "firing", "since", "bound"], how="anti", nulls_equal=True)
    return changed, before.join(after, on=KEY, how="anti")


def same(before: pl.DataFrame, after: pl.DataFrame) -> bool:
    """Whether there are no differences."""
    return all(difference.is_empty() for difference in differences(before, after))


def _key(row: dict) -> str:
    return json.dumps([row["rule"], *(row[name] for name in SERIES_NAMES)])


def told(standing: pl.DataFrame) -> list[dict]:
    """Alerts that stand (NAMED) as people and programs read them: with the name of the severity, and the phase."""
    rows = standing.to_dicts()
    for row in rows:
        row["severity"] = SEVERITIES[row["severity"] - 1]
        row["phase"] = "firing" if row.pop("firing") else "pending"
    return rows


class AlertLog:
    """The holder's end, and what anybody may read."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._scripts = Scripts(client)

    def load(self, partition: int) -> tuple[int, pl.DataFrame]:
        """(position, alerts that stand as NAMED) of a partition; position -1: nothing was ever raised."""
        with translated(partition):
            raw = self._redis.hgetall(keys.alert_state_key(partition))
        position = int(raw.pop(POSITION, -1))
        rows = []
        for key, state in raw.items():
            rule, *names = json.loads(key)
            rows.append({"rule": rule, **dict(zip(SERIES_NAMES, names, strict=True)), **json.loads(state)})
        return position, pl.DataFrame(rows, schema=NAMED)

    def apply(
        self, partition: int, token: int, position: int, before: pl.DataFrame, after: pl.DataFrame, transitions: Sequence[tuple[int, dict]]
    ) -> None:
        """Move the alerts of a partition (NAMED frames before and after) to `position`, and publish the transitions.

        Once: the same or an older position changes nothing. Each transition comes with the position at which it was offered first:
        where a reply got lost it may be published already, and is not again.
        """
        changed, gone = differences(before, after)
        arguments: list = [token, position, TRANSITIONS_MAX, changed.height + gone.height]
        for row in changed.to_dicts():
            arguments += [_key(row), json.dumps({name: row[name] for name in _STATE})]
        for row in gone.to_dicts():
            arguments += [_key(row), ""]
        for offered, transition in transitions:
            arguments += [offered, json.dumps(transition)]
        where = [keys.lease_key(partition), keys.alert_state_key(partition), keys.alerts_key(partition)]
        with translated(partition):
            self._scripts.call("alert", where, arguments)

    def standing(self, partitions: Iterable[int]) -> pl.DataFrame:
        """Every alert that stands now, pending or firing, as NAMED."""
        frames = [self.load(partition)[1] for partition in partitions]
        return pl.concat(frames) if frames else NAMED.to_frame()


class AlertReader:
    """The notifier's end: a consumer group of its own on every partition's transitions.

    `of_the_past`: how many seconds of it a group gets that is made anew; None: all there is.
    """

    GROUP = "notifier"

    def __init__(
        self, client: redis.Redis, partitions: int, consumer: str, group: str = GROUP, of_the_past: float | None = None
    ) -> None:
        self._redis = client
        self._group, self._of_the_past = group, of_the_past
        self._keys = [keys.alerts_key(partition) for partition in range(partitions)]
        self._consumer = consumer
        self.lost = 0  # transitions that the stream had let go before they were delivered
        self._one_server = not isinstance(client, Cluster)

    def open(self) -> None:
        """Make the groups where they are absent."""
        first = "0"
        if self._of_the_past is not None:
            with translated():
                first = f"{max(0, round((now_seconds(self._redis) - self._of_the_past) * 1000))}-0"
        for key in self._keys:
            try:
                self._redis.xgroup_create(key, self._group, id=first, mkstream=True)
            except redis.exceptions.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise Unavailable(f"Redis refused: {error}") from error
            except redis.exceptions.RedisError as error:
                raise keys.translate(error) from error

    def read(self, *, pending: bool = False, count: int = 256, wait_seconds: float = 0.0) -> list[tuple[str, bytes, dict]]:
        """Transitions to deliver: (stream, id, transition), up to `count` per partition. `pending`: those read before and not acknowledged.

        Where nothing new is there, this waits so long for it. A cluster has no command that waits at many nodes: there the time passes.
        What was read before and is not there any more is acknowledged and counted as `lost`: else it would stand before all others.
        """
        begin, block_ms = ("0", None) if pending else (">", round(wait_seconds * 1000) or None)
        found, gone = [], []
        with translated():
            pipe = self._redis.pipeline(transaction=False)
            for together in [self._keys] if self._one_server else [[key] for key in self._keys]:
                asked = dict.fromkeys(together, begin)
                pipe.xreadgroup(self._group, self._consumer, asked, count=count, block=block_ms if self._one_server else None)
            replies = pipe.execute()
        for reply in replies:
            for key, entries in reply.items() if isinstance(reply, dict) else reply or []:
                entries = entries[0] if isinstance(reply, dict) else entries
                found += [(key.decode(), entry, json.loads(fields[b"t"])) for entry, fields in entries if fields]
                gone += [(key.decode(), entry) for entry, fields in entries if not fields]
        if gone:
            self.acknowledge(gone)
            self.lost += len(gone)
        if not found and not pending and not self._one_server:
            time.sleep(wait_seconds)
        return found

    def acknowledge(self, entries: Iterable[tuple[str, bytes]]) -> None:
        """These (stream, id) are delivered, all in one round trip."""
        with translated():
            pipe = self._redis.pipeline(transaction=False)
            for stream, of_stream in groupby(sorted(entries), key=itemgetter(0)):
                pipe.xack(stream, self._group, *(entry for _, entry in of_stream))
            pipe.execute()

    def trim(self) -> None:
        """Keep the newest DELIVERED_MAX of each partition. For who has read all there are: what nobody has read yet is kept much longer."""
        with translated():
            pipe = self._redis.pipeline(transaction=False)
            for key in self._keys:
                pipe.xtrim(key, maxlen=DELIVERED_MAX, approximate=True)
            pipe.execute()

    @classmethod
    def all_transitions(cls, client: redis.Redis, partitions: int) -> list[dict]:
        """Every transition that is kept, whoever has read it; per partition in order."""
        with translated():
            streams = [client.xrange(keys.alerts_key(partition)) for partition in range(partitions)]
        return [json.loads(fields[b"t"]) for stream in streams for _, fields in stream]
