"""Who should hold what: everyone that sees the same finds the same, fair and with few moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.assignment import Plan, plan, shares

NAMES = [f"w{n}" for n in range(6)]
workers_of = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)
# Leases may also be held by workers that are gone, until they expire.
holders_of = st.lists(st.sampled_from([None, *NAMES]), max_size=32).map(lambda owners: dict(enumerate(owners)))


def counts(holders: dict[int, str | None]) -> dict[str, int]:
    found: dict[str, int] = {}
    for owner in filter(None, holders.values()):
        found[owner] = found.get(owner, 0) + 1
    return found


def turn(workers: list[str], holders: dict[int, str | None]) -> dict[int, str | None]:
    """The holders after each worker has done what its plan says, all having seen the same."""
    plans = {name: plan(name, workers, holders) for name in workers}
    after = dict(holders)
    for name, (acquire, release) in plans.items():
        for partition in release:
            assert holders[partition] == name
            after[partition] = None
        for partition in acquire:
            assert holders[partition] is None
            after[partition] = name
    return after


def settled(workers: list[str], holders: dict[int, str | None]) -> dict[int, str | None]:
    """Where it comes to rest, once leases of those who are gone have expired."""
    holders = {partition: owner if owner in workers else None for partition, owner in holders.items()}
    for _ in range(3):  # give back, take, and nothing more
        holders = turn(workers, holders)
    assert turn(workers, holders) == holders
    return holders


@given(workers_of, holders_of)
def test_no_two_reach_for_the_same_partition(workers, holders):
    """Where all see the same, no acquisition is in vain."""
    taken = [partition for name in workers for partition in plan(name, workers, holders).acquire]
    assert len(taken) == len(set(taken))


@given(workers_of, holders_of)
def test_it_comes_to_rest_with_fair_shares(workers, holders):
    """In a few turns every partition is held, by a living worker; shares differ by one at most."""
    rest = settled(workers, holders)
    held = counts(rest)
    assert sum(held.values()) == len(holders) and set(held) <= set(workers)
    sizes = [held.get(name, 0) for name in workers]
    assert max(sizes) - min(sizes) <= 1


@given(workers_of, holders_of)
def test_nobody_takes_more_than_its_share(workers, holders):
    """Nor gives back a partition that is within it, nor does both at once."""
    held = counts(holders)
    fair = shares(workers, held, len(holders))
    assert sum(fair.values()) == len(holders)
    for name in workers:
        acquire, release = plan(name, workers, holders)
        after = held.get(name, 0) + len(acquire) - len(release)
        assert after == fair[name] or (after < fair[name] and not release)
        assert not (acquire and release)


@given(workers_of, st.integers(0, 32), st.sampled_from(NAMES))
def test_a_worker_that_joins_moves_no_more_than_its_share(workers, partitions, newcomer):
    """All others keep what they hold, but for that."""
    before = settled(workers, dict.fromkeys(range(partitions)))
    both = sorted({*workers, newcomer})
    after = settled(both, before)
    moved = [partition for partition in before if before[partition] != after[partition]]
    if newcomer in workers:
        assert moved == []
    else:
        assert {after[partition] for partition in moved} <= {newcomer}
        assert len(moved) <= -(-partitions // len(both))


@given(st.lists(st.sampled_from(NAMES), min_size=2, unique=True), st.integers(0, 32))
def test_a_worker_that_leaves_moves_only_what_it_held(workers, partitions):
    before = settled(workers, dict.fromkeys(range(partitions)))
    gone, rest = workers[0], workers[1:]
    after = settled(rest, before)
    assert all(before[partition] == gone for partition in before if before[partition] != after[partition])


def test_one_that_is_not_a_member_yet_counts_itself():
    """Its heartbeat may be on the way."""
    assert plan("b", ["a"], {0: "a", 1: "a", 2: None, 3: None}) == Plan([2, 3], [])


def test_partitions_of_someone_unknown_are_left_alone():
    """They come free when the lease expires."""
    assert plan("a", ["a"], {0: "ghost", 1: None}) == Plan([1], [])
