"""`telemetry doctor`: fine where all is, and each thing that is put wrong is found, with what to do."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import polars as pl
import pytest

from pipeline.__main__ import main
from pipeline.doctor import machine, server, tables
from pipeline.stores.catalog import write_catalog
from pipeline.stores.connection import PARTITIONS
from pipeline.stores.embedded import EmbeddedRedis
from pipeline.stores.leases import Leases
from pipeline.stores.reports import Reports
from pipeline.stores.rulebook import Rulebook
from pipeline.stores.streams import Streams
from tests.harness import Stack

REAL_USAGE = shutil.disk_usage


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with Stack(tmp_path_factory.mktemp("doctor"), fsync="everysec", PIPELINE_LEASE_MS="60000") as running:
        yield running


@pytest.fixture
def well(stack, tmp_path, monkeypatch):
    """A pipeline in good order, as far as a doctor sees: a worker and a leader that say they live, tables, catalog and rules."""
    client, data = stack.client, tmp_path / "data"
    client.flushall()
    for name, value in {"maxmemory": "1gb", "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"}.items():
        client.config_set(name, value)
    for name in [name for name in os.environ if name.startswith("PIPELINE_") or name == "REDIS_URL"]:
        monkeypatch.delenv(name)
    for name, value in stack.environment.items():
        if name.startswith("PIPELINE_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(data))
    lake = type(stack.lake())(str(data / "lake"))
    lake.create(stack.semantics, stack.settings.partitions)
    write_catalog(data / "catalog.duckdb")
    worker = Leases(client, "worker-1", 60_000)
    worker.heartbeat()
    streams = Streams(client)
    streams.agree(stack.settings.partitions)
    for partition in range(stack.settings.partitions):
        streams.open(partition, worker.acquire(partition), -1, -1, [], 0)
    Leases(client, "upkeep-1", 60_000).acquire("maintenance")
    Rulebook(client).set_default()
    return client, data


@pytest.fixture
def doctor(well, capsys):
    """Run it: exit code, and the findings that are not ok, as (mark, topic, text, remedy)."""

    def run() -> tuple[int, list[tuple[str, str, str, str]]]:
        capsys.readouterr()
        code = main(["doctor", "--json"])
        told = json.loads(capsys.readouterr().out)
        findings = [(each["mark"], each["topic"], each["text"], each["remedy"]) for each in told["findings"]]
        assert code == (1 if any(mark == "bad" for mark, *_ in findings) else 0)
        return code, [each for each in findings if each[0] != "ok"]

    return run


def only(found: tuple[int, list[tuple[str, str, str, str]]], mark: str, topic: str, *words: str) -> None:
    """There is one finding, and it says this."""
    [(told, about, text, remedy)] = found[1]
    assert (told, about) == (mark, topic) and all(word in f"{text}; {remedy}" for word in words), found
    assert "\n" not in text


def test_a_pipeline_in_good_order_has_nothing_to_say(doctor, capsys):
    assert doctor() == (0, [])
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines[:-1]) and lines[-1].startswith("0 bad, 0 to look at, ")


@pytest.mark.parametrize(
    ("name", "value", "mark", "words"),
    [
        ("maxmemory-policy", "allkeys-lru", "bad", ["may evict events", "noeviction"]),
        ("maxmemory", "0", "warn", ["no limit", "config set maxmemory"]),
        ("appendonly", "no", "warn", ["append-only file", "config set appendonly yes"]),
        ("appendfsync", "no", "warn", ["power cut", "appendfsync everysec"]),
    ],
)
def test_redis_that_is_set_wrong(doctor, well, name, value, mark, words):
    well[0].config_set(name, value)
    only(doctor(), mark, "redis", *words)


@pytest.mark.parametrize(("share", "mark"), [(0.8, "warn"), (0.95, "bad")])
def test_redis_that_is_nearly_full(doctor, well, share, mark):
    client, _ = well
    client.config_set("maxmemory", round(client.info("memory")["used_memory"] / share))
    only(doctor(), mark, "redis", "memory: ", "start more workers")


def test_redis_that_is_away(doctor, monkeypatch):
    monkeypatch.setenv("PIPELINE_REDIS_URL", "redis://user:secret@127.0.0.1:1")
    found = doctor()
    only(found, "bad", "redis", "mend PIPELINE_REDIS_URL")
    assert "secret" not in str(found)


def test_no_redis_at_all(doctor, monkeypatch):
    monkeypatch.delenv("PIPELINE_REDIS_URL")
    only(doctor(), "warn", "redis", "set REDIS_URL")


def test_clocks_that_differ(doctor, monkeypatch):
    real = time.time
    monkeypatch.setattr(server.time, "time", lambda: real() + 5)
    only(doctor(), "warn", "redis", "5.0 s ahead of Redis", "NTP")


def test_streams_of_another_number_of_partitions(doctor, well):
    well[0].set(PARTITIONS, 4)
    only(doctor(), "bad", "redis", "4 partitions, not PIPELINE_PARTITIONS=16")


def test_nobody_works(doctor, well):
    well[0].delete("workers")
    only(doctor(), "bad", "workers", "telemetry worker")


def test_partitions_without_a_holder(doctor, well):
    well[0].delete("lease:{3}", "lease:{7}")
    only(doctor(), "bad", "workers", "nobody holds partitions 3, 7")


def test_entries_that_wait_for_long(doctor, well):
    well[0].xadd("telemetry:{3}", {"t": "1"}, id=f"{int((time.time() - 100) * 1000)}-0")
    only(doctor(), "warn", "workers", "1 entries are not read yet", "(partition 3)", "more workers")


@pytest.mark.parametrize(
    ("kind", "share", "mark", "words"),
    [
        ("device", 0.7, None, []),
        ("device", 0.85, "warn", ["device core-1 has 85% of the 20,000 series", "raise PIPELINE_DEVICE_SERIES_MAX"]),
        ("partition", 1.0, "bad", ["partition 3 has 100% of the 100,000 series", "new ones are refused", "PIPELINE_PARTITION_SERIES_MAX"]),
    ],
)
def test_series_near_their_limit(doctor, well, kind, share, mark, words):
    """The fullest of all workers counts."""
    few = {"device": "edge-9", "device_share": 0.1, "partition": 0, "partition_share": 0.1}
    full = few | {kind: {"device": "core-1", "partition": 3}[kind], f"{kind}_share": share}
    for name, fullest in (("worker-1", full), ("worker-2", few)):
        Reports(well[0]).put(name, {"role": "worker", "fullest": fullest})
    found = doctor()
    if mark is None:
        assert found == (0, [])
    else:
        only(found, mark, "series", *words)


def test_nobody_leads(doctor, well):
    well[0].delete("lease:{maintenance}")
    only(doctor(), "warn", "upkeep", "telemetry maintain")


def test_rules_that_are_not_valid(doctor, well, monkeypatch):
    """As a later release may have written them."""
    document = Rulebook(well[0]).get().document
    monkeypatch.setattr(Rulebook, "get", lambda self: type("V", (), {"number": 2, "document": document + "\nnonsense: 1\n"}))
    only(doctor(), "bad", "rules", "nonsense", "rollback")


def test_a_lake_that_cannot_be_written(doctor, well, monkeypatch):
    denied = str(well[1] / "lake" / "aggregates")
    real = os.access
    monkeypatch.setattr(tables.os, "access", lambda path, mode: str(path) != denied and real(path, mode))
    only(doctor(), "bad", "lake", f"cannot write to {denied}", "permissions")


def test_a_lake_that_cannot_be_read(doctor, well):
    for log in (well[1] / "lake" / "aggregates" / "_delta_log").iterdir():
        log.write_text("{")
    code, found = doctor()
    assert code == 1 and any(topic == "lake" and mark == "bad" for mark, topic, *_ in found)


def test_a_lake_that_cannot_be_read_hides_no_redis(doctor, well, monkeypatch):
    """Without one that is set, that of `telemetry up` on this folder is looked at, or it is said that there is none."""
    client, data = well
    for log in (data / "lake" / "aggregates" / "_delta_log").iterdir():
        log.write_text("{")
    monkeypatch.delenv("PIPELINE_REDIS_URL")
    assert any(topic == "redis" and "set REDIS_URL, or start `telemetry up`" in text for _, topic, text, _ in doctor()[1])
    embedded = EmbeddedRedis(data / "redis", 100, "everysec")
    embedded.start()
    try:
        client.config_set("maxmemory-policy", "noeviction")
        found = doctor()[1]
        assert not any(topic == "redis" for _, topic, *_ in found) and any(topic == "workers" for _, topic, *_ in found)
    finally:
        embedded.stop()


def test_a_lake_on_a_disk_of_its_own(doctor, well, monkeypatch):
    """Is looked at, too; one in the data folder lies on the same."""
    usage = type("Usage", (), {"total": 100 << 30, "free": 5 << 30})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage if str(path).endswith("lake") else REAL_USAGE(path))
    assert doctor() == (0, [])
    real = Path.stat
    other = os.stat_result([0o40755, 2, 1 << 40, 2, 0, 0, 4096, 0, 0, 0])
    monkeypatch.setattr(Path, "stat", lambda path, **more: other if path == well[1] / "lake" else real(path, **more))
    only(doctor(), "warn", "disk", f"disk of {well[1] / 'lake'}: 5.4 of 107.4 GB are free", "choose another PIPELINE_LAKE_URL")


def test_a_lake_of_other_settings(doctor, monkeypatch):
    monkeypatch.setenv("PIPELINE_WINDOW_SECONDS", "60")
    only(doctor(), "bad", "lake", "PIPELINE_WINDOW_SECONDS=10, not 60")


def test_files_that_no_version_needs(doctor, well, monkeypatch):
    """Young ones are a commit on its way, and none of the doctor's business."""
    monkeypatch.setattr(tables, "ORPHANS_WARN", 2)
    folder = well[1] / "lake" / "aggregates" / "date=2026-01-01"
    folder.mkdir()
    for name in ("old-1", "old-2", "young"):
        pl.DataFrame({"x": [1]}).write_parquet(folder / f"{name}.parquet")
        if name != "young":
            os.utime(folder / f"{name}.parquet", times=(time.time() - 7200,) * 2)
    only(doctor(), "warn", "lake", "aggregates: 2 files older than 1 h that no version needs", "telemetry maintain")
    assert len(list(folder.iterdir())) == 3


def test_logs_and_files_that_nobody_tidies(doctor, monkeypatch):
    monkeypatch.setattr(tables, "COMMITS_WARN", 0)
    code, found = doctor()
    assert code == 0 and {text for _, _, text, _ in found} == {f"{t}: 0 commits since the last checkpoint" for t in tables.TABLES}
    monkeypatch.setattr(tables, "COMMITS_WARN", 200)
    for name, text in (("SMALL_WARN", "small files, not merged"), ("FILES_WARN", "files")):
        with monkeypatch.context() as patch:
            patch.setattr(tables, name, 0)
            assert all(text in told for _, _, told, _ in doctor()[1])


def test_no_catalog_and_one_that_is_damaged(doctor, well, monkeypatch):
    path = well[1] / "catalog.duckdb"
    path.chmod(0o644)
    path.write_bytes(b"no DuckDB file")
    only(doctor(), "warn", "catalog", "locked, damaged or of another release", "writes it again every 60 s", "delete it")
    path.unlink()
    only(doctor(), "warn", "catalog", "telemetry maintain")
    monkeypatch.setattr("pipeline.stores.extensions.extension_path", lambda name="delta": "/nowhere")
    only(doctor(), "bad", "catalog", "cannot read")


def test_a_machine_that_is_short(doctor, monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (512, 4096))
    only(doctor(), "warn", "machine", "at most 512", "ulimit -n 4096")
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (100, 4096))
    only(doctor(), "bad", "machine", "at most 100")


def test_a_disk_that_is_full(doctor, monkeypatch):
    usage = type("Usage", (), {"total": 100 << 30, "free": 5 << 30})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    only(doctor(), "warn", "disk", "5.4 of 107.4 GB are free", "make room")
    usage.free = 1 << 20
    only(doctor(), "bad", "disk", "make room")


def test_settings_that_are_bad_end_it(well, monkeypatch, capsys):
    """Exit code 2: it could not run."""
    monkeypatch.setenv("PIPELINE_LEASE_MS", "soon")
    assert main(["doctor"]) == 2 and "PIPELINE_LEASE_MS=soon: must be a whole number" in capsys.readouterr().err


def test_it_changes_nothing(doctor, well):
    client, data = well

    def state() -> object:
        files = {path: path.stat().st_mtime_ns for path in Path(data).rglob("*") if path.is_file()}
        return files, {key: client.dump(key) for key in client.scan_iter()}

    before = state()
    doctor()
    assert state() == before
