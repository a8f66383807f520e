"""An entry that breaks the core costs its own events, and nobody else's."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import pipeline.isolation as isolation
from pipeline.core.batch import State
from pipeline.core.rules import Rules
from pipeline.core.schema import entry_id
from pipeline.stores import codec
from pipeline.stores.codec import DEAD_LETTERS_ARROW, EVENTS_ARROW, decode, encode
from pipeline.stores.entries import to_batch
from pipeline.stores.streams import Entry
from tests.frames import break_core, payload
from tests.properties.test_step import SEMANTICS, S


def entry(number: int, device: str, time: int = 50 * S, value: float = 1.0) -> Entry:
    return Entry(entry_id(number * 1000, 0), payload(device, "x", time, value), 1)


class Panic(BaseException):
    """As a panic in a Rust library is: no Exception."""


@pytest.fixture
def broken(monkeypatch):
    """A core that panics where it meets the device `poison`."""
    break_core(monkeypatch, "device", "poison", Panic("index out of bounds"))


def test_only_the_poison_is_set_aside(broken):
    """Entries before and after it, in its partition and in others, are applied; positions move past it."""
    entries = {
        0: [entry(1, "a"), entry(2, "poison"), entry(3, "b")],
        1: [entry(1, "c"), entry(4, "d")],
    }
    state, output = isolation.step_safely(State(), entries, Rules(), SEMANTICS)
    assert sorted(state.devices["device"].cast(pl.String).gather(state.open["device_number"])) == ["a", "b", "c", "d"]
    assert output.dead_letters.select("device", "reason").rows() == [("poison", "unprocessable_entry")]
    assert state.positions == {0: entry_id(3000, 0), 1: entry_id(4000, 0)}


def coded(code: int) -> Entry:
    """An entry whose device is the name of that number in a dictionary of one."""
    columns = decode([payload("a", "x", 50 * S, 1.0)], EVENTS_ARROW).to_batches()[0].columns
    device = pa.DictionaryArray.from_arrays(pa.array([code], pa.int32()), pa.array(["a"]), safe=False)
    return Entry(entry_id(1000, 0), encode(pa.RecordBatch.from_arrays([device, *columns[1:]], schema=EVENTS_ARROW)), 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (coded(1000), "1000"),
        (coded(-5), "-5"),
        (coded(10**8), "100000000"),
        (entry(1, "a", value=np.nan), "no finite number"),
        (entry(1, "a", time=1 << 62), "beyond the years"),
        (entry(1, "a")._replace(events=b"x"), "IPC"),
    ],
)
def test_what_ingest_would_not_let_through_is_set_aside(bad, message):
    """A payload that something else wrote becomes one dead letter that says why."""
    batch = to_batch({0: [bad, entry(2, "b")]})
    assert batch.events["device"].cast(pl.String).to_list() == ["b"]
    ((reason, text),) = batch.dead_letters.select("reason", "event").rows()
    assert reason == "undecodable_entry" and message in text


def test_a_payload_that_swells_is_refused_before_it_is_read(monkeypatch):
    """Its buffers say how large they will be; they are not believed beyond a bound."""
    rows = 300_000
    columns = [column.take(pa.array(np.zeros(rows, np.int64))) for column in decode([payload("a", "x", 1, 1.0)], EVENTS_ARROW).columns]
    whole = pa.Table.from_arrays(columns, schema=EVENTS_ARROW).combine_chunks()
    big = Entry(entry_id(1000, 0), encode(whole.to_batches()[0]), rows)
    monkeypatch.setattr(codec, "PAYLOAD_BYTES_MAX", 1 << 20)
    batch = to_batch({0: [big]})
    assert batch.events.is_empty() and "are allowed" in batch.dead_letters["event"].item()


def test_a_dead_letter_without_a_reason_is_one_that_cannot_be_decoded():
    """Null in any column: the lake would count it among neither the accepted nor the strangers."""
    columns = [pa.array([text], pa.string()) for text in ("a", "value", None, "{}")]
    letters = encode(pa.RecordBatch.from_arrays(columns, schema=DEAD_LETTERS_ARROW))
    batch = to_batch({0: [Entry(entry_id(1000, 0), dead_letters=letters, dead_letter_count=1)]})
    assert batch.dead_letters.select("reason", "event").rows() == [("undecodable_entry", "a payload has no reason in some row")]
