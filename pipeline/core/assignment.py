"""Which partitions each live worker should hold: its fair share, moved as little as possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Plan(NamedTuple):
    """What a worker should do now, as partitions."""

    acquire: list[int]
    release: list[int]


def shares(workers: Sequence[str], held: Mapping[str, int], partitions: int) -> dict[str, int]:
    """How many partitions each worker should hold. Shares differ by one at most; who holds more keeps the larger."""
    base, extra = divmod(partitions, len(workers))
    order = sorted(workers, key=lambda name: (-held.get(name, 0), name))
    return {name: base + (rank < extra) for rank, name in enumerate(order)}


def plan(me: str, workers: Sequence[str], holders: Mapping[int, str | None]) -> Plan:
    """What `me` should take and give back now, as everyone that sees the same members and holders finds it.

    A worker gives back what is beyond its share, and takes what nobody holds up to its share; no two reach for the same.
    A partition moves only when its holder has too many, so that a stable set of workers comes to rest.
    """
    members = sorted({*workers, me})
    held: dict[str, list[int]] = {}
    for partition, owner in sorted(holders.items()):
        if owner is not None:
            held.setdefault(owner, []).append(partition)
    share = shares(members, {name: len(mine) for name, mine in held.items()}, len(holders))
    lacks = {name: max(0, share[name] - len(held.get(name, []))) for name in members}
    free = [partition for partition, owner in sorted(holders.items()) if owner is None]
    start = sum(lacks[name] for name in members[: members.index(me)])  # what those before take
    return Plan(acquire=free[start : start + lacks[me]], release=held.get(me, [])[share[me] :])
