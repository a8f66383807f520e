"""A whole pipeline, asked from outside: readiness tells the truth, numbers move as they should, logs can be read by a machine."""

from __future__ import annotations

import json
import subprocess
import threading
import time

import httpx
import pytest

from pipeline.books import Ledger
from tests.harness import Stack, eventually, free_port
from tests.promtool import promtool

ROLES = {"worker": "worker", "notify": "notifier", "maintain": "maintenance"}


class Seen(Stack):
    """With a metrics port for each role."""

    ports: dict[str, int]

    def start_all(self) -> None:
        self.ports = {command: free_port() for command in ROLES}
        for command, port in self.ports.items():
            self.others.append(self.spawn(command, "--log-format", "json", PIPELINE_METRICS_PORT=str(port)))
        self.start_api()
        self.wait_ready()
        for command in ROLES:
            eventually(lambda command=command: self.ask(command) == (200, ""), 20, f"{command} is ready")

    def ask(self, command: str, path: str = "readyz") -> tuple[int, str]:
        """Status and reason of a role."""
        port = self.port if command == "ingest" else self.ports[command]
        answer = httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=8)
        return answer.status_code, answer.json().get("reason", "")

    def numbers(self, command: str) -> dict[str, float]:
        port = self.port if command == "ingest" else self.ports[command]
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=8).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    settings = {
        "PIPELINE_WINDOW_SECONDS": "2", "PIPELINE_DISORDER_SECONDS": "1", "PIPELINE_IDLE_AFTER_SECONDS": "3",
        "PIPELINE_TICK_INTERVAL_SECONDS": "1", "PIPELINE_COMPACT_INTERVAL_SECONDS": "1", "PIPELINE_BOOKS_INTERVAL_SECONDS": "1",
        "PIPELINE_COMPACT_FILES_MIN": "2", "PIPELINE_DEVICE_SERIES_MAX": "300",
    }  # fmt: skip
    with Seen(tmp_path_factory.mktemp("seen"), fsync="everysec", **settings) as running:
        running.start_all()
        yield running


def test_numbers_follow_events_from_the_post_to_the_table(seen):
    now = time.time() * 1000
    good = [{"device": f"r{i}", "metric": "oper-status", "value": i % 2, "timestamp": now} for i in range(50)]
    assert seen.post([*good, {"device": "", "metric": "x", "value": 1}]).status_code == 202
    assert seen.post([{"device": "r0", "metric": "oper-status", "value": 1, "timestamp": now - 60_000}]).status_code == 202

    def told() -> bool:
        numbers = seen.numbers("maintain")
        return numbers.get("pipeline_books_aggregated_events", 0) == 50 and numbers["pipeline_lake_rows" + '{table="aggregates"}'] > 50

    eventually(told, 30, "the leader tells of them")
    api, worker, leader = (seen.numbers(command) for command in ("ingest", "worker", "maintain"))
    assert api["pipeline_events_accepted_total"] == 51 and api['pipeline_events_rejected_total{reason="missing"}'] == 1
    assert worker["pipeline_events_applied_total"] == 51 and worker["pipeline_windows_closed_total"] == 50
    assert worker["pipeline_events_late_total"] == 1 and worker['pipeline_dead_letters_total{reason="missing"}'] == 1
    assert worker['pipeline_rows_committed_total{table="aggregates"}'] == 51
    assert worker['pipeline_rows_committed_total{table="dead_letters"}'] == worker['pipeline_rows_committed_total{table="late"}'] == 1
    assert worker['pipeline_commit_duration_seconds_count{table="aggregates"}'] >= 1
    assert worker["pipeline_recovery_duration_seconds_count"] >= 1 and worker["pipeline_step_duration_seconds_count"] >= 1
    fired = worker['pipeline_alert_transitions_total{phase="firing",severity="critical"}']
    assert fired >= 25  # `link-down` of the default rules
    eventually(lambda: seen.numbers("notify").get('pipeline_notifications_delivered_total{sink="console"}', 0) >= fired, 10, "delivered")
    held = "pipeline_partitions_held"
    eventually(lambda: seen.numbers("worker")[held] == 16, 10, "the worker's gauges")
    worker = seen.numbers("worker")
    assert sum(name.startswith("pipeline_read_lag_seconds") for name in worker) == 16
    eventually(lambda: seen.numbers("worker")["pipeline_devices_silent"] == 50, 15, "all are silent")
    assert worker["pipeline_series_known"] == 50 and worker["pipeline_rules_version"] == 1
    assert leader["pipeline_leader"] == 1 and leader["pipeline_workers_live"] == 1 and leader["pipeline_partitions_unheld"] == 0
    assert leader["pipeline_books_accepted_events"] == 52 and leader["pipeline_books_imbalance_events"] == 0
    assert leader["pipeline_books_late_events"] == 1 and leader["pipeline_books_dead_lettered_events"] == 1
    assert leader["pipeline_redis_memory_used_bytes"] > 1e5
    assert all(numbers["process_resident_memory_bytes"] > 1e6 for numbers in (api, worker, leader))


def test_a_device_that_invents_series_is_named_and_the_books_balance(seen):
    """Its events beyond the limit are dead letters of their own reason; status says who it is; others go on."""
    before = seen.numbers("worker")['pipeline_dead_letters_total{reason="series_limit"}']  # from 0 on, for who asks for its rate
    for start in (0, 200):
        events = [{"device": "inventor", "interface": f"eth{n}", "metric": "x", "value": 1} for n in range(start, start + 200)]
        assert seen.post([*events, {"device": "calm", "metric": "x", "value": start}]).status_code == 202
    eventually(lambda: seen.numbers("worker").get('pipeline_dead_letters_total{reason="series_limit"}', 0) == before + 100, 20, "set aside")
    eventually(lambda: seen.numbers("worker")["pipeline_device_series_share"] == 1, 15, "the fullest device is full")
    assert 0 < seen.numbers("worker")["pipeline_partition_series_share"] < 0.1
    (worker,) = httpx.get(f"http://127.0.0.1:{seen.port}/v1/status").json()["workers"].values()
    assert worker["fullest"]["device"] == "inventor" and worker["fullest"]["device_share"] == 1
    eventually(lambda: seen.books()["balanced"] and not seen.books()["in_flight"], 30, "the books balance")


def test_what_is_shown_passes_prometheus_own_check(seen):
    tool = promtool()
    for port in (seen.port, *seen.ports.values()):
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_books_balance_while_events_flow(seen):
    """Also between a commit and what is acknowledged by it; and what is missing is found."""
    stop, sent = threading.Event(), 0

    def post() -> None:
        nonlocal sent
        while not stop.is_set():
            events = [{"device": f"m{i}", "metric": "x", "value": sent + i} for i in range(200)]
            assert seen.post(events).status_code == 202
            sent += 1

    poster = threading.Thread(target=post)
    poster.start()
    try:
        ledger, found = Ledger(seen.client, seen.lake(), seen.semantics, seen.settings.partitions), []
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            found.append(ledger.look())
    finally:
        stop.set()
        poster.join()
    told = [books for books in found if books is not None]
    assert len(told) >= 5 and sent > 20
    assert [books["imbalance"] for books in told] == [0] * len(told)
    assert told[-1]["accepted"] > told[0]["accepted"] and any(books["in_flight"] for books in told)
    seen.client.hincrby("books:{3}", "accepted", 5)
    try:
        eventually(lambda: ledger.look()["imbalance"] == 5, 10, "it is found")  # a partition that just moved keeps its figures
    finally:
        seen.client.hincrby("books:{3}", "accepted", -5)


def test_a_lake_that_takes_no_commit_is_told_by_those_who_write(seen):
    """After some patience, and with the reason; the API goes on taking events. When it is back, all are ready again."""
    lake = seen.folder / "data" / "lake"
    lake.rename(lake.with_name("lake.away"))
    lake.touch()  # else the next commit would make the folder anew
    try:
        seen.post([{"device": f"r{i}", "metric": "x", "value": 1} for i in range(50)])
        eventually(lambda: seen.ask("worker")[0] == 503, 40, "the worker is not ready")
        assert "committing fails for 1" in seen.ask("worker")[1]
        eventually(lambda: seen.ask("maintain")[0] == 503, 20, "the housekeeping is not ready")
        assert seen.ask("ingest") == (200, "") == seen.ask("notify")
        assert seen.ask("worker", "healthz")[0] == 200  # to start it again would not help
        assert any("pipeline_commit_failures_total" in name for name in seen.numbers("worker"))
    finally:
        lake.unlink()
        lake.with_name("lake.away").rename(lake)
    for command in ("worker", "maintain"):
        eventually(lambda command=command: seen.ask(command)[0] == 200, 30, f"{command} is ready again")
    failures = [name for name in seen.numbers("maintain") if name.startswith("pipeline_housekeeping_failures_total")]
    assert failures


def test_a_redis_that_is_full_is_told_by_the_api(seen):
    client = seen.client
    client.config_set("maxmemory", "1mb")
    try:
        status, reason = seen.ask("ingest")
        assert status == 503 and reason == "Redis cannot be used now"
    finally:
        client.config_set("maxmemory", "0")
    assert seen.ask("ingest")[0] == 200


def test_a_redis_that_is_away_is_told_by_each_role(seen):
    seen.kill_redis()
    for command in (*ROLES, "ingest"):
        eventually(lambda command=command: seen.ask(command)[0] == 503, 20, f"{command} is not ready")
        assert "Redis" in seen.ask(command)[1]
        assert seen.ask(command, "healthz")[0] == 200
    # Of a device that has sent nothing yet: the commit that stood still for long may have others wait, and they are told 429.
    answer = seen.post([{"device": "first-seen", "metric": "x", "value": 1}], **{"X-Request-Id": "lost-1"})
    assert answer.status_code == 503 and answer.json()["error"]["request_id"] == "lost-1", answer.text
    seen.start_redis()
    for command in (*ROLES, "ingest"):
        eventually(lambda command=command: seen.ask(command)[0] == 200, 30, f"{command} is ready again")


def test_every_line_of_every_role_is_an_object(seen):
    """The last of these tests: a whole life, with failures, lies in these logs."""
    for command, role in ROLES.items():
        [path] = (seen.folder / "logs").glob(f"*-{command}.log")
        lines = path.read_text().splitlines()
        if role == "notifier":  # what it delivers to the console are alerts for people
            lines = [line for line in lines if line.startswith('{"time"')]
        told = [json.loads(line) for line in lines]
        assert told and all(list(each)[:4] == ["time", "level", "role", "event"] and each["role"] == role for each in told)
        assert any(each["level"] == "warning" for each in told)
        if role == "worker":
            assert any(each.get("partitions") for each in told) and told[-1]["rules_version"] == 1
