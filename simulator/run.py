"""`telemetry simulate`: the fleet lives, its faults come, its events go to the API as they fall due.

Simulated time runs `speed` times as fast as the clock, from a start early enough never to pass it. When the API is slow,
simulated time waits for it: nothing is left out.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from simulator.client import Sender, stopped, wait_for_server
from simulator.errors import UserError
from simulator.faults import Fault, Schedule
from simulator.fleet import Fleet, build_fleet, series_per_device
from simulator.manners import LABELS, MALFORMED, Manners, misbehave, spoil
from simulator.polls import Polls
from simulator.signals import Signals
from simulator.truth import append_truth, truth_frame

_TICK_S = 0.25
_PROGRESS_S = 1.0
_STEP_EVENTS = 50_000  # made at once at most: bounds memory when there is much to catch up with
_QUIET_MS = 15_000  # no fault starts this close to the end of a run: nobody could find it in time
_FIRST_MS = -62_135_510_400_000  # the second day of the year 1: a clock that is behind says a time before a run's start


@dataclass(frozen=True)
class SimulateOptions:
    """What to simulate and where to send it. `rate` (events/s on the wire) sets `devices`, or the interval if both are given."""

    url: str = "http://127.0.0.1:8000"
    token: str | None = None
    ca_file: Path | None = None
    seed: int = 1
    sites: int = 2
    devices: int | None = None  # None: from `rate`, else 20
    interfaces: int = 8
    interval_seconds: float = 5.0
    rate: float | None = None
    speed: float = 1.0
    duration_seconds: float | None = None  # of the clock; None: until stopped
    history_seconds: float = 86_400.0  # where an endless run with speed > 1 starts; it goes on at speed 1 once it is here
    fault_every_seconds: float = 20.0  # simulated; 0: no faults
    manners: Manners = field(default_factory=Manners)
    tags: bool = True
    form: str = "json"
    body_events: int = 1000
    concurrency: int = 4
    truth: Path | None = None
    wait_seconds: float = 60.0
    deadline_seconds: float = 240.0


@dataclass(frozen=True)
class Progress:
    """Where a run is, once a second. `begun` are the faults since the last one, as rows of the truth."""

    sent: int
    events_per_second: float
    retries: int
    event_time_ms: int
    behind_seconds: float  # simulated time that should have been sent by now
    waiting: str
    begun: list[dict]


@dataclass
class _Tally:
    labels: np.ndarray = field(default_factory=lambda: np.zeros(len(LABELS), dtype=np.int64))
    skewed: int = 0

    def add(self, rows: pl.DataFrame) -> None:
        self.labels += np.bincount(rows["label"].to_numpy(), minlength=len(LABELS))
        self.skewed += rows.filter((pl.col("stamp") != pl.col("polled")) & (pl.col("label") != MALFORMED)).height


class Clock:
    """Simulated epoch ms: `speed` times as fast as `now`, and never ahead of it."""

    def __init__(self, options: SimulateOptions, now: Callable[[], float]) -> None:
        self._now, self._began, self._speed = now, now(), options.speed
        lasts = options.duration_seconds
        gained = options.history_seconds if lasts is None else (options.speed - 1) * lasts
        self.start_ms = round(1000 * (self._began - (gained if options.speed > 1 else 0)))
        self.end_ms = None if lasts is None else self.start_ms + round(1000 * options.speed * lasts)
        if self.start_ms < _FIRST_MS:
            raise UserError(f"--speed {options.speed:g} --for {lasts:g}: it would have to begin before the year 1")

    def read_ms(self) -> int:
        now = self._now()
        read = min(self.start_ms + round(1000 * self._speed * (now - self._began)), round(1000 * now))
        return read if self.end_ms is None else min(read, self.end_ms)


def plan_fleet(options: SimulateOptions) -> tuple[Fleet, int]:
    """The fleet and its poll interval in ms. UserError for sizes that make no sense."""
    least = {"sites": 1, "interfaces": 0, "devices": 1, "body_events": 1, "concurrency": 1}
    for name, limit in (least | {"interval_seconds": 0.001, "fault_every_seconds": 0}).items():
        if (value := getattr(options, name)) is not None and value < limit:
            raise UserError(f"--{name.removesuffix('_seconds').replace('_', '-')} {value}: must be at least {limit}")
    for name in ("speed", "rate"):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise UserError(f"--{name} {value}: must be above 0")
    shares = asdict(options.manners)
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"--{name} {share}: must be a share of the events, 0 to 1")
    if round(together := math.fsum(shares.values()), 9) > 1:
        raise UserError(f"{' '.join(f'--{name} {share}' for name, share in shares.items())}: together {together:g}, must be at most 1")
    devices, interval = options.devices or 20, options.interval_seconds
    if options.rate and options.devices is None:
        devices = max(1, round(options.rate * interval / options.speed / series_per_device(options.interfaces)))
    fleet = build_fleet(options.seed, min(options.sites, devices), devices, options.interfaces)
    if options.rate and options.devices is not None:
        interval = fleet.series.height * options.speed / options.rate
    return fleet, max(1, round(interval * 1000))


class Source:
    """Cuts simulated time into events ready to send, bad manners and faults included."""

    def __init__(self, options: SimulateOptions, fleet: Fleet, interval_ms: int, start_ms: int, end_ms: int | None) -> None:
        last = None if end_ms is None else end_ms - _QUIET_MS
        self.schedule = Schedule(fleet, start_ms, round(options.fault_every_seconds * 1000), interval_ms, last)
        self.shown: dict[int, int] = {}  # fault -> events made that show it
        self.step_ms = max(1, _STEP_EVENTS * interval_ms // fleet.series.height)
        self.at_ms = start_ms
        self.held: pl.DataFrame | None = None  # events that are late or out of order, until they are due
        self._on: list[Fault] = []
        self._polls = Polls(Signals(fleet), interval_ms)
        self._seed, self._manners = options.seed, options.manners
        fields = ["device", "interface", "metric", "kind"] + (["tags"] if options.tags else [])
        self._names = fleet.series.select(fields)

    def advance(self, to_ms: int) -> tuple[pl.DataFrame, list[Fault]]:
        """Events due in [at_ms, to_ms), in the order to send them, with the columns of wire.py; and the faults that began."""
        begun = self.schedule.extend(to_ms)
        fresh = misbehave(self._polls.events(self.schedule.effects, self.at_ms, to_ms), self._seed, self._manners)
        waiting = fresh if self.held is None else pl.concat([self.held, fresh]).sort("due", maintain_order=True)
        due, self.held = waiting.filter(pl.col("due") < to_ms), waiting.filter(pl.col("due") >= to_ms)
        self._on = [fault for fault in self._on + begun if fault.end > self.at_ms]
        self._count_shown(due)
        self.at_ms = to_ms
        named = pl.concat([due, self._names[due["series"].to_numpy()]], how="horizontal")
        return spoil(named.with_columns(timestamp=pl.from_epoch("stamp", "ms").dt.replace_time_zone("UTC"))), begun

    def forget(self, number: int) -> None:
        """Drop the first `number` faults, which are over and written down."""
        for fault in self.schedule.faults[:number]:
            self.shown.pop(fault.number, None)
        self.schedule.forget(number, self._polls.signals)

    def _count_shown(self, due: pl.DataFrame) -> None:
        rows = [(series, fault.number, fault.start, fault.end) for fault in self._on for series in fault.seen]
        seen = pl.DataFrame(rows, schema=dict.fromkeys(["series", "fault", "from", "to"], pl.Int64), orient="row")
        well = due.filter(pl.col("label") != MALFORMED).join(seen, on="series")
        for fault, number in well.filter(pl.col("polled").is_between("from", "to", closed="left")).group_by("fault").len().iter_rows():
            self.shown[fault] = self.shown.get(fault, 0) + number


async def simulate(
    options: SimulateOptions,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: asyncio.Event | None = None,
    now: Callable[[], float] = time.time,
) -> dict:
    """Run until the duration is over or `stop` is set, finish what is in flight, and return the summary.

    Raises UserError when the server cannot be reached or will not have us; the truth file is complete even then.
    """
    stop = stop or asyncio.Event()
    fleet, interval_ms = plan_fleet(options)
    if options.truth is not None:
        _touch(options.truth)

    def on_wait(why: str) -> None:
        on_progress(Progress(0, 0, 0, 0, 0, why, []))

    await wait_for_server(options.url, options.wait_seconds, stop, on_wait, options.ca_file)
    clock, began = Clock(options, now), time.monotonic()
    source = Source(options, fleet, interval_ms, clock.start_ms, clock.end_ms)
    run = _Run(options, fleet, source, clock)
    sender = Sender(
        options.url,
        lanes=options.concurrency,
        token=options.token,
        ca_file=options.ca_file,
        deadline_s=options.deadline_seconds,
        stop=stop,
        on_answered=run.tally.add,
    )
    try:
        async with sender:
            await run.feed(sender, stop, on_progress)
    finally:
        run.write_truth(over=True)
    return run.summary(sender, time.monotonic() - began)


class _Run:
    """One run's loop and its books."""

    def __init__(self, options: SimulateOptions, fleet: Fleet, source: Source, clock: Clock) -> None:
        self.tally = _Tally()
        self._options, self._fleet, self._source, self._clock = options, fleet, source, clock
        self._begun: list[Fault] = []
        self._visible = 0  # faults that are over, shown, and for thresholds to find

    async def feed(self, sender: Sender, stop: asyncio.Event, on_progress: Callable[[Progress], None]) -> None:
        source, clock, began, told = self._source, self._clock, time.monotonic(), 0.0
        while not stop.is_set():
            read = clock.read_ms()
            if (to_ms := min(read, source.at_ms + source.step_ms)) > source.at_ms:
                events, begun = source.advance(to_ms)
                self._begun += begun
                await self._send(sender, events)
                self.write_truth()
            if (elapsed := time.monotonic() - began) - told >= _PROGRESS_S:
                told = elapsed
                on_progress(self._progress(sender, elapsed, read))
            if clock.end_ms is not None and source.at_ms >= clock.end_ms:
                break
            sender.check()
            if source.at_ms >= read:  # above it: the clock was put back, and is waited for
                await stopped(stop, _TICK_S)
        on_progress(self._progress(sender, time.monotonic() - began, source.at_ms))

    async def _send(self, sender: Sender, events: pl.DataFrame) -> None:
        device = self._fleet.series["at"].to_numpy()[events["series"].to_numpy()]
        await sender.send_events(events.with_columns(lane=pl.Series(device % sender.lanes)), self._options.form, self._options.body_events)

    def _progress(self, sender: Sender, elapsed: float, read_ms: int) -> Progress:
        counts, source = sender.counts, self._source
        begun, self._begun = truth_frame(self._fleet, self._begun, {}).to_dicts(), []
        behind = (read_ms - source.at_ms) / 1000
        return Progress(counts.sent, counts.sent / elapsed, counts.retries, source.at_ms, behind, sender.waiting, begun)

    def write_truth(self, over: bool = False) -> None:
        """Append the faults that are over; with `over`, the rest as well, cut at the end of the run."""
        waiting, shown = self._source.schedule.faults, self._source.shown
        until = 0
        while until < len(waiting) and (over or waiting[until].end <= self._source.at_ms):
            until += 1  # a fault waits for the ones before it, so that ids stay in order
        if not until:
            return
        if self._options.truth is not None:
            try:
                append_truth(self._options.truth, truth_frame(self._fleet, waiting[:until], shown, self._source.at_ms))
            except OSError as error:
                raise UserError(f"--truth {self._options.truth}: {error.strerror}") from None
        self._visible += sum(fault.visible and fault.number in shown for fault in waiting[:until])
        self._source.forget(until)

    def summary(self, sender: Sender, seconds: float) -> dict:
        labels = dict(zip(LABELS, self.tally.labels.tolist(), strict=True))
        return {
            **sender.counts.summary(),
            "events_per_second": round(sender.counts.sent / max(seconds, 1e-9), 1),
            "seconds": round(seconds, 2),
            "faults": {"injected": self._source.schedule.made, "expected_visible": self._visible},
            **labels,
            "skewed": self.tally.skewed,
            "held": 0 if self._source.held is None else self._source.held.height,
            "devices": self._fleet.devices.height,
            "series": self._fleet.series.height,
            "refusals": {str(status): reason for status, reason in sender.counts.refusals.items()},
        }


def _touch(path: Path) -> None:
    try:
        path.write_bytes(b"")
    except OSError as error:
        raise UserError(f"--truth {path}: {error.strerror}; name a file in a folder that exists and may be written") from None
