"""Who works, who holds what, how far behind, and by which rules."""

from __future__ import annotations

from collections.abc import Iterator

import redis

from pipeline.core.cardinality import NEAR_SHARE
from pipeline.doctor.finding import Finding, graded
from pipeline.errors import Invalid
from pipeline.settings import Settings
from pipeline.stores.connection import lease_key, translated
from pipeline.stores.leases import Leases, live_members
from pipeline.stores.reports import Reports
from pipeline.stores.rulebook import Rulebook, read_document
from pipeline.stores.streams import Streams

LAG_WARN_SECONDS, LAG_BAD_SECONDS = 30.0, 300.0


def examine(settings: Settings, client: redis.Redis) -> Iterator[Finding]:
    """Findings on the roles, from what they say in Redis. Unavailable: it does not answer."""
    workers = live_members(client, settings.lease_ms)
    holders = Leases(client, "doctor", settings.lease_ms).holders(settings.partitions)
    without = [partition for partition, owner in holders.items() if owner is None]
    if not workers:
        yield Finding("workers", "bad", "none lives: nothing is read or committed", "start `telemetry worker`")
    elif without:
        text = f"{len(workers)} live, but nobody holds partitions {', '.join(map(str, without))}"
        yield Finding("workers", "bad", text, f"within {settings.lease_ms / 1000:g} s one takes them; if not, look at the workers' logs")
    else:
        yield Finding("workers", "ok", f"{len(workers)} live, and hold all {settings.partitions} partitions")
    backlog = Streams(client).backlog(range(settings.partitions))
    worst = max(backlog, key=lambda partition: backlog[partition].oldest_seconds)
    seconds, entries = backlog[worst].oldest_seconds, sum(each.entries for each in backlog.values())
    text = f"{entries:,} entries are not read yet, the oldest for {seconds:.1f} s" + (f" (partition {worst})" if entries else "")
    yield graded("workers", seconds, LAG_WARN_SECONDS, LAG_BAD_SECONDS, text, "start more workers, up to one per partition")
    yield from _series(settings, client)
    with translated():
        leader = client.hget(lease_key("maintenance"), "owner")
    if leader is None:
        yield Finding("upkeep", "warn", "nobody leads the housekeeping: files and logs grow", "start `telemetry maintain`")
    else:
        yield Finding("upkeep", "ok", f"{leader.decode()} leads the housekeeping")
    yield _rules(client)


def _series(settings: Settings, client: redis.Redis) -> Iterator[Finding]:
    """How near the fullest device and the fullest partition of all are to their limits; nothing where no worker has said so yet."""
    told = [said["fullest"] for said in Reports(client).all().values() if said.get("fullest")]  # workers say it
    for kind, bound in (("device", settings.device_series_max), ("partition", settings.partition_series_max)):
        share, which = max(((each[f"{kind}_share"], each[kind]) for each in told), default=(0.0, None), key=lambda each: each[0])
        if which is not None:
            text = f"{kind} {which} has {share:.0%} of the {bound:,} series it may have" + (": new ones are refused" if share >= 1 else "")
            remedy = f"raise PIPELINE_{kind.upper()}_SERIES_MAX and restart the workers, or end what invents names"
            yield graded("series", share, NEAR_SHARE, 1.0, text, remedy)


def _rules(client: redis.Redis) -> Finding:
    rulebook = Rulebook(client)
    try:
        if not rulebook.version():
            return Finding("rules", "ok", "none yet; the first worker sets the default")
        newest = rulebook.get()
        rules = read_document(newest.document, newest.number).rules
    except Invalid as error:
        return Finding("rules", "bad", f"the newest version is not valid: {error}", "`telemetry rules rollback` to one that is")
    return Finding("rules", "ok", f"version {newest.number}, {len(rules)} rules")
