"""step(state, batch, rules) -> (state, output): the heart. What comes out is a function of the stream alone.

One state and one step serve all partitions of a worker, since a call costs the same for one as for twenty. Devices do not
share partitions, so nothing here lets one partition's rows touch another's: however partitions are put together or
taken apart, and wherever their streams are cut, the same rows come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import polars as pl

from pipeline.core import alerts, anomalies, cardinality, counters
from pipeline.core.rules import BOUNDS, SEVERITIES, Rules
from pipeline.core.runs import Runs
from pipeline.core.schema import (
    AGGREGATES,
    ANOMALIES,
    EVENTS,
    LATE,
    NO_DEAD_ROWS,
    PLACE,
    SERIES_NAMES,
    log_time,
    marked,
    of_series,
    parted,
    stacked,
    without_rows,
)
from pipeline.core.semantics import NEVER, Semantics
from pipeline.core.setaside import TOO_LATE, dead_rows
from pipeline.core.watermarks import (
    DEVICES,
    WINDOWS,
    arrive,
    close_early,
    heaviest,
    last_closed,
    numbered,
    of_device,
    passed,
    running,
    silent,
    strides,
)
from pipeline.core.windows import NO_SUMMARIES, OPEN_ROWS, revise, summarise, window_of

BATCH_EVENTS = pl.Schema({"partition": pl.Int32(), "entry": pl.Int64(), **EVENTS})
ENTRIES = pl.Schema({"partition": pl.Int32(), "entry": pl.Int64(), "rows": pl.UInt32()})
# Every series known, with its last sample in a closed window (null: none yet), which a counter's increase starts from.
# `series`, its number, is its place in the frame, so that what is known of it is looked up without a join.
SERIES = pl.Schema(
    {
        "series": pl.UInt32(),
        "partition": pl.Int32(),
        "device_number": pl.UInt32(),
        **{name: pl.Categorical() for name in SERIES_NAMES},
        "before_value": pl.Float64(),
        "before_exact": pl.UInt64(),
        "before_time": pl.Int64(),
        "guard_upper": pl.Float64(),
        "guard_lower": pl.Float64(),
    }
)
NO_CUTS = pl.Schema({"partition": pl.Int32(), "entry": pl.Int64()}).to_frame()

# Each step adds a chunk to the open rows. More make every look at them slow; fewer mean copying them more often.
OPEN_CHUNKS_MAX = 32


@dataclass(frozen=True)
class Batch:
    """What was read: events and dead letters in stream order, and every entry they came in, ticks included."""

    events: pl.DataFrame = field(default_factory=BATCH_EVENTS.to_frame)
    entries: pl.DataFrame = field(default_factory=ENTRIES.to_frame().clone)  # sorted by partition, entry
    dead_letters: pl.DataFrame = field(default_factory=NO_DEAD_ROWS.clone)


@dataclass(frozen=True)
class State:
    """All that a worker knows between two steps. `positions`: the last entry applied, per partition held."""

    positions: Mapping[int, int] = field(default_factory=dict)
    series: pl.DataFrame = field(default_factory=SERIES.to_frame)
    devices: pl.DataFrame = field(default_factory=DEVICES.to_frame)
    windows: pl.DataFrame = field(default_factory=WINDOWS.to_frame().clone)
    open: pl.DataFrame = field(default_factory=OPEN_ROWS.to_frame().clone)
    active: pl.DataFrame = field(default_factory=alerts.ACTIVE.to_frame().clone)
    bounds: pl.DataFrame = field(default_factory=BOUNDS.to_frame().clone)
    rules: Rules | None = field(default_factory=Rules)  # that `bounds` are of; None: to be resolved anew at the next step

    @property
    def rules_version(self) -> int:
        """-1: none yet."""
        return -1 if self.rules is None else self.rules.version

    def with_partition(self, other: State) -> State:
        """This state and that of partitions it does not have yet. Numbers of series and devices are moved apart."""
        if not self.positions:
            return replace(other, rules=None)
        series = pl.col("series") + self.series.height
        device = pl.col("device_number") + self.devices.height
        return replace(
            self,
            positions={**self.positions, **other.positions},
            series=pl.concat([self.series, other.series.with_columns(series, device)]),
            devices=pl.concat([self.devices, other.devices]),
            windows=pl.concat([self.windows, other.windows.with_columns(device)]),
            open=pl.concat([self.open, other.open.with_columns(series, device)]),
            active=pl.concat([self.active, other.active.with_columns(series)]),
            rules=None,
        )

    def without_partition(self, partition: int) -> State:
        """This state without what belongs to `partition`. Numbers of series and devices close up."""
        others = pl.col("partition") != partition

        def closed_up(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
            number = {"series": self.series, "device_number": self.devices}
            places = {column: number[column].select(others.cast(pl.UInt32).cum_sum() - 1).to_series() for column in columns}
            return frame.with_columns(places[column].gather(frame[column]).alias(column) for column in columns)

        windows = of_device(self.windows, self.devices, "partition").filter(others).drop("partition")
        return replace(
            self,
            positions={p: position for p, position in self.positions.items() if p != partition},
            series=closed_up(self.series.filter(others), "series", "device_number"),
            devices=self.devices.filter(others),
            windows=closed_up(windows, "device_number"),
            open=closed_up(self.open.filter(others), "series", "device_number"),
            active=closed_up(self.active.filter(others), "series"),
            rules=None,
        )


@dataclass(frozen=True)
class Output:
    """Rows for the tables, and alert transitions. All in the order of the stream where it matters."""

    aggregates: pl.DataFrame = field(default_factory=AGGREGATES.to_frame)
    anomalies: pl.DataFrame = field(default_factory=ANOMALIES.to_frame)
    late: pl.DataFrame = field(default_factory=LATE.to_frame)
    dead_letters: pl.DataFrame = field(default_factory=NO_DEAD_ROWS.clone)
    transitions: pl.DataFrame = field(default_factory=alerts.NO_TRANSITIONS.clone)


@dataclass(frozen=True)
class _Round:
    """What one round found, before names are put to it."""

    summaries: pl.DataFrame
    late: pl.DataFrame
    flagged: pl.DataFrame  # samples of events and windows that are anomalies
    transitions: pl.DataFrame


def step(state: State, batch: Batch, rules: Rules, semantics: Semantics) -> tuple[State, Output]:
    """Apply a micro-batch of any partitions that the state holds."""
    state, withdrawn = _take_rules(state, rules)
    state, events, dead = _number_series(state, batch.events, rules, semantics)
    events = events.with_columns(
        log_time=log_time(pl.col("entry")),
        window=window_of(pl.col("event_time"), semantics.width),
        running=running(events, state.devices),
    )
    # Dead letters leave no trace in the aggregates, so none on their device either: they are no sign of life.
    beyond = events["running"] - events["event_time"] > semantics.lateness_max
    if beyond.any():
        dead.append(dead_rows(events.filter(beyond), "timestamp", TOO_LATE))
        events = events.filter(~beyond)
    found: list[_Round] = []
    entries = batch.entries.with_columns(log_time=log_time(pl.col("entry")))
    cuts = _cuts(events, entries, semantics)
    while not entries.is_empty():
        taken, entries = _next_round(entries, cuts, state, semantics)
        if entries.is_empty() and not found:
            rows = events
        else:
            rows = events.join(taken.select("partition", "entry"), on=["partition", "entry"], how="semi", maintain_order="left")
        state, one = _advance(state, rows, taken, semantics)
        found.append(one)
    return state, _named(state, found, [batch.dead_letters, *dead], withdrawn, rules.version)


def _take_rules(state: State, rules: Rules) -> tuple[State, pl.DataFrame]:
    """Swap the rules in where they are new; alerts that they no longer ask for are resolved."""
    if state.rules == rules:  # not by its number alone: a Redis that forgot a version gives its number to another document
        return state, alerts.NO_TRANSITIONS
    bounds = rules.resolve(state.series)
    resolved, active = alerts.withdraw(state.active, bounds)
    series = state.series.drop("guard_upper", "guard_lower").join(anomalies.guards(bounds), on="series", how="left", maintain_order="left")
    return replace(state, bounds=bounds, active=active, series=series, rules=rules), resolved


def _number_series(
    state: State, events: pl.DataFrame, rules: Rules, semantics: Semantics
) -> tuple[State, pl.DataFrame, list[pl.DataFrame]]:
    """Put the number of its series and device, and the guards of its rules, to each event; register those that are new.

    Events of series that are not known even then are set aside: the dead letters.
    """
    numbered = _looked_up(events, state.series)
    if not numbered["series"].null_count():
        return state, numbered, []
    before = state.devices
    if (new := cardinality.taken(numbered, state.series, before, semantics)).height:
        state = _registered(state, new, rules)
        numbered = _looked_up(events, state.series)
    if not numbered["series"].null_count():
        return state, numbered, []
    return state, numbered.filter(pl.col("series").is_not_null()), cardinality.aside(numbered, before, semantics)


def _looked_up(events: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    """Events with what is known of their series. Of devices that sent nothing none is looked at: a join costs by what it may find."""
    known = series[[*SERIES_NAMES, "series", "device_number", "guard_upper", "guard_lower"]]
    sent, devices = events["device"].to_physical(), known["device"].to_physical()
    known = known.filter(marked(sent, 1 + max(sent.max() or 0, devices.max() or 0))[devices])
    return events.join(known, on=list(SERIES_NAMES), how="left", maintain_order="left")


def _registered(state: State, new: pl.DataFrame, rules: Rules) -> State:
    """The state with new series (partition and names), and with their devices where these are new."""
    fresh = new.select("device", "partition").unique("device", keep="first", maintain_order=True)
    fresh = fresh.join(state.devices, on="device", how="anti", maintain_order="left")
    fresh = fresh.with_columns(newest=NEVER, arrived=NEVER, closed_to=NEVER).select(pl.col(n).cast(t) for n, t in DEVICES.items())
    devices = pl.concat([state.devices, fresh])
    new = new.join(numbered(devices).select("device", "device_number"), on="device", maintain_order="left")
    new = new.with_columns(series=pl.int_range(new.height, dtype=pl.UInt32, eager=True) + state.series.height)
    bounds = rules.resolve(new)
    new = new.join(anomalies.guards(bounds), on="series", how="left", maintain_order="left")
    series = pl.concat([state.series, new.select(pl.col(n) if n in new.columns else pl.lit(None, t).alias(n) for n, t in SERIES.items())])
    return replace(state, series=series, devices=devices, bounds=pl.concat([state.bounds, bounds]))


def _cuts(events: pl.DataFrame, entries: pl.DataFrame, semantics: Semantics) -> pl.DataFrame:
    """Entries before which a round must end: a device comes back in them after a silence that began in this batch.

    Only a batch that spans more log time than `idle_after` can have one.
    """
    if entries.is_empty() or entries["log_time"].max() - entries["log_time"].min() <= semantics.idle_after:
        return NO_CUTS
    arrivals = events.select("partition", "device_number", "entry", "log_time")
    arrivals = arrivals.unique(["device_number", "entry"], keep="first", maintain_order=True)
    gap = pl.col("log_time") - pl.col("log_time").shift(1).over("device_number")
    return arrivals.filter(gap > semantics.idle_after).select("partition", "entry").unique()


def _next_round(entries: pl.DataFrame, cuts: pl.DataFrame, state: State, semantics: Semantics) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(entries of the next round, those left): per partition up to the next cut, and within the bound on open rows.

    Within the bound nothing needs to be closed early, so that many entries can be judged at once; an entry that may go
    beyond it makes a round of its own.
    """
    total = entries["rows"].sum() + state.windows["rows"].sum()
    if cuts.is_empty() and total <= semantics.open_rows_max:
        return entries, entries.clear()
    held = of_device(state.windows, state.devices, "partition").group_by("partition").agg(held=pl.col("rows").sum())
    queued = entries.join(held, on="partition", how="left", maintain_order="left").join(
        cuts.with_columns(cut=True), on=["partition", "entry"], how="left", maintain_order="left"
    )
    first = pl.int_range(pl.len()).over("partition") == 0
    fits = pl.col("held").fill_null(0) + pl.col("rows").cum_sum().over("partition") <= semantics.open_rows_max
    stop = ~first & (pl.col("cut").fill_null(False) | ~fits)
    queued = queued.with_columns(later=stop.cum_max().over("partition"))
    return queued.filter(~pl.col("later")).select(entries.columns), queued.filter("later").select(entries.columns)


def _advance(state: State, rows: pl.DataFrame, entries: pl.DataFrame, semantics: Semantics) -> tuple[State, _Round]:
    """One round: a run of entries in which no silence begins and ends, and no bound is met but by a single entry.

    In it, per device: silence before its first row closes windows; its rows move its event time and close windows, or are
    late; silence up to the round's last entry closes windows. `entries` say what time it is in each partition.
    """
    moves = strides(rows, semantics)
    devices = arrive(state.devices, moves)

    closings = [silent(state.windows, devices, "first", semantics)]
    devices = close_early(devices, closings[0], semantics)
    open_windows = _except(state.windows, closings[0])

    watermark = pl.max_horizontal(pl.col("running") - semantics.disorder, devices["closed_to"][rows["device_number"]])
    rows = rows.with_columns(is_late=pl.col("window") + semantics.width <= watermark, lateness=watermark - pl.col("event_time"))
    late, on_time = parted(rows, "is_late")

    runs = Runs.of(on_time, "device_number", "window")  # a device's samples mostly come together, so that few are left to be grouped
    counts = runs.first(on_time["device_number", "window"]).with_columns(rows=pl.Series(runs.counts).cast(pl.UInt32))
    open_windows = pl.concat([open_windows, counts]).group_by("device_number", "window").agg(pl.col("rows").sum())
    devices = devices.with_columns(newest=pl.max_horizontal("newest", "largest"), arrived=pl.max_horizontal("arrived", "last"))
    closings.append(passed(open_windows, devices, moves, semantics))
    open_windows = _except(open_windows, closings[1])

    newest = Runs.of(entries, "partition").last(entries)
    devices = devices.join(newest.select("partition", now="log_time"), on="partition", how="left", maintain_order="left")
    closings.append(silent(open_windows, devices, "now", semantics))
    devices = close_early(devices, closings[2], semantics)
    open_windows = _except(open_windows, closings[2])

    if open_windows["rows"].sum() > semantics.open_rows_max:
        closings.append(heaviest(open_windows, devices, semantics))
        devices = close_early(devices, closings[3], semantics)
        open_windows = _except(open_windows, closings[3])

    breaches, flagged = anomalies.of_events(rows, state.open, state.series, state.bounds, state.active)

    open_rows = state.open.vstack(on_time[list(OPEN_ROWS)])
    closing = stacked(closings)
    positions = {**state.positions, **dict(zip(newest["partition"], newest["entry"], strict=True))}
    state = replace(state, devices=devices[list(DEVICES)], windows=open_windows, positions=positions)
    summaries = NO_SUMMARIES
    if closing.height:
        is_closed = (open_rows["window"] <= last_closed(devices, closing)[open_rows["device_number"]]).fill_null(False)
        closed, open_rows = open_rows.filter(is_closed), open_rows.filter(~is_closed)
        summaries = summarise(closed, closing, state.series, semantics)
        state = replace(state, series=_remember(state.series, summaries))
    if late.height:
        summaries = pl.concat([summaries, revise(late.with_columns(newest="running", arrived="log_time"))])
    if open_rows.n_chunks() > OPEN_CHUNKS_MAX:
        open_rows = open_rows.rechunk()
    state = replace(state, open=open_rows)
    of_windows = anomalies.window_samples(summaries, state.bounds, semantics.width)
    samples = stacked([breaches, of_windows])
    transitions, active = alerts.evaluate(samples.filter(~samples["stale"])[list(alerts.SAMPLES)], state.active)
    state = replace(state, active=active)
    flagged = stacked([flagged, of_windows.filter(pl.col("level") >= 1)]) if of_windows.height else flagged
    return state, _Round(summaries, late, flagged, transitions)


def _except(open_windows: pl.DataFrame, closings: pl.DataFrame) -> pl.DataFrame:
    if closings.is_empty():
        return open_windows
    return open_windows.join(closings, on=["device_number", "window"], how="anti", maintain_order="left")


def _remember(series: pl.DataFrame, summaries: pl.DataFrame) -> pl.DataFrame:
    """`series` with the last sample of each that had a window closed. `summaries` are by series and window."""
    newest = summaries.filter((pl.col("series") != pl.col("series").shift(-1)).fill_null(True))
    columns = {"before_value": "last", "before_exact": "last_exact", "before_time": "last_time"}
    # `scatter` changes in place, so it is given a copy.
    return series.with_columns(series[old].clone().scatter(newest["series"], newest[new]) for old, new in columns.items())


def _named(state: State, found: list[_Round], dead: list[pl.DataFrame], withdrawn: pl.DataFrame, version: int) -> Output:
    """Put names to numbers."""
    if not found:
        return Output(transitions=withdrawn)
    summaries, flagged, late = (stacked([getattr(one, name) for one in found]) for name in ("summaries", "flagged", "late"))
    nowhere = state.series[list(PLACE)].clear()
    return Output(
        aggregates=_aggregate_rows(summaries, state.series) if summaries.height else without_rows(AGGREGATES, nowhere),
        anomalies=_anomaly_rows(flagged, state.series, version) if flagged.height else without_rows(ANOMALIES, nowhere),
        late=late[list(LATE)] if late.height else without_rows(LATE, nowhere),
        dead_letters=stacked(dead),
        transitions=stacked([withdrawn, *(one.transitions for one in found)]),
    )


def _aggregate_rows(summaries: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    quality = pl.col("quality_code").replace_strict(range(4), counters.QUALITIES, return_dtype=pl.String)
    return of_series(summaries, series, *SERIES_NAMES).with_columns(quality=quality).select(list(AGGREGATES))


def _anomaly_rows(flagged: pl.DataFrame, series: pl.DataFrame, version: int) -> pl.DataFrame:
    distance = (pl.col("value") - pl.col("bound")).abs()
    return of_series(flagged, series, *SERIES_NAMES).select(
        *(["partition", *SERIES_NAMES]),
        pl.col("time").alias("event_time"),
        "window",
        "rule",
        pl.lit(version, pl.Int32).alias("rules_version"),
        (pl.col("level") - 1).replace_strict(range(2), SEVERITIES, return_dtype=pl.String).alias("severity"),
        "statistic",
        "value",
        "bound",
        (distance / pl.max_horizontal(pl.col("bound").abs(), pl.lit(1.0))).alias("score"),
        "arrived",
    )
