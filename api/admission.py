"""The gate: what of a group of bodies is admitted now, and whom to ask to come again. The core decides; buckets are kept here.

Buckets, and who offered how much, are only looked at in partitions that are not open: else the gate costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import polars as pl

from pipeline import metrics
from pipeline.core.admission import (
    BURST_SECONDS,
    CLOSED,
    FAIR,
    OPEN,
    SPREAD,
    STATES,
    UNITS,
    Demand,
    Limits,
    admit,
    demand_of,
    priority_of,
    refilled,
)
from pipeline.core.partitions import partition_of
from pipeline.core.validate import Coded
from pipeline.errors import PipelineError
from pipeline.stores.admission import DECIDE_SECONDS, Decisions, Desk

_log = logging.getLogger(__name__)

DEMAND_TICKS = 8  # over which a device's rate is taken
STOP_SECONDS = 2.0
DEVICES_MAX = 1 << 17  # with buckets; beyond, all begin anew
_OFFERED = pl.Schema({"partition": pl.UInt32(), "device": pl.String(), "rows": pl.Float64()})


class Left(NamedTuple):
    """What is not admitted: `rows` with columns body and index; and per body how long to wait, in seconds."""

    rows: pl.DataFrame
    waits: dict[int, float]


class Gate:
    """What one replica knows and does about admission."""

    def __init__(self, partitions: int, desk: Desk | None, limits: Callable[[], Limits] = Limits, limits_seconds: float = 2.0) -> None:
        self.standing = Decisions()
        self._partitions = partitions
        self._desk = desk
        self._read_limits, self._limits_seconds = limits, limits_seconds
        self._limits = Limits()
        self._buckets: dict[str, tuple[float, float]] = {}  # device -> tokens, when
        self._offered: list[pl.DataFrame] = []  # since the last turn
        self._ticks: deque[tuple[float, pl.DataFrame]] = deque(maxlen=DEMAND_TICKS)  # seconds each lasted, what was offered
        self._priority: dict[int, float] = {}  # events of priority metrics since the last turn, per partition
        self._waiting: dict[int, float] = {}  # those that were not admitted
        self._turned = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    # ---- the turn of the controller ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self._desk is not None:
            self._task = asyncio.create_task(self._run(self._desk), name="gate")

    async def stop(self) -> None:
        self._stopping = True  # a client that is just timing out may swallow the cancellation
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=STOP_SECONDS)

    async def _run(self, desk: Desk) -> None:
        read_at, failed = -math.inf, False
        while not self._stopping:
            try:
                if time.monotonic() - read_at >= self._limits_seconds:
                    self._limits = await asyncio.get_running_loop().run_in_executor(None, self._read_limits)
                    read_at = time.monotonic()
                self._stand(await desk.turn(self._demands(), self._limits))
                failed = False
            except PipelineError as error:  # the last decisions stay; what cannot be stored is refused anyway
                if not failed:
                    _log.warning("admission stays as it is: %s", error)
                failed = True
            await asyncio.sleep(DECIDE_SECONDS * random.uniform(0.9, 1.1))

    def _stand(self, decisions: Decisions) -> None:
        before, self.standing = self.standing, decisions
        for partition, decision in decisions.partitions.items():
            if decision.state != before.of(partition).state:
                _log.warning("admission of partition %d: %s -> %s%s", partition, before.of(partition).state, decision.state,
                             f": {decision.reason}" if decision.reason else "")  # fmt: skip
        metrics.ADMISSION_STATE.set(max((STATES.index(each.state) for each in decisions.partitions.values()), default=0))
        if all(decision.state == OPEN for decision in decisions.partitions.values()):
            self._buckets.clear()

    def _demands(self) -> dict[int, Demand]:
        """What was offered here lately, of each partition that is not open."""
        now = time.monotonic()
        elapsed, self._turned = max(1e-3, now - self._turned), now
        offered, self._offered = self._offered, []
        priority, waiting = self._priority, self._waiting
        self._priority, self._waiting = {}, {}
        limited = {partition for partition, decision in self.standing.partitions.items() if decision.state != OPEN or decision.watched}
        if not limited:
            self._ticks.clear()
            return {}
        self._ticks.append((elapsed, pl.concat(offered) if offered else _OFFERED.to_frame()))
        seconds = sum(lasted for lasted, _ in self._ticks)
        rates = pl.concat([rows for _, rows in self._ticks]).group_by("partition", "device").agg(rate=pl.col("rows").sum() / seconds)
        by_partition = {key[0]: part["rate"].to_list() for key, part in rates.partition_by("partition", as_dict=True).items()}
        return {
            each: demand_of(by_partition.get(each, ()), priority.get(each, 0.0) / elapsed, waiting.get(each, 0.0) / elapsed)
            for each in limited
        }

    # ---- a group of bodies -------------------------------------------------------------------------------------------------------

    def leave_out(self, events: Coded, refused: pl.DataFrame, whole: Sequence[bool]) -> Left | None:
        """What of a group is not admitted; None: nothing. `refused`: dead letters, which weigh as events do.

        `whole`: per body, whether it is taken whole or not at all. Bodies are judged in their order.
        """
        states = {partition: each for partition, each in self.standing.partitions.items() if each.state != OPEN or each.watched}
        if not states:
            return None
        rows = _named(events, refused).with_columns(body=pl.col("body").cast(pl.UInt32))
        devices = rows.select(pl.col("device").unique())
        owner = pl.Series("partition", [partition_of(device, self._partitions) for device in devices["device"].to_list()], dtype=pl.UInt32)
        devices = devices.with_columns(owner).filter(pl.col("partition").is_in(list(states)))
        if devices.is_empty():
            return None
        limited = rows.join(devices, on="device", maintain_order="left")
        shut = [partition for partition, each in states.items() if each.shut]
        priority = priority_of(limited["metric"], self._limits.priority)
        limited = limited.with_columns(priority=priority & ~pl.col("partition").is_in(shut))
        for partition, count in limited.filter("priority").group_by("partition").len().iter_rows():
            self._priority[partition] = self._priority.get(partition, 0.0) + count
        limited = limited.filter(~pl.col("priority"))
        if limited.is_empty():
            return None
        units = limited.group_by("body", "device", "partition", maintain_order=True).agg(rows=pl.len())
        numbers = {device: number for number, device in enumerate(devices["device"].to_list())}
        judged = self._judge(units, devices, numbers, whole)
        out = judged.filter(~pl.col("admitted"))
        if out.is_empty():
            return None
        waits = dict(out.group_by("body").agg(pl.col("wait_seconds").max()).iter_rows())
        broken = [body for body in waits if whole[body]]
        named = out.join(devices.select(name="device").with_row_index("device"), on="device").select("body", device="name")
        left = limited.join(named, on=["body", "device"], how="semi", maintain_order="left").select("body", "index")
        left = pl.concat([left.filter(~pl.col("body").is_in(broken)), rows.filter(pl.col("body").is_in(broken)).select("body", "index")])
        return Left(left.sort("body", "index"), {body: _spread(wait) for body, wait in waits.items()})

    def _judge(self, units: pl.DataFrame, devices: pl.DataFrame, numbers: dict[str, int], whole: Sequence[bool]) -> pl.DataFrame:
        now = time.monotonic()
        tokens, levels = [], []
        if len(self._buckets) > DEVICES_MAX:
            self._buckets.clear()
        for device, partition in devices.iter_rows():
            decision = self.standing.of(partition)
            held, at = self._buckets.get(device, (decision.level * BURST_SECONDS, now))
            refill = refilled(held, decision.level, now - at)
            tokens.append(refill if decision.state == FAIR else -math.inf if decision.state == CLOSED else math.inf)
            levels.append(decision.level)
        known = devices.with_columns(pl.Series("tokens", tokens, dtype=pl.Float64), pl.Series("level", levels, dtype=pl.Float64))
        told = units.join(known.select("device", "tokens", "level"), on="device", maintain_order="left")
        told = told.with_columns(device=pl.col("device").replace_strict(numbers, return_dtype=pl.UInt32))
        whole_bodies = pl.DataFrame({"body": [body for body, is_whole in enumerate(whole) if is_whole]}, schema={"body": pl.UInt32()})
        judged = admit(told.select(pl.col(name).cast(dtype) for name, dtype in UNITS.items()), whole_bodies)
        taken = dict(judged.filter("admitted").group_by("device").agg(pl.col("rows").sum()).iter_rows())
        for number, (device, partition) in enumerate(devices.iter_rows()):
            if self.standing.of(partition).state == FAIR:
                self._buckets[device] = (tokens[number] - taken.get(number, 0), now)
        self._offered.append(units.group_by("partition", "device").agg(pl.col("rows").sum().cast(pl.Float64)).select(list(_OFFERED)))
        waiting = units.with_columns(judged["admitted"]).filter(~pl.col("admitted")).group_by("partition").agg(pl.col("rows").sum())
        for partition, count in waiting.iter_rows():
            self._waiting[partition] = self._waiting.get(partition, 0.0) + count
            metrics.EVENTS_NOT_ADMITTED.labels(self.standing.of(partition).state).inc(count)
        return judged


def _named(events: Coded, refused: pl.DataFrame) -> pl.DataFrame:
    """body, index, device, metric of all rows; dead letters have no metric."""
    names = (events.names[field].gather(events.rows[field]).alias(field) for field in ("device", "metric"))
    good = events.rows.select("body", "index", *names)
    bad = refused.select("body", "index", "device", metric=pl.lit("", pl.String))
    return pl.concat([good, bad], how="vertical_relaxed").sort("body", "index", maintain_order=True)


def _spread(wait_seconds: float) -> float:
    return wait_seconds * random.uniform(1, SPREAD)
