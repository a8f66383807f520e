"""What a worker holds of each partition, and how what was made of them becomes durable: one commit per table for all, and alerts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from pipeline import metrics
from pipeline.core.batch import State
from pipeline.core.recovery import Stand
from pipeline.core.runs import Runs
from pipeline.core.schema import SERIES_NAMES, of_series
from pipeline.errors import Fenced, Unavailable
from pipeline.stores.alertlog import KEY, NAMED, AlertLog, same
from pipeline.stores.lake import Lake
from pipeline.stores.tables import SIDE_TABLES

COMMIT_ORDER = (*SIDE_TABLES, "aggregates")  # a crash in between leaves the earlier ones ahead, and recovery cuts there

# That partitions which are to go wait for a commit. A slow lake takes seconds; one that is away takes for ever, and reading goes on.
HAND_OVER_SECONDS = 10.0


@dataclass
class Holding:
    """One partition held: its token, what was delivered and is not settled, where each table stands."""

    token: int
    tables: dict[str, int] = field(default_factory=dict)  # table -> committed position; empty until it is recovered
    incarnation: int = 0  # of the stream, as it was opened last
    opened: bool = False  # and as far as is known it still is that one
    pending: list[int] = field(default_factory=list)  # entry ids, growing
    reread_after: int | None = None  # a reply got lost: read own history after this id before anything new
    alerts: pl.DataFrame = field(default_factory=NAMED.to_frame)  # as Redis has them
    raised: int = -1  # position that the alerts in Redis stand for
    transitions: list[dict] = field(default_factory=list)  # not yet offered to Redis
    offered: list[tuple[int, dict]] = field(default_factory=list)  # at which position first; Redis has not said yet that it has them
    unanswered: tuple[int, pl.DataFrame] | None = None  # position and alerts of the last offer, where nobody said what became of it

    @property
    def has_news(self) -> bool:
        """Whether there are transitions of which Redis has not said that it has them."""
        return bool(self.transitions or self.offered)

    def may_offer(self, position: int, after: pl.DataFrame) -> bool:
        """Whether Redis would take these alerts, and what comes with them: of each position it takes the first that it is told."""
        if position <= self.raised:
            return False
        if self.unanswered is None or self.unanswered[0] < position:
            return True
        return not self.transitions and same(self.unanswered[1], after)


@dataclass
class Snapshot:
    """What one commit makes durable: rows per table, and per partition how far they stand for and the entries still open there."""

    rows: dict[str, list[pl.DataFrame]]
    tokens: dict[int, int]  # of the epoch that made it: a later one of ours has nothing to do with it
    stands: dict[int, Stand]
    open: pl.DataFrame  # the open rows there
    done: set[str] = field(default_factory=set)  # tables that are committed already

    def still_held(self, held: Mapping[int, Holding]) -> dict[int, Holding]:
        """Of what is held now, what is so under the tokens that this was made under."""
        return {partition: holding for partition, holding in dict(held).items() if holding.token == self.tokens.get(partition)}

    def unsettled(self) -> dict[int, set[int]]:
        """The entries that have open rows, per partition with any."""
        places = self.open["partition", "entry"]
        of_entries = Runs.of(places, "partition", "entry").first(places)  # an entry's rows mostly lie together
        return {partition: set(entries) for partition, entries in of_entries.group_by("partition").agg("entry").iter_rows()}


def commit(snapshot: Snapshot, lake: Lake, held: Mapping[int, Holding], lost: dict[int, tuple[int, str]]) -> None:
    """Commit each table of a snapshot that is not done. Unavailable: the lake is away; call again.

    `held` may change meanwhile: partitions that are held no longer are left out. Those of which the lake says that
    another has written leave the snapshot and go to `lost` (partition -> token, reason).
    """
    for table in COMMIT_ORDER:
        while table in snapshot.rows and table not in snapshot.done:
            mine = snapshot.still_held(held)
            rows = pl.concat(snapshot.rows[table])
            made = rows["partition"].unique().to_list()
            stands = {p: snapshot.stands[p] for p in made if p in snapshot.stands and p in mine}
            if len(stands) < len(made):
                rows = rows.filter(pl.col("partition").is_in(list(stands)))
            try:
                if stands:
                    began = time.monotonic()
                    lake.commit(table, rows, stands, {partition: mine[partition].tables[table] for partition in stands})
                    metrics.COMMIT_SECONDS.labels(table).observe(time.monotonic() - began)
                    metrics.ROWS_COMMITTED.labels(table).inc(rows.height)
            except Unavailable:
                metrics.COMMIT_FAILURES.labels(table).inc()
                raise
            except Fenced as error:
                lost[error.partition] = (mine[error.partition].token, str(error))
                snapshot.stands.pop(error.partition)
                continue
            for partition, stand in stands.items():
                mine[partition].tables[table] = stand.position
            snapshot.done.add(table)


def unanswered(held: Mapping[int, Holding]) -> dict[int, int]:
    """Partitions, and their tokens, of which nobody said whether Redis took their alerts."""
    return {partition: holding.token for partition, holding in held.items() if holding.unanswered is not None}


def raise_alerts(state: State, alertlog: AlertLog, held: Mapping[int, Holding], lost: dict[int, tuple[int, str]]) -> bool:
    """Bring the alerts of each partition to Redis: transitions, states and position as one. True: it has all of them now.

    Unavailable: call again, when transitions that it took without saying so are not published twice. `lost` as in `commit`.
    """
    named = of_series(state.active, state.series, *SERIES_NAMES)[["partition", *NAMED]]
    parts = named.partition_by("partition", as_dict=True, include_key=False)
    whole = True
    for partition, holding in held.items():
        after, before = parts.get((partition,)), holding.alerts
        if partition not in state.positions or (after is None and not (before.height or holding.has_news)):
            continue
        after = NAMED.to_frame() if after is None else after
        if not holding.has_news and same(before, after):
            continue
        position = state.positions[partition]
        if not holding.may_offer(position, after):  # new rules withdrew something: it goes with the next entry, a tick if no other
            whole = False
            continue
        holding.offered += [(position, transition) for transition in holding.transitions]
        holding.transitions = []
        try:
            alertlog.apply(partition, holding.token, position, before, after, holding.offered)
        except Fenced as error:
            lost[partition] = (holding.token, str(error))
            continue
        except Unavailable:  # which of them Redis has, it did not say: none is taken for known from here on
            holding.alerts = pl.concat([before, after]).unique(KEY).with_columns(severity=pl.lit(None, pl.Int8))
            holding.unanswered = position, after
            raise
        holding.alerts, holding.raised, holding.offered, holding.unanswered = after, position, [], None
    return whole
