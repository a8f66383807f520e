"""Each rule of an event: what passes, what is set aside, under which name."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest

from pipeline.core import kinds
from pipeline.core.validate import OLDEST_US, RAW, Coded, Limits, canonical_tags, validate

NOW = 1_767_225_600_000_000
GOOD = {"device": "r1", "interface": "eth0", "metric": "cpu_pct", "value": 1.5, "event_time": NOW}
LIMITS = Limits(name_chars_max=8, tags_max=2)


def raw(rows: list[dict]) -> Coded:
    """Rows with names as texts -> rows with names as codes. A column that no row has is missing."""
    columns, names = {}, {}
    for field in RAW:
        told = [row.get(field) for row in rows]
        if field in ("device", "interface", "metric", "tags"):
            if any(name is not None for name in told) or field in ("device", "metric"):
                names[field] = pl.Series(list(dict.fromkeys(name for name in told if name is not None)), dtype=pl.String)
                codes = {name: code for code, name in enumerate(names[field])}
                columns[field] = pl.Series([None if name is None else codes[name] for name in told], dtype=pl.UInt32)
        elif field in ("body", "index"):
            columns[field] = pl.Series(range(len(rows)) if field == "index" else [0] * len(rows), dtype=pl.UInt32)
        elif any(field in row for row in rows) or field == "value":
            columns[field] = pl.Series(told, dtype=RAW[field])
    return Coded(pl.DataFrame(columns), names)


def reasons(*rows: dict, limits: Limits = LIMITS) -> list[tuple[int, str, str]]:
    return validate(raw(list(rows)), NOW, limits).refused.select("index", "field", "reason").rows()


def taken(*rows: dict, limits: Limits = LIMITS) -> list[dict]:
    events = validate(raw(list(rows)), NOW, limits).events
    names = [pl.lit(listed).gather(pl.col(field)).alias(field) for field, listed in events.names.items()]
    return events.rows.with_columns(names).to_dicts()


@pytest.mark.parametrize(
    ("changed", "field", "reason"),
    [
        ({"device": None}, "device", "missing"),
        ({"device": ""}, "device", "missing"),
        ({"device": "x" * 9}, "device", "too_long"),
        ({"device": "r\n1"}, "device", "control_character"),
        ({"device": "r\x85"}, "device", "control_character"),
        ({"interface": "x" * 9}, "interface", "too_long"),
        ({"interface": "\x00"}, "interface", "control_character"),
        ({"metric": None}, "metric", "missing"),
        ({"metric": ""}, "metric", "missing"),
        ({"metric": "x" * 9}, "metric", "too_long"),
        ({"metric": "\x7f"}, "metric", "control_character"),
        ({"value": None}, "value", "missing"),
        ({"value": math.nan}, "value", "not_finite"),
        ({"value": math.inf}, "value", "out_of_range"),
        ({"value": -math.inf}, "value", "out_of_range"),
        ({"event_time": OLDEST_US - 1}, "timestamp", "too_old"),
        ({"event_time": NOW + 60_000_001}, "timestamp", "future"),
        ({"event_time": None, "time_text": "2026-01-01T00:00:00"}, "timestamp", "bad_timestamp"),
        ({"event_time": None, "time_text": "yesterday"}, "timestamp", "bad_timestamp"),
        ({"event_time": None, "time_text": "2026-02-30T00:00:00Z"}, "timestamp", "bad_timestamp"),
        ({"event_time": None, "time_text": "1999-12-31T23:59:59Z"}, "timestamp", "too_old"),
        ({"kind": "Gauge"}, "kind", "bad_kind"),
        ({"tags": '{"a":1}'}, "tags", "bad_tags"),
        ({"tags": "[]x"}, "tags", "bad_tags"),
        ({"tags": '["a"]'}, "tags", "bad_tags"),
        ({"tags": '{"":"a"}'}, "tags", "bad_tags"),
        ({"tags": '{"a":"1","a":"2"}'}, "tags", "bad_tags"),
        ({"tags": '{"a":"\\ud800"}'}, "tags", "bad_tags"),
        ({"tags": '{"a":"1","b":"2","c":"3"}'}, "tags", "too_many"),
        ({"tags": '{"a":"123456789"}'}, "tags", "too_long"),
        ({"tags": '{"a":"\\n"}'}, "tags", "control_character"),
    ],
)
def test_what_fails_a_rule_is_set_aside_between_two_that_pass(changed, field, reason):
    bad = GOOD | changed
    assert reasons(GOOD, bad, GOOD) == [(1, field, reason)]
    assert [row["index"] for row in taken(GOOD, bad, GOOD)] == [0, 2]


@pytest.mark.parametrize(
    "changed",
    [
        {"device": "x" * 8},
        {"device": "ü" * 8},  # characters, not bytes
        {"interface": None},
        {"interface": ""},
        {"event_time": OLDEST_US},
        {"event_time": NOW + 60_000_000},
        {"event_time": None},
        {"value": -0.0},
        {"value": 1.7e308},
        {"kind": None},
        {"tags": None},
        {"tags": "null"},
        {"tags": "{}"},
    ],
)
def test_what_is_on_the_right_side_of_a_bound_passes(changed):
    assert reasons(GOOD, GOOD | changed) == []


def test_the_first_field_that_fails_is_named():
    assert reasons({"device": None, "metric": "", "value": math.nan, "event_time": 0}) == [(0, "device", "missing")]


def test_nothing_is_lost_of_an_empty_frame():
    result = validate(raw([]), NOW, LIMITS)
    assert (result.events.rows.height, result.refused.height) == (0, 0)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-01T00:00:00Z", NOW),
        ("2026-01-01t00:00:00.123456z", NOW + 123_456),
        ("2026-01-01T01:00:00+01:00", NOW),
        ("2025-12-31 19:00:00.5-05:00", NOW + 500_000),
    ],
)
def test_times_as_text(text, time):
    assert taken(GOOD | {"event_time": None, "time_text": text})[0]["event_time"] == time


def test_a_text_time_among_numbers_and_absent_ones():
    told = [{"event_time": NOW + 1}, {"event_time": None, "time_text": "2026-01-01T00:00:00.000002Z"}, {"event_time": None}]
    rows = [GOOD | each for each in told]
    assert [row["event_time"] for row in taken(*rows)] == [NOW + 1, NOW + 2, NOW]


@pytest.mark.parametrize(
    ("metric", "kind", "bits"),
    [
        ("m", None, 0),
        ("m", "counter", 64),
        ("m", "counter53", 53),
        ("in-octets", None, 64),
        ("in-octets", "gauge", 0),
        ("in-octets", "counter32", 32),
        ("ifInOctets", "counter", 32),
        ("mine", None, 53),
    ],
)
def test_the_kind_that_is_told_goes_before_the_name(metric, kind, bits):
    limits = Limits(counter_metrics=(("mi*", 53),))
    rows = taken(GOOD | {"metric": metric, "kind": kind}, GOOD | {"kind": None}, limits=limits)
    assert [row["counter_bits"] for row in rows] == [bits, 0]


def test_an_exact_integer_stands_for_a_value():
    rows = taken(GOOD | {"value": None, "exact": 2**64 - 1}, GOOD)
    assert [(row["value"], row["exact"]) for row in rows] == [(2.0**64, 2**64 - 1), (1.5, None)]


def test_tags_become_canonical_so_that_one_series_has_one_name():
    rows = taken(*(GOOD | {"tags": tags} for tags in ('{"b": "2", "a": "ü"}', '{"a":"\\u00fc","b":"2"}', None, "{}")))
    assert [row["tags"] for row in rows] == ['{"a":"ü","b":"2"}'] * 2 + ["", ""]
    assert canonical_tags('{"a":' * 5000, Limits()) == ("", "bad_tags")


def test_a_dead_letter_is_the_event_as_json_so_that_it_can_be_sent_again():
    rows = [
        GOOD | {"metric": "", "interface": 'a"b', "tags": '{"x":"1"}', "kind": "gauge"},
        GOOD | {"value": None, "exact": 2**60 + 1, "event_time": 1_500},
        GOOD | {"value": math.nan, "event_time": None, "time_text": "2026-01-01T00:00:00Z"},
    ]
    letters = validate(raw(rows), NOW, LIMITS).refused
    rows[0].pop("event_time")
    assert [json.loads(text) for text in letters["event"]] == [
        {**rows[0], "tags": {"x": "1"}, "timestamp": NOW // 1000},
        {"device": "r1", "interface": "eth0", "metric": "cpu_pct", "value": 2**60 + 1, "timestamp": 1.5},
        {"device": "r1", "interface": "eth0", "metric": "cpu_pct", "value": "NaN", "timestamp": "2026-01-01T00:00:00Z"},
    ]
    assert letters["device"].to_list() == ["r1"] * 3


def test_long_names_are_cut_in_dead_letters():
    letters = validate(raw([GOOD | {"device": "x" * 10_000}]), NOW, LIMITS._replace(dead_letter_chars_max=50)).refused
    assert letters["device"].to_list() == ["x" * 8] and letters["event"].str.len_chars().to_list() == [50]


def test_a_metric_that_is_too_long_is_refused_and_not_kept():
    kinds._cached.cache_clear()
    assert reasons({**GOOD, "metric": "m" * 1_000_000}, GOOD) == [(0, "metric", "too_long")]
    assert kinds._cached.cache_info().currsize == 2  # the good one, and the blank in the place of the other


def test_a_tags_text_that_no_tags_need_is_not_read():
    """It would be megabytes of JSON; those that fit are long before the bound, also when every character of theirs is escaped."""
    most = json.dumps({chr(0x1F600 + i) * 256: chr(0x1F600 + i) * 256 for i in range(16)}, indent=4)
    assert canonical_tags(most, Limits())[1] is None
    assert canonical_tags("[" * 2 * 10**5, Limits()) == ("", "too_long")
