"""A signal stops a process whatever its main thread is doing."""

import signal
import subprocess
import sys

import pytest

# The signal comes while the main thread holds the lock of the Event that it waits for: the moment is too short to be met by chance.
SCRIPT = """
import os, signal, sys, threading
from pipeline.stops import on_signal

stopping = threading.Event()
on_signal(stopping.set)
with stopping._cond:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    for _ in range(1000):
        pass  # the handler has run by here
sys.exit(0 if stopping.wait(10) else 1)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_amid_a_wait_for_the_event_that_it_sets_stops_the_process(name):
    def not_ignored() -> None:  # as it is where the tests themselves run under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    assert subprocess.run([sys.executable, "-c", SCRIPT, name], timeout=60, preexec_fn=not_ignored).returncode == 0


def test_under_nohup_it_outlives_its_terminal():
    script = SCRIPT.replace("wait(10)", "wait(0.5)")
    assert subprocess.run(["nohup", sys.executable, "-c", script, "SIGHUP"], timeout=60, capture_output=True).returncode == 1
