"""A run sends what it says it sent: events, faults and bad manners, to the last one."""

import argparse
import asyncio
import itertools
import json
import time
from pathlib import Path

import polars as pl
import pytest
from test_simulator_client import Answer, Api, Request, api, taken  # noqa: F401

from simulator.cli import add_simulate
from simulator.errors import UserError
from simulator.manners import GOOD, Manners
from simulator.run import Clock, SimulateOptions, Source, plan_fleet, simulate
from simulator.truth import read_truth


def judge(request: Request, number: int) -> Answer:
    """Reject what breaks a rule, as the API does."""

    def good(event: dict) -> bool:
        value = event["value"]
        if event["device"] is None or event["metric"] is None or not isinstance(value, (int, float)):
            return False
        return event["timestamp"] <= (time.time() + 60) * 1000

    accepted = sum(map(good, request.events))
    return taken(accepted, len(request.events) - accepted)


def run(api, **options) -> dict:
    defaults = {"devices": 6, "interfaces": 2, "speed": 180.0, "duration_seconds": 0.5, "concurrency": 2}
    return asyncio.run(simulate(SimulateOptions(url=api.url, **(defaults | options))))


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_the_books_are_exact(api, tmp_path, form):
    """Sent is what arrived; rejected is malformed; repeats are repeats; the labels add up."""
    api.behave = judge
    manners = Manners(late=0.02, repeated=0.03, disordered=0.05, malformed=0.02)
    # 180 s of event time, so that what is held for 40 to 150 s comes within it: of 90 s, one run in twelve saw none of it.
    summary = run(api, form=form, manners=manners, fault_every_seconds=0, duration_seconds=1.0)
    labels = ["on_time", "late", "repeated", "disordered", "malformed"]
    assert summary["sent"] == len(api.events) == sum(summary[label] for label in labels) > 1000
    assert summary["rejected"] == summary["malformed"] > 0
    assert summary["undelivered"] == summary["unaccounted"] == summary["refused"] == 0
    keys = [(event["device"], event["interface"], event["metric"], event["timestamp"]) for event in api.events]
    assert len(keys) - len(set(keys)) >= summary["repeated"] > 0
    newest: dict[str, int] = {}
    late = 0
    for event in api.events:
        device, at = event["device"], event["timestamp"]
        if device and event["metric"] and at < (time.time() + 60) * 1000:
            late += at < newest.get(device, 0) - 30_000  # held for 40 s or more, against 12 s for mere disorder
            newest[device] = max(newest.get(device, 0), at)
    assert late == summary["late"] > 0


def test_a_well_behaved_fleet_is_in_order(api):
    """Without bad manners and faults every device's times only grow, and nothing is rejected."""
    api.behave = judge
    summary = run(api, manners=GOOD, fault_every_seconds=0)
    assert summary["on_time"] == summary["sent"] == summary["accepted"] > 1000
    for device in {event["device"] for event in api.events}:
        mine = [event["timestamp"] for event in api.events if event["device"] == device]
        assert mine == sorted(mine)
    assert {frozenset(event["tags"]) for event in api.events} == {frozenset({"site", "role"})}


def test_the_truth_is_what_was_sent(api, tmp_path):
    """Every fault of the truth file is in the events: as many show it as the file says, with the values it says."""
    path = tmp_path / "truth.ndjson"
    summary = run(api, manners=GOOD, fault_every_seconds=15, truth=path)
    truth = read_truth(path)
    assert summary["faults"]["injected"] == truth.height >= 3
    assert summary["faults"]["expected_visible"] == truth.filter(pl.col("expected_visible") & (pl.col("shown") > 0)).height > 0
    columns = ["device", "interface", "metric", "timestamp", "value"]
    events = pl.DataFrame(api.events, schema=columns, schema_overrides={"value": pl.Float64})
    for fault in truth.iter_rows(named=True):
        seen = pl.DataFrame(fault["seen"], schema=dict.fromkeys(["device", "interface", "metric"], pl.String))
        start, end = (round(fault[edge].timestamp() * 1000) for edge in ("start", "end"))
        during = events.filter(pl.col("timestamp").is_between(start, end, closed="left"))
        assert during.join(seen, on=["device", "interface", "metric"]).height == fault["shown"]
        if fault["kind"] == "cpu_runaway":
            cpu = during.filter((pl.col("device") == fault["device"]) & (pl.col("metric") == "cpu-utilization"))
            assert (cpu["value"] >= 95).all() and cpu.height
        if fault["kind"] == "device_silent":
            assert fault["device"] not in during["device"]


def test_a_run_holds_the_faults_that_are_on(api, monkeypatch):
    """Those that are over are counted and forgotten, or a run without an end would grow and become slow."""
    held: list[int] = []

    class Watched(Source):
        def advance(self, to_ms):
            held.append(len(self.schedule.faults))
            return super().advance(to_ms)

    monkeypatch.setattr("simulator.run.Source", Watched)
    summary = run(api, speed=7200.0, interval_seconds=10, body_events=5000)
    assert summary["faults"]["injected"] > 20 > 10 > max(held)
    assert 0 < summary["faults"]["expected_visible"] < summary["faults"]["injected"]


def test_time_never_passes_the_clock():
    """At any speed, with an end or without; an endless run goes on at the clock's own pace once it has caught up."""
    at = [1000.0]
    live = Clock(SimulateOptions(speed=1), lambda: at[0])
    back = Clock(SimulateOptions(speed=10, duration_seconds=20), lambda: at[0])
    endless = Clock(SimulateOptions(speed=10, history_seconds=90), lambda: at[0])
    assert (live.start_ms, back.start_ms, endless.start_ms) == (1_000_000, 820_000, 910_000)
    for at[0] in (1000.0, 1003.0, 1010.0, 1020.0, 1500.0):
        assert live.read_ms() == round(at[0] * 1000)
        assert max(back.read_ms(), endless.read_ms()) <= at[0] * 1000
    assert back.read_ms() == back.end_ms == 1_020_000
    with pytest.raises(UserError, match=r"--speed 1e\+09 --for 3600: it would have to begin before the year 1"):
        Clock(SimulateOptions(speed=1e9, duration_seconds=3600), time.time)
    assert endless.read_ms() == 1_500_000


def test_a_clock_that_is_put_back_is_waited_for(api):
    """Without haste, and with an ear for `stop`: a loop without a pause would hear nothing any more."""
    asked = itertools.count(1)

    async def go() -> dict:
        stop = asyncio.Event()

        def now() -> float:
            number = next(asked)
            if number == 4:
                asyncio.get_running_loop().call_later(0.3, stop.set)
            assert number < 1000, "the clock is asked again and again"
            return time.time() - (60 if number >= 4 else 0)

        return await simulate(SimulateOptions(url=api.url, devices=3, interval_seconds=0.2), stop=stop, now=now)

    assert asyncio.run(go())["sent"] == len(api.events)


def test_a_rate_sizes_the_fleet_or_the_interval():
    """Events per second on the wire, within the grain of a device; speed counts."""
    for options in (
        SimulateOptions(rate=5000),
        SimulateOptions(rate=5000, speed=10, interval_seconds=60),
        SimulateOptions(rate=5000, devices=10),
        SimulateOptions(rate=50, devices=500, speed=2),
    ):
        fleet, interval_ms = plan_fleet(options)
        assert fleet.series.height / interval_ms * 1000 * options.speed == pytest.approx(options.rate, rel=0.1)
    with pytest.raises(UserError, match="--devices 0: must be at least 1"):
        plan_fleet(SimulateOptions(devices=0))
    with pytest.raises(UserError, match=r"--interval 1e-09: must be at least 0\.001"):
        plan_fleet(SimulateOptions(interval_seconds=1e-9))
    with pytest.raises(UserError, match=r"--fault-every -1: must be at least 0"):
        plan_fleet(SimulateOptions(fault_every_seconds=-1))


def test_shares_are_shares():
    """Of the same events: each from 0 to 1, and together no more than all of them."""
    for manners, told in (
        (Manners(late=5), "--late 5: must be a share"),
        (Manners(malformed=-3), "--malformed -3: must be a share"),
        (Manners(late=0.6, repeated=0.5, disordered=0, malformed=0), "--late 0.6 --repeated 0.5 .*: together 1.1, must be at most 1"),
    ):
        with pytest.raises(UserError, match=told):
            plan_fleet(SimulateOptions(manners=manners))
    for manners in (GOOD, Manners(1, 0, 0, 0), Manners(0.1, 0.2, 0.3, 0.4), Manners(0.7, 0.1, 0.1, 0.1)):
        plan_fleet(SimulateOptions(manners=manners))


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e300", "many"])
@pytest.mark.parametrize("option", ["--rate", "--interval", "--for", "--speed", "--fault-every", "--late", "--wait", "--deadline"])
def test_a_number_that_nobody_can_reckon_with_is_refused(option, number, capsys):
    parser = argparse.ArgumentParser()
    add_simulate(parser.add_subparsers())
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["simulate", f"{option}={number}"])
    assert ended.value.code == 2 and f"argument {option}: {number}: expected" in capsys.readouterr().err.splitlines()[-1]


def test_a_first_fault_is_told_while_somebody_watches(api):
    """In 24 s of simulated life there is a fault; progress names it with its place."""
    begun = []
    options = SimulateOptions(url=api.url, speed=80, duration_seconds=0.3)
    asyncio.run(simulate(options, on_progress=lambda progress: begun.extend(progress.begun)))
    assert [fault["kind"] for fault in begun] == ["link_flap"]
    assert begun[0]["device"] and begun[0]["interface"] and begun[0]["how"]


def test_stopping_finishes_what_is_in_flight(api):
    """An endless run ends soon after `stop`; all that was sent is answered."""

    async def go() -> dict:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.6, stop.set)
        return await simulate(SimulateOptions(url=api.url, interval_seconds=0.2, devices=3), stop=stop)

    began = time.monotonic()
    summary = asyncio.run(go())
    assert time.monotonic() - began < 1.5
    assert summary["sent"] == len(api.events) > 0


def test_a_server_may_come_later():
    """Nobody there yet: the run says so and waits, and gives up with a remedy when its patience ends."""
    said = []
    options = SimulateOptions(url="http://127.0.0.1:9", wait_seconds=0.5)
    with pytest.raises(UserError, match="start the API"):
        asyncio.run(simulate(options, on_progress=lambda progress: said.append(progress.waiting)))
    assert "waiting for http://127.0.0.1:9" in said[0]


def test_the_command_ends_with_one_json_object(api, tmp_path, capsys):
    """stdout holds the summary and nothing else; the truth file is there even without a fault."""
    parser = argparse.ArgumentParser()
    add_simulate(parser.add_subparsers(required=True))
    truth = tmp_path / "truth.ndjson"
    args = parser.parse_args(["simulate", "--url", api.url, "--for", "0.5s", "--rate", "400", "--json", "--truth", str(truth)])
    assert args.func(args) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["sent"] == len(api.events) > 0
    assert summary["faults"] == {"injected": 0, "expected_visible": 0} and truth.exists()
    args = parser.parse_args(["simulate", "--url", api.url, "--truth", "/nowhere/truth"])
    assert args.func(args) == 2
    assert capsys.readouterr().err.startswith("--truth /nowhere/truth: No such file")


def test_a_full_disk_under_the_truth_is_told_in_one_line(api):
    """What was sent before is answered; the run ends."""
    with pytest.raises(UserError, match=r"^--truth /dev/full: No space left on device$"):
        run(api, truth=Path("/dev/full"))
    assert api.events
