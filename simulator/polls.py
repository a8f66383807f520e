"""Which series are due when. A device is polled every `interval_ms`, at its own phase; all its series share the poll's time."""

import numpy as np
import polars as pl

from simulator.effects import Effects
from simulator.hashing import mix
from simulator.signals import Signals


class Polls:
    """Cuts time into events. However a stretch of time is cut into calls, the same events come out."""

    def __init__(self, signals: Signals, interval_ms: int) -> None:
        self.signals = signals
        self.interval_ms = interval_ms
        devices = signals.fleet.devices.height
        self._phase = (mix(signals.fleet.seed, 5, np.arange(devices)) % np.uint64(interval_ms)).astype(np.int64)
        self._first = np.searchsorted(signals.device, np.arange(devices), "left")
        self._many = np.searchsorted(signals.device, np.arange(devices), "right") - self._first

    def events(self, effects: Effects, from_ms: int, to_ms: int) -> pl.DataFrame:
        """Events polled in [from_ms, to_ms) in order of time: series, polled (ms), stamp (ms), integer, number."""
        device, t_ms = self._due(from_ms, to_ms)
        said = ~effects.silent(device, t_ms)
        device, t_ms = device[said], t_ms[said]
        many = self._many[device]
        poll = np.repeat(np.arange(len(device)), many)
        series = self._first[device][poll] + np.arange(len(poll)) - np.repeat(np.cumsum(many) - many, many)
        polled = t_ms[poll]
        integer, number = effects.values(self.signals, series, polled)
        whole = pl.Series(self.signals.whole[series])
        return pl.DataFrame(
            {"series": series, "polled": polled, "stamp": effects.stamp(device, t_ms)[poll], "integer": integer, "number": number}
        ).with_columns(integer=pl.when(whole).then("integer"), number=pl.when(~whole).then("number"))

    def _due(self, from_ms: int, to_ms: int) -> tuple[np.ndarray, np.ndarray]:
        first = -((self._phase - from_ms) // self.interval_ms)  # ceil((from - phase) / interval)
        past = -((self._phase - to_ms) // self.interval_ms)
        number = np.maximum(past - first, 0)
        device = np.repeat(np.arange(len(number)), number)
        nth = np.arange(len(device)) - np.repeat(np.cumsum(number) - number, number)
        t_ms = self._phase[device] + (first[device] + nth) * self.interval_ms
        order = np.argsort(t_ms, kind="stable")
        return device[order], t_ms[order]
