"""`python -m tests.fuzz`: the seed, progress, a table by door; exit code 1 where anything is wrong."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from tests.fuzz.bodies import Bodies
from tests.fuzz.commands import Commands
from tests.fuzz.documents import Documents
from tests.fuzz.door import Evidence, Tally, table
from tests.fuzz.entries import Entries
from tests.fuzz.environment import Environment
from tests.fuzz.ground import Ground
from tests.fuzz.lakes import Lakes
from tests.fuzz.openapi import OpenApi
from tests.fuzz.run import storm

# Which doors there are, and their shares of the time.
DOORS = {
    "bodies": Bodies,
    "entries": Entries,
    "rules": Documents,
    "openapi": OpenApi,
    "settings": Environment,
    "commands": Commands,
    "lake": Lakes,
}
SHARES = {"bodies": 8, "entries": 3, "rules": 2, "openapi": 1, "settings": 1, "commands": 2, "lake": 3}


def main() -> int:
    """Run the doors that are asked for."""
    args = _parser().parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**32)

    def say(line: str) -> None:
        print(line, file=sys.stderr if args.json else sys.stdout, flush=True)

    say(f"seed {seed}")
    evidence = Evidence(args.evidence, seed)
    doors = args.door or list(SHARES)
    inputs = 10**9
    replayed = None
    if args.replay:
        name, _, number = args.replay.partition(":")
        doors, replayed = [name], int(number)
    whole = sum(SHARES[name] for name in doors)
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, Ground(Path(folder) / "ground").running() as ground:
        for name in doors:
            door = DOORS[name](ground)
            if replayed is not None:
                return _replay(door, seed, replayed, ground, say)
            seconds = args.minutes * 60 * SHARES[name] / whole
            say(f"{name}: {seconds:.0f} s")
            tallies.append(storm(door, seed, seconds, evidence, say, ground, inputs))
    return _report(tallies, seed, args.json, say)


def _replay(door, seed: int, number: int, ground: Ground, say) -> int:
    kind, content = door.show(seed, number)
    say(f"{door.name}:{number} of seed {seed} is {kind}, {len(content)} bytes: {content[:400]!r}")
    verdict = door.attempt(seed, number)
    wrong = [*([verdict.wrong] if verdict.wrong else []), *ground.dead(), *ground.said()]
    say(f"answered {verdict.answer}; {'; '.join(wrong) or 'nothing wrong'}")
    return 1 if wrong else 0


def _report(tallies: list[Tally], seed: int, as_json: bool, say) -> int:
    violations = [each for tally in tallies for each in tally.violations]
    say(table(tallies))
    for each in violations:
        say(f"VIOLATION {each}")
    say(f"seed {seed}: {sum(tally.tried for tally in tallies)} inputs, {len(violations)} violations")
    if as_json:
        print(json.dumps({"seed": seed, "doors": [tally.told() for tally in tallies], "ok": not violations}))
    return 1 if violations else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="in total, shared by the doors (default %(default)s)")
    parser.add_argument("--seed", type=int, help="default: a random one, which is printed")
    parser.add_argument("--door", action="append", choices=list(SHARES), help="only this one; may be repeated")
    parser.add_argument("--replay", metavar="DOOR:NUMBER", help="try one input alone")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on stdout; the rest goes to stderr")
    parser.add_argument(
        "--evidence", type=Path, default=Path("fuzz-evidence"), help="where inputs that do harm are saved (default %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
