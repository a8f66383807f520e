"""`telemetry up`: all roles on one machine, as processes of their own, started again when they die.

The API's socket is bound here and handed to its process, so that the port stays when the API is started again.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import polars as pl

from api.app import bind
from api.tls import tls_of
from pipeline import logs, ops
from pipeline.alerttexts import counted
from pipeline.books import balance
from pipeline.core.tokens import INGEST
from pipeline.errors import Invalid, PipelineError
from pipeline.settings import Settings, semantics_of
from pipeline.stops import on_signal
from pipeline.stores.alertlog import AlertReader
from pipeline.stores.catalog import write_catalog
from pipeline.stores.connection import connect, parse_id, stream_key, translated
from pipeline.stores.embedded import EmbeddedRedis
from pipeline.stores.lake import Lake
from pipeline.stores.tokenbook import Tokenbook
from pipeline.tokens import ensure_token

TARGETS = "metrics-targets.json"  # in the data folder: where each role answers, as Prometheus' file_sd_configs reads it
STOP_ORDER = ("simulator", "ingest", "worker", "notifier", "maintenance")
MEASURED = ("worker", "maintenance", "notifier")  # on a metrics port of their own; the API on its own
PORT_MAX = 65_535
NO_PROXY = {"NO_PROXY": "*", "no_proxy": "*"}  # the simulator talks to this machine alone
STOP_SECONDS = 40  # a role that does not end by then, or this long after its own patience is over, is killed
STOP_GRACE_SECONDS = 10
RESTART_SECONDS_MAX = 10.0
NEVER = float("inf")
DRAIN_SECONDS = 30
REPORT_SECONDS = 5
READY_ANSWER_SECONDS = 0.5
READY_SECONDS_MAX = 60.0  # a role that is not by then does not keep `--for` from ending


@dataclass
class Process:
    """One role's process, and when it may be started again."""

    role: str
    command: list[str]
    environment: dict[str, str]
    descriptors: tuple[int, ...] = ()
    metrics: socket.socket | None = None  # bound here, so that its port stays when the process is started again
    readyz: str = ""  # where it says whether it is ready, if anywhere
    process: subprocess.Popen | None = None
    failures: int = 0
    started_at: float = 0.0
    retry_at: float = 0.0
    last_line: str = ""
    readers: list[threading.Thread] = field(default_factory=list)


class Supervisor:
    """Starts the roles, prints what they say, restarts what dies, stops all in order."""

    def __init__(
        self, settings: Settings, *, without: set[str], workers: int, simulate: list[str], as_json: bool, duration_seconds: float | None
    ) -> None:
        self._settings = settings
        self._without = without
        self._workers = workers
        self._simulate = simulate
        self._as_json = as_json
        self._duration = duration_seconds
        patience = max(settings.shutdown_timeout_seconds, settings.ingest_stop_seconds)
        self._stop_seconds = max(STOP_SECONDS, patience + STOP_GRACE_SECONDS)
        self._data = Path(settings.data_dir)
        self._truth = self._data / "truth.ndjson"
        self._stopping = threading.Event()
        self._processes: list[Process] = []
        self._redis: EmbeddedRedis | None = None
        self._lock = None
        self._out = sys.stderr if as_json else sys.stdout
        self._printing = threading.Lock()

    def say(self, role: str, text: str, level: str = "info") -> None:
        """One line, with the time and the role that says it; as JSON, an object that a role wrote as it is.

        Where it cannot be written, on a full disk, there is a line less: a role whose lines nobody takes would stand still.
        Where whoever read them is gone, all is stopped.
        """
        if self._settings.log_format == "text":
            told = f"{datetime.now(UTC):%H:%M:%S} {role:<11} {text}"
        else:
            told = text if text.startswith('{"time": ') else logs.line(role, text, level)
        with self._printing:
            try:
                print(told, file=self._out, flush=True)
            except BrokenPipeError:
                logs.let_go(self._out)
                self._stopping.set()
            except OSError:
                pass

    def run(self) -> int:
        """Run until SIGINT, SIGTERM or the duration; the exit code. Invalid: what stands in the way, and the remedy."""
        self._lock_data()
        tls_of(self._settings)  # what is wrong with it is said here, once
        listener = bind(self._settings) if "ingest" not in self._without else None
        try:
            on_signal(self._stopping.set)
            self._start_redis()
            Lake(self._settings.lake).create(semantics_of(self._settings), self._settings.partitions)
            write_catalog(self._data / "catalog.duckdb")
            port = listener.getsockname()[1] if listener else self._settings.api_port
            self._truth.unlink(missing_ok=True)
            before = self._books()
            self._declare(listener.fileno() if listener else None, port)
            self._banner(port)
            for process in self._processes:
                self._start(process)
            self._watch()
            code = self._finish(before)
        finally:
            self._stop_all()
            for taken in (listener, *(process.metrics for process in self._processes)):
                if taken:
                    taken.close()
            if self._redis:
                self._redis.stop()
        return code

    # Start

    def _lock_data(self) -> None:
        try:
            self._data.mkdir(parents=True, exist_ok=True)
            self._lock = (self._data / ".lock").open("a+")
        except OSError as error:
            raise Invalid(f"cannot write to {self._data} ({error.strerror}): choose another --data, or mend its permissions") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Invalid(f"another `telemetry up` runs on {self._data}: stop it, or choose another --data") from None

    def _start_redis(self) -> None:
        if self._settings.redis_url:
            return
        self._redis = EmbeddedRedis(self._data / "redis", self._settings.embedded_memory_max_mb, self._settings.embedded_fsync)
        self._redis.start(self._stopping.is_set)
        self._settings = self._settings.model_copy(update={"redis_url": self._redis.url})

    def _declare(self, descriptor: int | None, port: int) -> None:
        settings = self._settings
        inherited = dict(os.environ)
        token = {name: inherited.pop(name) for name in ("PIPELINE_TOKEN",) if name in inherited}  # for the simulator alone
        environment = {**inherited, "PIPELINE_REDIS_URL": settings.redis_url or "", "PIPELINE_PARENT_PID": str(os.getpid())}
        for name in ("data_dir", "lake_url", "window_seconds", "disorder_seconds", "idle_after_seconds", "tick_interval_seconds",
                     "lateness_max_seconds", "partitions", "log_format"):  # fmt: skip
            if (value := getattr(settings, name)) is not None:
                environment[f"PIPELINE_{name.upper()}"] = str(value)
        telemetry = [sys.executable, "-m", "pipeline"]
        url = f"{self._scheme}://{host_of(settings.api_host)}:{port}"
        colour = ["--colour"] if self._out.isatty() else []
        declared = [
            *(Process("worker", [*telemetry, "worker"], environment) for _ in range(self._workers)),
            Process("maintenance", [*telemetry, "maintain"], environment),
            Process("notifier", [*telemetry, "notify", *colour], environment),
        ]
        if descriptor is not None:
            declared.append(Process("ingest", [*telemetry, "ingest", "--fd", str(descriptor)], environment, (descriptor,)))
        simulate = [*telemetry, "simulate", "--url", url, "--truth", str(self._truth), "--json"]
        if settings.auth_required and not {"ingest", "simulator"} & self._without:
            held = self._data / "simulator.token"
            ensure_token(Tokenbook(connect(settings.redis_url, settings.redis_timeout_seconds)), held, "simulator", INGEST)
            simulate += ["--token-file", str(held)]
        simulate += self._simulate
        declared.append(Process("simulator", simulate, environment | token | NO_PROXY))
        self._processes = [process for process in declared if process.role not in self._without]
        self._listen(port)

    def _listen(self, api_port: int) -> None:
        """A metrics port for each role: those from PIPELINE_METRICS_PORT on, or any that are free; and the file that tells which."""
        settings, targets = self._settings, []
        roles = sum(process.role in MEASURED for process in self._processes)
        if settings.metrics_port and settings.metrics_port + roles - 1 > PORT_MAX:
            named = f"PIPELINE_METRICS_PORT={settings.metrics_port}"
            raise Invalid(f"{named}: {roles} roles have a port each from there on: must be at most {PORT_MAX + 1 - roles}")
        for process in self._processes:
            if process.role in MEASURED:
                number = len([each for each in self._processes if each.metrics])
                listener = ops.listener_of(settings, settings.metrics_port + number if settings.metrics_port else 0)
                process.metrics, descriptor = listener, listener.fileno()
                address = f"{host_of(settings.metrics_host)}:{listener.getsockname()[1]}"
                process.readyz = f"http://{address}/readyz"
                process.descriptors += (descriptor,)
                process.command += ["--metrics-fd", str(descriptor)]
                targets.append({"targets": [address], "labels": {"role": process.role}})
            elif process.role == "ingest":
                address = f"{host_of(settings.api_host)}:{api_port}"
                process.readyz = f"{self._scheme}://{address}/readyz"
                scheme = {} if self._scheme == "http" else {"__scheme__": self._scheme}
                targets.append({"targets": [address], "labels": {"role": "ingest", **scheme}})
        (self._data / TARGETS).write_text(json.dumps(targets, indent=2) + "\n")

    def _banner(self, port: int) -> None:
        url = f"{self._scheme}://{host_of(self._settings.api_host)}:{port}"
        python = Path(sys.executable).parent / "telemetry"
        command = f"{python.relative_to(Path.cwd())}" if python.is_relative_to(Path.cwd()) else "telemetry"
        data = "" if self._data == Path("data") else f" --data {self._data}"
        query = "SELECT device, metric, window_start, mean, max FROM aggregates ORDER BY window_start DESC LIMIT 20"
        self.say("up", f"data in {self._data}, {self._settings.window_seconds} s windows; Ctrl-C stops everything, a new start goes on")
        if "ingest" not in self._without:
            closed = self._settings.auth_required
            self.say("up", f"send events: POST {url}/v1/events" + ("" if closed else f"   (try it: {url}/docs)"))
            if closed:
                self.say("up", f"with a token: {command} tokens create{data} --name me --scope admin")
        self.say("up", f'query them:  {command} sql{data} "{query}"')
        self.say("up", f"alerts now:  {command} alerts{data}")
        self.say("up", f"see inside:  {command} doctor{data}   (metrics of each role: the addresses in {self._data / TARGETS})")

    @property
    def _scheme(self) -> str:
        return "http" if self._settings.tls_cert_file is None else "https"

    def _start(self, process: Process) -> None:
        process.process = subprocess.Popen(
            process.command, env=process.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", pass_fds=process.descriptors, start_new_session=True,
        )  # fmt: skip
        process.started_at = time.monotonic()
        process.readers = [
            threading.Thread(target=self._relay, args=(process, stream), daemon=True)
            for stream in (process.process.stdout, process.process.stderr)
        ]
        for reader in process.readers:
            reader.start()

    def _relay(self, process: Process, stream) -> None:
        summary_only = process.role == "simulator" and stream is process.process.stdout
        for line in stream:
            if not (line := line.rstrip()):
                continue
            if summary_only:
                process.last_line = line
            else:
                self.say(process.role, line)

    # Watch

    def _watch(self) -> None:
        began = reported = time.monotonic()
        lake, seen = Lake(self._settings.lake), {}
        starting = [process for process in self._processes if process.readyz]
        ends = None  # `--for` counts from when all are ready: a machine that starts slowly runs as long
        while not self._stopping.wait(0.1):
            now = time.monotonic()
            if self._duration is not None and ends is None:
                starting = [process for process in starting if not answers_ready(process)]
                if not starting or now - began > READY_SECONDS_MAX:
                    ends = now + self._duration
            if ends is not None and now >= ends:
                return
            self._restart_redis_if_dead()
            for process in self._processes:
                self._restart_if_dead(process, now)
            if now - reported >= REPORT_SECONDS:
                reported = now
                seen = self._report(lake, seen)

    def _restart_redis_if_dead(self) -> None:
        """The others wait for it, and go on by themselves."""
        if self._redis is None or self._redis.process is None or self._redis.process.poll() is None:
            return
        self.say("up", "the embedded Redis died; starting it again")
        try:
            self._redis.start(self._stopping.is_set)
        except PipelineError as error:
            self.say("up", f"{error}; trying again")
            self._stopping.wait(1)

    def _restart_if_dead(self, process: Process, now: float) -> None:
        if process.process is None:
            if now >= process.retry_at:
                self._start(process)
            return
        code = process.process.poll()
        if code is None:
            if now - process.started_at > 60:
                process.failures = 0
            return
        if code == 0 and process.role == "simulator":  # it was told how long to run
            if process.retry_at != NEVER:
                process.retry_at = NEVER
                self.say("up", "the simulator has ended by itself; all others go on")
            return
        delay = min(RESTART_SECONDS_MAX, 0.2 * 2 ** min(process.failures, 10))
        process.failures += 1
        named = {each.value for each in signal.Signals}
        reason = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name if -code in named else f'signal {-code}'}"
        self.say("up", f"{process.role} died ({reason}); starting it again in {delay:.1f} s", "warning")
        process.process, process.retry_at = None, now + delay

    def _report(self, lake: Lake, seen: dict) -> dict:
        """One line on what came into the tables since the last one, where anything did."""
        try:
            counts = lake.counts()
        except PipelineError as error:
            self.say("up", str(error))
            return seen
        if seen and counts["windows"] > seen["windows"]:
            more = {name: counts[name] - seen[name] for name in counts}
            extra = [f"{more[name]:,} {name.replace('_', '-')}" for name in ("late", "repeated", "dead_lettered") if more[name]]
            extra += [counted(more["anomalies"], "anomaly")] if more["anomalies"] else []
            said = f"{counted(more['windows'], 'window')} closed over {counted(more['aggregated'], 'event')}"
            self.say("lake", f"{said}; {', '.join(extra)}" if extra else said)
        return counts

    # Stop

    def _finish(self, before: dict) -> int:
        """Stop in order, take stock, and say how it ended."""
        first = "" if "simulator" in self._without else "the simulator first, then "
        self.say("up", f"stopping: {first}what was sent is taken in and committed")
        self._stop_role("simulator")
        if self._duration is not None:
            self._drain()
        for role in STOP_ORDER[1:]:
            self._stop_role(role)
        summary = self._summary(before)
        if not summary["balanced"]:
            self.say("up", "THE BOOKS DO NOT BALANCE: " + json.dumps(summary), "error")
        elif self._duration is None:
            named = ("accepted", "aggregated", "late", "repeated", "dead_lettered")
            said = ", ".join(f"{summary[name]:,} {name.replace('_', '-')}" for name in named)
            if left := summary["in_flight_at_start"]:
                said = f"{left:,} in open windows at the start, {said}"
            self.say("up", f"the books balance: {said}, {summary['in_flight']:,} still in open windows, kept for the next start")
        else:
            self.say("up", json.dumps(summary))
        if self._as_json:
            print(json.dumps(summary), flush=True)
        return 0 if summary["balanced"] else 1

    def _summary(self, before: dict) -> dict:
        """What this run did, in events. `sent` is the simulator's own count: where more was sent than accepted, something got
        lost; others may have sent, too."""
        books = self._books()
        run = {name: books[name] - before[name] for name in books if name not in ("balanced", "in_flight")}
        run["in_flight"] = books["in_flight"]  # what the last run left in open windows is among it, or closed since
        said = next((process.last_line for process in self._processes if process.role == "simulator"), "")
        sent = json.loads(said)["sent"] if said.startswith("{") else run["accepted"]
        accounted = sum(run[name] for name in ("aggregated", "late", "repeated", "dead_lettered", "in_flight"))
        return {
            "sent": sent,
            "in_flight_at_start": before["in_flight"],
            **{name: run[name] for name in ("accepted", "aggregated", "late", "repeated", "dead_lettered", "in_flight")},
            **{name: run[name] for name in ("windows", "anomalies")},
            "faults": self._faults(),
            "balanced": books["balanced"] and sent <= run["accepted"] and run["accepted"] + before["in_flight"] == accounted,
        }

    def _drain(self) -> None:
        """Wait until the workers have read all that is there now; ticks go on coming. Unavailable: Redis is away."""
        client, deadline = connect(self._settings.redis_url, self._settings.redis_timeout_seconds), time.monotonic() + DRAIN_SECONDS
        with translated():
            newest = {key: client.xrevrange(key, count=1) for key in map(stream_key, range(self._settings.partitions))}
            unread = {key: parse_id(entries[0][0]) for key, entries in newest.items() if entries}
            while unread and time.monotonic() < deadline and not self._stopping.wait(0.1):
                read = {key: parse_id(client.xinfo_groups(key)[0]["last-delivered-id"]) for key in unread}
                unread = {key: last for key, last in unread.items() if read[key] < last}

    def _books(self) -> dict:
        settings = self._settings
        client = connect(settings.redis_url, settings.redis_timeout_seconds)
        return balance(client, Lake(settings.lake), semantics_of(settings), settings.partitions)

    def _faults(self) -> dict[str, int]:
        """Of the faults that the simulator put in, how many an alert found."""
        if "simulator" in self._without or not self._truth.exists():
            return {"injected": 0, "found": 0, "missed": 0}
        from simulator.truth import count_outcomes, match_faults, read_truth

        alerts = AlertReader.all_transitions(
            connect(self._settings.redis_url, self._settings.redis_timeout_seconds), self._settings.partitions
        )
        fired = [
            {**{name: row[name] for name in ("device", "interface", "metric", "rule", "severity")}, "fired_at": row["time"]}
            for row in alerts if row["phase"] == "firing"
        ]  # fmt: skip
        names = dict.fromkeys(("device", "interface", "metric", "rule", "severity"), pl.String())
        frame = pl.DataFrame(fired, schema={**names, "fired_at": pl.Int64()}).with_columns(
            pl.col("fired_at").cast(pl.Datetime("us", "UTC"))
        )
        return count_outcomes(match_faults(read_truth(self._truth), frame))

    def _stop_role(self, role: str) -> None:
        mine = [process for process in self._processes if process.role == role and process.process is not None]
        for process in mine:
            if process.process.poll() is None:
                process.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._stop_seconds
        for process in mine:
            try:
                process.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late = f"{role} did not stop within {self._stop_seconds:g} s"
                self.say("up", f"{late}; killing it (nothing is lost: the next start takes over)")
                process.process.kill()
                process.process.wait()
            for reader in process.readers:
                reader.join(2)
            process.process = None
            process.retry_at = NEVER

    def _stop_all(self) -> None:
        for role in STOP_ORDER:
            self._stop_role(role)


def host_of(listening: str) -> str:
    """The host to ask, in a URL, where something listens on this address."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(listening, f"[{listening}]" if ":" in listening else listening)


def answers_ready(process: Process) -> bool:
    """Whether it says so now; its certificate is not what is asked about, and no proxy is."""
    try:
        return httpx.get(process.readyz, timeout=READY_ANSWER_SECONDS, verify=False, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
