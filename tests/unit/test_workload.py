"""The reference workload is always the same, and its answer tells a wrong result."""

from __future__ import annotations

import hashlib
import io

import polars as pl
import pyarrow.ipc as ipc

from benchmarks.workload import Workload

W1_SHA256 = "b3818820f6cff692b9d941ea1eab9557901699dde144719b395469812346a3bb"


def test_w1_is_always_the_same():
    """Byte for byte: figures of two machines are about the same work."""
    sink = io.BytesIO()
    Workload().events.write_ndjson(sink)
    assert hashlib.sha256(sink.getvalue()).hexdigest() == W1_SHA256


def test_both_forms_hold_the_same_events_in_the_same_order():
    """JSON and Arrow bodies."""
    workload = Workload(devices=3, polls=5)
    arrow = pl.concat([pl.from_arrow(ipc.open_stream(body).read_all()) for body in workload.bodies("arrow", 100)])
    json = pl.concat([pl.read_json(io.BytesIO(body)) for body in workload.bodies("json", 100)])
    assert arrow.cast({name: pl.String for name in ("device", "interface", "metric")}).equals(workload.events)
    assert json.equals(workload.events)


def test_the_answer_counts_every_event_once():
    """Windows of a minute, and one in a thousand above its threshold."""
    workload = Workload(devices=25, polls=12)
    windows, anomalies = workload.answer()
    assert windows["count"].sum() == workload.events.height == 12_000
    assert anomalies.height == 12
