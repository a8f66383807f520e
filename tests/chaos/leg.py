"""One leg: a pipeline is set up, fired at while clients send, left in peace until it has worked everything off, and judged."""

from __future__ import annotations

import contextlib
import queue
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.stores.alertlog import AlertReader
from tests.chaos import faults, schedule, traffic
from tests.chaos.arena import Arena
from tests.chaos.clients import Clients
from tests.chaos.objectstore import ObjectStore
from tests.chaos.profiles import PROFILES
from tests.chaos.schedule import Fault, Leg
from tests.chaos.sweep import Sweeper
from tests.chaos.verdict import Finding, Table, Verdict, judge, near
from tests.harness import eventually

DISK_BYTES = 256 * 1024**2
QUIET_SECONDS = 18  # of a leg: start, the last commits, the verdict
DRAIN_SECONDS = 90
PATIENCE_SECONDS = 30


@dataclass
class Result:
    """What one leg came to."""

    leg: Leg
    landed: Counter = field(default_factory=Counter)
    missed: Counter = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)  # kind -> why it missed, the last time
    impossible: dict[str, str] = field(default_factory=dict)  # kind -> why this machine cannot do it
    verdict: Verdict = field(default_factory=Verdict)
    met: Counter = field(default_factory=Counter)
    bodies: int = 0
    kept: Path | None = None  # logs and lake of a leg that failed
    context: dict[str, list[str]] = field(default_factory=dict)  # a finding's text -> what was going on


def run(leg: Leg, folder: Path, obstacles: dict[str, str], tell: Callable[[str], None]) -> Result:
    """Run it. `obstacles`: of "disk" and "clocks", why they are not possible here. What is wrong is in the result."""
    profile = PROFILES[leg.profile]
    result = Result(leg)
    for kind in profile.kinds:
        part = "disk" if kind == "disk full" else "clocks" if kind.startswith("clock") else None
        if part in obstacles:
            result.impossible[kind] = obstacles[part]
    deck = [kind for kind in profile.deck() if kind not in result.impossible]
    plan = schedule.faults(leg.seed, max(5.0, leg.seconds - QUIET_SECONDS), deck)
    with contextlib.ExitStack() as stack:
        folder.mkdir(parents=True)
        (folder / "logs").mkdir()
        settings, store, lake = {}, None, folder / "data" / "lake"
        if profile.lake == "s3":
            store = stack.enter_context(ObjectStore(folder / "logs", leg.seed))
            settings = {"PIPELINE_LAKE_URL": store.location, **store.environment()}
        elif profile.lake == "tmpfs" and "disk" not in obstacles:
            disk = stack.enter_context(_disk(folder / "disk"))
            lake = disk / "lake"
            settings = {"PIPELINE_LAKE_URL": str(lake)}
        arena = stack.enter_context(Arena(folder, profile.fsync, clocks="clocks" not in obstacles, store=store, **settings))
        sweeper = Sweeper(lake)
        if store is None:
            sweeper.start()
            stack.callback(sweeper.stop)
        _Drive(arena, leg, plan, result, tell).go(Table(arena.settings.lake, store.environment() if store else None))
        if result.verdict.findings and store is None and lake.parent != folder / "data":
            shutil.copytree(lake, folder / "data" / "lake", dirs_exist_ok=True)
    if result.verdict.findings:
        result.kept = folder
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return result


@contextlib.contextmanager
def _disk(folder: Path):
    """A file system of its own, that can be filled."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


class _Drive:
    """The course of a leg."""

    def __init__(self, arena: Arena, leg: Leg, plan: list[Fault], result: Result, tell: Callable[[str], None]) -> None:
        self._arena, self._leg, self._plan, self._result, self._tell = arena, leg, plan, result, tell
        self._happened: list[tuple[float, str]] = []
        self._lock = threading.Lock()
        self._why = ""  # it is not at rest yet
        self._books: dict[str, int | bool] = {}  # at the last look
        self._clients = Clients(leg.seed, arena.urls, arena.ledger, arena.clock)

    def go(self, table: Table) -> None:
        try:
            self._arena.begin()
        except (AssertionError, TimeoutError) as error:
            self._result.verdict.find("stuck", str(error))
        else:
            self._drive(table)
        verdict = self._result.verdict
        for ended in self._arena.unexpected:
            verdict.find("ended by itself", ended)
        self._result.landed.update(self._arena.ledger.manners)
        self._result.met, self._result.bodies = self._arena.ledger.met, len(self._arena.ledger.records)
        self._result.context = {f.text: near(f, sorted(self._happened), "{:.1f} s {}".format) for f in verdict.findings}

    def _drive(self, table: Table) -> None:
        verdict = self._result.verdict
        try:
            self._arena.aof.start()
            self._clients.start()
            self._fire()
            self._clients.stop(PATIENCE_SECONDS)
            self._clients.flush(PATIENCE_SECONDS)
            try:
                eventually(self._at_rest, DRAIN_SECONDS, "all that was accepted is committed")
            except AssertionError as error:
                raise TimeoutError(f"{error} ({self._why})") from None
            transitions = AlertReader.all_transitions(self._arena.client, self._arena.settings.partitions)
            books = self._books
            self._arena.end()
            seed, ledger = self._leg.seed, self._arena.ledger
            self._result.verdict = verdict = judge(
                seed, ledger, table, transitions, self._arena.settings.partitions, self._arena.losses
            )
            accounted = sum(books[part] for part in ("aggregated", "late", "repeated", "dead_lettered", "in_flight"))
            verdict.events["books_off"] = accounted - books["accepted"]
            if not books["balanced"] and not self._arena.losses:
                verdict.find("books", f"they do not balance: {books}")
        except (AssertionError, TimeoutError) as error:
            verdict.find("stuck", str(error))
        finally:
            self._clients.stop(0)  # also where the run was told to end: they would try for ever
            self._arena.aof.stop()

    def _fire(self) -> None:
        """Every fault at its time, each in a thread of its own: some last longer than the next is away."""
        began, ended, running = time.monotonic(), queue.SimpleQueue(), []
        for fault in self._plan:
            time.sleep(max(0.0, began + fault.at_seconds - time.monotonic()))
            thread = threading.Thread(target=self._one, args=(fault, ended), name=fault.kind)
            thread.start()
            running.append(thread)
        for thread in running:
            thread.join()
        while not ended.empty():
            raise ended.get()

    def _one(self, fault: Fault, ended: queue.SimpleQueue) -> None:
        began = self._arena.clock()
        with self._lock:
            self._happened.append((began, f"{fault.kind} begins"))
        try:
            told, landed = faults.run(self._arena, fault), True
        except faults.Missed as error:
            told, landed = str(error), False
        except Exception as error:
            ended.put(error)
            return
        with self._lock:
            self._happened.append((self._arena.clock(), f"{fault.kind} {'landed' if landed else 'missed'}: {told}"))
            if landed:
                self._result.landed[fault.kind] += 1
            else:
                self._result.missed[fault.kind] += 1
                self._result.reasons[fault.kind] = told
        sent = len(self._arena.ledger.records)
        self._tell(f"{self._arena.clock():7.1f} s  {'x' if landed else ' '} {fault.kind:<22} {told}   [{sent:,} bodies]")

    def _at_rest(self) -> bool:
        """Little is in flight, and nothing has moved since the look before: books that are taken meanwhile count a commit twice."""
        time.sleep(0.3)
        try:
            before, self._books = self._books, self._arena.books()
            self._why = str(self._books)
            few = len(traffic.devices(0)) * traffic.GANGS  # the events that closed all windows but theirs
            return self._books["in_flight"] <= few and self._books == before
        except Exception as error:  # Redis or the lake is still coming back
            self._why = f"{type(error).__name__}: {error}"
            return False


def failed(result: Result) -> bool:
    return bool(result.verdict.findings)


def lines_of(finding: Finding, result: Result) -> list[str]:
    """A finding, and what was going on about its time."""
    return [f"{finding.what}: {finding.text}", *(f"    {line}" for line in result.context.get(finding.text, [])[:14])]
