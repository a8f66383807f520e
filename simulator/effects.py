"""What faults do to values, as arrays: an effect is a row (fault, action, key, start, end, level, spread).

    set      gauge series `key` reads level ± spread while start <= t < end
    rate     counter series `key` counts at `level` per second instead of its own rate while start <= t < end
    silence  device `key` says nothing while start <= t < end
    skew     device `key` stamps its events `level` ms off while start <= t < end
    reset    all counters of device `key` start from 0 at `start`

A counter remembers: the effect of `rate` and `reset` lasts after `end`. Two rate effects on one series must not overlap
in time, or its counter could run backwards. What lasts can be kept as a `Past` instead of the effects.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from simulator.hashing import unit
from simulator.metrics import SIGNALS
from simulator.signals import Signals

SCHEMA = {
    "fault": pl.Int64, "action": pl.String, "key": pl.Int64,
    "start": pl.Int64, "end": pl.Int64, "level": pl.Float64, "spread": pl.Float64,
}  # fmt: skip
ACTIONS = ["set", "rate", "silence", "skew", "reset"]


@dataclass(frozen=True)
class _Action:
    key: np.ndarray
    fault: np.ndarray
    start: np.ndarray
    end: np.ndarray
    level: np.ndarray
    spread: np.ndarray

    def pairs(self, keys: np.ndarray, t_ms: np.ndarray, lasting: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(row, effect) for each effect on a row's key that holds at its time, or that began by then if `lasting`. In order of start."""
        first, last = np.searchsorted(self.key, keys, "left"), np.searchsorted(self.key, keys, "right")
        number = last - first
        row = np.repeat(np.arange(len(keys)), number)
        effect = np.repeat(first - (np.cumsum(number) - number), number) + np.arange(len(row))
        holds = self.start[effect] <= t_ms[row]
        if not lasting:
            holds &= t_ms[row] < self.end[effect]
        return row[holds], effect[holds]


@dataclass(frozen=True)
class Past:
    """What effects that are over have left in each series, modulo 2^64: counted besides its own total; the total that reads as 0."""

    added: np.ndarray
    zero: np.ndarray


class Effects:
    """Effects, sorted for look-up, and what earlier ones left. `Effects()` has none: the fleet is healthy."""

    def __init__(self, rows: pl.DataFrame | None = None, past: Past | None = None) -> None:
        self._past = past
        rows = pl.DataFrame(schema=SCHEMA) if rows is None else rows.sort("key", "start", maintain_order=True)
        columns = ["key", "fault", "start", "end", "level", "spread"]
        self._actions = {
            action: _Action(*(rows.filter(pl.col("action") == action)[name].to_numpy() for name in columns)) for action in ACTIONS
        }

    def past(self, signals: Signals, over: list[int]) -> Past:
        """What is left once the effects of the faults `over` are left out: the same values to the bit, from the end of these faults on.

        Of two that touch one device the earlier must be left out first, or both at once.
        """
        past = self._past or Past(np.zeros(len(signals.counts), dtype=np.uint64), -signals.start)
        added, zero = past.added.copy(), past.zero.copy()
        reset, rate = self._actions["reset"], self._actions["rate"]
        for effect in np.flatnonzero(np.isin(reset.fault, over)):  # in order of start: the newest boot stays
            series = np.flatnonzero(signals.counts & (signals.device == reset.key[effect]))
            zero[series] = self._counted(signals, series, np.full(len(series), reset.start[effect]))
        effect = np.flatnonzero(np.isin(rate.fault, over))
        np.add.at(added, rate.key[effect], self._forced(signals, effect, rate.end[effect]))
        return Past(added, zero)

    def silent(self, device: np.ndarray, t_ms: np.ndarray) -> np.ndarray:
        """Whether the device says nothing at that time."""
        silent = np.zeros(len(device), dtype=bool)
        silent[self._actions["silence"].pairs(device, t_ms)[0]] = True
        return silent

    def stamp(self, device: np.ndarray, t_ms: np.ndarray) -> np.ndarray:
        """The time the device believes it is, epoch ms."""
        row, effect = self._actions["skew"].pairs(device, t_ms)
        stamp = t_ms.copy()
        stamp[row] += self._actions["skew"].level[effect].astype(np.int64)
        return stamp

    def values(self, signals: Signals, series: np.ndarray, t_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(integers as uint64, floats); which of the two a series speaks is `signals.whole`, the other one is 0 or NaN."""
        counts = signals.counts[series]
        level = np.full(len(series), np.nan)
        level[~counts] = self._levels(signals, series[~counts], t_ms[~counts])
        integer = np.zeros(len(series), dtype=np.uint64)
        integer[counts] = self._counters(signals, series[counts], t_ms[counts])
        status = ~counts & signals.whole[series]
        integer[status] = level[status].astype(np.uint64)
        return integer, np.round(level, 2)

    def _levels(self, signals: Signals, series: np.ndarray, t_ms: np.ndarray) -> np.ndarray:
        level = signals.gauge(series, t_ms)
        action = self._actions["set"]
        row, effect = action.pairs(series, t_ms)
        wobble = 2 * unit(signals.keys[series[row]], 4, t_ms[row]) - 1
        level[row] = action.level[effect] + action.spread[effect] * wobble
        percent = np.isin(signals.signal[series], [SIGNALS.index("cpu"), SIGNALS.index("memory")])
        return np.where(percent, np.clip(level, 0, 100), level)

    def _counters(self, signals: Signals, series: np.ndarray, t_ms: np.ndarray) -> np.ndarray:
        count = self._counted(signals, series, t_ms)
        zero = -signals.start[series] if self._past is None else self._past.zero[series]  # modulo 2^64, as a counter goes
        row, effect = self._actions["reset"].pairs(signals.device[series], t_ms, lasting=True)
        boot = np.full(len(series), -1, dtype=np.int64)
        boot[row] = self._actions["reset"].start[effect]  # in order of start: the newest boot stays
        booted = boot >= 0
        zero[booted] = self._counted(signals, series[booted], boot[booted])
        return (count - zero) & signals.mask[series]

    def _counted(self, signals: Signals, series: np.ndarray, t_ms: np.ndarray) -> np.ndarray:
        """Total since the epoch, with the stretches under a rate effect counted at the effect's rate."""
        count = signals.total(series, t_ms)
        if self._past is not None:
            count += self._past.added[series]
        action = self._actions["rate"]
        row, effect = action.pairs(series, t_ms, lasting=True)
        if len(row):
            np.add.at(count, row, self._forced(signals, effect, np.minimum(t_ms[row], action.end[effect])))
        return count

    def _forced(self, signals: Signals, effect: np.ndarray, until: np.ndarray) -> np.ndarray:
        """What rate effects made their series count until then, less what these would have counted themselves."""
        action = self._actions["rate"]
        series, start = action.key[effect], action.start[effect]
        own = signals.total(series, until) - signals.total(series, start)
        return np.floor(action.level[effect] * (until - start) / 1000).astype(np.uint64) - own
