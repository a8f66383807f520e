"""A real server, and a real cluster, for the stores' contracts; each test begins with it empty."""

from __future__ import annotations

import pytest

from pipeline.stores import connection as keys
from tests.harness import Stack
from tests.rediscluster import ServerCluster


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    with Stack(tmp_path_factory.mktemp("redis"), fsync="everysec") as running:
        yield running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    with ServerCluster(folder / "nodes") as nodes, Stack(folder, redis_url=nodes.url) as running:
        yield running


@pytest.fixture(scope="module", params=["one", "cluster"])
def stack(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def client(stack):
    return emptied(stack)


def emptied(stack):
    """A client of a Redis that holds nothing but the number of partitions."""
    found = stack.client
    found.flushall()
    found.set(keys.PARTITIONS, 2)
    return found
