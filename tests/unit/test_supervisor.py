"""What the supervisor does with a role that dies, without any process."""

import os

import pytest

from pipeline.settings import Settings
from pipeline.supervisor import RESTART_SECONDS_MAX, Process, Supervisor


class Dead:
    """Of a process: how it ended."""

    def __init__(self, code: int) -> None:
        self._code = code

    def poll(self) -> int:
        return self._code


def supervisor() -> Supervisor:
    return Supervisor(Settings(), without=set(), workers=1, simulate=[], as_json=False, duration_seconds=None)


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
    over = supervisor()
    reader, writer = os.pipe()
    os.close(reader)
    over._out = os.fdopen(writer, "w")
    over.say("up", "hello")
    assert over._stopping.is_set()
    over.say("up", "stopping")
    over._out.close()
