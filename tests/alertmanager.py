"""A real Alertmanager, which Debian has; `make test` unpacks it where it can."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx

from tests.harness import eventually, free_port
from tests.promtool import debian_tool

NAME = "prometheus-alertmanager"  # as Debian calls it
TEMPLATES = Path("/usr/share/prometheus/alertmanager")  # where Debian's looks for them; where it was only unpacked they are not there
# A file system of its own in that place, for the one process; of what else lies there it needs nothing.
_PLACED = "mount -t tmpfs tmpfs /usr/share && mkdir -p /usr/share/prometheus && cp -r \"$0\" /usr/share/prometheus/ && exec \"$@\""


class Alertmanager:
    """Use as a context manager. What it knows it has in memory: a new start knows nothing."""

    def __init__(self, folder: Path) -> None:
        self._tool, self._folder = debian_tool(NAME, NAME), folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Alertmanager:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        config = self._folder / "alertmanager.yml"
        config.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
        command = [
            self._tool, f"--config.file={config}", f"--storage.path={self._folder / 'kept'}", "--cluster.listen-address=",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]  # fmt: skip
        if not TEMPLATES.exists():
            unpacked = Path(self._tool).parents[2] / TEMPLATES.relative_to("/")
            as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
            command = ["unshare", *as_root, "--mount", "sh", "-c", _PLACED, str(unpacked), *command]
        with (self._folder / "alertmanager.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._answers, 20, "Alertmanager answers")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def alerts(self) -> list[dict]:
        """Those that it takes for active."""
        return httpx.get(f"{self.url}/api/v2/alerts", timeout=5).raise_for_status().json()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=1).is_success
        except httpx.HTTPError:
            return False
