"""A primary of a Redis Cluster dies in the middle of load, while its replica is a second behind: what is kept, by which setting."""

from __future__ import annotations

import threading
import time

import pytest

from tests.acceptance.test_recordings import check_books, check_drained, compare, flush
from tests.fleet import SECONDS, recorded_fleet
from tests.harness import Stack, eventually, replay
from tests.rediscluster import ServerCluster

LOAD_SECONDS = 24
BEHIND_SECONDS = 1.0
SETTINGS = {
    "PIPELINE_REDIS_TIMEOUT_SECONDS": "2",
    "PIPELINE_DISORDER_SECONDS": "120",  # whom admission asks to wait meanwhile comes out of order, and is not to be late for it
}


def fail_over(cluster: ServerCluster, key: str) -> float:
    """A primary goes on without its replica, and dies; how long until that has taken over, in seconds."""
    primary, replica = cluster.nodes_of(key)
    cluster.detach(replica)
    time.sleep(BEHIND_SECONDS)
    cluster.kill(primary)
    died = time.monotonic()
    eventually(lambda: cluster.nodes_of(key)[0] == replica, 60, "the replica has taken over")
    took = time.monotonic() - died
    cluster.restart(primary)  # as a replica: with none, nothing could be promised
    return took


def under_load(stack: Stack, cluster: ServerCluster, files) -> tuple[dict, float]:
    """The recording through two workers, with the failover a third into it; what the client says, and how long it took."""
    stack.start(workers=2, seconds=90)
    took: list[float] = []

    def later() -> None:
        time.sleep(LOAD_SECONDS / 3)
        took.append(fail_over(cluster, "telemetry:{0}"))

    fault = threading.Thread(target=later)
    fault.start()
    try:
        summary = replay(stack, files, "--speed", str(SECONDS / LOAD_SECONDS))
    finally:
        fault.join()
    assert took, "the failover did not land"
    return summary, took[0]


@pytest.fixture
def cluster(tmp_path):
    with ServerCluster(tmp_path / "nodes", password="secret") as nodes:
        yield nodes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return [recorded_fleet(tmp_path_factory.mktemp("fleet"))]


def test_what_was_answered_is_kept_where_a_replica_has_it(tmp_path, cluster, files):
    """PIPELINE_REDIS_REPLICAS_MIN=1: every event once, counters and books to the last digit."""
    with Stack(tmp_path, redis_url=cluster.url, PIPELINE_REDIS_REPLICAS_MIN="1", **SETTINGS) as stack:
        summary, took = under_load(stack, cluster, files)
        assert summary["accepted"] == summary["sent"], summary
        flush(stack, files)
        eventually(lambda: check_drained(stack), 90, "everything is committed")
        compare(stack, files, stack.settings.window_seconds)
        books = check_books(stack)
        assert books["late"] == books["dead_lettered"] == 0, books
        print(f"{summary['sent']:,} events, {summary['retries']} retries, taken over in {took:.1f} s; {books}")


def test_without_it_the_last_moment_is_lost_and_no_more(tmp_path, cluster, files):
    """What only the dead primary had was answered and is gone; nothing is there twice, and the work goes on."""
    with Stack(tmp_path, redis_url=cluster.url, **SETTINGS) as stack:
        summary, took = under_load(stack, cluster, files)
        flush(stack, files)
        eventually(lambda: check_drained(stack), 90, "everything is committed")
        counted = stack.sql("SELECT sum(count) AS n FROM aggregates WHERE metric <> 'flush'")["n"][0]
        lost = summary["accepted"] - counted
        behind = summary["sent"] / LOAD_SECONDS * BEHIND_SECONDS
        assert 0 < lost < 3 * behind, f"{lost} of about {behind:.0f} events that the replica was behind"
        print(f"{summary['sent']:,} events, {lost} of those answered are lost, taken over in {took:.1f} s")
