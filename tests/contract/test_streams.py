"""Redis Streams and leases as the holder and the API see them, on a real server."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.doctor.server import examine
from pipeline.errors import Invalid, Unavailable
from pipeline.stores import connection as keys
from pipeline.stores.alertlog import NAMED, AlertLog, AlertReader
from pipeline.stores.connection import check_server, connect_async, format_id, parse_id
from pipeline.stores.leases import Leases
from pipeline.stores.streams import Appender, Group, Repeated, Settlement, Streams, history


def append(stack, *groups):
    async def run():
        appender = Appender(connect_async(stack.settings.redis_url, 5), 2, 300)
        try:
            return await appender.append(groups)
        finally:
            await appender.close()

    return asyncio.run(run())


def group(partition=0, *body_keys, count=1):
    return Group(partition, b"payload", count, b"", 0, body_keys)


def held(client, owner="a", partition=0, position=-1):
    token = Leases(client, owner, 60_000).acquire(partition)
    Streams(client).open(partition, token, position, position, [], 0)
    return token


def test_nothing_is_appended_before_a_holder_has_opened_the_partition(stack, client):
    """Its ids could run backwards after a Redis that lost its memory."""
    (reply,) = append(stack, group())
    assert isinstance(reply, Unavailable) and "no worker has opened it yet" in str(reply)
    held(client)
    (entry,) = append(stack, group())
    assert isinstance(entry, int)


def test_an_api_of_other_partitions_takes_nothing(stack, client):
    """It would hash devices into partitions where their other events are not."""
    held(client)
    client.set(keys.PARTITIONS, 3)
    (reply,) = append(stack, group())
    assert "the streams have 3 partitions, this API PIPELINE_PARTITIONS=2" in str(reply)
    with pytest.raises(Invalid, match="this Redis holds streams of 3 partitions"):
        Streams(client).agree(2)


def bounded(client, memory_max_bytes):
    for server in keys.servers(client):
        server.config_set("maxmemory", memory_max_bytes)


@pytest.mark.parametrize("body_keys", [(), (b"k" * 16,)])
def test_a_full_redis_takes_no_events(stack, client, body_keys):
    """With an Idempotency-Key as little as without: nothing of them is stored, and the same may be sent again."""
    held(client)
    append(stack, group())
    bounded(client, 1_000_000)
    try:
        (reply,) = append(stack, group(0, *body_keys))
    finally:
        bounded(client, 0)
    assert isinstance(reply, Unavailable) and client.xlen(keys.stream_key(0)) == 1
    (entry,) = append(stack, group(0, *body_keys))
    assert isinstance(entry, int)


@pytest.mark.parametrize("flagged", [True, False])
def test_a_full_redis_lets_the_work_be_done_that_frees_it(stack, client, monkeypatch, flagged):
    """Also one before 7.0, where no flag of a script says so: members live, leases are taken, entries read and settled, time passes."""
    if not flagged:
        monkeypatch.setattr(keys, "server_version", lambda _: (6, 2))
    leases, streams = Leases(client, "a", 60_000), Streams(client)
    token = held(client)
    append(stack, group())
    bounded(client, 1)
    try:
        assert leases.heartbeat().keys() == {"a"} and leases.tend(2)[0] == "a" and not leases.renew({0: token})
        assert streams.read({1: held(client, partition=1)}, 10, {}) == {1: []}
        (entry,) = streams.read({0: token}, 10, {})[0]
        AlertLog(client).apply(0, token, entry.id, NAMED.to_frame(), NAMED.to_frame(), [(entry.id, {"n": 1})])
        streams.tick(0, token, 0)
        assert not streams.settle({0: Settlement(token, [entry.id], entry.id + 1)})
        leases.release(0, token)
    finally:
        bounded(client, 0)
    assert client.xlen(keys.stream_key(0)) == 1 and AlertReader.all_transitions(client, 1) == [{"n": 1}]


def test_a_key_that_comes_again_tells_which_rows_were_left_out(stack, client):
    held(client)
    append(stack, group(0, b"k" * 16, b"w" * 16)._replace(left=(b"rows", b"")))
    (again,) = append(stack, group(0, b"n" * 16, b"w" * 16, b"k" * 16))
    assert again == Repeated((b"w" * 16, b"k" * 16), (b"", b"rows"))
    assert Streams(client).accepted(0) == 1


def test_a_key_of_which_nothing_is_taken_is_kept_or_tells_what_was(stack, client):
    """No entry is made for it."""
    held(client)
    nothing = Group(0, b"", 0, b"", 0, (b"k" * 16,), (b"rows",))
    assert append(stack, nothing) == [0] and client.xlen(keys.stream_key(0)) == Streams(client).accepted(0) == 0
    assert append(stack, group(0, b"k" * 16)) == [Repeated((b"k" * 16,), (b"rows",))]
    append(stack, group(0, b"w" * 16))
    assert append(stack, nothing._replace(keys=(b"w" * 16,))) == [Repeated((b"w" * 16,))]


def test_what_was_left_out_is_forgotten_with_its_key(stack, client):
    held(client)
    append(stack, group(0, b"k" * 16)._replace(left=(b"rows",)))
    client.zadd(keys.idempotency_key(0), {b"k" * 16: 1})
    (other,) = append(stack, group(0, b"n" * 16))
    assert isinstance(other, int) and client.hlen(keys.left_key(0)) == 0


def test_the_backlog_is_counted_in_events_and_never_drifts(stack, client):
    token = held(client)
    append(stack, group(), group(), group())
    streams = Streams(client)
    behind = streams.backlog([0])[0]
    assert (behind.entries, behind.events, behind.read_events) == (3, 3, 0) and behind.stream_bytes > 0
    streams.read({0: token}, 2, {})
    assert streams.backlog([0])[0].events == 1
    client.hset(keys.books_key(0), "read", -5)  # a power cut took the end of the count
    streams.read({0: token}, 2, {})
    behind = streams.backlog([0])[0]
    assert (behind.entries, behind.events, behind.oldest_seconds, behind.read_events) == (0, 0, 0, 3)


def test_an_idempotency_key_is_appended_once_per_partition(stack, client):
    held(client)
    held(client, partition=1)
    first = append(stack, group(0, b"k" * 16))
    again = append(stack, group(0, b"k" * 16, b"n" * 16), group(1, b"k" * 16))
    assert isinstance(first[0], int)
    assert again[0] == Repeated((b"k" * 16,))
    assert isinstance(again[1], int)  # the other partition has not seen it
    assert Streams(client).accepted(0) == 1


def test_a_token_is_of_the_run_that_gave_it(stack, client):
    """A power cut may take the count of tokens, under a clock that has not gone on since: the next one is another all the same."""
    first = held(client)
    client.delete(keys.lease_key(0), keys.fence_key(0))
    second = held(client)
    runs = {int(server.info("server")["run_id"][:8], 16) for server in keys.servers(client)}
    assert first % 10**10 == second % 10**10 and second % 10**10 in runs


def test_start_refuses_a_redis_that_may_evict(client):
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(Invalid, match="config set maxmemory-policy noeviction"):
            check_server(client)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert check_server(client) == []


def test_the_memory_of_the_fullest_server_is_told(stack, client):
    """That one refuses events first; the doctor looks at each."""
    servers = keys.servers(client)
    before = [server.config_get("maxmemory")["maxmemory"] for server in servers]
    try:
        for number, server in enumerate(reversed(servers)):
            server.config_set("maxmemory", 100_000_000 + number * 10**9)
        fullest = keys.fullest_memory(client)
        assert fullest.most == 100_000_000 and 0 < fullest.share < 0.5
        servers[-1].config_set("maxmemory", servers[-1].info("memory")["used_memory"] + 100_000)
        assert 0.9 < keys.fullest_memory(client).share < 1.1
        found = [each for each in examine(stack.settings, client) if "memory: " in each.text]
        assert len(found) == len(servers) and [each.mark for each in found][-1] == "bad"
        assert ("node 127.0.0.1:" in found[-1].text) == (len(servers) > 1)
    finally:
        for server, most in zip(servers, before, strict=True):
            server.config_set("maxmemory", most)


@pytest.mark.parametrize("text", [b"1700000000000-0", b"1700000000000-1048575", b"0-1"])
def test_stream_ids_survive_the_way_through_an_integer(text):
    assert format_id(parse_id(text)).encode() == text


def test_a_sequence_beyond_its_bits_is_refused():
    with pytest.raises(Invalid, match="does not fit"):
        parse_id(b"1700000000000-1048576")


def test_what_comes_after_an_id_beyond_its_bits_gets_one_within_them(stack, client):
    """Something else wrote it, ahead of the clock: what the API accepts after it is read all the same."""
    held(client)
    client.xadd(keys.stream_key(0), {"e": b"x"}, id="4000000000000-1048576")
    assert append(stack, group()) == [parse_id(b"4000000000001-1")]
    assert [entry for entry, _ in client.xrange(keys.stream_key(0))] == [b"4000000000000-1048576", b"4000000000001-1"]


@pytest.mark.parametrize("delivered", [False, True])
def test_an_entry_with_an_id_beyond_its_bits_is_moved_to_where_it_gets_one_within_them(stack, client, delivered):
    """It must not end the worker that meets it, nor the next one: and those around it are read, each once."""
    token, streams, key = held(client), Streams(client), keys.stream_key(0)
    (first,) = append(stack, group())
    for n in range(2):
        client.xadd(key, {"e": b"%d" % n}, id=f"4000000000000-{1048576 + n}")
    (after,) = append(stack, group())
    if delivered:
        client.xreadgroup(keys.GROUP, keys.CONSUMER, {key: ">"})
        assert [entry.id for page in history(streams, 0, token, -1, 1) for entry in page] == [first, after]
    else:
        assert [entry.id for entry in streams.read({0: token}, 10, {})[0]] == [first, after]
    moved = streams.read({0: token}, 10, {})[0]
    assert [entry.events for entry in moved] == [b"0", b"1"] and moved[0].id > after
    assert [entry.id for entry in streams.outstanding(0)] == [first, after, *(entry.id for entry in moved)]
    assert client.xpending(key, keys.GROUP)["pending"] == client.xlen(key) == 4


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "9" * 30, "\u0663"])
def test_an_entry_whose_counts_are_no_numbers_is_read_all_the_same(stack, client, count):
    """Something else wrote it: it must not end the worker that meets it, nor the next one."""
    streams = Streams(client)
    client.xadd(keys.stream_key(0), {"e": b"x", "n": count, "m": count})
    (entry,) = streams.peek(0, 0, 10)
    assert (entry.events, entry.event_count, entry.dead_letter_count) == (b"x", 0, 0)
