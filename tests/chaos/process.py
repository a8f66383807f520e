"""`python -m tests.chaos.process ROLE`: the real role in a process that can be told to die at a barrier, and dies with its parent."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

from pipeline.__main__ import main
from tests.chaos.barriers import INSTALL, Barriers, watch_clock


def die_with(parent: int) -> None:
    """Leave nothing behind, however the parent ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


if __name__ == "__main__":
    die_with(os.getppid())
    faulthandler.register(signal.SIGUSR1)  # where every thread stands, for whoever asks
    barriers = Barriers(Path(os.environ["CHAOS_CONTROL"]))
    INSTALL[sys.argv[1]](barriers)
    watch_clock(barriers)
    sys.exit(main(sys.argv[1:]))
