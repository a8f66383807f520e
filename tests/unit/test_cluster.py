"""Redis Cluster, the parts that need none: its URL, which node gets what, and what is never sent twice."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import AskError, ConnectionError, MovedError, NoScriptError, OutOfMemoryError, TimeoutError

from pipeline.errors import Invalid, Unavailable
from pipeline.stores.alertlog import AlertLog
from pipeline.stores.cluster import Cluster, Pipeline, _Batch, key_of, parsed
from pipeline.stores.connection import Copies, connect, connect_async
from pipeline.stores.leases import Leases
from pipeline.stores.rulebook import Rulebook
from pipeline.stores.streams import Appender, Streams
from pipeline.stores.tokenbook import Tokenbook


def test_a_url_names_nodes_password_and_tls():
    addresses, options = parsed("rediss+cluster://ana:p%2Fw@h1:7000,h2,[::1]:7002/0?ssl_ca_certs=ca.pem")
    assert addresses == [("h1", 7000), ("h2", 6379), ("::1", 7002)]
    assert options == {"username": "ana", "password": "p/w", "ssl": True, "ssl_ca_certs": "ca.pem"}


@pytest.mark.parametrize(
    "url", ["redis+cluster://", "redis+cluster://h:x", "redis+cluster://h,", "redis+cluster://:secret@h/3", "unix+cluster://h/x"]
)
def test_a_bad_url_is_one_line_without_the_password(url):
    for make in (connect, connect_async):
        with pytest.raises(Invalid, match=r"^PIPELINE_REDIS_URL=\w+\+cluster://.*: must be like ") as told:
            make(url, 1)
        assert "secret" not in str(told.value)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "rediss+cluster"])
@pytest.mark.parametrize("option", ["foo=1", "ssl_ca_cert=x", "retry=1", "startup_nodes=1"])
def test_an_option_that_there_is_not_is_found_before_the_first_command(scheme, option):
    for make in (connect, connect_async):
        with pytest.raises(Invalid, match=r": must be like .*; and what follows its \? are options of redis-py") as told:
            make(f"{scheme}://:secret@h?{option}", 1)
        assert "secret" not in str(told.value) and "\n" not in str(told.value)
        make(f"{scheme}://:secret@h?protocol=3&health_check_interval=5", 1)


def test_a_client_is_made_without_a_cluster():
    """It connects at the first command, so that a process may start before it."""
    client = connect("redis+cluster://127.0.0.1:1", 1)
    assert isinstance(client, Cluster)
    stores = (Streams(client), Leases(client, "me", 1000), AlertLog(client), Rulebook(client), Tokenbook(client))
    with pytest.raises(Unavailable):
        stores[0].agree(16)


@pytest.mark.parametrize(
    "args",
    [("GET", "k"), ("EVALSHA", "digest", 2, "k", "l", "argument"), ("XREADGROUP", b"GROUP", "g", "c", b"COUNT", 1, b"STREAMS", "k", ">")],
)
def test_the_key_of_a_command(args):
    assert key_of(args) == "k"


A, B = "a", "b"  # nodes
WHERE = {"1": A, "2": A, "3": B}


def batch(*keys, wait=False):
    return _Batch([*((("GET", key), {}) for key in keys), *([(("WAIT", 1, 100), {})] if wait else [])])


def test_only_what_was_not_executed_is_sent_again():
    """A node that moved said so; one whose connection broke may have done it."""
    made = batch("1", "2", "3")
    shares = made.shares(WHERE.get)
    assert shares == [(A, [0, 1]), (B, [2])]
    made.take([0, 1], [b"done", MovedError("1 h:1")])
    made.take([2], TimeoutError("away"))
    assert made.outdated() and made.moved()
    assert made.shares({"2": B}.get) == [(B, [1])]
    made.take([1], [b"there"])
    assert not made.outdated() and not made.moved()
    assert made.replies[:2] == [b"done", b"there"] and isinstance(made.replies[2], TimeoutError)


def test_a_slot_on_its_way_is_the_callers_to_try_again():
    made = batch("1")
    made.take([0], [AskError("1 h:1")])
    assert not made.outdated() and not made.moved() and isinstance(made.replies[0], AskError)


def test_every_node_is_asked_for_its_replicas():
    """And an event is accepted by the answer of its own node."""
    made = batch("1", "3", wait=True)
    assert made.shares(WHERE.get) == [(A, [0, 2]), (B, [1, 2])]
    made.take([0, 2], [b"x", 1])
    made.take([1, 2], [b"y", 0])
    assert made.replies[2] == [1, 0]
    first, second = Copies(1, 100).judged(made.replies)
    assert first == b"x" and isinstance(second, ConnectionError)


def test_without_replicas_an_error_stays_what_it_was():
    missing = NoScriptError("gone")
    assert Copies(2, 100).judged([b"x", missing, 2]) == [b"x", missing]
    assert Copies().judged([b"x"]) == [b"x"]


class Nodes:
    """A client of a cluster of which some partitions, and the key that is written to see whether that works, answer with an error."""

    def __init__(self, away: range, probe: object = True, absent: range = range(0)) -> None:
        self._away, self._probe, self._absent = away, probe, absent

    async def get(self, key: str) -> bytes:
        return b"8"

    def pipeline(self, transaction: bool) -> Pipeline:
        return Pipeline(self._run)

    async def _run(self, commands, raise_on_error: bool) -> list:
        each = [ConnectionError("away") if partition in self._away else int(partition not in self._absent) for partition in range(8)]
        return [self._probe, *each]


@pytest.mark.parametrize(
    ("nodes", "told"),
    [(Nodes(range(3)), None), (Nodes(range(3), ConnectionError("away")), None), (Nodes(range(8), ConnectionError("away")), "away"),
     (Nodes(range(0), OutOfMemoryError("full")), "full"), (Nodes(range(3), absent=range(2, 4)), "partition 3 yet (1 of 8")],
)  # fmt: skip
def test_the_api_is_ready_while_some_primary_is(nodes, told):
    """Else a balancer takes out every API, though what goes to the others' partitions can be stored."""
    asked = Appender(nodes, 8, 300).ready()
    if told is None:
        asyncio.run(asked)
    else:
        with pytest.raises(Unavailable) as error:
            asyncio.run(asked)
        assert told in str(error.value)
