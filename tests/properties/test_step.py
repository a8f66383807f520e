"""The laws of the heart: however the stream is cut, whoever works, wherever it crashes, the same rows come out."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import replace
from datetime import datetime

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from pipeline.core.batch import BATCH_EVENTS, ENTRIES, Batch, State, step
from pipeline.core.recovery import LAST_ROWS, recover
from pipeline.core.rules import Rules, parse
from pipeline.core.schema import AGGREGATES, DEAD_ROWS, SERIES_NAMES, entry_id
from pipeline.core.semantics import NEVER, Semantics
from pipeline.core.setaside import REFUSED, SERIES_LIMIT, refused_of, without_refused
from pipeline.core.windows import window_of
from pipeline.stores.alertlog import NAMED
from tests.oracle import Oracle

S = 1_000_000
SEMANTICS = Semantics(
    width=10 * S, disorder=4 * S, idle_after=12 * S, lateness_max=60 * S, open_rows_max=25,
    partition_series_max=1000, device_series_max=1000, counter_gap=300 * S,
)  # fmt: skip
# (series of a partition, series of a device): no limit that strikes, and each of both that does
LIMITS = [replace(SEMANTICS, partition_series_max=p, device_series_max=d) for p, d in ((1000, 1000), (3, 2), (4, 1000), (1000, 1), (2, 2))]
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
def streams(draw, metrics="xy"):
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
            rows.append((name, draw(st.sampled_from(metrics)), now + 50 + skew[name] - behind, draw(st.integers(1, 9))))
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


def dead_rows(dead_letters):
    found = []
    for reason, text in dead_letters.select("reason", "event").iter_rows():
        event = json.loads(text)
        time = round(datetime.fromisoformat(event["timestamp"]).timestamp() * S)
        found.append((reason, event["device"], event["metric"], time, event["value"]))
    return sorted(found)


def check_against(oracle, aggregates):
    assert base_rows(aggregates) == sorted(oracle.base, key=repr)
    assert revised_rows(aggregates) == dict(oracle.revised)


@EXAMPLES
@given(data=st.data())
def test_batch_boundaries_change_nothing(data):
    """However the stream is cut into micro-batches, the rows are those of the row-by-row oracle; so are the books."""
    semantics = data.draw(st.sampled_from(LIMITS))
    entries = data.draw(streams("wxyz"))
    oracle, outputs, state = oracle_of(entries, semantics), [], State()
    for part in cut(data.draw, entries):
        state, output = step(state, batch(part), RULES, semantics)
        outputs.append(output)
    aggregates = pl.concat([o.aggregates for o in outputs])
    check_against(oracle, aggregates)
    assert dead_rows(pl.concat([o.dead_letters for o in outputs])) == sorted(oracle.dead)
    known = set(state.series.select(pl.col("device", "metric").cast(pl.String)).rows())
    assert known == {(device, metric) for device, metrics in oracle.series.items() for metric in metrics}
    assert sum(o.late.height for o in outputs) == sum(count for count, _ in oracle.revised.values())
    sent = sum(len(rows) for _, rows in entries)
    assert aggregates["count"].sum() + aggregates["repeated"].sum() + len(oracle.dead) + state.open.height == sent

    whole_state, whole = step(State(), batch(entries), RULES, semantics)
    for name in ("anomalies", "transitions", "late"):
        assert sorted(map(repr, pl.concat([getattr(o, name) for o in outputs]).rows())) == sorted(map(repr, getattr(whole, name).rows())), (
            name
        )
    assert sorted(map(repr, state.active.rows())) == sorted(map(repr, whole_state.active.rows()))


@EXAMPLES
@given(data=st.data())
def test_partitions_do_not_touch_each_other(data):
    """Partitions stepped together, joined late or left early give the rows that each gives alone."""
    semantics = data.draw(st.sampled_from(LIMITS))
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
        state, output = step(state, both, RULES, semantics)
        outputs.append(output)
    aggregates = pl.concat([o.aggregates for o in outputs])
    check_against(oracle_of(one, semantics), aggregates.filter(pl.col("partition") == 0))
    check_against(oracle_of(other, semantics), aggregates.filter(pl.col("partition") == 1))


TABLES = ("anomalies", "dead_letters", "aggregates")  # in the order of their commits


class Lake:
    """Tables with a position each; a commit is rows and position at once. What the real lake does, in ten lines."""

    def __init__(self):
        self.rows, self.position = defaultdict(list), dict.fromkeys(TABLES, -1)

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


    def refused(self, entries):
        return refused_of(self.table("dead_letters", DEAD_ROWS.to_frame()).lazy().filter(pl.col("entry").is_in(entries))).collect()


def named_alerts(state):
    """The alerts that stand, as NAMED."""
    return state.active.join(state.series.select("series", *SERIES_NAMES), on="series").select(list(NAMED))


class Crash(Exception):
    pass


def reign(stream, lake, settled, draw, may_crash, alerts_log, semantics):
    """One holder: recover, then read, step, raise alerts, commit, settle, until the stream ends or it crashes."""
    pending = [entry for entry in stream if entry[0] not in settled]
    position = lake.position["aggregates"]
    before = [entry for entry in pending if entry_id(entry[0] * 1000, 0) <= position]
    refused = lake.refused([entry_id(entry[0] * 1000, 0) for entry in pending])
    state = recover(0, position, lake.last_rows(), batch(before), alerts_log["active"], refused, semantics)
    unread = [entry for entry in pending if entry_id(entry[0] * 1000, 0) > position]
    cuts = sorted(p for p in (*lake.position.values(), alerts_log["position"]) if p > position)
    made = []
    while unread:
        size = draw(st.integers(1, 6))
        for stop in cuts:
            ahead = sum(entry_id(entry[0] * 1000, 0) <= stop for entry in unread)
            if ahead:
                size = min(size, ahead)
        taken, unread = unread[:size], unread[size:]
        if entry_id(taken[-1][0] * 1000, 0) <= lake.position["dead_letters"]:  # by what was refused, not by the limit of now
            told = batch(taken)
            told = replace(told, events=without_refused(told.events, refused))
            state, output = step(state, told, RULES, semantics.without_series_limits())
        else:
            state, output = step(state, batch(taken), RULES, semantics)
        at = state.positions[0]
        if at > alerts_log["position"]:
            if output.transitions.height:
                alerts_log["transitions"].append(output.transitions)
                alerts_log["position"] = at
                alerts_log["active"] = named_alerts(state)
        else:  # what stands at the alerts' own position is theirs to say
            active = alerts_log["active"].join(state.series.select("series", *SERIES_NAMES), on=SERIES_NAMES).drop(SERIES_NAMES)
            state = State(**{**state.__dict__, "active": active.with_columns(partition=pl.lit(0, pl.Int32)).select(state.active.columns)})
        made.append({table: getattr(output, table) for table in TABLES if at > lake.position[table]})
        rows = {table: [one[table] for one in made if table in one and one[table].height] for table in TABLES}
        if not any(rows.values()) or (unread and draw(st.booleans())):
            continue
        for table in TABLES:
            may_crash()
            if rows[table]:
                lake.commit(table, rows[table], at)
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
    semantics = data.draw(st.sampled_from(LIMITS))
    stream = data.draw(streams("wxyz"))
    lake, settled, reigns = Lake(), set(), 0
    alerts_log = {"position": -1, "transitions": [], "active": NAMED.to_frame()}

    def may_crash():
        if reigns < 8 and data.draw(st.integers(0, 3)) == 0:
            raise Crash

    while True:
        reigns += 1
        try:
            reign(stream, lake, settled, data.draw, may_crash, alerts_log, semantics)
            break
        except Crash:
            continue
    note(f"{reigns} reigns")
    _, whole = step(State(), batch(stream), RULES, semantics)
    oracle = oracle_of(stream, semantics)
    check_against(oracle, lake.table("aggregates", whole.aggregates.clear()))
    assert dead_rows(lake.table("dead_letters", whole.dead_letters.clear())) == sorted(oracle.dead)
    found = lake.table("anomalies", whole.anomalies.clear())
    assert sorted(map(repr, found.rows())) == sorted(map(repr, whole.anomalies.rows()))
    raised = pl.concat([whole.transitions.clear(), *alerts_log["transitions"]])
    columns = ["rule", "phase", "severity", "since", "time", "value"]
    assert sorted(map(repr, raised.select(columns).rows())) == sorted(map(repr, whole.transitions.select(columns).rows()))


@EXAMPLES
@given(data=st.data())
def test_a_limit_may_be_another_in_each_reign(data):
    """Raised or lowered at a hand-over: what was refused stays refused, what was taken stays taken, nothing is lost or counts twice.

    A reign that makes no row commits nothing: what it read is judged by the next, under its limit. But a series of which it raised an
    alert that stands is taken from then on.
    """
    stream, cuts, judged = data.draw(streams("wxyz")), [], 0
    lake, settled, oracle = Lake(), set(), Oracle(SEMANTICS)
    alerts_log = {"position": -1, "transitions": [], "active": NAMED.to_frame()}
    for part in cut(data.draw, stream):
        oracle.semantics = semantics = data.draw(st.sampled_from(LIMITS))
        cuts += part
        reign(cuts, lake, settled, data.draw, lambda: None, alerts_log, semantics)
        for device, metric in alerts_log["active"].select(pl.col("device", "metric").cast(pl.String)).rows():
            oracle.series[device].add(metric)
        position = max(lake.position["dead_letters"], lake.position["aggregates"])
        for now, rows in cuts[judged:]:
            if entry_id(now * 1000, 0) <= position or len(cuts) == len(stream):
                oracle.apply(now * S, [(device, metric, time * S, value) for device, metric, time, value in rows])
                judged += 1
    check_against(oracle, lake.table("aggregates", AGGREGATES.to_frame()))
    assert dead_rows(lake.table("dead_letters", DEAD_ROWS.to_frame())) == sorted(oracle.dead)


@pytest.mark.parametrize(("first", "then"), [((2, 1), (9, 9)), ((9, 9), (1, 1))])
def test_a_limit_that_changes_while_dead_letters_are_ahead_judges_nothing_twice(first, then):
    """A commit had dead letters alone, so that the position stayed behind: the next holder goes by them, whatever its limit is."""
    limits = [replace(SEMANTICS, partition_series_max=p, device_series_max=d) for p, d in (first, then)]
    late = ("a", "x", -200, 1)  # makes a dead letter where the limit makes none
    stream = [(1, [("a", "x", 50, 1), ("a", "y", 50, 2), ("b", "x", 51, 3), late]), (2, [("a", "y", 51, 4)]), (90, []), (120, [])]
    lake, settled, alerts_log = Lake(), set(), {"position": -1, "transitions": [], "active": NAMED.to_frame()}
    oracle = Oracle(limits[0])
    for upto, semantics in zip((1, 4), limits, strict=True):
        oracle.semantics = semantics
        for now, rows in stream[upto - 1 if upto == 1 else 1 : upto]:
            oracle.apply(now * S, [(device, metric, time * S, value) for device, metric, time, value in rows])
        reign(stream[:upto], lake, settled, lambda _: 1, lambda: None, alerts_log, semantics)
        if upto == 1:
            assert lake.position["dead_letters"] > lake.position["aggregates"]
    check_against(oracle, lake.table("aggregates", AGGREGATES.to_frame()))
    assert dead_rows(lake.table("dead_letters", DEAD_ROWS.to_frame())) == sorted(oracle.dead)


def test_a_device_that_invents_series_leaves_room_to_others():
    """Its known series go on, those beyond its limit are set aside, and a new series of another device is taken after it all."""
    semantics = replace(SEMANTICS, partition_series_max=5, device_series_max=3)
    flood = [[("bad", f"m{t}-{n}", 50 + t, 1) for n in range(20)] for t in (1, 2)]
    flood = [(t, [*rows, ("bad", "m1-0", 50 + t, t), ("good", "x", 50 + t, t)]) for t, rows in enumerate(flood, 1)]
    entries = [*flood, (3, [("good", "y", 53, 1), ("good", "z", 53, 1), ("late-comer", "x", 53, 1)]), (60, []), (90, [])]
    state, output = step(State(), batch(entries), RULES, semantics)
    counts = {(d, m): count for d, m, _, count, *_ in base_rows(output.aggregates)}
    assert counts == {("bad", "m1-0"): 2, ("bad", "m1-1"): 1, ("bad", "m1-2"): 1, ("good", "x"): 2, ("good", "y"): 1}
    assert output.dead_letters["reason"].unique().to_list() == [SERIES_LIMIT]
    refused = output.dead_letters["device"].value_counts().sort("device").rows()
    assert refused == [("bad", 37), ("good", 1), ("late-comer", 1)]
    assert state.devices["device"].cast(pl.String).to_list() == ["bad", "good"]


def test_names_of_any_kind_are_found_again_in_what_was_refused():
    """Whatever stands in names and tags, recovery tells an event that was refused from one beside it that was taken."""
    odd = ['a"b', "a\\b", '","value":1', "ü\n", '{"device":"a"}']
    rows = [(0, 1, name, name, name, json.dumps({name: name, "value": name}) * tagged, bits, 1e300, exact, 50 * S)
            for name in odd for tagged in (0, 1) for bits, exact in ((0, None), (64, 2**63))]  # fmt: skip
    events = pl.DataFrame(rows, schema=BATCH_EVENTS, orient="row")
    entries = pl.DataFrame([(0, 1, events.height)], schema=ENTRIES, orient="row")
    _, output = step(State(), Batch(events, entries), RULES, replace(SEMANTICS, partition_series_max=3))
    dead = output.dead_letters
    assert dead["reason"].unique().to_list() == [SERIES_LIMIT]
    refused = refused_of(dead.lazy()).collect()
    left = without_refused(events, refused)
    assert left.unique(SERIES_NAMES).height == 3 and left.height + dead.height == events.height
    assert without_refused(events, REFUSED.to_frame()).equals(events)


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
