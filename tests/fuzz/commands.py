"""The door of the command line: odd arguments give one line and a code, never a traceback, and never no end."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from tests.fuzz.door import Verdict, rng_of
from tests.fuzz.ground import Ground

ODD = [
    "",
    " ",
    "-1",
    "0",
    "1",
    "nan",
    "inf",
    "1e400",
    "9" * 30,
    "x",
    "-",
    "--",
    "/dev/null",
    "/nonexistent/x",
    ".",
    "/proc/self/mem",
    "\udcff",
    "a\nb",
    "%s",
    "{}",
    "[1]",
    "1s",
    "-5s",
    "1.5.5s",
    "5m5s",
    "2026-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "0000-00-00",
    "http://127.0.0.1:1",
    "http://",
    "ftp://x",
    "http://[::1",
    "://",
    "x" * 5000,
    "null",
    "٣",
]
QUERIES = [
    "",
    ";",
    "SELECT",
    "SELECT 1;;",
    "SELECT 1/0",
    "SELECT * FROM nothing",
    "SELECT 'a' FROM range(3)",
    "SELECT * FROM read_csv('/nonexistent')",
    "INSERT INTO aggregates VALUES (1)",
    "DROP VIEW aggregates",
    "ATTACH 'x'",
    "PRAGMA database_list",
    "SELECT repeat('x', 100000)",
    "SELECT {'a': [1, NULL]}, MAP {1: 'x'}, 'NaN'::DOUBLE, INTERVAL 1 DAY",
    "\x00",
    "SELECT '\ud800'".encode("utf-8", "replace").decode(),
    "COPY (SELECT 1) TO '/nonexistent/x'",
    "SELECT '2026-01-01'::TIMESTAMP_NS, 1::HUGEINT, 'a'::BLOB, uuid()",
    "EXPLAIN SELECT 1",
    "SELECT CAST('x' AS INT)",
    "VALUES (1), ('a')",
    "SELECT * FROM aggregates WHERE date = 'x'",
    "BEGIN; SELECT 1",
    "SET memory_limit='1KB'; SELECT count(*) FROM range(100000)",
]
FORMS: list[list[str]] = [
    ["sql", "QUERY"],
    ["sql", "--json", "QUERY"],
    ["sql", "--csv", "QUERY"],
    ["sql", "--parquet", "ODD", "QUERY"],
    ["sql", "--rows", "ODD", "SELECT 1"],
    ["sql", "--data", "ODD", "SELECT 1 FROM aggregates"],
    ["sql", "--lake", "ODD", "SELECT 1 FROM aggregates"],
    ["deadletters", "list", "--since", "ODD"],
    ["deadletters", "show", "--limit", "ODD"],
    ["deadletters", "list", "--device", "ODD", "--reason", "ODD"],
    ["deadletters", "retry", "--dry-run", "--set", "ODD"],
    ["deadletters", "retry", "--url", "ODD"],
    ["rules", "show", "ODD"],
    ["tokens", "create", "--name", "ODD", "--scope", "read", "--device", "ODD"],
    ["tokens", "create", "--name", "x", "--scope", "ODD", "--rate", "ODD", "--expires", "ODD"],
    ["tokens", "create", "--name", "x", "--scope", "read", "--file", "ODD"],
    ["tokens", "revoke", "ODD"],
    ["rules", "set", "ODD"],
    ["rules", "check", "ODD"],
    ["rules", "diff", "ODD", "ODD"],
    ["rules", "rollback", "ODD"],
    ["books", "--data", "ODD"],
    ["check", "--data", "ODD"],
    ["alerts", "--data", "ODD"],
    ["replay", "ODD", "--url", "URL", "--wait", "1"],
    ["replay", "--start", "ODD", "x.csv"],
    ["simulate", "--OPTION", "ODD", "--url", "URL", "--for", "1s", "--wait", "1"],
    ["simulate", "--url", "ODD", "--for", "1s", "--wait", "1"],
    ["up", "--window", "0s"],
    ["up", "--window", "1.5s"],
    ["up", "--window", "301s"],
    ["up", "--workers", "0"],
    ["up", "--port", "65536"],
    ["up", "--port", "x"],
    ["up", "--simulate", "'"],
    ["up", "--without", "x"],
    ["up", "--for", "x"],
    ["up", "--data", "/proc/x"],
    ["up", "--data", "/dev/null"],
    ["worker", "--data"],
    ["ODD"],
    ["ODD", "ODD"],
    [],
    ["ingest", "--fd", "ODD"],
    ["notify", "ODD"],
    ["maintain", "--ODD"],
]
OPTIONS = [
    "seed",
    "sites",
    "devices",
    "interfaces",
    "interval",
    "rate",
    "speed",
    "fault-every",
    "late",
    "repeated",
    "malformed",
    "truth",
    "form",
    "body-events",
    "concurrency",
    "deadline",
]
TIMEOUT_SECONDS = 60


class Commands:
    """Each is a process of its own, over the Redis and the lake of the ground."""

    name = "commands"
    threads = 1

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def arguments(self, seed: int, number: int) -> list[str]:
        rng = rng_of(seed, self.name, number)
        return [self._filled(rng, word) for word in rng.choice(FORMS)]

    def _filled(self, rng: random.Random, word: str) -> str:
        odd = rng.choice(ODD)
        filled = word.replace("ODD", odd).replace("QUERY", rng.choice(QUERIES)).replace("OPTION", rng.choice(OPTIONS))
        return filled.replace("URL", "http://127.0.0.1:9").replace("\0", "\\0")

    def show(self, seed: int, number: int) -> tuple[str, bytes]:
        arguments = self.arguments(seed, number)
        return " ".join(arguments[:2])[:60], repr(arguments).encode(errors="surrogateescape")

    def attempt(self, seed: int, number: int) -> Verdict:
        stack = self._ground.stack
        root = str(Path(__file__).parents[2])
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pipeline", *self.arguments(seed, number)],
                env=stack.environment | {"PYTHONPATH": root},
                cwd=stack.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return Verdict("hangs", f"no end within {TIMEOUT_SECONDS} s")
        said = done.stderr.decode(errors="replace")
        answer = f"exit {done.returncode}"
        if "Traceback" in said or "panicked" in said or done.returncode not in (0, 1, 2):
            return Verdict(answer, said[-500:])
        if done.returncode and not said.strip() and b"{" not in done.stdout:  # `books` says in JSON that they don't balance
            return Verdict(answer, "it says nothing")
        if done.returncode == 2 and said.splitlines()[-1][:1] in ("", " "):
            return Verdict(answer, f"the last line is {said.splitlines()[-1][:300]!r}")
        return Verdict(answer)

    def finish(self) -> list[str]:
        return []
