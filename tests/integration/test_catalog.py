"""The catalog over real tables: what the views say, what they cost, and that nobody waits for anybody."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import duckdb
import polars as pl
import pytest

from pipeline.core.batch import BATCH_EVENTS, ENTRIES, Batch, Output, State, step
from pipeline.core.recovery import Stand
from pipeline.core.rules import Rules, parse
from pipeline.core.schema import DEAD_ROWS, entry_id
from pipeline.core.semantics import Semantics
from pipeline.errors import Invalid, Unavailable
from pipeline.stores import catalog
from pipeline.stores.catalog import MACROS, VIEWS, open_catalog, write_catalog
from pipeline.stores.extensions import extension_path
from pipeline.stores.lake import Lake
from pipeline.stores.tables import SIDE_TABLES

S = 1_000_000
DAY = 86_400
START = 1_767_225_600  # 2026-01-01T00:00:00Z
SEMANTICS = Semantics(
    width=10 * S, disorder=4 * S, idle_after=60 * S, lateness_max=3600 * S, open_rows_max=100_000,
    partition_series_max=1000, device_series_max=1000, counter_gap=300 * S,
)  # fmt: skip
RULES = parse({"rules": [{"name": "hot", "metric": "temp", "upper": {"warning": 80, "critical": 95}}]}, 3, {})

# (log time in s, [(device, metric, event time in s, value), ...]); `octets` is a counter, all else a gauge
Entries = list[tuple[int, list[tuple[str, str, int, float]]]]


def run_through(entries: Entries, rules: Rules = RULES, dead: Iterable[tuple] = ()) -> Output:
    """What a worker makes of a stream, all its windows closed."""
    ids = [(0, entry_id((START + now) * 1000, 0), len(rows)) for now, rows in entries]
    kinds = {"octets": ("eth0", "octets", "", 64)}
    events = [
        (0, entry, device, *kinds.get(metric, ("", metric, "", 0)), float(value), None, (START + at) * S)
        for (_, entry, _), (_, rows) in zip(ids, entries, strict=True)
        for device, metric, at, value in rows
    ]
    ids.append((0, entry_id((START + entries[-1][0] + 3600) * 1000, 0), 0))  # a tick after everything: it closes what is open
    letters = pl.DataFrame([(0, ids[0][1], *letter) for letter in dead], schema=DEAD_ROWS, orient="row")
    batch = Batch(pl.DataFrame(events, schema=BATCH_EVENTS, orient="row"), pl.DataFrame(ids, schema=ENTRIES, orient="row"), letters)
    return step(State(), batch, rules, SEMANTICS)[1]


def make_lake(data: Path, *outputs: Output) -> Path:
    """A data folder whose lake holds these outputs, each a commit."""
    lake = Lake(str(data / "lake"))
    lake.create(SEMANTICS, 1)
    for position, output in enumerate(outputs):
        for table in (*SIDE_TABLES, "aggregates"):
            lake.commit(table, getattr(output, table), {0: Stand(position)}, {0: position - 1})
    return data


def signal() -> Entries:
    """Ten minutes of `hot` (a breach in the sixth), `calm` and `slow`, which comes half a minute late at times."""
    entries = []
    for t in range(0, 600, 5):
        rows = [
            ("calm", "temp", t, 40 + t % 7),
            ("hot", "temp", t, 97 if 360 <= t < 390 else 85 if 390 <= t < 420 else 60),
            ("calm", "octets", t, 1000 * t),
            ("slow", "temp", t - (30 if t % 60 == 45 else 0), 50),
        ]
        entries.append((t + 1, rows))
    return entries


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    dead = [("calm", "value", "not a number", '{"device":"calm","metric":"temp","value":"?"}')] * 2
    return make_lake(tmp_path_factory.mktemp("data"), run_through(signal(), dead=dead))


@pytest.fixture
def sql(data):
    with open_catalog(data) as connection:
        yield lambda query, *parameters: connection.execute(query, parameters).fetchall()


def test_an_empty_lake_answers_with_no_rows(tmp_path):
    """Every view and macro stands before the first commit."""
    with open_catalog(make_lake(tmp_path)) as connection:
        for view in set(VIEWS) - {"commits"}:
            assert connection.execute(f"FROM {view}").fetchall() == [], view
        assert connection.execute("SELECT count(DISTINCT table_name) FROM commits").fetchall() == [(5,)]
        calls = ("series_of('d', 'm')", "rollup_of('d', 'm', INTERVAL 1 HOUR)", "top_anomalies(3)", "anomalies_around('2026-01-01', 5)")
        for call in calls:
            assert connection.execute(f"FROM {call}").fetchall() == []
        assert len(calls) + 1 == len(MACROS) and connection.execute("SELECT mbps(1e6)").fetchall() == [(8.0,)]


def test_no_lake_is_said_in_one_line(tmp_path):
    with pytest.raises(Unavailable, match=f"there is no lake under {tmp_path}/lake yet"):
        open_catalog(tmp_path)


# What the views say


def test_late_rows_are_merged_as_if_they_had_come_in_time(tmp_path):
    """Exact statistics of the view equal a GROUP BY over the events themselves, windows of late rows alone included."""
    draw = random.Random(7)
    entries, sent = [], []
    for t in range(0, 400, 3):
        rows = []
        for device in ("a", "b"):
            behind = draw.choice((0, 0, 0, 1, 3, 9, 40, 90))
            at = t - behind
            if not any(row[:3] == (device, "x", at) for row in sent) and (device == "a" or at // 10 % 3 or behind > 30):
                rows.append((device, "x", at, 1e6 + draw.gauss(0, 3)))
        sent += rows
        entries.append((t + 1, rows))
    output = run_through(entries, Rules())
    assert output.dead_letters.is_empty() and output.late.height > 20
    with open_catalog(make_lake(tmp_path, output)) as connection:
        rows = [(device, START + at, value) for device, _, at, value in sent]
        events = pl.DataFrame(rows, schema=["device", "second", "value"], orient="row")
        connection.register("events", events)
        expected = connection.execute("""
            SELECT make_timestamp(second // 10 * 10 * 1000000) AS w, device, count(*), sum(value), min(value), max(value), avg(value),
                stddev_samp(value), arg_min(value, second), arg_max(value, second)
            FROM events GROUP BY ALL ORDER BY w, device
        """).fetchall()
        found = connection.execute("""
            SELECT window_start, device, count, sum, min, max, mean, stddev, first, last FROM aggregates ORDER BY window_start, device
        """).fetchall()
        only_late, revised = connection.execute("""
            SELECT count(*) FILTER (p50 IS NULL), count(*) FILTER (late_count > 0 AND p50 IS NOT NULL) FROM aggregates
        """).fetchone()
        assert connection.execute("SELECT sum(late_count) FROM aggregates").fetchone() == (output.late.height,)
    assert only_late and revised
    assert found == [tuple(pytest.approx(v, rel=1e-9) if isinstance(v, float) else v for v in row) for row in expected]


def test_a_window_without_late_rows_passes_untouched(sql):
    """Bit by bit, quantiles and increase included."""
    columns = "window_start, metric, count, sum, mean, min, max, stddev, p50, p95, p99, first, last, increase, rate, quality, repeated"
    untouched = sql(f"SELECT {columns} FROM aggregates WHERE late_count = 0 AND device <> 'slow' ORDER BY ALL")
    assert untouched == sql(f"SELECT {columns} FROM aggregates_raw WHERE device <> 'slow' ORDER BY ALL") and len(untouched) > 100


def test_a_late_event_sent_twice_is_one_anomaly(tmp_path):
    """The same event late again is the same anomaly, counted in `repeats`."""
    entries = [(t, [("a", "temp", t, 1)]) for t in range(0, 60, 5)]
    entries += [(61, [("a", "temp", 12, 99)]), (62, [("a", "temp", 12, 99)])]
    output = run_through(entries)
    assert output.anomalies.height == 2
    with open_catalog(make_lake(tmp_path, output)) as connection:
        found = connection.execute("SELECT severity, device, value, bound, rules_version, repeats FROM anomalies").fetchall()
    assert found == [("critical", "a", 99.0, 95.0, 3, 1)]


def test_devices_and_series_say_who_is_late_and_who_is_last(sql):
    assert sql("SELECT device, series, events, late_events FROM devices ORDER BY device") == [
        ("calm", 2, 240, 0), ("hot", 1, 120, 0), ("slow", 1, 120, 10)
    ]  # fmt: skip
    mean, largest, skew, silent = sql(
        "SELECT mean_lateness_seconds, max_lateness_seconds, skew_seconds, silent_seconds FROM devices WHERE device = 'slow'"
    )[0]
    assert 0 < mean <= largest and skew == 1 and silent is not None
    assert sql("SELECT kind, last_value, last_rate, windows, events FROM series WHERE metric = 'octets'") == [
        ("counter", 595_000.0, 1000.0, 60, 120)
    ]
    assert sql("SELECT count(*), min(lateness_seconds) > 0 FROM late") == [(10, True)]


def test_dead_letters_and_commits_are_tables_too(sql):
    assert sql("SELECT DISTINCT device, field, reason, event->>'value' FROM dead_letters") == [("calm", "value", "not a number", "?")]
    found = sql("SELECT table_name, version, operation, rows_added FROM commits WHERE rows_added > 0 ORDER BY table_name")
    rows = {name: sql(f"SELECT count(*) FROM {name}")[0][0] for name in ("aggregates_raw", "anomalies", "dead_letters", "late")}
    assert found == [(name.removesuffix("_raw"), 1, "WRITE", count) for name, count in rows.items()]


def test_macros_answer_what_an_engineer_asks(sql):
    assert sql("SELECT count(*), min(kind) FROM series_of('calm', 'octets')") == [(60, "counter")]
    minutes = sql("SELECT window_start::VARCHAR, count, max, increase FROM rollup_of('calm', 'octets', INTERVAL 5 MINUTE)")
    assert minutes == [("2026-01-01 00:00:00", 60, 295_000.0, 295_000.0), ("2026-01-01 00:05:00", 60, 595_000.0, 300_000.0)]
    assert [row[0] for row in sql("SELECT severity FROM top_anomalies(7)")] == ["critical"] * 6 + ["warning"]
    assert sql("SELECT count(*) FROM anomalies_around('2026-01-01 00:06:00', 0)") == [(1,)]


# What they cost


def test_predicates_reach_the_files(tmp_path):
    """A date opens that day's files alone; window_start and device are filters of the scans of base rows and of revisions."""
    output = run_through([(day * DAY + t, [("a", "x", day * DAY + t, 1)]) for day in range(4) for t in range(0, 100, 5)], Rules())
    with open_catalog(make_lake(tmp_path, output)) as connection:

        def scans(where: str) -> list[dict]:
            connection.execute("PRAGMA enable_profiling = 'no_output'")
            plan = connection.execute(f"EXPLAIN (ANALYZE, FORMAT json) SELECT avg(mean) FROM aggregates WHERE {where}").fetchall()[0][1]
            found, nodes = [], [json.loads(plan)]
            while nodes:
                node = nodes.pop()
                nodes += node.get("children", [])
                if "Scanning Files" in node.get("extra_info", {}):
                    found.append(node["extra_info"])
            return found

        assert [scan["Scanning Files"] for scan in scans("date = '2026-01-02'")] == ["1/4", "1/4"]
        for scan in scans("window_start >= '2026-01-02 00:01:00' AND device = 'a'"):
            assert "window_start>=" in str(scan["Filters"]) and "device='a'" in str(scan["Filters"])


# Who may open it, and when


def test_a_folder_that_duckdb_cannot_write_in_is_one_line(tmp_path):
    """Its lake may lie elsewhere, and be none the worse."""
    for name in ("a?b", "a%20b"):
        with pytest.raises(Invalid, match=r"^cannot write .*catalog.duckdb \(.*\): choose another --data") as told:
            write_catalog(tmp_path / name / "catalog.duckdb")
        assert "\n" not in str(told.value) and list((tmp_path / name).iterdir()) == []


def test_it_is_written_once_and_again_when_definitions_change(tmp_path, monkeypatch):
    """The file holds views and macros alone, and cannot be opened for writing by mistake."""
    path = tmp_path / "data" / "catalog.duckdb"
    assert write_catalog(path) and not write_catalog(path)
    with duckdb.connect(str(path), read_only=True) as old:
        assert old.execute("SELECT count(*) FROM duckdb_tables()").fetchall() == [(0,)]
        assert set(VIEWS) <= {name for (name,) in old.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
        assert not path.stat().st_mode & 0o222
        monkeypatch.setattr(catalog, "VERSION", "another")
        assert write_catalog(path)
        assert old.execute("SELECT catalog_version() = 'another'").fetchall() == [(False,)]  # whoever has the old one open keeps it
    assert not write_catalog(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["catalog.duckdb"]


def test_a_plain_client_needs_the_extension_and_a_folder_to_stand_in(data, tmp_path, monkeypatch):
    """From beside `data` with nothing said; from elsewhere with one SET. A moved file and a moved lake still fit."""
    write_catalog(data / "catalog.duckdb")
    (tmp_path / "data").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    with duckdb.connect("data/catalog.duckdb", read_only=True) as client:
        client.execute(f"LOAD '{extension_path()}'")
        assert client.execute("SELECT count(*) FROM aggregates").fetchone()[0] > 200
        monkeypatch.chdir("/")
        with pytest.raises(duckdb.IOException):
            client.execute("FROM aggregates")
        client.execute(f"SET VARIABLE lake = '{data}/lake'")
        assert client.execute("SELECT count(*) FROM aggregates").fetchone()[0] > 200


def test_once_installed_every_client_finds_the_extension(data, tmp_path):
    """In an empty HOME, with no network: INSTALL copies the wheel's file, and then a plain client needs no LOAD."""
    write_catalog(data / "catalog.duckdb")
    program = f"""
import duckdb
from pipeline.stores.extensions import install_extensions
install_extensions()
client = duckdb.connect({str(data / "catalog.duckdb")!r}, read_only=True, config={{"autoinstall_known_extensions": False}})
client.execute("SET VARIABLE lake = '{data}/lake'")
print(client.execute("SELECT count(*) FROM devices").fetchall())
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("[(3,)]\n", 0), done.stderr


def test_a_client_that_writes_locks_nobody_out_of_the_helper(data):
    """Also where somebody holds the file open for writing, or it is not there, or it is no catalog, the definitions are there."""
    path = data / "catalog.duckdb"
    write_catalog(path)
    path.chmod(0o644)
    with duckdb.connect(str(path)) as holder:
        holder.execute("CREATE TABLE mine AS SELECT 1")
        with open_catalog(data) as connection:
            assert connection.execute("SELECT count(*) FROM devices").fetchall() == [(3,)]
    for content in (b"no database", None):
        path.write_bytes(content) if content else path.unlink()
        with open_catalog(data) as connection:
            assert connection.execute("SELECT count(*) FROM devices").fetchall() == [(3,)]
    path.unlink(missing_ok=True)


def test_readers_and_writers_never_wait_for_each_other(tmp_path):
    """While one thread commits and compacts, and one replaces the file, readers see whole commits, never fewer than before."""
    commits, rows = 25, 8
    output = run_through([(t, [("a", "x", t, 1)]) for t in range(0, rows * 10, 10)], Rules())
    make_lake(tmp_path, output)
    path = tmp_path / "catalog.duckdb"
    write_catalog(path)
    errors: list[BaseException] = []
    done = threading.Event()

    def write() -> None:
        try:
            lake = Lake(str(tmp_path / "lake"))
            for position in range(1, commits):
                later = pl.col("window") + position * rows * SEMANTICS.width
                lake.commit("aggregates", output.aggregates.with_columns(window=later), {0: Stand(position)}, {0: position - 1})
                if position % 10 == 0:
                    lake.compact("aggregates", 2)
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    seen = []
    with open_catalog(tmp_path) as held:  # open all the while
        writer.start()
        for turn in itertools.count():
            stop = done.is_set()
            with open_catalog(tmp_path) as fresh:
                for connection in (held, fresh):
                    seen.append(connection.execute("SELECT count(*) FROM aggregates").fetchone()[0])
            if turn % 5 == 2:
                path.unlink()  # as if another release had left it
                write_catalog(path)
            if stop:
                break
    writer.join()
    assert not errors
    assert seen == sorted(seen) and seen[-1] == commits * rows
    assert len(set(seen)) > 2 and not any(count % rows for count in seen)
