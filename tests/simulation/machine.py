"""Workers, their faults and time, as a state machine: hypothesis chooses what happens next, the end must be the oracle's.

What is real: the worker, its recovery, its commits, the core. What is in memory: the stores, whose contract the twins share
with the real ones. Rules do not change here: which version judges an event depends on when a worker looks, which no stream holds
(`rulechanges.py`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future

import polars as pl
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from pipeline.core.batch import State, step
from pipeline.core.rules import SEVERITIES
from pipeline.core.schema import SERIES_NAMES, split_entry_id
from pipeline.errors import Fenced, Unavailable
from pipeline.settings import Settings, load, semantics_of
from pipeline.stores.entries import to_batch
from pipeline.stores.rulebook import read_document
from pipeline.testing import (
    Crash,
    MemoryAlertLog,
    MemoryLake,
    MemoryLeases,
    MemoryRedis,
    MemoryReports,
    MemoryRulebook,
    MemoryStreams,
    MemoryTables,
    Wire,
)
from pipeline.worker import Stores, Worker
from tests.frames import payload_of
from tests.oracle import Oracle

S = 1_000_000
SETTINGS = load(
    partitions=2, window_seconds=10, disorder_seconds=4, idle_after_seconds=12, lateness_max_seconds=60, tick_interval_seconds=5,
    partition_series_max=5, device_series_max=3,
    open_rows_max=25, commit_interval_ms=1, lease_ms=3000, read_entries_max=3, backoff_max_seconds=0.001, step_rows_max=8,
)  # fmt: skip
SEMANTICS = semantics_of(SETTINGS)
RULES = """
rules:
  - {name: high, metric: x, upper: {warning: 5, critical: 7, clear: 3}, for: 2s}
  - {name: low, metric: "*", lower: {critical: 2}}
  - {name: mean, metric: "*", on: window, statistic: mean, upper: {warning: 4}}
"""
DEVICES = {"a": 0, "b": 0, "c": 1}  # device -> partition
METRICS = "xyzw"  # with them more series than a partition or a device may have
PROCESSES_MAX = 3
faults_seen: Counter[str] = Counter()  # over all schedules of this process


class _Later(Future):
    """A commit that is made when it is looked at for the nth time: so it may land after much else has happened."""

    def __init__(self, work: Callable, looks: int) -> None:
        super().__init__()
        self._work, self._looks = work, looks

    def done(self) -> bool:
        if not super().done():
            if self._looks <= 0:
                self.set_result(self._work())
            self._looks -= 1
        return super().done()


class _Committer(Executor):
    looks = 0  # of the next commit

    def submit(self, work: Callable, *arguments: object) -> Future:
        return _Later(lambda: work(*arguments), self.looks)


class Process:
    """One worker, with the wire to its stores."""

    def __init__(
        self, name: str, redis: MemoryRedis, tables: MemoryTables, clock: Callable[[], float], settings: Settings = SETTINGS
    ) -> None:
        self.wire, self.committer, self.frozen = Wire(), _Committer(), False
        wire = self.wire
        stores = Stores(
            MemoryStreams(redis, wire), MemoryLeases(redis, name, settings.lease_ms, wire), MemoryAlertLog(redis, wire),
            MemoryRulebook(redis, RULES, wire), MemoryLake(tables, wire), MemoryLake(tables, wire),
            MemoryReports(), list,
        )  # fmt: skip
        self.worker = Worker(settings, name, stores, clock, self.committer)


def payload_of_rows(rows: list[tuple[str, str, int, int]]) -> bytes:
    return payload_of([(device, metric, time * S, value) for device, metric, time, value in rows], bits=64)


class Machine(RuleBasedStateMachine):
    """Any events, any processes, any of their calls going wrong, any clock."""

    settings = SETTINGS

    @initialize()
    def begin(self) -> None:
        self._log_level = logging.getLogger("worker").level
        logging.getLogger("worker").setLevel(logging.CRITICAL)
        self.redis, self.tables, self.seconds = MemoryRedis(), MemoryTables(), 1000.0
        self.processes: list[Process] = []
        self.started = 0
        self.rows: dict[int, list] = {}  # entry id and partition -> rows
        self.join()
        self.work(0)

    def _pick(self, number: int) -> Process:
        return self.processes[number % len(self.processes)]

    def _now(self) -> int:
        return self.redis.now_ms // 1000

    def _run(self, process: Process, act: Callable[[], object]) -> None:
        """Let a process act; it may die of it."""
        try:
            act()
        except (Unavailable, Fenced):
            faults_seen["away"] += 1
        except Crash:
            faults_seen["crash"] += 1
            self.processes.remove(process)

    @rule(
        rows=st.lists(
            st.tuples(
                st.sampled_from("abc"), st.sampled_from(METRICS), st.sampled_from((0, 0, 1, 3, 6, 15, 30, 90, -20)), st.integers(1, 9)
            ),
            min_size=1, max_size=8,
        )
    )  # fmt: skip
    def send(self, rows: list) -> None:
        now = self._now()
        for partition in range(SETTINGS.partitions):
            mine = [(device, metric, now - behind, value) for device, metric, behind, value in rows if DEVICES[device] == partition]
            if mine and partition in self.redis.streams:
                self.rows[partition, self.redis.append(partition, payload_of_rows(mine), len(mine))] = mine

    @rule(seconds=st.sampled_from((1, 1, 2, 5, 15)))
    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.redis.now_ms += 1000
            self.seconds += 1
            for process in [each for each in self.processes if not each.frozen]:
                self._run(process, process.worker.renew)

    @rule(seconds=st.sampled_from((-20, -2, 30)))
    def clock_jumps(self, seconds: int) -> None:
        faults_seen["clock"] += 1
        self.redis.now_ms += seconds * 1000

    @precondition(lambda self: len(self.processes) < PROCESSES_MAX)
    @rule(after=st.integers(0, 4), how=st.sampled_from(("", "", "refused", "lost", "dies before", "dies after")))
    def join(self, after: int = 0, how: str = "") -> None:
        self.started += 1
        process = Process(f"w{self.started}", self.redis, self.tables, lambda: self.seconds, self.settings)
        self.processes.append(process)
        if how:
            process.wire.bend(after, how)
        self._run(process, process.worker.start)

    @rule(
        number=st.integers(0, 5), turns=st.integers(1, 3), looks=st.sampled_from((0, 0, 1, 3)), after=st.integers(0, 12),
        how=st.sampled_from(("", "", "", "refused", "lost", "dies before", "dies after")),
    )  # fmt: skip
    def work(self, number: int, turns: int = 1, looks: int = 0, after: int = 0, how: str = "") -> None:
        """Turns of one process, in which one of its calls may go wrong."""
        if not self.processes:
            self.join()
        process = self._pick(number)
        if process.frozen:  # it comes back, and does not know how long it was away
            faults_seen["zombie"] += 1
            process.frozen = False
        process.committer.looks = looks
        if how:
            faults_seen[how] += 1
            process.wire.bend(after, how)
        for _ in range(turns):
            if process in self.processes:
                self.seconds += 0.6
                self._run(process, process.worker.turn)

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 5), away=st.sampled_from((set(), {0}, {1})))
    def lose_touch(self, number: int, away: set[int]) -> None:
        """Of some partitions a process does not reach the Redis, as where one primary of a cluster is gone; of the others it does."""
        faults_seen["partition away"] += len(away)
        self._pick(number).wire.away = away

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 5), seconds=st.sampled_from((1, 4, 10)))
    def freeze(self, number: int, seconds: int) -> None:
        """One stands still, perhaps past its leases, while another goes on."""
        self._pick(number).frozen = True
        if all(process.frozen for process in self.processes):
            self.join()
        self.pass_time(seconds)
        for process in [each for each in self.processes if not each.frozen]:
            self._run(process, process.worker.turn)

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 5))
    def leave(self, number: int) -> None:
        process = self._pick(number)
        process.worker.stop()
        self._run(process, process.worker.leave)
        if process in self.processes:
            self.processes.remove(process)

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 5))
    def kill(self, number: int) -> None:
        faults_seen["kill"] += 1
        self.processes.remove(self._pick(number))

    def teardown(self) -> None:
        if not hasattr(self, "redis"):
            return
        try:
            self._end()
        finally:
            logging.getLogger("worker").setLevel(self._log_level)

    def _end(self) -> None:
        """All heal, zombies wake, one worker, new or of them, takes everything in; then it is held against the oracle."""
        for process in list(self.processes):
            process.wire.bend(-1, "")
            process.wire.away = set()
            self._run(process, process.worker.turn)
        del self.processes[self.started % 2 :]
        if not self.processes:
            self.join()
        for _ in range(3):  # it looks who is there; a lease later it takes what the dead had, however long their leases were
            self.work(0)
            self.pass_time(30)
        for device, partition in DEVICES.items():
            known = self._oracle(partition).series[device]  # another might be one too many
            rows = [(device, min(known, default="end"), self._now() + 500, 5)]
            self.rows[partition, self.redis.append(partition, payload_of_rows(rows), 1)] = rows
        for _ in range(400):
            self.work(0)
            if not any(number > stream.delivered for stream in self.redis.streams.values() for number in stream.entries):
                break
        self.work(0, 3)
        self.last = self.processes[0].worker._state
        self.leave(0)
        self._judge()

    def _judge(self) -> None:
        oracles = [self._oracle(partition) for partition in range(SETTINGS.partitions)]
        self._judge_rows(oracles)
        self._judge_alerts()
        self._judge_books(oracles)

    def _judge_rows(self, oracles: list[Oracle]) -> None:
        rows = self.tables.table("aggregates")
        expected = sorted((row for oracle in oracles for row in oracle.base), key=repr)
        base = [] if rows is None else rows.filter(~pl.col("revision")).select(
            pl.col("device", "metric").cast(pl.String), "window", "count", "repeated", "sum", "last", "increase", "newest", "arrived"
        ).rows()  # fmt: skip
        assert sorted(base, key=repr) == expected
        key = ["device", "metric", "window"]
        late = [] if rows is None else rows.filter("revision").group_by(key).agg(pl.col("count", "sum").sum()).rows()
        found = {(str(device), str(metric), window): [count, total] for device, metric, window, count, total in late}
        assert found == {key: value for oracle in oracles for key, value in oracle.revised.items()}

    def _judge_alerts(self) -> None:
        state, right = step(State(), to_batch(self._whole()), read_document(RULES, 1), SEMANTICS)
        anomalies = self.tables.table("anomalies")
        assert _texts(anomalies) == _texts(right.anomalies)
        raised = Counter(_transition(each) for of_partition in self.redis.transitions.values() for each in of_partition)
        assert raised == Counter(_transition(each) for each in _named(right.transitions, state))
        self._judge_standing(state)

    def _judge_standing(self, state: State) -> list[dict]:
        """The alerts that stand in Redis; they are those of this state."""
        stands = [each for _, alerts in self.redis.alerts.values() for each in alerts.to_dicts()]
        assert sorted(map(_alert, stands)) == sorted(map(_alert, state.active.join(state.series, on="series").to_dicts()))
        return stands

    def _judge_books(self, oracles: list[Oracle]) -> None:
        counts, accepted = MemoryLake(self.tables).counts(), sum(self.redis.accepted.values())
        open_rows = sum(len(held) for oracle in oracles for held in oracle.open.values())
        accounted = counts["aggregated"] + counts["late"] + counts["repeated"] + counts["dead_lettered"] + open_rows
        assert accepted == accounted == sum(map(len, self.rows.values())), (accepted, accounted, counts)
        assert counts["dead_lettered"] == sum(len(oracle.dead) for oracle in oracles)
        reasons = Counter(dead[0] for oracle in oracles for dead in oracle.dead)
        dead_letters = self.tables.table("dead_letters")
        assert reasons == Counter([] if dead_letters is None else dead_letters["reason"].to_list())
        faults_seen["series limit"] += reasons["series_limit"]
        waiting = sum(entry.event_count for partition in self._whole() for entry in MemoryStreams(self.redis).outstanding(partition))
        assert waiting == open_rows == len(DEVICES), "entries were left unsettled, or settled while their rows are open"

    def _whole(self) -> dict[int, list]:
        """Every entry that there ever was, by partition."""
        return {partition: entries for partition, entries in self.redis.appended.items() if entries}

    def _oracle(self, partition: int) -> Oracle:
        oracle = Oracle(SEMANTICS)
        for entry in self.redis.appended.get(partition, []):
            rows = self.rows.get((partition, entry.id), [])
            oracle.apply(split_entry_id(entry.id)[0] * 1000, [(device, metric, time * S, value) for device, metric, time, value in rows])
        return oracle


def _named(transitions: pl.DataFrame, state: State) -> list[dict]:
    named = transitions.join(state.series.select("series", *SERIES_NAMES), on="series", how="left")
    return named.with_columns(severity=(pl.col("severity") - 1).replace_strict(range(2), SEVERITIES)).to_dicts()


def _texts(frame: pl.DataFrame | None) -> list[str]:
    return [] if frame is None else sorted(map(repr, frame.rows()))


def _alert(each: dict) -> tuple:
    return tuple(str(each[name]) for name in ("rule", *SERIES_NAMES, "severity", "firing", "since", "bound"))


def _transition(each: dict) -> tuple:
    return tuple(str(each[name]) for name in ("rule", "device", "metric", "phase", "severity", "since", "time", "value"))
