"""Strangers at every door for a minute in all. `python -m tests.fuzz` does the same for as long as one likes.

The seed is random and printed; FUZZ_SEED tries one again, FUZZ_SECONDS says for how long.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.fuzz.__main__ import DOORS, SHARES
from tests.fuzz.door import Evidence
from tests.fuzz.ground import Ground
from tests.fuzz.run import storm

SECONDS = float(os.environ.get("FUZZ_SECONDS", "28"))  # of strangers; what follows to see what became of it takes its own time
SEED = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(2**32)))


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("fuzz")).running() as running:
        yield running


@pytest.mark.parametrize("name", DOORS)
def test_no_stranger_does_harm(name, ground, tmp_path_factory, capsys):
    """What is wrong is refused with a reason, nothing dies or swells, and the good neighbour's events are there exactly once."""
    evidence = Evidence(tmp_path_factory.getbasetemp() / "fuzz-evidence", SEED)
    seconds = SECONDS * SHARES[name] / sum(SHARES.values())
    with capsys.disabled():
        print(f" [fuzz {name}, seed {SEED}]", end="", flush=True)
    tally = storm(DOORS[name](ground), SEED, seconds, evidence, print, ground)
    assert tally.violations == [], f"seed {SEED}: python -m tests.fuzz --seed {SEED} --replay DOOR:NUMBER"
    assert tally.tried and tally.neighbours_sent


@pytest.mark.parametrize("name", DOORS)
def test_an_input_is_a_pure_function_of_seed_and_number(name, ground):
    """Else nothing that was found could be tried again."""
    one, other = DOORS[name](ground), DOORS[name](ground)
    shown = [one.show(7, number) for number in range(20)]
    assert shown == [other.show(7, number) for number in reversed(range(20))][::-1]
    assert name == "openapi" or len({content for _, content in shown}) > 5
