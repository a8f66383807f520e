"""A power cut of Redis' host: the process dies, and of the append-only file what was written within the last second is gone.

With `appendfsync everysec` that second was in the kernel's memory alone. `kill -9` without this loses nothing with `always`; with
`everysec` it does only amid a sync: meanwhile Redis answers and does not write.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from pathlib import Path

LOST_SECONDS = 1.0
LAG_SECONDS = 0.5  # a size that was seen earlier than so long before that second says nothing of it


class AppendOnlyFile:
    """The size of the file that Redis appends to, as time goes by."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "appendonlydir"
        self._sizes: deque[tuple[float, Path, int]] = deque(maxlen=64)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="aof")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _current(self) -> Path | None:
        manifests = list(self._folder.glob("*.manifest"))
        if not manifests:
            return None
        names = re.findall(r"^file (\S+) seq \d+ type i", manifests[0].read_text(), re.MULTILINE)
        return self._folder / names[-1] if names else None

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            try:
                if (path := self._current()) is not None:
                    self._sizes.append((time.monotonic(), path, path.stat().st_size))
            except OSError:  # it is just being replaced
                continue

    def cut(self, died_at: float) -> int:
        """Take from the file what came within the last second before `died_at`; the bytes that went. Redis must be dead."""
        path = self._current()
        earliest, latest = died_at - LOST_SECONDS - LAG_SECONDS, died_at - LOST_SECONDS
        known = [size for at, of, size in list(self._sizes) if of == path and earliest <= at <= latest]
        now = path.stat().st_size
        # None: the file was begun, or cut, within this second, and what it holds was synced then; or we looked too late to know.
        # Smaller than a size that was seen: Redis itself has cut off a command that was not whole, as it was started.
        keep = min(known[-1], now) if known else now
        with path.open("r+b") as file:
            file.truncate(keep)
        self._sizes.clear()  # of what is gone: by them the next cut would make the file longer, with zeros
        return now - keep
