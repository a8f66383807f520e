"""The laws of the heart: however the stream is cut, whoever works, wherever it crashes, the same rows come out."""

from __future__ import annotations

import os
from collections import defaultdict

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from pipeline.core.batch import BATCH_EVENTS, ENTRIES, Batch, State, step
from pipeline.core.recovery import LAST_ROWS, recover
from pipeline.core.rules import Rules, parse
from pipeline.core.schema import DEAD_ROWS, SERIES_NAMES, entry_id
from pipeline.core.semantics import NEVER, Semantics
from pipeline.core.windows import window_of
from pipeline.stores.alertlog import NAMED
from tests.oracle import Oracle

S = 1_000_000
SEMANTICS = Semantics(width=10 * S, disorder=4 * S, idle_after=12 * S, lateness_max=60 * S, open_rows_max=25, counter_gap=300 * S)
RULES = parse(
    {
        "rules": [
            {"name": "high", "metric": "x", "upper": {"warning": 5, "critical": 7, "clear": 3}, "for": "2s"},
            {"name": "low", "metric": "*", "lower": {"critical": 2}},
            {"name": "mean", "metric": "*", "on": "window", "statistic": "mean", "upper": {"warning": 4}},
        ]
    },
    1,
    {},
)
EXAMPLES = settings(
    max_examples=int(os.environ.get("EXAMPLES", "25")),
    deadline=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking such streams takes minutes: add Phase.shrink to look at one
    suppress_health_check=list(HealthCheck),
)


@st.composite
def streams(draw):
    """[(log time in s, [(device, metric, event time in s, value), ...]), ...]: skewed, silent, late and repeating devices."""
    names = "abc"[: draw(st.integers(1, 3))]
    skew = {name: draw(st.sampled_from((0, 0, -40, 15, 7200, -7200))) for name in names}
    silent = {name: draw(st.integers(20, 80)) for name in names}
    now, entries = 0, []
    for _ in range(draw(st.integers(2, 20))):
        now += draw(st.sampled_from((1, 1, 2, 3, 9, 20)))
        talking = [name for name in names if not silent[name] < now < silent[name] + 40]
        rows = []
        for _ in range(draw(st.sampled_from((0, 1, 2, 6, 12))) if talking else 0):
            name = draw(st.sampled_from(talking))
            behind = draw(st.sampled_from((0, 0, 1, 3, 6, 15, 30, 90)))
            rows.append((name, draw(st.sampled_from("xy")), now + 50 + skew[name] - behind, draw(st.integers(1, 9))))
        entries.append((now, rows))
    return entries + [(now + 30 * k, []) for k in range(1, 8)]


def batch(entries, partition=0):
    """A Batch of [(log time, rows)]."""
    events, ids = [], []
    for now, rows in entries:
        entry = entry_id(now * 1000, 0)
        ids.append((partition, entry, len(rows)))
        events += [(partition, entry, device, "", metric, "", 64, float(value), None, time * S) for device, metric, time, value in rows]
    return Batch(pl.DataFrame(events, schema=BATCH_EVENTS, orient="row"), pl.DataFrame(ids, schema=ENTRIES, orient="row"))


def oracle_of(entries, semantics=SEMANTICS):
    oracle = Oracle(semantics)
    for now, rows in entries:
        oracle.apply(now * S, [(device, metric, time * S, value) for device, metric, time, value in rows])
    return oracle


def cut(draw, entries):
    """Some partition of the stream into consecutive micro-batches."""
    rest, parts = list(entries), []
    while rest:
        size = draw(st.integers(1, len(rest)))
        parts.append(rest[:size])
        rest = rest[size:]
    return parts


def base_rows(aggregates):
    rows = aggregates.filter(~pl.col("revision")).select(
        pl.col("device", "metric").cast(pl.String), "window", "count", "repeated", "sum", "last", "increase", "newest", "arrived"
    )
    return sorted(rows.rows(), key=repr)


def revised_rows(aggregates):
    late = aggregates.filter("revision").group_by("device", "metric", "window").agg(pl.col("count").sum(), pl.col("sum").sum())
    return {(str(d), str(m), w): [c, s] for d, m, w, c, s in late.cast({"device": pl.String, "metric": pl.String}).iter_rows()}


def check_against(oracle, aggregates):
    assert base_rows(aggregates) == sorted(oracle.base, key=repr)
    assert revised_rows(aggregates) == dict(oracle.revised)


@EXAMPLES
@given(data=st.data())
def test_batch_boundaries_change_nothing(data):
    """However the stream is cut into micro-batches, the rows are those of the row-by-row oracle; so are the books."""
    entries = data.draw(streams())
    oracle, outputs, state = oracle_of(entries), [], State()
    for part in cut(data.draw, entries):
        state, output = step(state, batch(part), RULES, SEMANTICS)
        outputs.append(output)
    aggregates = pl.concat([o.aggregates for o in outputs])
    check_against(oracle, aggregates)
    assert sum(o.dead_letters.height for o in outputs) == oracle.too_late
    assert sum(o.late.height for o in outputs) == sum(count for count, _ in oracle.revised.values())
    sent = sum(len(rows) for _, rows in entries)
    assert aggregates["count"].sum() + aggregates["repeated"].sum() + oracle.too_late + state.open.height == sent

    whole_state, whole = step(State(), batch(entries), RULES, SEMANTICS)
    for name in ("anomalies", "transitions", "late"):
        assert sorted(map(repr, pl.concat([getattr(o, name) for o in outputs]).rows())) == sorted(map(repr, getattr(whole, name).rows())), (
            name
        )
    assert sorted(map(repr, state.active.rows())) == sorted(map(repr, whole_state.active.rows()))


@EXAMPLES
@given(data=st.data())
def test_partitions_do_not_touch_each_other(data):
    """Partitions stepped together, joined late or left early give the rows that each gives alone."""
    one, other = data.draw(streams()), data.draw(streams())
    other = [(now, [("z" + device, *rest) for device, *rest in rows]) for now, rows in other]
    state, outputs = State(), []
    parts, parts_other = cut(data.draw, one), cut(data.draw, other)
    for k in range(max(len(parts), len(parts_other))):
        mine = batch(parts[k]) if k < len(parts) else Batch()
        theirs = batch(parts_other[k], 1) if k < len(parts_other) else Batch()
        if k == 1:  # hand partition 1 away and take it back: nothing may change
            away = state.without_partition(0)
            state = state.without_partition(1).with_partition(away)
        both = Batch(pl.concat([mine.events, theirs.events]), pl.concat([mine.entries, theirs.entries]))
        state, output = step(state, both, RULES, SEMANTICS)
        outputs.append(output)
    aggregates = pl.concat([o.aggregates for o in outputs])
    check_against(oracle_of(one), aggregates.filter(pl.col("partition") == 0))
    check_against(oracle_of(other), aggregates.filter(pl.col("partition") == 1))


class Lake:
    """Tables with a position each; a commit is rows and position at once. What the real lake does, in ten lines."""

    def __init__(self):
        self.rows, self.position = defaultdict(list), {"anomalies": -1, "aggregates": -1}

    def commit(self, table, frames, position):
        assert position > self.position[table]
        self.rows[table] += [frame for frame in frames if frame.height]
        self.position[table] = position

    def table(self, name, empty):
        return pl.concat([empty, *self.rows[name]])

    def last_rows(self):
        if not self.rows["aggregates"]:
            return LAST_ROWS.to_frame()
        rows = pl.concat(self.rows["aggregates"])
        base = (
            rows.filter(~pl.col("revision"))
            .sort("window")
            .group_by(SERIES_NAMES)
            .agg(pl.col("last", "last_exact", "last_time").last(), closed_to=pl.col("window").max() + SEMANTICS.width)
        )
        seen = rows.group_by(SERIES_NAMES).agg(pl.col("newest", "arrived").max())
        joined = seen.join(base, on=SERIES_NAMES, how="left").with_columns(pl.col("closed_to").fill_null(NEVER))
        return joined.select(pl.col(name).cast(dtype) for name, dtype in LAST_ROWS.items())


class Crash(Exception):
    pass


def reign(stream, lake, settled, draw, may_crash, alerts_log):
    """One holder: recover, then read, step, raise alerts, commit, settle, until the stream ends or it crashes."""
    pending = [entry for entry in stream if entry[0] not in settled]
    position = lake.position["aggregates"]
    before = [entry for entry in pending if entry_id(entry[0] * 1000, 0) <= position]
    state = recover(0, position, lake.last_rows(), batch(before), alerts_log["active"], SEMANTICS)
    unread = [entry for entry in pending if entry_id(entry[0] * 1000, 0) > position]
    cuts = sorted(p for p in (lake.position["anomalies"], alerts_log["position"]) if p > position)
    made = []
    while unread:
        size = draw(st.integers(1, 6))
        for stop in cuts:
            ahead = sum(entry_id(entry[0] * 1000, 0) <= stop for entry in unread)
            if ahead:
                size = min(size, ahead)
        taken, unread = unread[:size], unread[size:]
        state, output = step(state, batch(taken), RULES, SEMANTICS)
        at = state.positions[0]
        if at > alerts_log["position"]:
            if output.transitions.height:
                alerts_log["transitions"].append(output.transitions)
                alerts_log["position"] = at
                named = state.active.join(state.series.select("series", *SERIES_NAMES), on="series").drop("series", "partition")
                alerts_log["active"] = named.select(list(NAMED))
        else:  # what stands at the alerts' own position is theirs to say
            active = alerts_log["active"].join(state.series.select("series", *SERIES_NAMES), on=SERIES_NAMES).drop(SERIES_NAMES)
            state = State(**{**state.__dict__, "active": active.with_columns(partition=pl.lit(0, pl.Int32)).select(state.active.columns)})
        if at > lake.position["anomalies"] or not output.anomalies.height:
            made.append((output.aggregates, output.anomalies))
        else:
            made.append((output.aggregates, output.anomalies.clear()))
        rows = any(aggregates.height or anomalies.height for aggregates, anomalies in made)
        if not rows or (unread and draw(st.booleans())):
            continue
        may_crash()
        if any(anomalies.height for _, anomalies in made):
            lake.commit("anomalies", [anomalies for _, anomalies in made], at)
        may_crash()
        if any(aggregates.height for aggregates, _ in made):
            lake.commit("aggregates", [aggregates for aggregates, _ in made], at)
        may_crash()
        if lake.position["aggregates"] == at:
            held = set(state.open["entry"])
            settled |= {entry[0] for entry in stream if entry_id(entry[0] * 1000, 0) <= at}
            settled -= {entry[0] for entry in stream if entry_id(entry[0] * 1000, 0) in held}
        made = []
        may_crash()


@EXAMPLES
@given(data=st.data())
def test_crashes_anywhere_change_nothing(data):
    """Crashes before, between and after the tables' commits, with recovery: tables and alerts end as in a calm run."""
    stream = data.draw(streams())
    lake, settled, reigns = Lake(), set(), 0
    alerts_log = {"position": -1, "transitions": [], "active": NAMED.to_frame()}

    def may_crash():
        if reigns < 8 and data.draw(st.integers(0, 3)) == 0:
            raise Crash

    while True:
        reigns += 1
        try:
            reign(stream, lake, settled, data.draw, may_crash, alerts_log)
            break
        except Crash:
            continue
    note(f"{reigns} reigns")
    _, whole = step(State(), batch(stream), RULES, SEMANTICS)
    check_against(oracle_of(stream), lake.table("aggregates", whole.aggregates.clear()))
    found = lake.table("anomalies", whole.anomalies.clear())
    assert sorted(map(repr, found.rows())) == sorted(map(repr, whole.anomalies.rows()))
    raised = pl.concat([whole.transitions.clear(), *alerts_log["transitions"]])
    columns = ["rule", "phase", "severity", "since", "time", "value"]
    assert sorted(map(repr, raised.select(columns).rows())) == sorted(map(repr, whole.transitions.select(columns).rows()))


def test_a_device_falls_silent_in_a_busy_partition():
    """Its window closes while another device talks."""
    entries = [(0, [("a", "x", 50, 1), ("b", "x", 50, 1)]), *((t, [("b", "x", 50 + t, 1)]) for t in range(5, 40, 5))]
    _, output = step(State(), batch(entries), Rules(), SEMANTICS)
    assert ("a", "x", 50 * S) in [row[:3] for row in base_rows(output.aggregates)]


@pytest.mark.parametrize("skew", [-7200, 7200])
def test_one_wrong_clock_hurts_one_device(skew):
    """A device hours off touches no row of another."""
    calm = [(t, [("b", "x", 50 + t, t)]) for t in range(0, 60, 3)]
    mixed = [(t, [("a", "x", 50 + t + skew, 1), *rows]) for t, rows in calm]
    of_b = [
        [row for row in base_rows(step(State(), batch(entries), Rules(), SEMANTICS)[1].aggregates) if row[0] == "b"]
        for entries in (calm, mixed)
    ]
    assert of_b[0] == of_b[1] and of_b[0]


def test_window_end_is_exclusive():
    """An event exactly on a boundary belongs to the window it opens."""
    frame = pl.DataFrame({"event_time": [59 * S, 60 * S, -1]}).select(window_of(pl.col("event_time"), 60 * S))
    assert frame["event_time"].to_list() == [0, 60 * S, -60 * S]


def test_dead_letters_of_an_entry_pass_through():
    """What was set aside at ingest reaches the table as it is."""
    dead = pl.DataFrame([(0, 1, "d", "value", "missing", "{}")], schema=DEAD_ROWS, orient="row")
    _, output = step(State(), Batch(entries=batch([(0, [])]).entries, dead_letters=dead), Rules(), SEMANTICS)
    assert output.dead_letters.equals(dead)


def test_no_alert_goes_by_a_sample_that_a_newer_one_overtook():
    """An older sample that arrives after a newer one neither raises nor clears; it may still be an anomaly."""
    rules = parse({"rules": [{"name": "high", "metric": "x", "upper": {"warning": 5}}]}, 1, {})
    entries = [(1, [("a", "x", 50, 9)]), (2, [("a", "x", 54, 1)]), (3, [("a", "x", 52, 8)]), (4, [("a", "x", 55, 1)])]
    for cuts in ([entries], [[entry] for entry in entries]):
        state, phases, flagged = State(), [], 0
        for part in cuts:
            state, output = step(state, batch(part), rules, SEMANTICS)
            phases += output.transitions["phase"].to_list()
            flagged += output.anomalies.height
        assert (phases, flagged) == (["firing", "resolved"], 2)
