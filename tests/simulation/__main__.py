"""`python -m tests.simulation`: so many schedules of faults, in the order of a seed. Exit code 1: one of them ended wrong."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import traceback

os.environ.setdefault("POLARS_MAX_THREADS", "1")

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation import machine
from tests.simulation.powercuts import PowerCuts

STEPS = 30
CHUNK = 100  # schedules between two lines of progress


def main() -> int:
    """Run the machine, a chunk of schedules at a time, each from its own seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seed", type=int, help="of the schedules (default: any, printed)")
    parser.add_argument("--power-cuts", action="store_true", help="on a Redis that loses its last moments, with a clock that may be behind")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    print(f"seed {seed}: {options.schedules:,} schedules of up to {STEPS} steps", flush=True)
    began, done, flags = time.monotonic(), 0, "--power-cuts " if options.power_cuts else ""
    while done < options.schedules:
        chunk = min(CHUNK, options.schedules - done)
        try:
            run(seed + done, chunk, PowerCuts if options.power_cuts else machine.Machine)
        except Exception as error:
            traceback.print_exception(error)  # with the steps that led there
            print(f"FAILED after schedule {done:,}: replay with {flags}--seed {seed + done} --schedules {chunk}", flush=True)
            return 1
        done += chunk
        faults = ", ".join(f"{count:,} {name}" for name, count in sorted(machine.faults_seen.items()))
        print(f"{done:,} schedules, {done / (time.monotonic() - began):.1f} a second: all ended as they must; {faults}", flush=True)
    return 0


def run(seed: int, schedules: int, kind: type[machine.Machine] = machine.Machine) -> None:
    """So many schedules from a seed. Any error: one of them ended wrong, and the falsifying steps are printed."""
    chosen = settings(
        max_examples=schedules, stateful_step_count=STEPS, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    run_state_machine_as_test(seeded(seed)(type("Schedules", (kind,), {})), settings=chosen)


if __name__ == "__main__":
    sys.exit(main())
