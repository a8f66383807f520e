"""Redis Cluster behind the small surface of a client that the stores use: commands, pipelines, `nodes`.

redis-py's RedisCluster knows the nodes and follows redirections of single commands. Its pipelines are not used: the one
without asyncio sends again what a broken connection may have executed, the one with it loses the replies of all nodes
where one is away. Here a command is sent again only where a node has said that it did not execute it (MOVED). What a
slot on its way to another node answers (ASK, TRYAGAIN) is an error like others: the caller tries again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode as AsyncNode
from redis.asyncio.cluster import PipelineCommand
from redis.asyncio.connection import parse_url
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.commands import AsyncCoreCommands, CoreCommands
from redis.exceptions import ConnectionError, MovedError, RedisClusterException, RedisError, TimeoutError
from redis.retry import Retry

ROUNDS_MAX = 4  # of a pipeline whose commands are sent to where they have moved
PORT = 6379
# What a URL may set: the client without asyncio would pass over what it does not know.
OPTIONS = signature(redis.asyncio.RedisCluster.__init__).parameters.keys() - {
    "self", "host", "port", "startup_nodes", "retry", "require_full_coverage",
}  # fmt: skip

Command = tuple[tuple, dict[str, Any]]


def is_cluster(url: str) -> bool:
    """Whether the URL is of a cluster: redis+cluster:// or rediss+cluster://."""
    return "+cluster" in url.partition("://")[0]


def parsed(url: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """(addresses of some nodes, options of every connection) of a cluster's URL. ValueError, TypeError: it, or an option, is none."""
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    addresses = [(split.hostname or "", split.port or PORT) for split in (urlsplit(f"//{host}") for host in hosts.split(","))]
    if not all(host for host, _ in addresses):
        raise ValueError("a host is missing")
    scheme = parts.scheme.removesuffix("+cluster")
    if scheme not in ("redis", "rediss"):
        raise ValueError("nodes are reached by TCP")
    options = dict(parse_url(f"{scheme}://{credentials}{at}host{parts.path}?{parts.query}"))
    if options.pop("db", 0):
        raise ValueError("a cluster has database 0 alone")
    del options["host"]
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
    if not options.keys() <= OPTIONS:
        raise TypeError("there is no such option")
    return addresses, options


def key_of(args: Sequence) -> Any:
    """The key by which a command finds its node; all keys of ours in one command have the same slot."""
    if args[0] in ("EVAL", "EVALSHA"):
        return args[3]
    return args[args.index(b"STREAMS") + 1] if args[0] == "XREADGROUP" else args[1]


@contextmanager
def _told_as_redis_does() -> Iterator[None]:
    """RedisClusterException is no RedisError: a cluster that is away is a connection that is."""
    try:
        yield
    except RedisClusterException as error:
        raise ConnectionError(str(error)) from error


class _Batch:
    """The commands of a pipeline, each node's share of them, and what came back.

    WAIT goes to every node, after its share; its reply is a list: on how many replicas each command is, 0 where that is not known.
    """

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self._waits = [number for number, (args, _) in enumerate(commands) if args[0] == "WAIT"]
        self._open = [number for number in range(len(commands)) if number not in self._waits]
        self.replies: list[Any] = [None] * len(commands)
        for number in self._waits:
            self.replies[number] = [0] * len(self._open)

    def shares(self, node_of: Callable[[Any], Any]) -> list[tuple[Any, list[int]]]:
        """What is to be sent, by node."""
        found: dict[Any, list[int]] = {}
        for number in self._open:
            try:
                found.setdefault(node_of(key_of(self.commands[number][0])), []).append(number)
            except RedisClusterException as error:  # nobody has the slot
                self.replies[number] = ConnectionError(str(error))
        return [(node, [*numbers, *self._waits]) for node, numbers in found.items()]

    def take(self, numbers: Sequence[int], told: Sequence | Exception) -> None:
        """What a node has replied to its share; an error: to all of it."""
        mine = [number for number in numbers if number not in self._waits]
        for number, reply in zip(numbers, [told] * len(numbers) if isinstance(told, Exception) else told, strict=True):
            if number in self._waits:
                for each in mine:
                    self.replies[number][each] = reply
            else:
                self.replies[number] = reply

    def outdated(self) -> bool:
        """Whether the nodes are others than was thought; then `shares` is what has moved."""
        lost = any(isinstance(self.replies[number], ConnectionError | TimeoutError) for number in self._open)
        self._open = [number for number in self._open if isinstance(self.replies[number], MovedError)]
        return lost or bool(self._open)

    def moved(self) -> bool:
        return bool(self._open)


class Pipeline(CoreCommands):
    """Commands that are sent together; `execute` is what `run` makes of them, here or to be awaited."""

    def __init__(self, run: Callable[[Sequence[Command], bool], list | Awaitable[list]]) -> None:
        self._run = run
        self._commands: list[Command] = []

    def execute_command(self, *args: Any, **options: Any) -> Pipeline:
        self._commands.append((args, options))
        return self

    def execute(self, raise_on_error: bool = True) -> list | Awaitable[list]:
        commands, self._commands = self._commands, []
        return self._run(commands, raise_on_error)


def _replies(batch: _Batch, raise_on_error: bool) -> list:
    for reply in batch.replies if raise_on_error else ():
        if isinstance(reply, Exception):
            raise reply
    return batch.replies


class Cluster(CoreCommands):
    """A client of a cluster. It connects at the first command, as a plain one does; where that fails, at the next."""

    def __init__(self, addresses: Sequence[tuple[str, int]], options: dict[str, Any]) -> None:
        self._addresses, self._options = addresses, options
        self._made: RedisCluster | None = None
        self._making = threading.Lock()

    def _client(self) -> RedisCluster:
        with self._making:
            if self._made is None:
                nodes = [ClusterNode(host, port) for host, port in self._addresses]
                retry = Retry(NoBackoff(), 0)
                self._made = RedisCluster(startup_nodes=nodes, retry=retry, require_full_coverage=False, **self._options)
            return self._made

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with _told_as_redis_does():
            return self._client().execute_command(*args, **options)

    def get_encoder(self) -> Any:
        """How redis-py's scripts turn their text into bytes; asked for where they are made, so before there is a connection."""
        return redis.Redis().get_encoder()

    def pipeline(self, transaction: bool = False) -> Pipeline:
        return Pipeline(self._run)

    def nodes(self) -> list[redis.Redis]:
        """A client of each primary."""
        with _told_as_redis_does():
            client = self._client()
            return [client.get_redis_connection(node) for node in client.get_primaries()]

    def _run(self, commands: Sequence[Command], raise_on_error: bool) -> list:
        batch = _Batch(commands)
        with _told_as_redis_does():
            client = self._client()
            for _ in range(ROUNDS_MAX):
                for node, numbers in batch.shares(client.get_node_from_key):
                    batch.take(numbers, self._send(client.get_redis_connection(node), [commands[number] for number in numbers]))
                if batch.outdated():
                    client.nodes_manager.initialize()
                if not batch.moved():
                    break
        return _replies(batch, raise_on_error)

    @staticmethod
    def _send(node: redis.Redis, commands: Sequence[Command]) -> list | Exception:
        pipe = node.pipeline(transaction=False)
        for args, options in commands:
            pipe.execute_command(*args, **options)
        try:
            return pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            return error


class AsyncCluster(AsyncCoreCommands):
    """The same for asyncio."""

    def __init__(self, addresses: Sequence[tuple[str, int]], options: dict[str, Any]) -> None:
        nodes = [AsyncNode(host, port) for host, port in addresses]
        retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
        self._client = redis.asyncio.RedisCluster(startup_nodes=nodes, retry=retry, require_full_coverage=False, **options)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        with _told_as_redis_does():
            await self._client.initialize()
            return await self._client.execute_command(*args, **options)

    async def info(self, section: str) -> dict[str, dict[str, Any]]:  # type: ignore[override]
        """Of each primary, by its name."""
        return await self.execute_command("INFO", section, target_nodes=RedisCluster.PRIMARIES)

    def pipeline(self, transaction: bool = False) -> Pipeline:
        return Pipeline(self._run)

    async def _run(self, commands: Sequence[Command], raise_on_error: bool) -> list:
        batch = _Batch(commands)
        with _told_as_redis_does():
            await self._client.initialize()
            for _ in range(ROUNDS_MAX):
                shares = batch.shares(self._client.get_node_from_key)
                told = await asyncio.gather(*(self._send(node, [commands[n] for n in numbers]) for node, numbers in shares))
                for (_, numbers), replies in zip(shares, told, strict=True):
                    batch.take(numbers, replies)
                if batch.outdated():
                    await self._client.nodes_manager.initialize()
                if not batch.moved():
                    break
        return _replies(batch, raise_on_error)

    @staticmethod
    async def _send(node: AsyncNode, commands: Sequence[Command]) -> list | Exception:
        sent = [PipelineCommand(number, *args, **options) for number, (args, options) in enumerate(commands)]
        try:
            await node.execute_pipeline(sent)
        except (RedisError, OSError) as error:
            return error
        return [command.result for command in sent]

    async def aclose(self) -> None:
        await self._client.aclose()
