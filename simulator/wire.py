"""A frame of events -> request bodies. Integers stay integers, up to 2^64-1; nothing loops over events.

Columns: device, interface, metric, timestamp (Datetime, UTC), optionally kind and tags (a struct of strings), and either
`value` (numbers of one type, or booleans) or `integer`, `number` and `text`, of which a row has at most one: `text` is sent
as a string and is there to be refused. A null is sent as null, or left out of tags.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import polars as pl

from simulator.errors import UserError

CONTENT_TYPES = {"json": "application/json", "ndjson": "application/x-ndjson", "arrow": "application/vnd.apache.arrow.stream"}
FORMS = list(CONTENT_TYPES)
_SLICE = "5s"  # of event time; see _arrow_bodies


@dataclass(frozen=True)
class Body:
    """One request: its bytes, and the rows in it, in order."""

    form: str
    content: bytes
    rows: pl.DataFrame


def bodies(events: pl.DataFrame, form: str, body_events: int) -> Iterator[Body]:
    """Cut `events` into bodies of at most `body_events`, in their order. An empty frame gives none."""
    if form == "arrow":
        for at in range(0, events.height, body_events):
            yield from _arrow_bodies(events[at : at + body_events])
        return
    lines = json_lines(events)
    for at in range(0, events.height, body_events):
        part = lines[at : at + body_events]
        content = "[" + part.str.join(",").item() + "]" if form == "json" else part.str.join("\n").item() + "\n"
        yield Body(form, content.encode(), events[at : at + body_events])


def json_lines(events: pl.DataFrame) -> pl.Series:
    """Each event as a JSON object, in a column of strings."""
    fields = [name for name in ("device", "interface", "metric", "kind") if name in events.columns]
    if "value" in events.columns and "tags" not in events.columns:  # the common case of recordings, four times as fast
        return events.select(pl.struct(*fields, _stamp(events).alias("timestamp"), "value").struct.json_encode()).to_series()
    parts = [
        pl.struct(fields).struct.json_encode().str.strip_suffix("}"),
        pl.lit(',"timestamp":'),
        _json(_stamp(events)),
        pl.lit(',"value":'),
        _json(pl.col("value")) if "value" in events.columns else _literal(),
    ]
    if "tags" in events.columns:
        parts += [pl.lit(',"tags":{'), _tags(events), pl.lit("}")]
    return events.select(pl.concat_str(*parts, pl.lit("}"))).to_series()


def _tags(events: pl.DataFrame) -> pl.Expr:
    """Tag by tag, as nothing in the text of all of them tells a null for sure: a tag may say anything."""
    names = [field.name for field in events.schema["tags"].fields]
    numbered = pl.col("tags").struct.rename_fields([str(at) for at in range(len(names))])  # a name like "*" would mean all of them
    tags = [(json.dumps(name) + ":", numbered.struct.field(str(at))) for at, name in enumerate(names)]
    said = [pl.when(tag.is_not_null()).then(pl.lit(name) + _json(tag)) for name, tag in tags]
    return pl.concat_str(*said, separator=",", ignore_nulls=True) if said else pl.lit("")


def _json(value: pl.Expr) -> pl.Expr:
    return pl.struct(value.alias("x")).struct.json_encode().str.strip_prefix('{"x":').str.strip_suffix("}")


def _literal() -> pl.Expr:
    whole = pl.when(pl.col("integer").is_not_null()).then(pl.col("integer").cast(pl.String))
    return whole.when(pl.col("number").is_not_null()).then(_json(pl.col("number"))).otherwise(_json(pl.col("text")))


def _stamp(events: pl.DataFrame) -> pl.Expr:
    """Epoch milliseconds; RFC 3339 with microseconds where the frame has any."""
    stamp = pl.col("timestamp")
    if events.select((stamp.dt.epoch("us") % 1000 != 0).any()).item():
        return stamp.dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
    return stamp.dt.epoch("ms")


def _arrow_bodies(events: pl.DataFrame) -> Iterator[Body]:
    """One Arrow stream, or more where one column cannot hold all values exactly.

    Floats and integers that a float holds exactly go together as float64, larger integers in a body of their own, and so do
    those far below 0. The bodies overlap in time, so a mixed frame is cut into short slices of time first, far below any
    tolerated disorder. UserError for an integer that no column holds.
    """
    columns = [name for name in ("device", "interface", "metric", "timestamp", "value", "kind", "tags") if name in events.columns]
    if "value" in events.columns:
        yield _arrow_body(events, events.select(columns))
        return
    integer = pl.col("integer").cast(pl.Int128)
    exact = integer.cast(pl.Float64).cast(pl.Int128, strict=False) == integer
    large = integer.is_not_null() & ~exact.fill_null(False)
    if (beyond := events.filter(~integer.is_between(-(2**63), 2**64 - 1))).height:
        first = beyond.row(0, named=True)
        what = f"{first['integer']} of device {first['device']}, metric {first['metric']}"
        raise UserError(f"--form arrow cannot hold the integer {what}; --form json sends it as it is")
    if not events.select(large.any()).item():
        slices = [events]
    else:
        numbered = events.with_columns(slice=pl.col("timestamp").dt.truncate(_SLICE).rle_id())
        slices = numbered.partition_by("slice", maintain_order=True, include_key=False)
    for part in slices:
        floats = part.filter(~large)
        if floats.height:
            value = pl.coalesce(pl.col("integer").cast(pl.Float64), "number").alias("value")
            yield _arrow_body(floats, floats.select(*columns, value))
        for kind, integers in ((pl.UInt64, part.filter(large & (integer > 0))), (pl.Int64, part.filter(large & (integer < 0)))):
            if integers.height:
                yield _arrow_body(integers, integers.select(*columns, pl.col("integer").cast(kind).alias("value")))


def _arrow_body(rows: pl.DataFrame, sent: pl.DataFrame) -> Body:
    buffer = BytesIO()
    sent.write_ipc_stream(buffer, compat_level=pl.CompatLevel.oldest())  # plain large_string, which every reader knows
    return Body("arrow", buffer.getvalue(), rows)
