"""Redis: how to reach it, what it must be like, how its keys are named, and what its errors mean to us.

Every key of a partition carries the hash tag {p}, so that a partition lives whole on one slot of a Redis Cluster.
"""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from pipeline.core.schema import entry_id, split_entry_id
from pipeline.errors import Fenced, Invalid, PipelineError, Restarted, Unavailable
from pipeline.settings import Settings
from pipeline.stores.cluster import AsyncCluster, Cluster, is_cluster, parsed

GROUP = b"pipeline"
CONSUMER = b"holder"  # a fixed name: a partition has one holder, the next one reads the same pending list as its own
REPORTS = "reports"  # a hash: what each process last said of itself
PARTITIONS = "telemetry:partitions"  # how many there are, for all who hash devices into them
PROBE = "telemetry:probe"  # written to see whether writing works
RUN_BITS = 32  # of an incarnation, that tell one run of a Redis server from another
_LUA = Path(__file__).parent / "lua"


def stream_key(partition: int) -> str:
    return f"telemetry:{{{partition}}}"


def lease_key(partition: int | str) -> str:
    return f"lease:{{{partition}}}"


def fence_key(partition: int | str) -> str:
    return f"fence:{{{partition}}}"


def books_key(partition: int) -> str:
    return f"books:{{{partition}}}"


def idempotency_key(partition: int) -> str:
    return f"idempotency:{{{partition}}}"


def left_key(partition: int) -> str:
    return f"idempotency-left:{{{partition}}}"


def alert_state_key(partition: int) -> str:
    return f"alertstate:{{{partition}}}"


def alerts_key(partition: int) -> str:
    return f"alerts:{{{partition}}}"


def script(name: str) -> str:
    """The text of a Lua script, after those that its first line names: what many have in common."""
    text = (_LUA / f"{name}.lua").read_text()
    first = text.partition("\n")[0]
    common = first.removeprefix("-- after: ").split(", ") if first.startswith("-- after: ") else []
    return "".join((_LUA / f"{each}.lua").read_text() for each in common) + text


class Copies(NamedTuple):
    """On how many replicas a write must be before it counts. Where a primary is lost, what only it had is lost with it."""

    least: int = 0
    timeout_ms: int = 0

    def ask(self, pipe) -> None:
        """Let the commands of a pipeline be followed by the question. They must write: Redis waits for what a connection wrote."""
        if self.least:
            pipe.wait(self.least, self.timeout_ms)

    def judged(self, replies: list) -> list:
        """The replies of that pipeline: an error where too few replicas have it in time; it was done all the same."""
        if not self.least:
            return replies
        *replies, reached = replies
        counts = reached if isinstance(reached, list) else [reached] * len(replies)
        short = ConnectionError(f"fewer than PIPELINE_REDIS_REPLICAS_MIN={self.least} replicas have it within {self.timeout_ms} ms")
        return [
            reply if isinstance(reply, Exception) or (isinstance(count, int) and count >= self.least) else short
            for reply, count in zip(replies, counts, strict=True)
        ]


NO_COPIES = Copies()


def copies_of(settings: Settings) -> Copies:
    """As the settings have it; half of the time that a call may take is theirs."""
    return Copies(settings.redis_replicas_min, round(settings.redis_timeout_seconds * 500))


class Scripts:
    """The scripts of those who work on the streams, sent by digest, and loaded anew where Redis has forgotten them.

    They also run when its memory is full: the work that frees it must not be what a full Redis refuses. Before 7.0 no flag says so;
    but of a script only the first write is refused, if it is one that may add, and so the first is one that removes nothing.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._digests: dict[str, str] = {}

    def call(self, name: str, keys: Sequence[str], arguments: Sequence) -> object:
        """The reply of one script. Raises what redis-py raises."""
        (reply,) = self.calls(name, [(keys, arguments)])
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def calls(self, name: str, calls: Sequence[tuple[Sequence[str], Sequence]], copies: Copies = NO_COPIES) -> list:
        """The replies of one script for many keys and arguments, in one round trip; errors stand in their places."""
        if name not in self._digests:
            self._load(name)
        replies = self._send(name, calls, copies)
        forgotten = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]  # nothing of these ran
        if forgotten:
            self._load(name)
            for i, reply in zip(forgotten, self._send(name, [calls[i] for i in forgotten], copies), strict=True):
                replies[i] = reply
        return replies

    def _send(self, name: str, calls: Sequence[tuple[Sequence[str], Sequence]], copies: Copies) -> list:
        pipe = self._redis.pipeline(transaction=False)
        for keys, arguments in calls:
            pipe.evalsha(self._digests[name], len(keys), *keys, *arguments)
        copies.ask(pipe)
        return copies.judged(pipe.execute(raise_on_error=False))

    def _load(self, name: str) -> None:
        before = "#!lua flags=allow-oom\n" if server_version(self._redis) >= (7, 0) else "redis.pcall('HDEL', KEYS[1], '')\n"
        self._digests[name] = self._redis.script_load(before + script(name))


def server_version(client: redis.Redis) -> tuple[int, ...]:
    """(major, minor) of the Redis that this server is, or that it says it is compatible with."""
    return tuple(int(part) for part in str(client.info("server").get("redis_version", "0")).split(".")[:2])


Client = TypeVar("Client", redis.Redis, redis.asyncio.Redis)
_BAD_OPTION = (TypeError, AttributeError, RedisError)  # what redis-py makes of one that it does not know, or of its value


def connect(url: str, timeout_seconds: float) -> redis.Redis | Cluster:
    """A client whose every wait is bounded. It never retries by itself: the caller knows what may be sent twice."""
    waits = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    try:
        if is_cluster(url):
            addresses, options = parsed(url)
            return Cluster(addresses, {**waits, **options})
        return _tried(redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **waits))
    except ValueError:
        raise _bad_url(url) from None
    except _BAD_OPTION:
        raise _bad_url(url, _OPTIONS) from None


def connect_async(url: str, timeout_seconds: float) -> redis.asyncio.Redis | AsyncCluster:
    """The same for asyncio."""
    waits = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    try:
        if is_cluster(url):
            addresses, options = parsed(url)
            return AsyncCluster(addresses, {**waits, **options})
        return _tried(redis.asyncio.Redis.from_url(url, retry=redis.asyncio.retry.Retry(NoBackoff(), 0), **waits))
    except ValueError:
        raise _bad_url(url) from None
    except _BAD_OPTION:
        raise _bad_url(url, _OPTIONS) from None


def _tried(client: Client) -> Client:
    """The client, after a look at its options: else the first command would be what meets one that there is not."""
    pool = client.connection_pool
    if isinstance(pool.connection_kwargs["retry"], str):
        raise TypeError("the URL says how to retry")
    pool.connection_class(**pool.connection_kwargs)
    return client


_FORMS = "redis://USER:PASSWORD@HOST:6379/0, redis+cluster://HOST:7000,HOST:7001, rediss... for TLS, or unix:///PATH"
_OPTIONS = "and what follows its ? are options of redis-py, such as ssl_ca_certs=FILE"


def _bad_url(url: str, more: str = "a slash in a password is %2F") -> Invalid:
    """Without the library's own words, which may quote a part of the password."""
    shown = url if "://" in url else re.sub(".*@", "***@", url)
    return Invalid(f"PIPELINE_REDIS_URL={redact(shown)}: must be like {_FORMS}; {more}")


def translate(error: RedisError, partition: int | str | None = None) -> PipelineError:
    """What a Redis error means to the caller: Fenced (stop), or Unavailable (wait and try again)."""
    text = str(error)
    if "FENCED" in text and partition is not None:
        return Fenced(partition, text[text.index("FENCED") + 7 :])
    if "NOGROUP" in text and partition is not None:  # Redis lost its memory under its holder: give the lease up, and open it again
        return Fenced(partition, "its stream is gone: Redis lost its memory")
    if "REOPEN" in text:
        return Restarted(text[text.index("REOPEN") + 7 :])
    if "NOSTREAM" in text:
        return Unavailable(f"partition {partition} has no stream: no worker has opened it yet")
    if isinstance(error, (BusyLoadingError, ConnectionError, TimeoutError, OutOfMemoryError, ReadOnlyError)) or text.startswith(
        ("OOM", "LOADING", "MISCONF", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "MASTERDOWN")
    ):
        return Unavailable(f"Redis: {redact(text)}")
    return Unavailable(f"Redis refused: {redact(text)}")


@contextmanager
def translated(partition: int | str | None = None) -> Iterator[None]:
    """Turn Redis errors inside into ours."""
    try:
        yield
    except RedisError as error:
        raise translate(error, partition) from error


def now_seconds(client: redis.Redis) -> float:
    """The server's clock, in seconds since the epoch."""
    seconds, microseconds = client.time()
    return seconds + microseconds / 1e6


def process_name() -> str:
    """What this process is called in Redis: its host, its pid, and something that no other of the same pid has had."""
    return f"{socket.gethostname()}-{os.getpid()}-{random.getrandbits(32):08x}"


def redact(text: str) -> str:
    """Text without the credentials of a URL in it."""
    text = re.sub(r"(\w+://)\S*@", r"\1***@", text)
    return re.sub(r"([?&](?:password|username)=)[^&\s]*", r"\1***", text)


def parse_id(raw: bytes) -> int:
    """The Int64 form of the stream id `raw`. Invalid: a sequence number beyond its bits."""
    milliseconds, sequence = raw.split(b"-")
    entry = entry_id(int(milliseconds), int(sequence))
    if split_entry_id(entry) != (int(milliseconds), int(sequence)):
        raise Invalid(f"stream id {raw.decode()} does not fit into 64 bits")
    return entry


def parse_incarnation(raw: bytes) -> int:
    """The Int64 form of an incarnation, "number-run": the later one is the greater."""
    number, run = raw.split(b"-")
    return int(number) << RUN_BITS | int(run)


def format_incarnation(incarnation: int) -> str:
    """The inverse."""
    return f"{incarnation >> RUN_BITS}-{incarnation & ((1 << RUN_BITS) - 1)}"


def format_id(entry: int) -> str:
    """The stream id of an Int64 entry id; 0 for anything before the first."""
    return "{}-{}".format(*split_entry_id(max(entry, 0)))


def check_server(client: redis.Redis | Cluster) -> list[str]:
    """Warnings about this Redis, or each primary of a cluster. Invalid: it may evict, or is too old. Unavailable: it does not answer."""
    return sorted({warning for server in servers(client) for warning in _check_one(server)})


def servers(client: redis.Redis | Cluster) -> list[redis.Redis]:
    """A client of each server that takes writes: the one, or the primaries of a cluster."""
    with translated():
        return client.nodes() if isinstance(client, Cluster) else [client]


class Memory(NamedTuple):
    """Of one server, in bytes; `most` 0: it has no limit."""

    used: int
    most: int

    @property
    def share(self) -> float:
        return self.used / self.most if self.most else 0.0


def memory_of(info: Mapping[str, Any]) -> Memory:
    """As a server's INFO tells it."""
    return Memory(info["used_memory"], info.get("maxmemory", 0))


def fullest_memory(client: redis.Redis | Cluster) -> Memory:
    """Of that server which is nearest to its limit: where a cluster refuses events first."""
    with translated():
        return max((memory_of(server.info("memory")) for server in servers(client)), key=lambda each: (each.share, each.used))


def _check_one(client: redis.Redis) -> list[str]:
    with translated():
        version = server_version(client)
        if version < (6, 2):
            raise Invalid(f"Redis {'.'.join(map(str, version))} is too old: 6.2 or newer (or Valkey) is needed")
        try:
            policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "unknown")
            append_only = client.config_get("appendonly").get("appendonly", "unknown")
        except ResponseError:  # CONFIG is often forbidden to an ACL user; INFO tells the same
            policy = client.info("memory").get("maxmemory_policy", "unknown")
            append_only = "yes" if client.info("persistence").get("aof_enabled") else "no"
    if policy not in ("noeviction", "unknown"):
        raise Invalid(f"this Redis may evict events (maxmemory-policy {policy}): run `redis-cli config set maxmemory-policy noeviction`")
    if append_only != "yes":
        return ["Redis has no append-only file: what it holds is lost when it stops (remedy: `redis-cli config set appendonly yes`)"]
    return []
