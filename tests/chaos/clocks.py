"""Wall clocks that jump: libfaketime (of the Python package of that name) under a process, which reads its offset from a file.

Everything in the process sees the jump, native code too; monotonic clocks go on, as they do when a host's clock is set.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path


def library() -> Path | None:
    """The shared library, where the package is installed."""
    spec = importlib.util.find_spec("libfaketime")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.rglob("libfaketime.so*"), None)


class Clock:
    """The wall clock of one kind of process."""

    def __init__(self, control: Path, name: str) -> None:
        self._file = control / f"clock-{name}"
        self.offset_seconds = 0
        self.set(0)

    def set(self, offset_seconds: int) -> None:
        """From now on (within a second) this clock differs from the host's by so much."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(f"{offset_seconds:+d}\n")
        draft.rename(self._file)
        self.offset_seconds = offset_seconds

    def environment(self) -> dict[str, str]:
        """What a process must be started with to go by this clock; empty where it cannot."""
        found = library()
        if found is None:
            return {}
        return {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def obstacle(folder: Path) -> str | None:
    """Why clocks cannot be moved on this machine; None: they can."""
    clock = Clock(folder, "probe")
    clock.set(1000)
    environment = clock.environment()
    if not environment:
        return "the package libfaketime is not installed"
    probe = [sys.executable, "-c", "import time; print(time.time())"]
    try:
        here, there = (float(subprocess.run(probe, env=env, capture_output=True, check=True).stdout) for env in ({}, environment))
    except (subprocess.CalledProcessError, ValueError):
        return "libfaketime does not load on this platform"
    return None if 900 < there - here < 1100 else "libfaketime does not load on this platform"
