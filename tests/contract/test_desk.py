"""What replicas of the API tell each other about demand, on a real server and a real cluster."""

from __future__ import annotations

import asyncio
import json

from pipeline.core.admission import Demand, Limits
from pipeline.stores.admission import DEMAND, DEMAND_SECONDS_MAX, Desk
from pipeline.stores.connection import connect_async, now_seconds


def turn(stack, replica: str, demand: dict[int, Demand]):
    async def run():
        client = connect_async(stack.settings.redis_url, 5)
        try:
            return await Desk(client, 2, replica).turn(demand, Limits())
        finally:
            await client.aclose()

    return asyncio.run(run())


def test_what_a_dead_replica_has_said_is_forgotten(stack, client):
    """Each start of an API has another name: else their words would pile up."""
    long_ago = now_seconds(client) - DEMAND_SECONDS_MAX - 1
    client.hset(DEMAND, "dead", json.dumps({"at": long_ago, "demand": {"0": {"classes": {"3": [1, 1000.0]}}}}))
    decisions = turn(stack, "alive", {0: Demand({1: (1, 10.0)})})
    assert decisions.number == 1 and sorted(decisions.partitions) == [0, 1]
    assert list(client.hgetall(DEMAND)) == [b"alive"]
