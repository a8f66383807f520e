"""How much an Arrow IPC payload says that it holds, read from its messages before pyarrow believes any of it.

Walks the encapsulated messages of a stream (Arrow columnar format, "Encapsulated message format"); the messages of a file lie in
it the same way, after its magic.
"""

from __future__ import annotations

import struct

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # MessageHeader of Arrow's Message.fbs
_V5 = 4  # of MetadataVersion
_BUFFERS_MAX = 100_000


def declared_bytes(payload: bytes) -> int:
    """Bytes that its compressed buffers are to expand to. ValueError, struct.error: lengths that cannot be."""
    at, end, total = 8 if payload[:6] == b"ARROW1" else 0, len(payload), 0
    while at + 8 <= end:
        mark, size = struct.unpack_from("<Ii", payload, at)
        if mark != 0xFFFFFFFF:
            raise ValueError("a message does not begin as it must")
        at += 8
        if size == 0:
            return total
        if size < 0 or at + size > end:
            raise ValueError("a message ends too early")
        version_at, kind_at, header_at, length_at, metadata_at = _fields(payload, at + _u32(payload, at), 5)
        body_bytes = struct.unpack_from("<q", payload, length_at)[0] if length_at else 0
        body = at + size
        if body_bytes < 0 or body + body_bytes > end:
            raise ValueError("a message ends too early")
        kind = payload[kind_at] if kind_at else 0
        if kind in (_RECORD_BATCH, _DICTIONARY_BATCH):
            if metadata_at and (not version_at or struct.unpack_from("<h", payload, version_at)[0] < _V5):
                raise ValueError("a batch of an old format has metadata, by which it may be compressed")
            if kind == _DICTIONARY_BATCH:
                header_at = _fields(payload, _target(payload, header_at), 2)[1]  # id, data
            _, _, buffers_at, compression_at = _fields(payload, _target(payload, header_at), 4)  # length, nodes, buffers, compression
            if compression_at:
                total += _expanded(payload, _target(payload, buffers_at), body, body_bytes)
        at = body + body_bytes
    return total


def _expanded(payload: bytes, vector: int, body: int, body_bytes: int) -> int:
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


def _fields(payload: bytes, table: int, count: int) -> list[int]:
    """Where each of the first `count` fields of a flatbuffers table lies, or 0: it is absent."""
    vtable = table - struct.unpack_from("<i", payload, table)[0]
    if vtable < 0:
        raise ValueError("a table lies outside its message")
    there = min(count, max(0, struct.unpack_from("<H", payload, vtable)[0] - 4) // 2)
    places = [table + offset if offset else 0 for offset in struct.unpack_from(f"<{there}H", payload, vtable + 4)]
    return places + [0] * (count - there)


def _target(payload: bytes, at: int) -> int:
    """What the offset at `at` refers to."""
    if not at:
        raise ValueError("a message lacks its content")
    return at + _u32(payload, at)
