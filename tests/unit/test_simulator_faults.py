"""The truth is true: faults are in the values where and when the truth says, and bad manners are counted exactly."""

import itertools
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from simulator.faults import FIRST_FAULT_MS, KINDS, Schedule
from simulator.fleet import build_fleet
from simulator.manners import FLAWS, LATE, MALFORMED, REPEATED, Manners, misbehave, spoil
from simulator.polls import Polls
from simulator.run import SimulateOptions, Source
from simulator.signals import Signals
from simulator.truth import SCHEMA, append_truth, count_outcomes, match_faults, read_truth, truth_frame

T0 = 1_795_000_000_000  # epoch ms
FLEET = build_fleet(seed=3, sites=2, devices=24, interfaces=6)
SIGNALS = Signals(FLEET)


def schedule(until_ms=600_000, **options):
    made = Schedule(FLEET, T0, options.pop("gap_ms", 20_000), 5_000, **options)
    made.extend(T0 + until_ms)
    return made


def first(kind, made=None):
    return next(fault for fault in (made or schedule()).faults if fault.kind == kind)


def value(fault, metrics, t_ms, effects):
    """The values of the series of `fault.seen` with one of `metrics`, at a time."""
    rows = np.array([row for row in fault.seen if FLEET.series["metric"][row] in metrics])
    integer, number = effects.values(SIGNALS, rows, np.full(len(rows), t_ms))
    return np.where(SIGNALS.whole[rows], integer.astype(float), number)


def test_a_longer_schedule_begins_with_the_shorter():
    """Faults depend on their number and the seed, not on when they were asked for."""
    short, long = schedule(100_000), schedule(600_000)
    assert long.faults[: len(short.faults)] == short.faults
    stepwise = Schedule(FLEET, T0, 20_000, 5_000)
    for t in range(0, 600_001, 7_000):
        stepwise.extend(T0 + t)
    stepwise.extend(T0 + 600_000)
    assert stepwise.faults == long.faults


def test_whoever_watches_sees_each_kind_soon():
    """The first fault comes after 8 s and is visible; the first seven are one of each kind; none after the last allowed start."""
    made = schedule(last_start_ms=T0 + 300_000)
    assert made.faults[0].start == T0 + FIRST_FAULT_MS
    assert made.faults[0].visible
    assert [fault.kind for fault in made.faults[:7]] == KINDS
    assert max(fault.start for fault in made.faults) <= T0 + 300_000


def test_faults_do_not_share_devices():
    """Two faults that overlap in time touch different devices, so an alert belongs to one."""
    faults = schedule(3_600_000, gap_ms=5_000).faults
    assert len(faults) > 200
    for i, one in enumerate(faults):
        assert not any(one.touched & other.touched for other in faults[i + 1 :] if other.start < one.end)


def test_a_gap_of_zero_means_no_faults():
    assert schedule(gap_ms=0).faults == []


def test_a_flapping_link_is_down_at_both_ends():
    """Down, up, down within the fault; up before and after, in each dialect's own code for down."""
    made = schedule()
    fault = first("link_flap", made)
    length = fault.end - fault.start
    states = {"oper-status": 0, "ifOperStatus": 2}
    down = [states[FLEET.series["metric"][row]] for row in fault.seen if FLEET.series["metric"][row] in states]
    assert len(down) == 2
    for part, expected in ((-0.01, [1, 1]), (0.0, down), (0.4, down), (0.6, [1, 1]), (0.9, down), (1.0, [1, 1])):
        assert value(fault, states, fault.start + int(part * length), made.effects).tolist() == expected


def test_each_visible_kind_shows_in_its_metrics():
    """Rates of errors and discards in the hundreds, a processor over 90 %: only while the fault is on."""
    made = schedule()
    for kind, metrics in (("error_burst", ["in-errors", "ifInErrors"]), ("congestion", ["out-discards", "ifOutDiscards"])):
        fault = first(kind, made)
        before, start, end, after = (value(fault, metrics, t, made.effects) for t in (T0, fault.start, fault.end, fault.end + 60_000))
        assert (end - start) / (fault.end - fault.start) * 1000 >= 100
        assert start - before <= 2
        assert after - end <= 2
    for kind, at in (("cpu_runaway", 0.5), ("reboot", 0.9)):
        fault = first(kind, made)
        assert value(fault, ["cpu-utilization"], round(fault.start + at * (fault.end - fault.start)), made.effects) > 90
        assert value(fault, ["cpu-utilization"], fault.end, made.effects) < 80


def test_a_silent_or_booting_device_sends_nothing():
    """No event of it is polled within the silence; its first event comes after."""
    made = schedule()
    for kind, until in (("device_silent", 1.0), ("reboot", 0.5)):
        fault = first(kind, made)
        end = fault.start + int(until * (fault.end - fault.start))
        events = Polls(SIGNALS, 5_000).events(made.effects, fault.start - 10_000, fault.end + 10_000)
        mine = events.filter(pl.Series(SIGNALS.device[events["series"].to_numpy()] == fault.device))["polled"]
        assert mine.len() > 0
        assert not mine.is_between(fault.start, end, closed="left").any()


def test_a_skewed_clock_is_in_the_stamp_only():
    """Stamps are off by one distance, never 60 s ahead; values are those of the true time."""
    made = schedule(3_600_000)
    for fault in made.faults:
        if fault.kind == "clock_skew":
            events = Polls(SIGNALS, 5_000).events(made.effects, fault.start, fault.end)
            off = events["stamp"] - events["polled"]
            mine = off.filter(pl.Series(SIGNALS.device[events["series"].to_numpy()] == fault.device))
            assert mine.n_unique() == 1
            assert abs(mine[0]) > 20_000 and mine[0] < 60_000


def test_every_misdeed_is_labelled():
    """Copies are besides their originals; originals are all still there; each label near its rate."""
    events = Polls(SIGNALS, 5_000).events(schedule(gap_ms=0).effects, T0, T0 + 120_000)
    out = misbehave(events, 3, Manners(0.01, 0.02, 0.03, 0.04))
    copies = out.filter(pl.col("label").is_in([REPEATED, MALFORMED]))
    originals = out.filter(~pl.col("label").is_in([REPEATED, MALFORMED]))
    assert_frame_equal(originals.select(events.columns).sort("polled", "series"), events.sort("polled", "series"))
    assert copies.join(originals, on=["series", "polled"]).height == copies.height
    share = out["label"].value_counts().sort("label")["count"].to_numpy() / events.height
    np.testing.assert_allclose(share, [0.96, 0.01, 0.02, 0.03, 0.04], rtol=0.2)
    late = out.filter(pl.col("label") == LATE)
    assert (late["due"] - late["polled"]).min() >= 40_000
    assert out["due"].is_sorted()


def test_every_flaw_breaks_a_rule():
    """A malformed copy lacks its device, metric or value, has text for a number, or comes from the far future."""
    row = pl.DataFrame({"flaw": [None, *FLAWS]}).with_columns(
        device=pl.lit("d"), metric=pl.lit("m"), integer=pl.lit(5, pl.UInt64), number=pl.lit(None, pl.Float64),
        timestamp=pl.lit(datetime(2026, 1, 1, tzinfo=UTC)),
    )  # fmt: skip
    spoilt = spoil(row)
    assert spoilt["device"].is_null().to_list() == [False, True, False, False, False, False]
    assert spoilt["metric"].is_null().to_list() == [False, False, True, False, False, False]
    assert spoilt["integer"].is_null().to_list() == [False, False, False, True, True, False]
    assert spoilt["text"].to_list() == [None, None, None, None, "n/a", None]
    assert spoilt["timestamp"].dt.year().to_list() == [2026, 2026, 2026, 2026, 2026, 2036]


@pytest.mark.parametrize("step_ms", [1_000, 4_999, 60_000])
def test_ticks_of_any_length_send_the_same(step_ms):
    """Late and disordered events come when they are due, whatever the pace of the loop; what is not due yet is held."""

    def run(step):
        source = Source(SimulateOptions(seed=3), FLEET, 5_000, T0, None)
        parts = [source.advance(min(T0 + to, T0 + 60_000))[0] for to in range(step, 60_000 + step, step)]
        return pl.concat(parts), source

    sent, source = run(step_ms)
    whole, other = run(30_000)
    assert_frame_equal(sent.sort("due", "series", "label"), whole.sort("due", "series", "label"))
    assert source.shown == other.shown
    assert source.held.height == other.held.height > 0


def test_forgetting_what_is_over_changes_no_value():
    """A run holds the faults that are on, however long it lasts; its events are those of a run that forgets nothing."""
    long, whole = (Source(SimulateOptions(seed=3), FLEET, 10_000, T0, None) for _ in range(2))
    for to_ms in range(T0 + 20_000, T0 + 3_600_001, 20_000):
        assert_frame_equal(long.advance(to_ms)[0], whole.advance(to_ms)[0])
        long.forget(sum(1 for _ in itertools.takewhile(lambda fault: fault.end <= long.at_ms, long.schedule.faults)))
        assert len(long.schedule.faults) < 10 and len(long.shown) < 10
    ended = [fault for fault in whole.schedule.faults if fault.end <= T0 + 3_600_000]
    assert long.schedule.made == len(whole.schedule.faults) > 100
    boots = [fault.device for fault in ended if fault.kind == "reboot"]
    assert len(boots) > len(set(boots)), "a device that boots twice, with other faults between"


def test_the_truth_survives_its_file(tmp_path):
    """What is appended in parts is read as one frame, types and all; an empty file has no faults."""
    truth = truth_frame(FLEET, schedule().faults, {0: 12}, T0 + 600_000)
    path = tmp_path / "truth.ndjson"
    path.write_bytes(b"")
    assert read_truth(path).schema == pl.Schema(SCHEMA)
    append_truth(path, truth[:3])
    append_truth(path, truth[3:])
    assert_frame_equal(read_truth(path), truth)


def alerts(*rows):
    columns = ["device", "interface", "metric", "fired_at"]
    frame = pl.DataFrame(rows, schema=columns, orient="row", schema_overrides={"fired_at": pl.Datetime("us", "UTC")})
    return frame.with_columns(rule=pl.lit("r"), severity=pl.lit("critical"))


def test_alerts_are_matched_to_faults():
    """Found: on a series that shows it (the far end counts), from start to end + grace. Elsewhere or later: missed."""
    faults = schedule().faults
    truth = truth_frame(FLEET, faults, {fault.number: 5 for fault in faults if fault.visible})
    flap, cpu, errors = truth.row(0, named=True), truth.row(1, named=True), truth.row(2, named=True)
    grace = timedelta(seconds=30)
    far = flap["seen"][-1]
    raised = alerts(
        (far["device"], far["interface"], far["metric"], flap["start"] + timedelta(seconds=9)),
        (far["device"], far["interface"], far["metric"], flap["start"] + timedelta(seconds=4)),
        (cpu["device"], None, "cpu-utilization", cpu["end"] + grace),
        (errors["device"], errors["interface"], "oper-status", errors["start"]),
        (errors["device"], errors["interface"], errors["seen"][0]["metric"], errors["end"] + grace + timedelta(microseconds=1)),
    )
    matched = match_faults(truth, raised, grace)
    assert matched["id"].to_list() == truth["id"].to_list()
    assert matched["outcome"][:7].to_list() == ["found", "found", "missed", "missed", "missed", "not expected", "not expected"]
    assert matched["delay"][0] == timedelta(seconds=4)
    count = count_outcomes(matched)
    assert count["injected"] == truth.height == count["found"] + count["missed"] + count["not_expected"]


def test_nobody_can_find_what_was_not_shown():
    """A visible fault of which no event was sent is not counted as missed; without alerts the frame still comes out."""
    truth = truth_frame(FLEET, schedule().faults[:1], {})
    assert match_faults(truth, alerts())["outcome"].to_list() == ["not expected"]
    assert match_faults(truth.clear(), alerts()).height == 0
