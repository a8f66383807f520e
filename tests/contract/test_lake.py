"""The lake's fence and its recovery, on real Delta tables."""

from __future__ import annotations

import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipeline.books import Ledger, balance
from pipeline.core.batch import State, step
from pipeline.core.recovery import LAST_ROWS, Stand
from pipeline.core.semantics import NEVER
from pipeline.core.setaside import REFUSED, without_refused
from pipeline.errors import Fenced, Invalid, Unavailable
from pipeline.stores.codec import EVENTS_ARROW, encode
from pipeline.stores.connection import GROUP, books_key, format_id, stream_key
from pipeline.stores.entries import to_batch
from pipeline.stores.lake import LOG_RETENTION_MINUTES, Lake
from pipeline.stores.streams import Streams
from pipeline.stores.tables import TABLES
from pipeline.testing import MemoryLake, MemoryTables
from tests.properties.test_step import RULES, SEMANTICS, batch


def rows_of(start=1_700_000_000, device="a", partition=0, value=3):
    entries = [(start + t, [(device, "x", start + t, value)]) for t in range(0, 60, 3)] + [(start + 200, [])]
    state, output = step(State(), batch(entries, partition), RULES, SEMANTICS)
    return output.aggregates, state.positions[partition]


@pytest.fixture
def lake(tmp_path):
    made = Lake(str(tmp_path / "lake"))
    made.create(SEMANTICS, 4)
    return made


@pytest.fixture(params=["delta", "memory"])
def writers(request, tmp_path):
    """A maker of writers of one lake, real or in memory: each is another process'."""
    if request.param == "memory":
        tables = MemoryTables()
        return lambda: MemoryLake(tables)
    Lake(str(tmp_path / "lake")).create(SEMANTICS, 4)
    return lambda: Lake(str(tmp_path / "lake"))


def other(lake):
    return Lake(lake.location)


def test_rows_and_positions_are_one_commit(writers):
    lake = writers()
    rows, position = rows_of()
    lake.commit("aggregates", rows, {0: Stand(position, (7 << 32) + 5)}, {0: -1})
    assert writers().stands("aggregates", range(2)) == {0: Stand(position, (7 << 32) + 5), 1: Stand()}
    assert writers().counts()["aggregated"] == rows["count"].sum()


def test_a_writer_that_is_behind_is_fenced_and_writes_nothing(writers):
    """Also from a handle opened before the other commit, and with a position that is larger than the other's."""
    lake = writers()
    zombie = writers()
    zombie.stands("aggregates", range(4))
    rows, position = rows_of()
    lake.commit("aggregates", rows, {0: Stand(position)}, {0: -1})
    for at in (position - 1, position, position + 5):
        with pytest.raises(Fenced, match="another worker has written"):
            zombie.commit("aggregates", rows, {0: Stand(at)}, {0: -1})
        with pytest.raises(Fenced):
            writers().commit("aggregates", rows, {0: Stand(at)}, {0: -1})
    assert lake.counts()["windows"] == rows.height


def test_writers_of_other_partitions_do_not_hinder_each_other(writers):
    lake = writers()
    rows, position = rows_of()
    more, position_1 = rows_of(device="b", partition=1)
    second = writers()
    second.stands("aggregates", range(4))
    lake.commit("aggregates", rows, {0: Stand(position)}, {0: -1})
    second.commit("aggregates", more, {1: Stand(position_1)}, {1: -1})
    lake.commit("aggregates", rows, {0: Stand(position + 1)}, {0: position})
    assert lake.stands("aggregates", range(2)) == {0: Stand(position + 1), 1: Stand(position_1)}


def test_last_rows_are_the_newest_of_each_series(writers):
    """Also of a series of which only late rows are there: its last sample is unknown, its device's time is not."""
    lake, position = writers(), -1
    for start in (1_700_000_300, 1_700_000_000):
        rows, _ = rows_of(start)
        lake.commit("aggregates", rows, {0: Stand(position + 1)}, {0: position})
        position += 1
    revision = rows.head(1).with_columns(revision=True, metric=pl.lit("y").cast(pl.Categorical), newest=pl.col("newest") + 7)
    lake.commit("aggregates", revision, {0: Stand(position + 1)}, {0: position})
    found = {row["metric"]: row for row in writers().last_rows([0, 1], SEMANTICS)[0].to_dicts()}
    newest, _ = rows_of(1_700_000_300)
    last = newest.sort("window").to_dicts()[-1]
    assert {name: found["x"][name] for name in ("last", "last_time", "newest", "arrived")} == {
        name: last[name] for name in ("last", "last_time", "newest", "arrived")
    }
    assert found["x"]["closed_to"] == last["window"] + SEMANTICS.width
    assert found["y"]["last"] is None and found["y"]["closed_to"] == NEVER and found["y"]["newest"] == revision["newest"][0]
    assert writers().last_rows([1], SEMANTICS)[1].is_empty()
    assert writers().accounted([0, 1]) == {0: int(2 * newest["count"].sum() + revision["count"][0]), 1: 0}


def test_what_was_refused_is_read_back_by_entry_and_sample(writers):
    """Of the entries asked for alone: what came too late, or as a series too many; of equal ones as many as were refused."""
    at = 1_700_000_000
    rows = [("a", "x", -999, 1), ("a", "x", 0, 3), ("b", "y", 0, 3), ("b", "y", 0, 4), ("a", "x", -999, 1)]
    entries = [(at + t, [(device, metric, at + t + behind, value) for device, metric, behind, value in rows]) for t in (0, 1000, 2000)]
    _, output = step(State(), batch(entries), RULES, replace(SEMANTICS, partition_series_max=1))
    ids = output.dead_letters["entry"].unique().sort().to_list()
    lake = writers()
    assert lake.refused({0: ids, 1: []})[0].is_empty()
    lake.commit("dead_letters", output.dead_letters, {0: Stand(ids[-1])}, {0: -1})
    found = writers().refused({0: ids[1:], 1: ids})
    assert found[0].schema == REFUSED and found[1].is_empty()
    left = without_refused(batch(entries).events, found[0])
    later = left.filter(pl.col("entry") > ids[0])
    assert left.height - later.height == 5 and later["event_time"].to_list() == [(at + t) * 1_000_000 for t in (1, 1000, 1001, 2000)]
    assert found[0].height == 4


def test_a_lost_reply_is_settled_by_comparison(lake, monkeypatch):
    """The commit came through, its reply did not: no second commit, no error."""
    import pipeline.stores.lake as module

    real, calls = module.write_deltalake, []

    def write_and_lose(*arguments, **options):
        calls.append(1)
        real(*arguments, **options)
        raise OSError("the reply got lost")

    monkeypatch.setattr(module, "write_deltalake", write_and_lose)
    rows, position = rows_of()
    lake.commit("aggregates", rows, {0: Stand(position)}, {0: -1})
    assert calls == [1] and lake.counts()["windows"] == rows.height


def test_last_rows_are_the_same_with_and_without_the_series_table(lake):
    """However far the `series` table is behind, and over compaction and vacuum."""
    position = -1
    for start in (1_700_000_000, 1_700_000_300, 1_700_000_600):
        for device in ("a", "b"):
            rows, at = rows_of(start, device)
            lake.commit("aggregates", rows, {0: Stand(at + (device == "b"))}, {0: position})
            position = at + (device == "b")
        plain = lake.last_rows([0], SEMANTICS)[0].sort(pl.col("device").cast(pl.String))
        if start != 1_700_000_300:
            assert lake.refresh_series(SEMANTICS) == 2
        assert lake.last_rows([0], SEMANTICS)[0].sort(pl.col("device").cast(pl.String)).equals(plain)
    assert plain.height == 2 and plain.schema == LAST_ROWS
    assert lake.compact("aggregates", 2) > 0
    assert lake.last_rows([0], SEMANTICS)[0].sort(pl.col("device").cast(pl.String)).equals(plain)
    for table in TABLES:
        lake.checkpoint(table)
        lake.vacuum(table, 0)
    assert other(lake).last_rows([0], SEMANTICS)[0].sort(pl.col("device").cast(pl.String)).equals(plain)


@pytest.mark.parametrize("looks", [False, True])
def test_a_log_that_is_cut_is_short_and_costs_nobody_a_row(lake, looks):
    """Not a reader, nor a writer, that had come to the table before all that was cut, and not who comes after."""
    idle, reader = other(lake), other(lake)
    rows, _ = rows_of()
    idle.commit("aggregates", rows, {1: Stand(1, 1)}, {1: -1})
    if looks:
        idle.positions("aggregates", [1])
    reader.last_rows([0], SEMANTICS)
    for position in range(30):
        lake.commit("aggregates", rows, {0: Stand(position + 1, 1)}, {0: position or -1})
    entries = Path(lake.location, "aggregates", "_delta_log")
    assert len(list(entries.iterdir())) > 30
    for entry in entries.iterdir():
        os.utime(entry, (0, time.time() - 60 * LOG_RETENTION_MINUTES - 1))
    other(lake).checkpoint("aggregates")
    assert len(list(entries.iterdir())) < 5
    idle.commit("aggregates", rows, {1: Stand(2, 1)}, {1: 1})
    for each in (reader, lake, other(lake)):
        assert each.stands("aggregates", range(3)) == {0: Stand(30, 1), 1: Stand(2, 1), 2: Stand()}
        assert each.last_rows([0], SEMANTICS)[0].height == 1
        assert each.counts()["windows"] == 32 * rows.height


def test_a_series_all_of_whose_rows_expired_is_known_when_the_log_is_cut(lake):
    """The `series` table knows what no file has any more, whether or not it can be told which files it goes by."""
    old, position = rows_of(device="a")
    lake.commit("aggregates", old, {0: Stand(position)}, {0: -1})
    new, later = rows_of(1_790_000_000, "b")
    assert lake.refresh_series(SEMANTICS) == 1
    goes_by = lake._handle("series").transaction_version("aggregates")
    lake.commit("aggregates", new, {0: Stand(later)}, {0: position})
    lake.expire("aggregates", datetime(2024, 1, 1, tzinfo=UTC))
    known = lake.last_rows([0], SEMANTICS)[0].sort(pl.col("device").cast(pl.String))
    assert known["device"].to_list() == ["a", "b"]
    for entry in Path(lake.location, "aggregates", "_delta_log").iterdir():
        os.utime(entry, (0, time.time() - 60 * LOG_RETENTION_MINUTES - 1))
    lake.checkpoint("aggregates")
    with pytest.raises(DeltaError):
        DeltaTable(f"{lake.location}/aggregates", version=goes_by)
    for _ in range(2):
        assert other(lake).last_rows([0], SEMANTICS)[0].sort(pl.col("device").cast(pl.String)).equals(known)
        assert lake.refresh_series(SEMANTICS) == 2


def test_compaction_beside_a_writer_loses_nothing(lake):
    position, total = -1, 0
    for n in range(6):
        rows, at = rows_of(1_700_000_000 + 300 * n)
        lake.commit("aggregates", rows, {0: Stand(at)}, {0: position})
        position, total = at, total + rows.height
        other(lake).compact("aggregates", 2)
    assert other(lake).counts()["windows"] == total


def test_a_lake_of_other_numbers_is_refused_in_one_line(lake):
    with pytest.raises(Invalid, match=r"was made with PIPELINE_PARTITIONS=4, not 5: set that, or choose another --data"):
        other(lake).create(SEMANTICS, 5)


def test_many_may_look_at_once_whether_a_folder_can_be_written(tmp_path):
    """All workers of a machine start at one moment; none may find what another has just taken away."""
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: Lake(str(tmp_path / "lake"))._check_writable(), range(2000)):
            pass
    assert list((tmp_path / "lake").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Invalid, match="cannot write to"):
        Lake(str(tmp_path / "file" / "lake")).create(SEMANTICS, 4)


@pytest.mark.parametrize("odd", ["[", "]", "%", "\\", "*", "?", "^", "|"])
def test_a_name_that_delta_or_duckdb_takes_for_another_is_refused(tmp_path, monkeypatch, odd):
    """Also where it is that of a folder above: both make the path whole."""
    folder = tmp_path / f"lake {odd}2"
    with pytest.raises(Invalid, match=f"cannot work under a name with {re.escape(odd)}: choose another --data"):
        Lake(str(folder)).create(SEMANTICS, 4)
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(Invalid, match=f"cannot work under a name with {re.escape(odd)}: choose another --data"):
        Lake("data/lake").create(SEMANTICS, 4)


def test_old_days_expire(lake):
    """By the day of the event, and not before it is as long ago that it arrived: a replayed recording stays."""
    rows, position = rows_of()
    lake.commit("aggregates", rows, {0: Stand(position)}, {0: -1})
    lake.expire("aggregates", datetime(2023, 1, 1, tzinfo=UTC))
    assert (lake.counts()["windows"], lake.expired([0])) == (rows.height, {0: 0})
    lake.expire("aggregates", datetime(2024, 1, 1, tzinfo=UTC))
    assert (lake.counts()["windows"], lake.expired([0, 1])) == (0, {0: rows["count"].sum(), 1: 0})
    replayed = rows.with_columns(arrived=pl.lit(1_790_000_000_000_000))
    lake.commit("aggregates", replayed, {0: Stand(position + 1)}, {0: position})
    lake.expire("aggregates", datetime(2024, 1, 1, tzinfo=UTC))
    assert (lake.counts()["windows"], lake.expired([0])) == (rows.height, {0: rows["count"].sum()})


def test_the_books_balance_over_what_expires_whatever_becomes_of_who_deletes_it(lake, client):
    """Nobody has to tell Redis, which may be away then; and one that lost its memory begins with what the lake accounts for."""
    rows, position = rows_of()
    count, start = int(rows["count"].sum()), 1_700_000_000
    late = [(start + 1, [("a", "x", start, 1)]), (start + 2, [("a", "x", start - 99_999, 1)])]
    dead = step(State(), batch(late), RULES, SEMANTICS)[1].dead_letters
    client.xgroup_create(stream_key(0), GROUP, "0", mkstream=True)
    client.execute_command("XSETID", stream_key(0), format_id(position))
    looks = Ledger(client, other(lake), SEMANTICS, 1)

    def accepted():
        books, seen = balance(client, lake, SEMANTICS, 1), looks.look()
        assert books["balanced"] and not seen["imbalance"]
        assert books["accepted"] == seen["accepted"]
        return books["accepted"]

    lake.commit("dead_letters", dead, {0: Stand(position)}, {0: -1})
    for n in range(2):
        lake.commit("aggregates", rows, {0: Stand(position + n)}, {0: position if n else -1})
        client.hset(books_key(0), "accepted", 1 + count * (n + 1))
        assert accepted() == count + 1 - n
        for table in ("dead_letters", "aggregates"):
            other(lake).expire(table, datetime(2024, 1, 1, tzinfo=UTC))
            assert accepted() == (count if table == "dead_letters" else 0)
    assert lake.accounted([0, 1]) == {0: 1 + 2 * count, 1: 0}


@pytest.mark.parametrize(
    ("damage", "kept"),  # a kept handle knows what the log said
    [
        ("parquet gone", True),
        ("parquet cut", True),
        ("table gone", True),
        ("parquet gone", False),
        ("parquet cut", False),
        ("log gone", False),
        ("log garbage", False),
        ("table gone", False),
    ],
)
def test_a_damaged_table_is_away_until_it_is_mended(lake, damage, kept):
    """Reading and writing, with handles from before and anew: Unavailable, never another error; then all is as it was."""
    rows, position = rows_of()
    lake.commit("aggregates", rows, {0: Stand(position)}, {0: -1})
    used = lake if kept else other(lake)
    table = Path(lake.location) / "aggregates"
    place, _, how = damage.partition(" ")
    path = {"parquet": next(table.glob("*/*.parquet")), "log": table / "_delta_log", "table": table}[place]
    aside = path.rename(Path(lake.location) / "aside")
    if how == "cut":
        path.write_bytes(aside.read_bytes()[:100])
    elif how == "garbage":
        path.mkdir()
        (path / "00000000000000000000.json").write_text("garbage")
    with pytest.raises(Unavailable, match="table aggregates"):
        used.last_rows([0], SEMANTICS)
    if place != "parquet":  # an append reads none
        with pytest.raises(Unavailable, match="table aggregates"):
            other(lake).commit("aggregates", rows, {0: Stand(position + 1)}, {0: position})
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    aside.rename(path)
    assert used.last_rows([0], SEMANTICS)[0].height == 1
    used.commit("aggregates", rows, {0: Stand(position + 1)}, {0: position})
    assert other(lake).counts()["windows"] == 2 * rows.height


def test_a_table_that_is_gone_is_not_made_anew_beside_those_with_rows(lake):
    """It would say that nothing ever was; where no table has rows, a start that broke off goes on."""
    shutil.rmtree(Path(lake.location) / "series")
    other(lake).create(SEMANTICS, 4)
    rows, position = rows_of()
    lake.commit("aggregates", rows, {0: Stand(position)}, {0: -1})
    shutil.rmtree(Path(lake.location) / "late")
    with pytest.raises(Invalid, match="holds the table aggregates, but not late: bring it back, or choose another --data"):
        other(lake).create(SEMANTICS, 4)


def test_a_table_that_two_made_at_one_moment_is_not_one_with_rows(lake):
    """Their second version holds no row: a third that starts beside them makes the tables that are not there yet."""
    for name in ("anomalies", "aggregates"):
        DeltaTable(f"{lake.location}/{name}").alter.set_table_properties({"delta.logRetentionDuration": "interval 1 days"})
        assert DeltaTable(f"{lake.location}/{name}").version() == 1
    shutil.rmtree(Path(lake.location) / "late")
    other(lake).create(SEMANTICS, 4)
    assert DeltaTable(f"{lake.location}/late").version() == 0


def test_a_table_whose_rows_were_all_deleted_was_one_with_rows(lake):
    rows, position = rows_of()
    lake.commit("aggregates", rows, {0: Stand(position)}, {0: -1})
    DeltaTable(f"{lake.location}/aggregates").delete()
    shutil.rmtree(Path(lake.location) / "late")
    with pytest.raises(Invalid, match="holds the table aggregates, but not late"):
        other(lake).create(SEMANTICS, 4)


def test_the_books_count_an_event_once_whose_entry_has_open_windows(lake, client):
    """Of the two events of an entry that is not settled, one is a dead letter already and one is in an open window."""
    client.xgroup_create(stream_key(0), GROUP, "0", mkstream=True)
    client.hset(books_key(0), "accepted", 2)
    names = [pa.array(["a", "a"]).dictionary_encode(), *(pa.array([text] * 2).dictionary_encode() for text in ("", "x", ""))]
    times = pa.array([1_700_000_000_000_000, 1_600_000_000_000_000], pa.int64())
    columns = [*names, pa.array([0, 0], pa.uint8()), pa.array([1.0, 2.0]), pa.nulls(2, pa.uint64()), times]
    events = encode(pa.RecordBatch.from_arrays(columns, schema=EVENTS_ARROW))
    client.xadd(stream_key(0), {"e": events, "n": 2, "x": b"", "m": 0})
    (entry,) = Streams(client).peek(0, 0, 10)
    _, output = step(State(), to_batch({0: [entry]}), RULES, SEMANTICS)
    assert output.dead_letters["reason"].to_list() == ["too_late"]
    lake.commit("dead_letters", output.dead_letters, {0: Stand(entry.id)}, {0: -1})
    books = balance(client, lake, SEMANTICS, 1)
    assert (books["dead_lettered"], books["in_flight"], books["balanced"]) == (1, 1, True)


def test_a_table_that_is_a_file_is_said_in_one_line_with_its_cause(lake):
    table = Path(lake.location) / "aggregates"
    shutil.rmtree(table)
    table.write_text("x")
    with pytest.raises(Unavailable) as told:
        other(lake).exists()
    assert "table aggregates" in str(told.value) and "Not a directory" in str(told.value)
    assert str(told.value).isprintable()
