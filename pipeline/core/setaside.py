"""Events that a step sets aside, as dead letters; and which of an entry's events were refused, as those dead letters tell it.

A refused event has no row in the aggregates, and its entry may stay pending for another event's sake. So recovery goes by
its dead letter, which is committed no later than the position: not by the limit, which may have been another then, nor by
what came before it, of which Redis may have lost some since.
"""

from __future__ import annotations

import polars as pl

from pipeline.core.schema import DEAD_ROWS, marked

TOO_LATE = "too_late"
SERIES_LIMIT = "series_limit"
UNPROCESSABLE = "unprocessable_entry"  # of an entry that broke the core: all that it holds
# How many events of a series and time were refused in an entry. They are the last of them there: neither a device's event
# time goes back, nor what is known of series.
REFUSED = pl.Schema({"entry": pl.Int64(), "sample": pl.String(), "count": pl.UInt32()})


def dead_rows(events: pl.DataFrame, field: str | None, reason: str) -> pl.DataFrame:
    """Events as dead letters (DEAD_ROWS); `event` is JSON as ingest takes it, so that they can be re-driven."""
    events = events.rechunk()  # Polars 2.1: format and concat_str panic on a column with an empty chunk inside
    event = pl.concat_str(
        _series_text(),
        pl.lit(',"value":'), pl.coalesce(pl.col("exact").cast(pl.String), pl.col("value").cast(pl.String)),
        _time_text(),
    )  # fmt: skip
    why = [pl.lit(field, pl.String).alias("field"), pl.lit(reason).alias("reason")]
    return events.select("partition", "entry", pl.col("device").cast(pl.String), *why, event=event).select(list(DEAD_ROWS))


def refused_of(dead_letters: pl.LazyFrame, *key: str) -> pl.LazyFrame:
    """REFUSED, after the columns of `key`, of those of the dead letters (DEAD_ROWS) that more than the event itself decided on."""
    # As it is sent, but for the value, whose digits another version may write in another way.
    sample = pl.col("event").str.replace(r',"value":[^"]*(,"timestamp":"[^"]*"\})$', "$1")
    ours = dead_letters.filter(pl.col("reason").is_in([TOO_LATE, SERIES_LIMIT, UNPROCESSABLE]))
    return ours.group_by(*key, "entry", sample=sample).agg(pl.len().alias("count"))


def without_refused(events: pl.DataFrame, refused: pl.DataFrame) -> pl.DataFrame:
    """`events` (BATCH_EVENTS) but for those that were refused (REFUSED)."""
    rows = events.with_row_index("row").join(refused, on="entry", how="semi", maintain_order="left")
    if rows.is_empty():
        return events
    rows = rows.rechunk().select("row", "entry", sample=pl.concat_str(_series_text(), _time_text()))
    rows = rows.join(refused, on=["entry", "sample"], maintain_order="left")
    last = pl.int_range(pl.len(), 0, -1).over("entry", "sample") <= pl.col("count")
    return events.filter(~marked(rows.filter(last)["row"], events.height))


def _series_text() -> pl.Expr:
    tags = pl.col("tags").cast(pl.String)
    kind = pl.when(pl.col("counter_bits") == 0).then(pl.lit('"gauge"')).otherwise(pl.format('"counter{}"', "counter_bits"))
    return pl.concat_str(
        pl.lit('{"device":'), _quoted("device"), pl.lit(',"interface":'), _quoted("interface"), pl.lit(',"metric":'), _quoted("metric"),
        pl.lit(',"kind":'), kind,
        pl.lit(',"tags":'), pl.when(tags == "").then(pl.lit("{}")).otherwise(tags),
    )  # fmt: skip


def _time_text() -> pl.Expr:
    time = pl.col("event_time").cast(pl.Datetime("us")).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
    return pl.concat_str(pl.lit(',"timestamp":"'), time, pl.lit('"}'))


def _quoted(column: str) -> pl.Expr:
    """A column's text as a JSON string: what stands after the name in an object of one nameless field."""
    return pl.struct(pl.col(column).cast(pl.String).alias("")).struct.json_encode().str.strip_prefix('{"":').str.strip_suffix("}")
