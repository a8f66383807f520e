"""Events that a step sets aside, as dead letters; and which of an entry's events were refused, as those dead letters tell it.

A refused event has no row in the aggregates, and its entry may stay pending for another event's sake. So recovery goes by
its dead letter, which is committed no later than the position: not by the limit, which may have been another then.
"""

from __future__ import annotations

import polars as pl

from pipeline.core.schema import DEAD_ROWS

TOO_LATE = "too_late"
SERIES_LIMIT = "series_limit"
# Series that were refused in an entry. Of one entry all its events in time were, or none: a limit that is met stays met.
REFUSED = pl.Schema({"entry": pl.Int64(), "series": pl.String()})


def dead_rows(events: pl.DataFrame, field: str, reason: str) -> pl.DataFrame:
    """Events as dead letters (DEAD_ROWS); `event` is JSON as ingest takes it, so that they can be re-driven."""
    events = events.rechunk()  # Polars 2.1: format and concat_str panic on a column with an empty chunk inside
    event = pl.concat_str(
        _series_text(),
        pl.lit(',"value":'), pl.coalesce(pl.col("exact").cast(pl.String), pl.col("value").cast(pl.String)),
        pl.lit(',"timestamp":"'), pl.col("event_time").cast(pl.Datetime("us")).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"), pl.lit('"}'),
    )  # fmt: skip
    return events.select(
        "partition", "entry", pl.col("device").cast(pl.String), pl.lit(field).alias("field"), pl.lit(reason).alias("reason"), event=event
    ).select(list(DEAD_ROWS))


def series_of(event: pl.Expr) -> pl.Expr:
    """What names the series in the text of a dead letter of ours: all before the value."""
    return event.str.replace(r',"value":[^"]*,"timestamp":"[^"]*"\}$', "")


def without_refused(events: pl.DataFrame, refused: pl.DataFrame) -> pl.DataFrame:
    """`events` (BATCH_EVENTS) but for those of series that were refused (REFUSED) in their entry."""
    if refused.is_empty() or events.is_empty():
        return events
    named = events.rechunk().with_columns(series=_series_text())
    return named.join(refused, on=["entry", "series"], how="anti", maintain_order="left").drop("series")


def _series_text() -> pl.Expr:
    tags = pl.col("tags").cast(pl.String)
    kind = pl.when(pl.col("counter_bits") == 0).then(pl.lit('"gauge"')).otherwise(pl.format('"counter{}"', "counter_bits"))
    return pl.concat_str(
        pl.lit('{"device":'), _quoted("device"), pl.lit(',"interface":'), _quoted("interface"), pl.lit(',"metric":'), _quoted("metric"),
        pl.lit(',"kind":'), kind,
        pl.lit(',"tags":'), pl.when(tags == "").then(pl.lit("{}")).otherwise(tags),
    )  # fmt: skip


def _quoted(column: str) -> pl.Expr:
    """A column's text as a JSON string: what stands after the name in an object of one nameless field."""
    return pl.struct(pl.col(column).cast(pl.String).alias("")).struct.json_encode().str.strip_prefix('{"":').str.strip_suffix("}")
