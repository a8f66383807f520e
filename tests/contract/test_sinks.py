"""Sinks behind the notifier: a real Alertmanager, a webhook that listens, and what one that is away does to the others."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import psutil
import pytest

from pipeline import metrics
from pipeline.core.rules import SEVERITIES
from pipeline.errors import Invalid
from pipeline.settings import Settings
from pipeline.sinks import AlertmanagerSink, ConsoleSink, WebhookSink, sinks_of
from pipeline.stores import connection as keys
from pipeline.stores.alertlog import NAMED, AlertLog
from pipeline.stores.leases import Leases
from tests.alertmanager import Alertmanager
from tests.contract.test_notifier import Sink, ended, running
from tests.harness import eventually, free_port

NONE = NAMED.to_frame()
NOW_US = time.time_ns() // 1000 - 60_000_000
NAMES = {"device": "r1", "interface": "eth0/1", "metric": "in-errors", "tags": '{"site":"fra","a.b":"c"}'}


class Holder:
    """Raises, as a worker does: what stands, and the transition to it, under one position after the other."""

    def __init__(self, client) -> None:
        self._log, self._token = AlertLog(client), Leases(client, "holder", 60_000).acquire(0)
        self._position, self._before = 0, NONE

    def raised(self, phase: str, severity: str, value: float = 7.0, **names: str) -> dict:
        self._position += 1
        told = {
            "rule": "errors", **NAMES, **names, "severity": severity, "since": NOW_US, "time": NOW_US + self._position * 1_000_000,
            "value": value, "bound": 5.0, "phase": phase,
        }  # fmt: skip
        row = {name: told[name] for name in NAMED if name in told}
        row |= {"severity": SEVERITIES.index(severity) + 1, "firing": True}
        after = NONE if phase == "resolved" else pl.DataFrame([row], schema=NAMED)
        self._log.apply(0, self._token, self._position, self._before, after, [(self._position, told)])
        self._before = after
        return told


@pytest.fixture
def holder(client) -> Holder:
    return Holder(client)


@pytest.fixture
def settings(stack):
    return stack.settings.model_copy(update={"partitions": 2, "notify_retries_max": 1000, "backoff_max_seconds": 0.2})


@pytest.fixture
def manager(tmp_path) -> Iterator[Alertmanager]:
    with Alertmanager(tmp_path) as running_manager:
        yield running_manager


def test_alertmanager_knows_what_fires_how_bad_it_is_and_when_it_is_over(holder, settings, manager):
    notifier, thread = running(settings, AlertmanagerSink("alertmanager", manager.url, 5))
    holder.raised("firing", "warning")
    eventually(lambda: len(manager.alerts()) == 1, 10, "it is told of the alert")
    (alert,) = manager.alerts()
    named = {"device": "r1", "interface": "eth0/1", "metric": "in-errors", "tag_site": "fra", "tag_a_b": "c"}
    assert alert["labels"] == {"alertname": "errors", "severity": "warning", **named}
    assert (alert["annotations"]["value"], alert["annotations"]["bound"]) == ("7", "5")
    assert alert["annotations"]["summary"].startswith("WARNING  errors  r1 eth0/1 in-errors")
    assert alert["status"]["state"] in ("active", "unprocessed")
    holder.raised("firing", "critical", 70)
    eventually(lambda: [each["labels"]["severity"] for each in manager.alerts()] == ["critical"], 10, "it has grown, and is one")
    holder.raised("resolved", "critical", 1)
    eventually(lambda: manager.alerts() == [], 10, "it is over")
    ended(notifier, thread)


def test_what_stands_is_said_again_to_one_that_has_forgotten(holder, settings, manager, monkeypatch):
    monkeypatch.setattr("pipeline.notifier.REFRESH_SECONDS", 0.2)
    notifier, thread = running(settings, AlertmanagerSink("alertmanager", manager.url, 5))
    holder.raised("firing", "warning")
    eventually(lambda: len(manager.alerts()) == 1, 10, "it is told of the alert")
    first = manager.alerts()[0]["labels"]
    manager.stop()
    holder.raised("firing", "critical")
    manager.start()
    eventually(lambda: [each["labels"] for each in manager.alerts()] == [first | {"severity": "critical"}], 20, "it knows again")
    ended(notifier, thread)


def test_a_sink_that_is_away_keeps_nothing_from_the_others_and_is_told_later(holder, settings, client, tmp_path):
    manager, console = Alertmanager(tmp_path), Sink(client, 0)
    notifier, thread = running(settings, console, AlertmanagerSink("alertmanager", manager.url, 5))
    try:
        for number in range(20):
            holder.raised("firing", "warning", device=f"r{number}")
        eventually(lambda: len(console.devices) == 20, 5, "the console has them at once")
        assert notifier.health.why_not_ready() is not None
        manager.start()
        eventually(lambda: {each["labels"]["device"] for each in manager.alerts()} == {*console.devices}, 20, "it has them, too")
        eventually(lambda: notifier.health.why_not_ready() is None, 10, "all is well")
    finally:
        ended(notifier, thread)
        manager.stop()


def test_what_a_sink_does_not_take_is_set_aside_for_it_alone(holder, settings, client):
    nobody = AlertmanagerSink("alertmanager", f"http://127.0.0.1:{free_port()}", 5)
    console, before = Sink(client, 0), metrics.NOTIFY_SET_ASIDE.labels("alertmanager")._value.get()
    notifier, thread = running(settings.model_copy(update={"notify_retries_max": 2}), console, nobody)
    told = holder.raised("firing", "warning")
    eventually(lambda: client.xlen("undelivered:alertmanager") == 1, 10, "it is set aside")
    ended(notifier, thread)
    assert json.loads(client.xrange("undelivered:alertmanager")[0][1][b"t"]) == told and not client.exists("undelivered:console")
    assert metrics.NOTIFY_SET_ASIDE.labels("alertmanager")._value.get() == before + 1 and console.devices == ["r1"]


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict], list]]:
    """(URL, what came, answers to give before 200: a status, or what writes one)."""
    came: list[dict] = []
    answers: list[int | Callable[[BaseHTTPRequestHandler], None]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = answers.pop(0) if answers else 200
            if callable(answer):
                with contextlib.suppress(OSError):  # nobody listens any more
                    answer(self)
                self.close_connection = True
                return
            if answer == 200:
                came.append(json.loads(body))
            self.send_response(answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/alerts", came, answers
    finally:
        server.shutdown()
        server.server_close()


def test_a_webhook_is_called_as_alertmanager_calls_one(holder, settings, hook):
    url, came, answers = hook
    answers += [503, 429]
    notifier, thread = running(settings, WebhookSink(url, 5))
    told = holder.raised("firing", "critical", device="köln")
    holder.raised("resolved", "critical", 1, device="köln")
    eventually(lambda: len(came) == 2, 10, "it is called")
    ended(notifier, thread)
    fired, resolved = came
    assert set(fired) == {"version", "groupKey", "truncatedAlerts", "status", "receiver", "groupLabels", "commonLabels",
                          "commonAnnotations", "externalURL", "alerts"}  # fmt: skip
    assert (fired["version"], fired["status"], resolved["status"]) == ("4", "firing", "resolved")
    assert fired["alerts"][0]["labels"] == fired["commonLabels"] == resolved["commonLabels"]
    assert fired["commonLabels"]["device"] == "köln" and fired["alerts"][0]["fingerprint"] == resolved["alerts"][0]["fingerprint"]
    WebhookSink(url, 5).deliver(told | {"device": "half-\ud800"})  # as no worker lets one through
    assert came[-1]["commonLabels"]["device"] == "half-?"
    WebhookSink(url, 5).deliver(told | {"severity": "warning"})  # before it grew: the same one
    assert came[-1]["alerts"][0]["fingerprint"] == fired["alerts"][0]["fingerprint"] and came[-1]["commonLabels"]["severity"] == "warning"
    assert fired["alerts"][0]["endsAt"].startswith("0001-") and resolved["alerts"][0]["endsAt"] > resolved["alerts"][0]["startsAt"]


def _answering(status: int, body: bytes = b"", pause_seconds: float = 0, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        for start in range(0, len(body), 1 if pause_seconds else len(body)):
            handler.wfile.write(body[start : start + 1] if pause_seconds else body)
            time.sleep(pause_seconds)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        _answering(302, Location="mailto:x"),
        _answering(302, Location="http://h:port/"),
        _answering(500, b"4z", Content_Type="text/plain; charset=hex"),
        _answering(500, b"\xff\xfe", Content_Type="text/plain; charset=idna"),
        _answering(500, b"no gzip", Content_Encoding="gzip"),
        lambda handler: handler.wfile.write(b"huh\r\n\r\n"),
    ],
    ids=["mailto", "port", "hex", "idna", "gzip", "huh"],
)
def test_whatever_a_sink_answers_is_an_attempt_that_failed(answer, holder, settings, client, hook):
    url, came, answers = hook
    answers.append(answer)
    console = Sink(client, 0)
    notifier, thread = running(settings, console, WebhookSink(url, 5))
    holder.raised("firing", "warning")
    eventually(lambda: len(came) == 1 and console.devices == ["r1"], 10, "the next attempt is taken")
    assert thread.is_alive()
    ended(notifier, thread)


def test_a_defect_of_one_sink_ends_none_of_the_others(holder, settings, client):
    class Broken(Sink):
        name = "broken"

        def deliver(self, transition: dict) -> None:
            raise KeyError("of its own")

    console = Sink(client, 0)
    notifier, thread = running(settings.model_copy(update={"notify_retries_max": 2}), console, Broken(client, 0))
    holder.raised("firing", "warning", device="a")
    holder.raised("firing", "warning", device="b")
    eventually(lambda: client.xlen("undelivered:broken") == 2 and console.devices == ["a", "b"], 10, "they go on")
    assert "KeyError: 'of its own'" in notifier.health.why_not_ready()
    ended(notifier, thread)


def test_no_answer_holds_a_sink_for_longer_than_its_timeout_or_is_read_to_a_far_end(holder, settings, hook):
    """A byte now and then; 200 MB; of either no more is read than tells whether it was taken."""
    url, came, answers = hook
    fired = holder.raised("firing", "warning")
    answers += [_answering(200, b"x" * 100, 0.5), _answering(503, b"y" * 100, 0.5), _answering(200, b"z" * 200_000_000)]
    sink, began = WebhookSink(url, 2), time.monotonic()
    sink.deliver(fired)
    with pytest.raises(OSError, match="answers 503"):
        sink.deliver(fired)
    before = psutil.Process().memory_info().rss
    sink.deliver(fired)
    assert time.monotonic() - began < 25 and not came
    assert psutil.Process().memory_info().rss - before < 100_000_000  # the body is there already


def test_a_secret_in_the_path_of_a_webhook_is_told_to_nobody(holder, hook):
    url, _, answers = hook
    answers.append(_answering(404, b"Cannot POST /alerts/SECRET"))
    with pytest.raises(OSError) as told:
        WebhookSink(f"{url}/SECRET", 5).deliver(holder.raised("firing", "warning"))
    assert str(told.value) == "http://127.0.0.1 answers 404"


def test_what_stands_is_said_again_amid_a_long_batch_and_beside_what_is_refused(holder, settings, client, monkeypatch):
    monkeypatch.setattr("pipeline.notifier.REFRESH_SECONDS", 0.2)
    told: list[int | str] = []

    class Slow(Sink):
        name, refreshes = "slow", True

        def deliver(self, transition: dict) -> None:
            told.append(transition["device"])
            time.sleep(0.05)

        def refresh(self, standing: list[dict]) -> None:
            told.append(len(standing))

    for number in range(30):
        holder.raised("firing", "warning", device=f"r{number}")
    notifier, thread = running(settings, Slow(client, 0))
    eventually(lambda: "r29" in told, 10, "all are delivered")
    ended(notifier, thread)
    assert sum(isinstance(each, int) for each in told[told.index("r0") : told.index("r29")]) >= 3


def test_a_refusal_of_some_of_what_stands_keeps_nothing_from_the_rest(holder, hook, monkeypatch):
    monkeypatch.setattr("pipeline.sinks.TOGETHER_MAX", 1)
    url, came, answers = hook
    answers.append(_answering(400, b"label\nname"))
    standing = [holder.raised("firing", "warning", device=device) for device in ("a", "b")]
    with pytest.raises(OSError, match=r"answers 400: label name$"):
        AlertmanagerSink("alertmanager", url, 5).refresh(standing)
    assert [[each["labels"]["device"] for each in alerts] for alerts in came] == [["b"]]


def test_series_whose_tags_differ_in_what_no_label_may_hold_are_two_alerts(holder, hook):
    url, came, _ = hook
    fired = holder.raised("firing", "warning")
    for tags in ('{"a.b":"1","a-b":"2","c":"3"}', '{"a.b":"3","a-b":"2","c":"3"}'):
        WebhookSink(url, 5).deliver(fired | {"tags": tags})
    first, second = ({n: v for n, v in each["commonLabels"].items() if n.startswith("tag_")} for each in came)
    assert len(first) == 3 and first["tag_c"] == "3" and first.keys() == second.keys() and first != second
    assert came[0]["alerts"][0]["fingerprint"] != came[1]["alerts"][0]["fingerprint"]


def test_what_no_rule_asks_for_any_more_ends_now_and_has_no_value(holder, hook, capsys):
    url, came, _ = hook
    gone = holder.raised("firing", "warning") | {"phase": "resolved", "value": None}
    AlertmanagerSink("alertmanager", url, 5).deliver(gone)
    WebhookSink(url, 5).deliver(gone)
    ConsoleSink().deliver(gone)
    text = "RESOLVED errors  r1 eth0/1 in-errors (site=fra a.b=c)  no rule asks for it any more  since "
    assert capsys.readouterr().out.startswith(text)
    for alert in (came[0][0], came[1]["alerts"][0]):
        assert alert["annotations"].keys() == {"summary", "bound"} and alert["annotations"]["summary"].startswith(text)
        assert 0 <= time.time() - datetime.fromisoformat(alert["endsAt"]).timestamp() < 10


def test_a_sink_that_was_never_there_begins_with_the_last_hour(holder, settings, client, hook):
    url, came, _ = hook
    old = {**NAMES, "rule": "old", "severity": "warning", "since": 0, "time": 0, "value": 1.0, "bound": 0.0, "phase": "firing"}
    client.xadd(keys.alerts_key(1), {"t": json.dumps(old)}, id="1-1")
    holder.raised("firing", "warning")
    console = Sink(client, 0)
    notifier, thread = running(settings, console, WebhookSink(url, 5))
    eventually(lambda: len(console.devices) == 2 and came, 10, "both have what is theirs")
    ended(notifier, thread)
    assert [each["groupLabels"] for each in came] == [{"alertname": "errors"}]


def test_sinks_are_what_the_settings_say():
    told = Settings(alertmanager_url="http://a:9093, https://u:p@b/am/", webhook_url="http://h/x?y=z")
    assert [each.name for each in sinks_of(told)] == ["console", "alertmanager", "alertmanager-2", "webhook"]
    assert [each.name for each in sinks_of(Settings())] == ["console"]


@pytest.mark.parametrize(
    "url",
    ["a:9093", "ftp://a", "http://", "http://a:99999", "http://u:p@a:x", "h/secret", "http://a..b", f"http://{'a' * 64}", "http://a b"],
)
def test_a_url_that_is_none_is_one_line_without_what_may_be_secret(url):
    for setting in ("alertmanager_url", "webhook_url"):
        with pytest.raises(Invalid, match=f"^PIPELINE_{setting.upper()}: it is not like http://HOST:PORT/PATH, and not shown") as told:
            sinks_of(Settings(**{setting: url}))
        assert url not in str(told.value).replace("http://HOST:PORT/PATH", "")


@pytest.mark.parametrize(("name", "value"), [("ALL_PROXY", "socks5://nowhere"), ("ALL_PROXY", "ftp://x"), ("SSL_CERT_FILE", "/nowhere")])
def test_an_environment_that_cannot_be_used_is_one_line(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(Invalid, match=name):
        sinks_of(Settings(webhook_url="https://h/x"))
