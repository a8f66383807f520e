"""Raw events -> the valid ones, and those set aside with the field and the reason. Loses none: rows in = valid + refused.

Names travel as codes into lists of distinct names, so that a rule on names looks at each distinct name once. The rules
on types (a value that is no number, a tag that is no string) are the decoder's; here they are null already, or absent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from pipeline.core.kinds import KINDS, Patterns, counter_bits_of
from pipeline.core.schema import DEAD_LETTERS

# What a decoder hands over. `body` and `index` say where a row came from. `event_time` is in microseconds; where it is null
# `time_text` is an RFC 3339 text, and where both are null the arrival counts. `value` is null where `exact` alone holds it.
# `permitted` is false where the sender may not speak for the device.
# All columns but body, index, device, metric and value may be missing.
RAW = pl.Schema(
    {
        "body": pl.UInt32(),
        "index": pl.UInt32(),
        "device": pl.UInt32(),
        "interface": pl.UInt32(),
        "metric": pl.UInt32(),
        "tags": pl.UInt32(),
        "kind": pl.String(),
        "value": pl.Float64(),
        "exact": pl.UInt64(),
        "event_time": pl.Int64(),
        "time_text": pl.String(),
        "permitted": pl.Boolean(),
    }
)
NAMES = ("device", "interface", "metric", "tags")

OLDEST_US = 946_684_800_000_000  # 2000-01-01T00:00:00Z: anything before is a clock that was never set
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_TAG_CHARS = 32  # of JSON for each character that a name may have: key and value, all of them escaped, and more than enough of blanks


class Coded(NamedTuple):
    """Rows whose names are codes: `rows[name]` indexes `names[name]`, a list of texts, for each name in NAMES that is there."""

    rows: pl.DataFrame
    names: dict[str, pl.Series]


class Limits(NamedTuple):
    """The bounds of one event."""

    name_chars_max: int = 256
    tags_max: int = 16
    dead_letter_chars_max: int = 2048
    future_skew_max_us: int = 60_000_000
    counter_metrics: Patterns = ()


class Validated(NamedTuple):
    """`events`: body, index and the columns of EVENTS, names as codes. `refused`: body, index and the columns of DEAD_LETTERS."""

    events: Coded
    refused: pl.DataFrame


RULES = (
    ("device", "missing"), ("device", "too_long"), ("device", "control_character"), ("device", "not_permitted"),
    ("interface", "too_long"), ("interface", "control_character"),
    ("metric", "missing"), ("metric", "too_long"), ("metric", "control_character"),
    ("value", "missing"), ("value", "not_finite"), ("value", "out_of_range"),
    ("timestamp", "bad_timestamp"), ("timestamp", "too_old"), ("timestamp", "future"),
    ("kind", "bad_kind"), ("tags", "bad_tags"), ("tags", "too_many"), ("tags", "too_long"), ("tags", "control_character"),
)  # fmt: skip
_RULE = {rule: number for number, rule in enumerate(RULES)}
# Made once: to make a column of a Python list costs as much as to check a body of one event.
_BLANK = pl.Series([""], dtype=pl.String)
_FIRST = pl.Series([0], dtype=pl.UInt32)
_NOT_EXACT = pl.Series([None], dtype=pl.UInt64)
REFUSED = pl.Schema({"body": pl.UInt32(), "index": pl.UInt32()} | dict(DEAD_LETTERS))
NO_REFUSED = REFUSED.to_frame()


def validate(raw: Coded, received_at_us: int, limits: Limits) -> Validated:
    """Part the rows that fail a rule from those that pass; the first rule that fails names the reason.

    An empty frame gives empty frames. A row with null names, a null value or a null time is judged like any other.
    """
    rows = raw.rows
    if "time_text" in rows.columns:
        parsed = pl.col("time_text").str.to_datetime("%+", time_unit="us", time_zone="UTC", strict=False).cast(pl.Int64)
        rows = rows.with_columns(event_time=pl.coalesce("event_time", parsed) if "event_time" in rows.columns else parsed)
    if "event_time" not in rows.columns:
        rows = rows.with_columns(event_time=pl.lit(received_at_us, pl.Int64))
    elif rows["event_time"].null_count():
        absent = pl.col("time_text").is_null() if "time_text" in rows.columns else True
        rows = rows.with_columns(event_time=pl.when(absent).then(pl.col("event_time").fill_null(received_at_us)).otherwise("event_time"))
    tags, tag_rules = _canonical_tags(raw.names.get("tags"), limits)
    checks = _checks(rows, raw.names, tag_rules, received_at_us, limits)
    if not checks:
        return Validated(_events(rows, {**raw.names, "tags": tags}, limits), NO_REFUSED)
    rows = rows.with_columns(rule=pl.coalesce(checks))
    good = rows.filter(pl.col("rule").is_null()).drop("rule")
    bad = rows.filter(pl.col("rule").is_not_null())
    return Validated(_events(good, {**raw.names, "tags": tags}, limits), _refused(bad, raw.names, limits))


def canonical_tags(text: str, limits: Limits) -> tuple[str, str | None]:
    """The JSON text of tags with sorted keys and no blanks, "" for none; and the reason why they cannot be taken, or None."""
    if len(text) > limits.tags_max * _TAG_CHARS * limits.name_chars_max:
        return "", "too_long"
    try:
        pairs = json.loads(text, object_pairs_hook=tuple) if text else ()
        if pairs is None or pairs == ():
            return "", None
        tags = dict(pairs) if isinstance(pairs, tuple) and text.lstrip().startswith("{") else {}
        canonical = json.dumps(tags, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        canonical.encode()
    except (ValueError, TypeError, RecursionError):  # UnicodeEncodeError, a lone surrogate, is a ValueError
        return "", "bad_tags"
    if len(tags) != len(pairs) or not tags or not all(name and isinstance(value, str) for name, value in tags.items()):
        return "", "bad_tags"
    if len(tags) > limits.tags_max:
        return "", "too_many"
    words = [*tags, *tags.values()]
    if max(map(len, words)) > limits.name_chars_max:
        return "", "too_long"
    if any(map(_CONTROL.search, words)):
        return "", "control_character"
    return canonical, None


def _canonical_tags(names: pl.Series | None, limits: Limits) -> tuple[pl.Series, pl.Series | None]:
    if names is None:
        return _BLANK, None
    found = [canonical_tags(text, limits) for text in names.to_list()]
    rules = [None if reason is None else _RULE["tags", reason] for _, reason in found]
    return pl.Series([text for text, _ in found], dtype=pl.String), pl.Series(rules, dtype=pl.UInt8)


def _name_rules(names: pl.Series, field: str, limits: Limits) -> pl.Series:
    """Per distinct name the number of the rule it fails, or null."""
    name = pl.col("name")
    rule = pl.when(name.str.len_chars() > limits.name_chars_max).then(_RULE[field, "too_long"])
    rule = rule.when(name.str.contains(_CONTROL.pattern)).then(_RULE[field, "control_character"])
    if field != "interface":
        rule = rule.when(name == "").then(_RULE[field, "missing"])
    return names.alias("name").to_frame().select(rule.cast(pl.UInt8)).to_series()


def _odd(texts: list[str], limits: Limits) -> bool:
    """Whether any of the names fails a rule, or is blank, which an interface's may be."""
    return "" in texts or max(map(len, texts), default=0) > limits.name_chars_max or _CONTROL.search("".join(texts)) is not None


def _checks(rows: pl.DataFrame, names: dict[str, pl.Series], tags: pl.Series | None, received_at_us: int, limits: Limits) -> list[pl.Expr]:
    """Per rule that some row fails, an expression that gives its number in those rows and null in others, in the order of RULES."""
    latest = received_at_us + limits.future_skew_max_us
    time, value = pl.col("event_time"), pl.col("value")
    values, times = rows["value"], rows["event_time"]  # a glance at these tells which rules need a look at each row: mostly none
    odd_names = _odd([text for field in ("device", "interface", "metric") if field in names for text in names[field].to_list()], limits)
    checks: list[pl.Expr] = []

    def check(failed: pl.Expr, field: str, reason: str) -> None:
        checks.append(pl.when(failed).then(pl.lit(_RULE[field, reason], pl.UInt8)))

    for field in ("device", "interface", "metric"):
        if field != "interface" and rows[field].null_count():
            check(pl.col(field).is_null(), field, "missing")
        if odd_names and field in names and (rules := _name_rules(names[field], field, limits)).null_count() < len(rules):
            checks.append(pl.lit(rules).gather(pl.col(field)))
        if field == "device" and "permitted" in rows.columns and rows["permitted"].not_().any():
            check(pl.col("permitted").not_(), field, "not_permitted")
    if values.null_count():
        check(value.is_null() & pl.col("exact").is_null() if "exact" in rows.columns else value.is_null(), "value", "missing")
    if not math.isfinite(values.sum()):  # as it is not if one value is not
        check(value.is_nan(), "value", "not_finite")
        check(value.is_infinite(), "value", "out_of_range")
    if times.null_count():
        check(time.is_null(), "timestamp", "bad_timestamp")
    if (oldest := times.min()) is not None and oldest < OLDEST_US:
        check(time < OLDEST_US, "timestamp", "too_old")
    if (newest := times.max()) is not None and newest > latest:
        check(time > latest, "timestamp", "future")
    if "kind" in rows.columns:
        check(pl.col("kind").is_in(list(KINDS)).not_(), "kind", "bad_kind")
    if tags is not None and tags.null_count() < len(tags):
        checks.append(pl.lit(tags).gather(pl.col("tags")))
    return checks


def _events(rows: pl.DataFrame, names: dict[str, pl.Series], limits: Limits) -> Coded:
    names, columns = dict(names), {name: rows[name] for name in rows.columns}
    columns["counter_bits"] = _counter_bits(rows, names["metric"], limits)
    for field in ("interface", "tags"):
        if field not in columns:
            names[field] = _BLANK
            columns[field] = _FIRST.new_from_index(0, rows.height)
        elif columns[field].null_count():
            names[field], blank = _with_blank(names[field])
            columns[field] = columns[field].fill_null(blank)
    if "exact" in columns:
        columns["value"] = columns["value"].zip_with(columns["value"].is_not_null(), columns["exact"].cast(pl.Float64))
    else:
        columns["exact"] = _NOT_EXACT.new_from_index(0, rows.height)
    order = ("body", "index", "device", "interface", "metric", "tags", "counter_bits", "value", "exact", "event_time")
    return Coded(pl.DataFrame([columns[name].alias(name) for name in order]), names)


def _counter_bits(rows: pl.DataFrame, metrics: pl.Series, limits: Limits) -> pl.Series:
    """By what the row says of its kind, else by its metric's name; those that are too long no row has any more."""
    names = [name if len(name) <= limits.name_chars_max else "" for name in metrics.to_list()]
    known = counter_bits_of(names, limits.counter_metrics)[rows["metric"]]
    if "kind" not in rows.columns:
        return known
    widths = {name: width for name, width in KINDS.items() if width is not None}
    told = pl.col("kind").replace_strict(widths, default=None, return_dtype=pl.UInt8)
    counter = pl.when(known == 0).then(pl.lit(64, pl.UInt8)).otherwise(known)
    bits = pl.when(pl.col("kind") == "counter").then(counter).otherwise(pl.coalesce(told, known))
    return rows.select(bits.alias("counter_bits")).to_series()


def _with_blank(names: pl.Series) -> tuple[pl.Series, int]:
    """The names with "" among them, and its code."""
    found = names.index_of("")
    return (names, found) if found is not None else (names.extend_constant("", 1), len(names))


def _refused(rows: pl.DataFrame, names: dict[str, pl.Series], limits: Limits) -> pl.DataFrame:
    """Dead letters: the text is JSON of what the row held. Long names are cut before they are repeated row by row."""
    rows = rows.rechunk()  # Polars 2.1: format panics on a column with an empty chunk inside
    rule = pl.col("rule")
    devices = names["device"].str.head(limits.name_chars_max)
    device = pl.lit(devices).gather(pl.col("device")) if len(devices) else pl.lit(None, pl.String)
    parts = [_listed(field, rows, names, limits) for field in NAMES if field in rows.columns and len(names[field])]
    for column, field in (("kind", "kind"), ("time_text", "timestamp")):
        if column in rows.columns:
            quoted = pl.struct(pl.col(column).alias(field)).struct.json_encode().str.slice(1).str.head(-1)
            parts.append(pl.when(pl.col(column).is_not_null()).then(quoted))
    value, time = pl.col("value"), pl.col("event_time")
    number = pl.when(value.is_finite()).then(value.cast(pl.String)).when(value.is_not_null()).then(pl.format('"{}"', value))
    exact = pl.col("exact").cast(pl.String) if "exact" in rows.columns else pl.lit(None, pl.String)
    parts.append(pl.format('"value":{}', pl.coalesce(exact, number)))
    moment = pl.when(time % 1000 == 0).then(time.floordiv(1000).cast(pl.String)).otherwise((time / 1000).cast(pl.String))
    told = pl.col("time_text").is_not_null() if "time_text" in rows.columns else pl.lit(False)
    parts.append(pl.when(told.not_()).then(pl.format('"timestamp":{}', moment)))
    text = pl.concat_str(pl.lit("{"), pl.concat_str(parts, separator=",", ignore_nulls=True), pl.lit("}"))
    return rows.select(
        "body",
        "index",
        device.fill_null("").alias("device"),
        pl.lit(pl.Series([field for field, _ in RULES])).gather(rule).alias("field"),
        pl.lit(pl.Series([reason for _, reason in RULES])).gather(rule).alias("reason"),
        text.str.head(limits.dead_letter_chars_max).alias("event"),
    )


def _listed(field: str, rows: pl.DataFrame, names: dict[str, pl.Series], limits: Limits) -> pl.Expr:
    """`"field":text` of each row, made once per distinct name; null where the row has none."""
    used = set(rows[field].unique().to_list())
    cut = [text[: limits.dead_letter_chars_max] if code in used else "" for code, text in enumerate(names[field].to_list())]
    texts = [f'"{field}":{text if field == "tags" and text else json.dumps(text, ensure_ascii=False)}' for text in cut]
    return pl.lit(pl.Series(texts, dtype=pl.String)).gather(pl.col(field))


def refused_rows(rows: Sequence[tuple[int, int, str, str, str, str]]) -> pl.DataFrame:
    """Rows (body, index, device, field, reason, event) that a decoder set aside, as a frame like `Validated.refused`."""
    return pl.DataFrame(rows, schema=REFUSED, orient="row")
