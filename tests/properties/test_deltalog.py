"""`stores.deltalog` against Delta's own reading of its log, on real tables with two writers, checkpoints and a log that is cut."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stores import deltalog
from pipeline.stores.deltalog import Transactions

NAMES = ("a", "b", "b/c", "d")
ROWS = pa.table({"x": [1]})
COMMITS_MAX = 4  # a bound that short histories reach
some_names = st.sets(st.sampled_from(NAMES), min_size=1)
acts = st.one_of(
    st.tuples(st.just("commit"), st.integers(0, 1), some_names),
    st.tuples(st.just("many commits"), st.integers(0, 1), some_names),
    st.tuples(st.just("ask"), st.integers(0, 1), some_names),
    st.tuples(st.just("refresh and ask"), st.integers(0, 1), some_names),
    st.tuples(st.just("open anew"), st.integers(0, 1), st.none()),
    st.tuples(st.just("cut the log"), st.integers(0, 1), st.none()),
)


def made(folder: str) -> DeltaTable:
    # A checkpoint only where it is asked for, so that there is a log of any length behind it.
    return DeltaTable.create(folder, ROWS.schema, configuration={"delta.checkpointInterval": "1000"})


def commit(handle: DeltaTable, versions: dict[str, int]) -> None:
    properties = CommitProperties(app_transactions=[Transaction(name, version) for name, version in versions.items()])
    handle.update_incremental()
    write_deltalake(handle, ROWS, mode="append", commit_properties=properties)


def cut(handle: DeltaTable, folder: str) -> None:
    """Checkpoint, and remove the commits that it has, as Delta does when they are old."""
    handle.update_incremental()
    handle.create_checkpoint()
    for old in Path(folder, "_delta_log").glob("*.json"):
        if int(old.stem) < handle.version():
            old.unlink()


@settings(max_examples=40, deadline=None)
@given(st.lists(acts, max_size=14))
def test_it_says_what_delta_says(sequence):
    """Whoever wrote, however long ago, whether the handle is behind, and whatever was asked before."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(deltalog, "COMMITS_MAX", COMMITS_MAX):
        made(folder)
        handles = [DeltaTable(folder), DeltaTable(folder)]
        readers = [Transactions(folder, None) for _ in handles]
        number = 0
        for act, who, names in [*sequence, ("ask", 0, set(NAMES)), ("ask", 1, set(NAMES))]:
            handle = handles[who]
            if act in ("commit", "many commits"):
                for _ in range(COMMITS_MAX + 2 if act == "many commits" else 1):
                    number += 1
                    commit(handle, dict.fromkeys(names, number))
            elif act == "open anew":
                handles[who] = DeltaTable(folder)
            elif act == "cut the log":
                cut(handle, folder)
                handles = [DeltaTable(folder), DeltaTable(folder)]  # Delta can tell nothing of those that go by what is gone
            else:
                if act == "refresh and ask":
                    handle.update_incremental()
                assert readers[who].at(handle, names) == {name: handle.transaction_version(name) for name in names}


def test_what_lies_behind_the_bound_is_asked_for(tmp_path, monkeypatch):
    """What was known before may have been written since, and what is not met in a part of the log may be in the rest."""
    monkeypatch.setattr(deltalog, "COMMITS_MAX", COMMITS_MAX)
    handle = made(str(tmp_path))
    reader = Transactions(str(tmp_path), None)
    commit(handle, {"a": 1})
    assert reader.at(handle, ["a"]) == {"a": 1}
    for _ in range(2):
        commit(handle, {"a": 2})
        for version in range(COMMITS_MAX):
            commit(handle, {"b": version})
        assert reader.at(handle, ["a"]) == {"a": 2}
        reader = Transactions(str(tmp_path), None)


def test_what_only_a_checkpoint_has_is_asked_for(tmp_path):
    handle = made(str(tmp_path))
    commit(handle, {"a": 1})
    cut(handle, str(tmp_path))
    handle = DeltaTable(str(tmp_path))
    commit(handle, {"b": 1})
    assert Transactions(str(tmp_path), None).at(handle, NAMES) == {"a": 1, "b": 1, "b/c": None, "d": None}


@pytest.fixture
def read_commits(monkeypatch):
    """The versions that are read, as they are."""
    read, plain = [], deltalog.Transactions._commit
    monkeypatch.setattr(deltalog.Transactions, "_commit", lambda self, version: read.append(version) or plain(self, version))
    return read


def test_who_writes_all_the_time_reads_one_commit_for_each_of_its_own(tmp_path, read_commits):
    """Whatever others write in between; and nothing where the handle has not moved."""
    handle, other = made(str(tmp_path)), DeltaTable(str(tmp_path))
    reader = Transactions(str(tmp_path), None)
    for version in range(1, 4):
        for _ in range(3):
            commit(other, {"other": version})
        commit(handle, {"a": version, "b": version})
        assert reader.at(handle, ("a", "b")) == reader.at(handle, ("b", "a")) == {"a": version, "b": version}
    assert read_commits == [4, 8, 12]


def test_who_only_looks_reads_what_came_since(tmp_path, read_commits):
    """A name that nobody wrote down costs no more than one that somebody did."""
    other = made(str(tmp_path))
    handle, reader = DeltaTable(str(tmp_path)), Transactions(str(tmp_path), None)
    assert reader.at(handle, ("a", "never")) == {"a": None, "never": None}
    for version in (1, 2):
        commit(other, {"a": version})
        commit(other, {"b": version})
        handle.update_incremental()
        assert reader.at(handle, ("a", "never")) == {"a": version, "never": None}
    assert read_commits == [0, 2, 1, 4, 3]
