"""Arrow IPC bytes from strangers -> a table with the columns of an event, checked before anything trusts it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.ipc as ipc

from api.models import Refusal

_READ = ipc.IpcReadOptions(use_threads=False)
_REQUIRED = ("device", "metric", "value")
FIELDS = ("device", "interface", "metric", "value", "timestamp", "kind", "tags")
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # MessageHeader of Arrow's Message.fbs
_BUFFERS_MAX = 100_000


def read_arrow(payload: bytes, bytes_max: int, rows_max: int) -> pa.Table:
    """The known columns of an IPC stream (or file).

    Refusal: 400 not Arrow, 413 too much of it, 422 a column is missing or of a wrong type.
    """
    try:
        _bound_buffers(payload, bytes_max)
        opener = ipc.open_file if payload[:6] == b"ARROW1" else ipc.open_stream
        with opener(pa.py_buffer(payload), options=_READ) as reader:
            kept = _columns(reader.schema)
            batches, rows = [], 0
            for batch in _batches(reader):
                rows += batch.num_rows
                if rows > rows_max:
                    raise Refusal(413, "too_many_events", f"more than {rows_max} events in one body")
                batch = batch.select(kept)
                batch.validate(full=True)  # offsets and codes out of bounds would be read as they are
                batches.append(batch)
            table = pa.Table.from_batches(batches, schema=pa.schema([reader.schema.field(name) for name in kept]))
    except (pa.ArrowException, OSError, struct.error, IndexError, ValueError, MemoryError, OverflowError) as error:
        reason = str(error).partition("\n")[0][:160] or "it ends too early"
        raise Refusal(400, "bad_arrow", f"the body is not an Arrow IPC stream: {reason}") from None
    if not table.num_rows:
        raise Refusal(422, "no_events", "the Arrow stream holds no row")
    for name, column in zip(kept, table.columns, strict=True):
        if pa.types.is_string_view(column.type) and sum(_text_bytes(chunk) for chunk in column.chunks) > bytes_max:
            raise Refusal(413, "body_too_large", f"column {name!r} holds more than {bytes_max} bytes of text")
    return table


def _batches(reader: ipc.RecordBatchStreamReader | ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, ipc.RecordBatchStreamReader):
        yield from reader
    else:
        yield from map(reader.get_batch, range(reader.num_record_batches))


def _text_bytes(views: pa.Array) -> int:
    """Bytes of text that the views show, which may be far more than they share: the first 4 bytes of each 16 are its length."""
    buffer = views.buffers()[1]
    if buffer is None:
        return 0
    return sum(memoryview(buffer).cast("B")[16 * views.offset : 16 * (views.offset + len(views))].cast("i").tolist()[::4])


def _columns(schema: pa.Schema) -> list[str]:
    kept = []
    for name in FIELDS:
        found = schema.get_all_field_indices(name)
        if len(found) > 1:
            raise Refusal(422, "bad_columns", f"column {name!r} occurs {len(found)} times")
        if not found:
            if name in _REQUIRED:
                raise Refusal(422, "bad_columns", f"column {name!r} is missing; needed are {', '.join(_REQUIRED)}")
            continue
        dtype = schema.field(found[0]).type
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


# ---- a bound on what compressed buffers may expand to --------------------------------------------------------------------------


def _bound_buffers(payload: bytes, bytes_max: int) -> None:
    """Refuse before pyarrow believes the lengths that a stream declares: of its buffers, and of what they are compressed from.

    Walks the encapsulated messages of a stream (Arrow columnar format, "Encapsulated message format"); the messages of a file lie in
    it the same way, after its magic.
    """
    at, end, total = 8 if payload[:6] == b"ARROW1" else 0, len(payload), 0
    while at + 8 <= end:
        mark, size = struct.unpack_from("<Ii", payload, at)
        if mark != 0xFFFFFFFF:
            raise ValueError("a message does not begin as it must")
        at += 8
        if size == 0:
            return
        if size < 0 or at + size > end:
            raise ValueError("a message ends too early")
        table = at + _u32(payload, at)
        body_bytes = _scalar(payload, table, 3, "<q")
        body = at + size
        if body_bytes < 0 or body + body_bytes > end:
            raise ValueError("a message ends too early")
        kind = _scalar(payload, table, 1, "<B")
        if kind in (_RECORD_BATCH, _DICTIONARY_BATCH):
            batch = _table(payload, table, 2)
            if kind == _DICTIONARY_BATCH:
                batch = _table(payload, batch, 1)
            if _field(payload, batch, 3):  # compression
                total += _expanded(payload, batch, body, body_bytes)
                if total > bytes_max:
                    raise Refusal(413, "body_too_large", f"the body is larger than {bytes_max} bytes when decompressed")
        at = body + body_bytes


def _expanded(payload: bytes, batch: int, body: int, body_bytes: int) -> int:
    vector = _table(payload, batch, 2)
    count, total = _u32(payload, vector), 0
    if count > _BUFFERS_MAX:
        raise ValueError("a batch has too many buffers")
    for number in range(count):
        offset, length = struct.unpack_from("<qq", payload, vector + 4 + 16 * number)
        if offset < 0 or length < 0 or offset + length > body_bytes:
            raise ValueError("a buffer lies outside its message")
        if length >= 8:
            (plain,) = struct.unpack_from("<q", payload, body + offset)
            if plain < -1:
                raise ValueError("a buffer has a negative length")
            total += max(plain, 0)
    return total


def _u32(payload: bytes, at: int) -> int:
    return struct.unpack_from("<I", payload, at)[0]


def _field(payload: bytes, table: int, number: int) -> int:
    """Where field `number` of a flatbuffers table lies, or 0: it is absent."""
    vtable = table - struct.unpack_from("<i", payload, table)[0]
    if vtable < 0 or 4 + 2 * number >= struct.unpack_from("<H", payload, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", payload, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _scalar(payload: bytes, table: int, number: int, form: str) -> int:
    at = _field(payload, table, number)
    return struct.unpack_from(form, payload, at)[0] if at else 0


def _table(payload: bytes, table: int, number: int) -> int:
    at = _field(payload, table, number)
    if not at:
        raise ValueError("a message lacks its content")
    return at + _u32(payload, at)
