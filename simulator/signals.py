"""value = f(seed, series, time): what each series of a healthy fleet would say at any moment. Arrays in, arrays out.

No value depends on an earlier one, so batches of any size and order give the same values. Times are epoch
milliseconds. Counters are integrals in closed form, exact integers and never back; the two ends of a link read
the same integral. Before `EPOCH_MS` nothing had been switched on and counters stand still.
"""

from functools import cached_property

import numpy as np

from simulator.fleet import Fleet, series_keys
from simulator.hashing import mix, smooth, unit
from simulator.metrics import COUNTERS, SIGNALS

EPOCH_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z
_DAY_TURN = 2 * np.pi / 86_400  # radians per second
_PEAK_S = 20 * 3600  # traffic peaks around 20:00 UTC
_RIPPLES = ((11_000, 0.2), (97_000, 0.15))  # ms, share of the mean rate: noise on top of the daily curve


class Signals:
    """The parameters of every series, drawn once. Arguments named `series` are rows of `fleet.series`."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        frame = fleet.series
        self.keys = series_keys(fleet)
        self.device = frame["at"].to_numpy()
        self.signal = frame["signal"].replace_strict({name: i for i, name in enumerate(SIGNALS)}).to_numpy()
        self.counts = self.signal < len(COUNTERS)
        self.whole = self.counts | (self.signal == SIGNALS.index("status"))  # integers, the others are floats
        self.mask = np.where((frame["kind"] == "counter32").to_numpy(), np.uint64(2**32 - 1), np.uint64(2**64 - 1))
        self.level = unit(self.keys, 1)
        self.flow = self._flow()
        self.capacity = np.tile(fleet.interfaces["speed_bps"].to_numpy() / 8, 2)  # bytes/s, per flow
        self._flow_keys = mix(fleet.seed, 3, np.arange(len(self.capacity)))
        self._slow_rate = np.where(self.signal == SIGNALS.index("errors"), 0.0005, 0.002) * (1 + 4 * self.level)  # per second

    def _flow(self) -> np.ndarray:
        """The traffic an octet counter sees: flow p leaves port p; flow ports + p comes to port p from a host."""
        ports = self.fleet.interfaces.height
        port = self.fleet.series["port"].fill_null(0).to_numpy()
        peer = self.fleet.interfaces["peer"].fill_null(-1).to_numpy()[port] if ports else port
        inward = np.where(peer >= 0, peer, ports + port)
        return np.where(self.signal == SIGNALS.index("in-octets"), inward, port)

    @cached_property
    def start(self) -> np.ndarray:
        """What each counter stood at when the fleet was switched on. One in 32 is beyond 2^63: values must stay exact."""
        low = mix(self.keys, 2) % np.where(self.signal < 2, np.uint64(2**40), np.uint64(1000))
        huge = np.where((self.signal < 2) & (unit(self.keys, 3) < 1 / 32), np.uint64(2**63), np.uint64(0))
        return low + huge

    def total(self, series: np.ndarray, t_ms: np.ndarray) -> np.ndarray:
        """What counter series have counted since EPOCH_MS, as uint64 without wrap."""
        seconds = np.maximum(t_ms - EPOCH_MS, 0) / 1000
        octets = self.signal[series] < 2
        total = np.empty(len(series), dtype=np.float64)
        total[octets] = self._octets(self.flow[series[octets]], seconds[octets])
        slow = series[~octets]
        total[~octets] = self._slow_rate[slow] * seconds[~octets] + self.level[slow]
        return total.astype(np.uint64)

    def _octets(self, flow: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """The integral of base + daily curve + ripples. The curve takes at most half of the base, ripples 35%: never back."""
        key = self._flow_keys[flow]
        base = self.capacity[flow] * (0.05 + 0.3 * unit(key, 1))
        swing = base * 0.5 * unit(key, 2)
        peak = _PEAK_S + 7200 * (unit(key, 3) - 0.5)
        total = base * seconds + swing / _DAY_TURN * (np.sin(_DAY_TURN * (seconds - peak)) + 1)
        t_ms = np.round(seconds * 1000).astype(np.int64)
        for width_ms, share in _RIPPLES:
            total += base * share * (width_ms / 1000) * smooth(key, t_ms, width_ms)
        return total

    def gauge(self, series: np.ndarray, t_ms: np.ndarray) -> np.ndarray:
        """Levels with a daily curve and noise. Percent, degrees Celsius, dBm; 1 for an interface that is up."""
        key, level = self.keys[series], self.level[series]
        day = np.cos(_DAY_TURN * (t_ms / 1000 - _PEAK_S))
        fast, slow = smooth(key, t_ms, 10_000) - 0.5, smooth(key, t_ms, 120_000) - 0.5
        shapes = {
            "status": np.ones(len(series)),
            "optics": -2 - 3 * level + 0.2 * fast,
            "cpu": 12 + 30 * level + 6 * day + 6 * fast + 4 * slow,
            "memory": 35 + 30 * level + 2 * day + slow,
            "temperature": 34 + 8 * level + 2 * day + 0.8 * slow,
        }
        signal = self.signal[series]
        return np.select([signal == SIGNALS.index(name) for name in shapes], list(shapes.values()), np.nan)
