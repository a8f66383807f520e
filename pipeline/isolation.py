"""One entry that breaks the core must not stop the others: it is found by halving, and its events are set aside.

A defect of ours, or of a library under us (a panic in Rust is a BaseException), that only some entry brings out would
else end every worker that takes its partition, one after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import polars as pl

from pipeline import metrics
from pipeline.core.batch import Batch, Output, State, step
from pipeline.core.rules import Rules
from pipeline.core.semantics import Semantics
from pipeline.core.setaside import UNPROCESSABLE, dead_rows, without_refused
from pipeline.stores.entries import to_batch
from pipeline.stores.streams import Entry

log = logging.getLogger("worker")

ENDING = (GeneratorExit, KeyboardInterrupt, SystemExit, MemoryError)  # what ends a process, and is no entry's fault


def step_safely(
    state: State, entries: Mapping[int, Sequence[Entry]], rules: Rules, semantics: Semantics, refused: pl.DataFrame | None = None
) -> tuple[State, Output]:
    """`step` over entries (partition -> in stream order); those that break it become dead letters, `unprocessable_entry`.

    The same entries break it in a replay, so that what comes out stays a function of the stream. `refused` (REFUSED), in a
    replay of one partition whose dead letters are committed: by these it goes, and by no limit on series of now.
    """
    decode = to_batch
    if refused is not None:
        decode, semantics = _without(refused), semantics.without_series_limits()
    batch = decode(entries)
    with metrics.STEP_SECONDS.time():
        state, output = _apply(state, batch, entries, rules, semantics, decode)
    metrics.EVENTS_APPLIED.inc(batch.events.height)
    return state, output


Decode = Callable[[Mapping[int, Sequence[Entry]]], Batch]


def _without(refused: pl.DataFrame) -> Decode:
    def decode(entries: Mapping[int, Sequence[Entry]]) -> Batch:
        batch = to_batch(entries)
        return replace(batch, events=without_refused(batch.events, refused))

    return decode


def _apply(
    state: State, batch: Batch, entries: Mapping[int, Sequence[Entry]], rules: Rules, semantics: Semantics, decode: Decode
) -> tuple[State, Output]:
    try:
        return step(state, batch, rules, semantics)
    except ENDING:
        raise
    except BaseException as error:
        if len(batch.entries) > 1:
            outputs = []
            for half in _halves(entries):
                state, output = _apply(state, decode(half), half, rules, semantics, decode)
                outputs.append(output)
            return state, Output(**{name: pl.concat([getattr(output, name) for output in outputs]) for name in vars(outputs[0])})
        partition, entry, _ = batch.entries.row(0)
        told = "partition %d: entry %d cannot be processed; its events are set aside"
        log.error(told, partition, entry, exc_info=error, extra={"partitions": [partition], "entry": entry})
        dead = dead_rows(batch.events, None, UNPROCESSABLE)
        only_dead = Batch(entries=batch.entries, dead_letters=pl.concat([batch.dead_letters, dead]))
        return step(state, only_dead, rules, semantics)


def _halves(entries: Mapping[int, Sequence[Entry]]) -> list[dict[int, list[Entry]]]:
    """The partitions in two halves; of a single one, its earlier and its later entries."""
    filled = {partition: list(found) for partition, found in entries.items() if found}
    if len(filled) > 1:
        keys = sorted(filled)
        middle = len(keys) // 2
        return [{key: filled[key] for key in part} for part in (keys[:middle], keys[middle:])]
    ((partition, found),) = filled.items()
    middle = len(found) // 2
    return [{partition: found[:middle]}, {partition: found[middle:]}]
