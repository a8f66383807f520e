"""The notifier over a real Redis: what it acknowledges, and when."""

from __future__ import annotations

import io
import threading
import time

import pytest

from pipeline import metrics
from pipeline.__main__ import main
from pipeline.notifier import ACKNOWLEDGE_SECONDS, Notifier
from pipeline.sinks import ConsoleSink
from pipeline.stores import connection as keys
from pipeline.stores.alertlog import NAMED, AlertLog, AlertReader
from pipeline.stores.leases import Leases
from tests.harness import eventually

NONE = NAMED.to_frame()
TRANSITION = {
    "rule": "hot", "device": "r1", "interface": "", "metric": "cpu", "tags": "", "since": 0, "phase": "firing", "severity": "warning",
}  # fmt: skip


class Sink:
    """Takes its time, and remembers how many deliveries Redis thought open when it got each."""

    name = "console"
    refreshes = False

    def __init__(self, client, seconds: float) -> None:
        self._client, self._seconds = client, seconds
        self.devices: list[str] = []
        self.open: list[int] = []

    def deliver(self, transition: dict) -> None:
        self.devices.append(transition["device"])
        self.open.append(outstanding(self._client))
        time.sleep(self._seconds)


def outstanding(client) -> int:
    return sum(client.xpending(keys.alerts_key(partition), AlertReader.GROUP)["pending"] for partition in range(2))


@pytest.fixture
def raised(client):
    """Ten transitions in each of two partitions."""
    for partition in range(2):
        token = Leases(client, "holder", 60_000).acquire(partition)
        told = [(1, {**TRANSITION, "device": f"r{partition}-{number}"}) for number in range(10)]
        AlertLog(client).apply(partition, token, 1, NONE, NONE, told)
    return client


@pytest.fixture
def settings(stack):
    return stack.settings.model_copy(update={"partitions": 2})


def running(settings, *sinks) -> tuple[Notifier, threading.Thread]:
    notifier = Notifier(settings, sinks)
    thread = threading.Thread(target=notifier.run, daemon=True)
    thread.start()
    return notifier, thread


def ended(notifier: Notifier, thread: threading.Thread) -> None:
    notifier.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_what_is_delivered_in_no_time_is_acknowledged_together(raised, settings):
    sink = Sink(raised, 0)
    notifier, thread = running(settings, sink)
    eventually(lambda: len(sink.devices) == 20 and not outstanding(raised), 10, "all is delivered and acknowledged")
    ended(notifier, thread)
    assert [[d for d in sink.devices if d.startswith(f"r{p}-")] for p in (0, 1)] == [[f"r{p}-{n}" for n in range(10)] for p in (0, 1)]


def test_behind_a_slow_sink_each_delivery_is_acknowledged_before_the_next(raised, settings):
    """So a notifier that dies there delivers one of them again, not all."""
    sink = Sink(raised, ACKNOWLEDGE_SECONDS * 1.2)
    notifier, thread = running(settings, sink)
    eventually(lambda: len(sink.devices) >= 4, 10, "some are delivered")
    ended(notifier, thread)
    assert sink.open[:4] == [20, 19, 18, 17]


def test_a_notifier_that_is_stopped_amid_a_page_leaves_the_rest_to_the_next(raised, settings):
    slow = Sink(raised, ACKNOWLEDGE_SECONDS * 1.2)
    notifier, thread = running(settings, slow)
    eventually(lambda: len(slow.devices) >= 2, 10, "some are delivered")
    ended(notifier, thread)
    assert 2 <= len(slow.devices) < 20
    fast = Sink(raised, 0)
    notifier, thread = running(settings, fast)
    eventually(lambda: not outstanding(raised), 10, "the rest is delivered")
    ended(notifier, thread)
    assert len(slow.devices + fast.devices) == 20 == len({*slow.devices, *fast.devices})


def test_a_notifier_that_is_stopped_while_a_sink_is_away_gives_up_on_nothing(raised, settings):
    """It does not burn its attempts without a wait; the next start delivers what stood before it."""

    class Away(Sink):
        def deliver(self, transition: dict) -> None:
            super().deliver(transition)
            raise OSError("away")

    away = Away(raised, 0)
    notifier, thread = running(settings, away)
    eventually(lambda: away.devices, 10, "it is tried")
    ended(notifier, thread)
    assert not raised.exists("undelivered:console") and len({*away.devices}) == 1
    there = Sink(raised, 0)
    notifier, thread = running(settings, there)
    eventually(lambda: not outstanding(raised), 10, "all is delivered")
    ended(notifier, thread)
    assert len(there.devices) == 20 == len({*there.devices})


def test_what_is_delivered_is_not_kept_until_it_fills_redis(raised, settings, monkeypatch):
    """The newest of each partition are; and all that nobody has delivered."""
    monkeypatch.setattr("pipeline.notifier.TRIM_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.stores.alertlog.DELIVERED_MAX", 0)
    slow = Sink(raised, 0.2)
    notifier, thread = running(settings, slow)
    eventually(lambda: len(slow.devices) == 5, 10, "some are delivered")
    assert sum(raised.xlen(keys.alerts_key(partition)) for partition in range(2)) == 20
    eventually(lambda: sum(raised.xlen(keys.alerts_key(partition)) for partition in range(2)) == 0, 20, "they are let go")
    ended(notifier, thread)
    assert len({*slow.devices}) == 20


def test_a_name_that_the_console_cannot_show_is_escaped_and_stops_nobody(monkeypatch):
    """Else it would end the notifier again after each restart, as what was not acknowledged comes first."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(SystemExit):
        main(["notify", "--help"])  # each command has its output escape what it does not know
    ConsoleSink().deliver(TRANSITION | {"device": "köln→1\ud800", "time": 0, "value": 1.0, "bound": 0.0})
    assert b"hot  k\\xf6ln\\u21921\\ud800 cpu  1 > 0" in out.buffer.getvalue()


def test_what_the_stream_has_let_go_does_not_stand_before_what_is_left(client, settings):
    """A page of it is not the end of what was read before and not delivered; how many they were is counted."""
    told = [(1, {**TRANSITION, "device": f"r{number}"}) for number in range(600)]
    for partition in range(2):
        token = Leases(client, "holder", 60_000).acquire(partition)
        AlertLog(client).apply(partition, token, 1, NONE, NONE, told)
    died = AlertReader(client, 2, "notifier")
    died.open()
    assert len(died.read(count=600)) == 1200
    for partition in range(2):
        client.xtrim(keys.alerts_key(partition), maxlen=5, approximate=False)
    lost = metrics.NOTIFY_SET_ASIDE.labels("console")._value.get()
    sink = Sink(client, 0)
    notifier, thread = running(settings, sink)
    eventually(lambda: len(sink.devices) == 10 and not outstanding(client), 10, "what is left is delivered")
    ended(notifier, thread)
    assert sorted(sink.devices) == sorted(2 * [f"r{number}" for number in range(595, 600)])
    assert metrics.NOTIFY_SET_ASIDE.labels("console")._value.get() == lost + 2 * 595
