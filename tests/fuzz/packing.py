"""Content encodings, honest and not: gzip and zstd bodies that are cut, joined, doubled, or stand for far more than they weigh."""

from __future__ import annotations

import gzip
import random
import zlib
from functools import lru_cache
from typing import NamedTuple

import zstandard


class Packed(NamedTuple):
    """A body under a Content-Encoding. Sound: it unpacks to what was given. Malformed: it must be refused."""

    kind: str
    body: bytes
    encoding: bytes
    sound: bool = False
    malformed: bool = False


def pack(rng: random.Random, body: bytes) -> Packed:
    """As it should be, in one piece or in several."""
    if rng.random() < 0.5:
        cut = rng.randrange(len(body) + 1)
        members = [body] if rng.random() < 0.5 else [body[:cut], body[cut:]]
        return Packed(
            "gzip",
            b"".join(gzip.compress(part, 1, mtime=0) for part in members),
            rng.choice([b"gzip", b"x-gzip", b"GZIP", b" gzip "]),
            True,
        )
    cut = rng.randrange(len(body) + 1)
    frames = [body] if rng.random() < 0.5 else [body[:cut], body[cut:]]
    return Packed("zstd", b"".join(zstandard.ZstdCompressor(1).compress(part) for part in frames), b"zstd", True)


@lru_cache(maxsize=2)
def _bomb(encoding: str) -> bytes:
    """300 MB of blanks."""
    if encoding == "gzip":
        packer = zlib.compressobj(9, wbits=31)
        return b"".join([packer.compress(b" " * 10**6) for _ in range(300)]) + packer.flush()
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    return b"".join([packer.compress(b" " * 10**6) for _ in range(300)]) + packer.flush()


def bent(rng: random.Random, body: bytes) -> Packed:
    """Cut, damaged, with garbage after it, packed twice, under another name, or a bomb."""
    packed = pack(rng, body)
    name = packed.encoding.decode().strip().lower()
    match rng.randrange(9):
        case 0:
            return Packed("packed-cut", packed.body[: rng.randrange(1, len(packed.body))], packed.encoding)
        case 1:
            out = bytearray(packed.body)
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
            return Packed("packed-damaged", bytes(out), packed.encoding)
        case 2:
            return Packed(
                "packed-garbage",
                packed.body + rng.choice([b"garbage", b"\0\0\0x", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"]),
                packed.encoding,
                malformed=True,
            )
        case 3:
            twice = zstandard.ZstdCompressor().compress(packed.body) if name == "zstd" else gzip.compress(packed.body, mtime=0)
            return Packed("packed-twice", twice, packed.encoding, malformed=True)
        case 4:
            other = b"zstd" if name != "zstd" else b"gzip"
            return Packed("packed-misnamed", packed.body, other, malformed=True)
        case 5:
            encoding = rng.choice([b"br", b"deflate", b"gzip, gzip", b"gzip,zstd", b"lzma", b"\xff", b"x" * 5000, b"chunked", b"compress"])
            return Packed("packed-unknown", packed.body, encoding, malformed=True)
        case 6:
            return Packed("bomb", _bomb("gzip" if name != "zstd" else "zstd"), packed.encoding, malformed=True)
        case 7:
            # a frame that declares a window, or a content, of very many bytes
            header = rng.choice(
                [
                    b"\x28\xb5\x2f\xfd\x00" + bytes([rng.choice([0x88, 0xA8, 0xF8, 0xFF])]),
                    b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8,
                    b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little"),
                ]
            )
            return Packed("zstd-window", header + b"\x01\x00\x00", b"zstd", malformed=True)
        case _:
            empty = gzip.compress(b"", mtime=0) if name != "zstd" else zstandard.ZstdCompressor().compress(b"")
            return Packed("packed-empties", empty * rng.choice([2, 20_000]), packed.encoding, malformed=True)
