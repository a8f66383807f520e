"""One real server for the stores' contracts; each test begins with it empty."""

from __future__ import annotations

import pytest

from pipeline.stores import connection as keys
from tests.harness import Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with Stack(tmp_path_factory.mktemp("redis"), fsync="everysec") as running:
        yield running


@pytest.fixture
def client(stack):
    found = stack.client
    found.flushall()
    found.set(keys.PARTITIONS, 2)
    return found
