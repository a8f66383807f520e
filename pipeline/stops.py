"""When a process is to stop: a signal came, or the process that started it is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue


def on_signal(stop: Callable[[], None]) -> None:
    """Call `stop`, once, when SIGINT or SIGTERM comes, or the terminal is closed. In a thread of its own:

    A handler runs between two instructions of the main thread, whatever lock that holds. An Event that it waits for has one, and to
    `set` it there would wait for that lock for ever. Putting something into a SimpleQueue is safe: its docs call that reentrant.
    """
    told: SimpleQueue[int] = SimpleQueue()

    def wait() -> None:
        told.get()
        stop()

    threading.Thread(target=wait, daemon=True, name="stop").start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # under nohup it outlives its terminal
        signal.signal(number, lambda number, _: told.put(number))


def die_with_parent(stop: Callable[[], None]) -> None:
    """In a role's process: stop when the supervisor that started it is gone, however it went."""
    if parent := os.environ.get("PIPELINE_PARENT_PID"):
        outlive_not(int(parent), stop)


def outlive_not(parent: int, stop: Callable[[], None]) -> None:
    """Call `stop` within a second of this process having another parent than this one."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        stop()

    threading.Thread(target=watch, daemon=True, name="parent").start()
