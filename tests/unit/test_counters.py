"""What a counter counted: across wraps, resets and gaps, out of order, across windows, and to the last unit."""

from __future__ import annotations

import polars as pl
import pytest

from pipeline.core.batch import step
from pipeline.core.rules import Rules
from tests.frames import SEMANTICS, batch, run, windows

WRAP_32, WRAP_53 = 2**32, 2**53


def one(samples, bits=64):
    """(increase, quality) of the only window that the samples lie in."""
    (row,) = windows(samples, bits)
    return row["increase"], row["quality"]


@pytest.mark.parametrize("bits", [32, 53, 64])
def test_a_counter_that_grows_is_ok(bits):
    """The increase is what was counted between the first and the last sample; standing still counts nothing."""
    assert one([(0, 10), (1, 12), (2, 12), (3, 20)], bits) == (10, "ok")
    assert one([(0, 7), (1, 7)], bits) == (0, "ok")


@pytest.mark.parametrize("bits", [32, 53, 64])
def test_a_decrease_is_a_reset_and_counts_from_zero(bits):
    """As Prometheus' increase(): 10 -> 12 -> 5 has counted 2 and, from 0 on, 5."""
    assert one([(0, 10), (1, 12), (2, 5), (3, 6)], bits) == (2 + 5 + 1, "reset")
    assert one([(0, 10), (1, 0)], bits) == (0, "reset")


@pytest.mark.parametrize(("bits", "modulus"), [(32, WRAP_32), (53, WRAP_53)])
def test_a_counter_wraps_at_its_width_where_that_is_plausible(bits, modulus):
    """Up to half its range it has wrapped; a larger jump would be faster than anything plausible: it was reset."""
    assert one([(0, modulus - 10), (1, 5)], bits) == (15, "wrap")
    assert one([(0, modulus - 1), (1, 0)], bits) == (1, "wrap")
    half = modulus // 2
    assert one([(0, modulus - 1), (1, half - 2)], bits) == (half - 1, "wrap")
    assert one([(0, modulus - 1), (1, half - 1)], bits) == (half - 1, "reset")
    assert one([(0, half), (1, 3)], bits) == (3, "reset")


def test_a_value_beyond_its_width_cannot_wrap():
    """A counter said to have 32 bits that shows more was said wrongly: its decrease is a reset."""
    assert one([(0, WRAP_32 + 10), (1, 5)], 32) == (5, "reset")


def test_a_decrease_of_64_bits_is_always_a_reset():
    """It would take years to wrap, so even the step from its last value to 0 is a restart."""
    assert one([(0, 2**64 - 1), (1, 3)], 64) == (3, "reset")
    assert one([(0, WRAP_32 - 1), (1, 3)], 64) == (3, "reset")


def test_integers_beyond_2_53_are_exact():
    """float64 holds even numbers only there; the difference is still counted to the unit, up to 2**64 - 1."""
    top = 2**64 - 1
    assert one([(0, top - 3), (1, top - 2), (2, top)], 64) == (3, "ok")
    assert one([(0, WRAP_53 - 2), (1, WRAP_53 - 1), (2, WRAP_53), (3, WRAP_53 + 1)], 64) == (3, "ok")
    assert one([(0, WRAP_53 + 1), (1, WRAP_53 + 1)], 64) == (0, "ok")


def test_an_exact_last_sample_is_kept_across_windows():
    """Its integer form travels in the state, not its rounded one."""
    first, second = windows([(0, 2**60 + 1), (12, 2**60 + 4)], 64)
    assert (first["increase"], first["last_exact"]) == (None, 2**60 + 1)
    assert second["increase"] == 3


def test_the_first_sample_of_a_series_has_no_rate():
    """Nothing says when it began to count; the second sample does."""
    (alone,) = windows([(3, 1000)], 64)
    assert (alone["increase"], alone["rate"], alone["quality"]) == (None, None, None)
    first, second = windows([(3, 1000), (13, 1050)], 64)
    assert first["rate"] is None
    assert (second["increase"], second["rate"], second["quality"]) == (50, 5, "ok")


def test_a_rate_is_over_event_time():
    """Increase per second from the sample it starts from to the last, wherever the windows' edges lie."""
    #  0         10        20
    #  [---------)[--------)
    #   2   6        14  18
    first, second = windows([(2, 0), (6, 40), (14, 200), (18, 240)], 64)
    assert (first["increase"], first["rate"]) == (40, 40 / 4)
    assert (second["increase"], second["rate"]) == (200, 200 / 12)


def test_the_last_sample_is_kept_across_windows_and_steps():
    """Over empty windows too, and whether one step closes the windows or several do."""
    samples = [(1, 5), (2, 7), (35, 10), (41, 30)]
    whole = windows(samples, 64)
    assert [row["increase"] for row in whole] == [2, 3, 20]
    parts = [batch([(n, [("r1", "m", time, value)])], 64) for n, (time, value) in enumerate(samples)]
    _, output = run(*parts, batch([(9, [("r1", "end", 300, 0)])]))
    cut = output.aggregates.filter(pl.col("metric").cast(pl.String) == "m").sort("window")
    assert cut["increase"].to_list() == [2, 3, 20]


def test_a_gap_is_told_and_still_counted():
    """Samples further apart than `counter_gap`: what was counted in between is, on whatever day it was."""
    _, after = windows([(0, 10), (31, 50)], 64)
    assert (after["increase"], after["quality"]) == (40, "gap")
    _, at_the_bound = windows([(0, 10), (30, 50)], 64)
    assert at_the_bound["quality"] == "ok"


def test_the_worst_quality_of_a_window_is_shown():
    """reset over wrap over gap over ok."""
    assert one([(0, WRAP_32 - 1), (1, 1), (2, 2)], 32)[1] == "wrap"
    assert one([(0, WRAP_32 - 1), (1, 1), (2, 50), (3, 40)], 32)[1] == "reset"
    _, after = windows([(0, 100), (41, 200), (42, 10)], 64)
    assert (after["increase"], after["quality"]) == (110, "reset")


def test_an_older_sample_is_never_a_reset():
    """Out of order within its window it is put in its place; what comes after the window closed adds nothing."""
    assert one([(3, 30), (1, 10), (2, 20), (0, 5)], 64) == (25, "ok")
    state, _ = run(batch([(0, [("r1", "m", 1, 10), ("r1", "m", 12, 20), ("r1", "m", 40, 50)])], 64))
    state, output = step(state, batch([(1, [("r1", "m", 5, 15)])], 64), Rules(), SEMANTICS)
    (late,) = output.aggregates.to_dicts()
    assert late["revision"] and (late["increase"], late["rate"], late["quality"]) == (None, None, None)
    _, output = step(state, batch([(2, [("r1", "m", 300, 60)])], 64), Rules(), SEMANTICS)
    assert output.aggregates.sort("window")["increase"].to_list() == [30]  # 20 -> 50, unmoved by the 15


def test_a_repeated_sample_counts_once():
    """A client's retry of the same time and value is one sample; with another value, the last one holds."""
    assert one([(0, 10), (1, 12), (1, 12), (2, 13)], 64) == (3, "ok")
    assert one([(0, 10), (1, 99), (1, 12), (2, 13)], 64) == (3, "ok")


def test_a_gauge_has_no_increase():
    """Also where it looks like a counter."""
    (row,) = windows([(0, 10), (1, 12), (2, 5)], 0)
    assert (row["increase"], row["rate"], row["quality"]) == (None, None, None)


def test_gauges_and_counters_in_one_batch():
    """Each series is judged by its own width; neighbours in the frame touch nothing."""
    gauge, wide = batch([(0, [("a", "g", 1, 9), ("a", "g", 2, 1)])], 0), batch([(0, [("a", "c", 1, 3), ("a", "c", 2, 8)])], 64)
    narrow = batch([(0, [("a", "w", 1, WRAP_32 - 2), ("a", "w", 2, 2)]), (1, [("a", "end", 300, 1)])], 32)
    both = type(gauge)(pl.concat([gauge.events, wide.events, narrow.events]), narrow.entries)
    _, output = run(both)
    found = {row["metric"]: (row["increase"], row["quality"]) for row in output.aggregates.to_dicts()}
    assert found == {"g": (None, None), "c": (5, "ok"), "w": (4, "wrap")}


def test_a_counter_need_not_be_whole():
    """Seconds of processor time, for one: a float's difference."""
    assert one([(0, 0.25), (1, 0.75), (2, 0.5)], 64) == (0.5 + 0.5, "reset")


def test_a_series_that_turns_from_gauge_to_counter_counts_from_there():
    """The name table may learn a name between two releases."""
    state, _ = run(batch([(0, [("r1", "m", 1, 10)])], 0))
    _, output = step(state, batch([(1, [("r1", "m", 2, 14), ("r1", "m", 300, 20)])], 64), Rules(), SEMANTICS)
    (row,) = output.aggregates.to_dicts()
    assert (row["increase"], row["quality"]) == (4, "ok")
