"""The worker itself where a limit on series is met: another limit at a hand-over, and names that are invented without end."""

from __future__ import annotations

import json
import subprocess
import sys

import polars as pl
import pytest

from pipeline.core.recovery import Stand
from tests.simulation.machine import payload_of_rows
from tests.simulation.world import World


@pytest.mark.parametrize(("first", "then", "refused"), [(2, 9, 1), (9, 1, 0)])
def test_another_limit_at_a_hand_over_judges_nothing_twice(first, then, refused):
    """Dead letters are committed and the windows of their entry are open: the next worker goes by them, not by its own limit."""
    world = World()
    worker = world.worker(first)
    world.turn(worker)
    world.send([("a", "x", 1), ("a", "y", 2), ("b", "x", 3)])
    if not refused:
        world.redis.append(0, payload_of_rows([("a", "x", world.redis.now_ms // 1000 - 3600, 1)]), 1)  # a dead letter of another reason
    world.turn(worker)
    world.leave(worker)
    stands = world.tables.stands
    assert stands[("dead_letters", 0)].position > stands.get(("aggregates", 0), Stand()).position

    second = world.worker(then)
    world.turn(second)
    world.close_windows(second)
    world.leave(second)
    rows, dead = world.tables.table("aggregates"), world.tables.table("dead_letters")
    assert rows["count"].sum() == 3 - refused and dead.filter(pl.col("reason") == "series_limit").height == refused
    counts = world.counts()
    assert counts["aggregated"] + counts["dead_lettered"] == world.redis.accepted[0]


FLOOD = 40, 500  # entries, and names that each invents


def test_invented_names_do_not_stay():
    """In a process of its own: there must be no frame but the worker's. Known series go on as if nothing was."""
    done = subprocess.run([sys.executable, "-m", "tests.simulation.test_series_limit"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    entries, invented = FLOOD
    assert told["names"] < 4000 < entries * invented
    assert told["good"] == entries and told["series"] == 101
    assert told["dead"] == entries * invented - 99 and told["lost"] == 0


def flood():
    """Tell what a flood of names leaves behind in a worker."""
    from pipeline import names

    names.SPARE_MAX = 1000
    world = World()
    worker = world.worker(101)
    world.turn(worker)
    world.send([("good", "x", 3), ("good", "y", 3)])  # a value that raises no alert
    entries, invented = FLOOD
    most = 0
    for n in range(entries):
        world.send([*(("bad", f"m{n}-{k}", 3) for k in range(invented)), ("good", "x", 3)])
        world.turn(worker, 1)
        world.hold_no_names()
        most = max(most, names.held())
    for _ in range(40):  # no jump: a worker that lost its lease would read the lake
        world.turn(worker, 1)
    series = worker._state.series.height
    world.leave(worker)
    rows, dead = world.tables.rows["aggregates"], world.tables.rows["dead_letters"]
    of_good = (pl.col("device").cast(pl.String) == "good") & (pl.col("metric").cast(pl.String) == "x")
    good = sum(frame.filter(of_good)["count"].sum() for frame in rows)
    accounted = sum(frame["count"].sum() + frame["repeated"].sum() for frame in rows) + sum(frame.height for frame in dead)
    return {"names": most, "series": series, "good": good, "dead": sum(map(len, dead)), "lost": world.redis.accepted[0] - accounted}


if __name__ == "__main__":
    print(json.dumps(flood()))
