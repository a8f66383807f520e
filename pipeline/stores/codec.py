"""Frames to bytes and back: the Arrow form of `core.schema`, an IPC stream in an lz4 frame.

Dictionaries are per batch and hold only the names that the batch uses; pyarrow's own thread pool is left out, since
it costs ten times what it saves on batches of this size.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import polars as pl
import pyarrow as pa
import pyarrow.ipc as ipc

from pipeline.core.schema import DEAD_LETTERS, EVENTS
from pipeline.errors import Invalid
from pipeline.stores.ipcbounds import declared_bytes

PAYLOAD_BYTES_MAX = 512 * 1024**2  # when decompressed; as much as a value in Redis may be
_SMALL_BYTES = PAYLOAD_BYTES_MAX >> 15  # a byte of zstd stands for 32 KiB at most: up to here there is no need to look

_ARROW_TYPES = {
    pl.Categorical(): pa.dictionary(pa.int32(), pa.string()),
    pl.String(): pa.string(),
    pl.UInt8(): pa.uint8(),
    pl.UInt64(): pa.uint64(),
    pl.Int64(): pa.int64(),
    pl.Float64(): pa.float64(),
}


def arrow_schema(schema: pl.Schema) -> pa.Schema:
    """The Arrow form of a frame's schema: names as dictionaries of 32-bit codes."""
    return pa.schema([(name, _ARROW_TYPES[dtype]) for name, dtype in schema.items()])


EVENTS_ARROW = arrow_schema(EVENTS)
DEAD_LETTERS_ARROW = arrow_schema(DEAD_LETTERS)
_WRITE = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_READ = ipc.IpcReadOptions(use_threads=False)


def encode(batch: pa.RecordBatch) -> bytes:
    """One record batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, batch.schema, options=_WRITE) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def decode(payloads: Sequence[bytes], schema: pa.Schema) -> pa.Table:
    """The batches of many payloads as one table, in their order. Invalid: bytes that are no such stream, or another schema."""
    return decode_counted(payloads, schema)[0]


def decode_counted(payloads: Sequence[bytes], schema: pa.Schema) -> tuple[pa.Table, list[int]]:
    """What `decode` says, and the rows of each payload.

    What is read is validated in full: codes and offsets out of bounds would be read as they are, by whoever comes next.
    """
    batches: list[pa.RecordBatch] = []
    counts: list[int] = []
    for payload in payloads:
        try:
            if len(payload) > _SMALL_BYTES and (declared := declared_bytes(payload)) > PAYLOAD_BYTES_MAX:
                raise Invalid(f"a payload says that it holds {declared} bytes; {PAYLOAD_BYTES_MAX} are allowed")
            with ipc.open_stream(payload, options=_READ) as reader:
                if reader.schema != schema:
                    raise Invalid(f"a payload has the columns {reader.schema.names}, not {schema.names}")
                found = list(reader)
            for batch in found:
                batch.validate(full=True)
        except (pa.ArrowException, OSError, struct.error, ValueError, IndexError, OverflowError) as error:
            raise Invalid(f"a payload is not an Arrow IPC stream: {(str(error).splitlines() or ['it ends too early'])[0][:200]}") from error
        batches += found
        counts.append(sum(batch.num_rows for batch in found))
    return pa.Table.from_batches(batches, schema=schema), counts
