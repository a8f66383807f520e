"""Alerts in Redis: what stands, and its transitions, moved together with a position, once."""

from __future__ import annotations

import pytest

from pipeline.stores.alertlog import NAMED, AlertLog, AlertReader
from pipeline.stores.leases import Leases

NONE = NAMED.to_frame()


@pytest.fixture
def token(client):
    return Leases(client, "holder", 60_000).acquire(0)


def test_a_reader_gets_each_transition_once_and_again_what_it_did_not_acknowledge(client, token):
    """A notifier that died between delivering and acknowledging delivers again after its start; the next one goes on."""
    reader = AlertReader(client, 2, "notifier")
    reader.open()
    reader.open()  # the groups are there: nothing happens
    log = AlertLog(client)
    log.apply(0, token, 1, NONE, NONE, [(1, {"n": 1}), (1, {"n": 2})])
    found = reader.read()
    assert [transition["n"] for _, _, transition in found] == [1, 2]
    assert reader.read() == []
    reader.acknowledge([found[0][:2]])
    again = AlertReader(client, 2, "notifier")
    assert [transition["n"] for _, _, transition in again.read(pending=True)] == [2]
    again.acknowledge([found[1][:2]])
    assert again.read(pending=True) == [] and again.read() == []


def test_a_reader_begins_at_the_first_transition(client, token):
    """What fired before the first notifier ran reaches it too."""
    AlertLog(client).apply(0, token, 1, NONE, NONE, [(1, {"n": 1})])
    reader = AlertReader(client, 2, "notifier")
    reader.open()
    assert [transition["n"] for _, _, transition in reader.read()] == [1]
