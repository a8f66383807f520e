"""What a holder may count on, of streams, leases and alerts: a real server, a cluster and their twin under the same suite."""

from __future__ import annotations

import time

import polars as pl
import pytest
import redis

from pipeline.core.recovery import Stand
from pipeline.core.schema import SEQUENCE_BITS, entry_id, split_entry_id
from pipeline.errors import Fenced, Restarted, Unavailable
from pipeline.stores.alertlog import NAMED
from pipeline.stores.connection import Scripts
from pipeline.stores.streams import AOF_SYNC_SECONDS, Settlement
from tests.contract.conftest import emptied
from tests.contract.worlds import MemoryWorld, RedisWorld

NONE = NAMED.to_frame()


@pytest.fixture(params=["one", "cluster", "memory"])
def world(request):
    if request.param == "memory":
        return MemoryWorld()
    stack = request.getfixturevalue(request.param)
    return RedisWorld(stack, emptied(stack))


@pytest.fixture
def token(world):
    return world.leases("holder").acquire(0)


def held(world, owner="a", partition=0, position=-1, newest=None):
    token = world.leases(owner).acquire(partition)
    world.streams().open(partition, token, position, position if newest is None else newest, [], 0)
    return token


def test_nothing_is_appended_before_a_holder_has_opened_the_partition(world):
    with pytest.raises(Unavailable):
        world.append()
    held(world)
    assert world.append() < world.append()
    assert world.streams().accepted(0) == 2


def test_ids_go_on_after_the_newest_that_anything_stands_for(world):
    """Also in a stream that was made again, where what was committed last lies ahead of Redis' clock."""
    position, newest = entry_id(4_000_000_000_000, 0), entry_id(4_000_000_000_000, 7)
    token = held(world, position=position, newest=newest)
    entry = world.append()
    assert entry > newest
    assert [each.id for each in world.streams().read({0: token}, 10, {})[0]] == [entry]


@pytest.mark.parametrize("sequence", [(1 << SEQUENCE_BITS - 1) - 1, (1 << SEQUENCE_BITS) - 1])
def test_ids_keep_within_their_bits_under_a_clock_that_is_behind(world, sequence):
    """The last millisecond is not counted up for ever: ids go on in the next one, in their order."""
    ahead = 4_000_000_000_000
    token = held(world, newest=entry_id(ahead, sequence))
    ids = [world.append() for _ in range(3)]
    world.streams().tick(0, token, -ahead)
    read = [each.id for each in world.streams().read({0: token}, 10, {})[0]]
    assert read[:3] == ids == sorted(ids) and len(read) == 4
    assert [split_entry_id(each)[0] - ahead for each in read] == ([1] * 4 if sequence + 1 == 1 << SEQUENCE_BITS else [0, 1, 1, 1])


def test_a_zombie_changes_nothing(world):
    """Read, settle, tick, renew and release of an older token are refused, and leave everything as it was."""
    leases, streams = world.leases("a"), world.streams()
    old = held(world)
    world.append()
    world.expire(0)  # it expired
    new = world.leases("b").acquire(0)
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


def test_the_next_holder_reads_the_pending_entries_as_its_own(world):
    token, streams = held(world), world.streams()
    ids = [world.append() for _ in range(3)]
    assert [entry.id for entry in streams.read({0: token}, 10, {})[0]] == ids
    assert not streams.settle({0: Settlement(token, [ids[0]], ids[1])})
    world.expire(0)
    other = world.leases("b").acquire(0)
    assert streams.read({0: other}, 10, {})[0] == []  # nothing new
    assert [entry.id for entry in streams.read({0: other}, 10, {0: 0})[0]] == ids[1:]


def test_what_is_settled_is_gone_also_behind_what_is_not(world):
    """An entry that stays, for a window that does not close, keeps nothing but itself."""
    token, streams = held(world), world.streams()
    ids = [world.append() for _ in range(4)]
    streams.read({0: token}, 3, {})
    streams.settle({0: Settlement(token, [ids[0], ids[2]], ids[1])})
    assert [entry.id for entry in streams.peek(0, 0, 10)] == [ids[1], ids[3]]
    assert [entry.id for entry in streams.outstanding(0)] == [ids[1], ids[3]]


def test_ids_and_tokens_never_run_backwards_over_a_redis_that_lost_its_memory(world):
    """The stream begins again behind the committed position, even one ahead of the clock."""
    token = held(world)
    before = world.append()
    ahead = before + (3_600_000 << 20)
    world.forget()
    newer = held(world, position=ahead)
    assert newer > token
    after = world.append()
    assert after > ahead
    assert [entry.id for entry in world.streams().read({0: newer}, 10, {})[0]] == [after]


def test_ids_go_on_after_the_position_where_redis_lost_the_end_of_a_stream(world):
    """After a power cut, or on a replica that had not heard all, with a clock behind the lake's position."""
    token = held(world)
    ahead = world.append() + (60_000 << 20)
    world.expire(0)
    newer = held(world, "b", position=ahead)
    assert newer > token
    assert world.append() > ahead


AHEAD = entry_id(4_000_000_000_000, 0)  # of every clock, so that ids go by the last one


def read_and_forgotten(world):
    """A stream of two entries whose second was read and forgotten, and a third one that got its id: token, the first, what stands."""
    token = world.leases("a").acquire(0)
    opened = world.streams().open(0, token, AHEAD, AHEAD, [], 0)
    first = world.append()
    saved = world.saved(0)
    second = world.append()
    assert [entry.id for entry in world.streams().read({0: token}, 10, {})[0]] == [first, second]
    world.restart(0, saved)
    assert world.append() == second
    return token, first, Stand(second, opened.incarnation)


def test_nothing_is_read_settled_or_added_in_a_redis_that_was_started_again_until_it_is_opened(world):
    """Settling up to what was read would take with it what came since under the same ids."""
    token, first, stands = read_and_forgotten(world)
    streams = world.streams()
    assert isinstance(streams.read({0: token}, 10, {})[0], Restarted)
    assert isinstance(streams.read({0: token}, 10, {0: 0})[0], Restarted)
    assert isinstance(streams.settle({0: Settlement(token, [first, stands.position], stands.position + 1)})[0], Restarted)
    with pytest.raises(Restarted):
        streams.tick(0, token, 0)
    assert [entry.id for entry in streams.peek(0, 0, 10)] == [first, stands.position]


def test_entries_that_got_the_ids_of_forgotten_ones_are_moved_behind_them(world):
    """Once: neither the same holder nor the next moves them again."""
    token, first, stands = read_and_forgotten(world)
    streams = world.streams()
    opened = streams.open(0, token, AHEAD, stands.position, [stands], None)
    assert (opened.made, opened.moved) == (False, 1) and opened.incarnation > stands.incarnation
    _, entry = streams.read({0: token}, 10, {})[0]
    assert entry.id > stands.position and entry.events == b"payload"
    assert streams.open(0, token, AHEAD, entry.id, [Stand(entry.id, opened.incarnation)], None).moved == 0
    assert [each.id for each in streams.peek(0, 0, 10)] == [first, entry.id]


@pytest.mark.parametrize("again", [False, True])
def test_what_came_after_them_stays_after_them(world, again):
    """In the same incarnation, or in the one after another start: nobody has opened it, so nobody has read of it."""
    token, first, stands = read_and_forgotten(world)
    if again:
        world.restart(0, world.saved(0))
    last = world.append(events=b"later")
    assert last > stands.position
    streams = world.streams()
    assert streams.open(0, token, AHEAD, stands.position, [stands], None).moved == 2
    read = streams.read({0: token}, 10, {})[0]
    assert [entry.events for entry in read] == [b"payload", b"payload", b"later"]
    assert read[0].id == first and read[1].id > last
    world.append()
    assert streams.open(0, token, AHEAD, stands.position, [stands], None).moved == 0


def test_nothing_is_made_of_what_was_moved_before_the_disk_has_it(one, monkeypatch):
    """Also where the reply was lost that would have said so: another loss would bring back the ids that they had."""
    world = RedisWorld(one, emptied(one))
    token, _, stands = read_and_forgotten(world)
    streams, real = world.streams(), Scripts.call

    def lost(*arguments):
        real(*arguments)
        raise redis.ConnectionError("the reply is lost")

    with monkeypatch.context() as patch, pytest.raises(Unavailable):
        patch.setattr(Scripts, "call", lost)
        streams.open(0, token, AHEAD, stands.position, [stands], None)
    began = time.monotonic()
    assert streams.open(0, token, AHEAD, stands.position, [stands], None).moved == 0
    assert AOF_SYNC_SECONDS - 0.5 < time.monotonic() - began < AOF_SYNC_SECONDS + 1
    assert streams.open(0, token, AHEAD, stands.position, [stands], None).moved == 0
    assert time.monotonic() - began < AOF_SYNC_SECONDS + 1, "it waits once"


def test_what_may_have_been_read_is_not_moved_with_them(world):
    """It came in an incarnation that was opened: a holder that was frozen since may have made rows of it."""
    token, first, stands = read_and_forgotten(world)
    streams = world.streams()
    now = streams.open(0, token, AHEAD, first, [Stand(first, stands.incarnation)], None).incarnation
    last = world.append(events=b"later")
    assert streams.open(0, token, AHEAD, last, [Stand(first, now), stands], None).moved == 1
    assert [entry.events for entry in streams.read({0: token}, 10, {})[0]] == [b"payload", b"later", b"payload"]


def test_the_next_holder_moves_them_by_what_the_lake_says(world):
    """The tables stand in different incarnations: what one of them cannot have read is moved, and nothing else."""
    token, first, stands = read_and_forgotten(world)
    world.expire(0)
    token = world.leases("b").acquire(0)
    opened = world.streams().open(0, token, AHEAD, stands.position, [Stand(first, stands.incarnation), Stand(), stands], 0)
    assert opened.moved == 1
    after = world.append()
    assert [entry.id for entry in world.streams().read({0: token}, 10, {})[0]] == [first, stands.position + 1, after]
    world.restart(0, world.saved(0))
    opened = world.streams().open(0, token, AHEAD, after, [Stand(first, stands.incarnation), Stand(after, opened.incarnation)], None)
    assert opened.moved == 0


def test_what_a_zombie_wrote_beside_the_aggregates_moves_nothing_that_these_have(world):
    """It had read the forgotten entry; to `aggregates` it could write no more, to a table that nobody else wrote to it could."""
    token, first, forgotten = read_and_forgotten(world)
    streams = world.streams()
    now = streams.open(0, token, AHEAD, first, [Stand(first, forgotten.incarnation)], None).incarnation
    assert [entry.id for entry in streams.read({0: token}, 10, {})[0]] == [first, forgotten.position]
    tables = [Stand(forgotten.position, now), forgotten]
    assert streams.open(0, token, AHEAD, forgotten.position, tables, None).moved == 0
    tables = [Stand(first, now), forgotten]
    assert streams.open(0, token, AHEAD, forgotten.position, tables, None).moved == 1


def test_a_lake_of_which_no_incarnation_is_known_moves_nothing(world):
    token, _, stands = read_and_forgotten(world)
    assert world.streams().open(0, token, AHEAD, stands.position, [Stand(stands.position)], None).moved == 0


def test_a_stream_that_is_gone_is_not_made_again_by_who_only_goes_on(world):
    token = held(world)
    world.forget()
    token = world.leases("a").acquire(0)
    with pytest.raises(Fenced, match="Redis lost its memory"):
        world.streams().open(0, token, 5, 5, [], None)


def test_a_tick_comes_only_where_nothing_came(world):
    token, streams = held(world), world.streams()
    world.append()
    streams.tick(0, token, 60_000)
    assert len(streams.peek(0, 0, 10)) == 1
    streams.tick(0, token, 0)
    assert streams.peek(0, 0, 10)[1].event_count == 0


def test_a_deleted_entry_is_told_as_lost(world):
    """Redis hands a pending entry that was deleted out as nil."""
    token, streams = held(world), world.streams()
    entry = world.append()
    streams.read({0: token}, 10, {})
    world.lose(0, entry)
    assert [found.lost for found in streams.read({0: token}, 10, {0: 0})[0]] == [True]


def test_a_lease_expires_and_members_are_forgotten(world):
    leases = world.leases("a", 50)
    assert leases.acquire(0) is not None and world.leases("b", 50).acquire(0) is None
    assert leases.heartbeat() == {"a": 0}
    world.expire(0)
    assert world.leases("b", 50).acquire(0) is not None


def test_a_dead_member_does_not_live_on_under_a_clock_that_was_set_back(world):
    dead, other = world.leases("dead", 200), world.leases("other", 200)
    dead.heartbeat()
    assert dead.acquire(0) is not None
    world.set_back(0, 3_600_000)
    assert list(other.heartbeat()) == ["dead", "other"] and other.tend(2) == {0: "dead", 1: None}
    world.pass_time(250)
    assert other.heartbeat() == {"other": 0} and other.holders(2) == other.tend(2) == {0: None, 1: None}


def alert(device: str = "r1", **changed: object) -> dict:
    return {
        "device": device, "interface": 'eth0/1 "up"', "metric": "in-octets", "tags": '{"site":"zürich"}', "rule": "high",
        "severity": 1, "firing": True, "since": 1_700_000_000_000_000, "time": 1_700_000_000_000_001, "value": 0.1 + 0.2, "bound": 5.0,
        **changed,
    }  # fmt: skip


def frame(*alerts: dict) -> pl.DataFrame:
    return pl.DataFrame(list(alerts), schema=NAMED)


def test_states_load_back_equal(world, token):
    """Every column to the last bit, names with quotes and umlauts, missing bounds: recovery goes on from them."""
    log = world.alertlog()
    stands = frame(alert(), alert("r2", firing=False, bound=None), alert("r1", rule="low", severity=2, value=-1e300))
    log.apply(0, token, 7 << 20, NONE, stands, [])
    position, found = world.alertlog().load(0)
    assert position == 7 << 20
    assert found.sort("rule", pl.col("device").cast(pl.String)).equals(stands.sort("rule", pl.col("device").cast(pl.String)))


def test_nothing_was_ever_raised(world):
    position, found = world.alertlog().load(0)
    assert (position, found.height, found.schema) == (-1, 0, NAMED)
    assert world.alertlog().standing([0, 1]).is_empty()


def test_states_come_change_and_go(world, token):
    """A state that stays as it is need not be told again; one that is gone is forgotten."""
    log = world.alertlog()
    first = frame(alert("r1"), alert("r2"))
    log.apply(0, token, 1, NONE, first, [])
    second = frame(alert("r1", severity=2, value=9.0), alert("r3"))
    log.apply(0, token, 2, first, second, [])
    position, found = log.load(0)
    assert position == 2
    assert sorted(found.select("device", "severity", "value").rows()) == [("r1", 2, 9.0), ("r3", 1, 0.1 + 0.2)]
    log.apply(0, token, 3, second, NONE, [])
    assert log.load(0)[1].is_empty()


def test_a_replay_changes_nothing(world, token):
    """The same position again, or an older one, from a holder that starts from an older commit: no second transition."""
    log = world.alertlog()
    stands = frame(alert())
    log.apply(0, token, 100, NONE, stands, [(100, {"phase": "firing", "n": 1})])
    for position in (100, 99, 9, 20):
        log.apply(0, token, position, stands, NONE, [(position, {"phase": "resolved", "n": 2})])
    assert world.transitions() == [{"phase": "firing", "n": 1}]
    assert log.load(0)[0] == 100 and log.load(0)[1].height == 1
    log.apply(0, token, 1000, stands, NONE, [(1000, {"phase": "resolved", "n": 3})])
    assert [found["n"] for found in world.transitions()] == [1, 3]


def test_what_was_published_without_a_reply_is_not_published_again(world, token):
    """The reply got lost, and more had come before the holder tried again: of what it offers then the new alone is new."""
    log = world.alertlog()
    log.apply(0, token, 99, NONE, NONE, [(99, {"n": 1})])
    log.apply(0, token, 100, NONE, NONE, [(99, {"n": 1}), (100, {"n": 2})])
    log.apply(0, token, 1001, NONE, NONE, [(99, {"n": 1}), (100, {"n": 2}), (101, {"n": 3}), (1001, {"n": 4})])
    assert [found["n"] for found in world.transitions()] == [1, 2, 3, 4]


def test_a_position_is_compared_as_a_number(world, token):
    """Of any length, and beyond what a Lua number holds: 2**62 and its successor differ."""
    log = world.alertlog()
    for n, position in enumerate((9, 10, 2**62, 2**62 + 1)):
        log.apply(0, token, position, NONE, NONE, [(position, {"n": n})])
    assert [found["n"] for found in world.transitions()] == [0, 1, 2, 3]


def test_a_zombie_raises_nothing(world, token):
    """Its transitions are not published, its states not written, the position stays."""
    log = world.alertlog()
    log.apply(0, token, 1, NONE, frame(alert()), [(1, {"n": 1})])
    world.expire(0)
    newer = world.leases("next").acquire(0)
    with pytest.raises(Fenced, match=f"partition 0: fencing token {token} is behind {newer}"):
        log.apply(0, token, 2, frame(alert()), NONE, [(2, {"n": 2})])
    world.expire(0)
    with pytest.raises(Fenced, match="is behind none"):
        log.apply(0, newer, 2, frame(alert()), NONE, [(2, {"n": 3})])
    assert world.transitions() == [{"n": 1}] and log.load(0)[0] == 1 and log.load(0)[1].height == 1


def test_partitions_are_apart(world, token):
    log = world.alertlog()
    other = world.leases("holder").acquire(1)
    log.apply(0, token, 5, NONE, frame(alert("r1")), [(5, {"n": 0})])
    log.apply(1, other, 3, NONE, frame(alert("r2")), [(3, {"n": 1})])
    assert (log.load(0)[0], log.load(1)[0]) == (5, 3)
    assert sorted(log.standing([0, 1])["device"].cast(pl.String)) == ["r1", "r2"]
    assert [found["n"] for found in world.transitions()] == [0, 1]
