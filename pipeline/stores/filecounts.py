"""What the files of `aggregates` add up to. A file never changes, so each is read once, however often somebody asks for the sums."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

import polars as pl

FILES_AT_ONCE = 16  # are read: four columns of so many, at 100 MB at most each, fit into a small process
_COUNTS = {
    "aggregated": pl.col("count").filter(~pl.col("revision")).sum(),
    "late": pl.col("count").filter("revision").sum(),
    "repeated": pl.col("repeated").sum(),
    "windows": (~pl.col("revision")).sum().cast(pl.Int64),
}
COUNTED = pl.Schema({"partition": pl.Int32(), **dict.fromkeys(_COUNTS, pl.Int64())})


class FileCounts:
    """Events and windows of each partition, by file. A file that is asked for no more is forgotten."""

    def __init__(self) -> None:
        self._of: dict[str, pl.DataFrame] = {}

    def total(self, files: list[str], options: Mapping[str, str] | None) -> pl.DataFrame:
        """COUNTED of the partitions that these files (URIs) have rows of."""
        for gone in self._of.keys() - set(files):
            del self._of[gone]
        new = [file for file in files if file not in self._of]
        for start in range(0, len(new), FILES_AT_ONCE):
            self._read(new[start : start + FILES_AT_ONCE], options)
        whole = pl.concat([COUNTED.to_frame(), *self._of.values()])
        return whole.group_by("partition", maintain_order=True).agg(pl.exclude("partition").sum())

    def _read(self, files: list[str], options: Mapping[str, str] | None) -> None:
        rows = scan(files, options, include_file_paths="file")
        found = rows.group_by("file", "partition").agg(**_COUNTS).collect().partition_by("file", as_dict=True, include_key=False)
        for file in files:
            self._of[file] = found.get((_path(file),), COUNTED.to_frame()).cast(COUNTED)


def scan(files: list[str], options: Mapping[str, str] | None, **more: str) -> pl.LazyFrame:
    """The rows of files of a table (URIs, as Delta names them), whatever characters their names have."""
    return pl.scan_parquet([_path(file) for file in files], storage_options=options, hive_partitioning=False, glob=False, **more)


def _path(uri: str) -> str:
    return unquote(uri.removeprefix("file://"))
