"""The controller in a closed loop, with clients that obey and that don't: it neither flaps nor starves, and gives back all it held back."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from api.admission import DEMAND_TICKS
from pipeline.core import admission
from pipeline.core.admission import (
    CLOSED,
    FAIR,
    LEVEL_MAX,
    OPEN,
    Decision,
    Demand,
    Limits,
    Signals,
    admit,
    decide,
    demand_of,
    read_rate,
    water_level,
    worst,
)
from pipeline.core.buckets import Bucket, filled, refilled

TURN, STEP = 0.5, 0.1
BODY_ROWS = 1000
LIMITS = Limits()
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # a loop is long: a smaller one would say no more
BATCHES = st.floats(0, 2.5)
RATES = st.lists(st.floats(500, 20_000), min_size=2, max_size=12)


@dataclass
class Loop:
    """Devices that send bodies, a partition's backlog, a worker that reads so much, and the controller between them."""

    rates: list[float]
    capacity: float
    seed: int
    defiant: Collection[int] = ()  # devices that come again long before they were told to
    batch_seconds: float = 0.0  # the worker reads as much at once as it is busy with for so long, and nothing meanwhile
    now: float = 0.0
    decision: Decision = field(default_factory=Decision)
    states: list[tuple[float, str]] = field(default_factory=list)
    accepted: Counter = field(default_factory=Counter)
    offered: Counter = field(default_factory=Counter)
    first_time: Counter = field(default_factory=Counter)  # of those accepted: at the first attempt
    lag_most: float = 0.0
    _queue: deque = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        devices = range(len(self.rates))
        self._unsent, self._next = dict.fromkeys(devices, 0.0), {device: self._rng.random() for device in devices}
        self._tokens: dict[int, Bucket] = {}
        self._seen, self._ticks, self._waiting = Counter(), deque(maxlen=DEMAND_TICKS), 0.0
        self._again = dict.fromkeys(devices, False)
        self._rate = self._read = self._turned = self._busy_until = 0.0

    @property
    def backlog(self) -> float:
        return sum(rows for _, rows in self._queue)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(round(seconds / STEP)):
            self.now += STEP
            for device, rate in enumerate(self.rates):
                self._device(device, rate)
            self._work()
            if self.now - self._turned >= TURN - STEP / 2:
                self._turn()
            if until():
                return

    def _device(self, device: int, rate: float) -> None:
        self._unsent[device] = min(self._unsent[device] + rate * STEP, 20 * rate)
        self.offered[device] += rate * STEP
        while rate and self.now >= self._next[device] and self._unsent[device] >= min(BODY_ROWS, rate):
            rows = min(self._unsent[device], BODY_ROWS)
            self._seen[device] += rows
            wait = self._ask(device, rows)
            if wait is None:
                self.accepted[device] += rows
                self.first_time[device] += 0 if self._again[device] else rows
                self._again[device] = False
                self._queue.append([self.now, rows])
                self._unsent[device] -= rows
            else:
                self._waiting += rows
                self._again[device] = True
                told = math.ceil(wait * self._rng.uniform(1, admission.SPREAD))
                self._next[device] = self.now + (0.2 if device in self.defiant else told)

    def _ask(self, device: int, rows: float) -> float | None:
        if self.decision.state == OPEN:
            self._tokens.clear()
            return None
        if self.decision.state == CLOSED:
            return admission.WAIT_SECONDS_MAX / admission.SPREAD
        level = self.decision.level
        bucket = refilled(self._tokens.get(device) or filled(level, self.now), level, self.now)
        taken = bucket.level > 0  # as `admit` does for many at once
        self._tokens[device] = bucket._replace(level=bucket.level - rows * taken)
        return None if taken else min(max((rows - bucket.level) / level, 1.0), admission.WAIT_SECONDS_MAX / admission.SPREAD)

    def _work(self) -> None:
        if self.now < self._busy_until:
            return
        wanted = can = self.capacity * max(STEP, self.batch_seconds) * self._rng.uniform(0.8, 1.2)
        while can > 0 and self._queue:
            taken = min(can, self._queue[0][1])
            self._queue[0][1] -= taken
            self._read += taken
            can -= taken
            if self._queue[0][1] <= 1e-9:
                self._queue.popleft()
        self._busy_until = self.now + (wanted - can) / self.capacity - STEP / 2

    def _turn(self) -> None:
        self._rate = read_rate(self._rate, self._read / (self.now - self._turned), self.now - self._turned, self.decision.state)
        self._read, self._turned = 0.0, self.now
        self._ticks.append(self._seen)
        known = self.decision.state != OPEN or self.decision.watched
        if not known:
            self._ticks.clear()
        demand = Demand()
        if known:
            total = sum(self._ticks, Counter())
            demand = demand_of([rows / (len(self._ticks) * TURN) for rows in total.values()], 0, self._waiting)
        self._seen, self._waiting = Counter(), 0.0
        lag = self.now - self._queue[0][0] if self._queue else 0.0
        self.lag_most = max(self.lag_most, lag)
        after = decide(self.decision, Signals(lag, self.backlog, 0, 0, self._rate), demand, LIMITS, self.now)
        if after.state != self.decision.state:
            self.states.append((self.now, after.state))
        self.decision = after


@settings(max_examples=25, deadline=None, phases=PHASES)
@given(rates=RATES, overload=st.floats(1.5, 6), seed=st.integers(0, 1 << 20), obey=st.booleans(), batch=BATCHES)
def test_under_a_lasting_overload_it_holds_still_wastes_nothing_and_starves_nobody(rates, overload, seed, obey, batch):
    loop = Loop(rates, sum(rates) / overload, seed, () if obey else range(len(rates)), batch)
    loop.run(60)
    assert [state for _, state in loop.states if state == OPEN] == [], loop.states
    assert sum(loop.accepted.values()) > 0.9 * loop.capacity * 60, "the workers had nothing to do"
    assert loop.lag_most < LIMITS.closed.lag_seconds + 1
    fair = water_level(0.6 * loop.capacity, demand_of(rates, 0, 0).classes)
    for device, rate in enumerate(rates):
        if rate < fair / 2:
            assert loop.accepted[device] >= 0.9 * (loop.offered[device] - rate - BODY_ROWS), (device, rate, fair)


@settings(max_examples=25, deadline=None, phases=PHASES)
@given(
    others=st.integers(3, 20), share=st.floats(0.2, 0.8), times=st.floats(2, 20), seed=st.integers(0, 1 << 20), obeys=st.booleans(),
    batch=BATCHES,
)  # fmt: skip
def test_others_who_fit_do_not_notice_a_heavy_device(others, share, times, seed, obeys, batch):
    """However deep the backlog is that it makes before it is told to wait: to refuse all for that would be of no use to anybody."""
    capacity = 8000
    share = min(share, 0.7 * others / (others + 1))  # else what each wants is hardly less than an equal share, which the heavy one has
    rates = [share * capacity / others] * others
    loop = Loop([*rates, 0.0], capacity, seed, () if obeys else [others], batch)
    loop.run(10)
    assert loop.decision.state == OPEN
    loop.rates = [*rates, (times - share) * capacity]
    loop.run(80)
    assert [state for _, state in loop.states] == [FAIR], loop.states
    offered = sum(loop.offered[device] - loop.rates[device] - BODY_ROWS for device in range(others))
    assert sum(loop.first_time[device] for device in range(others)) >= 0.95 * offered


@settings(max_examples=25, deadline=None, phases=PHASES)
@given(rates=RATES, seed=st.integers(0, 1 << 20))
def test_it_opens_within_ten_seconds_of_the_drain_and_stays_open(rates, seed):
    loop = Loop(rates, sum(rates) / 4, seed)
    loop.run(40)
    assert loop.decision.state != OPEN
    loop.rates = [rate / 8 for rate in rates]
    loop.run(200, until=lambda: not loop.backlog or max(loop._unsent.values()) <= 0)
    loop.run(200, until=lambda: loop.decision.state == OPEN)
    assert loop.decision.state == OPEN
    count = len(loop.states)
    loop.run(30)
    assert len(loop.states) == count, f"it flaps: {loop.states}"


@given(batch=st.floats(0.5, 5), rate=st.floats(1, 1e6))
def test_a_worker_that_reads_much_at_once_is_not_taken_for_a_faster_one(batch, rate):
    seen, taken = rate, []
    for turn in range(200):
        batches = int((turn + 1) * TURN / batch) - int(turn * TURN / batch)
        seen = read_rate(seen, batches * batch * rate / TURN, TURN, FAIR)
        taken.append(seen)
    assert 0.85 * rate < sum(taken[100:]) / 100 < 1.15 * rate


def test_a_delay_closes_only_where_fair_does_not_end_it():
    def after(backlogs, state=FAIR) -> list[str]:
        decision, states = Decision(state, since=0.0, at=0.0), []
        for turn, backlog in enumerate(backlogs):
            decision = decide(decision, Signals(40, backlog, read_events_per_second=1000), Demand(), LIMITS, (turn + 1) * TURN)
            states.append(decision.state)
        return states

    falling = [90_000 - 500 * turn for turn in range(40)]
    growing = [90_000 + 1500 * turn for turn in range(40)]
    assert CLOSED not in after(falling, OPEN) and CLOSED not in after(falling)
    assert after(growing)[-1] == CLOSED and CLOSED not in after(growing)[:8], "it is given the time to take effect"


def test_a_worker_that_reads_nothing_closes_its_partition():
    loop = Loop([1000.0, 1000.0], 4000, 1)
    loop.run(20)
    assert loop.decision.state == OPEN
    loop.capacity = 1e-9
    loop.run(LIMITS.closed.lag_seconds + 30)
    assert loop.decision.state == CLOSED
    count = len(loop.states)
    loop.run(30)
    assert len(loop.states) == count, f"it flaps: {loop.states}"


def test_a_worker_in_a_step_is_no_overload_where_it_is_not_known_yet_what_it_can():
    """At first it was seen to read next to nothing, and the events of a second seem to take long."""
    decision = decide(Decision(at=0.5), Signals(1.2, 1500, read_events_per_second=200), Demand(), LIMITS, 1.0)
    assert decision.state == OPEN and decision.watched
    assert decide(decision, Signals(1.7, 20_000, read_events_per_second=200), Demand(), LIMITS, 1.5).state == FAIR


def test_what_is_said_of_a_partition_is_of_now():
    before = Decision(FAIR, "what arrives is read after 9.0 s", at=0.0)
    assert "5.5 s" in decide(before, Signals(5.5), Demand(), LIMITS, 0.5).reason
    assert "hardly a backlog any more" in decide(before, Signals(0.0), Demand(), LIMITS, 0.5).reason


def test_of_many_partitions_the_one_in_most_need_speaks():
    calm, behind = Decision(FAIR, "calm", since=1.0, pressure=0.1), Decision(FAIR, "behind", since=9.0, pressure=5.0)
    assert worst([Decision(OPEN, pressure=9.0), calm, behind]) == behind and worst([]) == Decision()


@given(rate=st.floats(0, 1e7), now=st.floats(0, 1e9))
def test_where_nothing_waits_nothing_is_limited(rate, now):
    assert decide(Decision(at=now - 0.5), Signals(read_events_per_second=rate), Demand(), LIMITS, now).state == OPEN


@given(rates=st.lists(st.floats(0.1, 1e6), min_size=1, max_size=30), share=st.floats(0.05, 0.95))
def test_the_level_shares_out_the_target(rates, share):
    """Classes are of powers of two, so that it is met within a factor of two."""
    target = share * sum(rates)
    level = water_level(target, demand_of(rates, 0, 0).classes)
    assert 0.5 * target <= sum(min(rate, level) for rate in rates) <= 2 * target


def test_memory_closes_whatever_the_lag_and_at_last_for_priority_metrics_too():
    closed = decide(Decision(), Signals(memory_share=0.8), Demand(), LIMITS, 1.0)
    assert (closed.state, closed.shut) == (CLOSED, False) and "80%" in closed.reason
    assert decide(closed, Signals(memory_share=0.95), Demand(), LIMITS, 1.5).shut
    still = decide(closed, Signals(memory_share=0.6), Demand(), LIMITS, 2.0)
    assert still.state == CLOSED, "it opens a little only when it is well below"
    assert decide(still, Signals(memory_share=0.5), Demand(), LIMITS, 2.5).state == FAIR


@pytest.mark.parametrize("share", [0.3, 0.45, 0.53, 0.58, 0.65, 0.7])
def test_memory_that_rests_high_starves_nobody_where_the_workers_keep_up(share):
    """What is read is what is admitted there: less than that, again and again, would end at nothing."""
    offered, devices, decision, now = 2000.0, 20, Decision(), 1000.0
    rate = offered
    for turn in range(1200):
        now += 0.5
        level = LEVEL_MAX if decision.state == OPEN else decision.level
        admitted = min(offered, devices * level)
        assert decision.state != CLOSED and admitted >= 0.7 * offered
        rate = read_rate(rate, admitted, 0.5, decision.state)
        demand = demand_of([offered / devices] * devices, 0.0, offered - admitted) if decision.noted else Demand()
        memory = 0.62 if 10 < turn < 20 else share  # a worker paused
        decision = decide(decision, Signals(0.1, 0.0, memory, 0.3, rate), demand, Limits(), now)
    assert (decision.state == OPEN) == (share < 0.54)


def test_a_body_that_is_taken_whole_waits_for_its_heaviest_device():
    units = pl.DataFrame(
        {"body": [0, 0, 1, 1], "device": [0, 1, 0, 1], "rows": [10, 10, 10, 10], "tokens": [-5.0, 5.0, -5.0, 5.0], "level": [10.0] * 4},
        schema=admission.UNITS,
    )
    judged = admit(units, pl.DataFrame({"body": [1]}, schema={"body": pl.UInt32}))
    assert judged["admitted"].to_list() == [False, True, False, False]
    assert judged["wait_seconds"].to_list()[0] == 1.5
