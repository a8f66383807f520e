"""Schedules of faults from a seed, and what came of them."""

from __future__ import annotations

import traceback
from collections import Counter
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation import machine
from tests.simulation.powercuts import PowerCuts
from tests.simulation.rulechanges import RuleChanges

STEPS = 30
MACHINES = {"faults": machine.Machine, "power-cuts": PowerCuts, "rule-changes": RuleChanges}


def run(seed: int, schedules: int, kind: type[machine.Machine] = machine.Machine) -> None:
    """So many schedules from a seed. Any error: one of them ended wrong, and the falsifying steps are printed."""
    chosen = settings(
        max_examples=schedules, stateful_step_count=STEPS, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    run_state_machine_as_test(seeded(seed)(type("Schedules", (kind,), {})), settings=chosen)


class Chunk(NamedTuple):
    """So many schedules of one of the MACHINES, from a seed of their own."""

    seed: int
    schedules: int
    machine: str = "faults"


def chunk_of(chunk: Chunk) -> tuple[Chunk, Counter[str], str]:
    """(the chunk, faults that landed in it, what went wrong and the steps that led there: empty if nothing did)."""
    machine.faults_seen.clear()
    try:
        run(chunk.seed, chunk.schedules, MACHINES[chunk.machine])
    except Exception as error:
        return chunk, Counter(), "".join(traceback.format_exception(error))
    return chunk, Counter(machine.faults_seen), ""
