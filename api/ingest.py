"""Group commit: bodies wait a moment for each other, are built into entries together, and are answered once Redis has them.

One flusher takes all that waits; while one group is on its way to Redis the next is being built. Only one append is in
flight, so a device's events reach its stream in the order of arrival. A group that cannot be built is built again in halves,
so that a body which breaks whatever it meets is refused alone, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial
from hashlib import blake2b
from typing import NamedTuple, Protocol

from api import models
from api.admission import Gate
from api.decode import Body
from api.group import Built, Outcome, build
from api.models import Refusal
from api.poison import ENDING, told
from pipeline import metrics
from pipeline.core.validate import Limits
from pipeline.errors import PipelineError, Unavailable
from pipeline.settings import Settings
from pipeline.stores.streams import Group, Repeated

_log = logging.getLogger(__name__)

INLINE_EVENTS_MAX = 512  # a smaller group is built on the event loop: a change of threads would cost more
INLINE_BYTES_MAX = 1024**2  # of its bodies: few events may be large ones
ENTRY_EVENTS_WANTED = 1024  # per partition; an entry costs much the same whether it is small or not, here and where it is read
ENTRY_EVENTS_SMALL = 256  # per partition; a group of fewer waits as long as the last one took to be built
LINGER_SECONDS_MAX = 0.025  # of that wait
REPEATS_MAX = 8  # appends of one group that each found further keys repeated
WARN_INTERVAL_SECONDS = 5.0
STUCK_SECONDS = 60.0  # a flusher with work and no progress for so long is dead
KEY_CHARS_MAX = 256
_DIGEST_BYTES = 16


class Store(Protocol):
    """What ingest needs of Redis: pipeline.stores.streams.Appender, or its twin."""

    async def append(self, groups: Sequence[Group]) -> list[int | Repeated | Unavailable]: ...
    async def answer(self, key: bytes) -> bytes | None: ...
    async def store_answer(self, key: bytes, answer: bytes) -> None: ...
    async def ready(self) -> None: ...
    async def close(self) -> None: ...


class Answer(NamedTuple):
    """What is told of a body with an Idempotency-Key; a replay of the first answer to it takes no event."""

    told: bytes
    taken: int
    replay: bool


class _Waiting(NamedTuple):
    body: Body
    arrival_us: int
    key: bytes | None
    whole: bool
    done: asyncio.Future[Outcome]
    context: Context  # of its request


class Ingest:
    """The queue, its flusher, and the answers of repeated bodies."""

    def __init__(self, settings: Settings, store: Store, gate: Gate | None = None) -> None:
        self._settings = settings
        self._store = store
        self.gate = gate or Gate(settings.partitions, None)
        self._limits = Limits(
            name_chars_max=settings.name_chars_max,
            tags_max=settings.tags_max,
            dead_letter_chars_max=settings.dead_letter_chars_max,
            future_skew_max_us=round(settings.future_skew_max_seconds * 1_000_000),
            counter_metrics=tuple(settings.counter_metrics.items()),
        )
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()  # enough waits: lingering on would gain nothing
        self._enough = min(settings.group_events_max, ENTRY_EVENTS_WANTED * settings.partitions)
        self._few = ENTRY_EVENTS_SMALL * settings.partitions
        self._built_seconds = 0.0  # how long the last group took to be built
        self._queued = 0  # events that wait
        self._held = 0  # events that wait, are being built, or are on their way
        self._firsts: dict[bytes, tuple[bytes, asyncio.Future[bytes]]] = {}
        self._builder = ThreadPoolExecutor(1, "build")
        self._flusher: asyncio.Task[None] | None = None
        self._append: asyncio.Task[None] | None = None
        self._progress = time.monotonic()
        self._warned = -WARN_INTERVAL_SECONDS
        self._stopping = False
        metrics.QUEUE_EVENTS.set_function(lambda: self._held)
        metrics.show_reasons(metrics.EVENTS_REJECTED)

    async def start(self) -> None:
        self._flusher = asyncio.create_task(self._flush(), name="flusher")
        self._flusher.add_done_callback(self._ended)
        self.gate.start()

    async def stop(self) -> None:
        """Flush what waits, then end. Bounded by the caller."""
        self._stopping = True
        self._arrived.set()
        self._full.set()
        await self.gate.stop()
        if self._flusher is not None:
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(self._flusher, self._settings.ingest_stop_seconds)
        self._builder.shutdown(wait=False)

    def alive(self) -> bool:
        """Whether the flusher runs, and gets on where it has work."""
        running = self._flusher is not None and not self._flusher.done()
        return running and (not self._held or time.monotonic() - self._progress < STUCK_SECONDS)

    def waiting(self) -> int:
        """How many bodies wait to be taken into a group."""
        return len(self._waiting)

    # ---- admission -------------------------------------------------------------------------------------------------------------

    def admit(self, events: int) -> None:
        """The one place that decides whether a body may join the queue. Refusal: not now, and when to come again."""
        if self._stopping:
            raise Refusal(503, "stopping", "the service is stopping", retry_after_seconds=1)
        if self._flusher is None or self._flusher.done():
            raise Unavailable("the flusher does not run")
        if self._held + events > self._settings.ingest_queue_events_max:
            raise Refusal(429, "busy", f"{self._held} events wait to be stored already", retry_after_seconds=1)

    # ---- one body --------------------------------------------------------------------------------------------------------------

    def submit(self, body: Body, arrival_us: int, key: bytes | None = None, whole: bool = True) -> asyncio.Future[Outcome]:
        """Queue a body. The future ends when Redis has every row of it, or with a Refusal.

        `whole`: rather nothing of it than a part; else the outcome says what was not admitted.
        """
        events = body.events
        self.admit(events)
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if not self._held:
            self._progress = time.monotonic()
        self._waiting.append(_Waiting(body, arrival_us, key, whole, done, copy_context()))
        self._queued += events
        self._held += events
        self._arrived.set()
        if self._queued >= self._enough:
            self._full.set()
        return done

    async def once(self, key_text: str, payload: bytes, body: Body, arrival_us: int, whole: bool = True, owner: str = "") -> Answer:
        """The answer to a body with an Idempotency-Key, which may be a replay of the first one. Each owner has keys of its own."""
        if not 0 < len(key_text) <= KEY_CHARS_MAX:
            raise Refusal(400, "bad_idempotency_key", f"Idempotency-Key must have 1 to {KEY_CHARS_MAX} characters")
        key = blake2b(key_text.encode(), digest_size=_DIGEST_BYTES, person=owner.encode()).digest()
        digest = blake2b(payload, digest_size=_DIGEST_BYTES).digest()
        if (first := self._firsts.get(key)) is not None:
            _same(first[0], digest, key_text)
            return Answer(await asyncio.shield(first[1]), 0, replay=True)
        pending: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._firsts[key] = (digest, pending)
        try:
            stored = await self._store.answer(key)
            if stored is not None:
                _same(stored[:_DIGEST_BYTES], digest, key_text)
                pending.set_result(stored[_DIGEST_BYTES:])
                return Answer(stored[_DIGEST_BYTES:], 0, replay=True)
            outcome = await self.submit(body, arrival_us, key, whole)
            told = models.answer(*outcome)
            try:
                await self._store.store_answer(key, digest + told)
            except Unavailable as error:  # its rows are in, and their key with them: a retry adds nothing and is told the same
                self._warn(f"an answer could not be kept: {error}")
            pending.set_result(told)
            return Answer(told, outcome.taken, replay=False)
        except BaseException as error:
            known = isinstance(error, (Refusal, PipelineError))
            pending.set_exception(error if known else Refusal(503, "unavailable", "try again", retry_after_seconds=1))
            pending.exception()  # nobody may be waiting for it
            raise
        finally:
            del self._firsts[key]

    # ---- the flusher -----------------------------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        while True:
            if not self._waiting:
                if self._stopping:
                    break
                self._arrived.clear()
                await self._arrived.wait()
                continue
            if self._queued < self._enough:
                if self._append is not None:  # let the group grow rather than build a small one meanwhile
                    await self._append
                await self._linger()
            await self._process(self._take())
        if self._append is not None:
            await self._append

    async def _linger(self) -> None:
        """Let a group grow before it is built. Where building is slow, for the CPU is short, small groups wait for longer: fewer and
        larger ones cost less, and a machine that is at its limit comes away from it."""
        linger = self._settings.group_linger_ms / 1000
        await self._wait_full(linger)
        if linger and self._queued < self._few:
            await self._wait_full(min(self._built_seconds, LINGER_SECONDS_MAX) - linger)

    async def _wait_full(self, seconds: float) -> None:
        if seconds > 0 and not self._stopping and self._queued < self._enough:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), seconds)

    async def _process(self, group: list[_Waiting]) -> None:
        """Build a group and have it sent. Where that breaks, its halves, in their order: all but the body at fault get through."""
        try:
            built = await self._build(group)
        except ENDING:
            raise
        except BaseException as error:  # a panic in Polars is no Exception
            if len(group) == 1:
                self._finish(group, [group[0].context.run(told, error, "built")])
                return
            self._warn(f"a group of {len(group)} bodies could not be built ({type(error).__name__}); its halves are tried")
            middle = len(group) // 2
            await self._process(group[:middle])
            await self._process(group[middle:])
            return
        if self._append is not None:
            await self._append
        self._append = asyncio.create_task(self._send(group, built))

    def _ended(self, flusher: asyncio.Task[None]) -> None:
        """Where the flusher has died, hold nobody: `admit` refuses from now on, `alive` is False, and what waits is answered."""
        if not flusher.cancelled() and (error := flusher.exception()) is not None:
            _log.critical("the flusher has died", exc_info=error)
        group = list(self._waiting)
        self._waiting.clear()
        self._queued = 0
        self._finish(group, [Unavailable("the flusher does not run")] * len(group))

    def _take(self) -> list[_Waiting]:
        """All that waits, up to the bound of a group; at least one body."""
        group, events = [], 0
        while self._waiting and (not group or events + self._waiting[0].body.events <= self._settings.group_events_max):
            group.append(self._waiting.popleft())
            events += group[-1].body.events
        self._queued -= events
        if self._queued < self._enough:
            self._full.clear()
        return group

    async def _build(self, group: list[_Waiting]) -> tuple[Built, list[Group]]:
        def work() -> tuple[Built, list[Group]]:
            bodies, arrivals, keys = [each.body for each in group], [each.arrival_us for each in group], [each.key for each in group]
            leave_out = partial(self.gate.leave_out, whole=[each.whole for each in group])
            built = build(bodies, arrivals, keys, time.time_ns() // 1000, self._limits, self._settings.partitions, leave_out)
            return built, built.groups()

        began = time.monotonic()
        try:
            small = sum(each.body.size for each in group) <= INLINE_BYTES_MAX
            if small and sum(each.body.events for each in group) <= INLINE_EVENTS_MAX:
                return work()
            return await asyncio.get_running_loop().run_in_executor(self._builder, work)
        finally:
            self._built_seconds = time.monotonic() - began

    async def _send(self, group: list[_Waiting], made: tuple[Built, list[Group]]) -> None:
        built, entries = made
        results: list[Outcome | BaseException] = [Unavailable("the append broke off")] * len(group)
        try:
            metrics.GROUP_EVENTS.observe(sum(each.body.events for each in group))
            with metrics.APPEND_SECONDS.time():
                failed = await self._append_all(built, entries)
            metrics.count_reasons(metrics.EVENTS_REJECTED, built.reasons)
            if failed:
                metrics.APPEND_FAILURES.inc(len(failed))
                self._warn(f"{len(failed)} of {len(entries)} entries were not appended; the first: {next(iter(failed.values()))}")
            outcomes: list[Outcome | BaseException] = [_overloaded(each) or each for each in built.outcomes()]
            for partition, error in failed.items():
                for number in built.bodies(partition):
                    outcomes[number] = error
            results = outcomes
        except ENDING:
            raise
        except BaseException:
            _log.exception("a group of %d bodies could not be appended", len(group))
        finally:
            self._finish(group, results)

    async def _append_all(self, built: Built, entries: list[Group]) -> dict[int, Unavailable]:
        """Append every entry; what is in a partition already is left out. The partitions that could not take theirs."""
        failed: dict[int, Unavailable] = {}
        without: dict[int, set[bytes]] = {}
        for _ in range(REPEATS_MAX):
            if not entries:
                return failed
            results = await self._store.append(entries)
            again = []
            for entry, result in zip(entries, results, strict=True):
                if isinstance(result, Unavailable):
                    failed[entry.partition] = result
                elif isinstance(result, Repeated):
                    seen = without.setdefault(entry.partition, set())
                    seen.update(result.keys)
                    built.repeated(entry.partition, result.keys, result.left)
                    if (left := built.group(entry.partition, seen)) is not None:
                        again.append(left)
            entries = again
        return failed | {entry.partition: Unavailable(f"partition {entry.partition}: repeated keys again and again") for entry in entries}

    def _warn(self, line: str) -> None:
        """Say it, but not once per body: Redis may be away for long."""
        if time.monotonic() - self._warned >= WARN_INTERVAL_SECONDS:
            self._warned = time.monotonic()
            _log.warning(line)

    def _finish(self, group: list[_Waiting], results: Sequence[Outcome | BaseException]) -> None:
        self._progress = time.monotonic()
        metrics.EVENTS_ACCEPTED.inc(sum(result.accepted for result in results if isinstance(result, Outcome)))
        for each, result in zip(group, results, strict=True):
            self._held -= each.body.events
            if each.done.done():  # its request was cancelled
                continue
            if isinstance(result, BaseException):
                each.done.set_exception(result)
            else:
                each.done.set_result(result)


def _overloaded(outcome: Outcome) -> Refusal | None:
    """The answer to a body of which nothing was admitted."""
    if outcome.not_admitted is None or outcome.accepted or outcome.rejected:
        return None
    return Refusal(429, "overloaded", "more arrives than can be taken in: send it again later", max(1, round(outcome.wait_seconds)))


def _same(first: bytes, digest: bytes, key_text: str) -> None:
    if first != digest:
        raise Refusal(422, "idempotency_key_reused", f"Idempotency-Key {key_text[:80]!r} was used with another body")
