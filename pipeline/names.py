"""Names no longer needed go. A name in a frame is a number; its text Polars keeps once, for as long as any frame has any name.

So every name ever read would stay, also those of events that were refused: whoever invents names would fill a worker's
memory, whatever the limit on series. When there are too many, all frames let go of them at once, and take those they need again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import polars as pl

from pipeline.commits import Holding
from pipeline.core.batch import SERIES, State
from pipeline.core.schema import AGGREGATES, ANOMALIES, DEAD_ROWS, LATE, SERIES_NAMES
from pipeline.core.watermarks import DEVICES
from pipeline.stores.alertlog import NAMED

SPARE_MAX = 50_000  # names beyond twice those that known series have

_TABLES = {"aggregates": AGGREGATES, "anomalies": ANOMALIES, "late": LATE, "dead_letters": DEAD_ROWS}
_probes = itertools.count()


class Crowd:
    """How many names there are, and whether that is too many."""

    def __init__(self) -> None:
        self._needed = 0

    def too_large(self, series: pl.DataFrame) -> bool:
        """Whether most of the names in memory are of nothing that is known. `series`: SERIES."""
        names = held()
        if names <= 2 * self._needed + SPARE_MAX:  # looked at often, so first what costs nothing
            return False
        self._needed = sum(series[name].n_unique() for name in SERIES_NAMES)
        return names > 2 * self._needed + SPARE_MAX


def held() -> int:
    """The number of names in memory: what the next new one is numbered."""
    return pl.Series([f"\x00{next(_probes)}"], dtype=pl.Categorical).to_physical()[0]


def as_texts(state: State, made: dict[str, list[pl.DataFrame]], holdings: Mapping[int, Holding]) -> State:
    """All that a worker holds, without names: they are texts. `made` and `holdings` are changed, the state is returned."""
    return _cast(state, made, holdings, pl.Categorical(), pl.String())


def as_names(state: State, made: dict[str, list[pl.DataFrame]], holdings: Mapping[int, Holding]) -> State:
    """The inverse. In between nobody may hold a frame of before, else its names stay."""
    return _cast(state, made, holdings, pl.String(), pl.Categorical())


def _cast(state: State, made: dict[str, list[pl.DataFrame]], holdings: Mapping[int, Holding], old: pl.DataType, new: pl.DataType) -> State:
    def other(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
        columns = [name for name, dtype in schema.items() if dtype == pl.Categorical() and frame.schema[name] == old]
        return frame.with_columns(pl.col(columns).cast(new))

    for table, frames in made.items():
        made[table] = [other(frame, _TABLES[table]) for frame in frames]
    for holding in holdings.values():
        holding.alerts = other(holding.alerts, NAMED)
    return replace(state, series=other(state.series, SERIES), devices=other(state.devices, DEVICES))
