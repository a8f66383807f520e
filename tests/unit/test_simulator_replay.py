"""A replay sends every row, each device's in order of time, at the asked pace; and says what it cannot read."""

import argparse
import asyncio
import json
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from test_simulator_client import Api, api, taken  # noqa: F401

from simulator import recordings
from simulator.cli import add_replay
from simulator.errors import UserError
from simulator.recordings import Recordings
from simulator.replay import ReplayOptions, replay

START = datetime(2017, 6, 29, 16, 34, tzinfo=UTC)


def recording(path: Path, seconds: list[float], device: str = "r1", **columns) -> Path:
    at = pl.Series([START + timedelta(seconds=float(s)) for s in seconds]).dt.replace_time_zone(None).cast(pl.Datetime("ms"))
    frame = pl.DataFrame(
        {"timestamp": at, "device": device, "interface": "e0", "metric": "m", "value": np.arange(float(len(seconds)))} | columns,
        schema_overrides={"value": pl.Float64} if "value" not in columns else None,
    )
    frame.write_parquet(path)
    return path


def play(api, *files, speed=0.0, **options) -> dict:
    return asyncio.run(replay(ReplayOptions(list(files), url=api.url, speed=speed, **options)))


def times(events):
    return [event["timestamp"] for event in events]


def test_all_files_are_one_stream_in_order_of_time(api, tmp_path, monkeypatch):
    """Unsorted files that overlap, stretch by stretch: every row arrives once, each device's rows in order of time."""
    monkeypatch.setattr(recordings, "STRETCH_EVENTS", 100)
    dice = np.random.default_rng(5)
    devices = [f"r{n}" for n in range(5)]
    moments = dice.integers(0, 900_000, (3, 400)) / 1000
    files = [recording(tmp_path / f"{n}.parquet", list(moments[n]), device=dice.choice(devices, 400)) for n in range(3)]
    summary = play(api, *files, body_events=30, concurrency=3)
    assert summary["sent"] == summary["accepted"] == summary["events"] == len(api.events) == 1200
    for device in devices:
        mine = times(event for event in api.events if event["device"] == device)
        assert mine == sorted(mine)
    want = pl.concat(pl.read_parquet(file) for file in files).select("device", "value", pl.col("timestamp").dt.epoch("ms"))
    assert sorted(want.rows()) == sorted((event["device"], event["value"], event["timestamp"]) for event in api.events)


def test_stretches_are_bounded(tmp_path, monkeypatch):
    """No stretch holds more than the bound, unless one second has more; together they hold everything."""
    monkeypatch.setattr(recordings, "STRETCH_EVENTS", 50)
    file = recording(tmp_path / "a.parquet", [*np.arange(0, 100, 0.25), *np.linspace(7, 7.9, 80)])
    loaded = Recordings([file])
    sizes = [loaded.read(*stretch).height for stretch in loaded.plan().stretches()]
    assert sum(sizes) == 480
    assert sorted(sizes)[-2] <= 50 + 4 and max(sizes) <= 84 + 50


def test_time_passes_at_the_asked_speed(api, tmp_path):
    """40 recorded seconds at 40x take one second, and each event comes at its place in it."""
    file = recording(tmp_path / "a.parquet", list(np.arange(0, 41)))
    summary = play(api, file, speed=40)
    assert 1.0 <= summary["seconds"] < 1.8
    began = api.requests[0].at
    due = [(request.at - began, request.events[0]["value"] / 40) for request in api.requests]
    assert len(api.requests) > 5
    assert max(abs(at - asked) for at, asked in due) < 0.25
    assert (summary["recorded_seconds"], summary["played_seconds"]) == (40, 40)


def test_gaps_are_jumped(api, tmp_path):
    """An hour, a year: both take no time. Times stay as recorded."""
    hour, year = 3600, 365 * 86_400
    file = recording(tmp_path / "a.parquet", [0, 1, hour, hour + 1, year, year + 5, year + 6])
    summary = play(api, file, speed=20)
    assert summary["seconds"] < 1.5
    assert summary["recorded_seconds"] == year + 6
    assert summary["played_seconds"] == 1 + 1 + 6
    assert times(api.events)[-1] == int((START.timestamp() + year + 6) * 1000)


@pytest.mark.parametrize("speed", [0, 0.5, 20])
def test_shifted_times_end_now_and_are_never_ahead(api, tmp_path, speed):
    """All times move by one distance, so that the last one is now; no event is ahead of the clock when it comes."""
    file = recording(tmp_path / "a.parquet", [0, 0.25, 0.5] if speed == 0.5 else [0, 3, 9, 12])
    offset = time.time() - time.monotonic()
    summary = play(api, file, speed=speed, shift_to_now=True)
    stamps = times(api.events)
    recorded = pl.read_parquet(file)["timestamp"].dt.epoch("ms").to_list()
    assert {stamp - was for stamp, was in zip(stamps, recorded, strict=True)} == {round(summary["shifted_seconds"] * 1000)}
    for request in api.requests:
        assert all(stamp / 1000 <= request.at + offset + 0.05 for stamp in times(request.events))
    assert abs(stamps[-1] / 1000 - (api.requests[-1].at + offset)) < (1.5 if speed == 0.5 else 0.5)


def test_a_slice_is_start_inclusive_end_exclusive(api, tmp_path):
    file = recording(tmp_path / "a.parquet", [0, 1, 2, 3, 4])
    summary = play(api, file, start=START + timedelta(seconds=1), end=START + timedelta(seconds=3))
    assert [event["value"] for event in api.events] == [1, 2]
    assert summary["events"] == 2


def test_text_formats_keep_every_digit(api, tmp_path):
    """CSV and NDJSON: integers to 2^64-1, floats, booleans, several ways to write a time; nonsense is sent for the API to judge."""
    large = 2**64 - 1
    (tmp_path / "a.csv").write_text(
        f"device,metric,value,timestamp,row\nc,m,{large},2024-01-01T00:00:00Z,1\nc,m,1.5,1704067201000,2\n"
        "c,m,true,2024-01-01T01:00:02.5+01:00,3\nc,m,oops,2024-01-01T00:00:03Z,4\nc,m,-7,2024-01-01T00:00:04Z,5\n"
    )
    (tmp_path / "b.ndjson").write_text(
        f'{{"device":"j","metric":"m","value":{large},"timestamp":"2024-01-01T00:00:00Z","tags":{{"a":"1"}}}}\n'
        '{"device":"j","metric":"m","value":0.1,"timestamp":"2024-01-01T00:00:01Z","kind":"gauge"}\n'
    )
    play(api, tmp_path / "a.csv", tmp_path / "b.ndjson")
    by_device = {name: [event for event in api.events if event["device"] == name] for name in "cj"}
    assert [event["value"] for event in by_device["c"]] == [large, 1.5, 1, "oops", -7]
    assert times(by_device["c"]) == [1704067200000, 1704067201000, 1704067202500, 1704067203000, 1704067204000]
    assert [event["value"] for event in by_device["j"]] == [large, 0.1]
    assert by_device["j"][0]["tags"] == {"a": "1"} and by_device["j"][1]["kind"] == "gauge"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pl.Decimal(20, 0), [Decimal(2**64 - 1), Decimal(-7)]),
        (pl.Decimal(20, 2), [Decimal("1.25"), Decimal(3)]),
        (pl.UInt64, [2**64 - 1, 2**53 + 1]),
    ],
)
def test_numbers_of_a_parquet_file_keep_their_digits(api, tmp_path, kind, values):
    """A database's NUMERIC without a fraction is an integer, whatever its size."""
    frame = pl.DataFrame({"device": "d", "metric": "m", "value": pl.Series(values, dtype=kind), "timestamp": [START, START]})
    frame.write_parquet(tmp_path / "a.parquet")
    play(api, tmp_path / "a.parquet", body_events=10)
    assert [event["value"] for event in api.events] == values


def test_what_only_the_last_line_has_is_sent_as_well(api, tmp_path):
    """A device with interfaces, tags or a kind may come late in a long file; the time may be written in another way, too."""
    line = '{"device":"d","metric":"m","value":1,"timestamp":1704067200000,"tags":{"site":"a"}}\n'
    last = (
        '{"device":"d","metric":"m","value":2,"timestamp":"2024-01-01T00:00:01Z","tags":{"role":"core"},"interface":"e0",'
        '"kind":"gauge","row":1}\n'
    )
    (tmp_path / "long.ndjson").write_text(line * 10_050 + last)
    assert Recordings([tmp_path / "long.ndjson"]).notices == ["ignoring column row (1 of 1 files)"]
    play(api, tmp_path / "long.ndjson", body_events=5000, concurrency=1)
    event = api.events[-1]
    assert (event["value"], event["timestamp"], event["interface"], event["kind"]) == (2, 1704067201000, "e0", "gauge")
    assert event["tags"] == {"role": "core"} and api.events[0]["tags"] == {"site": "a"}
    assert len(api.events) == 10_051


def test_other_columns_are_ignored_aloud(tmp_path):
    """One notice per column, whatever the number of files."""
    files = [recording(tmp_path / f"{n}.parquet", [0], dataset="x") for n in range(2)]
    assert Recordings(files).notices == ["ignoring column dataset (2 of 2 files)"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "no such file"),
        ("a.xlsx", "", "expected .parquet"),
        ("a.csv", "device,value,timestamp\n", "no column metric"),
        ("a.csv", "device,metric,value,timestamp\nd,m,1,soon\n", "1 rows without a readable timestamp"),
        ("a.csv", "device,metric,value,timestamp\nd,m,1,1704067200000000\n", "1 rows.*expected RFC 3339 or epoch milliseconds"),
        ("a.csv", "device,metric,value,timestamp\nd,m,1,+12024-01-01T00:00:00Z\n", "1 rows.*of the years 1 to 9999"),
        ("a.csv", "device,metric,value,timestamp\n", "no events"),
        ("a.parquet", "not parquet", "a.parquet"),
        ("a.ndjson", "{", "a.ndjson"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(api, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        play(api, tmp_path / name)
    assert not api.requests


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([1_704_067_200_000, 1_704_067_200_000_000]),  # us among ms
        pl.Series([1_704_067_200_000_000_000, 0]),  # ns: in us these are beyond 64 bits, and would be of the year 93829
        pl.Series([2**64 - 1, 0], dtype=pl.UInt64),
        pl.Series([253_402_300_800_000, 0]).cast(pl.Datetime("ms")),
        pl.Series([1_704_067_200_000_000_000, 0]).cast(pl.Datetime("ms", "UTC")),
        pl.Series([-62_135_596_800_000_001, 0]).cast(pl.Datetime("us")),
    ],
)
def test_a_time_that_no_year_has_is_refused_before_anything_is_sent(api, tmp_path, times):
    pl.DataFrame({"device": "d", "metric": "m", "value": [1.0, 2.0], "timestamp": times}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: 1 rows without a readable timestamp; expected RFC 3339 or epoch milliseconds"):
        play(api, tmp_path / "a.parquet")
    assert not api.requests


def test_the_first_and_the_last_year_are_sent(api, tmp_path, capsys):
    first, last = -62_135_596_800_000, 253_402_300_799_999
    (tmp_path / "a.csv").write_text(f"device,metric,value,timestamp\nd,m,1,{first}\nd,m,2,{last}\n")
    assert command(str(tmp_path / "a.csv"), "--url", api.url, "--speed", "0", "--json") == 0
    assert times(api.events) == [first, last]
    summary = json.loads(capsys.readouterr().out)
    assert (summary["first"], summary["last"]) == ("0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z")
    assert command(str(tmp_path / "a.csv"), "--url", api.url, "--shift-to-now") == 2
    assert "the first event would be before the year 1" in capsys.readouterr().err.splitlines()[-1]


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_replay(parser.add_subparsers(required=True))
    args = parser.parse_args(["replay", *arguments])
    return args.func(args)


def test_the_command_ends_with_one_json_object(api, tmp_path, capsys):
    """stdout holds the summary and nothing else."""
    file = recording(tmp_path / "a.parquet", [0, 1])
    assert command(str(file), "--url", api.url, "--speed", "0", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert {"sent": 2, "accepted": 2, "rejected": 0, "refused": 0, "retries": 0, "speed": 0}.items() <= summary.items()


def test_mistakes_end_in_one_line(api, tmp_path, capsys):
    """Exit code 2, one line on stderr with the remedy, no traceback."""
    file = recording(tmp_path / "a.parquet", [0, 1])
    assert command(str(tmp_path / "none.csv"), "--url", api.url) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.csv: no such file\n"
    assert command(str(file), "--url", "http://127.0.0.1:9", "--wait", "0") == 2
    assert "start the API, or point --url at it" in capsys.readouterr().err.splitlines()[-1]


def test_ctrl_c_ends_with_a_summary_and_130(api, tmp_path, capsys):
    """What is in flight is finished, and the summary says how far it came."""
    file = recording(tmp_path / "a.parquet", list(np.arange(0, 1000.0, 0.5)))
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert command(str(file), "--url", api.url, "--speed", "20", "--json") == 130
    summary = json.loads(capsys.readouterr().out)
    assert 0 < summary["sent"] == len(api.events) < 100
