"""`python -m tests.simulation`: so many schedules of faults, in the order of a seed. Exit code 1: one of them ended wrong."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections import Counter

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # of every process: its frames have a few rows

from tests.simulation.schedules import STEPS, Chunk, chunk_of

CHUNK = 50  # schedules from one seed, between two lines of progress


def main() -> int:
    """Run the machine, a chunk of schedules at a time in as many processes as there are cores, each chunk from its own seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seed", type=int, help="of the schedules (default: any, printed)")
    kinds = parser.add_mutually_exclusive_group()
    for name, told in (("power-cuts", "on a Redis that loses its last moments, with a clock that may be behind"),
                       ("rule-changes", "while new versions of the rules come")):  # fmt: skip
        kinds.add_argument(f"--{name}", dest="machine", action="store_const", const=name, default="faults", help=told)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one per core); the schedules are the same")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    print(f"seed {seed}: {options.schedules:,} schedules of up to {STEPS} steps", flush=True)
    began, done, faults, flags = time.monotonic(), 0, Counter(), "" if options.machine == "faults" else f"--{options.machine} "
    firsts = range(0, options.schedules, CHUNK)
    chunks = [Chunk(seed + first, min(CHUNK, options.schedules - first), options.machine) for first in firsts]
    # Spawned, not forked: Polars' threads do not come along in a fork. Where one ends wrong, the others are ended with it.
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for chunk, seen, wrong in pool.imap_unordered(chunk_of, chunks):
            if wrong:
                print(f"{wrong}\nFAILED: replay with {flags}--seed {chunk.seed} --schedules {chunk.schedules}", flush=True)
                return 1
            done, faults = done + chunk.schedules, faults + seen
            named = ", ".join(f"{times:,} {name}" for name, times in sorted(faults.items()))
            print(f"{done:,} schedules, {done / (time.monotonic() - began):.1f} a second: all ended as they must; {named}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
