"""Patterns of names: * and ?. One of a metric without a slash also matches the last part of a path."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl


def matches(column: str, patterns: Sequence[str]) -> pl.Expr:
    """Whether a column of names matches any of the patterns."""
    if "*" in patterns:
        return pl.lit(True)
    parts = [_regex(pattern) if "/" in pattern or column != "metric" else f"(?:.*/)?{_regex(pattern)}" for pattern in patterns]
    return pl.col(column).str.contains("(?s)^(?:" + "|".join(parts) + ")$")


def _regex(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
