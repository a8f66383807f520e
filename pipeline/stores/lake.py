"""The lake: Delta tables. A commit is rows and the positions they stand for, durable together; there is no other state.

The fence of the lake: a commit from a handle older than another commit of the same `txn` is refused by Delta, but from a
fresh handle an equal or older `txn` is accepted. So the writer compares, in the very handle it commits from, each
partition's position with the one it believes in, and stops with `Fenced` where they differ.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain
from pathlib import Path

import polars as pl
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Transaction,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipeline.core.recovery import LAST_ROWS, Stand
from pipeline.core.schema import SERIES_NAMES, log_time
from pipeline.core.semantics import NEVER, Semantics
from pipeline.core.setaside import REFUSED, refused_of
from pipeline.errors import Fenced, Invalid, Unavailable
from pipeline.stores.deltalog import Transactions
from pipeline.stores.filecounts import FileCounts, scan
from pipeline.stores.tables import APPEND, COMPACT, SCHEMAS, SERIES_TABLE, SKIP_BY, TABLES, rows_of

FORMAT = 1  # of the tables; another needs another lake
ODD_IN_NAMES = frozenset("[]%\\*?^|")  # under these Delta fails, or it and DuckDB read a path that is another
SMALL_BYTES = 1 << 20  # of a file that had better be merged with others
# Every commit and every look lists the log. With a commit a second it is 86,400 entries long after a day, and a commit takes seconds;
# nobody needs an entry that is older than the longest look.
LOG_RETENTION_MINUTES = 10
# Writers leave it to housekeeping to look for entries that are too old: that reads the whole list once more.
_NO_CLEANUP = PostCommitHookProperties(cleanup_expired_logs=False)


def txn(partition: int) -> str:
    """The name under which Delta keeps a partition's position."""
    return f"telemetry/{partition}"


def incarnation_txn(partition: int) -> str:
    """The name under which it keeps which incarnation of the stream that position is of."""
    return f"telemetry/{partition}/incarnation"


def expired_txn(partition: int) -> str:
    """The name under which it keeps how many events of a partition went for their age."""
    return f"telemetry/{partition}/expired"


class Lake:
    """Tables under one folder or URL. One instance is one writer, with kept handles; not for two threads at once."""

    def __init__(self, location: str, commit_retries_max: int = 100, storage_options: Mapping[str, str] | None = None) -> None:
        self.location = location.rstrip("/")
        self._retries = commit_retries_max
        self._options = dict(storage_options or {}) or None
        self._handles: dict[str, DeltaTable] = {}
        self._transactions: dict[str, Transactions] = {}
        self._counts = FileCounts()
        self._still: tuple[str, ...] = ()  # tables that are read as they stood

    def standing_still(self) -> Lake:
        """This lake for a reader whose `aggregates` and `series` stay as they are now; `series`, which goes by the other, is not ahead."""
        still = Lake(self.location, self._retries, self._options)
        for table in ("series", "aggregates"):
            still._handle(table)
        still._still, still._counts = ("series", "aggregates"), self._counts
        return still

    def create(self, semantics: Semantics, partitions: int) -> None:
        """Make the tables where they are absent. Invalid: the lake is another's: format, partitions or semantics."""
        self._check_writable()
        self._check_whole(partitions)
        self.create_tables({"format": FORMAT, "partitions": partitions, **semantics_of_lake(semantics)})
        self.check(semantics, partitions)

    def create_tables(self, made_with: Mapping[str, float]) -> None:
        """Make the tables where they are absent, and write down the numbers that they are made with."""
        for name in TABLES:
            try:
                DeltaTable.create(
                    self._uri(name),
                    schema=SCHEMAS[name],
                    mode="ignore",
                    partition_by=None if name == "series" else ["date"],
                    description=json.dumps(dict(made_with), sort_keys=True),
                    configuration={
                        "delta.checkpointInterval": "20",
                        "delta.logRetentionDuration": f"interval {LOG_RETENTION_MINUTES} minutes",
                        "delta.dataSkippingStatsColumns": SKIP_BY.get(name, ""),
                    },
                    storage_options=self._options,
                )
            except (DeltaError, OSError) as error:  # made by another process at the same moment
                if not self._is_table(name):
                    raise Unavailable(f"cannot make table {name} under {self.location}: {first_line(error)}") from error

    def exists(self) -> bool:
        """Whether the tables were made."""
        return self._is_table("aggregates")

    def _is_table(self, name: str) -> bool:
        with self._reading(name):
            return DeltaTable.is_deltatable(self._uri(name), storage_options=self._options)

    def check(self, semantics: Semantics, partitions: int) -> None:
        """Invalid where this lake was made with other numbers than these."""
        found = self.made_with()
        if found.get("format") != FORMAT:
            raise Invalid(f"{self.location} holds tables of another format ({found.get('format')}, not {FORMAT}): choose another --data")
        for name, value in {"partitions": partitions, **semantics_of_lake(semantics)}.items():
            if found.get(name) != value:
                made = f"PIPELINE_{name.upper()}={found.get(name, 0):.12g}, not {value:.12g}"
                raise Invalid(f"{self.location} was made with {made}: set that, or choose another --data")

    def made_with(self) -> dict[str, float]:
        """What `create_tables` wrote down; empty for a table that something else made."""
        try:
            found = json.loads(self._handle("aggregates").metadata().description or "{}")
        except ValueError:
            found = None
        return found if isinstance(found, dict) else {}

    def _check_writable(self) -> None:
        place = self.location if "://" in self.location else str(Path(self.location).absolute())
        if odd := sorted(ODD_IN_NAMES & set(place)):
            raise Invalid(f"{place}: Delta and DuckDB cannot work under a name with {' or '.join(odd)}: choose another --data")
        if "://" in self.location:
            return
        try:
            Path(self.location).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.location):  # of its own: others may be just starting, too
                pass
        except OSError as error:
            raise Invalid(f"cannot write to {self.location} ({error.strerror}): choose another --data, or mend its permissions") from error

    def _check_whole(self, partitions: int) -> None:
        """Invalid where a table is missing beside one with rows: made anew and empty, it would say that nothing ever was."""
        if not self._missing():
            return
        written = [name for name in TABLES if self._is_table(name) and self._was_written(name, partitions)]
        missing = self._missing()  # looked at after the rows: who writes some has made all tables before
        if written and missing:
            lost = f"{self.location} holds the table {written[0]}, but not {', '.join(missing)}"
            raise Invalid(f"{lost}: bring it back, or choose another --data")

    def _missing(self) -> list[str]:
        return [name for name in TABLES if not self._is_table(name)]

    def _was_written(self, table: str, partitions: int) -> bool:
        """Whether rows were ever committed to it. Its version does not tell: two that make a table at one moment leave it at 1."""
        handle = self._handle(table)
        return bool(handle.file_uris()) or max(self._positions(handle, table, range(partitions)).values()) >= 0

    def _uri(self, table: str) -> str:
        return f"{self.location}/{table}"

    @contextmanager
    def _reading(self, table: str) -> Iterator[None]:
        """Unavailable for what goes wrong with the files of a table: they may be there again at the next attempt."""
        try:
            yield
        except TableNotFoundError:
            self._handles.pop(table, None)
            raise Unavailable(f"there is no table {table} under {self.location} yet: is a worker running?") from None
        except (DeltaError, OSError, pl.exceptions.PolarsError) as error:
            self._handles.pop(table, None)
            reason = f"table {table} under {self.location} cannot be read: {first_line(error)}"
            raise Unavailable(f"{reason}; bring its files back, or choose another --data") from error

    def _handle(self, table: str) -> DeltaTable:
        if table not in self._handles:
            with self._reading(table):
                self._handles[table] = DeltaTable(self._uri(table), storage_options=self._options)
        return self._handles[table]

    def _refresh(self, table: str) -> DeltaTable:
        handle = self._handle(table)
        if table not in self._still:
            with self._reading(table):
                handle.update_incremental()
        return handle

    def _txns(self, handle: DeltaTable, table: str, names: Iterable[str]) -> dict[str, int | None]:
        with self._reading(table):
            if table not in self._transactions:
                self._transactions[table] = Transactions(self._uri(table), self._options)
            return self._transactions[table].at(handle, names)

    def _positions(self, handle: DeltaTable, table: str, partitions: Iterable[int]) -> dict[int, int]:
        named = {partition: txn(partition) for partition in partitions}
        found = self._txns(handle, table, named.values())
        return {partition: -1 if found[name] is None else found[name] for partition, name in named.items()}

    def positions(self, table: str, partitions: Iterable[int]) -> dict[int, int]:
        """The committed position of each partition in a table; -1: none yet."""
        return self._positions(self._refresh(table), table, partitions)

    def stands(self, table: str, partitions: Iterable[int]) -> dict[int, Stand]:
        """The committed position of each partition in a table, and the incarnation of the stream that it is of."""
        handle, named = self._refresh(table), {partition: (txn(partition), incarnation_txn(partition)) for partition in partitions}
        found = self._txns(handle, table, chain.from_iterable(named.values()))
        return {p: Stand(-1 if found[at] is None else found[at], found[incarnation] or 0) for p, (at, incarnation) in named.items()}

    def commit(self, table: str, rows: pl.DataFrame, stands: Mapping[int, Stand], expected: Mapping[int, int]) -> None:
        """Commit rows and how far in the streams (by partition) they stand for, as one.

        `expected`: the positions that this writer believes the table to have. Fenced, for the first partition of which
        that is not so: another holder has written. A reply that got lost is settled by the same comparison.
        """
        data = rows_of(rows, table)
        positions = {partition: stand.position for partition, stand in stands.items()}
        incarnations = [Transaction(incarnation_txn(p), stand.incarnation) for p, stand in stands.items() if stand.incarnation]
        properties = CommitProperties(
            app_transactions=[*(Transaction(txn(p), position) for p, position in positions.items()), *incarnations],
            max_commit_retries=self._retries,
        )
        handle = self._handle(table)
        try:
            behind = self._positions(handle, table, positions) != {partition: expected[partition] for partition in positions}
        except Unavailable:  # it was not used for so long that what it goes by was cleaned up
            behind = True
        if behind:
            handle = self._refresh(table)
        for attempt in range(3):
            self._compare(handle, table, positions, expected)
            try:
                write_deltalake(
                    handle, data, mode="append", commit_properties=properties, post_commithook_properties=_NO_CLEANUP,
                    storage_options=self._options, writer_properties=APPEND,
                )  # fmt: skip
                return
            except CommitFailedError as error:  # another commit of one of these partitions came first, or it is ours
                refused: Exception = error
            except (DeltaError, OSError) as error:
                refused = error
            handle = self._refresh(table)
            if self._positions(handle, table, positions) == positions:
                return  # it is ours: only the reply was lost
            if attempt and not isinstance(refused, CommitFailedError):
                break
        self._compare(handle, table, positions, expected)
        raise Unavailable(f"commit to {table} failed: {first_line(refused)}") from refused

    def _compare(self, handle: DeltaTable, table: str, positions: Mapping[int, int], expected: Mapping[int, int]) -> None:
        for partition, found in self._positions(handle, table, positions).items():
            if found != expected[partition]:
                raise Fenced(partition, f"the lake stands at position {found}, not at {expected[partition]}: another worker has written")

    # Recovery

    def last_rows(self, partitions: Iterable[int], semantics: Semantics) -> dict[int, pl.DataFrame]:
        """LAST_ROWS of each partition: the `series` table, and the files of `aggregates` added since it was made."""
        wanted = sorted(partitions)
        with self._reading("aggregates"):
            try:
                merged = self._newest(pl.col("partition").is_in(wanted), semantics)
            except FileNotFoundError:  # compaction and vacuum came in between: look again
                merged = self._newest(pl.col("partition").is_in(wanted), semantics)
        parts = merged.partition_by("partition", as_dict=True, include_key=False)
        empty = LAST_ROWS.to_frame()
        return {partition: parts.get((partition,), empty).select(list(LAST_ROWS)) for partition in wanted}

    def _newest(self, where: pl.Expr, semantics: Semantics) -> pl.DataFrame:
        """SERIES_TABLE rows as of the newest version of `aggregates`."""
        handle, series = self._refresh("aggregates"), self._refresh("series")
        files = set(handle.file_uris())
        version = series.transaction_version("aggregates")
        known = SERIES_TABLE.to_frame()
        if version is not None:
            known = self._scan(series.file_uris()).filter(where).collect().select(pl.col(n).cast(t) for n, t in SERIES_TABLE.items())
            with suppress(DeltaError, OSError):  # its log may be gone: then all files are read, which is slow and right
                files -= set(DeltaTable(self._uri("aggregates"), version=version, storage_options=self._options).file_uris())
        if not files:
            return known
        key = ["partition", *SERIES_NAMES]
        rows = (
            self._scan(sorted(files))
            .filter(where)
            .select(*key, "window_start", "revision", "last", "last_exact", "last_time", "newest", "arrived")
        )
        base = (
            rows.filter(~pl.col("revision"))
            .group_by(key)
            .agg(pl.col("last", "last_exact", "last_time").sort_by("window_start").last(), closed_to=pl.col("window_start").max())
        )
        seen = rows.group_by(key).agg(pl.col("newest", "arrived").max())
        found = (
            seen.join(base, on=key, how="left")
            .collect()
            .with_columns(pl.col("closed_to", "last_time", "newest", "arrived").cast(pl.Datetime("us")).to_physical())
        )
        found = found.with_columns(closed_to=(pl.col("closed_to") + semantics.width).fill_null(NEVER))
        found = found.select(pl.col(name).cast(dtype) for name, dtype in SERIES_TABLE.items())
        return merge_newest(known, found)

    def _scan(self, files: list[str]) -> pl.LazyFrame:
        if not files:
            return SERIES_TABLE.to_frame().lazy()
        return scan(files, self._options)

    def refresh_series(self, semantics: Semantics) -> int:
        """Write the `series` table anew, as of the newest version of `aggregates`; the number of series."""
        version = self._refresh("aggregates").version()
        newest = self._newest(pl.lit(True), semantics)
        properties = CommitProperties(app_transactions=[Transaction("aggregates", version)], max_commit_retries=self._retries)
        data = newest.with_columns(pl.col(SERIES_NAMES).cast(pl.String), pl.col("last_exact").cast(pl.Decimal(20, 0))).to_arrow()
        write_deltalake(
            self._handle("series"),
            data.cast(SCHEMAS["series"]),
            mode="overwrite",
            commit_properties=properties,
            storage_options=self._options,
        )
        return newest.height

    # Housekeeping, all safe beside writers and readers

    def compact(self, table: str, files_min: int) -> int:
        """Merge the small files of each day that has at least `files_min`; the number of files that went."""
        handle = self._refresh(table)
        days: dict[str, int] = {}
        for partition in handle.get_add_actions(flatten=True).to_struct_array().to_pylist() if handle.file_uris() else []:
            day = str(partition["partition.date"])
            days[day] = days.get(day, 0) + 1
        gone = 0
        for day, count in sorted(days.items()):
            if count >= files_min:
                properties = CommitProperties(max_commit_retries=self._retries)
                metrics = handle.optimize.compact([("date", "=", day)], commit_properties=properties, writer_properties=COMPACT)
                gone += metrics["numFilesRemoved"]
        return gone

    def checkpoint(self, table: str) -> None:
        """Write a log checkpoint, and drop the log entries that no reader needs any more."""
        handle = self._refresh(table)
        handle.create_checkpoint()
        handle.cleanup_metadata()

    def vacuum(self, table: str, retention_hours: float, *, dry_run: bool = False) -> int:
        """Remove files that no version of the last `retention_hours` has; orphans of refused commits too. How many they are."""
        handle = self._refresh(table)
        return len(handle.vacuum(retention_hours=int(retention_hours), dry_run=dry_run, enforce_retention_duration=False, full=True))

    def expire(self, table: str, before: datetime) -> None:
        """Delete what is of days before `before` and arrived before it, too: a recording of long ago that came today stays.

        How many events went, as the books count them, is written down in the same commit: the one is never known without the other.
        """
        arrival = "arrived" if table in ("aggregates", "anomalies") else "received_at"
        moment = before.replace(tzinfo=None)
        day = {"anomalies": "event_time", "dead_letters": "received_at"}.get(table, "window_start")
        old = (pl.col(day).dt.date() < moment.date()) & (pl.col(arrival) < moment)
        rows = self._scan_table(table).filter(old)
        counted = {"aggregates": pl.col("count") + pl.col("repeated"), "dead_letters": _ACCEPTED.cast(pl.Int64)}
        events = counted.get(table, pl.lit(0, pl.Int64))
        gone = dict(rows.group_by("partition").agg(events.sum()).collect().iter_rows())
        if gone:
            predicate = f"date < '{moment.date()}' AND {arrival} < arrow_cast('{moment.isoformat()}', 'Timestamp(Microsecond, None)')"
            went = self._expired(table, gone)
            noted = [Transaction(expired_txn(partition), went[partition] + count) for partition, count in gone.items() if count]
            properties = CommitProperties(app_transactions=noted, max_commit_retries=self._retries)
            self._handle(table).delete(predicate, commit_properties=properties)

    def expired(self, partitions: Iterable[int]) -> dict[int, int]:
        """Events of each partition that went for their age, as of the versions that were looked at last: who counted, counted these."""
        each = [self._expired(table, partitions) for table in ("aggregates", "dead_letters")]
        return {partition: sum(went[partition] for went in each) for partition in each[0]}

    def _expired(self, table: str, partitions: Iterable[int]) -> dict[int, int]:
        named = {partition: expired_txn(partition) for partition in partitions}
        found = self._txns(self._handle(table), table, named.values())
        return {partition: found[name] or 0 for partition, name in named.items()}

    def counts(self) -> dict[str, int]:
        """Events that the tables account for: aggregated, late, repeated, dead_lettered; and windows, anomalies.

        Entries that something else wrote into a stream are dead letters, but no events: nobody accepted them.
        """
        totals = self._counted().select(pl.exclude("partition").sum())
        dead = self._collected("dead_letters", self._scan_table("dead_letters").filter(_ACCEPTED).select(pl.len())).item()
        anomalies = self._collected("anomalies", self._scan_table("anomalies").select(pl.len())).item()
        return {**totals.row(0, named=True), "dead_lettered": dead, "anomalies": anomalies}

    def counts_of(self, upto: Mapping[int, int], ahead: Mapping[int, Sequence[int]]) -> pl.DataFrame:
        """partition, aggregated, late, repeated, dead_lettered of these partitions. A dead letter of an entry beyond `upto`
        (partition -> entry), or of one that is `ahead`, is left out: who asks counts it elsewhere."""
        wanted = pl.LazyFrame({"partition": list(upto), "upto": list(upto.values())}, schema={"partition": pl.Int32, "upto": pl.Int64})
        places = [(partition, entry) for partition, ids in ahead.items() for entry in ids]
        elsewhere = pl.LazyFrame(places, schema={"partition": pl.Int32, "entry": pl.Int64}, orient="row")
        dead = (
            self._scan_table("dead_letters").filter(_ACCEPTED).select("partition", "entry")
            .join(wanted, on="partition").filter(pl.col("entry") <= pl.col("upto"))
            .join(elsewhere, on=["partition", "entry"], how="anti").group_by("partition").agg(dead_lettered=pl.len())
        )  # fmt: skip
        rows = self._counted().drop("windows").lazy()
        counted = wanted.select("partition").join(rows, on="partition", how="left").join(dead, on="partition", how="left")
        return self._collected("dead_letters", counted.fill_null(0))

    def _counted(self) -> pl.DataFrame:
        """COUNTED of `aggregates`."""
        files = self._refresh("aggregates").file_uris()
        with self._reading("aggregates"):
            return self._counts.total(files, self._options)

    def sizes(self) -> dict[str, dict[str, int]]:
        """Of each table's newest version: version, files, small ones among them, rows, bytes."""
        found = {}
        for table in TABLES:
            handle = self._refresh(table)
            with self._reading(table):
                files = pl.DataFrame(handle.get_add_actions(flatten=True))
            found[table] = {
                "version": handle.version(),
                "files": files.height,
                "small": int((files["size_bytes"] < SMALL_BYTES).sum()),
                "rows": int(files["num_records"].sum() or 0),
                "bytes": int(files["size_bytes"].sum() or 0),
            }
        return found

    def dead_lettered(self, entries: Mapping[int, Sequence[int]]) -> int:
        """How many events of these entries (partition -> ids) are dead letters already."""
        places = [(partition, entry) for partition, ids in entries.items() for entry in ids]
        wanted = pl.LazyFrame(places, schema={"partition": pl.Int32, "entry": pl.Int64}, orient="row")
        found = self._scan_table("dead_letters").filter(_ACCEPTED).join(wanted, on=["partition", "entry"], how="semi")
        return self._collected("dead_letters", found.select(pl.len())).item()

    def refused(self, entries: Mapping[int, Sequence[int]]) -> dict[int, pl.DataFrame]:
        """REFUSED of these entries (partition -> ids): what of them became dead letters by what came before it."""
        places = [(partition, entry) for partition, ids in entries.items() for entry in ids]
        found = {partition: REFUSED.to_frame() for partition in entries}
        if not places:
            return found
        wanted = pl.LazyFrame(places, schema={"partition": pl.Int32, "entry": pl.Int64}, orient="row")
        since = wanted.select(log_time(pl.col("entry").min()).cast(pl.Datetime("us"))).collect().item()
        rows = self._scan_table("dead_letters").filter(pl.col("received_at") >= since)
        rows = refused_of(rows.join(wanted, on=["partition", "entry"], how="semi"), "partition")
        parts = self._collected("dead_letters", rows).partition_by("partition", as_dict=True, include_key=False)
        return found | {partition: part for (partition,), part in parts.items()}

    def accounted(self, partitions: Iterable[int]) -> dict[int, int]:
        """Events of each partition that the tables account for, those that expired as well."""
        rows = self._counted().select("partition", count=pl.sum_horizontal("aggregated", "late", "repeated"))
        dead = self._scan_table("dead_letters").filter(_ACCEPTED).group_by("partition").agg(pl.len().cast(pl.Int64).alias("count"))
        both = pl.concat([rows, self._collected("dead_letters", dead)]).group_by("partition").agg(pl.col("count").sum())
        found = dict(both.iter_rows())
        return {partition: found.get(partition, 0) + went for partition, went in self.expired(partitions).items()}

    def _collected(self, table: str, query: pl.LazyFrame) -> pl.DataFrame:
        with self._reading(table):
            return query.collect()

    def _scan_table(self, table: str) -> pl.LazyFrame:
        files = self._refresh(table).file_uris()
        return self._scan(files) if files else pl.from_arrow(SCHEMAS[table].empty_table()).lazy()


_ACCEPTED = pl.col("reason") != "undecodable_entry"


def merge_newest(known: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """One SERIES_TABLE row per series of two: the later last sample, the largest of the rest."""
    both = pl.concat([known, found]).sort("last_time", nulls_last=False, maintain_order=True)
    return (
        both.group_by("partition", *SERIES_NAMES, maintain_order=True)
        .agg(pl.col("last", "last_exact", "last_time").last(), pl.col("newest", "arrived", "closed_to").max())
        .select(list(SERIES_TABLE))
    )


def semantics_of_lake(semantics: Semantics) -> dict[str, float]:
    """The settings that a lake is made with, by the names of their settings."""
    return {
        "window_seconds": semantics.width / 1e6,
        "disorder_seconds": semantics.disorder / 1e6,
        "idle_after_seconds": semantics.idle_after / 1e6,
        "lateness_max_seconds": semantics.lateness_max / 1e6,
    }


def lake_settings(location: str) -> dict[str, float]:
    """The settings that the lake at `location` was made with; empty where there is none."""
    lake = Lake(location)
    if not lake.exists():
        return {}
    found = lake.made_with()
    whole = {"partitions", "window_seconds"}
    return {name: int(value) if name in whole else value for name, value in found.items() if name != "format"}


def first_line(error: BaseException) -> str:
    """An error's text as one line: the first of it, and the cause at its end where it lists causes."""
    lines = [line.strip(" \t:") for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    if len(lines) > 1 and lines[-1].startswith("↳"):
        return f"{lines[0]}: {lines[-1].lstrip('↳ ')}"
    return lines[0] if lines else type(error).__name__
