"""How full a partition and a device are, as numbers and as a person sees it."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from pipeline.core.batch import State
from pipeline.core.cardinality import Fullest, fullest
from pipeline.statusview import _series
from tests.frames import SEMANTICS, batch, run

LIMITED = replace(SEMANTICS, partition_series_max=8, device_series_max=4)


def test_the_fullest_are_named_with_the_share_of_their_limit():
    rows = [("a", "x", 5, 1), *(("b", metric, 5, 1) for metric in "xyz")]
    state, _ = run(batch([(1, rows)]), semantics=LIMITED)
    assert fullest(state.series, LIMITED) == (0, 0.5, "b", 0.75)
    assert fullest(State().series, LIMITED) == Fullest(None, 0.0, None, 0.0)


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ((0.5, 0.5), "1,200"),
        ((0.9, 0.5), "1,200 (partition 3 has 90% of its limit)"),
        ((0.9, 1.0), "1,200 (device r1 has 100% of its limit)"),
    ],
)
def test_status_says_who_is_near_a_limit(shares, text):
    full = Fullest(3, shares[0], "r1", shares[1])._asdict()
    assert _series({"series": 1200, "fullest": full}).plain == text
    assert _series({"series": 1200}).plain == "1,200"  # of a worker of an earlier release


def test_a_limit_that_is_met_only_by_series_that_stay_away_changes_nothing():
    """Exactly as many as there may be are taken, and go on for good."""
    rows = [("a", metric, 5, 1) for metric in "wxyz"]
    state, output = run(batch([(1, rows)]), batch([(2, rows)]), semantics=LIMITED)
    assert (state.series.height, state.open.height, output.dead_letters.height) == (4, 8, 0)
    assert state.series["series"].to_list() == [0, 1, 2, 3]
    more, output = run(batch([(1, [*rows, ("a", "v", 5, 1)])]), semantics=LIMITED)
    assert output.dead_letters.select("field", "reason").rows() == [("series", "series_limit")]
    assert more.series.select(pl.col("metric").cast(pl.String))["metric"].to_list() == list("wxyz")
