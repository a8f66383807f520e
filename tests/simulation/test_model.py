"""Any schedule of crashes, zombies, lost replies and clocks ends as the oracle says. More of them: `make model`."""

from __future__ import annotations

import os
import random

from tests.simulation import machine
from tests.simulation.__main__ import run
from tests.simulation.powercuts import PowerCuts

SCHEDULES = 100


def test_a_redis_that_loses_its_last_moments_loses_nothing_else():
    """Also where its clock is behind them: ids come a second time then."""
    seed = int(os.environ.get("MODEL_SEED", random.randrange(1 << 30)))
    print(f"MODEL_SEED={seed}")
    machine.faults_seen.clear()
    run(seed, SCHEDULES, PowerCuts)
    assert {"crash", "lost", "refused", "clock", "kill", "power cut"} <= machine.faults_seen.keys(), machine.faults_seen


def test_any_schedule_of_faults_ends_as_the_oracle_says():
    """Rows, revisions, anomalies, alerts and books, of workers as they are on stores in memory."""
    seed = int(os.environ.get("MODEL_SEED", random.randrange(1 << 30)))
    print(f"MODEL_SEED={seed}")
    machine.faults_seen.clear()
    run(seed, SCHEDULES)
    assert {"crash", "lost", "refused", "clock", "kill", "series limit"} <= machine.faults_seen.keys(), machine.faults_seen
