"""Every command of the README is run, in its order, against a pipeline that `telemetry up` has started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.harness import eventually, free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    return [line for block in blocks for line in block.strip().splitlines()]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("readme"), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIPELINE_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with (folder / "up.log").open("wb") as log:
        up = subprocess.Popen(
            ["telemetry", "up", "--port", str(port), "--window", "2s"],
            cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:

        def aggregates() -> bool:
            done = subprocess.run(
                ["telemetry", "sql", "--csv", "SELECT count(*) FROM anomalies"], cwd=folder, env=environment, capture_output=True, text=True
            )
            return done.returncode == 0 and int(done.stdout.split()[1]) > 0

        eventually(aggregates, 60, "anomalies are in the lake: " + (folder / "up.log").read_text())
        yield folder, port, environment
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0, (folder / "up.log").read_text()[-2000:]


def test_every_command_works(running):
    """As a reader types them, one after the other, in one folder."""
    folder, port, environment = running
    ran = 0
    for command in commands():
        if command.startswith("make "):
            assert f"\n{command.removeprefix('make ')}:" in (ROOT / "Makefile").read_text(), command
            continue
        shell = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        done = subprocess.run(["bash", "-c", shell], cwd=folder, env=environment, capture_output=True, text=True, timeout=90)
        # The books are exact when nothing moves; here the fleet is sending.
        assert done.returncode == 0 or command == "telemetry books", f"{command}\n{done.stdout[-1000:]}{done.stderr[-1000:]}"
        assert "Traceback" not in done.stderr, done.stderr
        ran += 1
    assert ran >= 20


def test_what_the_readme_says_of_an_answer(running):
    """The first example's answer, and the rules in it are valid."""
    _, port, _ = running
    body = [{"device": "core-1", "interface": "eth0", "metric": "in-octets", "value": 123456789}]
    assert httpx.post(f"http://127.0.0.1:{port}/v1/events", json=body).json() == {"accepted": 1, "rejected": 0, "errors": []}
    document = "".join(re.findall(r"```yaml\n(.*?)```", README, re.S))  # limits and rules
    assert httpx.put(f"http://127.0.0.1:{port}/v1/rules", content=document).status_code == 200
