"""In-memory stores, fault plans and frame builders for tests: each twin stands under the contract suite of its real store."""

from __future__ import annotations

import polars as pl

from pipeline.core.alerts import ACTIVE
from pipeline.core.schema import SERIES_NAMES


def no_alerts() -> pl.DataFrame:
    """The alerts that stand, by the names of their series, where none does."""
    kept = {name: dtype for name, dtype in ACTIVE.items() if name not in ("series", "partition")}
    return pl.DataFrame(schema={**{name: pl.Categorical() for name in SERIES_NAMES}, **kept})
