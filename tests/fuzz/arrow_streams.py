"""Arrow IPC bytes that no honest writer makes: other types, codes and offsets out of bounds, sizes that lie, bytes bent."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.ipc as ipc

from tests.fuzz.json_texts import CLOSER_MS, START_MS, damage


class Stream(NamedTuple):
    """A body. Malformed: nothing of it may be taken."""

    kind: str
    body: bytes
    malformed: bool = False
    good: int | None = None
    bad: int | None = None
    good_device: str = ""


def columns(rng: random.Random, rows: int, device: str | None = None) -> dict[str, pa.Array]:
    """The columns of valid events."""
    made = {
        "device": pa.array([device or f"fuzz-{rng.randrange(50)}" for _ in range(rows)]),
        "metric": pa.array(["cpu_pct"] * rows),
        "value": pa.array([rng.random() for _ in range(rows)]),
    }
    if rng.random() < 0.5:
        made["interface"] = pa.array(["eth0"] * rows)
    if rng.random() < 0.5:
        made["device"] = made["device"].dictionary_encode()
    return made


def write(batches: list[pa.RecordBatch], compression: str | None = None, file: bool = False, **options: bool) -> bytes:
    sink = io.BytesIO()
    opener = ipc.new_file if file else ipc.new_stream
    with opener(sink, batches[0].schema, options=ipc.IpcWriteOptions(compression=compression, **options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def _any_form(rng: random.Random, batches: list[pa.RecordBatch]) -> bytes:
    file = rng.random() < 0.2
    return write(batches, rng.choice([None, None, "lz4", "zstd"]), file, emit_dictionary_deltas=not file and rng.random() < 0.5)


def damaged(rng: random.Random) -> Stream:
    """Bytes of a valid stream bent, the metadata as often as the buffers."""
    batches = [pa.record_batch(columns(rng, rng.choice([1, 3, 100])))]
    body = _any_form(rng, batches * rng.choice([1, 1, 3]))
    if rng.random() < 0.5:
        out = bytearray(body)
        for _ in range(rng.choice([1, 2, 5, 20])):
            at = rng.randrange(len(out))
            out[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        return Stream("arrow-damaged", bytes(out))
    return Stream("arrow-damaged", damage(rng, body))


def lying(rng: random.Random) -> Stream:
    """A number of four or eight bytes somewhere says something else."""
    body = bytearray(_any_form(rng, [pa.record_batch(columns(rng, rng.choice([1, 50])))]))
    for _ in range(rng.choice([1, 1, 3])):
        value = rng.choice([0, 1, -1, 2**31 - 1, -(2**31), 2**24, 2**20, rng.randrange(-(2**31), 2**31)])
        if rng.random() < 0.5:
            struct.pack_into("<i", body, 4 * rng.randrange(len(body) // 4), value)
        else:
            wide = rng.choice([value, 2**62, -(2**62), 2**40, 2**33])
            struct.pack_into("<q", body, 8 * rng.randrange(len(body) // 8), wide)
    return Stream("arrow-lying", bytes(body))


def _codes(rng: random.Random) -> pa.Array:
    codes = pa.array([0, rng.choice([7, -1, 100, -100])], pa.int8()).cast(rng.choice([pa.int8(), pa.int32(), pa.int64()]))
    return pa.DictionaryArray.from_arrays(codes, pa.array(["r1", "r2"]), safe=False)


def _no_utf8(rng: random.Random) -> pa.Array:
    text = rng.choice([b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80\x80"])
    return pa.array([text, b"ok"], pa.binary()).view(pa.string())


def _views(rng: random.Random) -> pa.Array:
    size, number, at = rng.choice([(100, 0, 0), (20, 7, 0), (20, -1, 0), (20, 0, 2**30), (-5, 0, 0), (2**31 - 1, 0, 0)])
    view = struct.pack("<i4sii", size, b"abcd", number, at)
    return pa.Array.from_buffers(pa.string_view(), 2, [None, pa.py_buffer(view * 2), pa.py_buffer(b"abcd" * 10)])


def unsound(rng: random.Random) -> Stream:
    """Well-formed messages around arrays whose codes, offsets, views or texts are not."""
    made = columns(rng, 2)
    makers: dict[str, Callable[[random.Random], pa.Array]] = {"codes": _codes, "no-utf8": _no_utf8, "views": _views}
    name = rng.choice([*makers, "offsets", "map"])
    column = "tags" if name == "map" else rng.choice(["device", "metric", "interface", "kind", "timestamp", "tags"])
    if name in makers:
        made[column] = makers[name](rng)
        return Stream(f"arrow-{name}", write([pa.RecordBatch.from_arrays(list(made.values()), list(made))]), malformed=True)
    # pyarrow makes no such array: the offsets are changed in the stream
    if name == "map":
        made[column], honest = pa.array([[("k", "v")], [("k", "v")]], pa.map_(pa.string(), pa.string())), (0, 1, 2)
    else:
        made[column], honest = pa.array(["ab", "cde"]), (0, 2, 5)
    lie = rng.choice(
        [(0, honest[2], honest[1]), (0, 1, 10**6), (-4, 1, 2), (honest[2], 1, 0), (0, 2**31 - 1, honest[2]), (0, -1, honest[2])]
    )
    body = write([pa.record_batch(made)])
    return Stream(f"arrow-{name}", body.replace(struct.pack("<3i", *honest), struct.pack("<3i", *lie)), malformed=True)


def typed(rng: random.Random) -> Stream:
    """A column of a type that no event has there."""
    made = columns(rng, 2)
    arrays = [
        pa.array([[1], [2]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([b"x", b"y"]),
        pa.array([b"xxxx", b"yyyy"], pa.binary(4)),
        pa.array([1, 2], pa.duration("s")),
        pa.array([1, 2], pa.decimal128(20, 3)),
        pa.array([1, 2], pa.float16()),
        pa.array([1, 2], pa.date64()),
        pa.array([1, 2], pa.time64("ns")),
        pa.nulls(2),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
        pa.array([[1], [2]], pa.list_view(pa.int8())),
        pa.array([True, False]),
        pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array(["r1"])),
        pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])]),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 2, pa.binary(16))),
        pa.nulls(2, pa.month_day_nano_interval()),
        pa.array([float("nan"), float("inf")]),
        pa.array([2**64 - 1, 0], pa.uint64()),
        pa.array([-(2**63), 2**63 - 1]),
        pa.array(["2026-01-01T00:00:00Z", "x"]),
        pa.array([2**62, -(2**62)], pa.timestamp("s")),
        pa.array([1, 2], pa.timestamp("ns", "Mars/Olympus")),
        pa.array(["a", None]),
        pa.array(['{"a":"b"}', "[1]"]),
        pa.array([[("a", "b")], [("a", "b"), ("a", "c")]], pa.map_(pa.string(), pa.string())),
        pa.array([{"a": "b"}, None]),
        pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array([1, 2])),
        pa.array(["a", "b"], pa.string_view()).dictionary_encode(),
    ]
    for _ in range(rng.choice([1, 1, 2])):
        made[rng.choice(["device", "metric", "interface", "value", "timestamp", "kind", "tags", "extra"])] = rng.choice(arrays)
    return Stream("arrow-typed", _any_form(rng, [pa.RecordBatch.from_arrays(list(made.values()), list(made))]))


def shaped(rng: random.Random) -> Stream:
    """Schemas without columns, with the same column twice, with very many, deeply nested; streams without rows or end."""
    base = columns(rng, 1)
    batch = pa.record_batch(base)
    match rng.randrange(8):
        case 0:
            return Stream("arrow-shaped", write([pa.RecordBatch.from_arrays([], names=[])]), True)
        case 1:
            twice = pa.RecordBatch.from_arrays([*batch.columns, base["value"]], [*batch.schema.names, "value"])
            return Stream("arrow-shaped", write([twice]), True)
        case 2:
            wide = {f"c{i}": pa.nulls(1) for i in range(rng.choice([1000, 20_000]))}
            return Stream("arrow-shaped", write([pa.record_batch({**base, **wide})]))
        case 3:
            deep = pa.array([1])
            for _ in range(rng.choice([20, 60])):
                deep = pa.ListArray.from_arrays(pa.array([0, len(deep)], pa.int32()), deep)
            return Stream("arrow-shaped", write([pa.record_batch({**base, "extra": deep})], allow_64bit=True))
        case 4:
            return Stream("arrow-shaped", write([batch.slice(0, 0)]), True)
        case 5:
            body = write([batch] * 3)
            return Stream("arrow-shaped", body + rng.choice([body, b"trailing garbage", b"\xff\xff\xff\xff", b"\xff" * 64]))
        case 6:
            return Stream(
                "arrow-shaped",
                rng.choice([b"ARROW1", b"ARROW1\0\0" + b"\0" * 40, b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\0\0\0\0", b"PAR1"]),
                True,
            )
        case _:
            nulls = pa.RecordBatch.from_arrays([pa.nulls(10**6)] * 3, ["device", "metric", "extra"]).append_column(
                "value", pa.array([0.0] * 10**6)
            )
            return Stream("arrow-shaped", write([nulls], "zstd"), True)


def swollen(rng: random.Random) -> Stream:
    """Small bytes that stand for very much: texts shared by rows, tags without buffers, one name a million times, names of no row."""
    rows = rng.choice([1000, 50_000])
    made = columns(rng, rows)
    long = "x" * rng.choice([10_000, 1_000_000])
    codes = pa.array([0] * rows, pa.int8())
    shared = pa.DictionaryArray.from_arrays(codes, pa.array([long, long] if rng.random() < 0.5 else [long]))
    match rng.randrange(6):
        case 0 | 1:
            made[rng.choice(["device", "metric", "interface", "kind", "timestamp", "tags"])] = shared
        case 2:
            names = [f"t{i}" for i in range(rng.choice([100, 2000]))]
            made["tags"] = pa.StructArray.from_arrays([pa.nulls(rows)] * len(names), names)
        case 3:
            offsets = pa.array(range(rows + 1), pa.int32())
            made["tags"] = pa.MapArray.from_arrays(offsets, shared, pa.array(["v"] * rows))
        case 4:
            field = rng.choice(["device", "metric", "interface", "tags"])
            form = '{{"a":"{}"}}' if field == "tags" else "n{}"
            names = pa.array([form.format(n) for n in range(rng.choice([10_000, 300_000]))])
            made[field] = pa.DictionaryArray.from_arrays(pa.array([rng.randrange(len(names))] * rows, pa.int32()), names)
        case _:
            count = rng.choice([10**6, 5 * 10**6])
            keys = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int8()), pa.array(["k"]))
            offsets = pa.array([0] * rows + [count], pa.int32())
            made["tags"] = pa.MapArray.from_arrays(offsets, keys, pa.nulls(count))
    return Stream("arrow-swollen", write([pa.record_batch(made)], rng.choice(["zstd", "lz4"])))


def mixed(rng: random.Random, number: int) -> Stream:
    """Rows that break a rule among rows that don't, in several batches with their own dictionaries."""
    device = f"amix-{number}-{rng.randrange(10**9)}"
    good, bad = rng.choice([1, 5, 100]), rng.choice([1, 10])
    rows = [(device, "cpu_pct", float(i), START_MS + 10 * i, None) for i in range(good)]
    for _ in range(bad):
        row = list(rng.choice(rows))
        at, value = rng.choice(
            [
                (0, None),
                (0, ""),
                (0, "x" * 300),
                (1, "\x07"),
                (2, None),
                (2, float("nan")),
                (2, float("inf")),
                (3, 1),
                (3, 4 * 10**12),
                (4, "[1]"),
            ]
        )
        row[at] = value
        rows.insert(rng.randrange(len(rows) + 1), (f"fuzz-{rng.randrange(50)}", *row[1:]) if at else tuple(row))
    rows.append((device, "cpu_pct", 0.0, CLOSER_MS, None))
    cut = rng.randrange(1, len(rows))
    types = {"device": pa.string(), "metric": pa.string(), "value": pa.float64(), "timestamp": pa.int64(), "tags": pa.string()}
    batches = []
    for part in (rows[:cut], rows[cut:]):
        arrays = [pa.array(values, dtype) for values, dtype in zip(zip(*part, strict=True), types.values(), strict=True)]
        arrays[0] = arrays[0].dictionary_encode()
        batches.append(pa.RecordBatch.from_arrays(arrays, list(types)))
    return Stream("arrow-mixed", write(batches, rng.choice([None, "lz4"])), good=good + 1, bad=bad, good_device=device)


def make(rng: random.Random, number: int) -> Stream:
    """Any of these."""
    if rng.random() < 0.15:
        return mixed(rng, number)
    weights = {damaged: 10, lying: 10, unsound: 6, typed: 6, shaped: 3, swollen: 1}
    return rng.choices(list(weights), list(weights.values()))[0](rng)
