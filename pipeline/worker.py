"""The worker: lease -> read -> step -> raise alerts -> commit -> settle. It decides nothing about events; the core does.

One main loop reads and steps; one thread commits, so that a slow commit delays no alert; one renews the leases, as long
as the main loop moves. A partition whose lease turns out to be another's is dropped with all that was made of it: the
fence in Redis and the `txn` of the lake have kept it from doing harm.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import polars as pl
from apscheduler.schedulers.background import BackgroundScheduler

from pipeline import metrics, names, watch
from pipeline.commits import COMMIT_ORDER, HAND_OVER_SECONDS, Holding, Snapshot, commit, raise_alerts, unanswered
from pipeline.core.assignment import plan
from pipeline.core.batch import Output, State
from pipeline.core.recovery import Stand
from pipeline.core.rules import SEVERITIES
from pipeline.core.schema import SERIES_NAMES, of_series
from pipeline.errors import Fenced, PipelineError, Restarted, Unavailable
from pipeline.health import COMMIT_PATIENCE_SECONDS, Health
from pipeline.isolation import step_safely
from pipeline.rulekeeper import RuleKeeper
from pipeline.settings import Settings, backoff_seconds, semantics_of
from pipeline.stores.connection import process_name
from pipeline.stores.entries import portions
from pipeline.stores.streams import Entry, Settlement, history
from pipeline.takeover import Taken, take_over
from pipeline.workerstores import Stores, connected

log = logging.getLogger("worker")


class Worker:
    """One worker process. `run` returns when `stop` was called and everything is handed over.

    `run` is `start`, `turn` again and again, and `leave`; who calls these instead, with a clock and stores of his own,
    decides what happens when.
    """

    def __init__(
        self,
        settings: Settings,
        name: str | None = None,
        stores: Stores | None = None,
        clock: Callable[[], float] = time.monotonic,
        committer: Executor | None = None,
    ) -> None:
        self.name = name or process_name()
        self._settings = settings
        self._semantics = semantics_of(settings)
        self._stores = stores or connected(settings, self.name)
        self._streams, self._leases, self._alertlog = self._stores.streams, self._stores.leases, self._stores.alertlog
        self._lake, self._reading_lake = self._stores.lake, self._stores.reading_lake
        self._clock = clock
        self._rulekeeper = RuleKeeper(self._stores.rulebook)
        self._state = State()
        self._held: dict[int, Holding] = {}
        self._made: dict[str, list[pl.DataFrame]] = {table: [] for table in COMMIT_ORDER}
        self._made_rows = 0
        self._alerted: pl.DataFrame | None = None  # the alerts that stand, as Redis has them; nothing is to be done until they are others
        self._lost: dict[int, tuple[int, str]] = {}  # partitions found fenced, by whichever thread: under which token, and why
        self._stopping = threading.Event()
        self.health = Health(settings.progress_timeout_seconds, clock)
        self._committer = committer or ThreadPoolExecutor(1, "commit")
        self._commit: Future | None = None
        self._committed_at = self._member_due = self._ticked_at = 0.0
        self._members = 1
        self._crowd = names.Crowd()
        self._entries_per_read = settings.read_entries_max
        self._failures = 0

    def stop(self) -> None:
        """Hand over and leave: settle what is done, release the leases, return from `run`."""
        self._stopping.set()

    def run(self) -> None:
        """Work until stopped. Invalid: settings, Redis or lake are such that no work is possible."""
        self.start()
        scheduler = BackgroundScheduler()
        scheduler.add_job(
            self._reload_rules, "interval", seconds=self._settings.rules_reload_seconds,
            coalesce=True, max_instances=1, misfire_grace_time=None,
        )  # fmt: skip
        scheduler.add_job(
            watch.Watch(self.name, self._stores, self._semantics, self._standing).look, "interval", seconds=watch.WATCH_SECONDS,
            coalesce=True, max_instances=1, misfire_grace_time=None,
        )  # fmt: skip
        scheduler.start()
        renewer = threading.Thread(target=self._renew, name="renew", daemon=True)
        renewer.start()
        try:
            while not self._stopping.is_set():
                self.health.moved()
                try:
                    busy = self.turn()
                    self._failures = 0
                    self.health.worked("reading")
                except Unavailable as error:
                    self._back_off(error)
                    continue
                if not busy:
                    until_due = max(0.0, self._member_due - self._clock())
                    self._stopping.wait(min(self._settings.poll_interval_ms / 1000, until_due))
            self.leave()
        finally:
            scheduler.shutdown(wait=False)
            self._committer.shutdown(wait=False, cancel_futures=True)

    # Start, membership, recovery

    def start(self) -> None:
        """Wait until Redis and the lake are there, agree with them, and have rules. Invalid: they are another's."""
        while not self._stopping.is_set():
            self.health.moved()
            try:
                for warning in self._stores.check():
                    log.warning(warning)
                self._streams.agree(self._settings.partitions)
                self._lake.create(self._semantics, self._settings.partitions)
                self._rulekeeper.load()  # without them all alerts that stand would be withdrawn
                self.health.worked("start")
                return
            except Unavailable as error:
                self._back_off(error)

    def _back_off(self, error: Unavailable) -> None:
        self._failures += 1
        self.health.failed("reading", error)
        if self._failures in (1, 10, 100):
            log.warning("%s; trying again", error)
        self._stopping.wait(backoff_seconds(self._failures, self._settings.backoff_max_seconds))

    def _standing(self) -> watch.Standing:
        return watch.Standing(list(self._held), self._state, self._made_rows, self._state.rules_version, self._committing_seconds())

    def _committing_seconds(self) -> float:
        """Since the commit began that is not done."""
        return 0.0 if self._commit is None or self._commit.done() else self._clock() - self._committed_at

    def _reload_rules(self) -> None:
        """Pick up a new version; the main loop swaps it in between two micro-batches."""
        try:
            self._streams.agree(self._settings.partitions)  # also in a Redis that lost its memory
            self._rulekeeper.load()
        except PipelineError as error:
            log.warning("rules stay at version %d: %s", self._rulekeeper.rules.version, error)

    def _renew(self) -> None:
        while not self._stopping.wait(self._settings.lease_ms / 4000):
            if self.health.why_not_alive() is None:
                self.renew()  # else the main loop stands still: let the leases go to somebody who works

    def renew(self) -> None:
        """Renew the leases of all that is held, and note what turns out to be another's."""
        leases = {partition: holding.token for partition, holding in list(self._held.items())}
        for partition, error in self._leases.renew(leases).items() if leases else ():
            if isinstance(error, Fenced):
                self._lost[partition] = (leases[partition], str(error))

    def _membership(self) -> None:
        """Take and give back partitions, so that each live worker holds its fair share."""
        now, lease = self._clock(), self._settings.lease_ms / 1000
        if now < self._member_due:
            return
        self._member_due = now + lease / 6
        members, holders = self._leases.heartbeat(), self._leases.tend(self._settings.partitions)
        if max(members.values()) > self._settings.lease_ms / 2 or not {None, *members}.issuperset(holders.values()):
            self._member_due = now + lease / 60  # somebody is likely dead: what it holds is taken as soon as it is free
        self._members = len(members)
        wanted = plan(self.name, list(members), holders)
        # A lease that says it is ours but that we do not hold is of an earlier process of this name: it expires.
        if give := [partition for partition in wanted.release if partition in self._held]:
            self._hand_over(give)
        tokens = {partition: token for partition in wanted.acquire if (token := self._leases.acquire(partition)) is not None}
        if tokens:
            # A partition that we believed to hold was free: its lease ran out, or Redis lost its memory. What was made
            # of it since belongs to an epoch that is over.
            self._drop(tokens, "the lease was gone")
            self._held.update({partition: Holding(token) for partition, token in tokens.items()})  # renewed from here on
            self._recover(tokens)

    def _recover(self, tokens: dict[int, int]) -> None:
        """Bring new partitions to where their last holder was, and put them to the rest of the state."""
        try:
            self._recover_all(tokens)
        except BaseException:
            self._drop([partition for partition in tokens if partition not in self._state.positions], "recovery failed")
            raise

    def _recover_all(self, tokens: dict[int, int]) -> None:
        began = self._clock()
        stood = {table: self._reading_lake.stands(table, tokens) for table in COMMIT_ORDER}
        last_rows = self._reading_lake.last_rows(tokens, self._semantics)
        pending: dict[int, list[Entry]] = {}
        for partition in tokens:
            self._held[partition].tables = {table: found[partition].position for table, found in stood.items()}
            try:  # of the tables `aggregates` first
                pending[partition] = self._reopen(partition, [stood[table][partition] for table in reversed(COMMIT_ORDER)])
            except Fenced as error:
                self._drop([partition], str(error))
        # Up to here it is known what was refused; most often that is before all of them, and nothing to be read.
        at = {p: [entry.id for entry in entries if entry.id <= stood["dead_letters"][p].position] for p, entries in pending.items()}
        refused = self._reading_lake.refused(at)
        taken = {}
        for partition, entries in pending.items():
            holding = self._held[partition]
            taken[partition] = Taken(holding.tables, holding.raised, holding.alerts, entries, last_rows[partition], refused[partition])
        recovered = take_over(taken, self._rulekeeper.rules, self._semantics, self._settings.step_rows_max, self._keep_taken)
        self._state = self._state.with_partition(recovered)
        seconds, held = self._clock() - began, sorted(self._held)
        metrics.RECOVERY_SECONDS.observe(seconds)
        told = {"partitions": sorted(tokens), "holding": held}
        log.info("took %d partitions in %.2f s; holding %s", len(tokens), seconds, ", ".join(map(str, held)), extra=told)

    def _reopen(self, partition: int, stands: list[Stand]) -> list[Entry]:
        """Open the stream of a partition that was taken; its pending entries."""
        holding = self._held[partition]
        position, accounted = holding.tables["aggregates"], 0
        if position >= 0 and not self._streams.exists(partition):
            accounted = self._reading_lake.accounted([partition])[partition]
            where = {"partitions": [partition]}
            log.warning("partition %d: Redis lost its stream; it goes on at the committed position %d", partition, position, extra=where)
        holding.raised, holding.alerts = self._alertlog.load(partition)
        newest = max(holding.raised, *holding.tables.values())
        self._open(partition, newest, stands, accounted)
        pending: list[Entry] = []
        for page in history(self._streams, partition, holding.token, newest, self._settings.read_entries_max):
            self.health.moved()
            pending += page
        holding.pending = [entry.id for entry in pending]
        return pending

    def _open(self, partition: int, newest: int, stands: list[Stand], accounted: int | None = None) -> None:
        """Open the stream, at a start or in a Redis that was started again: what was made of it may be ahead of what Redis knows."""
        holding = self._held[partition]
        self.health.moved()
        opened = self._streams.open(partition, holding.token, holding.tables["aggregates"], newest, stands, accounted)
        holding.incarnation, holding.opened = opened.incarnation, True
        if opened.moved:
            told = "partition %d: Redis forgot its last moments, and its clock is behind them; %d entries that came since were moved"
            log.warning(told, partition, opened.moved, extra={"partitions": [partition]})

    # The turn of the main loop

    def turn(self) -> bool:
        """One round: membership, read, step, alerts, commit. True: there was as much as could be read, go on at once."""
        self._drop_lost()
        self._tidy()
        self._membership()
        full = False
        if self._made_rows < self._settings.uncommitted_rows_max:
            entries, full = self._read()
            for portion in portions(entries, self._settings.step_rows_max):
                self.health.moved()
                self._state, output = step_safely(self._state, portion, self._rulekeeper.rules, self._semantics)
                self._keep(output, self._state)
        self._raise_alerts()
        if not unanswered(self._held):  # what comes to the lake before its alerts come to Redis is told by nobody who takes over
            self._commit_when_due()
        self._tick_when_due()
        return full

    def _tidy(self) -> None:
        """Let names go that nothing known has; not while a commit holds frames."""
        if self._commit is not None and self._commit.done():
            self._finish_commit()
        if self._commit is None and self._crowd.too_large(self._state.series):
            self._state = names.as_texts(self._state, self._made, self._held)
            self._state = names.as_names(self._state, self._made, self._held)

    def _read(self) -> tuple[dict[int, list[Entry]], bool]:
        """New entries of all partitions held, in one round trip; whether to ask for more at once."""
        failed = self._open_again()
        opened = {partition: holding for partition, holding in self._held.items() if holding.opened}
        tokens = {partition: holding.token for partition, holding in opened.items()}
        count = self._entries_per_read
        after = {partition: holding.reread_after for partition, holding in opened.items()}
        replies = self._streams.read(tokens, count, after) if opened else {}
        entries: dict[int, list[Entry]] = {}
        rows, full = 0, False
        for partition, reply in replies.items():
            holding = self._held[partition]
            if isinstance(reply, Fenced):
                self._lost[partition] = (holding.token, str(reply))
            elif isinstance(reply, Restarted):
                holding.opened, full = False, True
            elif isinstance(reply, PipelineError):
                failed = reply
                holding.reread_after = max(self._state.positions[partition], holding.pending[-1] if holding.pending else 0)
            elif reply:
                applied = sum(entry.id <= self._state.positions[partition] for entry in reply)
                if applied:  # a Redis that failed over may have forgotten what it delivered
                    told = "partition %d: %d entries were delivered again; they are applied already"
                    log.warning(told, partition, applied, extra={"partitions": [partition]})
                    holding.pending = sorted({*holding.pending, *(entry.id for entry in reply[:applied])})
                entries[partition] = reply[applied:]
                holding.pending += [entry.id for entry in reply[applied:]]
                rows += sum(entry.rows for entry in reply[applied:])
                if holding.reread_after is not None:
                    holding.reread_after = reply[-1].id
                if gone := sum(entry.lost for entry in reply):
                    told = "partition %d: %d entries were deleted from the stream before they were read"
                    log.error(told, partition, gone, extra={"partitions": [partition]})
            else:
                holding.reread_after = None
        full |= any(len(reply) == count for reply in entries.values())
        if rows:  # as many entries next time as make about one step's worth of rows
            each = rows / sum(map(len, entries.values()))
            fits = self._settings.step_rows_max / each / len(self._held)
            self._entries_per_read = max(1, min(self._settings.read_entries_max, 2 * self._entries_per_read, int(fits)))
        if failed is not None and not entries:
            raise failed
        return entries, full

    def _open_again(self) -> Unavailable | None:
        """Open streams whose Redis was started again; Unavailable where it was away, or did not say which incarnation they are in.

        Of these nothing is read: who read on would commit it as of the incarnation before, and it would be taken for unread.
        """
        failed = None
        for partition, holding in self._held.items():
            if not holding.opened:
                position = self._state.positions[partition]
                try:
                    self._open(partition, position, [Stand(position, holding.incarnation)])
                except Fenced as error:
                    self._lost[partition] = (holding.token, str(error))
                except Unavailable as error:
                    failed = error
        return failed

    def _keep(self, output: Output, state: State) -> None:
        """Gather rows to be committed, and transitions to be raised."""
        watch.count(output)
        for table in COMMIT_ORDER:
            rows = getattr(output, table)
            if rows.height:
                self._made[table].append(rows)
                self._made_rows += rows.height
        if output.transitions.height:
            named = of_series(output.transitions, state.series, *SERIES_NAMES).drop("series", "firing")
            severity = (pl.col("severity") - 1).replace_strict(range(2), SEVERITIES, return_dtype=pl.String)
            for row in named.with_columns(severity=severity, rules_version=state.rules_version).to_dicts():
                self._held[row["partition"]].transitions.append(row)

    def _keep_taken(self, output: Output, state: State) -> None:
        self.health.moved()
        self._keep(output, state)

    def _raise_alerts(self) -> None:
        active = self._state.active
        if active is self._alerted and not any(holding.has_news for holding in self._held.values()):
            return
        if raise_alerts(self._state, self._alertlog, self._held, self._lost):
            self._alerted = active

    def _tick_when_due(self) -> None:
        interval = self._settings.tick_interval_seconds
        if self._clock() - self._ticked_at < interval / 2:
            return
        self._ticked_at = self._clock()
        for partition, holding in self._held.items():
            try:
                self._streams.tick(partition, holding.token, int(interval * 1000))
            except Fenced as error:
                self._lost[partition] = (holding.token, str(error))

    # Commit and settle

    def _commit_when_due(self) -> None:
        """Hand what was made to the committer, one commit for all partitions; collect what the last one found."""
        if self._commit is not None:
            if not self._commit.done():
                return
            self._finish_commit()
        # With many writers each waits longer: a commit's time grows with the number of those beside it.
        interval = self._settings.commit_interval_ms / 1000 * max(1.0, self._members / 4)
        if self._clock() - self._committed_at < interval or not self._held or self._lost:
            return
        self._begin_commit()

    def _begin_commit(self) -> None:
        self._committed_at = self._clock()
        self._commit = self._committer.submit(self._commit_until_done, self._snapshot())

    def _finish_commit(self) -> None:
        """Take the result of a commit that is done: settle what it made durable."""
        future, self._commit = self._commit, None
        if future is not None and (snapshot := future.result()) is not None:
            self._settle(snapshot)

    def _snapshot(self) -> Snapshot:
        made, self._made = self._made, {table: [] for table in COMMIT_ORDER}
        self._made_rows = 0
        rows = {table: rows for table, rows in made.items() if rows}
        tokens = {partition: holding.token for partition, holding in self._held.items()}
        stands = {p: Stand(at, self._held[p].incarnation) for p, at in self._state.positions.items()}
        return Snapshot(rows, tokens, stands, self._state.open)

    def _commit_until_done(self, snapshot: Snapshot) -> Snapshot | None:
        """Commit a snapshot, however long the lake is away; None: given up at the stop.

        Partitions that turn out to be another's are left out of the snapshot that is returned.
        """
        failures = 0
        while True:
            try:
                commit(snapshot, self._lake, self._held, self._lost)
                self.health.worked("committing")
                return snapshot
            except Unavailable as error:
                failures += 1
                self.health.failed("committing", error, COMMIT_PATIENCE_SECONDS)
                if failures in (1, 10, 100):
                    log.warning("%s; trying again", error)
                if self._stopping.is_set() and failures >= 3:
                    log.warning("gave up a commit at the stop: the next holder makes it again")
                    # Nothing that comes after these rows may be committed without them.
                    self._lost.update({p: (token, "its commit was given up") for p, token in snapshot.tokens.items()})
                    return None
                self._stopping.wait(backoff_seconds(failures, self._settings.backoff_max_seconds))

    def _settle(self, snapshot: Snapshot) -> None:
        """Acknowledge and trim the entries all of whose windows are committed."""
        settlements, held, unsettled = {}, snapshot.still_held(self._held), snapshot.unsettled()
        for partition, (position, _) in snapshot.stands.items():
            holding, kept = held.get(partition), unsettled.get(partition, set())
            if partition in self._lost:  # rows of it were refused: what looks done in our state is not
                continue
            if holding is not None and (settled := [e for e in holding.pending if e <= position and e not in kept]):
                settlements[partition] = Settlement(holding.token, settled, min(kept, default=position + 1))
        failed = self._streams.settle(settlements) if settlements else {}
        for partition, error in failed.items():
            if isinstance(error, Fenced):
                self._lost[partition] = (settlements[partition].token, str(error))
        for partition in settlements.keys() - failed.keys():  # what failed is settled with the next commit
            holding, gone = self._held[partition], set(settlements[partition].entries)
            holding.pending = [entry for entry in holding.pending if entry not in gone]

    # Leaving

    def _drop_lost(self) -> None:
        """Forget what turned out to be another's; not what was taken again since, under a newer token."""
        lost = {partition: self._lost.pop(partition) for partition in list(self._lost)}  # in place: the committer adds to it
        over = {p: why for p, (token, why) in lost.items() if p in self._held and self._held[p].token == token}
        self._drop(over, "; ".join(sorted(set(over.values()))[:3]))

    def _drop(self, partitions: Iterable[int], why: str) -> None:
        """Forget partitions that are another's, with all that was made of them."""
        partitions = [p for p in partitions if p in self._held]
        if not partitions:
            return
        metrics.PARTITIONS_LOST.inc(len(partitions))
        log.warning("lost partitions %s: %s", ", ".join(map(str, partitions)), why, extra={"partitions": partitions})
        # It leaves out what is no longer held; let it end before the state changes.
        if self._commit is not None and not self._state.positions.keys().isdisjoint(partitions):
            for partition in partitions:
                self._held.pop(partition, None)
            self._wait_for_commit()
        for partition in partitions:
            self._held.pop(partition, None)
            self._state = self._state.without_partition(partition)
        others = ~pl.col("partition").is_in(partitions)
        self._made = {table: [rows.filter(others) for rows in frames] for table, frames in self._made.items()}
        self._made = {table: [rows for rows in frames if rows.height] for table, frames in self._made.items()}
        self._made_rows = sum(rows.height for frames in self._made.values() for rows in frames)

    def _wait_for_commit(self) -> bool:
        """Whether none is running any more; who stops waits for longer, the others have to read on."""
        stopping = self._stopping.is_set()
        until = self._clock() + self._settings.shutdown_timeout_seconds if stopping else self._committed_at + HAND_OVER_SECONDS
        while self._commit is not None and not self._commit.done() and self._clock() < until:
            self.health.moved()
            time.sleep(0.005)
        if self._commit is not None and self._commit.done():
            self._finish_commit()
        return self._commit is None

    def _hand_over(self, partitions: Iterable[int]) -> None:
        """Commit all there is, then release these: the next holder needs no replay but of open windows.

        Where the commit takes too long they are kept, and tried again; their leases run out if we stop.
        """
        self._raise_alerts()
        self._lost.update({p: (token, "nobody said whether its alerts were taken") for p, token in unanswered(self._held).items()})
        if not self._wait_for_commit():
            return
        self._drop_lost()  # also what that commit found fenced: nothing that was made of it since may be settled
        self._begin_commit()
        if not self._wait_for_commit():
            return
        for partition in partitions:
            holding = self._held.pop(partition, None)
            if holding is None:
                continue
            self._state = self._state.without_partition(partition)
            try:
                self._leases.release(partition, holding.token)
            except (Fenced, Unavailable) as error:
                log.warning("released nothing: %s", error)

    def leave(self) -> None:
        """Hand over all that is held, and say goodbye."""
        log.info("handing over %d partitions", len(self._held))
        try:
            self._drop_lost()
            self._hand_over(list(self._held))
            self._leases.heartbeat(leaving=True)
            self._stores.reports.remove(self.name)
        except Unavailable as error:
            log.warning("left without handing over: %s; the leases run out", error)
