"""Which faults happen when: a schedule from a seed, each fault with its effects and the series that show it.

Fault number i has its kind, place, start and length from (seed, i); a schedule made to a later time begins with the
earlier one. Two faults never share a device at one time, so each can be told from the others. The first seven are one of
each kind, so that whoever watches sees them all soon.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import polars as pl

from simulator.effects import SCHEMA, Effects, Past
from simulator.fleet import Fleet
from simulator.hashing import mix, unit
from simulator.metrics import SIGNALS, STATUS_DOWN
from simulator.signals import Signals

FIRST_FAULT_MS = 8_000
_LENGTH_MIN_MS = 20_000
_PLACES_TRIED = 8  # a fault that finds this many places busy is left out


@dataclass
class Fault:
    """One row of the truth. Times are epoch ms, end exclusive; `seen` are rows of `fleet.series`, `device` and `port` row numbers."""

    kind: str
    start: int
    end: int
    device: int
    how: str
    visible: bool = True  # whether thresholds on values can be expected to see it
    port: int | None = None
    seen: list[int] = field(default_factory=list)
    effects: list[tuple] = field(default_factory=list)  # (action, key, start, end, level, spread)
    touched: set[int] = field(default_factory=set)  # devices that no other fault may use meanwhile
    number: int = -1


class Map:
    """Where things are: the series of a port or device by signal, the other end of a cable."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.device_of = fleet.interfaces["at"].to_numpy()
        self.peer_of = fleet.interfaces["peer"].fill_null(-1).to_numpy()
        self.capacity = fleet.interfaces["speed_bps"].to_numpy() / 8
        self.down = fleet.series["metric"].replace_strict(STATUS_DOWN, default=0.0, return_dtype=pl.Float64).to_numpy()
        signal = fleet.series["signal"].replace_strict({name: i for i, name in enumerate(SIGNALS)}).to_numpy()
        port = fleet.series["port"].fill_null(-1).to_numpy()
        self._port = np.full((fleet.interfaces.height, len(SIGNALS)), -1)
        self._port[port[port >= 0], signal[port >= 0]] = np.flatnonzero(port >= 0)
        self._device = np.full((fleet.devices.height, len(SIGNALS)), -1)
        self._device[fleet.series["at"].to_numpy()[port < 0], signal[port < 0]] = np.flatnonzero(port < 0)

    def of_port(self, port: int, *signals: str) -> list[int]:
        return [row for name in signals if (row := int(self._port[port, SIGNALS.index(name)])) >= 0]

    def of_device(self, device: int, *signals: str) -> list[int]:
        return [int(self._device[device, SIGNALS.index(name)]) for name in signals]

    def ends(self, port: int) -> list[int]:
        """The port, and the port at the other end of its cable."""
        return [port] if self.peer_of[port] < 0 else [port, int(self.peer_of[port])]

    def linked(self, device: int) -> list[int]:
        return [int(port) for port in np.flatnonzero((self.device_of == device) & (self.peer_of >= 0))]


def _cut(net: Map, port: int, start: int, end: int) -> list[tuple]:
    """A cable without light: both ends down, no traffic either way."""
    rows = []
    for side in net.ends(port):
        rows += [("set", row, start, end, net.down[row], 0.0) for row in net.of_port(side, "status")]
        rows += [("set", row, start, end, -40.0, 1.0) for row in net.of_port(side, "optics")]
        rows += [("rate", row, start, end, 0.0, 0.0) for row in net.of_port(side, "in-octets", "out-octets")]
    return rows


def _link_flap(net: Map, port: int, start: int, length: int, dice: Callable[[int], float]) -> Fault:
    half, back = start + length // 2, start + length * 7 // 10
    return Fault(
        "link_flap", start, start + length, int(net.device_of[port]), "down, up, down: status, optics, no traffic, at both ends", port=port,
        seen=[row for side in net.ends(port) for row in net.of_port(side, "status", "optics", "in-octets", "out-octets")],
        effects=_cut(net, port, start, half) + _cut(net, port, back, start + length),
    )  # fmt: skip


def _congestion(net: Map, port: int, start: int, length: int, dice: Callable[[int], float]) -> Fault:
    full = net.of_port(port, "out-octets") + [row for side in net.ends(port)[1:] for row in net.of_port(side, "in-octets")]
    drops = net.of_port(port, "discards")
    end, lost = start + length, round(200 + 1800 * dice(1))
    return Fault(
        "congestion", start, end, int(net.device_of[port]), f"sends at 98 % of the line's rate, {lost} discards/s", port=port,
        seen=full + drops,
        effects=[("rate", row, start, end, 0.98 * net.capacity[port], 0.0) for row in full]
        + [("rate", row, start, end, float(lost), 0.0) for row in drops],
    )  # fmt: skip


def _error_burst(net: Map, port: int, start: int, length: int, dice: Callable[[int], float]) -> Fault:
    errors, optics = net.of_port(port, "errors"), net.of_port(port, "optics")
    end, rate = start + length, round(100 + 900 * dice(1))
    return Fault(
        "error_burst", start, end, int(net.device_of[port]), f"{rate} input errors/s, received power around -14 dBm", port=port,
        seen=errors + optics,
        effects=[("rate", row, start, end, float(rate), 0.0) for row in errors] + [("set", row, start, end, -14.0, 0.5) for row in optics],
    )  # fmt: skip


def _cpu_runaway(net: Map, device: int, start: int, length: int, dice: Callable[[int], float]) -> Fault:
    cpu, heat = net.of_device(device, "cpu", "temperature")
    end = start + length
    return Fault(
        "cpu_runaway", start, end, device, "processor at 95 to 99 %, 62 degrees", seen=[cpu, heat],
        effects=[("set", cpu, start, end, 97.0, 2.0), ("set", heat, start, end, 62.0, 1.0)],
    )  # fmt: skip


def _reboot(net: Map, device: int, start: int, length: int, dice: Callable[[int], float]) -> Fault:
    (cpu,) = net.of_device(device, "cpu")
    boot, end = start + length // 2, start + length
    ports = net.linked(device)
    return Fault(
        "reboot", start, end, device, "silent, neighbours' ports down, then counters from 0 and a busy processor",
        seen=[cpu] + [row for port in ports for row in net.of_port(net.ends(port)[1], "status", "optics")],
        effects=[("silence", device, start, boot, 0.0, 0.0), ("reset", device, boot, end, 0.0, 0.0), ("set", cpu, boot, end, 96.0, 3.0)]
        + [row for port in ports for row in _cut(net, port, start, boot)],
        touched={int(net.device_of[net.peer_of[port]]) for port in ports},
    )  # fmt: skip


def _device_silent(net: Map, device: int, start: int, length: int, dice: Callable[[int], float]) -> Fault:
    silence = ("silence", device, start, start + length, 0.0, 0.0)
    how = "no event at all; only a rule on absence sees it"
    return Fault("device_silent", start, start + length, device, how, visible=False, effects=[silence])


def _clock_skew(net: Map, device: int, start: int, length: int, dice: Callable[[int], float]) -> Fault:
    # Odd milliseconds, so that no skewed stamp repeats a stamp that was sent before. Ahead by less than the 60 s that are refused.
    skew_ms = round(25_000 + 15_000 * dice(1)) if dice(2) < 0.5 else -round(60_000 + 120_000 * dice(1))
    skew_ms += 1 - skew_ms % 2
    how = f"clock {abs(skew_ms) / 1000:.3f} s {'ahead' if skew_ms > 0 else 'behind'}; values are right, windows are not"
    skew = ("skew", device, start, start + length, float(skew_ms), 0.0)
    return Fault("clock_skew", start, start + length, device, how, visible=False, effects=[skew])


_ON_PORTS = {"link_flap": _link_flap, "congestion": _congestion, "error_burst": _error_burst}
_ON_DEVICES = {"cpu_runaway": _cpu_runaway, "reboot": _reboot, "device_silent": _device_silent, "clock_skew": _clock_skew}
KINDS = ["link_flap", "cpu_runaway", "error_burst", "congestion", "reboot", "device_silent", "clock_skew"]


class Schedule:
    """The faults of a run, made as far as they are asked for. `gap_ms` between starts on average; 0: none ever.

    `faults` are those that nobody has asked to forget, `made` is how many there were in all.
    """

    def __init__(self, fleet: Fleet, start_ms: int, gap_ms: int, interval_ms: int, last_start_ms: int | None = None) -> None:
        self.faults: list[Fault] = []
        self.made = 0
        self.effects = Effects()
        self._past: Past | None = None
        self._net = Map(fleet)
        self._fleet, self._start_ms, self._gap_ms, self._interval_ms = fleet, start_ms, gap_ms, interval_ms
        self._last_start_ms = last_start_ms
        linked = np.flatnonzero(self._net.peer_of >= 0)
        self._ports = linked if len(linked) else np.arange(fleet.interfaces.height)
        self._tried = 0
        self._busy_until: dict[int, int] = {}

    def extend(self, to_ms: int) -> list[Fault]:
        """Make all faults that start before `to_ms`; the new ones are returned."""
        new = []
        while self._gap_ms and (start := self._start_of(self._tried)) < to_ms:
            if self._last_start_ms is not None and start > self._last_start_ms:
                break
            fault = self._place(self._tried, start)
            self._tried += 1
            if fault is not None:
                fault.number = self.made
                self.made += 1
                self.faults.append(fault)
                new.append(fault)
        if new:
            self._apply()
        return new

    def forget(self, number: int, signals: Signals) -> None:
        """Drop the first `number` faults, or an endless run would hold ever more. Nothing before the end of these can be asked any more."""
        self._past = self.effects.past(signals, [fault.number for fault in self.faults[:number]])
        del self.faults[:number]
        self._apply()

    def _apply(self) -> None:
        rows = [(fault.number, *effect) for fault in self.faults for effect in fault.effects]
        self.effects = Effects(pl.DataFrame(rows, schema=SCHEMA, orient="row"), self._past)

    def _dice(self, number: int, throw: int) -> float:
        return float(unit(self._fleet.seed, 6, number, throw)[0])

    def _start_of(self, number: int) -> int:
        late = 0.0 if number == 0 else 0.4 * self._dice(number, 100)
        return self._start_ms + FIRST_FAULT_MS + round((number + late) * self._gap_ms)

    def _place(self, number: int, start: int) -> Fault | None:
        kind = KINDS[number if number < len(KINDS) else int(self._dice(number, 101) * len(KINDS))]
        length = round(max(_LENGTH_MIN_MS, 4 * self._interval_ms) * (1 + 0.5 * self._dice(number, 102)))
        places = self._ports if kind in _ON_PORTS else np.arange(self._fleet.devices.height)
        build = (_ON_PORTS | _ON_DEVICES)[kind]
        for attempt in range(_PLACES_TRIED if len(places) else 0):
            place = int(places[int(mix(self._fleet.seed, 7, number, attempt)[0] % np.uint64(len(places)))])
            fault = build(self._net, place, start, length, partial(self._dice, number))
            ends = [] if fault.port is None else self._net.ends(fault.port)
            fault.touched |= {fault.device} | {int(self._net.device_of[end]) for end in ends}
            if all(self._busy_until.get(device, 0) <= start for device in fault.touched):
                self._busy_until |= dict.fromkeys(fault.touched, fault.end + 2 * self._interval_ms)
                return fault
        return None
