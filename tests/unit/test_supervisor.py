"""What the supervisor does with a role that dies, without any process."""

import io
import os
import subprocess

import pytest

from pipeline.errors import Invalid, Unavailable
from pipeline.settings import Settings
from pipeline.supervisor import RESTART_SECONDS_MAX, Process, Supervisor
from tests.harness import free_port


class Dead:
    """Of a process: how it ended."""

    def __init__(self, code: int) -> None:
        self._code = code

    def poll(self) -> int:
        return self._code


def supervisor(**settings) -> Supervisor:
    return Supervisor(Settings(**settings), without=set(), workers=1, simulate=[], as_json=False, duration_seconds=None)


def died(code: int, failures: int) -> tuple[float, str]:
    """After how many seconds it is started again, and what is told."""
    over = supervisor()
    told: list[str] = []
    over.say = lambda role, text, level="info": told.append(text)
    process = Process("worker", [], {}, process=Dead(code), failures=failures)
    over._restart_if_dead(process, 100.0)
    return process.retry_at - 100, told[0]


@pytest.mark.parametrize("failures", [10, 1023, 1024, 10**9])
def test_a_role_that_dies_again_and_again_is_started_again_for_ever(failures):
    assert died(2, failures)[0] == RESTART_SECONDS_MAX


@pytest.mark.parametrize(("code", "how"), [(2, "exit code 2"), (-9, "killed by SIGKILL"), (-35, "killed by signal 35")])
def test_it_is_told_how_a_role_died(code, how):
    assert died(code, 0) == (pytest.approx(0.2), f"worker died ({how}); starting it again in 0.2 s")


def test_a_simulator_that_has_ended_is_left_alone():
    """With exit code 0 it has done what it was asked to; it is told once. With another, or as another role, it died."""
    over = supervisor()
    told: list[str] = []
    over.say = lambda role, text, level="info": told.append(text)
    process = Process("simulator", [], {}, process=Dead(0))
    for now in (100.0, 200.0):
        over._restart_if_dead(process, now)
    assert told == ["the simulator has ended by itself; all others go on"] and process.process is not None
    over._restart_if_dead(Process("simulator", [], {}, process=Dead(2)), 100.0)
    over._restart_if_dead(Process("worker", [], {}, process=Dead(0)), 100.0)
    assert [text.split(";")[0] for text in told[1:]] == ["simulator died (exit code 2)", "worker died (exit code 0)"]


def test_metrics_ports_beyond_the_last_are_said_before_any_is_taken():
    over = supervisor(metrics_port=65_534)
    over._processes = [Process(role, [], {}) for role in ("worker", "maintenance", "notifier", "ingest")]
    with pytest.raises(Invalid, match=r"^PIPELINE_METRICS_PORT=65534: 3 roles have a port each from there on: must be at most 65533$"):
        over._listen(8000)
    assert all(process.metrics is None for process in over._processes)


def test_a_redis_that_is_away_at_the_end_is_one_line():
    over = supervisor(redis_url=f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match=r"^Redis: Error 111 connecting"):
        over._drain()


class Stuck:
    """Of a process: it does not end."""

    def __init__(self) -> None:
        self.waited: list[float | None] = []

    def poll(self) -> None:
        return None

    def send_signal(self, number: int) -> None:
        """Nothing comes of it."""

    def kill(self) -> None:
        """At last."""

    def wait(self, timeout: float | None = None) -> None:
        self.waited.append(timeout)
        if timeout is not None:
            raise subprocess.TimeoutExpired("role", timeout)


@pytest.mark.parametrize(
    ("settings", "seconds"), [({}, 40), ({"shutdown_timeout_seconds": 100}, 110), ({"ingest_stop_seconds": 200}, 210),
                              ({"shutdown_timeout_seconds": 1, "ingest_stop_seconds": 1}, 40)],
)  # fmt: skip
def test_a_role_is_killed_only_after_its_own_patience(settings, seconds):
    """It waits for its commit, or for requests, as long as it was told to."""
    over, stuck = supervisor(**settings), Stuck()
    over.say = lambda role, text, level="info": None
    over._processes = [Process("worker", [], {}, process=stuck)]
    over._stop_role("worker")
    assert stuck.waited == [pytest.approx(seconds, abs=1), None]


def test_a_full_disk_under_its_output_costs_lines_and_nothing_else():
    """Threads that pass on what the roles say must not end: a role whose lines nobody takes stands still."""
    over = supervisor()
    over._out = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    for _ in range(10_000):
        over.say("worker", "a line that is long enough to fill what is buffered")
    assert not over._stopping.is_set()
    with pytest.raises(OSError, match="No space left"):
        over._out.close()


def test_it_stops_in_order_where_nobody_reads_what_it_says_any_more():
    class Unread(io.StringIO):
        """As a pipe is whose other end was closed."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.fileno = lambda: number

        def write(self, text: str) -> int:
            raise BrokenPipeError

    over, number = supervisor(), os.open(os.devnull, os.O_WRONLY)
    over._out = Unread(number)
    over.say("up", "hello")
    assert over._stopping.is_set()
    over.say("up", "stopping")
    os.close(number)
