"""The door behind the API: stream entries that something else wrote, straight into Redis."""

from __future__ import annotations

import random
import struct
import time

import pyarrow as pa
import pyarrow.ipc as ipc

from pipeline.stores.codec import DEAD_LETTERS_ARROW, EVENTS_ARROW, encode
from pipeline.stores.connection import stream_key
from pipeline.stores.entries import to_batch
from pipeline.stores.streams import Entry
from tests.fuzz import arrow_streams
from tests.fuzz.door import Verdict, rng_of
from tests.fuzz.ground import Ground, eventually_right
from tests.fuzz.json_texts import START_MS, damage

COUNTS = [b"", b"x", b"-1", b"1.5", b"9" * 30, b"999999999", b"0", b"1", b" 1", b"\xff", b"nan", "٣".encode()]


def _events(rng: random.Random, rows: int = 2) -> list[pa.Array]:
    names = [pa.array([text] * rows).dictionary_encode() for text in (f"raw-{rng.randrange(20)}", "eth0", "cpu_pct", "")]
    times = [START_MS * 1000 + i for i in range(rows)]
    return [*names, pa.array([0] * rows, pa.uint8()), pa.array([1.0] * rows), pa.nulls(rows, pa.uint64()), pa.array(times, pa.int64())]


def _batch(columns: list[pa.Array]) -> bytes:
    return encode(pa.RecordBatch.from_arrays(columns, schema=EVENTS_ARROW))


def _hostile(rng: random.Random) -> bytes:
    """The right schema around what no writer of ours makes."""
    columns = _events(rng)
    match rng.randrange(9):
        case 0:
            codes = pa.array([0, rng.choice([1, 7, -1, 10**6, -(2**31), 2**31 - 1])], pa.int32())
            columns[rng.randrange(4)] = pa.DictionaryArray.from_arrays(codes, pa.array(["a"]), safe=False)
        case 1:
            at = rng.choice([0, 1, 2, 3, 4, 5, 7])
            columns[at] = pa.nulls(2, EVENTS_ARROW.field(at).type)
        case 2:
            columns[5] = pa.array([rng.choice([float("nan"), float("inf"), -float("inf"), 1e308, -0.0, 5e-324])] * 2)
        case 3:
            columns[7] = pa.array([rng.choice([0, -1, 2**62, -(2**63), 2**63 - 1, START_MS])] * 2, pa.int64())
        case 4:
            columns[4] = pa.array([rng.choice([1, 7, 31, 64, 255])] * 2, pa.uint8())
        case 5:
            columns[6] = pa.array([2**64 - 1, None], pa.uint64())
        case 6:
            text = pa.array([rng.choice([b"\xff", b"\xed\xa0\x80", b"a\x00b"])], pa.binary()).view(pa.string())
            columns[rng.randrange(4)] = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int32()), text)
        case 7:
            text = pa.array([rng.choice(["", "x" * 100_000, "\n", "not json", '{"a":1}', "ä\u2028"])])
            columns[rng.randrange(4)] = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int32()), text)
        case _:
            columns = [column.slice(0, 0) for column in columns]
    return _batch(columns)


def _lying(rng: random.Random, body: bytes) -> bytes:
    out = bytearray(body)
    for _ in range(rng.choice([1, 2])):
        struct.pack_into(
            "<q", out, 8 * rng.randrange(len(out) // 8), rng.choice([2**62, -1, 2**33, 2**31, 0, -(2**62), rng.randrange(2**20)])
        )
    return bytes(out)


def _bomb(rng: random.Random) -> bytes:
    """A few KB that stand for a GB."""
    rows = 1 << 22
    zeros = pa.array([0]).take(pa.nulls(rows, pa.int64()).fill_null(0))
    names = [pa.DictionaryArray.from_arrays(zeros.cast(pa.int32()), pa.array([text])) for text in ("bomb", "", "x", "")]
    arrays = [*names, zeros.cast(pa.uint8()), zeros.cast(pa.float64()), pa.nulls(rows, pa.uint64()), zeros.cast(pa.int64())]
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, EVENTS_ARROW, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        batch = pa.RecordBatch.from_arrays(arrays, schema=EVENTS_ARROW)
        for _ in range(8):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _letters(rng: random.Random) -> bytes:
    texts = [None, "", "x" * 10_000, "\x00", "reason"]
    columns = [pa.array([rng.choice(texts)], pa.string()) for _ in DEAD_LETTERS_ARROW]
    return encode(pa.RecordBatch.from_arrays(columns, schema=DEAD_LETTERS_ARROW))


class Entries:
    """XADD of anything. What the worker makes of it is told by the lake in the end."""

    name = "entries"
    threads = 1
    PAUSE_SECONDS = 0.004

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._redis = ground.stack.client
        self._events = self._letters = self._bad = 0  # that the lake has to show of strangers

    def _case(self, seed: int, number: int) -> tuple[str, int, dict[bytes, bytes]]:
        rng = rng_of(seed, self.name, number)
        good = _batch(_events(rng))
        makers = {
            "hostile": lambda: {b"e": _hostile(rng), b"n": b"2"},
            "damaged": lambda: {b"e": damage(rng, good), b"n": b"2"},
            "lying": lambda: {b"e": _lying(rng, good), b"n": b"2"},
            "stranger": lambda: {b"e": arrow_streams.make(rng, number).body[:200_000], b"n": b"1"},
            "garbage": lambda: {
                b"e": rng.choice([b"", b"x", b"\x00" * 100, b"ARROW1", b"\xff" * 64, rng.randbytes(500)]),
                b"n": rng.choice(COUNTS),
            },
            "counts": lambda: {b"e": b"no arrow", b"n": rng.choice(COUNTS), b"x": b"", b"m": rng.choice(COUNTS)},
            "letters": lambda: {b"x": rng.choice([_letters(rng), damage(rng, _letters(rng)), good, b"x"]), b"m": rng.choice(COUNTS)},
            "swapped": lambda: {b"e": _letters(rng), b"n": b"1", b"x": good, b"m": b"2"},
            "fields": lambda: {rng.choice([b"f", b"", b"E", b"\xff", b"t", b"n"]): rng.choice([b"", b"1", rng.randbytes(40)])},
            "bomb": lambda: {b"e": _bomb(rng), b"n": b"1"},
        }
        weights = [12, 6, 8, 6, 4, 4, 5, 2, 3, 0.1]
        kind = rng.choices(list(makers), weights)[0]
        return kind, rng.randrange(4), makers[kind]()

    def show(self, seed: int, number: int) -> tuple[str, bytes]:
        kind, partition, fields = self._case(seed, number)
        return kind, repr((partition, fields)).encode()

    def attempt(self, seed: int, number: int) -> Verdict:
        _, partition, fields = self._case(seed, number)
        batch = to_batch({partition: [Entry(1 << 20, fields.get(b"e", b""), 0, fields.get(b"x", b""), 0)]})
        strangers = batch.dead_letters["reason"].eq_missing("undecodable_entry")
        self._redis.xadd(stream_key(partition), fields)
        self._events += batch.events.height
        self._bad += strangers.sum()
        self._letters += (~strangers).sum()
        time.sleep(self.PAUSE_SECONDS)
        return Verdict("unreadable" if strangers.any() else "readable")

    def finish(self) -> list[str]:
        return eventually_right(self._wrong)

    def _wrong(self) -> list[str]:
        stack, wrong = self._ground.stack, []
        bad = stack.sql("SELECT count(*) FROM dead_letters WHERE reason = 'undecodable_entry' AND coalesce(event, '') <> ''").item()
        if bad != self._bad:
            wrong.append(f"{bad} entries are told as undecodable with a reason, {self._bad} were")
        books = stack.books()
        accounted = sum(books[name] for name in ("aggregated", "late", "repeated", "dead_lettered", "in_flight"))
        if accounted != books["accepted"] + self._events + self._letters:
            wrong.append(f"the books differ by more than the {self._events + self._letters} events of strangers: {books}")
        return wrong
