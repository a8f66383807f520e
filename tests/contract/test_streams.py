"""Redis Streams and leases as the holder and the API see them, on a real server."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import Fenced, Invalid, Unavailable
from pipeline.stores import connection as keys
from pipeline.stores.connection import check_server, connect_async, format_id, parse_id
from pipeline.stores.leases import Leases
from pipeline.stores.streams import Appender, Group, Repeated, Settlement, Streams


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
    Streams(client).open(partition, token, position, 0)
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


@pytest.mark.parametrize("body_keys", [(), (b"k" * 16,)])
def test_a_full_redis_takes_no_events(stack, client, body_keys):
    """With an Idempotency-Key as little as without: nothing of them is stored, and the same may be sent again."""
    held(client)
    append(stack, group())
    client.config_set("maxmemory", 1_000_000)
    try:
        (reply,) = append(stack, group(0, *body_keys))
    finally:
        client.config_set("maxmemory", 0)
    assert isinstance(reply, Unavailable) and client.xlen(keys.stream_key(0)) == 1
    (entry,) = append(stack, group(0, *body_keys))
    assert isinstance(entry, int)


def test_an_idempotency_key_is_appended_once_per_partition(stack, client):
    held(client)
    held(client, partition=1)
    first = append(stack, group(0, b"k" * 16))
    again = append(stack, group(0, b"k" * 16, b"n" * 16), group(1, b"k" * 16))
    assert isinstance(first[0], int)
    assert again[0] == Repeated((b"k" * 16,))
    assert isinstance(again[1], int)  # the other partition has not seen it
    assert Streams(client).accepted(0) == 1


def test_a_zombie_changes_nothing(stack, client):
    """Read, settle, tick, renew and release of an older token are refused, and leave everything as it was."""
    leases, streams = Leases(client, "a", 60_000), Streams(client)
    old = held(client)
    append(stack, group())
    client.delete(keys.lease_key(0))  # it expired
    new = Leases(client, "b", 60_000).acquire(0)
    assert new > old
    assert isinstance(streams.read({0: old}, 10, {})[0], Fenced)
    assert isinstance(streams.settle({0: Settlement(old, [1 << 20], 5 << 20)})[0], Fenced)
    with pytest.raises(Fenced, match=f"fencing token {old} is behind {new}"):
        streams.tick(0, old, 0)
    assert isinstance(leases.renew({0: old})[0], Fenced)
    with pytest.raises(Fenced):
        leases.release(0, old)
    (entry,) = streams.read({0: new}, 10, {})[0]
    assert entry.events == b"payload"


def test_the_next_holder_reads_the_pending_entries_as_its_own(stack, client):
    token, streams = held(client), Streams(client)
    ids = [append(stack, group())[0] for _ in range(3)]
    assert [entry.id for entry in streams.read({0: token}, 10, {})[0]] == ids
    assert not streams.settle({0: Settlement(token, [ids[0]], ids[1])})
    client.delete(keys.lease_key(0))
    other = Leases(client, "b", 60_000).acquire(0)
    assert streams.read({0: other}, 10, {})[0] == []  # nothing new
    assert [entry.id for entry in streams.read({0: other}, 10, {0: 0})[0]] == ids[1:]


def test_settling_trims_only_what_lies_before_the_oldest_unsettled(stack, client):
    token, streams = held(client), Streams(client)
    ids = [append(stack, group())[0] for _ in range(4)]
    streams.read({0: token}, 3, {})
    streams.settle({0: Settlement(token, [ids[0], ids[2]], ids[1])})
    assert [entry.id for entry in streams.peek(0, 0, 10)] == ids[1:]
    assert [entry.id for entry in streams.outstanding(0)] == [ids[1], ids[3]]


def test_ids_and_tokens_never_run_backwards_over_a_redis_that_lost_its_memory(stack, client):
    """The stream begins again behind the committed position, even one ahead of the clock."""
    token = held(client)
    (before,) = append(stack, group())
    ahead = before + (3_600_000 << 20)
    client.flushall()
    client.set(keys.PARTITIONS, 2)
    newer = held(client, position=ahead)
    assert newer > token
    (after,) = append(stack, group())
    assert after > ahead
    assert [entry.id for entry in Streams(client).read({0: newer}, 10, {})[0]] == [after]


def test_a_tick_comes_only_where_nothing_came(stack, client):
    token, streams = held(client), Streams(client)
    append(stack, group())
    streams.tick(0, token, 60_000)
    assert len(streams.peek(0, 0, 10)) == 1
    streams.tick(0, token, 0)
    assert streams.peek(0, 0, 10)[1].event_count == 0


def test_a_deleted_entry_is_told_as_lost(stack, client):
    """Redis hands a pending entry that was deleted out as nil."""
    token, streams = held(client), Streams(client)
    (entry,) = append(stack, group())
    streams.read({0: token}, 10, {})
    client.xdel(keys.stream_key(0), format_id(entry))
    assert [found.lost for found in streams.read({0: token}, 10, {0: 0})[0]] == [True]


def test_a_lease_expires_and_members_are_forgotten(client):
    leases = Leases(client, "a", 50)
    assert leases.acquire(0) is not None and Leases(client, "b", 50).acquire(0) is None
    assert leases.heartbeat() == ["a"]
    client.pexpire(keys.lease_key(0), 1)
    while leases.holders(1)[0] is not None:
        pass
    assert Leases(client, "b", 50).acquire(0) is not None


def test_start_refuses_a_redis_that_may_evict(client):
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(Invalid, match="config set maxmemory-policy noeviction"):
            check_server(client)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert check_server(client) == []


@pytest.mark.parametrize("text", [b"1700000000000-0", b"1700000000000-1048575", b"0-1"])
def test_stream_ids_survive_the_way_through_an_integer(text):
    assert format_id(parse_id(text)).encode() == text


def test_a_sequence_beyond_its_bits_is_refused():
    with pytest.raises(Invalid, match="does not fit"):
        parse_id(b"1700000000000-1048576")


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "9" * 30, "\u0663"])
def test_an_entry_whose_counts_are_no_numbers_is_read_all_the_same(stack, client, count):
    """Something else wrote it: it must not end the worker that meets it, nor the next one."""
    streams = Streams(client)
    client.xadd(keys.stream_key(0), {"e": b"x", "n": count, "m": count})
    (entry,) = streams.peek(0, 0, 10)
    assert (entry.events, entry.event_count, entry.dead_letter_count) == (b"x", 0, 0)
