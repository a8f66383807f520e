"""The door of settings: odd values in the environment give one line that names the variable, or a valid start."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from unittest import mock

from pipeline.errors import PipelineError
from pipeline.settings import PREFIX, Settings, load
from tests.fuzz.door import Verdict, rng_of
from tests.fuzz.ground import Ground

VALUES = [
    "",
    " ",
    "0",
    "1",
    "-1",
    "-0",
    "2",
    "1.5",
    "1e3",
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "-inf",
    "0x10",
    "1_000",
    "٣",
    "１２",
    "+5",
    " 7 ",
    "7\n",
    "1\n2",
    "true",
    "None",
    "null",
    "[]",
    "{}",
    "[1]",
    '{"a": 32}',
    '{"a": 33}',
    '{"a": "32"}',
    '{"a": null}',
    '{"": 0}',
    '{"*": 64}',
    "{",
    "[" * 100_000,
    '{"a":' * 5000,
    "9" * 19,
    "9" * 400,
    "9" * 5000,
    "x" * 100_000,
    "\udcff",
    "\u2028",
    "\x1b[31m",
    "'; rm",
    "../..",
    "/dev/null",
    "/proc/self/mem",
    "redis://",
    "redis://:pw@127.0.0.1:1/0",
    "redis://127.0.0.1:99999/0",
    "redis://127.0.0.1:1/x",
    "http://127.0.0.1:1",
    "unix://",
    "rediss://127.0.0.1:1",
    "://",
    "redis://[::1",
    "redis://u:p@ss/word@h",
    "secret@host",
    "always",
    "everysec",
    "localhost",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "4097",
    "65536",
    "301",
    "315360001",
    "0.0000001",
    "1e-320",
]


class Environment:
    """Most in this process; some as `telemetry check`, as a user would."""

    name = "settings"
    threads = 1
    AS_PROCESS = 60  # one in so many

    def __init__(self, ground: Ground) -> None:
        self._folder = ground.stack.folder

    def _case(self, seed: int, number: int) -> dict[str, str]:
        rng = rng_of(seed, self.name, number)
        names = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
        told = {}
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            name = rng.choice(names)
            if rng.random() < 0.1:
                name = _mistyped(rng, name)
            told[name] = rng.choice(VALUES)
        return told

    def show(self, seed: int, number: int) -> tuple[str, bytes]:
        told = self._case(seed, number)
        return ", ".join(told), "\n".join(f"{name}={value}" for name, value in told.items()).encode(errors="surrogateescape")

    def attempt(self, seed: int, number: int) -> Verdict:
        told = self._case(seed, number)
        clean = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX) and name != "REDIS_URL"}
        unknown = [name for name in told if name.removeprefix(PREFIX).lower() not in Settings.model_fields]
        with mock.patch.dict(os.environ, clean | told, clear=True):
            try:
                load()
                answer, lines = "accepted", []
            except PipelineError as error:
                answer, lines = "refused", str(error).splitlines()
        if answer == "accepted" and unknown:
            return Verdict(answer, f"{unknown[0]} is no setting, and nobody said so")
        for line in lines:
            if not any(name in line or ascii(name) in line for name in told) or len(line) > 600 or not line.isprintable():
                return Verdict(answer, f"the line names no variable that was set, or is odd: {line[:300]!r}")
        if number % self.AS_PROCESS == 0:
            return self._as_process(clean, told, answer)
        return Verdict(answer)

    def _as_process(self, clean: dict[str, str], told: dict[str, str], answer: str) -> Verdict:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "check"],
            env=clean | told | {"PYTHONPATH": str(Path(__file__).parents[2])},
            cwd=self._folder,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        said = done.stderr.decode(errors="replace")
        if "Traceback" in said or done.returncode not in (0, 2):
            return Verdict(answer, f"`telemetry check` ends with {done.returncode}: {said[-400:]}")
        if done.returncode == 2 and not said.startswith("telemetry: "):
            return Verdict(answer, f"`telemetry check` says {said[:300]!r}")
        return Verdict(answer)

    def finish(self) -> list[str]:
        return []


def _mistyped(rng: random.Random, name: str) -> str:
    at = rng.randrange(len(PREFIX), len(name))
    return rng.choice([name[:at] + name[at + 1 :], name[:at] + "X" + name[at:], name + "S", name[:at] + "_" + name[at:]])
