"""Any schedule of crashes, zombies, lost replies and clocks ends as the oracle says. More of them: `make model`."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys

import pytest

from tests.simulation import machine
from tests.simulation.schedules import Chunk, chunk_of

SCHEDULES = 100


def command(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tests.simulation", *flags], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("flags", "faults"),
    [
        ([], ["clock", "crash", "kill", "lost", "refused", "series limit"]),
        (["--power-cuts"], ["clock", "crash", "kill", "lost", "power cut", "refused"]),
        (["--rule-changes"], ["crash", "kill", "lost", "refused", "rules"]),
    ],
)
def test_any_schedule_of_faults_ends_as_it_must(flags, faults):
    """Rows, revisions, anomalies, alerts and books, of workers as they are on stores in memory; on a Redis that loses its last moments,
    and while the rules change."""
    ran = command("--schedules", str(SCHEDULES), "--seed", os.environ.get("MODEL_SEED", str(random.randrange(1 << 30))), *flags)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    last = ran.stdout.splitlines()[-1]
    assert last.startswith(f"{SCHEDULES} schedules, ") and all(re.search(rf"[1-9][\d,]* {fault}\b", last) for fault in faults), ran.stdout


def test_the_command_says_how_many_ended_as_they_must():
    told = command("--schedules", "3", "--seed", "3", "--jobs", "2").stdout
    assert re.search(r"^seed 3: .*\n3 schedules, .*: all ended as they must; .*\d clock", told), told


def test_a_schedule_that_ends_wrong_is_told_with_its_steps(monkeypatch):
    def wrong(self) -> None:
        raise AssertionError("a row too many")

    monkeypatch.setattr(machine.Machine, "_judge", wrong)
    _, _, told = chunk_of(Chunk(3, 1))
    assert "a row too many" in told and "state.teardown()" in told
