"""Sums over the files of `aggregates`: those of all rows, whatever becomes of the files, and each file is read once."""

from __future__ import annotations

import polars as pl
import pytest

from pipeline.core.recovery import Stand
from pipeline.stores import filecounts
from pipeline.stores.filecounts import FileCounts
from pipeline.stores.lake import Lake
from tests.contract.test_lake import rows_of
from tests.properties.test_step import SEMANTICS


@pytest.fixture
def lake(tmp_path):
    made = Lake(str(tmp_path / "a lake (of ours)"))  # a name that a URI writes otherwise
    made.create(SEMANTICS, 4)
    return made


@pytest.fixture
def read_files(monkeypatch):
    """How many files were read at once, as they are."""
    counts, plain = [], FileCounts._read
    monkeypatch.setattr(FileCounts, "_read", lambda self, files, options: counts.append(len(files)) or plain(self, files, options))
    return counts


def commit(lake, position, partition=0, late=False):
    rows, _ = rows_of(partition=partition)
    if late:
        rows = rows.with_columns(revision=pl.lit(True), repeated=pl.lit(2, pl.UInt32))
    lake.commit("aggregates", rows, {partition: Stand(position)}, {partition: position - 1 or -1})
    return rows


def test_they_are_those_of_all_rows(lake, read_files):
    """After commits, a compaction, and the end of some days; a file that is known is not read again."""
    one, two, three = commit(lake, 1), commit(lake, 2, late=True), commit(lake, 1, partition=3)
    events, late, other = (int(rows["count"].sum()) for rows in (one, two, three))
    upto = {0: 1 << 60, 1: 1 << 60, 3: 1 << 60}
    wanted = [(0, events, late, 2 * two.height, 0), (1, 0, 0, 0, 0), (3, other, 0, 0, 0)]
    for _ in range(2):
        assert sorted(lake.counts_of(upto, {}).iter_rows()) == wanted
    assert read_files == [3]
    commit(lake, 3)
    assert lake.counts()["windows"] == 3 * one.height
    assert lake.accounted([0, 1, 3]) == {0: 2 * events + late + 2 * two.height, 1: 0, 3: other}
    assert read_files == [3, 1]
    assert lake.compact("aggregates", 2) == 4
    assert lake.counts()["windows"] == 3 * one.height
    assert read_files == [3, 1, 1]


def test_who_looks_at_a_lake_that_stands_still_knows_them_too(lake, read_files):
    """The books look every minute, through a new handle each time."""
    commit(lake, 1)
    for position in range(2, 5):
        assert lake.standing_still().counts()["windows"] == (position - 1) * commit(lake, position).height
    assert read_files == [1, 1, 1]


def test_few_files_are_read_at_once(lake, read_files, monkeypatch):
    monkeypatch.setattr(filecounts, "FILES_AT_ONCE", 2)
    rows = [commit(lake, position) for position in range(1, 6)]
    assert lake.counts()["windows"] == sum(each.height for each in rows)
    assert read_files == [2, 2, 1]
