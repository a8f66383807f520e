"""Stream entries to the frames that `step` takes. A payload that something else wrote becomes a dead letter, no crash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.batch import BATCH_EVENTS, ENTRIES, Batch
from pipeline.core.schema import DEAD_ROWS, NO_DEAD_ROWS
from pipeline.errors import Invalid
from pipeline.stores.codec import DEAD_LETTERS_ARROW, EVENTS_ARROW, decode_counted
from pipeline.stores.streams import Entry

_EARLIEST, _LATEST = -2_208_988_800_000_000, 7_258_118_400_000_000  # microseconds


def to_batch(entries: Mapping[int, Sequence[Entry]]) -> Batch:
    """The Batch of some partitions' entries (partition -> entries in stream order)."""
    flat = [(partition, entry) for partition in sorted(entries) for entry in entries[partition]]
    if not flat:
        return Batch()
    bad: list[tuple[int, int, str]] = []
    events, event_rows = _decode([(p, e.id, e.events) for p, e in flat], EVENTS_ARROW, bad)
    dead = NO_DEAD_ROWS
    if any(e.dead_letters for _, e in flat):
        dead = _decode([(p, e.id, e.dead_letters) for p, e in flat], DEAD_LETTERS_ARROW, bad)[0][list(DEAD_ROWS)]
    if bad:
        rows = [(partition, entry, None, None, "undecodable_entry", message) for partition, entry, message in bad]
        dead = pl.concat([dead, pl.DataFrame(rows, schema=DEAD_ROWS, orient="row")])
    return Batch(
        events[list(BATCH_EVENTS)],
        pl.DataFrame({"partition": [p for p, _ in flat], "entry": [e.id for _, e in flat], "rows": event_rows}, schema=ENTRIES),
        dead,
    )


def portions(entries: Mapping[int, Sequence[Entry]], rows_max: int) -> Iterator[dict[int, list[Entry]]]:
    """Entries (partition -> in stream order) in portions of at most `rows_max` events and dead letters, or of one entry that holds more.

    What a step needs of memory goes by its rows, and an entry may hold one of them or fifty thousand.
    """
    portion: dict[int, list[Entry]] = {}
    rows = 0
    for partition, found in entries.items():
        for entry in found:
            if portion and rows + entry.rows > rows_max:
                yield portion
                portion, rows = {}, 0
            portion.setdefault(partition, []).append(entry)
            rows += entry.rows
    if portion:
        yield portion


def _decode(
    payloads: Sequence[tuple[int, int, bytes]], schema: pa.Schema, bad: list[tuple[int, int, str]]
) -> tuple[pl.DataFrame, list[int]]:
    """All payloads as one frame with partition and entry, and the rows of each; what cannot be read is added to `bad`."""
    try:
        table, counts = _table([payload for _, _, payload in payloads], schema)
    except Invalid:  # which of them? One at a time costs three times as much, so only then
        parts = [_one(*payload, schema, bad) for payload in payloads]
        table, counts = pa.concat_tables(parts), [part.num_rows for part in parts]
    # One chunk and one dictionary a column: with one of each per entry every later look at the frame is slow.
    frame = pl.from_arrow(table.unify_dictionaries().combine_chunks())
    ids = np.array([entry for _, entry, _ in payloads], dtype=np.int64)
    places = np.array([partition for partition, _, _ in payloads], dtype=np.int32)
    return frame.hstack([pl.Series("partition", np.repeat(places, counts)), pl.Series("entry", np.repeat(ids, counts))]), counts


def _one(partition: int, entry: int, payload: bytes, schema: pa.Schema, bad: list[tuple[int, int, str]]) -> pa.Table:
    try:
        return _table([payload], schema)[0]
    except Invalid as error:
        bad.append((partition, entry, str(error)))
        return schema.empty_table()


def _table(payloads: Sequence[bytes], schema: pa.Schema) -> tuple[pa.Table, list[int]]:
    """Checked rows of payloads, and how many each has; an empty one has none."""
    table, rows = decode_counted([payload for payload in payloads if payload], schema)
    _check(table)
    each = iter(rows)
    return table, [next(each) if payload else 0 for payload in payloads]


def _check(table: pa.Table) -> None:
    """Invalid unless each value is there that must be, and is one that ingest lets through."""
    for name in table.column_names:
        if name != "exact" and table.column(name).null_count:
            raise Invalid(f"a payload has no {name} in some row")
    if table.schema != EVENTS_ARROW:
        return
    if not pc.all(pc.is_finite(table.column("value")), min_count=0).as_py():
        raise Invalid("a payload has a value that is no finite number")
    times = pc.min_max(table.column("event_time"))
    if table.num_rows and not (times["min"].as_py() >= _EARLIEST and times["max"].as_py() <= _LATEST):
        raise Invalid("a payload has an event_time beyond the years 1900 to 2200")
