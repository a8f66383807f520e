"""What a closed window says of its samples, against Python's own statistics."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.batch import SERIES, step
from pipeline.core.rules import Rules
from pipeline.core.watermarks import CLOSINGS
from pipeline.core.windows import OPEN_ROWS, SUMMARIES, summarise
from tests.frames import SEMANTICS, S, batch, run, windows

values = st.floats(-1e9, 1e9, allow_subnormal=False)


def quantile(ordered: list[float], share: float) -> float:
    """R-7, as numpy's default and DuckDB's quantile_cont: linear between the closest ranks."""
    at = share * (len(ordered) - 1)
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    return low + (high - low) * (at - math.floor(at))


def expected(samples: dict[float, float]) -> dict:
    """The statistics of samples (time -> value), in plain Python."""
    ordered = [samples[time] for time in sorted(samples)]
    ranked = sorted(ordered)
    return {
        "count": len(ordered), "sum": math.fsum(ordered), "min": ranked[0], "max": ranked[-1], "mean": statistics.fmean(ordered),
        "stddev": statistics.stdev(ordered) if len(ordered) > 1 else None, "first": ordered[0], "last": ordered[-1],
        **{f"p{int(share * 100)}": quantile(ranked, share) for share in (0.5, 0.95, 0.99)},
    }  # fmt: skip


def close(value: float | None, scale: float):
    return None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9 * max(1, scale))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), values), min_size=1, max_size=40))
def test_statistics_agree_with_plain_python(samples):
    """In any order, with repeats: of each time the last sample holds, and the others are counted as repeated."""
    (row,) = windows(samples)
    scale = max(abs(value) for _, value in samples)
    held = dict(samples)
    assert {name: row[name] for name in expected(held)} == {name: close(value, scale) for name, value in expected(held).items()}
    assert row["repeated"] == len(samples) - len(held)
    assert (row["first_time"], row["last_time"]) == (min(held) * S, max(held) * S)


def test_one_sample_has_no_spread():
    """A deviation of one value is null, not 0: 0 would say that it was measured."""
    (row,) = windows([(4, 7.5)])
    assert row["stddev"] is None
    assert {row[name] for name in ("min", "max", "mean", "sum", "first", "last", "p50", "p95", "p99")} == {7.5}


@pytest.mark.parametrize("count", range(2, 11))
def test_identical_values_have_no_spread_either(count):
    """Exactly 0, never a rounding's remainder or NaN: three times 0.1 is not 0.3."""
    (row,) = windows([(time, 0.1) for time in range(count)])
    assert (row["stddev"], row["min"], row["p95"], row["max"]) == (0.0, 0.1, 0.1, 0.1)


def test_what_overflows_is_infinite_or_null_and_harms_no_neighbour():
    """1.7e308 is a number that ingest takes; the sum of two is none."""
    _, output = run(batch([(0, [(device, "m", at, value) for device, value in (("a", 1.7e308), ("b", 2.0)) for at in (1, 2)])]),
                    batch([(1, [(device, "m", 300, 0) for device in "ab"])]))  # fmt: skip
    huge, plain = output.aggregates.sort("device").to_dicts()
    assert (huge["sum"], huge["mean"], huge["stddev"], huge["p50"], huge["max"]) == (math.inf, math.inf, 0.0, 1.7e308, 1.7e308)
    assert (plain["sum"], plain["mean"], plain["stddev"]) == (4.0, 2.0, 0.0)


def test_times_before_1970_fall_into_their_window():
    """Windows are cut downwards everywhere: -1 s belongs to [-10 s, 0)."""
    rows = windows([(-11, 1), (-10, 2), (-1, 3), (0, 4)])
    assert [(row["window"] // S, row["count"]) for row in rows] == [(-20, 1), (-10, 2), (0, 1)]


def test_a_sample_on_the_edge_opens_the_next_window():
    """[start, end): the end is the next one's start."""
    first, second = windows([(9.999999, 1), (10, 2)])
    assert (first["last"], second["first"]) == (1, 2)


def test_a_repeat_replaces_across_steps():
    """The first copy may have come in another micro-batch, while the window was open."""
    _, output = run(batch([(0, [("a", "m", 1, 10)])]), batch([(1, [("a", "m", 1, 12)])]), batch([(2, [("a", "m", 300, 0)])]))
    (row,) = output.aggregates.to_dicts()
    assert (row["count"], row["repeated"], row["sum"]) == (1, 1, 12)


def test_a_repeat_in_another_series_is_no_repeat():
    """Same time, another metric or device."""
    _, output = run(batch([(0, [("a", "m", 1, 1), ("a", "n", 1, 2), ("b", "m", 1, 3)]), (1, [(d, "end", 300, 0) for d in "ab"])]))
    assert output.aggregates["repeated"].to_list() == [0, 0, 0]


def test_late_rows_make_a_revision():
    """Each counts, repeated or not; quantiles and rates stay with the base row."""
    state, _ = run(batch([(0, [("a", "m", 1, 10), ("a", "m", 100, 0)])]))
    _, output = step(state, batch([(1, [("a", "m", 2, 4), ("a", "m", 2, 6), ("a", "m", 55, 1)])]), Rules(), SEMANTICS)
    first, second = output.aggregates.sort("window").to_dicts()
    assert first["revision"] and (first["window"], first["count"], first["repeated"]) == (0, 2, 0)
    assert (first["sum"], first["min"], first["max"], first["mean"], first["first"], first["last"]) == (10, 4, 6, 5, 4, 6)
    assert {first[name] for name in ("p50", "p95", "p99", "increase", "rate", "quality")} == {None}
    assert second["revision"] and (second["window"] // S, second["count"]) == (50, 1)
    late = output.late.select("event_time", "window", "lateness", "value").to_dicts()
    assert late[0] == {"event_time": 2 * S, "window": 0, "lateness": (100 - 4 - 2) * S, "value": 4}


def test_sums_do_not_depend_on_the_order_of_arrival():
    """To the last bit: a replay must agree with the first run."""
    samples = [(time, value) for time, value in enumerate([1e16, 1.0, -1e16, 0.1, 3.3, -7.7, 1e-9])]
    found = {windows(order)[0]["sum"].hex() for order in (samples, samples[::-1], samples[3:] + samples[:3])}
    assert len(found) == 1


def test_no_rows_give_no_rows():
    """An empty frame in its shape."""
    none = summarise(OPEN_ROWS.to_frame(), CLOSINGS.to_frame(), SERIES.to_frame(), SEMANTICS)
    assert none.schema == SUMMARIES and none.is_empty()
