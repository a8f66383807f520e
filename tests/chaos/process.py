"""`python -m tests.chaos.process ROLE`: the real role in a process that can be told to die at a barrier, and dies with its parent."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path

from pipeline.__main__ import main
from pipeline.stops import outlive_not
from tests.chaos.barriers import INSTALL, Barriers, watch_clock

if __name__ == "__main__":
    outlive_not(os.getppid(), lambda: os._exit(1))  # leave nothing behind, however the parent ended
    faulthandler.register(signal.SIGUSR1)  # where every thread stands, for whoever asks
    barriers = Barriers(Path(os.environ["CHAOS_CONTROL"]))
    INSTALL[sys.argv[1]](barriers)
    watch_clock(barriers)
    sys.exit(main(sys.argv[1:]))
