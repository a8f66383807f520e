"""What the tables of the lake and their files look like, and a core frame as the rows of one."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
from deltalake import ColumnProperties, WriterProperties

from pipeline.core.recovery import LAST_ROWS
from pipeline.core.schema import AGGREGATES, ANOMALIES, DEAD_ROWS, LATE, SERIES_NAMES, log_time

SIDE_TABLES = ("anomalies", "late", "dead_letters")  # written before `aggregates`, whose position is the partition's
TABLES = (*SIDE_TABLES, "aggregates", "series")

_TIMES = ("window", "event_time", "first_time", "last_time", "newest", "arrived", "received_at")
_DURATIONS = {"lateness": "lateness_seconds"}
_NAMES = {"window": "window_start"}
_ARROW = {
    pl.Int8: pa.int8(), pl.Int32: pa.int32(), pl.Int64: pa.int64(), pl.UInt8: pa.int16(), pl.UInt32: pa.int64(),
    pl.UInt64: pa.decimal128(20, 0), pl.Float64: pa.float64(), pl.String: pa.string(), pl.Categorical: pa.string(), pl.Boolean: pa.bool_(),
}  # fmt: skip
_POLARS = {pl.UInt8: pl.Int16(), pl.UInt32: pl.Int64(), pl.UInt64: pl.Decimal(20, 0), pl.Categorical: pl.String()}
_FRAMES = {"aggregates": AGGREGATES, "anomalies": ANOMALIES, "late": LATE, "dead_letters": DEAD_ROWS}
# The newest of every series as of a version of `aggregates` (its `txn`): what recovery reads instead of all history.
SERIES_TABLE = pl.Schema({"partition": pl.Int32(), **LAST_ROWS})


def _table_schema(frame: pl.Schema, *, dated: bool) -> pa.Schema:
    fields = [("date", pa.date32())] if dated else []
    for name, dtype in frame.items():
        if name in _DURATIONS:
            fields.append((_DURATIONS[name], pa.float64()))
        elif name in _TIMES:
            fields.append((_NAMES.get(name, name), pa.timestamp("us")))
        else:
            fields.append((_NAMES.get(name, name), _ARROW[type(dtype)]))
    if "entry" in frame:
        fields.append(("received_at", pa.timestamp("us")))
    return pa.schema(fields)


# Of which column the log says from where to where a file goes. Every commit reads that of every file: of all columns it was most of
# its cost in a lake of a hundred files. Within files, Parquet's own statistics go on.
SKIP_BY = {"aggregates": "window_start", "anomalies": "event_time", "late": "window_start", "dead_letters": "received_at"}
SCHEMAS = {name: _table_schema(frame, dated=True) for name, frame in _FRAMES.items()}
SCHEMAS["series"] = pa.schema([(name, _ARROW[type(dtype)]) for name, dtype in SERIES_TABLE.items()])

# A commit is read once or twice before it is compacted: no dictionaries, and minima and maxima only of what queries name.
# Both together were half of its cost.
_NAMED_IN_QUERIES = ("partition", *SERIES_NAMES, "window_start", "event_time", "arrived", "received_at", "rule")
_PLAIN = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
APPEND = WriterProperties(
    compression="ZSTD",
    compression_level=1,
    default_column_properties=_PLAIN,
    column_properties=dict.fromkeys(_NAMED_IN_QUERIES, ColumnProperties(dictionary_enabled=False, statistics_enabled="CHUNK")),
)
COMPACT = WriterProperties(
    compression="ZSTD",
    compression_level=3,
    default_column_properties=_PLAIN,
    column_properties=dict.fromkeys(_NAMED_IN_QUERIES, ColumnProperties(dictionary_enabled=True, statistics_enabled="CHUNK")),
)


def rows_of(frame: pl.DataFrame, table: str) -> pa.Table:
    """A core frame as the rows of its table: times as UTC timestamps, durations in seconds, the date to partition by."""
    if "entry" in frame.columns:
        frame = frame.with_columns(received_at=log_time(pl.col("entry")))
    day = next(name for name in ("window", "event_time", "received_at") if name in frame.columns and frame[name].null_count() == 0)
    if table == "anomalies":
        day = "event_time"
    columns = [pl.col(day).cast(pl.Datetime("us")).dt.date().alias("date")]
    for name, dtype in frame.schema.items():
        if name in _DURATIONS:
            columns.append((pl.col(name) / 1e6).alias(_DURATIONS[name]))
        elif name in _TIMES:
            columns.append(pl.col(name).cast(pl.Datetime("us")).alias(_NAMES.get(name, name)))
        else:
            columns.append(pl.col(name).cast(_POLARS.get(type(dtype), dtype)).alias(_NAMES.get(name, name)))
    schema = SCHEMAS[table]
    return frame.select(columns).select(schema.names).to_arrow().cast(schema)
