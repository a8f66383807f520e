"""From what is known of partitions that were taken to the state in which their last holder left them.

What is pending after the position of `aggregates` is stepped through again. Where another table, or the alerts, had come
further, its rows are there already: the entries are cut exactly there, and of what comes out that table is left out.
Partitions that are cut alike go through the same steps, since a step costs the same for one as for twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import polars as pl

from pipeline.core.batch import Output, State
from pipeline.core.recovery import active_of, recover
from pipeline.core.rules import Rules
from pipeline.core.semantics import Semantics
from pipeline.isolation import step_safely
from pipeline.stores.entries import portions, to_batch
from pipeline.stores.streams import Entry

ALERTS = "alerts"


class Taken(NamedTuple):
    """What is known of a partition when it is taken."""

    tables: Mapping[str, int]  # table -> committed position
    raised: int  # position that the alerts stand for
    alerts: pl.DataFrame  # that stand, as NAMED
    pending: list[Entry]  # delivered and not acknowledged, in stream order
    last_rows: pl.DataFrame  # LAST_ROWS
    refused: pl.DataFrame  # REFUSED: events of them that are dead letters

    @property
    def position(self) -> int:
        return self.tables["aggregates"]


class _Section(NamedTuple):
    """A run of pending entries, and which tables (or ALERTS) have the rows of them already."""

    has: frozenset[str]
    entries: list[Entry]


def _sections(taken: Taken) -> list[_Section]:
    """What is pending after the position, cut where a table is ahead; the last section is what none has."""
    ahead = {table: at for table, at in (*taken.tables.items(), (ALERTS, taken.raised)) if at > taken.position}
    stops = sorted(set(ahead.values()))
    sections = [
        _Section(frozenset(t for t, at in ahead.items() if at >= stop), [e for e in taken.pending if start < e.id <= stop])
        for start, stop in pairwise([taken.position, *stops])
    ]
    return [*sections, _Section(frozenset(), [e for e in taken.pending if e.id > max([taken.position, *stops])])]


def take_over(
    taken: Mapping[int, Taken], rules: Rules, semantics: Semantics, step_rows_max: int, keep: Callable[[Output, State], None]
) -> State:
    """The state of partitions at the end of what is pending there. `keep` gets what each step puts out, and the state after it."""
    sections = {partition: _sections(each) for partition, each in taken.items()}
    alike: dict[tuple[frozenset[str], ...], list[int]] = {}
    for partition, of_partition in sections.items():
        alike.setdefault(tuple(section.has for section in of_partition), []).append(partition)
    whole = State()
    for cuts, partitions in alike.items():
        state = State()
        for partition in partitions:
            state = state.with_partition(_recovered(partition, taken[partition], semantics))
        alerts = pl.concat([taken[partition].alerts for partition in partitions])
        refused = pl.concat([taken[partition].refused for partition in partitions])
        for number, has in enumerate(cuts):
            known = refused if "dead_letters" in has else None
            for portion in portions({partition: sections[partition][number].entries for partition in partitions}, step_rows_max):
                state, output = step_safely(state, portion, rules, semantics, known)
                keep(_left_out(output, has), state)
            if ALERTS in has:
                state = replace(state, active=active_of(alerts, state))
        whole = whole.with_partition(state)
    return whole


def _recovered(partition: int, taken: Taken, semantics: Semantics) -> State:
    # Of what is counted the events alone are wanted: dead letters may be very many.
    before = to_batch({partition: [entry._replace(dead_letters=b"") for entry in taken.pending if entry.id <= taken.position]})
    return recover(partition, taken.position, taken.last_rows, before, taken.alerts, taken.refused, semantics)


def _left_out(output: Output, has: frozenset[str]) -> Output:
    """Of what a step put out, what is not there yet."""
    names = {"transitions" if table == ALERTS else table for table in has}
    return replace(output, **{name: getattr(output, name).clear() for name in names})
