"""One door after the other for so long, with a good neighbour beside, and what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.door import Door, Evidence, Tally
from tests.fuzz.ground import GROWTH_MB_MAX, PEAK_MB_MAX, Ground

SHOWN_MAX = 20  # violations of one door, after which it is enough
Say = Callable[[str], None]


def storm(door: Door, seed: int, seconds: float, evidence: Evidence, say: Say, ground: Ground | None = None, inputs: int = 10**9) -> Tally:
    """Try inputs 0, 1, 2, ... of a door for so long."""
    tally, lock, numbers = Tally(door.name), threading.Lock(), iter(range(inputs))
    began = time.monotonic()
    deadline = began + seconds

    def found(number: int, kind: str, what: str) -> None:
        place = evidence.keep(door, number)
        with lock:
            tally.violations.append(f"{door.name}:{number} ({kind}): {what} -> {place}")
        say(f"  VIOLATION {door.name}:{number} ({kind}): {what[:400]} -> {place}")

    def worker() -> None:
        while time.monotonic() < deadline and len(tally.violations) < SHOWN_MAX:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            at = time.monotonic()
            verdict = door.attempt(seed, number)
            took = time.monotonic() - at
            kind = door.show(seed, number)[0] if verdict.wrong or took > tally.slowest[0] else ""
            with lock:
                tally.slowest = max(tally.slowest, (took, f"{door.name}:{number} ({kind})"))
                tally.tried += 1
                tally.answers[verdict.answer] += 1
            if verdict.wrong:
                found(number, kind, verdict.wrong)
            if ground is not None and (dead := ground.dead()):
                with lock:
                    if not ground.dead():  # another client has seen to it
                        continue
                    tally.crashes += len(dead)
                    ground.revive()
                found(number, door.show(seed, number)[0], "; ".join(dead))

    def progress() -> None:
        while not done.wait(10):
            say(f"  {door.name}: {tally.tried} tried, {len(tally.violations)} violations")

    done = threading.Event()
    teller = threading.Thread(target=progress, daemon=True)
    teller.start()
    neighbour = ground.neighbour() if ground is not None else None
    before = ground.memory_mb() if ground is not None else {}
    if neighbour is not None:
        neighbour.start()
    try:
        with ThreadPoolExecutor(door.threads) as pool:
            for future in [pool.submit(worker) for _ in range(door.threads)]:
                future.result()
    finally:
        done.set()
        if neighbour is not None:
            neighbour.stop()
    if ground is not None and neighbour is not None:
        tally.neighbours_lost = ground.settled(neighbour)
        tally.neighbours_sent = neighbour.sent
        tally.violations += [f"{door.name}: {each}" for each in _of_ground(ground, neighbour, tally, before)]
    tally.violations += [f"{door.name}: {each}" for each in door.finish()]
    tally.seconds = time.monotonic() - began
    return tally


def _of_ground(ground: Ground, neighbour, tally: Tally, before: dict[str, int]) -> list[str]:
    after = ground.memory_mb()
    tally.memory_mb = {name: (before.get(name, 0), after.get(name, 0)) for name in after}
    wrong = neighbour.wrong[:3] + ground.said()
    if tally.neighbours_lost:
        wrong.append(f"{tally.neighbours_lost} of {neighbour.sent} good events are not in the aggregates exactly once")
    if neighbour.slowest_seconds > neighbour.LATENCY_SECONDS_MAX:
        wrong.append(f"a good neighbour waited {neighbour.slowest_seconds:.1f} s")
    for name, (first, last) in tally.memory_mb.items():
        if last - first > GROWTH_MB_MAX[name]:
            wrong.append(f"{name} grew from {first} to {last} MB; {GROWTH_MB_MAX[name]} MB more are allowed")
    for name, peak in ground.peaks_mb().items():
        if peak > PEAK_MB_MAX[name]:
            wrong.append(f"{name} once took {peak} MB; {PEAK_MB_MAX[name]} are allowed")
    return wrong
