"""An entry that breaks the core costs its own events, and nobody else's."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

import pipeline.isolation as isolation
from pipeline.core.batch import State
from pipeline.core.rules import Rules
from pipeline.core.schema import entry_id
from pipeline.stores.entries import to_batch
from pipeline.stores.streams import Entry
from tests.frames import payload
from tests.properties.test_step import SEMANTICS, S


def entry(number: int, device: str, time: int = 50 * S, value: float = 1.0) -> Entry:
    return Entry(entry_id(number * 1000, 0), payload(device, "x", time, value), 1)


class Panic(BaseException):
    """As a panic in a Rust library is: no Exception."""


@pytest.fixture
def broken(monkeypatch):
    """A core that panics where it meets the device `poison`."""
    real = isolation.step

    def step(state, batch, rules, semantics):
        if (batch.events["device"].cast(pl.String) == "poison").any():
            raise Panic("index out of bounds")
        return real(state, batch, rules, semantics)

    monkeypatch.setattr(isolation, "step", step)


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


@pytest.mark.parametrize(
    ("bad", "message"),
    [
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
