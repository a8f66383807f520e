"""The gate: what of a group of bodies is admitted now, and whom to ask to come again. The core decides; buckets are kept here.

Buckets, and who offered how much, are only looked at in partitions that are not open: else the gate costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import polars as pl

from pipeline import metrics
from pipeline.core.admission import (
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
)
from pipeline.core.buckets import Bucket, filled, refilled
from pipeline.core.partitions import partitions_of
from pipeline.core.validate import Coded
from pipeline.errors import PipelineError
from pipeline.stores.admission import DECIDE_SECONDS, Decisions, Desk

_log = logging.getLogger(__name__)

DEMAND_TICKS = 16  # over which a device's rate is taken: in more time than anybody is told to wait, or who waits would seem to be gone
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
        self._buckets: dict[str, Bucket] = {}  # by device
        self._offered: list[pl.DataFrame] = []  # since the last turn
        self._ticks: deque[tuple[float, pl.DataFrame]] = deque(maxlen=DEMAND_TICKS)  # seconds each lasted, what was offered
        self._priority: Counter[int] = Counter()  # events of priority metrics since the last turn, per partition
        self._waiting: Counter[int] = Counter()  # those that were not admitted
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
            # The last decisions stay; what cannot be stored is refused anyway. Another release may say what this one does not know.
            except Exception as error:
                if not failed:
                    _log.warning("admission stays as it is: %s", error, exc_info=not isinstance(error, PipelineError))
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
        """What was offered here lately, of each partition where that matters."""
        now = time.monotonic()
        elapsed, self._turned = max(1e-3, now - self._turned), now
        offered, self._offered = self._offered, []
        priority, waiting = self._priority, self._waiting
        self._priority, self._waiting = Counter(), Counter()
        noted = self.standing.noted
        if not noted:
            self._ticks.clear()
            return {}
        self._ticks.append((elapsed, pl.concat(offered) if offered else _OFFERED.to_frame()))
        seconds = sum(lasted for lasted, _ in self._ticks)
        rates = pl.concat([rows for _, rows in self._ticks]).group_by("partition", "device").agg(rate=pl.col("rows").sum() / seconds)
        by_partition = {key[0]: part["rate"].to_list() for key, part in rates.partition_by("partition", as_dict=True).items()}
        return {
            each: demand_of(by_partition.get(each, ()), priority[each] / elapsed, waiting[each] / elapsed) for each in noted
        }

    # ---- a group of bodies -------------------------------------------------------------------------------------------------------

    def leave_out(self, events: Coded, refused: pl.DataFrame, whole: Sequence[bool]) -> Left | None:
        """What of a group is not admitted; None: nothing. `refused`: dead letters, which weigh as events do.

        `whole`: per body, whether it is taken whole or not at all. Bodies are judged in their order.
        """
        noted = self.standing.noted
        if not noted:
            return None
        rows = _named(events, refused).with_columns(body=pl.col("body").cast(pl.UInt32))
        devices = rows.select(name=pl.col("device").unique())
        devices = devices.with_columns(partitions_of(devices["name"], self._partitions)).filter(pl.col("partition").is_in(list(noted)))
        devices = devices.with_row_index("device")
        if devices.is_empty():
            return None
        limited = rows.rename({"device": "name"}).join(devices, on="name", maintain_order="left")
        shut = [partition for partition, each in noted.items() if each.shut]
        priority = priority_of(limited["metric"], self._limits.priority)
        limited = limited.with_columns(priority=priority & ~pl.col("partition").is_in(shut))
        self._priority.update(dict(limited.filter("priority").group_by("partition").len().iter_rows()))
        limited = limited.filter(~pl.col("priority"))
        if limited.is_empty():
            return None
        units = limited.group_by("body", "device", "partition", maintain_order=True).agg(rows=pl.len())
        out = self._judge(units, devices, whole).filter(~pl.col("admitted"))
        if out.is_empty():
            return None
        waits = {
            body: wait * random.uniform(1, SPREAD) for body, wait in out.group_by("body").agg(pl.col("wait_seconds").max()).iter_rows()
        }
        broken = [body for body in waits if whole[body]]
        left = limited.join(out, on=["body", "device"], how="semi", maintain_order="left").select("body", "index")
        left = pl.concat([left.filter(~pl.col("body").is_in(broken)), rows.filter(pl.col("body").is_in(broken)).select("body", "index")])
        return Left(left.sort("body", "index"), waits)

    def _judge(self, units: pl.DataFrame, devices: pl.DataFrame, whole: Sequence[bool]) -> pl.DataFrame:
        """`admit` on these units; buckets and what is known of the demand go on from there. `devices`: device, name, partition."""
        now = time.monotonic()
        if len(self._buckets) > DEVICES_MAX:
            self._buckets.clear()
        tokens, levels, fair = [], [], []
        for device, name, partition in devices.iter_rows():
            decision = self.standing.of(partition)
            levels.append(decision.level)
            if decision.state == FAIR:
                self._buckets[name] = bucket = refilled(self._buckets.get(name) or filled(decision.level, now), decision.level, now)
                tokens.append(bucket.level)
                fair.append((device, name))
            else:
                tokens.append(-math.inf if decision.state == CLOSED else math.inf)
        known = devices.select("device", pl.Series("tokens", tokens, dtype=pl.Float64), pl.Series("level", levels, dtype=pl.Float64))
        told = units.join(known, on="device", maintain_order="left")
        whole_bodies = pl.DataFrame({"body": [body for body, is_whole in enumerate(whole) if is_whole]}, schema={"body": pl.UInt32()})
        judged = admit(told.select(pl.col(name).cast(dtype) for name, dtype in UNITS.items()), whole_bodies)
        taken = dict(judged.filter("admitted").group_by("device").agg(pl.col("rows").sum()).iter_rows())
        for device, name in fair:
            bucket = self._buckets[name]
            self._buckets[name] = bucket._replace(level=bucket.level - taken.get(device, 0))
        offered = units.join(devices.select("device", "name"), on="device").group_by("partition", device="name")
        self._offered.append(offered.agg(pl.col("rows").sum().cast(pl.Float64)).select(list(_OFFERED)))
        waiting = units.filter(~judged["admitted"]).group_by("partition").agg(pl.col("rows").sum())
        for partition, count in waiting.iter_rows():
            self._waiting[partition] += count
            metrics.EVENTS_NOT_ADMITTED.labels(self.standing.of(partition).state).inc(count)
        return judged


def _named(events: Coded, refused: pl.DataFrame) -> pl.DataFrame:
    """body, index, device, metric of all rows; dead letters have no metric."""
    names = (events.names[field].gather(events.rows[field]).alias(field) for field in ("device", "metric"))
    good = events.rows.select("body", "index", *names)
    bad = refused.select("body", "index", "device", metric=pl.lit("", pl.String))
    return pl.concat([good, bad], how="vertical_relaxed").sort("body", "index", maintain_order=True)
