"""What a role says of itself, and the small server that says it."""

from __future__ import annotations

import socket
import time

import httpx
import pytest

from api.app import bind
from pipeline import ops
from pipeline.errors import Invalid
from pipeline.health import Health
from pipeline.settings import load


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_role_is_ready_once_it_has_begun_and_while_nothing_fails():
    clock = Clock()
    health = Health(60, clock)
    assert health.why_not_alive() is None and health.why_not_ready() == "it has not begun yet"
    health.failed("reading", "Redis: refused")
    assert health.why_not_ready() == "reading fails for 0 s: Redis: refused"  # that is why it has not
    health.worked("reading")
    health.worked("start")
    assert health.why_not_ready() is None


def test_some_failures_count_only_when_they_last():
    """And from when they began, however often they were tried again meanwhile."""
    clock = Clock()
    health = Health(60, clock)
    health.worked("start")
    for _ in range(9):
        health.failed("committing", "disk full", 10)
        assert health.why_not_ready() is None
        clock.now += 1
        health.moved()
    clock.now += 3
    assert health.why_not_ready() == "committing fails for 12 s: disk full"
    health.at_rest()
    assert health.why_not_ready() is None


def test_a_main_loop_that_stands_still_is_neither_alive_nor_ready():
    clock = Clock()
    health = Health(60, clock)
    health.worked("start")
    clock.now += 61
    assert health.why_not_alive() == health.why_not_ready() == "the main loop has not moved for 61 s"
    health.moved()
    assert health.why_not_alive() is None


@pytest.fixture
def served():
    health = Health(60)
    listener = ops.listener_of(load(), 0)
    port = ops.serve("notifier", health, listener)
    yield health, f"http://127.0.0.1:{port}", port
    listener.close()


def test_it_answers_three_questions_and_no_other(served):
    health, url, _ = served
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    answer = httpx.get(f"{url}/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "not_ready", "reason": "it has not begun yet"})
    health.worked("start")
    assert httpx.get(f"{url}/readyz?full=1").status_code == 200
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4") and "process_cpu_seconds_total" in answer.text
    assert httpx.get(f"{url}/").json()["error"]["code"] == "not_found"
    assert httpx.post(f"{url}/healthz").status_code == 501


def test_connections_are_bounded(served):
    """One more than that is hung up on; when others have gone it is served."""
    _, url, port = served
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(ops.CONNECTIONS_MAX)]
    time.sleep(0.3)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/healthz", timeout=1)
    for each in silent:
        each.close()
    time.sleep(0.3)
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_port_that_is_taken_is_told_with_the_remedy(served):
    with pytest.raises(Invalid, match=r"cannot listen on 127\.0\.0\.1:\d+: .*; choose another PIPELINE_METRICS_PORT"):
        ops.listener_of(load(), served[2])


@pytest.mark.parametrize(
    ("host", "why"),
    [("[::1]", "Name or service not known"), ("203.0.113.7", "Cannot assign requested address"), ("\udcff", "encoding of hostname failed")],
)
def test_a_host_that_is_not_this_machines_is_told_as_such(host, why):
    """No other port would help; the API and the other roles say it alike."""
    shown = "\\udcff" if host == "\udcff" else host
    for listen, name in ((bind, "API"), (ops.listener_of, "METRICS")):
        with pytest.raises(Invalid) as told:
            listen(load(api_host=host, api_port=0, metrics_host=host, metrics_port=0))
        remedy = f"PIPELINE_{name}_HOST must be an address (without brackets) or a name of this machine"
        assert str(told.value) == f"cannot listen on {shown}:0: {why}; {remedy}"


def test_without_a_port_there_is_no_server(monkeypatch):
    monkeypatch.delenv("PIPELINE_METRICS_PORT", raising=False)
    assert ops.listener_of(load()) is None
