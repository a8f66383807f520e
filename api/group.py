"""Many bodies -> one stream entry per partition. Pure CPU: runs beside the event loop, and does nothing per event in Python."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from api.admission import Left
from api.columns import coded
from api.decode import Body
from api.models import ERRORS_SHOWN_MAX
from pipeline.core.partitions import partition_of, partitions_of
from pipeline.core.schema import DEAD_LETTERS
from pipeline.core.tokens import devices_permitted
from pipeline.core.validate import NAMES, Coded, Limits, refused_rows, validate
from pipeline.stores.codec import DEAD_LETTERS_ARROW, EVENTS_ARROW, encode
from pipeline.stores.streams import Group


class Outcome(NamedTuple):
    """What became of one body: `errors` are (index, field, reason), in order, cut to those that are shown.

    `not_admitted`: the places of the rows to be sent again, after `wait_seconds`. Neither accepted nor rejected are any of them.
    """

    accepted: int
    rejected: int
    errors: list[tuple[int, str, str]]
    not_admitted: list[int] | None = None
    wait_seconds: float = 0.0

    @property
    def taken(self) -> int:
        """How many of its events are done with."""
        return self.accepted + self.rejected


_SMALL_NAMES = 64  # up to here Python's texts are the shorter way to Arrow
_DEVICES_KNOWN_MAX = 1 << 17


class Built:
    """The entries of one group of bodies, and which bodies have rows in which. Rows are sorted by partition, in order of arrival."""

    def __init__(
        self, events: Coded, refused: pl.DataFrame, bodies: int, keys: Sequence[bytes | None], partitions: int, left: Left | None = None
    ) -> None:
        self._keys = keys
        self._names = {field: Names(names) for field, names in events.names.items()}
        self._whole = Whole(events, refused, bodies, partitions, left)
        if left is not None:
            events, refused = self._whole.admitted()
        owner = _owners(events, partitions)
        order = np.argsort(owner, kind="stable")
        self._bounds = np.searchsorted(owner[order], np.arange(partitions + 1))
        self._columns = {name: np.take(column, order) for name, column in _plain(events.rows).items()}
        self._exact = events.rows["exact"].gather(order) if events.rows["exact"].null_count() < events.rows.height else None
        self._parts = np.flatnonzero(np.diff(self._bounds))  # the partitions that have rows
        self._cut = _Cut(self._columns, self._exact, self._names, np.append(self._bounds[self._parts], len(order)))
        self._refused = _by_partition(refused, partitions)
        self._keyed = any(key is not None for key in keys)
        self._asking: dict[int, set[int]] = {}
        if self._keyed:
            admitted = {*np.unique(self._columns["body"]).tolist(), *refused["body"]}
            self._asking = self._whole.left_where({body for body in admitted if keys[body] is not None})
        self.reasons = dict(refused["reason"].value_counts().iter_rows()) if len(refused) else {}

    def outcomes(self) -> list[Outcome]:
        """What became of each body, with what `repeated` told."""
        return self._whole.outcomes()

    def repeated(self, partition: int, keys: Sequence[bytes], left: Sequence[bytes]) -> None:
        """The bodies of these keys came to `partition` before, without the rows that `left` tells of."""
        for key, text in zip(keys, left or (b"",) * len(keys), strict=True):
            self._whole.came_before(partition, self._keys.index(key), text)

    def groups(self) -> list[Group]:
        """One group per partition that gets anything, or is asked whether a body came before of which it is to get nothing now."""
        touched = set(self._parts.tolist()) | self._refused.keys() | self._asking.keys()
        return [group for partition in sorted(touched) if (group := self.group(partition)) is not None]

    def group(self, partition: int, without: Collection[bytes] = ()) -> Group | None:
        """What `partition` gets, without the bodies of these keys; None where nothing is left."""
        rows: slice | np.ndarray = slice(self._bounds[partition], self._bounds[partition + 1])
        refused = self._refused.get(partition)
        if without:
            left = np.array([key not in without for key in self._keys], bool)
            rows = np.arange(rows.start, rows.stop)[left[self._columns["body"][rows]]]
            refused = None if refused is None else refused.filter(pl.Series(left).gather(refused["body"]))
        bodies = self._columns["body"][rows]
        letters = 0 if refused is None else refused.height
        keys: tuple[bytes, ...] = ()
        left: tuple[bytes, ...] = ()
        if self._keyed:
            present = set(np.unique(bodies).tolist()) | (set(refused["body"].to_list()) if letters else set())
            present |= self._asking.get(partition, set())
            keyed = [body for body in sorted(present) if self._keys[body] is not None and self._keys[body] not in without]
            keys = tuple(self._keys[body] for body in keyed)
            left = self._whole.left_texts(partition, keyed)
        if not len(bodies) and not letters and not keys:
            return None
        return Group(
            partition,
            encode(self._batch(partition, rows)) if len(bodies) else b"",
            len(bodies),
            encode(_letters(refused)) if letters else b"",
            letters,
            keys,
            left,
        )

    def bodies(self, partition: int) -> set[int]:
        """The bodies with rows in `partition`, or of which it is asked."""
        rows = slice(self._bounds[partition], self._bounds[partition + 1])
        refused = self._refused.get(partition)
        there = set(np.unique(self._columns["body"][rows]).tolist()) | self._asking.get(partition, set())
        return there | (set(refused["body"].to_list()) if refused is not None else set())

    def _batch(self, partition: int, rows: slice | np.ndarray) -> pa.RecordBatch:
        if isinstance(rows, slice):
            return self._cut.batch(int(np.searchsorted(self._parts, partition)))
        columns = {name: column[rows] for name, column in self._columns.items()}
        exact = None if self._exact is None else self._exact.gather(rows)
        return _Cut(columns, exact, self._names, np.array([0, len(rows)])).batch(0)


class _Cut:
    """Rows as Arrow columns that are cut into batches at `bounds`: made once for all, so that a batch more costs a few slices."""

    def __init__(self, columns: dict[str, np.ndarray], exact: pl.Series | None, names: dict[str, Names], bounds: np.ndarray) -> None:
        self._bounds = bounds.tolist()
        self._names = [_CutNames(columns[field], self._bounds, names[field]) for field in NAMES]
        exacts = pa.nulls(len(columns["value"]), pa.uint64()) if exact is None else exact.to_arrow().cast(pa.uint64())
        self._plain = [pa.array(columns["counter_bits"]), pa.array(columns["value"]), exacts, pa.array(columns["event_time"])]

    def batch(self, number: int) -> pa.RecordBatch:
        start, end = self._bounds[number], self._bounds[number + 1]
        arrays = [names.array(number, start, end) for names in self._names] + [column[start:end] for column in self._plain]
        return pa.RecordBatch.from_arrays(arrays, schema=EVENTS_ARROW)


class _CutNames:
    """One column of names; each batch gets a dictionary of those that it uses, in the order of their codes."""

    def __init__(self, codes: np.ndarray, bounds: list[int], names: Names) -> None:
        self._dictionary, self._starts = names.dictionary, None  # None: each batch uses all of them
        count, own = len(names), np.zeros(len(codes), np.int32)
        if count > 1:
            flags, places, used = np.empty(count, bool), np.empty(count, np.int32), []
            for start, end in pairwise(bounds):
                mine = codes[start:end]
                flags[:] = False
                flags[mine] = True
                used.append(np.flatnonzero(flags))
                places[used[-1]] = np.arange(len(used[-1]))
                own[start:end] = places[mine]
            starts = list(accumulate(map(len, used), initial=0))
            if starts[-1] < count * len(used):
                self._dictionary, self._starts = self._dictionary.take(pa.array(np.concatenate(used))), starts
        self._codes = pa.array(own)

    def array(self, number: int, start: int, end: int) -> pa.DictionaryArray:
        own = self._dictionary if self._starts is None else self._dictionary[self._starts[number] : self._starts[number + 1]]
        return pa.DictionaryArray.from_arrays(self._codes[start:end], own, safe=False)


def build(
    bodies: Sequence[Body], arrivals_us: Sequence[int], keys: Sequence[bytes | None], received_at_us: int, limits: Limits, partitions: int,
    leave_out: Callable[[Coded, pl.DataFrame], Left | None] = lambda events, refused: None,
) -> Built:
    """Validate the bodies' events as columns, leave out what is not admitted, and part the rest by device."""
    raw, huge = coded(bodies, arrivals_us)
    if any(body.devices for body in bodies):
        raw = _marked(raw, bodies)
    events, refused = validate(raw, received_at_us, limits)
    untyped = [
        (number, each.index, each.device, each.field, each.reason, each.event)
        for number, body in enumerate(bodies)
        for each in body.refused
    ]
    for body, index, event in huge:
        text = msgspec.json.encode(event).decode()[: limits.dead_letter_chars_max]
        untyped.append((body, index, (event.device or "")[: limits.name_chars_max], "value", "out_of_range", text))
    if refused.height and any(body.texts for body in bodies):
        refused = _as_sent(refused, bodies)
    if untyped:
        refused = pl.concat([refused, refused_rows(untyped)]).sort("body", "index", maintain_order=True)
    return Built(events, refused, len(bodies), keys, partitions, leave_out(events, refused))


def _as_sent(refused: pl.DataFrame, bodies: Sequence[Body]) -> pl.DataFrame:
    """With the text that an event had where that was kept: a field of another name is what its sender meant, most likely."""
    kept = [(number, index, text) for number, body in enumerate(bodies) for index, text in body.texts.items()]
    texts = pl.DataFrame(kept, schema={"body": pl.UInt32, "index": pl.UInt32, "text": pl.String}, orient="row")
    found = refused.join(texts, on=["body", "index"], how="left", maintain_order="left")
    return found.with_columns(event=pl.coalesce("text", "event")).drop("text")


def _marked(raw: Coded, bodies: Sequence[Body]) -> Coded:
    """With a column `permitted`: each pair of patterns and device that occurs is judged once."""
    numbers = {patterns: number for number, patterns in enumerate({body.devices: None for body in bodies})}
    grants = pl.Series("grant", [numbers[body.devices] for body in bodies], dtype=pl.UInt32)
    rows = raw.rows.with_columns(grants.gather(raw.rows["body"]))
    pairs = rows.select("grant", "device").unique()
    patterns, devices = list(numbers), raw.names["device"].gather(pairs["device"]).to_list()
    told = devices_permitted([(patterns[grant], device) for grant, device in zip(pairs["grant"].to_list(), devices, strict=True)])
    pairs = pairs.with_columns(permitted=pl.Series(told, dtype=pl.Boolean))
    rows = rows.join(pairs, on=["grant", "device"], how="left", nulls_equal=True, maintain_order="left")
    return Coded(rows.drop("grant").rechunk(), raw.names)


def _plain(rows: pl.DataFrame) -> dict[str, np.ndarray]:
    columns = {name: rows[name].to_numpy() for name in ("body", *NAMES, "counter_bits", "value", "event_time")}
    return columns | {name: columns[name].astype(np.intp) for name in NAMES}  # as numpy wants its indexes


class Names:
    """The distinct names of one column, as Python texts for small entries and as an Arrow dictionary for large ones."""

    def __init__(self, names: pl.Series) -> None:
        self._series = names

    def __len__(self) -> int:
        return len(self._series)

    @cached_property
    def texts(self) -> list[str]:
        return self._series.to_list()

    @cached_property
    def dictionary(self) -> pa.Array:
        if len(self) <= _SMALL_NAMES:
            return pa.array(self.texts, pa.string())
        return self._series.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())


def _owners(events: Coded, partitions: int) -> np.ndarray:
    """The partition of each row: distinct devices are hashed, rows gather by code."""
    codes, names = events.rows["device"].to_numpy().astype(np.intp), events.names["device"]
    used = np.zeros(len(names), bool)
    used[codes] = True
    codes_used = np.flatnonzero(used)
    table = np.zeros(len(names), np.uint16)
    known = _owned(partitions)
    devices = (names if len(codes_used) == len(names) else names.gather(codes_used)).to_list()
    for device in devices:
        if device not in known:
            known[device] = partition_of(device, partitions)
    table[codes_used] = [known[device] for device in devices]
    return np.take(table, codes)


@lru_cache(maxsize=4)
def _known(partitions: int) -> dict[str, int]:
    return {}


def _owned(partitions: int) -> dict[str, int]:
    """Devices seen and their partitions; forgotten when there are too many."""
    known = _known(partitions)
    if len(known) > _DEVICES_KNOWN_MAX:
        known.clear()
    return known


def _by_partition(refused: pl.DataFrame, partitions: int) -> dict[int, pl.DataFrame]:
    """Dead letters lie with their device; those of no device with the device ""."""
    if refused.is_empty():
        return {}
    owned = refused.with_columns(partitions_of(refused["device"], partitions))
    parts = owned.partition_by("partition", maintain_order=True, as_dict=True, include_key=False)
    return {key[0]: part for key, part in parts.items()}


def _letters(refused: pl.DataFrame) -> pa.RecordBatch:
    table = refused.select(list(DEAD_LETTERS)).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(DEAD_LETTERS_ARROW)
    return table.combine_chunks().to_batches()[0]


class Whole:
    """All rows of a group, those among them that are not admitted, and what follows for each body."""

    def __init__(self, events: Coded, refused: pl.DataFrame, bodies: int, partitions: int, left: Left | None) -> None:
        self._events, self._refused, self._bodies, self._partitions = events, refused, bodies, partitions
        self._left = None if left is None else left.rows
        self._waits = {} if left is None else left.waits
        self._before: dict[tuple[int, int], bytes] = {}  # partition, body -> what was left out when it came first

    def admitted(self) -> tuple[Coded, pl.DataFrame]:
        """Events and dead letters without those that are left out."""
        return Coded(_without(self._events.rows, self._left), self._events.names), _without(self._refused, self._left)

    def came_before(self, partition: int, body: int, left: bytes) -> None:
        if left or self._left is not None:
            self._before[partition, body] = left

    def left_where(self, bodies: Collection[int]) -> dict[int, set[int]]:
        """partition -> those of the bodies with rows there that are left out.

        An earlier request may have stored these, and been told of another partition's failure: so each is asked.
        """
        if self._left is None or not bodies:
            return {}
        owned = self._owned(self._left).filter(pl.col("body").is_in(list(bodies))).group_by("partition").agg(pl.col("body").unique())
        return {partition: set(found) for partition, found in owned.iter_rows()}

    def left_texts(self, partition: int, bodies: Sequence[int]) -> tuple[bytes, ...]:
        """Per body, which of its rows in this partition are left out, as a text for `came_before`; () where none is of any."""
        if self._left is None:
            return ()
        mine = self._owned(self._left).filter(pl.col("partition") == partition).partition_by("body", as_dict=True)
        texts = [zlib.compress(mine[(body,)]["index"].to_numpy().astype("<u4").tobytes(), 1) if (body,) in mine else b"" for body in bodies]
        return tuple(texts) if any(texts) else ()

    def outcomes(self) -> list[Outcome]:
        events, refused, left = self._events.rows, self._refused, self._left
        if self._before:
            left = self._corrected()
        if left is None:
            return _outcomes(events, refused, self._bodies)
        told = _outcomes(_without(events, left), _without(refused, left), self._bodies)
        places = {key[0]: part["index"].to_list() for key, part in left.partition_by("body", as_dict=True).items()}
        return [
            each._replace(not_admitted=places[body], wait_seconds=self._waits.get(body, 1.0)) if body in places else each
            for body, each in enumerate(told)
        ]

    def _corrected(self) -> pl.DataFrame:
        """What is left out, where some of it came before."""
        told = pl.DataFrame(list(self._before), schema={"partition": pl.UInt32, "body": pl.UInt32}, orient="row")
        parts = [] if self._left is None else [self._owned(self._left).join(told, on=["partition", "body"], how="anti").drop("partition")]
        for (_, body), text in self._before.items():
            places = np.frombuffer(zlib.decompress(text), "<u4") if text else np.zeros(0, np.uint32)
            parts.append(pl.DataFrame({"body": np.full(len(places), body, np.uint32), "index": places.astype(np.uint32)}))
        return pl.concat(parts, how="vertical_relaxed").sort("body", "index")

    def _owned(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows (body, index) with the partition they belong to."""
        good = self._events.rows.select("body", "index", partition=pl.Series(_owners(self._events, self._partitions), dtype=pl.UInt32))
        bad = self._refused.select("body", "index", partitions_of(self._refused["device"], self._partitions))
        owned = pl.concat([good, bad], how="vertical_relaxed")
        return rows.join(owned, on=["body", "index"], how="left")


def _without(rows: pl.DataFrame, left: pl.DataFrame | None) -> pl.DataFrame:
    return rows if left is None or rows.is_empty() else rows.join(left, on=["body", "index"], how="anti", maintain_order="left")


def _outcomes(events: pl.DataFrame, refused: pl.DataFrame, bodies: int) -> list[Outcome]:
    accepted = np.bincount(events["body"].to_numpy(), minlength=bodies).tolist()
    if refused.is_empty():
        return [Outcome(count, 0, []) for count in accepted]
    rejected = np.bincount(refused["body"].to_numpy(), minlength=bodies).tolist()
    errors: list[list[tuple[int, str, str]]] = [[] for _ in range(bodies)]
    shown = refused.filter(pl.int_range(pl.len()).over("body") < ERRORS_SHOWN_MAX).select("body", "index", "field", "reason")
    for body, index, field, reason in shown.iter_rows():
        errors[body].append((index, field, reason))
    return [Outcome(*each) for each in zip(accepted, rejected, errors, strict=True)]
