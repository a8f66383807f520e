"""Alerts in Redis: what stands, and its transitions, moved together with a position, once."""

from __future__ import annotations

import polars as pl
import pytest

from pipeline.errors import Fenced
from pipeline.stores import connection as keys
from pipeline.stores.alertlog import NAMED, AlertLog, AlertReader
from pipeline.stores.leases import Leases

NONE = NAMED.to_frame()


@pytest.fixture
def token(client):
    return Leases(client, "holder", 60_000).acquire(0)


def alert(device: str = "r1", **changed: object) -> dict:
    return {
        "device": device, "interface": 'eth0/1 "up"', "metric": "in-octets", "tags": '{"site":"zürich"}', "rule": "high",
        "severity": 1, "firing": True, "since": 1_700_000_000_000_000, "time": 1_700_000_000_000_001, "value": 0.1 + 0.2, "bound": 5.0,
        **changed,
    }  # fmt: skip


def frame(*alerts: dict) -> pl.DataFrame:
    return pl.DataFrame(list(alerts), schema=NAMED)


def transitions(client, partitions: int = 2) -> list[dict]:
    return AlertReader.all_transitions(client, partitions)


def test_states_load_back_equal(client, token):
    """Every column to the last bit, names with quotes and umlauts, missing bounds: recovery goes on from them."""
    log = AlertLog(client)
    stands = frame(alert(), alert("r2", firing=False, bound=None), alert("r1", rule="low", severity=2, value=-1e300))
    log.apply(0, token, 7 << 20, NONE, stands, [])
    position, found = AlertLog(client).load(0)
    assert position == 7 << 20
    assert found.sort("rule", pl.col("device").cast(pl.String)).equals(stands.sort("rule", pl.col("device").cast(pl.String)))


def test_nothing_was_ever_raised(client):
    position, found = AlertLog(client).load(0)
    assert (position, found.height, found.schema) == (-1, 0, NAMED)
    assert AlertLog(client).standing([0, 1]).is_empty()


def test_states_come_change_and_go(client, token):
    """A state that stays as it is need not be told again; one that is gone is forgotten."""
    log = AlertLog(client)
    first = frame(alert("r1"), alert("r2"))
    log.apply(0, token, 1, NONE, first, [])
    second = frame(alert("r1", severity=2, value=9.0), alert("r3"))
    log.apply(0, token, 2, first, second, [])
    position, found = log.load(0)
    assert position == 2
    assert sorted(found.select("device", "severity", "value").rows()) == [("r1", 2, 9.0), ("r3", 1, 0.1 + 0.2)]
    log.apply(0, token, 3, second, NONE, [])
    assert log.load(0)[1].is_empty()


def test_a_replay_changes_nothing(client, token):
    """The same position again, or an older one, from a holder that starts from an older commit: no second transition."""
    log = AlertLog(client)
    stands = frame(alert())
    log.apply(0, token, 100, NONE, stands, [{"phase": "firing", "n": 1}])
    for position in (100, 99, 9, 20):
        log.apply(0, token, position, stands, NONE, [{"phase": "resolved", "n": 2}])
    assert transitions(client) == [{"phase": "firing", "n": 1}]
    assert log.load(0)[0] == 100 and log.load(0)[1].height == 1
    log.apply(0, token, 1000, stands, NONE, [{"phase": "resolved", "n": 3}])
    assert [found["n"] for found in transitions(client)] == [1, 3]


def test_a_position_is_compared_as_a_number(client, token):
    """Of any length, and beyond what a Lua number holds: 2**62 and its successor differ."""
    log = AlertLog(client)
    for n, position in enumerate((9, 10, 2**62, 2**62 + 1)):
        log.apply(0, token, position, NONE, NONE, [{"n": n}])
    assert [found["n"] for found in transitions(client)] == [0, 1, 2, 3]


def test_a_zombie_changes_nothing(client, token):
    """Its transitions are not published, its states not written, the position stays."""
    log = AlertLog(client)
    log.apply(0, token, 1, NONE, frame(alert()), [{"n": 1}])
    client.delete(keys.lease_key(0))
    newer = Leases(client, "next", 60_000).acquire(0)
    with pytest.raises(Fenced, match=f"partition 0: fencing token {token} is behind {newer}"):
        log.apply(0, token, 2, frame(alert()), NONE, [{"n": 2}])
    client.delete(keys.lease_key(0))
    with pytest.raises(Fenced, match="is behind none"):
        log.apply(0, newer, 2, frame(alert()), NONE, [{"n": 3}])
    assert transitions(client) == [{"n": 1}] and log.load(0)[0] == 1 and log.load(0)[1].height == 1


def test_partitions_are_apart(client, token):
    log = AlertLog(client)
    other = Leases(client, "holder", 60_000).acquire(1)
    log.apply(0, token, 5, NONE, frame(alert("r1")), [{"n": 0}])
    log.apply(1, other, 3, NONE, frame(alert("r2")), [{"n": 1}])
    assert (log.load(0)[0], log.load(1)[0]) == (5, 3)
    assert sorted(log.standing([0, 1])["device"].cast(pl.String)) == ["r1", "r2"]
    assert [found["n"] for found in transitions(client)] == [0, 1]


def test_a_reader_gets_each_transition_once_and_again_what_it_did_not_acknowledge(client, token):
    """A notifier that died between delivering and acknowledging delivers again after its start; the next one goes on."""
    reader = AlertReader(client, 2, "notifier")
    reader.open()
    reader.open()  # the groups are there: nothing happens
    log = AlertLog(client)
    log.apply(0, token, 1, NONE, NONE, [{"n": 1}, {"n": 2}])
    found = reader.read()
    assert [transition["n"] for _, _, transition in found] == [1, 2]
    assert reader.read() == []
    reader.acknowledge(*found[0][:2])
    again = AlertReader(client, 2, "notifier")
    assert [transition["n"] for _, _, transition in again.read(pending=True)] == [2]
    again.acknowledge(*found[1][:2])
    assert again.read(pending=True) == [] and again.read() == []


def test_a_reader_begins_at_the_first_transition(client, token):
    """What fired before the first notifier ran reaches it too."""
    AlertLog(client).apply(0, token, 1, NONE, NONE, [{"n": 1}])
    reader = AlertReader(client, 2, "notifier")
    reader.open()
    assert [transition["n"] for _, _, transition in reader.read()] == [1]
