"""`python -m benchmarks`: measures, checks the results against the right answer, and writes results.json and results.png."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import cost, delays, report, series


def main() -> None:
    """Run what was asked for, one after the other."""
    measures = {
        "w1": lambda say: cost.w1(options.repeats, say),
        "small_requests": lambda say: cost.small_requests(options.repeats, say),
        "half_load": lambda say: delays.half_load(options.load or _capacity(results, say), say),
        "recovery": delays.recovery,
        "backlog": lambda say: delays.backlog(options.repeats, say),
        "scaling": lambda say: cost.scaling(min(options.repeats, 3), say),
        "queries": delays.queries,
        "series": lambda say: series.memory(1, say),
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("measures", nargs="*", help=f"which of {', '.join(measures)}; default all")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, the median counts (5)")
    parser.add_argument("--load", type=float, help="events/s that count as full load; default: what w1 took")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of results.json and results.png")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, nothing else")
    options = parser.parse_args()
    if unknown := set(options.measures) - set(measures):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    results: dict = {}
    for name in options.measures or measures:
        results[name] = measures[name](lambda text, name=name: print(f"{name:>15}  {text}", file=sys.stderr, flush=True))
    if options.json:
        print(json.dumps(results))
    else:
        report.write(results, options.out)


def _capacity(results: dict, say) -> float:
    """What the system takes at most, in events/s."""
    return (results.get("w1") or cost.w1(1, say))["json"]["events_per_second"]


if __name__ == "__main__":
    main()
