"""Any schedule of crashes, zombies, lost replies and clocks ends as the oracle says. More of them: `make model`."""

from __future__ import annotations

import os
import random

from tests.simulation import machine
from tests.simulation.__main__ import run

SCHEDULES = 100


def test_any_schedule_of_faults_ends_as_the_oracle_says():
    """Rows, revisions, anomalies, alerts and books, of workers as they are on stores in memory."""
    seed = int(os.environ.get("MODEL_SEED", random.randrange(1 << 30)))
    print(f"MODEL_SEED={seed}")
    machine.faults_seen.clear()
    run(seed, SCHEDULES)
    assert {"crash", "lost", "refused", "clock", "kill", "series limit"} <= machine.faults_seen.keys(), machine.faults_seen
