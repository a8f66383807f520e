"""Runs: stretches of rows that agree in some columns by which they are sorted, and what is said of each.

A run is a slice, so nothing is hashed and nothing gathered into groups: numpy reduces the slices of a column at once. For the
short runs of a window (some samples of a series) that costs a quarter of a `group_by` of Polars (2.1), most of it the quantiles, for
each of which a group is sorted anew.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl


class Runs:
    """Runs of rows; one begins with each row of which `begins` says so, as it must of the first."""

    def __init__(self, begins: np.ndarray) -> None:
        self.begins = begins
        self._starts = np.flatnonzero(begins)
        self.counts = np.diff(self._starts, append=len(begins))

    @classmethod
    def of(cls, rows: pl.DataFrame, *columns: str) -> Runs:
        """The runs of rows that agree in all of `columns`, which hold numbers, none of them null. Rows of one run lie together."""
        begins = np.ones(rows.height, bool)
        begins[1:] = False
        for column in columns:
            keys = rows[column].to_numpy()
            begins[1:] |= keys[1:] != keys[:-1]
        return cls(begins)

    def __len__(self) -> int:
        return len(self._starts)

    def numbers(self) -> np.ndarray:
        """The number of its run, of each row."""
        return self.each(np.arange(len(self), dtype=np.uint32))

    def each(self, values: np.ndarray) -> np.ndarray:
        """What is said of its run, of each row."""
        return np.repeat(values, self.counts)

    def first(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The first row of each run."""
        return rows[self._starts]

    def last(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The last row of each run."""
        return rows[self._starts + self.counts - 1]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """In the order of the rows, so that the same rows give the same sum to the last bit."""
        return self._reduced(np.add, values)

    def min(self, values: np.ndarray) -> np.ndarray:
        """The least of each run."""
        return self._reduced(np.minimum, values)

    def max(self, values: np.ndarray) -> np.ndarray:
        """The largest of each run."""
        return self._reduced(np.maximum, values)

    def cum_max(self, values: np.ndarray) -> np.ndarray:
        """Of each row, the largest of its run up to it."""
        known, ranks = np.unique(values, return_inverse=True)
        floor = self.each(np.arange(len(self)) * len(known))  # ranks of a run lie above all of those before it
        return known[np.maximum.accumulate(ranks + floor) - floor]

    def _reduced(self, function: np.ufunc, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # of finite values a sum may be infinite: whoever judges by it looks
            return function.reduceat(values, self._starts) if len(self) else values[:0]

    def quantiles(self, values: np.ndarray, shares: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Quantiles of each run, linear between closest ranks (Hyndman and Fan 1996, type 7). `values`: finite floats.

        Runs of about the same length are the rows of one matrix, filled up with infinity, and are sorted side by side. So there are at
        most two matrices for each power of two, and a matrix holds at most half as much again as its runs.
        """
        found = {name: np.empty(len(self)) for name in shares}
        widths = _rounded(self.counts)
        for width in np.unique(widths):
            of = np.flatnonzero(widths == width)
            counts, places = self.counts[of], np.arange(width)
            matrix = values[np.minimum(self._starts[of, None] + places, len(values) - 1)]
            if (counts < width).any():
                matrix[places >= counts[:, None]] = np.inf
            matrix.sort(axis=1)
            row = np.arange(len(of))
            for name, share in shares.items():
                rank = (counts - 1) * share
                below = rank.astype(np.intp)
                low, high = matrix[row, below], matrix[row, np.ceil(rank).astype(np.intp)]
                with np.errstate(over="ignore", invalid="ignore"):
                    found[name][of] = low + (high - low) * (rank - below)
        return found


def _rounded(counts: np.ndarray) -> np.ndarray:
    """Each rounded up to a power of two, or to three quarters of one."""
    fraction, exponent = np.frexp(counts.astype(np.float64))  # counts = fraction * 2**exponent, fraction from 0.5 to below 1
    share = np.select([fraction == 0.5, fraction <= 0.75], [0.5, 0.75], 1.0)
    return np.ldexp(share, exponent).astype(np.intp)
