"""Increase of counters from sample to sample: across wraps, resets and gaps, each with its quality.

A decrease is a wrap where the counter's width makes that plausible (RFC 2578: Counter32 wraps at 2**32; exporters that
carry 64-bit counters as float64 wrap at 2**53), else a reset, after which the counter has counted on from 0, as
Prometheus' increase() takes it. A 64-bit counter needs years to wrap, so its decrease is always a reset.
"""

from __future__ import annotations

import polars as pl

QUALITIES = ("ok", "gap", "wrap", "reset")  # in order of weight: a window shows the worst of its steps


def step_columns(gap: int) -> list[pl.Expr]:
    """`step` and `quality_code` of each row from the row before it in its series.

    Over columns value, exact, event_time, counter_bits and their `before_*` (null: no sample before, so no step).
    `gap`: microseconds between samples beyond which the step has quality "gap"; it is still what the counter counted.
    A step is a float64 difference, which is exact below 2**53; beyond, `exact_step_columns` takes over.
    """
    value, before = pl.col("value"), pl.col("before_value")
    modulus = pl.when(pl.col("counter_bits") == 32).then(2.0**32).when(pl.col("counter_bits") == 53).then(2.0**53)
    difference = value - before
    wrapped = difference + modulus  # null for 64 bits
    return _decide(difference, wrapped, modulus / 2, value, gap)


def exact_step_columns(gap: int) -> list[pl.Expr]:
    """The same in 128-bit integers, where a value is beyond 2**53: `exact` holds it."""
    value = pl.coalesce(pl.col("exact").cast(pl.Int128), pl.col("value").cast(pl.Int128, strict=False))
    before = pl.coalesce(pl.col("before_exact").cast(pl.Int128), pl.col("before_value").cast(pl.Int128, strict=False))
    modulus = (
        pl.when(pl.col("counter_bits") == 32)
        .then(pl.lit(2**32, pl.Int128))
        .when(pl.col("counter_bits") == 53)
        .then(pl.lit(2**53, pl.Int128))
    )
    difference = value - before
    return _decide(difference, difference + modulus, modulus // 2, value, gap)


def _decide(difference: pl.Expr, wrapped: pl.Expr, plausible: pl.Expr, value: pl.Expr, gap: int) -> list[pl.Expr]:
    is_wrap = (difference < 0) & (wrapped >= 0) & (wrapped < plausible)
    step = pl.when(difference >= 0).then(difference).when(is_wrap.fill_null(False)).then(wrapped).when(difference < 0).then(value)
    late = pl.col("event_time") - pl.col("before_time") > gap
    code = pl.when(difference.is_null()).then(None)
    code = (
        code.when(difference >= 0)
        .then(late.cast(pl.UInt8))
        .when(is_wrap.fill_null(False))
        .then(pl.lit(2, pl.UInt8))
        .otherwise(pl.lit(3, pl.UInt8))
    )
    is_counter = pl.col("counter_bits") > 0
    return [
        pl.when(is_counter).then(step.cast(pl.Float64)).alias("step"),
        pl.when(is_counter).then(code).alias("quality_code"),
    ]
