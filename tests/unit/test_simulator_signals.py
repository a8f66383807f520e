"""The laws of the simulated values: functions of (seed, series, time), counters that count, cables with two ends."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from simulator.effects import SCHEMA, Effects
from simulator.faults import Schedule
from simulator.fleet import Fleet, build_fleet, series_per_device
from simulator.metrics import SIGNALS
from simulator.polls import Polls
from simulator.signals import EPOCH_MS, Signals

T0 = 1_795_000_000_000  # epoch ms
FLEET = build_fleet(seed=7, sites=2, devices=20, interfaces=6)
SIGNALS_OF_FLEET = Signals(FLEET)
COUNTERS = np.flatnonzero(SIGNALS_OF_FLEET.counts)


def values(series, t_ms, effects=None, signals=SIGNALS_OF_FLEET):
    series, t_ms = np.broadcast_arrays(series, t_ms)
    return (effects or Effects()).values(signals, np.ascontiguousarray(series), np.ascontiguousarray(t_ms))


def table(series, times, known=None):
    """A row per time, a column per series: integers, floats."""
    parts = values(np.tile(series, len(times)), np.repeat(times, len(series)), known)
    return [part.reshape(len(times), len(series)) for part in parts]


def effects(*rows):
    return Effects(pl.DataFrame([(0, *row) for row in rows], schema=SCHEMA, orient="row"))


def series_of(fleet: Fleet, port: int, signal: str) -> int:
    return fleet.series.with_row_index("row").filter((pl.col("port") == port) & (pl.col("signal") == signal))["row"].item()


def test_a_fleet_is_its_arguments():
    """Same seed, same fleet and values; another seed, others."""
    again = build_fleet(seed=7, sites=2, devices=20, interfaces=6)
    assert_frame_equal(again.series, FLEET.series)
    assert_frame_equal(again.interfaces, FLEET.interfaces)
    other = Signals(build_fleet(seed=8, sites=2, devices=20, interfaces=6))
    np.testing.assert_array_equal(values(COUNTERS, T0)[0], values(COUNTERS, T0, signals=Signals(again))[0])
    first = np.arange(100)
    assert (values(first, T0)[1] != values(first, T0, signals=other)[1]).any()


def test_a_fleet_has_what_was_asked_for():
    """Devices, roles, sites and unique names as ordered; a device's series count is what a rate is planned with."""
    assert FLEET.devices.height == FLEET.devices["device"].n_unique() == 20
    assert set(FLEET.devices["role"]) == {"core", "edge", "spine", "leaf"}
    assert FLEET.interfaces.height == 120
    modern = FLEET.devices.filter(pl.col("dialect") == "openconfig")["device"][0]
    assert FLEET.series.filter(pl.col("device") == modern).height == series_per_device(6)
    assert not FLEET.series.select("device", "interface", "metric").is_duplicated().any()


def test_a_cable_has_two_ends():
    """The peer of an interface's peer is the interface, on another device, at the same speed."""
    ends = FLEET.interfaces.with_row_index("row").drop_nulls("peer")
    far = FLEET.interfaces[ends["peer"]]
    assert far["peer"].to_list() == ends["row"].to_list()
    assert (far["at"] != ends["at"]).all()
    assert (far["speed_bps"] == ends["speed_bps"]).all()
    assert FLEET.links.height * 2 == ends.height > 20


@pytest.mark.parametrize(("sites", "devices", "interfaces"), [(1, 1, 1), (1, 1, 0), (2, 2, 1), (3, 5, 2), (3, 40, 4)])
def test_small_fleets_exist(sites, devices, interfaces):
    """No size is too small for a fleet, its values and a schedule of faults."""
    fleet = build_fleet(1, sites, devices, interfaces)
    schedule = Schedule(fleet, T0, 20_000, 5_000)
    schedule.extend(T0 + 600_000)
    events = Polls(Signals(fleet), 5_000).events(schedule.effects, T0, T0 + 600_000)
    assert events["series"].n_unique() == fleet.series.height
    assert schedule.faults


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 200_000), max_size=8))
def test_cuts_of_time_change_nothing(cuts):
    """However time is cut into calls, the same events come out, faults included."""
    schedule = Schedule(FLEET, T0, 15_000, 5_000)
    schedule.extend(T0 + 200_000)
    polls = Polls(SIGNALS_OF_FLEET, 10_000)
    edges = sorted({0, 200_000, *cuts})
    parts = [polls.events(schedule.effects, T0 + a, T0 + b) for a, b in itertools.pairwise(edges)]
    assert_frame_equal(pl.concat(parts), polls.events(schedule.effects, T0, T0 + 200_000))


def test_a_device_is_polled_at_one_moment():
    """All series of a device share the time of its poll; devices have their own phases."""
    events = Polls(SIGNALS_OF_FLEET, 5_000).events(Effects(), T0, T0 + 5_000)
    device = pl.Series(SIGNALS_OF_FLEET.device[events["series"].to_numpy()])
    times = events.group_by(device.alias("device")).agg(pl.col("polled").n_unique().alias("times"), pl.col("polled").first())
    assert events.height == FLEET.series.height
    assert (times["times"] == 1).all()
    assert times["polled"].n_unique() > 15


def test_counters_never_run_back():
    """Modulo their width, over a day in odd steps, and under every kind of fault (reboots start from 0)."""
    schedule = Schedule(FLEET, T0, 15_000, 5_000)
    schedule.extend(T0 + 3_600_000)
    rows = [(fault.number, *effect) for fault in schedule.faults for effect in fault.effects if effect[0] != "reset"]
    faulty = Effects(pl.DataFrame(rows, schema=SCHEMA, orient="row"))
    for known, step in ((Effects(), 86_413), (faulty, 3_607)):
        times = T0 + step * np.arange(500)
        count = table(COUNTERS, times, known)[0]
        rise = (count[1:] - count[:-1]) & SIGNALS_OF_FLEET.mask[COUNTERS]
        assert (rise < 2**50).all()
        assert (rise.sum(axis=0) > 0).all()


def test_old_counters_wrap_for_real():
    """An ifInOctets of 32 bits passes 2^32 within hours, and stays below it."""
    old = np.flatnonzero((FLEET.series["metric"] == "ifInOctets").to_numpy())
    count = table(old, T0 + 10_000 * np.arange(2000))[0]
    assert (count < 2**32).all()
    assert (np.diff(count.astype(np.int64), axis=0) < 0).any()


def test_some_counters_are_beyond_63_bits():
    """Integers that neither a float nor an int64 can hold are part of normal life."""
    big = build_fleet(1, 2, 60, 8)
    count = values(np.flatnonzero(Signals(big).counts), T0, signals=Signals(big))[0]
    assert (count > 2**63).any()
    assert (count.astype(np.float64).astype(object) != count.astype(object)).any()


def test_the_ends_of_a_link_agree():
    """What one end sends is what the other receives, also while the link is down."""
    port = int(FLEET.interfaces.with_row_index("row").drop_nulls("peer")["row"][0])
    peer = FLEET.interfaces["peer"][port]
    out, into = series_of(FLEET, port, "out-octets"), series_of(FLEET, peer, "in-octets")
    both = [("rate", row, T0 + 50_000, T0 + 90_000, 0.0, 0.0) for row in (out, into)]
    times = T0 + 1_000 * np.arange(200)
    for known in (Effects(), effects(*both)):
        sent, received = values(out, times, known)[0], values(into, times, known)[0]
        np.testing.assert_array_equal(np.diff(sent), np.diff(received))
    stood = values(out, np.array([T0 + 50_000, T0 + 70_000, T0 + 90_000, T0 + 91_000]), effects(*both))[0]
    assert stood[0] == stood[1] == stood[2] < stood[3]


def test_a_reboot_counts_from_zero():
    """At the boot every counter of the device is 0, and counts on at its own rate."""
    device = 4
    boot = effects(("reset", device, T0, T0 + 1, 0.0, 0.0))
    mine = COUNTERS[SIGNALS_OF_FLEET.device[COUNTERS] == device]
    assert (values(mine, T0, boot)[0] == 0).all()
    healthy = values(mine, T0 + 60_000)[0] - values(mine, T0)[0]
    np.testing.assert_array_equal(values(mine, T0 + 60_000, boot)[0], healthy & SIGNALS_OF_FLEET.mask[mine])
    others = COUNTERS[SIGNALS_OF_FLEET.device[COUNTERS] != device]
    np.testing.assert_array_equal(values(others, T0 + 60_000, boot)[0], values(others, T0 + 60_000)[0])


def test_the_newest_boot_counts():
    """After two reboots, counting starts at the second."""
    twice = effects(("reset", 4, T0, T0 + 1, 0.0, 0.0), ("reset", 4, T0 + 50_000, T0 + 50_001, 0.0, 0.0))
    mine = COUNTERS[SIGNALS_OF_FLEET.device[COUNTERS] == 4]
    assert (values(mine, T0 + 50_000, twice)[0] == 0).all()


def test_gauges_stay_where_nothing_is_wrong():
    """A healthy day stays clear of what any sensible threshold calls odd."""
    times = T0 + 600_000 * np.arange(144)
    for signal, low, high in (("cpu", 0, 70), ("memory", 30, 75), ("temperature", 30, 50), ("optics", -6, -1)):
        rows = np.flatnonzero(SIGNALS_OF_FLEET.signal == SIGNALS.index(signal))
        level = table(rows, times)[1]
        assert low <= level.min() and level.max() <= high


def test_before_the_epoch_counters_stand():
    """A time before the fleet was switched on is answered, not refused."""
    np.testing.assert_array_equal(values(COUNTERS, EPOCH_MS - 10**9)[0], values(COUNTERS, EPOCH_MS)[0])
