"""Content encodings: gzip and zstd, bounded while they are undone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import zstandard

from api.models import Refusal

_GZIP_STEP_BYTES = 64 * 1024  # of compressed input at a time: what is left of a step is copied for each member in it
_ZSTD_STEP_BYTES = 256  # a step yields at most 8 MiB
_PARTS_MAX = 4096  # gzip members, or zstd frames, of a body: each costs some, also where it holds nothing


def decompress(payload: bytes, encoding: str, bytes_max: int) -> bytes:
    """The plain bytes, never more than the bound (and one step of the decompressor) in memory."""
    encoding = encoding.strip().lower()
    if encoding == "identity":
        return payload
    if encoding not in ("gzip", "x-gzip", "zstd"):
        raise Refusal(415, "unsupported_encoding", f"content encoding {encoding[:40]!r}: send gzip, zstd or none")
    try:
        return b"".join(_bounded_parts(_unzstd(payload) if encoding == "zstd" else _gunzip(payload, bytes_max), bytes_max))
    except (zlib.error, zstandard.ZstdError) as error:
        raise Refusal(400, "bad_compression", f"the body is not {encoding}: {str(error)[:120]}") from None


def _bounded_parts(parts: Iterable[bytes], bytes_max: int) -> Iterator[bytes]:
    total = 0
    for part in parts:
        total += len(part)
        if total > bytes_max:
            raise Refusal(413, "body_too_large", f"the body is larger than {bytes_max} bytes when decompressed")
        yield part


def _gunzip(payload: bytes, bytes_max: int) -> Iterator[bytes]:
    view, at = memoryview(payload), 0
    for _ in range(_PARTS_MAX):  # members may follow each other
        stream = zlib.decompressobj(wbits=31)
        while not stream.eof:
            if at >= len(view):
                raise zlib.error("it ends too early")
            piece = view[at : at + _GZIP_STEP_BYTES]
            yield stream.decompress(piece, bytes_max + 1)
            at += len(piece)
        at -= len(stream.unused_data)
        if at == len(view) or (view[at] == 0 and not payload[at:].strip(b"\0")):  # zeros may fill a block up at the end
            return
    raise zlib.error(f"it has more than {_PARTS_MAX} members")


def _unzstd(payload: bytes) -> Iterator[bytes]:
    view, at = memoryview(payload), 0
    for _ in range(_PARTS_MAX):
        stream = zstandard.ZstdDecompressor().decompressobj()
        while not stream.eof:
            if at >= len(view):
                raise zstandard.ZstdError("it ends too early")
            yield stream.decompress(view[at : at + _ZSTD_STEP_BYTES])
            at += _ZSTD_STEP_BYTES
        at = min(at, len(view)) - len(stream.unused_data)
        if at == len(view):
            return
    raise zstandard.ZstdError(f"it has more than {_PARTS_MAX} frames")
