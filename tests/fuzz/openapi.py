"""The document: schemathesis asks the running API whatever /openapi.json allows and forbids, and holds the answers against it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.door import Verdict
from tests.fuzz.ground import Ground

EXAMPLES = 40  # of each operation in one run
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
)
_COUNT = re.compile(r"(\d+) generated")


class OpenApi:
    """Input `number` is a whole run of schemathesis under a seed of its own."""

    name = "openapi"
    threads = 1

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.requests = 0

    def show(self, seed: int, number: int) -> tuple[str, bytes]:
        return "schemathesis", " ".join(self._command(seed, number)).encode()

    def _command(self, seed: int, number: int) -> list[str]:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{self._ground.stack.url}/openapi.json", "--no-color"]
        command += [
            "--seed",
            str(seed + number),
            "--max-examples",
            str(EXAMPLES),
            "--checks",
            ",".join(CHECKS),
            "--generation-database",
            "none",
        ]
        return [*command, "--request-timeout", "20", "--warnings", "off"]

    def attempt(self, seed: int, number: int) -> Verdict:
        folder = self._ground.stack.folder / "schemathesis"
        folder.mkdir(exist_ok=True)
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            self._command(seed, number), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180, env=environment, cwd=folder
        )
        if found := _COUNT.search(done.stdout):
            self.requests += int(found[1])
        if done.returncode:
            told = done.stdout + done.stderr
            start = max(told.find("= ERRORS ="), 0) or max(told.find("= FAILURES ="), 0)
            return Verdict("differs", " | ".join(line.strip() for line in told[start:].splitlines() if line.strip())[:1500])
        return Verdict("conforms")

    def finish(self) -> list[str]:
        return [] if self.requests else ["schemathesis has sent nothing"]
