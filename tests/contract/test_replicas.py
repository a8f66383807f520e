"""What waits for replicas: an append before it is answered, a read before it counts; and both again, when they are repeated."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import Unavailable
from pipeline.stores.connection import Copies, connect, connect_async, stream_key
from pipeline.stores.leases import Leases
from pipeline.stores.streams import Appender, Group, Repeated, Streams
from tests.rediscluster import ServerCluster

ONE = Copies(1, 200)
GROUP = Group(0, b"payload", 1, b"", 0, (b"k" * 16,))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with ServerCluster(tmp_path_factory.mktemp("nodes")) as running:
        yield running


def append(nodes, group):
    """By an API that has just started."""

    async def run():
        appender = Appender(connect_async(nodes.url, 5), 1, 300, ONE)
        try:
            (reply,) = await appender.append([group])
            return reply
        finally:
            await appender.close()

    return asyncio.run(run())


def test_a_replica_that_is_behind_is_waited_for_also_by_what_is_repeated(nodes):
    """Redis waits until replicas have what a connection wrote last. Where a repetition wrote nothing, it would wait for nothing."""
    client = connect(nodes.url, 5)
    streams, leases = Streams(client, ONE), Leases(client, "a", 60_000)
    streams.agree(1)
    token = leases.acquire(0)
    streams.open(0, token, -1, -1, [], 0)
    replica = nodes.nodes_of(stream_key(0))[1]

    def read(after: int | None):
        """By a holder that has not written on its connection yet, as one that takes over has not."""
        return Streams(connect(nodes.url, 5), ONE).read({0: token}, 10, {0: after})[0]

    assert isinstance(append(nodes, GROUP._replace(keys=())), int) and len(read(None)) == 1
    nodes.pause(replica)
    try:
        for _ in range(2):
            reply = append(nodes, GROUP)
            assert isinstance(reply, Unavailable) and "PIPELINE_REDIS_REPLICAS_MIN=1" in str(reply)
        for after in (None, 0):
            assert isinstance(read(after), Unavailable)
    finally:
        nodes.go_on(replica)
    assert append(nodes, GROUP) == Repeated((b"k" * 16,))
    assert len(read(0)) == 2
