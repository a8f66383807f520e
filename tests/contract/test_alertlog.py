"""Alerts in Redis: what stands, and its transitions, moved together with a position, once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.stores.alertlog import NAMED, AlertLog, AlertReader
from pipeline.stores.cluster import Cluster
from pipeline.stores.leases import Leases
from tests.harness import eventually

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


def test_a_reader_that_waits_gets_a_transition_as_it_comes(client, token):
    """Where one command can wait at all streams; no longer than it may, and not for what was read before."""
    reader, log = AlertReader(client, 2, "notifier"), AlertLog(client)
    reader.open()
    began = time.monotonic()
    assert reader.read(wait_seconds=0.2) == [] and 0.15 < time.monotonic() - began < 5
    assert reader.read(pending=True, wait_seconds=60) == [] and time.monotonic() - began < 10
    with ThreadPoolExecutor(1) as pool:
        if not isinstance(client, Cluster):
            reading = pool.submit(reader.read, wait_seconds=4)
            eventually(lambda: client.info("clients")["blocked_clients"] == 1, 4, "it waits")
        log.apply(0, token, 1, NONE, NONE, [(1, {"n": 1})])
        if isinstance(client, Cluster):
            reading = pool.submit(reader.read, wait_seconds=4)
        assert [transition["n"] for _, _, transition in reading.result(2)] == [1]
