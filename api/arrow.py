"""Arrow IPC bytes from strangers -> a table with the columns of an event, checked before anything trusts it."""

from __future__ import annotations

import struct

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from api.models import Refusal
from pipeline.stores.ipcbounds import declared_bytes

_READ = ipc.IpcReadOptions(use_threads=False)
_REQUIRED = ("device", "metric", "value")
FIELDS = ("device", "interface", "metric", "value", "timestamp", "kind", "tags")
_TAGS_PER_ROW = 32  # on average, of a body with as many rows as are taken


def read_arrow(payload: bytes, bytes_max: int, rows_max: int) -> pa.Table:
    """The known columns of an IPC stream (or file).

    Refusal: 400 not Arrow, 413 too much of it, 422 a column is missing or of a wrong type.
    """
    try:
        declared = declared_bytes(payload)
        if declared > bytes_max:
            raise Refusal(413, "body_too_large", f"the body is larger than {bytes_max} bytes when decompressed")
        source = pa.py_buffer(payload)
        if payload[:6] == b"ARROW1":  # a file is read as the stream in it: its footer may lead to messages that nobody has counted
            source = source.slice(8)
        with ipc.open_stream(source, options=_READ) as reader:
            kept = _columns(reader.schema)
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                if rows > rows_max:
                    raise Refusal(413, "too_many_events", f"more than {rows_max} events in one body")
                batch = batch.select(kept)
                batch.validate(full=True)  # offsets and codes out of bounds would be read as they are
                batches.append(batch)
            table = pa.Table.from_batches(batches) if rows else None
    except (pa.ArrowException, OSError, struct.error, IndexError, ValueError, MemoryError, OverflowError) as error:
        reason = str(error).partition("\n")[0][:160] or "it ends too early"
        raise Refusal(400, "bad_arrow", f"the body is not an Arrow IPC stream: {reason}") from None
    if table is None:
        raise Refusal(422, "no_events", "the Arrow stream holds no row")
    for name, dtype in zip(kept, table.schema.types, strict=True):
        nested = pa.types.is_map(dtype) or pa.types.is_struct(dtype)
        if nested and sum(map(_tags, table[name].chunks)) > _TAGS_PER_ROW * rows_max:
            raise Refusal(413, "too_many_tags", f"column {name!r} holds more than {_TAGS_PER_ROW * rows_max} tags")
        # a row shows at most one text, and none is larger than all that the body holds: mostly that is proof enough
        if (nested or rows * (len(payload) + declared) > bytes_max) and sum(map(_text_bytes, table[name].chunks)) > bytes_max:
            raise Refusal(413, "body_too_large", f"column {name!r} holds more than {bytes_max} bytes of text")
    return table


def _tags(column: pa.Array) -> int:
    """Tags that a column of maps or structs shows, absent ones too: columns of nulls have no buffer that would bound them."""
    return len(column.keys) if pa.types.is_map(column.type) else len(column) * column.type.num_fields


def _text_bytes(column: pa.Array) -> int:
    """Bytes of text that a column shows row by row, which may be far more than it holds: dictionaries and views share theirs."""
    if pa.types.is_dictionary(column.type):
        return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
    if pa.types.is_map(column.type):
        return _text_bytes(column.keys) + _text_bytes(column.items)
    if pa.types.is_struct(column.type):
        return sum(map(_text_bytes, column.flatten()))
    if pa.types.is_string_view(column.type) and (buffer := column.buffers()[1]) is not None:  # of each 16 bytes the first 4 are a length
        return sum(memoryview(buffer).cast("B")[16 * column.offset : 16 * (column.offset + len(column))].cast("i").tolist()[::4])
    return 0  # plain text, which is bounded by the body


def _columns(schema: pa.Schema) -> list[str]:
    kept, names, types = [], schema.names, schema.types
    for name in FIELDS:
        if not (found := names.count(name)):
            if name in _REQUIRED:
                raise Refusal(422, "bad_columns", f"column {name!r} is missing; needed are {', '.join(_REQUIRED)}")
            continue
        if found > 1:
            raise Refusal(422, "bad_columns", f"column {name!r} occurs {found} times")
        dtype = types[names.index(name)]
        if not _ACCEPTS[name](dtype):
            raise Refusal(422, "bad_columns", f"column {name!r} has type {str(dtype)[:80]}: {_EXPECTED[name]}")
        kept.append(name)
    return kept


def _is_text(dtype: pa.DataType) -> bool:
    if pa.types.is_dictionary(dtype):  # not of views: a dictionary is not bounded by the rows, and views may share their text
        return pa.types.is_string(dtype.value_type) or pa.types.is_large_string(dtype.value_type)
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype) or pa.types.is_null(dtype)


def _is_value(dtype: pa.DataType) -> bool:
    return pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype)


def _is_time(dtype: pa.DataType) -> bool:
    return pa.types.is_timestamp(dtype) or pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or _is_text(dtype)


def _is_tags(dtype: pa.DataType) -> bool:
    if pa.types.is_map(dtype):
        return _is_text(dtype.key_type) and _is_text(dtype.item_type)
    if pa.types.is_struct(dtype):
        return all(_is_text(field.type) for field in dtype)
    return _is_text(dtype)


_ACCEPTS = {
    **dict.fromkeys(("device", "interface", "metric", "kind"), _is_text),
    "value": _is_value,
    "timestamp": _is_time,
    "tags": _is_tags,
}
_EXPECTED = {
    **dict.fromkeys(("device", "interface", "metric", "kind"), "must be text, plain or as a dictionary"),
    "value": "must be a number or a boolean",
    "timestamp": "must be a timestamp, epoch milliseconds as a number, or RFC 3339 text",
    "tags": "must be a map or a struct of text, or JSON text",
}
