"""A take-over of many partitions at once: as if each were taken alone, whichever tables were ahead of the others there."""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.commits import COMMIT_ORDER
from pipeline.core.alerts import TRANSITIONS
from pipeline.core.batch import Output, State, step
from pipeline.core.recovery import LAST_ROWS
from pipeline.core.schema import AGGREGATES, SERIES_NAMES, entry_id
from pipeline.core.setaside import REFUSED
from pipeline.stores.entries import to_batch
from pipeline.stores.streams import Entry
from pipeline.takeover import Taken, take_over
from tests.frames import payload_of
from tests.properties.test_step import EXAMPLES, RULES, SEMANTICS, S, named_alerts, streams

PARTITIONS = 2


def entry_of(partition: int, now: int, rows) -> Entry:
    """A tick, or an entry of rows (device, metric, event time in s, value); a device of one partition is of no other."""
    if not rows:
        return Entry(entry_id(now * 1000, 0))
    named = [(f"{device}{partition}", metric, time * S, float(value)) for device, metric, time, value in rows]
    return Entry(entry_id(now * 1000, 0), payload_of(named), len(rows))


def alerts_at(partition: int, entries: list[Entry], position: int) -> pl.DataFrame:
    """The alerts that stand at a position, as NAMED."""
    state, _ = step(State(), to_batch({partition: [entry for entry in entries if entry.id <= position]}), RULES, SEMANTICS)
    return named_alerts(state)


def alerts_of(state: State) -> list[tuple]:
    shown = named_alerts(state).select("rule", "device", "metric", "severity", "firing", "since")
    return sorted(shown.with_columns(pl.col(pl.Categorical).cast(pl.String)).rows())


def over(frames: list[pl.DataFrame]) -> list[tuple]:
    frame = pl.concat(frames)
    return sorted(frame.with_columns(pl.col(pl.Categorical).cast(pl.String)).rows(), key=str)


def counted(rows: list[tuple]) -> dict[tuple, int]:
    """Events per series and window."""
    frame = pl.DataFrame(rows, schema={n: pl.String() if t == pl.Categorical() else t for n, t in AGGREGATES.items()}, orient="row")
    found = frame.group_by("partition", *SERIES_NAMES, "window").agg(pl.col("count").sum() + pl.col("repeated").sum())
    return {tuple(key): count for *key, count in found.rows()}


def ran(taken: dict[int, Taken], rows_max: int) -> tuple[State, dict[str, list[tuple]]]:
    """(state, rows per table) of a take-over; transitions with the name of their series."""
    kept: list[Output] = []

    def keep(output: Output, state: State) -> None:
        named = output.transitions.join(state.series.select("series", "device", "metric"), on="series", how="left")
        named = named.with_columns(series=pl.lit(0, pl.UInt32))  # their numbers go by who is taken beside them
        kept.append(Output(**{**vars(output), "transitions": named}))

    state = take_over(taken, RULES, SEMANTICS, rows_max, keep)
    return state, {name: over([getattr(output, name) for output in kept]) if kept else [] for name in vars(Output())}


@settings(EXAMPLES, max_examples=max(1, EXAMPLES.max_examples // 2))  # each is a hundred steps
@given(st.data())
def test_partitions_taken_together_give_what_each_gives_alone(data):
    taken: dict[int, Taken] = {}
    whole: list[Output] = []
    standing: list[tuple] = []
    ahead: dict[int, dict[str, int]] = {}
    for partition in range(PARTITIONS):
        entries = [entry_of(partition, *each) for each in data.draw(streams())]
        places = st.sampled_from([-1, -1, *(entry.id for entry in entries)])
        raised = data.draw(places)
        tables = {table: data.draw(places) for table in COMMIT_ORDER} | {"aggregates": -1}
        ahead[partition] = {**tables, "transitions": raised}
        alerts = alerts_at(partition, entries, raised)
        taken[partition] = Taken(tables, raised, alerts, entries, LAST_ROWS.to_frame(), REFUSED.to_frame())
        end, output = step(State(), to_batch({partition: entries}), RULES, SEMANTICS)
        whole.append(output)
        standing += alerts_of(end)
    rows_max = data.draw(st.sampled_from([8, 1000]))
    state, together = ran(taken, rows_max)
    alone = [ran({partition: each}, rows_max) for partition, each in taken.items()]
    for table in together:
        assert together[table] == sorted((row for _, rows in alone for row in rows[table]), key=str), table
    assert state.positions == {partition: each.pending[-1].id for partition, each in taken.items()}
    for one, _ in alone:
        assert set(one.positions) < set(state.positions) and one.rules_version == state.rules_version
    assert state.open.height == sum(one.open.height for one, _ in alone)
    assert alerts_of(state) == sorted(standing)
    assert counted(together["aggregates"]) == counted(over([output.aggregates for output in whole]))  # revisions go by the cuts
    for table in ("late", "dead_letters"):  # what was there already is left out, and nothing else
        rest = [getattr(output, table).filter(pl.col("entry") > ahead[p][table]) for p, output in enumerate(whole)]
        assert together[table] == over(rest), table
    entry = list(TRANSITIONS).index("entry")
    of_events = sorted(row[entry] for row in together["transitions"] if row[entry] is not None)  # those of windows have none
    told = pl.concat([output.transitions.filter(pl.col("entry") > ahead[p]["transitions"]) for p, output in enumerate(whole)])
    assert of_events == sorted(told["entry"])
