"""Small streams by hand: rows as tuples in, what `step` makes of them out."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

import pipeline.isolation as isolation
from pipeline.core.batch import BATCH_EVENTS, ENTRIES, Batch, Output, State, step
from pipeline.core.rules import Rules
from pipeline.core.schema import entry_id
from pipeline.core.semantics import Semantics
from pipeline.stores.codec import EVENTS_ARROW, encode

S = 1_000_000
SEMANTICS = Semantics(
    width=10 * S, disorder=4 * S, idle_after=1000 * S, lateness_max=600 * S, open_rows_max=1000,
    partition_series_max=1000, device_series_max=1000, counter_gap=30 * S,
)  # fmt: skip


def batch(entries: list[tuple[float, list[tuple]]], bits: int = 0) -> Batch:
    """A Batch of [(log time in s, [(device, metric, event time in s, value), ...]), ...].

    A value is as ingest hands it on: an integer that float64 cannot hold has its exact form beside it.
    """
    events, ids = [], []
    for now, rows in entries:
        entry = entry_id(int(now * 1000), 0)
        ids.append((0, entry, len(rows)))
        for device, metric, time, value in rows:
            exact = value if isinstance(value, int) and abs(value) >= 2**53 else None
            events.append((0, entry, device, "", metric, "", bits, float(value), exact, int(time * S)))
    return Batch(pl.DataFrame(events, schema=BATCH_EVENTS, orient="row"), pl.DataFrame(ids, schema=ENTRIES, orient="row"))


def run(*batches: Batch, rules: Rules = Rules(), semantics: Semantics = SEMANTICS) -> tuple[State, Output]:  # noqa: B008
    """The state after the batches, one step each, and all that came out of them."""
    state, outputs = State(), []
    for one in batches:
        state, output = step(state, one, rules, semantics)
        outputs.append(output)
    return state, Output(*(pl.concat([getattr(o, name) for o in outputs]) for name in Output.__dataclass_fields__))


def break_core(monkeypatch, column: str, name: str, error: BaseException) -> None:
    """From here on `step` breaks where it meets this name."""
    real = isolation.step

    def step(state, batch, rules, semantics):
        if (batch.events[column].cast(pl.String) == name).any():
            raise error
        return real(state, batch, rules, semantics)

    monkeypatch.setattr(isolation, "step", step)


def windows(samples: list[tuple[float, float]], bits: int = 0, semantics: Semantics = SEMANTICS) -> list[dict]:
    """The aggregate rows of one series, all windows closed, in order of window. `samples`: (event time in s, value)."""
    end = max(time for time, _ in samples) + 200
    rows = [("r1", "m", time, value) for time, value in samples]
    _, output = run(batch([(0, rows), (1, [("r1", "end", end, 0)])], bits), semantics=semantics)
    return output.aggregates.filter(pl.col("metric").cast(pl.String) == "m").sort("window", "revision").to_dicts()


def payload(device: str, metric: str, time: int, value: float) -> bytes:
    """One event as a stream entry carries it. `time` in microseconds."""
    return payload_of([(device, metric, time, value)])


def payload_of(rows: list[tuple[str, str, int, float]], bits: int = 0) -> bytes:
    """Events (device, metric, time in microseconds, value) as a stream entry carries them."""
    device, metric, time, value = zip(*rows, strict=True)
    blank = [""] * len(rows)
    names = [pa.array(list(texts)).dictionary_encode() for texts in (device, blank, metric, blank)]
    rest = [pa.array([bits] * len(rows), pa.uint8()), pa.array(value, pa.float64()), pa.nulls(len(rows), pa.uint64())]
    return encode(pa.RecordBatch.from_arrays([*names, *rest, pa.array(time, pa.int64())], schema=EVENTS_ARROW))
