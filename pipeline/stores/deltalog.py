"""What writers of a Delta table wrote down beside their rows: the newest `txn` action of each name, at the version of a handle.

`DeltaTable.transaction_version` looks through the log since its last checkpoint for every name it is asked for: for sixteen
partitions a third of the cost of a commit, and on object storage as many round trips. Here commits are read from the newest
back, each once, until all names have been met; in a table that one writes to all the time, that is one commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl
from deltalake import DeltaTable

COMMITS_MAX = 20  # are read; a name that is none of theirs is asked for by itself, which reads the checkpoint before them
_ACTIONS = pl.Schema({"txn": pl.Struct({"appId": pl.String(), "version": pl.Int64()})})  # of all that a line may hold
_PATTERN = set("*?[]")  # what makes a URL a pattern, for Polars


class Transactions:
    """Of one table. What was found at one version of a handle is kept for the next."""

    def __init__(self, uri: str, options: dict[str, str] | None) -> None:
        self._uri, self._options = uri, options
        self._handle: DeltaTable | None = None
        self._version = -1
        self._known: dict[str, int | None] = {}

    def at(self, handle: DeltaTable, names: Iterable[str]) -> dict[str, int | None]:
        """The version that each name's newest `txn` gives, as this handle has the table; None: it has none.

        DeltaError, OSError, PolarsError: the log cannot be read.
        """
        wanted, version = dict.fromkeys(names), handle.version()
        if handle is not self._handle or version < self._version:  # opened anew: it may be another table in the same place
            self._handle, self._version, self._known = handle, -1, {}
        found = dict(self._known) if version == self._version else {}
        floor = self._version if wanted.keys() <= self._known.keys() else -1
        at = version
        while at > max(floor, version - COMMITS_MAX) and not wanted.keys() <= found.keys():
            try:
                found = self._commit(at) | found
            except FileNotFoundError:  # a checkpoint has what was in it, and it was cleaned up
                break
            at -= 1
        if at == floor:  # nothing lies between what was known and what was read
            found = self._known | found
        for name in wanted.keys() - found.keys():
            found[name] = handle.transaction_version(name) if at >= 0 else None
        self._version, self._known = version, found
        return {name: found[name] for name in wanted}

    def _commit(self, version: int) -> dict[str, int | None]:
        """The `txn` actions of one commit."""
        file: str | bytes = f"{self._uri}/_delta_log/{version:020}.json"
        if "://" not in file:
            file = Path(file).read_bytes()
        elif _PATTERN & set(self._uri):
            raise FileNotFoundError(file)  # Delta itself is asked
        # Not through `deltalake.fs`: that lets no other thread run until the store has answered, the one that renews leases among them.
        actions = pl.scan_ndjson(file, schema=_ACTIONS, storage_options=self._options).drop_nulls("txn").collect()
        return dict(actions["txn"].struct.unnest().select("appId", "version").iter_rows())
