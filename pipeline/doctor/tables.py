"""The lake and the catalog: can they be read and written, and does somebody keep house."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb

from pipeline.doctor.finding import Finding, graded
from pipeline.errors import PipelineError
from pipeline.settings import Settings, semantics_of
from pipeline.stores.catalog import FILE, is_current, open_catalog
from pipeline.stores.lake import Lake, first_line
from pipeline.stores.tables import TABLES

COMMITS_WARN, COMMITS_BAD = 200, 5000  # since the last checkpoint: each is read by whoever opens the table
SMALL_WARN, SMALL_BAD = 500, 10_000  # files of one table that nobody has merged
FILES_WARN, FILES_BAD = 20_000, 200_000
ORPHANS_WARN, ORPHANS_BAD = 200, 20_000
KEEP_HOUSE = "is `telemetry maintain` running?"


def examine(settings: Settings) -> Iterator[Finding]:
    """Findings on the tables."""
    lake = Lake(settings.lake)
    try:
        if not lake.exists():
            yield Finding("lake", "ok", f"none yet at {settings.lake}; the first worker makes it")
            yield _writable(settings.lake)
            return
        lake.check(semantics_of(settings), settings.partitions)
        sizes = lake.sizes()
        rows, files = (sum(size[what] for size in sizes.values()) for what in ("rows", "files"))
        yield Finding("lake", "ok", f"readable: {rows:,} rows in {files:,} files at {settings.lake}")
    except PipelineError as error:
        yield Finding("lake", "bad", str(error))
        return
    yield _writable(settings.lake)
    for table in TABLES:
        yield from _table(settings, lake, table, sizes[table])
    yield _catalog(settings)


def _writable(location: str) -> Finding:
    if "://" in location:
        return Finding("lake", "ok", "whether this user may write there is not tried: the first commit shows it")
    there = next(each for each in (Path(location), *Path(location).absolute().parents) if each.exists())
    wrong = [each for each in (there, *(there / table for table in TABLES)) if each.exists() and not os.access(each, os.W_OK | os.X_OK)]
    if wrong:
        return Finding("lake", "bad", f"cannot write to {wrong[0]}", "mend its permissions, or choose another --data")
    return Finding("lake", "ok", "writable")


def _table(settings: Settings, lake: Lake, table: str, size: dict[str, int]) -> Iterator[Finding]:
    """What is out of order; a table in good order gets one line."""
    found = [
        graded("lake", size["files"], FILES_WARN, FILES_BAD, f"{table}: {size['files']:,} files", f"PIPELINE_RETENTION_DAYS; {KEEP_HOUSE}"),
        graded("lake", size["small"], SMALL_WARN, SMALL_BAD, f"{table}: {size['small']:,} small files, not merged", KEEP_HOUSE),
    ]
    if "://" not in settings.lake:
        since, age = _checkpoint(Path(settings.lake) / table / "_delta_log", size["version"])
        text = f"{table}: {since:,} commits since the last checkpoint" + (f", {age / 60:.0f} min ago" if age is not None else "")
        found.append(graded("lake", since, COMMITS_WARN, COMMITS_BAD, text, KEEP_HOUSE))
    try:
        due = lake.vacuum(table, settings.vacuum_retention_hours, dry_run=True)
    except Exception as error:  # delta-rs' own, and what the store below it raises
        found.append(Finding("lake", "warn", f"{table}: its folder cannot be listed: {first_line(error)}"))
    else:
        text = f"{table}: {due:,} files older than {settings.vacuum_retention_hours} h that no version needs"
        found.append(graded("lake", due, ORPHANS_WARN, ORPHANS_BAD, text, f"vacuum takes them away: {KEEP_HOUSE}"))
    wrong = [each for each in found if each.mark != "ok"]
    summary = f"{table}: version {size['version']:,}, {size['files']:,} files ({size['small']:,} small), {size['rows']:,} rows"
    orphans = f", {due:,} files due for vacuum" if not wrong and due else ""
    yield from wrong or [Finding("lake", "ok", summary + orphans)]


def _checkpoint(log: Path, version: int) -> tuple[int, float | None]:
    """Commits since the last checkpoint, and its age in seconds; None: there is none yet."""
    try:
        last = log / "_last_checkpoint"
        return version - json.loads(last.read_text())["version"], time.time() - last.stat().st_mtime
    except (OSError, ValueError, KeyError):
        return version, None


def _catalog(settings: Settings) -> Finding:
    path = settings.data_dir / FILE
    try:
        with open_catalog(settings) as connection:
            connection.execute("SELECT count(*) FROM (FROM aggregates LIMIT 1)").fetchall()
    except (PipelineError, duckdb.Error) as error:
        return Finding("catalog", "bad", f"DuckDB cannot read {path}: {first_line(error)}", f"remove it; {KEEP_HOUSE}")
    if not path.exists():
        return Finding("catalog", "warn", f"no {path} for other DuckDB clients", f"`telemetry maintain` writes it: {KEEP_HOUSE}")
    if not is_current(path):  # what comes with us does without the file
        remedy = f"the housekeeping writes it again every {settings.compact_interval_seconds:g} s: {KEEP_HOUSE} If it stays so, delete it"
        return Finding("catalog", "warn", f"{path} is locked, damaged or of another release: other DuckDB clients cannot use it", remedy)
    return Finding("catalog", "ok", f"DuckDB reads {path}, with the delta extension")
