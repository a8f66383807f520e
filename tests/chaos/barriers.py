"""Barriers: named points in a running role at which it dies by kill -9, or loses a reply, when a file asks for it.

The harness arms a barrier by making `arm/NAME@PID` (or `@any`); the process that reaches it first takes that file away,
writes `landed/NAME@PID-N`, which is the proof, and ends itself. Production code knows nothing of this: the methods
of its stores are wrapped in the process that `tests.chaos.process` starts.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

IN_COMPACTION_MS_MAX = 16  # a compaction of small files takes about so long


class Barriers:
    """The side of the process."""

    def __init__(self, control: Path) -> None:
        self._arm, self._landed = control / "arm", control / "landed"
        self._numbers = itertools.count()
        self._names = [str(os.getpid()), "any"]

    def claim(self, name: str, **details: object) -> bool:
        """Whether this barrier was armed; then it is ours, and what is told of it lies on the disk."""
        for who in self._names:
            armed = self._arm / f"{name}@{who}"
            if os.path.exists(armed):
                with contextlib.suppress(FileNotFoundError):  # another process was first
                    os.unlink(armed)
                    self.note(name, **details)
                    return True
        return False

    def note(self, name: str, **details: object) -> None:
        """Put down that something happened here; on the disk, and whole, before this returns."""
        marker = self._landed / f"{name}@{os.getpid()}-{next(self._numbers)}"
        with (draft := marker.with_suffix(".draft")).open("w") as file:
            json.dump({"pid": os.getpid(), **details}, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, marker)

    def reach(self, name: str, **details: object) -> None:
        """Die here if that is asked for."""
        if self.claim(name, **details):
            os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def within(self, name: str, details: Callable[[], dict]) -> Iterator[None]:
        """Die somewhere inside, at a moment of its own, if that is asked for. `details` are those of the moment before."""
        over = threading.Event()

        def strike() -> None:
            if not over.wait(int.from_bytes(os.urandom(2)) / 65_536 * IN_COMPACTION_MS_MAX / 1000):
                self.reach(name, **told)

        asked = any(os.path.exists(self._arm / f"{name}@{who}") for who in self._names)
        if asked:
            told = details()
            threading.Thread(target=strike, daemon=True).start()
        try:
            yield
        finally:
            over.set()


def around(owner: type, method: str, before: Callable | None = None, after: Callable | None = None) -> None:
    """Wrap a method: `before(self, *arguments)` and `after(reply, self, *arguments)`."""
    real = getattr(owner, method)

    @functools.wraps(real)
    def wrapped(*arguments, **named):
        if before is not None:
            before(*arguments, **named)
        reply = real(*arguments, **named)
        if after is not None:
            after(reply, *arguments, **named)
        return reply

    setattr(owner, method, wrapped)


def install_worker(barriers: Barriers) -> None:
    """The points of a worker."""
    from pipeline.stores import lake
    from pipeline.stores.alertlog import AlertLog
    from pipeline.stores.leases import Leases
    from pipeline.stores.streams import Streams
    from pipeline.worker import Worker

    side = threading.local()  # whether this thread committed a side table since it last committed `aggregates`

    def read(reply, *_):
        events = sum(entry.event_count for entries in reply.values() if isinstance(entries, list) for entry in entries)
        if events:
            barriers.reach("after_read", events=events)

    def committing(_lake, table, rows, positions, *_):
        between = table == "aggregates" and getattr(side, "done", False)
        if between:
            barriers.reach("between_tables", rows=rows.height)
        else:
            barriers.reach("before_commit", table=table, rows=rows.height)

    def committed(_reply, _lake, table, rows, positions, *_):
        side.done = table != "aggregates"
        if table == "aggregates":
            barriers.reach("after_commit", rows=rows.height, partitions=sorted(positions))

    def releasing(_leases, partition, *_):
        if isinstance(partition, int):
            barriers.reach("hand_over", partition=partition)

    def raising(*arguments):
        if arguments[-1]:
            barriers.reach("before_alert", transitions=len(arguments[-1]))

    def raised(_reply, *arguments):
        if arguments[-1]:
            barriers.reach("after_alert", transitions=len(arguments[-1]))

    around(Streams, "read", after=read)
    around(lake.Lake, "commit", before=committing, after=committed)
    around(Leases, "release", before=releasing)
    around(AlertLog, "apply", before=raising, after=raised)
    around(Worker, "_recover", after=lambda _reply, _worker, tokens: barriers.reach("after_recovery", partitions=sorted(tokens)))

    real = lake.write_deltalake

    def write_and_forget(*arguments, **named):
        real(*arguments, **named)
        if barriers.claim("lost_reply"):
            raise OSError("the reply of a commit got lost")

    lake.write_deltalake = write_and_forget


def install_maintenance(barriers: Barriers) -> None:
    """The points of housekeeping."""
    from pipeline.stores.lake import Lake

    compact = Lake.compact

    @functools.wraps(compact)
    def compacting(lake, table, files_min):
        if table != "aggregates":
            return compact(lake, table, files_min)
        with barriers.within("in_compaction", lambda: {"version": lake._refresh(table).version()}):
            gone = compact(lake, table, files_min)
        if gone:
            barriers.reach("after_compaction", files=gone)
        return gone

    Lake.compact = compacting
    around(Lake, "refresh_series", after=lambda count, *_: barriers.reach("after_series", series=count))


def install_ingest(barriers: Barriers) -> None:
    """The point of the API: Redis has the events, and nobody was answered."""
    from pipeline.stores.streams import Appender

    append = Appender.append

    async def appending(self, groups):
        results = await append(self, groups)
        if any(isinstance(result, int) for result in results):
            barriers.reach("after_append", entries=len(results), events=sum(group.event_count for group in groups))
        return results

    Appender.append = appending


INSTALL = {"worker": install_worker, "maintain": install_maintenance, "ingest": install_ingest}


def watch_clock(barriers: Barriers) -> None:
    """Note every jump of this process' wall clock: the proof that it saw one."""

    def watch() -> None:
        offset = time.time() - time.monotonic()
        while True:
            time.sleep(0.2)
            now = time.time() - time.monotonic()
            if abs(now - offset) > 1:
                barriers.note("clock", seconds=round(now - offset, 1))
                offset = now

    threading.Thread(target=watch, daemon=True, name="clock").start()
