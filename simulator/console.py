"""What a person sees of a run on stderr: live lines on a terminal, a plain line every few seconds elsewhere."""

import time
from datetime import UTC, datetime
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status

from simulator.replay import ReplayProgress
from simulator.run import Progress as RunProgress

_PLAIN_EVERY_S = 5.0


class _Lines:
    """A plain line, but not more often than every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console, self._told = console, -_PLAIN_EVERY_S

    def say(self, line: str) -> None:
        if time.monotonic() - self._told >= _PLAIN_EVERY_S:
            self._told = time.monotonic()
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class RunConsole:
    """Shows a simulation: a status line, and a line for each fault that begins."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._lines = _Lines(self._console)
        self._status: Status | None = self._console.status("starting") if self._console.is_terminal else None

    def __enter__(self) -> "RunConsole":
        if self._status:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status:
            self._status.stop()

    def show(self, progress: RunProgress) -> None:
        for fault in progress.begun:
            place = " ".join(filter(None, [fault["device"], fault["interface"]]))
            line = f"{fault['start']:%H:%M:%S} fault injected: {fault['kind']} on {place}: {fault['how']}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        line = progress.waiting
        if progress.event_time_ms:
            at = datetime.fromtimestamp(progress.event_time_ms / 1000, UTC)
            behind = f", {progress.behind_seconds:.0f} s behind" if progress.behind_seconds > 5 else ""
            waiting = f" ({progress.waiting})" if progress.waiting else ""
            line = f"{at:%F %T} UTC  {progress.sent:,} events sent, {progress.events_per_second:,.0f}/s{behind}{waiting}"
        if self._status:
            self._status.update(line)
        else:
            self._lines.say(line)


class ReplayConsole:
    """Shows a replay: a progress bar with the recorded time."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._lines = _Lines(self._console)
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("events"), TimeRemainingColumn()]
        self._bar = Progress(*columns, console=self._console) if self._console.is_terminal else None
        self._task = self._bar.add_task("reading", total=None) if self._bar else None

    def __enter__(self) -> "ReplayConsole":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def note(self, notice: str) -> None:
        self._console.print(notice, highlight=False, markup=False, soft_wrap=True)

    def show(self, progress: ReplayProgress) -> None:
        line = progress.waiting or f"{datetime.fromtimestamp(progress.event_time_us // 1_000_000, UTC):%F %T} UTC"
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=line, completed=progress.sent, total=progress.total)
        else:
            self._lines.say(f"{line}  {progress.sent:,} of {progress.total:,} events sent")
