"""The main path, the same on one machine, on a Redis Cluster and on S3: from HTTP to SQL every window as a plain GROUP BY has it.

What differs is settings alone.
"""

from __future__ import annotations

import contextlib

import polars as pl
import pytest

from tests.acceptance.test_recordings import check_books, check_drained, compare, flush
from tests.chaos.objectstore import Bucket
from tests.fleet import recorded_fleet
from tests.harness import Stack, eventually, replay
from tests.rediscluster import ServerCluster

# Whom admission asks to wait, on a machine that has much else to do, comes out of order, and is not to be late for it.
SETTINGS = {"PIPELINE_DISORDER_SECONDS": "120"}
SPEED = 100


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return [recorded_fleet(tmp_path_factory.mktemp("fleet"))]


@pytest.fixture(params=["one machine", "cluster", "s3"])
def stack(request, tmp_path, monkeypatch):
    with contextlib.ExitStack() as parts:
        redis_url, settings = None, SETTINGS
        if request.param == "cluster":
            redis_url = parts.enter_context(ServerCluster(tmp_path / "nodes", password="no/secret")).url
            settings = {**SETTINGS, "PIPELINE_REDIS_REPLICAS_MIN": "1"}
        if request.param == "s3":
            bucket = parts.enter_context(Bucket(tmp_path))
            settings = {**SETTINGS, "PIPELINE_LAKE_URL": bucket.location}
            for name, value in bucket.environment().items():
                monkeypatch.setenv(name, value)
        yield parts.enter_context(Stack(tmp_path, "everysec", redis_url, **settings))


def test_the_main_path_is_the_same(stack, files):
    """Two workers, housekeeping beside them; then the commands of a person."""
    stack.others.append(stack.spawn("maintain", PIPELINE_COMPACT_INTERVAL_SECONDS="1", PIPELINE_COMPACT_FILES_MIN="4"))
    stack.start(workers=2, seconds=90)
    summary = replay(stack, files, "--speed", str(SPEED))
    assert summary["accepted"] == summary["sent"] == pl.scan_parquet(files[0]).select(pl.len()).collect().item()
    flush(stack, files)
    eventually(lambda: check_drained(stack), 90, "everything is committed")
    expected = compare(stack, files, stack.settings.window_seconds)
    books = check_books(stack)
    assert books["aggregated"] == summary["sent"] and books["late"] == books["repeated"] == books["dead_lettered"] == 0
    eventually(lambda: "merged" in stack.logs(), 30, "small files are merged")
    told = stack.telemetry("sql", "--csv", "SELECT count(*) FROM aggregates WHERE metric <> 'flush'")
    assert told.stdout.split()[1:] == [str(expected.height)], told.stderr
    for command in (["books"], ["check"], ["status"], ["alerts"], ["rules", "history"]):
        done = stack.telemetry(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    print(f"{summary['sent']:,} events in {summary['seconds']:.1f} s; {expected.height:,} rows equal; {books}")
