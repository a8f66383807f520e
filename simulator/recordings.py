"""Recordings on disk as one stream of events in order of time, in memory a stretch at a time.

A plan (one pass over the times and devices) says how many events each second holds; a stretch is as many whole seconds
as hold about `STRETCH_EVENTS`. Each stretch is one filtered scan of the files it touches. Memory: two stretches, and 32 bytes for
each second that has events. A Parquet file in order of time is read once in all; one that is not (or CSV, NDJSON) is read again for
each of its stretches: sorting a file much larger than memory by time first pays off. NDJSON is read once more, for its columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from simulator.errors import UserError

STRETCH_EVENTS = 400_000
GAP_US = 5_000_000  # recorded gaps over this take no time in a replay
YEARS_MS = (-62_135_596_800_000, 253_402_300_799_999)  # 1 to 9999, what RFC 3339 can say; epoch us or ns taken for ms are beyond
_EVENT = ["device", "interface", "metric", "value", "timestamp", "kind", "tags"]
_READERS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".parquet": pl.scan_parquet,
    ".csv": lambda path: pl.scan_csv(path, infer_schema=False),  # text: an inferred type would round integers over 2^63
    # Looked through to its end: a column or a tag that no line so far had would be left out of all events.
    ".ndjson": lambda path: pl.scan_ndjson(path, infer_schema_length=None, schema_overrides={"value": pl.String}),
}
_ALIASES = {".pq": ".parquet", ".jsonl": ".ndjson"}


@dataclass(frozen=True)
class Plan:
    """seconds: start (us), events, first, last (us), in order; devices in order of their number of events, most first."""

    seconds: pl.DataFrame
    devices: list[str]

    @property
    def events(self) -> int:
        return int(self.seconds["events"].sum())

    @property
    def played_us(self) -> int:
        """Recorded time without the gaps that are jumped."""
        gaps = (self.seconds["first"] - self.seconds["last"].shift(1)).fill_null(0)
        jumped = int(gaps.filter(gaps > GAP_US).sum())
        return self.last_us - self.first_us - jumped if self.seconds.height else 0

    @property
    def first_us(self) -> int:
        return int(self.seconds["first"][0])

    @property
    def last_us(self) -> int:
        return int(self.seconds["last"][-1])

    def stretches(self) -> list[tuple[int, int]]:
        """Bounds [from, to) in us, covering all events. A stretch holds STRETCH_EVENTS, or its one second if that has more."""
        if not self.seconds.height:
            return []
        number = (self.seconds["events"].cum_sum() - 1) // STRETCH_EVENTS
        bounds = self.seconds.group_by(number, maintain_order=True).agg(pl.col("start").first())["start"].to_list()
        return list(zip(bounds, [*bounds[1:], self.last_us + 1], strict=True))


class Recordings:
    """Files of events. `notices` says what was ignored in them. UserError for a file that cannot be used."""

    def __init__(self, paths: list[Path], start: datetime | None = None, end: datetime | None = None) -> None:
        ignored: dict[str, int] = {}  # column -> files that have it
        frames = {path: _open(path, ignored) for path in paths}
        self.notices = [f"ignoring column {name} ({files} of {len(paths)} files)" for name, files in ignored.items()]
        plain = all(frame.collect_schema()["value"] == pl.Float64 for frame in frames.values())
        self._frames = {path: _normal(frame, path, plain).filter(*_slice(start, end)) for path, frame in frames.items()}
        self._spans: dict[Path, tuple[int, int]] = {}

    def plan(self) -> Plan:
        """Read times and devices of all files once."""
        seconds, devices = [], []
        for path, frame in self._frames.items():
            at = pl.col("timestamp").dt.epoch("us")
            by_second = frame.group_by(start=at // 1_000_000 * 1_000_000)
            second = _collect(path, by_second.agg(events=pl.len(), first=at.min(), last=at.max()))
            devices.append(_collect(path, frame.group_by("device").agg(events=pl.len())))
            if unread := second.filter(pl.col("start").is_null())["events"].sum():
                way_out = "expected RFC 3339 or epoch milliseconds, of the years 1 to 9999"
                raise UserError(f"{path}: {unread} rows without a readable timestamp; {way_out}")
            if second.height:
                self._spans[path] = (int(second["first"].min()), int(second["last"].max()))  # type: ignore[arg-type]
            seconds.append(second)
        merged = pl.concat(seconds).group_by("start").agg(pl.col("events").sum(), pl.col("first").min(), pl.col("last").max()).sort("start")
        ranked = pl.concat(devices).group_by("device").agg(pl.col("events").sum()).sort(-pl.col("events").cast(pl.Int64), "device")
        return Plan(merged, ranked["device"].to_list())

    def read(self, from_us: int, to_us: int) -> pl.DataFrame:
        """The events of all files in [from, to), in order of time; equal times in the order of the files and their rows."""
        bounds = pl.col("timestamp").is_between(*(pl.lit(us).cast(pl.Datetime("us", "UTC")) for us in (from_us, to_us)), closed="left")
        touched = [path for path, (first, last) in self._spans.items() if first < to_us and last >= from_us]
        parts = [_collect(path, self._frames[path].filter(bounds)) for path in touched]
        return pl.concat(parts, how="diagonal_relaxed").sort("timestamp", maintain_order=True)


def _collect(path: Path, frame: pl.LazyFrame) -> pl.DataFrame:
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from None


def _open(path: Path, ignored: dict[str, int]) -> pl.LazyFrame:
    suffix = _ALIASES.get(path.suffix.lower(), path.suffix.lower())
    if suffix not in _READERS:
        raise UserError(f"{path}: not a recording that can be read; expected .parquet, .csv, .ndjson or .jsonl")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        frame = _READERS[suffix](path)
        columns = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from None
    if missing := [name for name in ("device", "metric", "value", "timestamp") if name not in columns]:
        raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(columns)}")
    for name in [name for name in columns if name not in _EVENT]:
        ignored[name] = ignored.get(name, 0) + 1
    return frame.select(name for name in _EVENT if name in columns)


def _normal(frame: pl.LazyFrame, path: Path, plain: bool) -> pl.LazyFrame:
    """The columns of wire.py. `plain`: all files have float values, so one column can hold them."""
    schema = frame.collect_schema()
    columns = {
        "device": pl.col("device").cast(pl.String),
        "interface": pl.col("interface").cast(pl.String).fill_null("") if "interface" in schema else pl.lit(""),
        "metric": pl.col("metric").cast(pl.String),
        "timestamp": _time(schema["timestamp"], path),
    }
    if "kind" in schema:
        columns["kind"] = pl.col("kind").cast(pl.String)
    if "tags" in schema:
        columns["tags"] = _tags(schema["tags"], path)
    return frame.select(**columns, **({"value": pl.col("value")} if plain else _value(schema["value"])))


def _time(kind: pl.DataType, path: Path) -> pl.Expr:
    """Null where there is none, or one of a year beyond: left out before ms become us, as that would overflow into some other year."""
    at = pl.col("timestamp")
    if isinstance(kind, pl.Datetime):
        at = pl.when(at.dt.epoch("ms").is_between(*YEARS_MS)).then(at)
        at = at.dt.replace_time_zone("UTC") if kind.time_zone is None else at.dt.convert_time_zone("UTC")
        return at.cast(pl.Datetime("us", "UTC"))
    number = at.cast(pl.Int64, strict=False)
    number = pl.from_epoch(pl.when(number.is_between(*YEARS_MS)).then(number) * 1000, "us").dt.replace_time_zone("UTC")
    if kind.is_integer():
        return number
    if kind == pl.String:
        text = at.str.to_datetime(time_unit="us", time_zone="UTC", strict=False, format="%+")
        return pl.coalesce(number, pl.when(text.dt.epoch("ms").is_between(*YEARS_MS)).then(text))
    raise UserError(f"{path}: column timestamp is {kind}; expected a timestamp, RFC 3339 text or epoch milliseconds")


def _value(kind: pl.DataType) -> dict[str, pl.Expr]:
    """Integers, other numbers, and text that is neither (sent as it is, for the API to refuse), apart: no integer is rounded."""
    value = pl.col("value")
    empty = {"integer": pl.lit(None, pl.Int128), "number": pl.lit(None, pl.Float64), "text": pl.lit(None, pl.String)}
    if kind.is_integer() or kind == pl.Boolean or (isinstance(kind, pl.Decimal) and kind.scale == 0):
        return empty | {"integer": value.cast(pl.Int128)}
    if kind != pl.String:
        return empty | {"number": value.cast(pl.Float64)}
    boolean = value.replace_strict({"true": 1, "false": 0}, default=None, return_dtype=pl.Int128)
    integer = pl.coalesce(value.cast(pl.Int128, strict=False), boolean)
    number = pl.when(integer.is_null()).then(value.cast(pl.Float64, strict=False))
    return {"integer": integer, "number": number, "text": pl.when(integer.is_null() & number.is_null()).then(value)}


def _tags(kind: pl.DataType, path: Path) -> pl.Expr:
    if isinstance(kind, pl.Struct):
        return pl.col("tags")
    raise UserError(f"{path}: column tags is {kind}; expected an object (struct) of strings; leave it out, or convert to NDJSON or Parquet")


def _slice(start: datetime | None, end: datetime | None) -> list[pl.Expr]:
    """[start, end). A row without a time passes, so that plan() can report it."""
    at = pl.col("timestamp")
    bounds = ([at >= start] if start else []) + ([at < end] if end else [])
    return [at.is_null() | bound for bound in bounds]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
