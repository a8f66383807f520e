"""The door of the disk: files of the lake cut, zeroed, gone or replaced, under commands and under a worker."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import redis

from pipeline.core.partitions import partition_of
from pipeline.stores.codec import EVENTS_ARROW, encode
from pipeline.stores.connection import stream_key
from pipeline.stores.lake import Lake
from pipeline.stores.tables import TABLES
from tests.fuzz.door import Verdict, rng_of
from tests.fuzz.ground import Ground

COMMANDS = [
    ["check"],
    ["books"],
    ["sql", "SELECT count(*) FROM aggregates"],
    ["sql", "SELECT count(*) FROM dead_letters"],
    ["sql", "FROM devices"],
    ["deadletters", "list"],
    ["worker"],
    ["worker"],
]
WORKER_SECONDS = 25


class Damage:
    """One file (or folder) of a lake made unusable, and made good again."""

    def __init__(self, path: Path, kind: str, rng: random.Random) -> None:
        self.path, self.kind = path, kind
        self._kept = path.parent / f".kept-{path.name}"
        self._rng = rng

    def do(self) -> None:
        self.path.rename(self._kept)
        if self.kind == "gone":
            return
        if self.kind == "other":  # a file where a folder is, and the reverse
            self.path.write_text("x") if self._kept.is_dir() else self.path.mkdir()
            return
        content = self._kept.read_bytes() if self._kept.is_file() else b""
        new = {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "zeroed": bytes(len(content)),
            "garbage": self._rng.randbytes(max(16, len(content))),
            "json": b'{"add": {"path": 5}}\n',
            "bent": bytes(byte ^ (self._rng.random() < 0.01) for byte in content),
        }
        self.path.write_bytes(new[self.kind])

    def undo(self) -> None:
        if self.path.is_dir():
            shutil.rmtree(self.path)
        self.path.unlink(missing_ok=True)
        self._kept.rename(self.path)


class Lakes:
    """Copies of one small lake, each damaged in one place."""

    name = "lake"
    threads = 1

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._root = ground.stack.folder / "lakes"
        self._template = self._root / "template"
        self._made = False

    def _make(self) -> None:
        """A lake with rows in every table, several log entries and a checkpoint."""
        stack = self._ground.stack
        now = int(time.time() * 1000) - 3_600_000
        for step in range(4):
            stack.post(
                [
                    {"device": "disk-1", "metric": "cpu_pct", "value": 99, "timestamp": now + step * 60_000},
                    {"device": "disk-1", "value": step},
                ]
            )
            time.sleep(1.2)
        stack.post([{"device": "disk-1", "metric": "cpu_pct", "value": 1, "timestamp": now - 600_000}])
        time.sleep(2)
        shutil.copytree(stack.folder / "data", self._template)
        lake = Lake(str(self._template / "lake"))
        for table in TABLES:
            lake.checkpoint(table)
        self._made = True

    def _choices(self, seed: int, number: int) -> tuple[random.Random, list[str], str, str, bool]:
        rng = rng_of(seed, self.name, number)
        command = rng.choice(COMMANDS)
        place = rng.choice(["parquet", "parquet", "log", "log", "checkpoint", "last", "logs", "table", "catalog", "lake"])
        kinds = {
            "logs": ["gone", "other"],
            "table": ["gone", "other"],
            "lake": ["gone", "other"],
            "log": ["empty", "cut", "zeroed", "garbage", "json", "bent", "gone"],
        }
        kind = rng.choice(kinds.get(place, ["empty", "cut", "zeroed", "garbage", "bent", "gone", "other"]))
        return rng, command, place, kind, rng.random() < 0.5

    def show(self, seed: int, number: int) -> tuple[str, bytes]:
        _, command, place, kind, running = self._choices(seed, number)
        told = f"{place} {kind}, {command[0]}{' running' if running and command == ['worker'] else ''}"
        return told, f"{told}: {command}".encode()

    def attempt(self, seed: int, number: int) -> Verdict:
        if not self._made:
            self._make()
        rng, command, place, kind, running = self._choices(seed, number)
        data = self._root / f"case-{number}"
        shutil.copytree(self._template, data)
        try:
            found = self._target(rng, data, place)
            if found is None:
                return Verdict("nothing there")
            damage = Damage(found, kind, rng)
            if command == ["worker"]:
                return self._under_worker(data, damage, running)
            damage.do()
            return self._under_command(data, command, place)
        finally:
            shutil.rmtree(data, ignore_errors=True)

    @staticmethod
    def _target(rng: random.Random, data: Path, place: str) -> Path | None:
        table = data / "lake" / rng.choice(TABLES)
        whole = {"logs": table / "_delta_log", "table": table, "catalog": data / "catalog.duckdb", "lake": data / "lake"}
        if place in whole:
            return whole[place] if whole[place].exists() else None
        patterns = {
            "parquet": "*/*.parquet",
            "log": "_delta_log/*.json",
            "checkpoint": "_delta_log/*.checkpoint.parquet",
            "last": "_delta_log/_last_checkpoint",
        }
        files = sorted(path for path in table.glob(patterns[place]) if place != "parquet" or path.parent.name != "_delta_log")
        return rng.choice(files) if files else None

    def _environment(self, data: Path) -> dict[str, str]:
        url = f"{self._ground.stack.settings.redis_url}/1"
        root = str(Path(__file__).parents[2])
        return self._ground.stack.environment | {
            "PIPELINE_REDIS_URL": url,
            "PIPELINE_DATA_DIR": str(data),
            "PYTHONPATH": root,
            "PIPELINE_LEASE_MS": "600",
        }

    def _under_command(self, data: Path, command: list[str], place: str) -> Verdict:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *command],
            env=self._environment(data),
            cwd=self._root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
        said = done.stderr.decode(errors="replace")
        answer = f"exit {done.returncode}"
        if "Traceback" in said or "panicked" in said or done.returncode not in (0, 1, 2):
            return Verdict(answer, said[-600:])
        if done.returncode and (len(said.strip().splitlines()) != 1 or not said.startswith("telemetry")):
            return Verdict(answer, f"not one line: {said[:500]!r}") if done.stdout[:1] != b"{" else Verdict(answer)
        if done.returncode and not any(name in said for name in (*TABLES, "lake", "catalog", str(data))):
            return Verdict(answer, f"it does not say where: {said[:400]!r}")
        return Verdict(answer)

    @contextlib.contextmanager
    def _worker(self, data: Path) -> Iterator[tuple[subprocess.Popen, Callable[[], str]]]:
        log = data.parent / f"{data.name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "worker"],
                env=self._environment(data),
                cwd=self._root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
            try:
                yield process, lambda: log.read_text(errors="replace")
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()

    def _under_worker(self, data: Path, damage: Damage, running: bool) -> Verdict:
        """Damaged before its start, or while it works: it ends with one line, or goes on trying, and works once all is good again."""
        client = redis.Redis.from_url(f"{self._ground.stack.settings.redis_url}/1")
        client.flushdb()
        if not running:
            damage.do()
        with self._worker(data) as (process, said):
            if running:
                if not _within(WORKER_SECONDS, lambda: "holding" in said() or process.poll() is not None):
                    return Verdict("never ready", f"a worker over a good lake does not begin: {said()[-300:]}")
                damage.do()
                self._write(client)
            _within(4, lambda: process.poll() is not None)
            if process.poll() is not None:
                return self._ended(process.returncode, said())
            damage.undo()
            if not running:
                _within(WORKER_SECONDS, lambda: "holding" in said() or process.poll() is not None)
                if process.poll() is not None:
                    return self._ended(process.returncode, said())
                self._write(client)
            taken = _within(WORKER_SECONDS, lambda: self._committed(data) or process.poll() is not None)
            if process.poll() is not None:
                return self._ended(process.returncode, said())
            if "Traceback" in said() or "panicked" in said():
                return Verdict("traceback", said()[-600:])
            return Verdict("recovered") if taken else Verdict("stuck", f"nothing is committed after all is good again: {said()[-600:]}")

    @staticmethod
    def _ended(code: int, said: str) -> Verdict:
        lines = [line for line in said.splitlines() if line.startswith("telemetry: ")]
        wrong = "" if code == 2 and len(lines) == 1 and "Traceback" not in said else f"the worker ended with {code}: {said[-700:]}"
        return Verdict(f"exit {code}", wrong)

    def _write(self, client: redis.Redis) -> None:
        """Two events of one device, the second of which closes the window of the first."""
        device = "after-damage"
        names = [pa.array([text] * 2).dictionary_encode() for text in (device, "", "cpu_pct", "")]
        now = int(time.time() * 1_000_000)
        rest = [pa.array([0, 0], pa.uint8()), pa.array([1.0, 2.0]), pa.nulls(2, pa.uint64()), pa.array([now - 60_000_000, now], pa.int64())]
        partition = partition_of(device, self._ground.stack.settings.partitions)
        client.xadd(
            stream_key(partition), {"e": encode(pa.RecordBatch.from_arrays([*names, *rest], schema=EVENTS_ARROW)), "n": 2, "x": b"", "m": 0}
        )

    @staticmethod
    def _committed(data: Path) -> bool:
        log = data / "lake" / "aggregates" / "_delta_log"
        found = sorted(log.glob("*.json"))
        recent = [path.parent.parent / line for path in found[-5:] for line in _added(path)]
        return any("after-damage" in str(_devices(path)) for path in recent if path.exists())

    def finish(self) -> list[str]:
        return []


def _added(log: Path) -> list[str]:
    lines = [json.loads(line) for line in log.read_text(errors="replace").splitlines() if line.startswith("{")]
    return [line["add"]["path"] for line in lines if "add" in line]


def _devices(path: Path) -> list[str]:
    return pq.read_table(path, columns=["device"])["device"].to_pylist()


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.1)
    return False
