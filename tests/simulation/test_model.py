"""Any schedule of crashes, zombies, lost replies and clocks ends as the oracle says. More of them: `make model`."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys

from tests.simulation import machine
from tests.simulation.powercuts import PowerCuts
from tests.simulation.rulechanges import RuleChanges
from tests.simulation.schedules import Chunk, chunk_of, run

SCHEDULES = 100


def test_a_redis_that_loses_its_last_moments_loses_nothing_else():
    """Also where its clock is behind them: ids come a second time then."""
    seed = int(os.environ.get("MODEL_SEED", random.randrange(1 << 30)))
    print(f"MODEL_SEED={seed}")
    machine.faults_seen.clear()
    run(seed, SCHEDULES, PowerCuts)
    assert {"crash", "lost", "refused", "clock", "kill", "power cut"} <= machine.faults_seen.keys(), machine.faults_seen


def test_alerts_make_sense_while_the_rules_change():
    """What stands in Redis is what the worker knows, and what was told of it alternates."""
    seed = int(os.environ.get("MODEL_SEED", random.randrange(1 << 30)))
    print(f"MODEL_SEED={seed}")
    machine.faults_seen.clear()
    run(seed, SCHEDULES, RuleChanges)
    assert {"crash", "lost", "refused", "kill", "rules"} <= machine.faults_seen.keys(), machine.faults_seen


def test_any_schedule_of_faults_ends_as_the_oracle_says():
    """Rows, revisions, anomalies, alerts and books, of workers as they are on stores in memory."""
    seed = int(os.environ.get("MODEL_SEED", random.randrange(1 << 30)))
    print(f"MODEL_SEED={seed}")
    machine.faults_seen.clear()
    run(seed, SCHEDULES)
    assert {"crash", "lost", "refused", "clock", "kill", "series limit"} <= machine.faults_seen.keys(), machine.faults_seen


def test_the_command_says_how_many_ended_as_they_must():
    command = [sys.executable, "-m", "tests.simulation", "--schedules", "3", "--seed", "3", "--jobs", "2"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.search(r"^seed 3: .*\n3 schedules, .*: all ended as they must; .*\d clock", told), told


def test_a_schedule_that_ends_wrong_is_told_with_its_steps(monkeypatch):
    def wrong(self) -> None:
        raise AssertionError("a row too many")

    monkeypatch.setattr(machine.Machine, "_judge", wrong)
    _, _, told = chunk_of(Chunk(3, 1))
    assert "a row too many" in told and "state.teardown()" in told
