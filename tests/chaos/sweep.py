"""Files that no version of a table needs are removed after minutes, not hours as `vacuum` would: a long run must not fill the disk."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipeline.stores.tables import TABLES

AGE_SECONDS = 60.0  # of a file in use by nobody; a commit or a recovery takes a fraction of it
INTERVAL_SECONDS = 10.0


class Sweeper:
    """A thread beside a lake in a folder."""

    def __init__(self, lake: Path) -> None:
        self._lake = lake
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="sweeper")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(INTERVAL_SECONDS):
            for table in TABLES:
                with contextlib.suppress(DeltaError, OSError):
                    self._sweep(self._lake / table)

    @staticmethod
    def _sweep(folder: Path) -> None:
        oldest = time.time() - AGE_SECONDS
        old = [path for path in folder.rglob("*.parquet") if "_delta_log" not in path.parts and path.stat().st_mtime < oldest]
        needed = {uri.rpartition("/")[2] for uri in DeltaTable(str(folder)).file_uris()}
        for path in old:
            if path.name not in needed:
                path.unlink(missing_ok=True)
