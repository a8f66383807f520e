"""What is said of runs, against numpy over each run by itself."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.runs import Runs

SHARES = {"p0": 0.0, "p50": 0.5, "p95": 0.95, "p99": 0.99, "p100": 1.0}
lengths = st.lists(st.integers(1, 70), min_size=1, max_size=12)


def rows_of(counts: list[int], seed: int) -> tuple[pl.DataFrame, list[np.ndarray]]:
    values = np.random.default_rng(seed).normal(0, 1e3, sum(counts))
    keys = np.repeat(np.arange(len(counts)), counts)
    parts = np.split(values, np.cumsum(counts)[:-1])
    return pl.DataFrame({"a": keys // 2, "b": keys % 2, "value": values}), parts


@settings(max_examples=150, deadline=None)
@given(lengths, st.integers(0, 1000))
def test_each_run_is_as_if_it_were_alone(counts, seed):
    rows, parts = rows_of(counts, seed)
    runs, values = Runs.of(rows, "a", "b"), rows["value"].to_numpy()
    assert runs.counts.tolist() == counts and len(runs) == len(counts)
    assert runs.min(values).tolist() == [part.min() for part in parts] and runs.max(values).tolist() == [part.max() for part in parts]
    assert runs.sum(values) == pytest.approx([part.sum() for part in parts], rel=1e-12, abs=1e-9)
    assert runs.first(rows)["value"].to_list() == [part[0] for part in parts]
    assert runs.last(rows)["value"].to_list() == [part[-1] for part in parts]
    assert runs.numbers().tolist() == np.repeat(np.arange(len(counts)), counts).tolist()
    assert runs.cum_max(values).tolist() == np.concatenate([np.maximum.accumulate(part) for part in parts]).tolist()
    for name, share in SHARES.items():
        expected = [np.quantile(part, share) for part in parts]
        assert runs.quantiles(values, SHARES)[name] == pytest.approx(expected, rel=1e-12, abs=1e-9)


@given(st.permutations(range(9)))
def test_quantiles_do_not_depend_on_the_order_within_a_run(order):
    values = np.array([3.5, -1e300, 1e300, 0.0, -0.5, 7.25, 7.25, 1e-300, 2.0])
    ranked = Runs.of(pl.DataFrame({"a": [0] * 9}), "a")
    assert ranked.quantiles(values[list(order)], SHARES) == ranked.quantiles(values, SHARES)


def test_values_so_far_apart_that_their_difference_is_no_number():
    """A rank that is met exactly needs no difference."""
    values = np.array([-1.7e308, 0.0, 1.7e308])
    assert Runs.of(pl.DataFrame({"a": [0] * 3}), "a").quantiles(values, {"p50": 0.5, "p0": 0.0}) == {"p50": [0.0], "p0": [-1.7e308]}


def test_no_rows_have_no_runs():
    rows = pl.DataFrame({"a": [], "value": []}, schema={"a": pl.Int64, "value": pl.Float64})
    runs, values = Runs.of(rows, "a"), rows["value"].to_numpy()
    assert (len(runs), runs.sum(values).size, runs.quantiles(values, SHARES)["p50"].size, runs.first(rows).height) == (0, 0, 0, 0)
