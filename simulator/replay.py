"""`telemetry replay`: recordings go to the API again, in order, `speed` times as fast as they were made.

Recorded gaps over 5 s take no time. Events keep their times, or are shifted all by one distance so that the last
one is sent when it says it happened (and none is ever ahead of the clock).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from simulator.client import Sender, stopped, wait_for_server
from simulator.errors import UserError
from simulator.recordings import GAP_US, YEARS_MS, Plan, Recordings

_PULSE_S = 0.1  # events due within one pulse are sent together
_PULSE_EVENTS = 32_000  # at most; also the pulse of a replay without a pace
_PROGRESS_S = 0.2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ReplayOptions:
    """What to send, where and how fast. speed 0: as fast as the API takes it."""

    files: list[Path]
    url: str = "http://127.0.0.1:8000"
    token: str | None = None
    ca_file: Path | None = None
    speed: float = 1.0
    shift_to_now: bool = False
    start: datetime | None = None
    end: datetime | None = None
    form: str = "json"
    body_events: int = 1000
    concurrency: int = 8
    wait_seconds: float = 10.0
    deadline_seconds: float = 240.0


@dataclass(frozen=True)
class ReplayProgress:
    """Where a replay is, in events; the time is that of the newest event as it was sent."""

    sent: int
    total: int
    event_time_us: int
    waiting: str


async def replay(
    options: ReplayOptions,
    *,
    on_progress: Callable[[ReplayProgress], None] = lambda progress: None,
    on_notice: Callable[[str], None] = lambda notice: None,
    stop: asyncio.Event | None = None,
    now: Callable[[], float] = time.time,
) -> dict:
    """Send all of it, or until `stop` is set; finish what is in flight, and return the summary.

    UserError for what its user can mend: files, columns, the server's address.
    """
    stop = stop or asyncio.Event()
    if options.speed < 0 or options.body_events < 1 or options.concurrency < 1:
        raise UserError("--speed must be at least 0, --body-events and --concurrency at least 1")
    recordings = await asyncio.to_thread(Recordings, options.files, options.start, options.end)
    for notice in recordings.notices:
        on_notice(notice)
    plan = await asyncio.to_thread(recordings.plan)
    if not plan.events:
        raise UserError("the recordings hold no events" + (" between --start and --end" if options.start or options.end else ""))
    nothing_yet = partial(ReplayProgress, 0, plan.events, plan.first_us)
    await wait_for_server(options.url, options.wait_seconds, stop, lambda why: on_progress(nothing_yet(why)), options.ca_file)
    player = _Player(plan, options, now())
    sender = Sender(
        options.url, lanes=options.concurrency, token=options.token, ca_file=options.ca_file, deadline_s=options.deadline_seconds,
        stop=stop, parts=False,  # order is what a recording is about
    )  # fmt: skip
    began = time.monotonic()
    async with sender:
        ticker = asyncio.create_task(_tick(sender, plan, player, on_progress))
        try:
            await _play(recordings, plan, player, sender, stop, options)
        finally:
            ticker.cancel()
    on_progress(ReplayProgress(sender.counts.sent, plan.events, player.reached_us, ""))
    seconds = time.monotonic() - began
    return {
        **sender.counts.summary(),
        "events": plan.events,
        "seconds": round(seconds, 3),
        "events_per_second": round(sender.counts.sent / max(seconds, 1e-9), 1),
        "recorded_seconds": round((plan.last_us - plan.first_us) / 1e6, 3),
        "played_seconds": round(plan.played_us / 1e6, 3),
        "speed": options.speed,
        "first": _rfc3339(plan.first_us),
        "last": _rfc3339(plan.last_us),
        "shifted_seconds": round(player.shift_us / 1e6, 3),
        "refusals": {str(status): reason for status, reason in sender.counts.refusals.items()},
    }


class _Player:
    """Turns recorded time into played time: how long after the start each event is due."""

    def __init__(self, plan: Plan, options: ReplayOptions, now_s: float) -> None:
        self.reached_us = plan.first_us
        self._last_us, self._played_us, self._speed = plan.first_us, 0, options.speed
        # At speed 1 and above, events shifted so that the last is on time are all on time or past; below, the last one is sent
        # long after now, and the events before it would be ahead of the clock: there the last one is put at now.
        lasts_s = plan.played_us / 1e6 / options.speed if options.speed >= 1 else 0.0
        self.shift_us = round((now_s + lasts_s) * 1000) * 1000 - plan.last_us if options.shift_to_now else 0
        if plan.first_us + self.shift_us < YEARS_MS[0] * 1000:
            raise UserError("--shift-to-now: the first event would be before the year 1; leave out with --start or --end what is far off")
        self._lane_of = {device: rank % options.concurrency for rank, device in enumerate(plan.devices)}

    def due_s(self, events: pl.DataFrame) -> np.ndarray:
        """When to send each event, in seconds since the start. Call once per stretch, in order."""
        at = events["timestamp"].dt.epoch("us").to_numpy()
        steps = np.diff(at, prepend=self._last_us)
        played = self._played_us + np.cumsum(np.where(steps > GAP_US, 0, steps))
        self._last_us, self._played_us = int(at[-1]), int(played[-1])
        return played / 1e6 / (self._speed or np.inf)

    def lanes(self, events: pl.DataFrame) -> pl.Series:
        """A device keeps its lane through all files; the busiest devices are on different ones."""
        return events["device"].replace_strict(self._lane_of, return_dtype=pl.Int64)


async def _play(
    recordings: Recordings, plan: Plan, player: _Player, sender: Sender, stop: asyncio.Event, options: ReplayOptions
) -> None:
    """Send stretch by stretch, reading the next one meanwhile."""
    began, stretches = time.monotonic(), plan.stretches()
    ahead = asyncio.create_task(asyncio.to_thread(recordings.read, *stretches[0]))
    try:
        for number in range(len(stretches)):
            events = await ahead
            if number + 1 < len(stretches):
                ahead = asyncio.create_task(asyncio.to_thread(recordings.read, *stretches[number + 1]))
            due_s = player.due_s(events)
            events = events.with_columns(pl.col("timestamp") + pl.duration(microseconds=player.shift_us), lane=player.lanes(events))
            at = 0
            while at < events.height:
                pause = due_s[at] + _PULSE_S - (time.monotonic() - began)
                if stop.is_set() or (options.speed and pause > 0 and await stopped(stop, pause)):
                    return
                until = min(at + _PULSE_EVENTS, events.height)
                if options.speed:
                    until = max(at + 1, min(until, int(np.searchsorted(due_s, time.monotonic() - began, "right"))))
                await sender.send_events(events[at:until], options.form, options.body_events)
                player.reached_us = int(events["timestamp"].dt.epoch("us")[until - 1])
                at = until
    finally:
        ahead.cancel()


async def _tick(sender: Sender, plan: Plan, player: _Player, on_progress: Callable[[ReplayProgress], None]) -> None:
    while True:
        on_progress(ReplayProgress(sender.counts.sent, plan.events, player.reached_us, sender.waiting))
        await asyncio.sleep(_PROGRESS_S)


def _rfc3339(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
