"""Leases in Redis: the right to work on a partition, which expires. Each carries a fencing token that only grows."""

from __future__ import annotations

from collections.abc import Mapping

import redis
from redis.exceptions import RedisError

from pipeline.errors import PipelineError, Unavailable
from pipeline.stores import connection as keys
from pipeline.stores.connection import Scripts, now_seconds, translate, translated

MEMBERS = "workers"


def live_members(client: redis.Redis, ttl_ms: int) -> list[str]:
    """Who has said within `ttl_ms` that it lives; without saying anything oneself."""
    with translated():
        members = client.zrangebyscore(MEMBERS, int(now_seconds(client) * 1000) - ttl_ms, "+inf")
    return sorted(member.decode() for member in members)


class Leases:
    """Acquire, renew and release leases as `owner`; and who else is alive."""

    def __init__(self, client: redis.Redis, owner: str, ttl_ms: int) -> None:
        self._redis = client
        self._owner = owner
        self._ttl_ms = ttl_ms
        self._scripts = Scripts(client)

    def heartbeat(self, *, leaving: bool = False) -> dict[str, int]:
        """Say that this member lives (or leaves); all that live, and for how many ms each has been silent."""
        with translated():
            told = self._scripts.call("heartbeat", [MEMBERS], [self._owner, self._ttl_ms, "0" if leaving else "1"])
        return {member.decode(): int(silent_ms) for member, silent_ms in zip(told[::2], told[1::2], strict=True)}

    def holders(self, partitions: int) -> dict[int, str | None]:
        """Who holds each partition now; None: nobody."""
        with translated():
            pipe = self._redis.pipeline(transaction=False)
            for partition in range(partitions):
                pipe.hget(keys.lease_key(partition), "owner")
            return _named(pipe.execute())

    def tend(self, partitions: int) -> dict[int, str | None]:
        """The same, and leases that a clock set back made longer than they may be are cut."""
        with translated():
            owners = self._scripts.calls("holder", [([keys.lease_key(partition)], [self._ttl_ms]) for partition in range(partitions)])
            for owner in owners:
                if isinstance(owner, RedisError):
                    raise owner
        return _named(owners)

    def acquire(self, partition: int | str) -> int | None:
        """The fencing token of the new lease; None where another holds it."""
        with translated(partition):
            token = self._scripts.call("acquire", [keys.lease_key(partition), keys.fence_key(partition)], [self._owner, self._ttl_ms])
        return None if token is None else int(token)

    def renew(self, leases: Mapping[int | str, int]) -> dict[int | str, PipelineError]:
        """Renew all (partition -> token) in one round trip; what failed, and how: Fenced or Unavailable."""
        calls = [([keys.lease_key(partition)], [token, self._ttl_ms]) for partition, token in leases.items()]
        try:
            replies = self._scripts.calls("renew", calls)
        except (RedisError, OSError) as error:
            return dict.fromkeys(leases, Unavailable(f"Redis: {keys.redact(str(error))}"))
        failed = {partition: reply for partition, reply in zip(leases, replies, strict=True) if isinstance(reply, RedisError)}
        return {partition: translate(error, partition) for partition, error in failed.items()}

    def release(self, partition: int | str, token: int) -> None:
        """Give the lease back. Fenced: it is another's already."""
        with translated(partition):
            self._scripts.call("release", [keys.lease_key(partition)], [token])


def _named(owners: list[bytes | None]) -> dict[int, str | None]:
    return {partition: owner.decode() if owner else None for partition, owner in enumerate(owners)}
