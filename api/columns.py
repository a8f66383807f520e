"""Bodies of many forms -> one frame of raw events, names as codes. Once per group, not per body."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from api.decode import Body
from api.models import Loose
from pipeline.core.validate import NAMES, RAW, Coded

Lost = list[tuple[int, Loose]]  # rows (by number) whose value no column can hold

_EXACT_FROM = 2**53
_FAR_US = float(2**62)  # beyond any time that is accepted, and within Int64


def coded(bodies: Sequence[Body], arrivals_us: Sequence[int]) -> tuple[Coded, list[tuple[int, int, Loose]]]:
    """The events of all bodies in their order, and (body, index, event) of those whose integer is beyond 64 bits.

    An event without a time gets its body's arrival, each a microsecond after the one before: two samples of one series in
    one body stay two. All columns are in one piece: Polars (2.1) panics where `pl.format` meets an empty piece, as is left of a
    body of which a filter keeps nothing.
    """
    by_shape: dict[Hashable, list[int]] = {}
    for number, body in enumerate(bodies):
        if body.count:
            by_shape.setdefault(body.shape, []).append(number)
    parts, huge = [], []
    for shape, numbers in by_shape.items():
        columns, names, lost = _CONVERT[shape[0]]([bodies[number].data for number in numbers])
        counts = np.fromiter((bodies[number].count for number in numbers), np.int64, len(numbers))
        body, index = _places(bodies, numbers, counts)
        rows = pl.DataFrame([*columns, pl.Series("body", body), pl.Series("index", index)])
        if lost:
            huge += [(int(body[row]), int(index[row]), event) for row, event in lost]
            rows = rows.remove(pl.int_range(pl.len()).is_in([row for row, _ in lost]))
        parts.append(Coded(rows, names))
    if not parts:
        return Coded(RAW.to_frame().select("body", "index", "device", "metric", "value", "event_time"), _no_names()), huge
    raw = parts[0] if len(parts) == 1 else _merged(parts)
    rows = _arrived(raw.rows, np.asarray(arrivals_us, np.int64))
    return Coded(rows if set(rows.n_chunks("all")) == {1} else rows.rechunk(), raw.names), huge


def _places(bodies: Sequence[Body], numbers: list[int], counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    body = np.repeat(np.asarray(numbers, np.uint32), counts)
    starts = np.cumsum(counts) - counts
    index = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(starts, counts)
    for number, start, count in zip(numbers, starts, counts, strict=True):
        if bodies[number].indexes is not None:
            index[start : start + count] = bodies[number].indexes
    return body, index.astype(np.uint32)


def _arrived(rows: pl.DataFrame, arrivals_us: np.ndarray) -> pl.DataFrame:
    time = rows["event_time"]
    if not time.null_count():
        return rows
    absent = time.is_null() & rows["time_text"].is_null() if "time_text" in rows.columns else time.is_null()
    arrival = pl.Series("event_time", arrivals_us[rows["body"].to_numpy()] + rows["index"].to_numpy(), dtype=pl.Int64)
    return rows.with_columns(event_time=arrival.zip_with(absent, time))


def _no_names() -> dict[str, pl.Series]:
    return {field: pl.Series([], dtype=pl.String) for field in ("device", "metric")}


def _merged(parts: list[Coded]) -> Coded:
    """One frame of parts whose codes mean different names, in the order of the bodies."""
    names, frames = {}, [part.rows for part in parts]
    for field in NAMES:
        lists = [part.names.get(field) for part in parts]
        if all(texts is None for texts in lists):
            continue
        joined = pl.concat([texts for texts in lists if texts is not None])
        encoded = _encoded(joined.to_arrow(compat_level=pl.CompatLevel.oldest()))
        names[field], place = encoded[1], 0
        for number, texts in enumerate(lists):
            if texts is not None:
                table = encoded[0].slice(place, len(texts))
                place += len(texts)
                frames[number] = frames[number].with_columns(pl.lit(table).gather(pl.col(field)).alias(field))
    rows = pl.concat([frame.select(sorted(frame.columns)) for frame in frames], how="diagonal")
    return Coded(rows.sort("body", maintain_order=True), names)


def _encoded(texts: pa.Array | pa.ChunkedArray) -> tuple[pl.Series, pl.Series]:
    """(codes as UInt32, distinct names); a null has a null code."""
    foreign = pa.types.is_dictionary(texts.type)
    encoded = texts if foreign else texts.dictionary_encode()
    if foreign and encoded.type.index_type != pa.int32() and isinstance(encoded, pa.ChunkedArray):  # together they may have more names
        encoded = pa.chunked_array(
            [pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), chunk.dictionary) for chunk in encoded.chunks],
            pa.dictionary(pa.int32(), encoded.type.value_type),
        )
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks() if encoded.num_chunks != 1 else encoded.chunk(0)
    if isinstance(encoded, pa.ChunkedArray):  # no chunk at all
        encoded = pa.array([], encoded.type)
    if foreign and len(encoded.dictionary) > len(encoded):  # names that no row has cost nothing: they are not looked at
        used = encoded.indices.unique().drop_null()
        encoded = pa.DictionaryArray.from_arrays(pc.index_in(encoded.indices, value_set=used), encoded.dictionary.take(used))
    names = pl.Series(pl.from_arrow(encoded.dictionary), dtype=pl.String)
    if foreign and (names.null_count() or names.n_unique() != len(names)):
        return _encoded(encoded.dictionary_decode().cast(pa.large_string()))
    codes = encoded.indices
    if codes.null_count:
        return pl.Series(pl.from_arrow(codes)).cast(pl.UInt32), names
    return pl.Series(codes.to_numpy(zero_copy_only=True).astype(np.uint32, copy=False)), names


def _microseconds(milliseconds: pl.Series) -> pl.Series:
    """Epoch milliseconds as Int64 microseconds; a null stays one."""
    told = milliseconds.to_numpy()
    if milliseconds.null_count():
        told = np.nan_to_num(told, nan=0.0)  # a null comes as NaN
    times = pl.Series("event_time", np.rint(told.clip(-_FAR_US / 1000, _FAR_US / 1000) * 1000).astype(np.int64))
    return times.set(milliseconds.is_null(), None) if milliseconds.null_count() else times


# ---- frames of the fast way ----------------------------------------------------------------------------------------------------


def _from_frames(frames: list[pl.DataFrame]) -> tuple[list[pl.Series], dict[str, pl.Series], Lost]:
    frame = pl.concat(frames) if len(frames) > 1 else frames[0]
    columns, names = [frame["value"]], {}
    for field in ("device", "interface", "metric"):
        if frame[field].null_count() < frame.height:
            codes, names[field] = _encoded(frame[field].to_arrow(compat_level=pl.CompatLevel.oldest()))
            columns.append(codes.alias(field))
    if "kind" in frame.columns:
        columns.append(frame["kind"])
    if frame["timestamp"].dtype == pl.String:
        columns += [frame["timestamp"].alias("time_text"), _nulls("event_time", frame.height)]
    else:
        columns.append(_microseconds(frame["timestamp"]))
    return columns, names, []


# ---- structs of the exact way --------------------------------------------------------------------------------------------------


def _from_events(lists: list[list[Loose]]) -> tuple[list[pl.Series], dict[str, pl.Series], Lost]:
    events = [event for events in lists for event in events] if len(lists) > 1 else lists[0]
    columns, names = [], {}
    for field in ("device", "interface", "metric"):
        codes, names[field] = _numbered([getattr(event, field) for event in events])
        columns.append(codes.alias(field))
    tags = [event.tags for event in events]
    if any(tags):
        order = msgspec.json.Encoder(order="sorted").encode
        codes, names["tags"] = _numbered([order(each).decode() if each else "" for each in tags])
        columns.append(codes.alias("tags"))
    kinds = [event.kind for event in events]
    if any(kind is not None for kind in kinds):
        columns.append(pl.Series("kind", kinds, dtype=pl.String))
    values, lost = _values(events)
    return [*columns, *values, *_times([event.timestamp for event in events])], names, lost


def _numbered(texts: list[str | None]) -> tuple[pl.Series, pl.Series]:
    """As `_encoded`, of texts that are Python's already."""
    places: dict[str | None, int] = {}
    codes = [places.setdefault(text, len(places)) for text in texts]
    if None in places:
        return _encoded(pa.array(texts, pa.string()))
    return pl.Series(np.array(codes, np.uint32)), pl.Series(list(places), dtype=pl.String)


def _values(events: list[Loose]) -> tuple[list[pl.Series], Lost]:
    """The values as floats, integers that a float cannot hold also exactly; and those that 64 bits cannot hold."""
    told, lost = [event.value for event in events], []
    try:
        floats = np.frombuffer(array("d", told), np.float64)
        if np.abs(floats).max() < _EXACT_FROM:
            return [pl.Series("value", floats)], lost
    except (TypeError, OverflowError):  # a null, or an integer beyond what a float holds
        pass
    exact: list[int | None] = [None] * len(told)
    for row, value in enumerate(told):
        if isinstance(value, int) and abs(value) >= _EXACT_FROM:
            if -(2**63) <= value < 2**64:
                exact[row] = value if value > 0 else None
            else:
                told[row] = None
                lost.append((row, events[row]))
    values = pl.Series("value", [None if value is None else float(value) for value in told], dtype=pl.Float64)
    return [values, pl.Series("exact", exact, dtype=pl.UInt64)], lost


def _times(told: list[int | float | str | None]) -> list[pl.Series]:
    texts = None
    try:
        milliseconds = pl.Series("event_time", np.frombuffer(array("d", told), np.float64))
    except (TypeError, OverflowError):
        if any(isinstance(time, str) for time in told):
            texts = pl.Series("time_text", [time if isinstance(time, str) else None for time in told], dtype=pl.String)
        numbers = [_float(time) if isinstance(time, (int, float)) else None for time in told]
        milliseconds = pl.Series("event_time", numbers, dtype=pl.Float64)
    times = _microseconds(milliseconds)
    return [times] if texts is None else [times, texts]


def _float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return _FAR_US if number > 0 else -_FAR_US


# ---- Arrow tables --------------------------------------------------------------------------------------------------------------


def _from_tables(tables: list[pa.Table]) -> tuple[list[pl.Series], dict[str, pl.Series], Lost]:
    table = pa.concat_tables(tables) if len(tables) > 1 else tables[0]
    columns, names = [], {}
    for field in ("device", "interface", "metric", "tags"):
        if field in table.schema.names:
            codes, names[field] = _encoded(_texts(table[field]))
            columns.append(codes.alias(field))
    if "kind" in table.schema.names:
        columns.append(pl.Series("kind", pl.from_arrow(_texts(table["kind"])), dtype=pl.String))
    columns += _numbers(table["value"])
    columns += _moments(table["timestamp"]) if "timestamp" in table.schema.names else [_nulls("event_time", table.num_rows)]
    return columns, names, []


def _nulls(name: str, rows: int) -> pl.Series:
    return pl.Series(name, [None], dtype=pl.Int64).new_from_index(0, rows)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text, plain or as a dictionary of plain text."""
    if pa.types.is_map(column.type) or pa.types.is_struct(column.type):
        encode = msgspec.json.Encoder(order="sorted").encode
        texts = [encode({k: v for k, v in dict(each).items() if v is not None}).decode() if each else "" for each in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.large_string())])
    return column if pa.types.is_dictionary(column.type) else column.cast(pa.large_string())  # null and view types too


def _numbers(column: pa.ChunkedArray) -> list[pl.Series]:
    values = pl.Series("value", pl.from_arrow(column))
    if values.dtype == pl.Boolean or not values.dtype.is_integer():
        return [values.cast(pl.Float64)]
    floats = values.cast(pl.Float64)
    top = values.max()
    if top is None or top < _EXACT_FROM:
        return [floats]
    integer = pl.col("value")
    exact = pl.when(integer >= _EXACT_FROM).then(integer.cast(pl.UInt64, strict=False)).alias("exact")
    return [floats, values.to_frame().select(exact).to_series()]


_PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


def _moments(column: pa.ChunkedArray) -> list[pl.Series]:
    """Times of any unit in microseconds, a time without a zone taken as UTC; integers and floats are milliseconds; text is parsed later."""
    if pa.types.is_timestamp(column.type):
        rate = _PER_SECOND[column.type.unit]
        ticks = pl.Series("event_time", pl.from_arrow(pc.cast(column, pa.int64())), dtype=pl.Int64)
        return [ticks // (rate // 1_000_000)] if rate >= 1_000_000 else [_multiplied(ticks, 1_000_000 // rate)]
    if pa.types.is_integer(column.type):
        return [_multiplied(pl.Series("event_time", pl.from_arrow(column)), 1000)]
    if pa.types.is_null(column.type):
        return [_nulls("event_time", len(column))]
    if pa.types.is_floating(column.type):
        return [_microseconds(pl.Series("event_time", pl.from_arrow(column)).cast(pl.Float64).fill_nan(_FAR_US))]
    texts = pl.Series("time_text", pl.from_arrow(_texts(column).cast(pa.large_string())), dtype=pl.String)
    return [texts, _nulls("event_time", len(column))]


def _multiplied(ticks: pl.Series, factor: int) -> pl.Series:
    """Integers of any type times `factor`, as Int64; what that cannot hold is far beyond any time that is accepted."""
    far = 2**62 // factor
    if (ticks.max() or 0) > far:
        ticks = ticks.clip(upper_bound=far)
    if (ticks.min() or 0) < -far:
        ticks = ticks.clip(lower_bound=-far)
    return ticks.cast(pl.Int64) * factor


_CONVERT: dict[str, Callable[[list[Any]], tuple[list[pl.Series], dict[str, pl.Series], Lost]]] = {
    "frame": _from_frames,
    "events": _from_events,
    "arrow": _from_tables,
}
