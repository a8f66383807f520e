"""How much to admit, and of whom: a controller with hysteresis, and a bucket for each device. Signals and time come in.

Each partition is judged by itself, since its holder and its backlog are its own; the memory of Redis is everybody's.

    open     all is admitted
    fair     a target rate is shared out by max-min fairness: each device has as much as it wants up to a level that is the same
             for all, so that heavy ones wait first; priority metrics are admitted
    closed   only priority metrics are admitted; beyond the last bound of memory not even those. For a delay alone only where fair
             does not make the backlog shrink

The target follows what the workers are seen to read while they have a backlog, which is what they can; once the backlog is
gone it is raised until there is one again, or nobody has to wait. That, and not a low backlog alone, opens the partition: what
is being held back would come at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from pipeline.core.patterns import matches

OPEN, FAIR, CLOSED = "open", "fair", "closed"
STATES = (OPEN, FAIR, CLOSED)

TARGET_EVENTS_PER_SECOND_MIN = 10.0  # of a partition: nobody starves, and a recovery is seen
DRAINING, HOLDING = 0.75, 0.95  # of what the workers read: while the backlog must shrink, and while it may stay
URGENT = 0.7  # times both, where the delay is that of "closed"
CALM = 0.5  # of the threshold for "fair": below, the backlog is as good as gone
RESTED = 0.9  # of that for memory, which rests at what windows that are open need
WATCHED, WATCHED_SECONDS = 0.25, 0.5  # of it, or of lag: from here on it is noted who sends how much, to be known when it matters
REOPEN = 0.7  # of the threshold for "closed"
GROWTH_PER_SECOND = 0.3
BEHIND_SECONDS = 1.0  # an oldest entry of this age is no matter of when a worker last looked
FORESIGHT = 8.0  # for each second beyond that a backlog is believed so much further: at first a step may run, and nothing be known yet
RISE_SECONDS, AVERAGE_SECONDS = 2.0, 8.0  # the latter longer than a step of a worker takes
EBB_SECONDS = 4.0  # from then on it must be seen that state fair is enough, and the backlog shrinks
FLOOD = 1.25  # times the least that the backlog has been since: it is not
ABOVE = 1.75  # how far above what is read the target may grow
STEP_SECONDS_MAX = 2.0  # a controller that was away for longer does not make up for it
WAIT_SECONDS_MAX = 6.0  # told to a client, with what is added to part clients: below `calm_seconds`
SPREAD = 1.5  # up to how many times longer than needed a client is told to wait, so that they don't come back together
CLASSES = 4  # of rates, to each factor of two
ROOM = 1.5  # above the rate of light devices: theirs is not even, and looks lower while they wait
UNKNOWN_SHARE = 1 / 16  # of the target, for each device, while it is not known how many there are
LEVEL_GROWTH_PER_SECOND = 2.0  # a heavy device that was told to wait is not seen for a while, and has not gone
LEVEL_MAX = 1e12
NOT_YET = 1e18  # JSON knows no infinity


@dataclass(frozen=True)
class Threshold:
    """From where on a state is entered, whichever is reached first."""

    lag_seconds: float  # until what arrives is read
    backlog_events: float  # of a partition
    memory_share: float  # of Redis' limit
    commit_seconds: float  # since the oldest commit that is not done began


@dataclass(frozen=True)
class Limits:
    """The part of the rules document that is about admission."""

    fair: Threshold = Threshold(5, 1_000_000, 0.6, 20)
    closed: Threshold = Threshold(30, 5_000_000, 0.75, 120)
    memory_share_max: float = 0.9  # from here on not even priority metrics
    calm_seconds: float = 7.0  # in which nobody had to wait, before all is admitted again; longer than anybody is told to
    device_events_per_second_min: float = 1.0
    priority: tuple[str, ...] = ("*oper-status*", "*ifOperStatus*", "*bgp*")


@dataclass(frozen=True)
class Signals:
    """What is seen of a partition at a moment."""

    lag_seconds: float = 0.0  # age of the oldest unread entry
    backlog_events: float = 0.0
    memory_share: float = 0.0
    commit_seconds: float = 0.0
    read_events_per_second: float = 0.0

    @property
    def delay_seconds(self) -> float:
        """How old what arrives now will be when it is read: by the age of the oldest, or by the backlog where the holder is behind."""
        if self.lag_seconds < BEHIND_SECONDS or not self.read_events_per_second:
            return self.lag_seconds
        believed = self.lag_seconds + FORESIGHT * max(0.0, self.lag_seconds - BEHIND_SECONDS)
        return min(self.backlog_events / self.read_events_per_second, believed)


@dataclass(frozen=True)
class Demand:
    """What was offered to a partition lately: devices and their rates in classes, and what had to wait."""

    classes: Mapping[int, tuple[float, float]] = field(default_factory=dict)  # up to 2**(key / CLASSES) -> devices, their events per second
    priority_events_per_second: float = 0.0
    waiting_events_per_second: float = 0.0

    def plus(self, other: Demand) -> Demand:
        """Of two replicas."""
        classes = dict(self.classes)
        for step, (devices, rate) in other.classes.items():
            have = classes.get(step, (0.0, 0.0))
            classes[step] = (have[0] + devices, have[1] + rate)
        return Demand(
            classes,
            self.priority_events_per_second + other.priority_events_per_second,
            self.waiting_events_per_second + other.waiting_events_per_second,
        )


def demand_of(rates: Iterable[float], priority: float, waiting: float) -> Demand:
    """The demand of devices with these rates (events per second)."""
    classes: dict[int, tuple[float, float]] = {}
    for rate in rates:
        if rate > 0:
            step = math.ceil(CLASSES * math.log2(rate))
            devices, total = classes.get(step, (0.0, 0.0))
            classes[step] = (devices + 1, total + rate)
    return Demand(classes, priority, waiting)


@dataclass(frozen=True)
class Decision:
    """What holds for a partition until the next one. `level`: events per second of each device, in state fair."""

    state: str = OPEN
    reason: str = ""
    since: float = 0.0
    at: float = 0.0
    target: float = 0.0
    level: float = LEVEL_MAX
    calm_since: float | None = None
    shut: bool = False  # closed for priority metrics, too
    watched: bool = False  # open, but for how long: note who sends how much
    pressure: float = 0.0  # of the nearest signal; 1: state fair is due
    ebb: float = NOT_YET  # the least that the backlog has been in state fair

    @property
    def noted(self) -> bool:
        """Whether it matters who sends how much."""
        return self.state != OPEN or self.watched


def decide(before: Decision, signals: Signals, demand: Demand, limits: Limits, now: float) -> Decision:
    """The next decision. `now`, `at`, `since`: seconds on one clock that all who decide share."""
    fair, reason = _pressure(signals, limits.fair)
    closed, closing = _pressure(signals, limits.closed)
    elapsed = min(max(0.0, now - before.at), STEP_SECONDS_MAX)
    urgency = min(1.0, signals.delay_seconds / limits.closed.lag_seconds)
    calm = _calm(signals, limits.fair)
    target = _target(before, signals, fair, calm, urgency, elapsed)
    calm_since = None
    if closed >= 1 and before.state != CLOSED and _ebbs(before, signals, limits, now):
        state = FAIR
    elif closed >= 1 or (before.state == CLOSED and closed >= REOPEN):
        state, reason = CLOSED, closing
    elif fair >= 1:
        state = FAIR
    elif before.state == OPEN:
        watched = fair >= WATCHED or signals.lag_seconds >= WATCHED_SECONDS
        return Decision(OPEN, "", before.since, now, target, watched=watched, pressure=fair)
    else:
        state = FAIR
        if calm:
            reason = f"hardly a backlog any more; it opens once nobody has had to wait for {limits.calm_seconds:.0f} s"
        if calm and demand.waiting_events_per_second <= 0:
            calm_since = now if before.calm_since is None else min(before.calm_since, now)
            if now - calm_since >= limits.calm_seconds:
                return Decision(OPEN, "", now, now, target)
    since = before.since if state == before.state else now
    level = _level(target, signals, demand)
    if before.state == OPEN and not demand.classes:
        level = target * UNKNOWN_SHARE
    if before.state != OPEN:
        level = min(level, before.level * LEVEL_GROWTH_PER_SECOND**elapsed)
    level = max(limits.device_events_per_second_min, level)
    shut = signals.memory_share >= limits.memory_share_max
    settled = state == before.state == FAIR and now - since >= EBB_SECONDS
    ebb = min(before.ebb, signals.backlog_events) if settled else NOT_YET
    return Decision(state, reason, since, now, target, level, calm_since, shut, pressure=fair, ebb=ebb)


def _ebbs(before: Decision, signals: Signals, limits: Limits, now: float) -> bool:
    """Whether the delay alone is beyond its last bound, and state fair is about to end that, or too new to tell.

    Who is refused then would be read no earlier: to refuse all would make light devices wait for what a heavy one did.
    """
    if not signals.read_events_per_second or _pressure(replace(signals, lag_seconds=0.0), limits.closed)[0] >= 1:
        return False
    return before.state == OPEN or now - before.since < EBB_SECONDS or signals.backlog_events <= FLOOD * before.ebb


def _level(target: float, signals: Signals, demand: Demand) -> float:
    """The level that shares out the target; not below what light devices send, as long as the backlog does not grow by that."""
    level = water_level(max(0.0, target - demand.priority_events_per_second), demand.classes)
    most = HOLDING * signals.read_events_per_second
    bound = water_level(max(0.0, most - demand.priority_events_per_second), demand.classes)
    light = [ROOM * 2.0 ** (step / CLASSES) for step, (count, rate) in demand.classes.items() if rate <= bound * count]
    return max(level, min(bound, max(light, default=0.0)))


def read_rate(before: float, lately: float, elapsed: float, state: str = OPEN) -> float:
    """What a holder can read, from what it read lately.

    It reads much at once, and nothing while it works on that. Where this rate is what is admitted, rises weigh no more than falls:
    else it would be taken for a multiple of what it is. In state open a rise is the beginning of a backlog, and soon believed.
    A fall never is, as a hand-over is no loss of strength.
    """
    seconds = RISE_SECONDS if state == OPEN and lately > before else AVERAGE_SECONDS
    return before + (lately - before) * min(1.0, elapsed / seconds)


def _pressure(signals: Signals, threshold: Threshold) -> tuple[float, str]:
    """How near the nearest signal is to its threshold (1: there), and which it is."""
    parts = {
        f"what arrives is read after {signals.delay_seconds:.1f} s": signals.delay_seconds / threshold.lag_seconds,
        f"{signals.backlog_events:,.0f} events are unread": signals.backlog_events / threshold.backlog_events,
        f"Redis has {signals.memory_share:.0%} of its memory in use": signals.memory_share / threshold.memory_share,
        f"a commit takes {signals.commit_seconds:.0f} s already": signals.commit_seconds / threshold.commit_seconds,
    }
    reason = max(parts, key=parts.__getitem__)
    return parts[reason], reason


def _calm(signals: Signals, threshold: Threshold) -> bool:
    """Whether what made somebody wait is as good as gone."""
    rested = signals.memory_share < RESTED * threshold.memory_share
    return rested and _pressure(replace(signals, memory_share=0.0), threshold)[0] < CALM


def _target(before: Decision, signals: Signals, fair: float, calm: bool, urgency: float, elapsed: float) -> float:
    """The rate to admit. With a backlog the workers read what they can; without one they read what is admitted, and could do more."""
    seen = signals.read_events_per_second
    if before.state == OPEN:
        return max(TARGET_EVENTS_PER_SECOND_MIN, DRAINING * seen)
    if calm:
        grown = max(before.target, TARGET_EVENTS_PER_SECOND_MIN) * (1 + GROWTH_PER_SECOND * elapsed)
        return max(min(grown, ABOVE * seen), before.target)
    if signals.lag_seconds < BEHIND_SECONDS and signals.backlog_events <= seen:  # less of that, again and again, would end at nothing
        return max(TARGET_EVENTS_PER_SECOND_MIN, before.target)
    wanted = (DRAINING if fair >= 1 else HOLDING) * (1 - (1 - URGENT) * urgency) * seen
    return max(TARGET_EVENTS_PER_SECOND_MIN, before.target + (wanted - before.target) * min(1.0, elapsed))


def water_level(target: float, classes: Mapping[int, tuple[float, float]]) -> float:
    """The level L at which devices that get min(their rate, L) get `target` together; LEVEL_MAX: all of it fits.

    Max-min fairness by water-filling (Bertsekas and Gallager, Data Networks, 6.5.2), over classes of rates.
    """
    left, devices = target, sum(count for count, _ in classes.values())
    for step in sorted(classes):
        count, rate = classes[step]
        if rate / count * devices > left:  # this class, and all heavier ones, want more than an equal share of what is left
            return left / devices
        left -= rate
        devices -= count
    return LEVEL_MAX


# ---- who is admitted -----------------------------------------------------------------------------------------------------------------

# `tokens`: what the device's bucket holds, `level` how much comes into it in a second.
UNITS = pl.Schema({"body": pl.UInt32(), "device": pl.UInt32(), "rows": pl.UInt32(), "tokens": pl.Float64(), "level": pl.Float64()})


def admit(units: pl.DataFrame, whole: pl.DataFrame) -> pl.DataFrame:
    """Which parts of which bodies are admitted: UNITS in the order of bodies, plus admitted and wait_seconds.

    A unit is what one body holds of one device; it is admitted if the device's bucket is above zero when its turn comes.
    `whole`: the bodies (column `body`) that are taken whole or not at all.
    """
    before = pl.col("rows").cum_sum().over("device") - pl.col("rows")
    short = (pl.col("rows") + before - pl.col("tokens")) / pl.col("level")
    judged = units.with_columns(admitted=pl.col("tokens") > before, wait_seconds=short)
    broken = judged.filter(~pl.col("admitted")).join(whole, on="body", how="semi").select("body").unique()
    judged = judged.with_columns(admitted=pl.col("admitted") & ~pl.col("body").is_in(broken["body"].implode()))
    return judged.with_columns(pl.col("wait_seconds").clip(1.0, WAIT_SECONDS_MAX / SPREAD))


def priority_of(metrics: pl.Series, patterns: Sequence[str]) -> pl.Series:
    """Which of these metric names are priority metrics."""
    if not patterns:
        return pl.Series(metrics.name, [False], dtype=pl.Boolean).new_from_index(0, len(metrics))
    names = metrics.unique().to_frame("metric")
    chosen = names.filter(matches("metric", patterns))["metric"]
    return metrics.is_in(chosen.implode())


def worst(decisions: Iterable[Decision]) -> Decision:
    """What to say of many partitions in one word: the strictest, and of those the one under most pressure."""
    return max(decisions, key=lambda each: (STATES.index(each.state), each.pressure), default=Decision())
