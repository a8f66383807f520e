"""A rules document: validated whole, then resolved to bounds per series. Which lines name what is the caller's to know.

    rules:
      - name: cpu-high
        metric: ["*cpu*utilization*"]     # patterns: * and ?; without a slash they also match a path's last part
        device: ["core-*"]                # default: all
        on: event                         # each event at once; or window: a statistic of each closed window
        upper: {warning: 80, critical: 95, clear: 75}
        for: 30s
        overrides:                        # the first that matches replaces the bounds
          - device: ["lab-*"]
            upper: {warning: 99}
    admission:                            # when clients are asked to wait; each part may be left out
      fair: {lag: 5s, backlog_events: 1000000, memory_share: 0.6, commit: 20s}
      closed: {lag: 30s, backlog_events: 5000000, memory_share: 0.75, commit: 2m}
      priority: ["*oper-status*", "*bgp*"]

A value breaches a bound when it lies beyond it, never on it. Between the clear level and the bound, an alert stays as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pipeline.core.admission import WAIT_SECONDS_MAX, Limits, Threshold
from pipeline.core.patterns import matches
from pipeline.errors import Invalid

STATISTICS = ("mean", "max", "min", "sum", "count", "last", "stddev", "p50", "p95", "p99", "increase", "rate")
SEVERITIES = ("warning", "critical")
RULES_MAX = 1000  # their overrides among them: each is a pass over new series
NAME_CHARS_MAX = 100
PATTERNS_CHARS_MAX = 4000  # of one list, so that it stays one regex of a size that Polars compiles
FOR_HOURS_MAX = 30 * 24
_UNITS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}

# What each rule asks of each series. A missing bound is null. `event`: of each event, else of a closed window's statistic.
BOUNDS = pl.Schema(
    {
        "series": pl.UInt32(),
        "rule": pl.String(),
        "event": pl.Boolean(),
        "statistic": pl.String(),
        "upper_warning": pl.Float64(),
        "upper_critical": pl.Float64(),
        "upper_clear": pl.Float64(),
        "lower_warning": pl.Float64(),
        "lower_critical": pl.Float64(),
        "lower_clear": pl.Float64(),
        "for_us": pl.Int64(),
    }
)


@dataclass(frozen=True)
class Levels:
    """One side's bounds. `clear` defaults to the mildest of the others."""

    warning: float | None = None
    critical: float | None = None
    clear: float | None = None


@dataclass(frozen=True)
class Scope:
    """Patterns that a series must match, and the bounds it then has."""

    device: tuple[str, ...]
    interface: tuple[str, ...]
    upper: Levels
    lower: Levels
    disabled: bool = False


@dataclass(frozen=True)
class Rule:
    """One rule; what it asks of a series is said by the first override that matches, else by its scope."""

    name: str
    metric: tuple[str, ...]
    event: bool
    statistic: str
    for_us: int
    scope: Scope
    overrides: tuple[Scope, ...] = ()


@dataclass(frozen=True)
class Rules:
    """One version of the document, ready to be applied. Version 0 has no rules."""

    version: int = 0
    rules: tuple[Rule, ...] = field(default=())
    admission: Limits = field(default_factory=Limits)

    def resolve(self, series: pl.DataFrame) -> pl.DataFrame:
        """BOUNDS of each series (with columns series, device, interface, metric) under each rule that matches it."""
        names = series.select("series", pl.col("device", "interface", "metric").cast(pl.String))
        parts = [BOUNDS.to_frame()]
        for rule in self.rules:
            left = names.filter(matches("metric", rule.metric) & _in_scope(rule.scope))
            for scope in rule.overrides:
                mine = left.filter(_in_scope(scope))
                left = left.join(mine, on="series", how="anti", maintain_order="left")
                parts.append(_bounds(mine, rule, scope))
            parts.append(_bounds(left, rule, rule.scope))
        return pl.concat(parts)


def _bounds(series: pl.DataFrame, rule: Rule, scope: Scope) -> pl.DataFrame:
    if scope.disabled:
        series = series.clear()
    values = {
        "rule": rule.name, "event": rule.event, "statistic": rule.statistic,
        "upper_warning": scope.upper.warning, "upper_critical": scope.upper.critical, "upper_clear": scope.upper.clear,
        "lower_warning": scope.lower.warning, "lower_critical": scope.lower.critical, "lower_clear": scope.lower.clear,
        "for_us": rule.for_us,
    }  # fmt: skip
    return series.select("series", *(pl.lit(value, BOUNDS[name]).alias(name) for name, value in values.items()))


def _in_scope(scope: Scope) -> pl.Expr:
    return matches("device", scope.device) & matches("interface", scope.interface)


class _Reader:
    """Walks a parsed document; each complaint names line and field."""

    def __init__(self, lines: Mapping[tuple, int]) -> None:
        self._lines = lines

    def fail(self, path: tuple, message: str) -> Invalid:
        line = next((self._lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self._lines), 1)
        name = ""
        for part in path:
            name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
        return Invalid(f"line {line}: {name or 'document'}: {message}")

    def mapping(self, value: Any, path: tuple, known: Sequence[str]) -> dict:
        if not isinstance(value, dict):
            raise self.fail(path, f"must be a mapping, not {_kind(value)}")
        for key in value:
            if key not in known:
                raise self.fail((*path, key), f"is not known here; known are {', '.join(known)}")
        return value

    def patterns(self, value: Any, path: tuple) -> tuple[str, ...]:
        items = value if isinstance(value, list) else [value]
        for item in items:
            if not isinstance(item, str) or not item:
                raise self.fail(path, f"must be a pattern or a list of patterns, not {_kind(item)}")
        if not items:
            raise self.fail(path, "must not be empty")
        if (chars := sum(map(len, items))) > PATTERNS_CHARS_MAX:
            raise self.fail(path, f"has {chars} characters of patterns; {PATTERNS_CHARS_MAX} are allowed")
        return tuple(items)

    def number(self, value: Any, path: tuple) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.fail(path, f"must be a finite number, not {_kind(value)}")
        return float(value)

    def duration(self, value: Any, path: tuple) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value) if isinstance(value, str) else None
        if not match and (value != 0 or isinstance(value, bool)):
            raise self.fail(path, f"must be a duration such as 500ms, 30s, 5m or 1h, not {_shown(value)}")
        found = float(match[1]) * _UNITS[match[2]] if match else 0
        if found > FOR_HOURS_MAX * _UNITS["h"]:
            raise self.fail(path, f"must be at most {FOR_HOURS_MAX}h")
        return int(found)

    def levels(self, value: Any, path: tuple, *, upper: bool) -> Levels:
        given = {key: self.number(item, (*path, key)) for key, item in self.mapping(value, path, (*SEVERITIES, "clear")).items()}
        raised = [given[name] for name in SEVERITIES if name in given]
        if not raised:
            raise self.fail(path, "needs warning or critical")
        sign = 1 if upper else -1
        if len(raised) == 2 and sign * raised[0] > sign * raised[1]:
            raise self.fail((*path, "critical"), f"must not be {'below' if upper else 'above'} warning")
        mildest = raised[0]
        clear = given.get("clear", mildest)
        if sign * clear > sign * mildest:
            raise self.fail(
                (*path, "clear"), f"must not be {'above' if upper else 'below'} {SEVERITIES[0] if 'warning' in given else SEVERITIES[1]}"
            )
        return Levels(given.get("warning"), given.get("critical"), clear)

    def scope(self, value: dict, path: tuple, base: Scope | None) -> Scope:
        disabled = value.get("disabled", False)
        if not isinstance(disabled, bool):
            raise self.fail((*path, "disabled"), "must be true or false")
        bounded = "upper" in value or "lower" in value
        if not bounded and not disabled:
            raise self.fail(path, "needs upper or lower" + ("" if base is None else ", or disabled: true"))
        upper = self.levels(value["upper"], (*path, "upper"), upper=True) if "upper" in value else Levels()
        lower = self.levels(value["lower"], (*path, "lower"), upper=False) if "lower" in value else Levels()
        highest, lowest = (each.critical if each.warning is None else each.warning for each in (upper, lower))
        if highest is not None and lowest is not None and lowest > highest:
            raise self.fail((*path, "lower"), "must not be above upper: every value would be beyond one of them")
        return Scope(
            self.patterns(value.get("device", "*"), (*path, "device")),
            self.patterns(value.get("interface", "*"), (*path, "interface")),
            upper,
            lower,
            disabled,
        )

    def rule(self, value: Any, path: tuple) -> Rule:
        scope_keys = ("device", "interface", "upper", "lower", "disabled")
        value = self.mapping(value, path, ("name", "metric", "on", "statistic", "for", "description", "overrides", *scope_keys))
        name = value.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]*", name) or len(name) > NAME_CHARS_MAX:
            raise self.fail((*path, "name"), f"must be a name of letters, digits, _ . : -, at most {NAME_CHARS_MAX} characters")
        if "metric" not in value:
            raise self.fail(path, "needs metric")
        on = value.get("on", "event")
        if on not in ("event", "window"):
            raise self.fail((*path, "on"), f"must be event or window, not {_shown(on)}")
        statistic = value.get("statistic", "value" if on == "event" else "mean")
        if on == "event" and statistic != "value":
            raise self.fail((*path, "statistic"), "belongs to on: window")
        if on == "window" and statistic not in STATISTICS:
            raise self.fail((*path, "statistic"), f"must be one of {', '.join(STATISTICS)}, not {_shown(statistic)}")
        if not isinstance(value.get("description", ""), str):
            raise self.fail((*path, "description"), "must be text")
        scope = self.scope(value, path, None)
        overrides = value.get("overrides", [])
        if not isinstance(overrides, list):
            raise self.fail((*path, "overrides"), f"must be a list, not {_kind(overrides)}")
        places = [((*path, "overrides", i), item) for i, item in enumerate(overrides)]
        return Rule(
            name,
            self.patterns(value["metric"], (*path, "metric")),
            on == "event",
            statistic,
            self.duration(value.get("for", 0), (*path, "for")),
            scope,
            tuple(self.scope(self.mapping(item, place, scope_keys), place, scope) for place, item in places),
        )

    def limits(self, value: Any, path: tuple) -> Limits:
        """The part about admission; what is not said is as by default."""
        given = self.mapping(value, path, ("fair", "closed", "memory_share_max", "calm", "device_events_per_second_min", "priority"))
        default = Limits()
        fair = self.threshold(given.get("fair", {}), (*path, "fair"), default.fair)
        closed = self.threshold(given.get("closed", {}), (*path, "closed"), default.closed)
        last = self.positive(given.get("memory_share_max", default.memory_share_max), (*path, "memory_share_max"), 1)
        for name in ("lag_seconds", "backlog_events", "memory_share", "commit_seconds"):
            if not getattr(fair, name) < getattr(closed, name):
                raise self.fail((*path, "closed"), f"{name.removesuffix('_seconds')} must be above that of fair")
        if not closed.memory_share < last:
            raise self.fail((*path, "memory_share_max"), "must be above memory_share of closed")
        calm = self.duration(given["calm"], (*path, "calm")) / 1e6 if "calm" in given else default.calm_seconds
        if calm < WAIT_SECONDS_MAX:
            raise self.fail((*path, "calm"), f"must be at least {WAIT_SECONDS_MAX:g}s: clients are told to wait that long")
        least = self.positive(given.get("device_events_per_second_min", 1), (*path, "device_events_per_second_min"))
        priority = given.get("priority", list(default.priority))
        return Limits(fair, closed, last, calm, least, self.patterns(priority, (*path, "priority")) if priority != [] else ())

    def threshold(self, value: Any, path: tuple, default: Threshold) -> Threshold:
        given = self.mapping(value, path, ("lag", "backlog_events", "memory_share", "commit"))
        lag, commit = (
            self.duration(given[name], (*path, name)) / 1e6 if name in given else of_default
            for name, of_default in (("lag", default.lag_seconds), ("commit", default.commit_seconds))
        )
        for name, seconds in (("lag", lag), ("commit", commit)):
            if seconds <= 0:
                raise self.fail((*path, name), "must be more than 0")
        backlog = self.positive(given.get("backlog_events", default.backlog_events), (*path, "backlog_events"))
        return Threshold(lag, backlog, self.positive(given.get("memory_share", default.memory_share), (*path, "memory_share"), 1), commit)

    def positive(self, value: Any, path: tuple, most: float = math.inf) -> float:
        found = self.number(value, path)
        if not 0 < found <= most:
            raise self.fail(path, "must be more than 0" + ("" if most == math.inf else f", and at most {most:g}"))
        return found


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", type(None): "nothing"}
    return names.get(type(value)) or (f"{value:g}" if isinstance(value, float) else repr(value))


def _shown(value: Any) -> str:
    if not isinstance(value, str):
        return _kind(value)
    return repr(value if len(value) <= NAME_CHARS_MAX else f"{value[:NAME_CHARS_MAX]}...")


def parse(document: Any, version: int, lines: Mapping[tuple, int]) -> Rules:
    """The rules of a document, which is valid as a whole or not at all.

    `lines` says at which line each path, such as ("rules", 0, "upper"), begins. Invalid: `line N: rules[0].upper: what is wrong`.
    """
    reader = _Reader(lines)
    top = reader.mapping({} if document is None else document, (), ("rules", "admission"))
    if "rules" not in top:  # a file that was not there, most likely: it would resolve all that stands
        raise reader.fail((), "has no list `rules`: write `rules: []` where no rule is meant")
    items = top["rules"]
    if not isinstance(items, list):
        raise reader.fail(("rules",), f"must be a list, not {_kind(items)}")
    if len(items) > RULES_MAX:
        raise reader.fail(("rules",), f"has {len(items)} rules; {RULES_MAX} are allowed")
    rules = tuple(reader.rule(item, ("rules", i)) for i, item in enumerate(items))
    if (scopes := sum(1 + len(rule.overrides) for rule in rules)) > RULES_MAX:
        raise reader.fail(("rules",), f"has {scopes} rules and overrides; {RULES_MAX} are allowed")
    seen: set[str] = set()
    for i, rule in enumerate(rules):
        if rule.name in seen:
            raise reader.fail(("rules", i, "name"), f"{rule.name!r} is there twice")
        seen.add(rule.name)
    return Rules(version, rules, reader.limits(top.get("admission", {}), ("admission",)))
