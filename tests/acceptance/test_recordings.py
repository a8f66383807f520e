"""Real telemetry through the whole path: every (series, window) as a plain GROUP BY over the recording has it, to the last row.

Calm, and while workers are killed, frozen past their leases, and come and go, and Redis is restarted.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from tests.harness import Stack, eventually, recorded, replay
from tests.missing import leave_out

RECORDINGS = Path(__file__).parents[3] / "shared" / "data" / "cisco"
COUNTERS = "counter_bits(metric) > 0"


@pytest.fixture(scope="module")
def files():
    if not RECORDINGS.is_dir():
        leave_out("the recordings are not here; what must work anywhere is tested with the simulator")
    return sorted(RECORDINGS.glob("*.parquet"))


def flush(stack, files):
    """One event per device, far later: it closes the windows of the recording, and no other."""
    devices = pl.concat([pl.scan_parquet(file).select("device").unique() for file in files]).unique().collect()["device"]
    events = [{"device": device, "metric": "flush", "value": 1, "timestamp": "2024-01-01T00:00:00Z"} for device in devices]
    eventually(lambda: stack.post(events).status_code == 202, 20, "the last events are taken")


def compare(stack, files, width_seconds):
    """Every row of the reference is in the view and equal, and the view has no other."""
    from pipeline.core.kinds import counter_bits

    names = pl.concat([pl.scan_parquet(file).select("metric").unique() for file in files]).unique().collect()["metric"]
    counters = [name for name in names if counter_bits(name, ())]
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in counters) or "''"
    expected = recorded(files, width_seconds, f"metric IN ({listed})").pl()
    found = stack.sql(
        "SELECT device, interface, metric, epoch_ms(window_start) AS window_ms, "
        "count AS n, sum AS total, min AS least, max AS most, increase "
        "FROM aggregates WHERE metric <> 'flush'"
    )
    key = ["device", "interface", "metric", "window_ms"]
    assert not found.select(key).is_duplicated().any(), "a window is there twice"
    joined = expected.join(found, on=key, how="full", suffix="_found", coalesce=True)
    assert joined["n_found"].null_count() == 0, f"{joined['n_found'].null_count()} windows are missing"
    assert joined["n"].null_count() == 0, f"{joined['n'].null_count()} windows too many"
    for name in ("n", "total", "least", "most", "increase"):
        ours, theirs = pl.col(f"{name}_found"), pl.col(name)
        close = (ours - theirs).abs() <= 1e-9 * theirs.abs() + 1e-9
        wrong = joined.filter(~(close.fill_null(False) | (ours.is_null() & theirs.is_null())))
        assert wrong.is_empty(), f"{name} differs in {wrong.height} windows: {wrong.head(3).to_dicts()}"
    return expected


def settled(stack):
    """The flush rows alone are still open."""
    return stack.stream_length() <= 2 * stack.settings.partitions


def check_books(stack):
    books = stack.books()
    assert books["balanced"], books
    return books


def test_a_calm_replay_equals_a_group_by(tmp_path, files):
    """All recordings at full speed over HTTP, three workers."""
    with Stack(tmp_path, fsync="everysec") as stack:
        stack.start(workers=3)
        summary = replay(stack, files, "--speed", "0")
        assert summary["accepted"] == summary["sent"] == sum(pl.scan_parquet(f).select(pl.len()).collect().item() for f in files)
        flush(stack, files)
        eventually(lambda: check_drained(stack), 120, "everything is committed")
        expected = compare(stack, files, stack.settings.window_seconds)
        books = check_books(stack)
        assert books["aggregated"] == summary["sent"] and books["late"] == 0
        speed = summary["recorded_seconds"] / summary["seconds"]
        print(f"{summary['sent']:,} events in {summary['seconds']:.1f} s, {speed:.0f}x; {expected.height:,} rows equal; {books}")



def check_drained(stack):
    return stack.books()["in_flight"] <= 40  # the flush rows of each device stay open


def test_kills_zombies_and_restarts_change_nothing(tmp_path, files):
    """The same, while workers die, freeze past their leases, come and go, and Redis restarts under them."""
    chosen = [file for file in files if file.stem in ("cisco04-portflap", "S-200122_1729_iflap_ifdown", "S-200124_0247_bfd_break")]
    seed = int(os.environ.get("SEED", random.randrange(1 << 30)))
    print(f"SEED={seed}")
    rng = random.Random(seed)
    with Stack(tmp_path, fsync="always", PIPELINE_LEASE_MS="1000") as stack:
        stack.start(workers=3)
        stack.others.append(stack.spawn("maintain", PIPELINE_COMPACT_INTERVAL_SECONDS="2"))  # it compacts under all of this
        over, landed = threading.Event(), []
        first = rng.sample(("kill", "freeze", "leave", "redis"), 4)  # each kind once, then as it comes

        def disturb():
            while not over.wait(0.3):
                alive = [worker for worker in stack.workers if worker.poll() is None]
                kind = first.pop() if first else rng.choice(("kill", "freeze", "freeze", "leave", "redis"))
                victim = rng.choice(alive)
                if kind == "kill":
                    victim.kill()
                    victim.wait()
                    stack.start_worker()
                elif kind == "freeze":  # all of its partitions at once, past the lease; then it comes back as a zombie
                    victim.send_signal(signal.SIGSTOP)
                    time.sleep(2)
                    victim.send_signal(signal.SIGCONT)
                elif kind == "leave":
                    victim.terminate()
                    stack.start_worker()
                else:
                    stack.kill_redis()
                    time.sleep(rng.uniform(0, 0.5))
                    stack.start_redis()
                landed.append(kind)
                time.sleep(rng.uniform(0.5, 2))

        trouble = threading.Thread(target=disturb)
        trouble.start()
        try:
            summary = replay(stack, chosen, "--speed", "150")
        finally:
            over.set()
            trouble.join()
        flush(stack, chosen)
        assert {"kill", "freeze", "redis"} <= set(landed), f"not every kind landed: {landed}"
        stack.start_worker()
        eventually(lambda: check_drained(stack), 120, "everything is committed")
        compare(stack, chosen, stack.settings.window_seconds)
        books = check_books(stack)
        assert books["late"] == 0 and books["repeated"] == 0 and books["dead_lettered"] == 0, books
        raw = stack.sql("SELECT count(*) AS n, count(DISTINCT (device, interface, metric, window_start)) AS keys FROM aggregates_raw")
        assert raw["n"][0] == raw["keys"][0], "a window was committed twice"
        twice = stack.sql(
            "SELECT rule, device, interface, metric, statistic, event_time, count(*) AS n "
            "FROM delta_scan(getvariable('lake') || '/anomalies') GROUP BY ALL HAVING count(*) > 1"
        )
        assert twice.is_empty(), twice
        assert "another holds" in stack.logs() or "behind" in stack.logs() or "has written" in stack.logs(), "no zombie was fenced"
        print(f"{summary['sent']:,} events, {summary['retries']} retries, disturbances: {landed}; {books}")
