"""What became of every event: the tables of the lake against what the clients were told, one (series, window) after the other.

Nothing of the pipeline's own arithmetic is used: files are read as Parquet, and sums of values that are told apart say which
events a row holds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product

import polars as pl
from deltalake import DeltaTable

from pipeline.core.partitions import partition_of
from tests.chaos import traffic
from tests.chaos.ledger import ACCEPTED, REFUSED, UNKNOWN, Ledger, Record
from tests.chaos.traffic import Event

TIMES_MAX = 3  # an event is looked for in a row up to so many times
SHOWN_MAX = 12
SILENT_SECONDS = traffic.IDLE_AFTER_SECONDS - 10.0  # Redis' clock may have jumped in between
CUT_SECONDS = 2.0  # what was accepted within so long before a loss of Redis' memory may be gone, with `appendfsync everysec`


@dataclass
class Finding:
    """Something that must not be."""

    what: str  # lost, doubled, foreign, ...
    text: str
    at: float | None = None  # when its body was sent, by the arena's clock


@dataclass
class Verdict:
    """The figures of a leg, and what is wrong."""

    events: Counter = field(default_factory=Counter)  # accepted, refused, unknown, present_unknown, lost_in_cut, ...
    findings: list[Finding] = field(default_factory=list)
    _counts: Counter = field(default_factory=Counter)

    def find(self, what: str, text: str, at: float | None = None, count: int = 1) -> None:
        self._counts[what] += count
        if sum(finding.what == what for finding in self.findings) < SHOWN_MAX:
            self.findings.append(Finding(what, text, at))

    def wrong(self) -> dict[str, int]:
        return dict(self._counts)


class Table:
    """A table of the lake as it lies there."""

    def __init__(self, location: str, options: dict[str, str] | None) -> None:
        self._location, self._options = location, options

    def __call__(self, name: str, *columns: str) -> pl.DataFrame:
        files = DeltaTable(f"{self._location}/{name}", storage_options=self._options).file_uris()
        if not files:
            return pl.DataFrame(schema={column: pl.String() for column in columns})
        return pl.scan_parquet(files, storage_options=self._options, hive_partitioning=False).select(columns).collect()


def judge(seed: str, ledger: Ledger, table: Table, transitions: list[dict], partitions: int, losses: list[float]) -> Verdict:
    """Every event, anomaly and alert transition of a leg that has come to rest."""
    verdict = Verdict()
    exempt = _Exempt(losses)
    sent = [(record, traffic.body(seed, record.gang, record.number)) for record in ledger.records.values()]
    _judge_windows(verdict, sent, table, partitions, exempt)
    _judge_dead_letters(verdict, sent, table, exempt)
    _judge_anomalies(verdict, sent, table, partitions, exempt)
    _judge_alerts(verdict, seed, sent, transitions, partitions, exempt)
    return verdict


class _Exempt:
    """Which bodies a power cut, or a kill amid a sync, may have taken: those on their way, or answered, shortly before it."""

    def __init__(self, cuts: list[float]) -> None:
        self._cuts = cuts

    def __call__(self, record: Record) -> bool:
        over = record.answered if record.answered is not None else float("inf")
        return any(record.first_sent <= cut and over >= cut - CUT_SECONDS for cut in self._cuts)

    def any(self) -> bool:
        return bool(self._cuts)


def _judge_windows(verdict: Verdict, sent: list, table: Table, partitions: int, exempt: _Exempt) -> None:
    expected: dict[tuple[str, str, int], list[tuple[Event, Record]]] = defaultdict(list)
    for record, body in sent:
        verdict.events[record.outcome] += len(body.events)
        for event in body.events:
            expected[event.device, event.metric, event.window_ms].append((event, record))
    rows = table("aggregates", "device", "metric", "window_start", "count", "sum", "repeated", "revision")
    rows = rows.filter(pl.col("metric") != "flush")
    verdict.events["late"] = rows.filter("revision")["count"].sum() or 0
    verdict.events["rows"] = rows.height
    repeated = rows["repeated"].sum() or 0
    verdict.events["repeated"] = repeated
    if repeated and not exempt.any():
        verdict.find("doubled", f"{repeated} events met themselves in an open window", count=repeated)
    base_twice = rows.filter(~pl.col("revision")).group_by("device", "metric", "window_start").len().filter(pl.col("len") > 1)
    for row in base_twice.head(SHOWN_MAX).iter_rows(named=True):
        verdict.find("doubled", f"{row['len']} base rows for {row['device']} {row['metric']} {row['window_start']}")
    merged = rows.group_by("device", "metric", pl.col("window_start").dt.epoch("ms").alias("ms")).agg(pl.col("count", "sum").sum())
    found = {(device, metric, ms): (count, total) for device, metric, ms, count, total in merged.iter_rows()}
    for key in found.keys() - expected.keys():
        verdict.find("foreign", f"a row that nobody sent: {key} {found[key]}")
    for key, events in expected.items():
        count, total = found.get(key, (0, 0.0))
        for event, record, times in _who(events, count, int(total)):
            _judge_event(verdict, event, record, times, partitions, exempt)


def _who(events: list[tuple[Event, Record]], count: int, total: int) -> Iterable[tuple[Event, Record, int]]:
    """How often each event of a window is in its rows, as their count and sum tell; -1 for all where nothing explains them."""
    likely = [(event, record) for event, record in events if record.outcome == ACCEPTED]
    if count == len(likely) and total == sum(event.value for event, _ in likely):
        return [(event, record, int(record.outcome == ACCEPTED)) for event, record in events]
    for times in sorted(product(range(TIMES_MAX + 1), repeat=len(events)), key=sum):
        if sum(times) == count and sum(n * event.value for n, (event, _) in zip(times, events, strict=True)) == total:
            return [(event, record, n) for n, (event, record) in zip(times, events, strict=True)]
    return [(event, record, -1) for event, record in events]


def _judge_event(verdict: Verdict, event: Event, record: Record, times: int, partitions: int, exempt: _Exempt) -> None:
    if times < 0:
        verdict.find("wrong sum", _describe(event, record, partitions, "in a row whose count and sum no events explain"), record.first_sent)
    elif times > 1:
        if exempt(record):
            verdict.events["doubled_over_cut"] += 1
        else:
            verdict.find("doubled", _describe(event, record, partitions, f"{times} times in the lake"), record.first_sent)
    elif times == 1 and record.outcome == REFUSED:
        verdict.find("refused, and there", _describe(event, record, partitions, "refused, and in the lake"), record.first_sent)
    elif times == 0 and record.outcome == ACCEPTED:
        if exempt(record):
            verdict.events["lost_in_cut"] += 1
        else:
            verdict.find("lost", _describe(event, record, partitions, "accepted, and not in the lake"), record.first_sent)
    elif times == 1 and record.outcome == UNKNOWN:
        verdict.events["unknown_and_there"] += 1


def _describe(event: Event, record: Record, partitions: int, what: str) -> str:
    answered = "never" if record.answered is None else f"{record.answered:.2f} s"
    return (
        f"{event.device} {event.metric} at {event.time_ms} value {event.value}: {what}; "
        f"partition {partition_of(event.device, partitions)}, body {record.gang}-{record.number} "
        f"sent {record.first_sent:.2f} s, taken {answered}, attempts {', '.join(record.attempts)}"
    )


def _judge_dead_letters(verdict: Verdict, sent: list, table: Table, exempt: _Exempt) -> None:
    rows = table("dead_letters", "reason", "event")
    told = Counter(rows["event"].to_list())
    for record, body in sent:
        for text in body.bad:
            times = sum(count for event, count in told.items() if event and f'"{text}"' in event)
            verdict.events["dead_letters"] += times
            if times != 1 and record.outcome == ACCEPTED and not exempt(record):
                verdict.find("dead letters", f"{text} is there {times} times as a dead letter", record.first_sent)
    if (strange := rows.filter(~pl.col("event").fill_null("").str.contains('"bad-'))).height:
        verdict.find("dead letters", f"{strange.height} that should not be: {strange.head(3).rows()}", count=strange.height)


def _judge_anomalies(verdict: Verdict, sent: list, table: Table, partitions: int, exempt: _Exempt) -> None:
    """Every event beyond the bound is one anomaly, and there is no other."""
    rows = table("anomalies", "device", "metric", "value")
    times = Counter(zip(rows["device"], rows["metric"], map(int, rows["value"]), strict=True))
    verdict.events["anomalies"] = rows.height
    for record, body in sent:
        for event in body.events:
            found = times.pop((event.device, event.metric, event.value), 0)
            hot = event.metric == "heat" and event.value > 0
            least = 1 if hot and record.outcome == ACCEPTED else 0
            most = 1 if hot and record.outcome != REFUSED else 0
            if not least <= found <= most and not exempt(record):
                what = "anomaly lost" if found < least else "anomaly doubled"
                verdict.find(what, _describe(event, record, partitions, f"{found} times an anomaly"), record.first_sent)
    if times:
        verdict.find("foreign", f"anomalies of nothing that was sent: {list(times)[:3]}", count=len(times))


def _judge_alerts(verdict: Verdict, seed: str, sent: list, transitions: list[dict], partitions: int, exempt: _Exempt) -> None:
    """No transition twice, firing and resolved in turn; and of gangs that are orderly, exactly those that their events make."""
    verdict.events["transitions"] = len(transitions)
    by_device: dict[str, list[dict]] = defaultdict(list)
    for transition in transitions:
        by_device[transition["device"]].append(transition)
    if exempt.any():  # a cut may take transitions, or the knowledge of them, of this second along
        return
    for device, mine in by_device.items():
        seen = Counter((t["phase"], t["time"]) for t in mine)
        for (phase, time), count in seen.items():
            if count > 1:
                verdict.find("transition doubled", f"{device} {phase} at {time}: {count} times")
        phases = [t["phase"] for t in mine]
        if any(phase != ("firing", "resolved")[n % 2] for n, phase in enumerate(phases)):
            verdict.find("transition order", f"{device}: {' '.join(phases[:20])}")
    heats: dict[str, list[tuple[Event, Record]]] = defaultdict(list)
    for record, body in sorted(sent, key=lambda pair: (pair[0].gang, pair[0].number)):
        if traffic.orderly(body.gang):
            for event in body.events:
                if event.metric == "heat":
                    heats[event.device].append((event, record))
    for device, events in heats.items():
        _compare_transitions(verdict, device, events, by_device.get(device, []), partitions)


def _compare_transitions(verdict: Verdict, device: str, events: list, found: list[dict], partitions: int) -> None:
    wanted, fires, before = {}, False, None
    for event, record in events:
        # A device that had to wait for so long is silent, and its open window closes: what comes after may be late.
        silent = before is not None and record.answered is not None and record.answered - before > SILENT_SECONDS
        before = record.answered
        if record.outcome != ACCEPTED or silent:  # from here on nobody knows
            found = [t for t in found if t["time"] < event.time_ms * 1000]
            break
        if fires != (event.value > 0):
            fires = not fires
            wanted["firing" if fires else "resolved", event.time_ms * 1000] = (event, record)
    there = {(t["phase"], t["time"]) for t in found}
    for key in wanted.keys() - there:
        event, record = wanted[key]
        verdict.find("transition lost", _describe(event, record, partitions, f"no {key[0]} was raised"), record.first_sent)
    for phase, time in there - wanted.keys():
        verdict.find("transition foreign", f"{device} {phase} at {time}: nothing that was sent makes it")


def near(finding: Finding, happened: Iterable[tuple[float, str]], describe: Callable[[float, str], str]) -> list[str]:
    """What was going on about the time of a finding."""
    if finding.at is None:
        return []
    return [describe(at, what) for at, what in happened if finding.at - 4 <= at <= finding.at + 8]
