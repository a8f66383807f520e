"""The faults: each is done to an arena, proves that it landed, and mends what it broke.

A fault is a function (arena, fault) -> what proves it; `Missed` says why there is no proof, and then it does not count.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import redis

from pipeline.errors import PipelineError
from tests.chaos import objectstore, profiles
from tests.chaos.arena import LEASE_MS, Arena
from tests.chaos.schedule import Fault

BARRIER_SECONDS = 15  # an armed barrier that nobody comes to by then is disarmed
CLOCK_SECONDS = (3, 7, 20, 60, 240)  # how far clocks jump, either way
REDIS_CLOCK_SECONDS = (2, 3, 5)  # a clock that goes back this far lengthens leases by as much
LEAVE_SECONDS = 30
JOIN_SECONDS = 30  # for a process to start, on a busy machine, and to get its share
BENT_SECONDS = 15  # the object store is bent until a request has met it, but no longer than this
FREE_BYTES_MAX = 16_384  # a disk with less is full


class Missed(Exception):
    """It did not land, and why."""


def run(arena: Arena, fault: Fault) -> str:
    """Do it; what proves that it landed. Missed: it did not."""
    kind, _, rest = fault.kind.partition(" ")
    try:
        if kind == "kill" and rest in _ROLE_OF:
            return _kill_at(arena, fault, rest)
        if kind == "clock":
            return _clock(arena, fault, rest.removeprefix("of "))
        if kind == "s3":
            return _bend(arena, fault, rest)
        return _KINDS[fault.kind](arena, fault)
    except (redis.RedisError, PipelineError) as error:
        raise Missed(f"Redis was away: {error}") from error


def wait(holds: Callable[[], object], seconds: float) -> object:
    """What `holds` returns as soon as that is something; Missed after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise Missed(f"nothing came within {seconds:g} s")
        time.sleep(0.02)
    return found


def choose(arena: Arena, fault: Fault) -> subprocess.Popen:
    """The victim among the workers: one that holds partitions, where Redis can tell."""
    alive = arena.alive()
    with contextlib.suppress(redis.RedisError, PipelineError):
        holders = arena.held_by_pid()
        alive = [worker for worker in alive if worker.pid in holders] or alive
    if not alive:
        raise Missed("no worker was up")
    return alive[fault.victim % len(alive)]


@contextlib.contextmanager
def alone(lock) -> Iterator[None]:
    """One fault of this part at a time."""
    if not lock.acquire(timeout=15):
        raise Missed("another fault held this part")
    try:
        yield
    finally:
        lock.release()


# At barriers

_ROLE_OF = {barrier: role for role, barriers in profiles.BARRIERS.items() for barrier in barriers}


def armed(
    arena: Arena, barrier: str, pid: int | None, bring_about: Callable[[], object] = lambda: None, seconds: float = BARRIER_SECONDS
) -> dict:
    """Arm a barrier, do what brings somebody to it, and wait for the marker of whoever came.

    One at a time, so that no marker proves two faults.
    """
    with alone(arena.barrier_busy[barrier]):
        return _armed(arena, barrier, pid, bring_about, seconds)


def _armed(arena: Arena, barrier: str, pid: int | None, bring_about: Callable[[], object], seconds: float) -> dict:
    landed = arena.control / "landed"
    before = set(landed.glob(f"{barrier}@*"))
    arm = arena.control / "arm" / f"{barrier}@{pid or 'any'}"
    arm.touch()

    def marker() -> Path | None:
        new = [path for path in landed.glob(f"{barrier}@*") if path not in before and path.suffix != ".draft"]
        return next((path for path in new if pid is None or path.name.startswith(f"{barrier}@{pid}-")), None)

    try:
        bring_about()
        return json.loads(wait(marker, seconds).read_text())
    finally:
        arm.unlink(missing_ok=True)


def _kill_at(arena: Arena, fault: Fault, barrier: str) -> str:
    """A role dies at a barrier: the marker was written by itself, and then it is gone by signal 9."""
    if barrier == "hand_over":
        return _kill_in_hand_over(arena, fault)
    if barrier == "after_recovery":  # somebody must lose partitions for somebody to take them
        victim = choose(arena, fault)
        with arena.doom(victim):
            victim.kill()
            victim.wait(5)
            found = armed(arena, barrier, None)
    elif _ROLE_OF[barrier] == "worker":
        found = armed(arena, barrier, choose(arena, fault).pid)
    else:
        found = armed(arena, barrier, None)
    if barrier == "in_compaction":
        found["commit"] = _compacted_since(arena, found.pop("version"))
    return _gone(barrier, found)


def _compacted_since(arena: Arena, version: int) -> str:
    """Whether the log of `aggregates` has a compaction after this version: the one that was cut short, as it has no successor yet."""
    # In a process of its own: reading the history lets no other thread of ours run, the proxy before the bucket among them.
    look = (
        "import sys; from deltalake import DeltaTable; commits = DeltaTable(sys.argv[1]).history(limit=20); "
        "print(any(each['operation'] == 'OPTIMIZE' and each['version'] > int(sys.argv[2]) for each in commits))"
    )
    environment = {**os.environ, **(arena.store.environment() if arena.store else {})}
    command = [sys.executable, "-c", look, f"{arena.settings.lake}/aggregates", str(version)]
    try:
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BARRIER_SECONDS).stdout.strip()
    except subprocess.TimeoutExpired:  # another fault keeps the store from us as well
        told = ""
    return {"True": "made", "False": "not made"}.get(told, "unknown")


def _kill_in_hand_over(arena: Arena, fault: Fault) -> str:
    """Of a worker that leaves, or of one that gives partitions to one that joins."""
    if fault.choice % 2:
        victim = choose(arena, fault)
        return _gone("hand_over", armed(arena, "hand_over", victim.pid, lambda: arena.terminate(victim), LEAVE_SECONDS))
    joined = arena.join()
    try:
        return _gone("hand_over", armed(arena, "hand_over", None, seconds=JOIN_SECONDS))
    except Missed:
        arena.terminate(joined)
        raise
    finally:
        arena.leave()


def _gone(barrier: str, found: dict) -> str:
    pid = found.pop("pid")
    wait(lambda: not _state(pid) or _state(pid) == "Z", 3)
    return f"pid {pid} died {barrier} ({', '.join(f'{k} {v}' for k, v in found.items())})"


def _state(pid: int) -> str | None:
    """The state of a process in /proc: T is stopped, Z dead; None: gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return None


def _lost_reply(arena: Arena, fault: Fault) -> str:
    found = armed(arena, "lost_reply", choose(arena, fault).pid)
    return f"pid {found['pid']} got an error for a commit that was made"


# Workers


def _kill_worker(arena: Arena, fault: Fault) -> str:
    victim = choose(arena, fault)
    with arena.doom(victim):
        victim.kill()
        if victim.wait(5) != -signal.SIGKILL:
            raise Missed("it ended by itself first")
    return f"pid {victim.pid} ended by signal 9"


def _freeze_worker(arena: Arena, fault: Fault) -> str:
    """Past its lease, so that others take its partitions; then it comes back as a zombie and is refused."""
    victim = choose(arena, fault)
    held = wait(lambda: len(found := arena.held_by_pid().get(victim.pid, [])) >= 2 and found, 5)
    with arena.doom(victim):
        said = victim.log.stat().st_size
        victim.send_signal(signal.SIGSTOP)
        try:
            wait(lambda: _state(victim.pid) == "T", 1)
            time.sleep(LEASE_MS / 1000 + fault.pause_seconds / 2)
        finally:
            victim.send_signal(signal.SIGCONT)

        def fenced() -> list[str]:
            with victim.log.open() as log:
                log.seek(said)
                return [line for line in log if "lost partitions" in line]

        lines = wait(fenced, BARRIER_SECONDS)
        if victim.poll() is not None:
            raise Missed("it ended meanwhile")
    return f"pid {victim.pid} slept in state T with {len(held)} partitions; then: {lines[0].strip().split(' WARNING ')[-1][:90]}"


def _worker_leaves(arena: Arena, fault: Fault) -> str:
    victim = choose(arena, fault)
    arena.terminate(victim)
    try:
        code = victim.wait(LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        raise Missed(f"it did not leave within {LEAVE_SECONDS} s") from None
    if code != 0:
        raise Missed(f"it ended with {code}")
    return f"pid {victim.pid} handed over and ended with 0"


def _worker_joins(arena: Arena, fault: Fault) -> str:
    """One worker more takes its share; then one of them leaves."""
    joined = arena.join()

    def share() -> list[int] | None:
        with contextlib.suppress(redis.RedisError, PipelineError):  # another fault may have Redis away for a moment
            return arena.held_by_pid().get(joined.pid)
        return None

    try:
        held = wait(share, JOIN_SECONDS)
    except BaseException:
        arena.terminate(joined)
        raise
    finally:
        arena.leave()
    _worker_leaves(arena, fault)
    return f"pid {joined.pid} came and held {len(held)} partitions"


# Redis


def _kill_redis(arena: Arena, fault: Fault) -> str:
    with alone(arena.redis_busy):
        syncing = arena.fsync == "everysec" and arena.client.info("persistence")["aof_pending_bio_fsync"] > 0
        arena.kill_redis()
        code = arena.redis.returncode
        if syncing:  # it writes nothing meanwhile, and answers all the same, for up to two seconds
            arena.losses.append(arena.clock())
        time.sleep(fault.pause_seconds / 4)
        arena.start_redis()
    if code != -signal.SIGKILL:
        raise Missed(f"Redis ended with {code}")
    return f"Redis ended by signal 9{' amid a sync of its file' * syncing}, was away for {fault.pause_seconds / 4:.1f} s"


def _full_redis(arena: Arena, fault: Fault) -> str:
    """Memory below what is used: writes that add are refused, the work that empties it goes on."""
    with alone(arena.redis_busy):
        before = arena.ledger.count("503")
        refused = _refused_writes(arena)
        arena.client.config_set("maxmemory", 1_000_000)
        try:
            time.sleep(fault.pause_seconds)
            refused = _refused_writes(arena) - refused
        finally:
            arena.client.config_set("maxmemory", 0)
    answers = arena.ledger.count("503") - before
    if refused <= 0 or answers <= 0:
        raise Missed(f"Redis refused {refused} writes, clients saw {answers} answers 503")
    return f"Redis refused {refused} writes, {answers} clients were told 503"


def _refused_writes(arena: Arena) -> int:
    return int(arena.client.info("errorstats").get("errorstat_OOM", {}).get("count", 0))


def _power_cut(arena: Arena, fault: Fault) -> str:
    """Redis dies, and what it wrote within the last second is gone from its file; its machine may come back with a clock that is behind."""
    behind = REDIS_CLOCK_SECONDS[fault.choice % len(REDIS_CLOCK_SECONDS)] * (fault.victim % 2)
    clock = arena.clocks["redis"]
    with alone(arena.redis_busy):
        arena.kill_redis()
        died = time.monotonic()
        arena.losses.append(arena.clock())
        lost = arena.aof.cut(died)
        clock.set(-behind)
        try:
            arena.start_redis()
            time.sleep(fault.pause_seconds if behind else 0)
        finally:
            clock.set(0)
    if not lost:
        raise Missed("nothing was written within the last second")
    return f"Redis lost the last {lost:,} bytes of its file" + (f", and came back {behind} s behind" if behind else "")


# The lake


def _fill_disk(arena: Arena, fault: Fault) -> str:
    """No byte is left for the tables for a while; commits fail, and are made later."""
    with alone(arena.lake_busy):
        said = {path: path.stat().st_size for path in (arena.folder / "logs").iterdir()}
        ballast = Path(arena.settings.lake).parent / "ballast"
        try:
            with ballast.open("ab", buffering=0) as file:
                free = os.statvfs(ballast)
                with contextlib.suppress(OSError):  # somebody wrote meanwhile
                    os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
                deadline = time.monotonic() + fault.pause_seconds
                while time.monotonic() < deadline:  # what others free is taken, too
                    _write_until_full(file)
                    time.sleep(0.02)
                free = os.statvfs(ballast)
        finally:
            ballast.unlink(missing_ok=True)
        failed = 0
        for path in (arena.folder / "logs").iterdir():
            with path.open(errors="replace") as log:
                log.seek(said.get(path, 0))
                failed += sum("No space left" in line or "os error 28" in line for line in log)
    full = free.f_bavail * free.f_frsize < FREE_BYTES_MAX
    if not full or not failed:
        raise Missed(f"the disk was {'' if full else 'not '}full, {failed} operations failed")
    return f"the disk was full for {fault.pause_seconds:.1f} s; {failed} log lines say so"


def _write_until_full(file: BinaryIO) -> None:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _bend(arena: Arena, fault: Fault, how: str) -> str:
    with alone(arena.lake_busy):
        before = arena.store.bent[how]
        arena.store.bend(how, delay_seconds=0.5 + fault.choice % 20 / 10)
        try:
            time.sleep(fault.pause_seconds)
            with contextlib.suppress(Missed):
                wait(lambda: arena.store.bent[how] > before, BENT_SECONDS)
        finally:
            arena.store.straighten()
        bent = arena.store.bent[how] - before
    if not bent:
        raise Missed("no request came by")
    words = {objectstore.ERRORS: "answered 500 or 503", objectstore.SLOW: "delayed", objectstore.CUT: "done and not answered"}
    return f"{bent} requests were {words[how]}"


# Clocks

_CLOCKS = {"workers": "worker", "APIs": "ingest", "housekeeping": "maintain", "Redis": "redis"}


def _clock(arena: Arena, fault: Fault, whose: str) -> str:
    """Forward or back, and after a while the other way."""
    clock = arena.clocks[_CLOCKS[whose]]
    steps = REDIS_CLOCK_SECONDS if whose == "Redis" else CLOCK_SECONDS
    offset = steps[fault.choice // 2 % len(steps)] * (1 if fault.choice % 2 else -1)
    with alone(arena.redis_busy if whose == "Redis" else arena.clock_busy):
        landed = arena.control / "landed"
        before = set(landed.glob("clock@*"))
        clock.set(offset)
        try:
            if whose == "Redis":
                wait(lambda: abs(arena.client.time()[0] - time.time() - offset) < 1.5, 4)
                seen = 1
            else:
                pids = {process.pid for process in arena.of_role(_CLOCKS[whose])}

                def jumped() -> int:
                    new = [path for path in landed.glob("clock@*") if path not in before and path.suffix != ".draft"]
                    return sum(int(path.name.removeprefix("clock@").split("-")[0]) in pids for path in new)

                seen = wait(jumped, 4)
            time.sleep(fault.pause_seconds)
        finally:
            clock.set(0)
            time.sleep(1.2)
    return f"{seen} clocks jumped by {offset:+d} s, and back"


_KINDS = {
    "kill worker": _kill_worker,
    "freeze worker": _freeze_worker,
    "worker leaves": _worker_leaves,
    "worker joins": _worker_joins,
    "kill redis": _kill_redis,
    "full redis": _full_redis,
    "power cut": _power_cut,
    "disk full": _fill_disk,
    "lost reply": _lost_reply,
}
