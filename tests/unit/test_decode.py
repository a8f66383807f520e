"""Bytes to events: forms, encodings, bounds, and what is said of a body that cannot be taken."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import json
import struct

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
import zstandard

from api.columns import coded
from api.compression import decompress
from api.decode import FAST_BYTES_MIN, DecodeLimits, decode
from api.models import Refusal

ARRIVAL = 1_767_225_600_000_000
ARROW = "application/vnd.apache.arrow.stream"
LIMITS = DecodeLimits()
NO_EVENT = "the body holds no event: send an object, an array of objects, or NDJSON"
WANTED = "send JSON, NDJSON (application/x-ndjson) or an Arrow IPC stream"
GOOD = {"device": "r1", "interface": "eth0", "metric": "in_octets", "value": 1.5, "timestamp": 1_767_225_600_056}


def unpacked(payload: bytes, encoding: str, limits: DecodeLimits) -> bytes:
    return decompress(payload, encoding, limits.body_decompressed_bytes_max) if encoding else payload


def rows(payload: bytes, content_type: str = "application/json", encoding: str = "", limits: DecodeLimits = LIMITS) -> list[dict]:
    """The events of a body as rows with their names, in the order of the body."""
    raw, _ = coded([decode(unpacked(payload, encoding, limits), content_type, limits)], [ARRIVAL])
    names = [pl.lit(listed).gather(pl.col(field)).alias(field) for field, listed in raw.names.items() if field in raw.rows.columns]
    return raw.rows.sort("index").with_columns(names).drop("body", "index").to_dicts()


def refusal(
    payload: bytes, content_type: str = "application/json", encoding: str = "", limits: DecodeLimits = LIMITS
) -> tuple[int, str, str]:
    with pytest.raises(Refusal) as caught:
        decode(unpacked(payload, encoding, limits), content_type, limits)
    return caught.value.status, caught.value.code, str(caught.value)


def refused(payload: bytes, content_type: str = "application/json") -> list[tuple[int, str, str]]:
    return [(each.index, each.field, each.reason) for each in decode(payload, content_type, LIMITS).refused]


def many(**changed) -> list[dict]:
    return [{**GOOD, "device": f"r{i}", "value": i + 0.25, **changed} for i in range(200)]


def stream(**columns) -> bytes:
    batch = pa.record_batch(columns)
    sink = io.BytesIO()
    with ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (json.dumps(GOOD), "application/json"),
        (json.dumps([GOOD]), "application/json; charset=utf-8"),
        (json.dumps({"events": [GOOD]}), "application/vnd.x+json"),
        (json.dumps(GOOD) + "\n", "application/x-ndjson"),
        ("\ufeff" + json.dumps(GOOD), "application/json"),
        ("\n " + json.dumps([GOOD], indent=2) + "\n", ""),
        (json.dumps(GOOD), "application/x-www-form-urlencoded"),
        (json.dumps([GOOD]), "application/x-ndjson"),
    ],
)
def test_one_event_in_each_form_is_the_same_event(payload, content_type):
    [row] = rows(payload.encode(), content_type)
    assert row.pop("event_time") == 1_767_225_600_056_000
    assert row == {field: GOOD[field] for field in row}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_large_bodies_in_each_form_take_the_fast_way_and_are_the_same(separators):
    events = many()
    array = json.dumps(events, separators=separators).encode()
    assert len(array) > FAST_BYTES_MIN
    wrapped = b'{"events": ' + array + b"}"
    lines = "\n".join(json.dumps(each, separators=separators) for each in events).encode()
    forms = [(array, "application/json"), (wrapped, "application/json"), (lines, "application/x-ndjson"), (lines + b"\n", "")]
    forms.append((lines.replace(b"\n", b"\r\n"), "application/ndjson"))
    assert {decode(*form, LIMITS).shape[0] for form in forms} == {"frame"}
    assert all(rows(*form) == rows(array) for form in forms)


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity", "x-gzip"])
def test_compressed_bodies(encoding):
    plain = json.dumps(many()).encode()
    packed = {"zstd": zstandard.compress(plain), "identity": plain}.get(encoding, gzip.compress(plain))
    assert rows(packed, encoding=encoding) == rows(plain)


def test_members_and_frames_may_follow_each_other():
    halves = json.dumps(many()).encode()[:3000], json.dumps(many()).encode()[3000:]
    assert rows(b"".join(map(gzip.compress, halves)), encoding="gzip") == rows(b"".join(halves))
    assert rows(b"".join(map(zstandard.compress, halves)), encoding="zstd") == rows(b"".join(halves))


def test_zeros_may_fill_up_the_end_of_a_gzip_body_and_no_more():
    packed = gzip.compress(json.dumps(GOOD).encode())
    assert rows(packed + bytes(700), encoding="gzip") == rows(packed, encoding="gzip")
    assert refusal(packed + bytes(7) + packed, encoding="gzip")[:2] == (400, "bad_compression")


@pytest.mark.parametrize(
    ("encoding", "empty", "parts"), [("gzip", gzip.compress(b""), "members"), ("zstd", zstandard.compress(b""), "frames")]
)
def test_members_and_frames_that_hold_nothing_have_a_bound(encoding, empty, parts):
    told = (400, "bad_compression", f"the body is not {encoding}: it has more than 4096 {parts}")
    assert refusal(empty * 5000, encoding=encoding) == told
    assert refusal(empty * 4000, encoding=encoding) == (422, "no_events", "the body is empty")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_refused_while_it_is_decompressed(encoding):
    bomb = gzip.compress(bytes(5_000_000)) if encoding == "gzip" else zstandard.compress(bytes(5_000_000))
    told = (413, "body_too_large", "the body is larger than 1000000 bytes when decompressed")
    assert refusal(bomb, encoding=encoding, limits=LIMITS._replace(body_decompressed_bytes_max=1_000_000)) == told


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_compressed_body_that_is_cut_or_none_at_all(encoding):
    packed = gzip.compress(b"[1]" * 99) if encoding == "gzip" else zstandard.compress(b"[1]" * 99)
    assert refusal(packed[:-3], encoding=encoding) == (400, "bad_compression", f"the body is not {encoding}: it ends too early")
    assert refusal(b"hello hello", encoding=encoding)[:2] == (400, "bad_compression")


@pytest.mark.parametrize(
    ("payload", "content_type", "encoding", "told"),
    [
        (b"", "", "", (422, "no_events", "the body is empty")),
        (b" \n", "application/json", "", (422, "no_events", "the body is empty")),
        (b"[]", "application/json", "", (422, "no_events", "the body holds no event")),
        (b'{"events": []}', "application/json", "", (422, "no_events", "the body holds no event")),
        (b'{"events": 5}', "application/json", "", (422, "no_events", '"events" must be an array of objects')),
        (b"5", "application/json", "", (422, "no_events", NO_EVENT)),
        (b"[1,null,[]]", "application/json", "", (422, "no_events", NO_EVENT)),
        (b"{}", "text/csv", "", (415, "unsupported_media_type", f"content type 'text/csv': {WANTED}")),
        (b"{}", "", "br", (415, "unsupported_encoding", "content encoding 'br': send gzip, zstd or none")),
        (b'[{"device":', "application/json", "", (400, "bad_json", "Input data was truncated")),
        (b'[{"device":"d"},{"device":', "application/json", "", (400, "bad_json", "Input data was truncated")),
        (b'{"events":[{"device":"d"},{"device":', "", "", (400, "bad_json", "Input data was truncated")),
        (b'[{"device":"d","value":"1"},' + b"[" * 100_000, "application/json", "", (400, "bad_json", "the body is nested too deeply")),
        (b'[{"device":x}]', "application/json", "", (400, "bad_json", "JSON is malformed: invalid character (byte 11)")),
        (b"huh\n5\n\xff", "application/x-ndjson", "", (400, "bad_json", "line 1: JSON is malformed: invalid character (byte 0)")),
        (b"huh\nmore", "application/x-ndjson", "", (400, "bad_json", "line 1: JSON is malformed: invalid character (byte 0)")),
        (b"[" * 100_000, "application/json", "", (400, "bad_json", "the body is nested too deeply")),
        (b"\xff\xff\xff\xff\x09\0\0\0", "", "", (400, "bad_arrow", "the body is not an Arrow IPC stream: a message ends too early")),
    ],
)  # fmt: skip
def test_what_is_said_of_a_body_that_cannot_be_taken(payload, content_type, encoding, told):
    assert refusal(payload, content_type, encoding) == told


@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_bad_event_costs_no_good_one(form):
    """Whatever one event is, its neighbours are taken, and it is told what it was."""
    bad = {
        '{"device":5,"metric":"m","value":1}': ("device", "not_a_string"),
        '{"device":"d","metric":[],"value":1}': ("metric", "not_a_string"),
        '{"device":"d","interface":{},"metric":"m","value":1}': ("interface", "not_a_string"),
        '{"device":"d","metric":"m","value":"UP"}': ("value", "not_a_number"),
        '{"device":"d","metric":"m","value":1e999}': ("value", "out_of_range"),
        '{"device":"d","metric":"m","value":1,"timestamp":true}': ("timestamp", "bad_timestamp"),
        '{"device":"d","metric":"m","value":1,"kind":5}': ("kind", "bad_kind"),
        '{"device":"d","metric":"m","value":1,"tags":{"a":1}}': ("tags", "bad_tags"),
        '{"device":"d","metric":"m","value":1,"tags":[]}': ("tags", "bad_tags"),
        "17": ("event", "not_an_object"),
        "null": ("event", "not_an_object"),
    }
    good = json.dumps(GOOD)
    texts = [text for each in bad for text in (each, good)]
    payload = ("[" + ",".join(texts) + "]") if form == "array" else "\n".join(texts)
    content_type = "application/json" if form == "array" else "application/x-ndjson"
    assert refused(payload.encode(), content_type) == [(2 * i, *cause) for i, cause in enumerate(bad.values())]
    body = decode(payload.encode(), content_type, LIMITS)
    assert body.indexes == list(range(1, 2 * len(bad), 2))
    assert [each.event for each in body.refused] == list(bad)
    assert {each.device for each in body.refused[1:-2]} == {"d"}


def test_a_number_as_text_is_a_number():
    """JSON of YANG writes 64-bit integers and decimals so; only what is a number in JSON without its quotes."""
    texts = ["18446744073709551615", "-7", "0", "2.50", "1e3", "-1.5E-2"]
    body = [{**GOOD, "value": text} for text in texts]
    for payload, media in ((json.dumps(body), "application/json"), ("\n".join(map(json.dumps, body)), "application/x-ndjson")):
        taken = rows(payload.encode(), media)
        assert [row["value"] for row in taken][1:] == [-7.0, 0.0, 2.5, 1000.0, -0.015] and taken[0]["exact"] == 2**64 - 1
    assert [row["value"] for row in rows(json.dumps(body[1]).encode())] == [-7.0]
    assert len(rows(json.dumps({"events": body * 100}).encode())) == 600  # as large as what is read as columns


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "not_a_number"), (" 1", "not_a_number"), ("1_0", "not_a_number"), ("0x1f", "not_a_number"), ("NaN", "not_a_number"),
     ("01", "not_a_number"), ("\u0661", "not_a_number"), ("1\n", "not_a_number"), ("1e999", "out_of_range"), ("9" * 5000, "out_of_range")],
)  # fmt: skip
def test_a_text_that_is_no_number_costs_its_event(text, reason):
    payload = json.dumps([GOOD, {**GOOD, "value": text}, GOOD])
    body = decode(payload.encode(), "application/json", LIMITS)
    assert [(each.index, each.field, each.reason) for each in body.refused] == [(1, "value", reason)] and body.indexes == [0, 2]
    assert body.refused[0].event == json.dumps({**GOOD, "value": text})[:2048]


TELEGRAF = {"fields": {"load1": 0.5}, "name": "system", "tags": {"host": "r1"}, "timestamp": 1_767_225_600}
GNMIC = {"name": "sub1", "timestamp": 1_767_225_600_000_000_000, "tags": {"source": "r1"}, "values": {"/interfaces/in-octets": 7}}
COLLECTD = {"values": [0.5], "dstypes": ["gauge"], "time": 1_767_225_600.1, "interval": 10, "host": "r1", "plugin": "load", "type": "load"}


FOREIGN = [TELEGRAF, {"metrics": [TELEGRAF] * 3}, [GNMIC] * 3, [COLLECTD], {"events": [GNMIC]}, {}, [{}, {"a": 1}]]


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("media", ["application/json", "application/x-ndjson"])
def test_a_body_of_another_kind_is_refused_as_a_whole_so_that_its_sender_keeps_it(foreign, media):
    """A collector takes any 2xx for a promise that it need not keep what it sent."""
    payload = foreign if media == "application/json" or not isinstance(foreign, list) else "\n".join(map(json.dumps, foreign))
    status, code, told = refusal((payload if isinstance(payload, str) else json.dumps(payload)).encode(), media)
    assert (status, code) == (422, "no_events") and "a device, a metric or a value" in told and '"device": "r1"' in told


def test_bytes_that_are_no_text_cost_one_event():
    first = b'[{"device":"d","metric":"m","value":"7"},{"device":"\xff","metric":"m","value":1},' + json.dumps(GOOD).encode() + b"]"
    assert refused(first) == [(1, "event", "bad_utf8")]
    payload = b'[{"device":"\xff","metric":"m","value":1},' + json.dumps(GOOD).encode() + b"]"
    assert refused(payload) == [(0, "event", "bad_utf8")]
    assert refused(b'{"events":' + payload + b"}") == [(0, "event", "bad_utf8")]
    half = json.dumps([GOOD, {**GOOD, "device": "\udcfftail"}, {**GOOD, "device": "\U0001f600 \\\\ud800"}]).encode()
    for text in (half, b'{"source":"\\udcff","events": ' + half + b"}"):
        body = decode(text, "application/json", LIMITS)
        assert [(each.index, each.field, each.reason) for each in body.refused] == [(1, "event", "bad_json")]
        assert "\\udcfftail" in body.refused[0].event and [each.device for each in body.data] == [GOOD["device"], "\U0001f600 \\\\ud800"]
    lines = b'{"device":"\\ud800","metric":"m","value":1}\nhuh\n' + json.dumps(GOOD).encode()
    assert refused(lines, "application/x-ndjson") == [(0, "event", "bad_json"), (1, "event", "bad_json")]


def test_integers_are_exact_to_the_last_bit_and_no_further():
    values = [2**53 - 1, 2**53, 2**53 + 1, 2**64 - 1, -(2**53) - 1, 2**64, 10**400, -(2**63) - 1, True, 1e19]
    body = decode(json.dumps([{**GOOD, "value": value} for value in values]).encode(), "application/json", LIMITS)
    raw, huge = coded([body], [ARRIVAL])
    assert [(index, event.value) for _, index, event in huge] == [(5, 2**64), (6, 10**400), (7, -(2**63) - 1)]
    assert raw.rows["exact"].to_list() == [None, 2**53, 2**53 + 1, 2**64 - 1, None, None, None]
    assert raw.rows["value"].to_list()[:2] == [2**53 - 1, 2**53] and raw.rows["value"].to_list()[-2:] == [1.0, 1e19]


def test_an_event_without_a_time_gets_its_arrival_and_stays_apart_from_its_neighbour():
    texts = [{"device": "d", "metric": "m", "value": 1}, {"device": "d", "metric": "m", "value": 2, "timestamp": None}, GOOD]
    assert [row["event_time"] for row in rows(json.dumps(texts).encode())] == [ARRIVAL, ARRIVAL + 1, 1_767_225_600_056_000]


def test_bodies_of_different_forms_become_one_frame_in_their_order():
    """JSON frame, structs and Arrow, the same names under different codes."""
    forms = [
        (json.dumps(many()).encode(), "application/json"),
        (json.dumps([GOOD, {**GOOD, "tags": {"b": "2", "a": "1"}}]).encode(), "application/json"),
        (stream(device=["r7", "r1"], metric=["in_octets"] * 2, value=[1, 2**60 + 1]), ARROW),
        (json.dumps(many(timestamp="2026-01-01T00:00:00Z")).encode(), "application/json"),
    ]
    raw, _ = coded([decode(*form, LIMITS) for form in forms], [ARRIVAL] * 4)
    assert raw.rows["body"].to_list() == [0] * 200 + [1] * 2 + [2] * 2 + [3] * 200
    devices = raw.names["device"].gather(raw.rows["device"]).to_list()
    assert devices[198:206] == ["r198", "r199", "r1", "r1", "r7", "r1", "r0", "r1"]
    assert len(set(raw.names["device"])) == len(raw.names["device"])
    assert raw.rows["exact"].drop_nulls().to_list() == [2**60 + 1]
    assert raw.names["tags"].gather(raw.rows["tags"][201:202]).to_list() == ['{"a":"1","b":"2"}']


@pytest.mark.parametrize("limit", [199, 200])
@pytest.mark.parametrize("form", ["fast", "exact", "lines", "arrow"])
def test_the_number_of_events_is_bounded(form, limit):
    events = many()
    payload, content_type = {
        "fast": (json.dumps(events), "application/json"),
        "exact": (json.dumps([{"device": "d"}] * 200), "application/json"),
        "lines": ("\n".join(map(json.dumps, many(tags={"a": "b"}))), "application/x-ndjson"),
        "arrow": (stream(device=["d"] * 200, metric=["m"] * 200, value=[1.0] * 200), ARROW),
    }[form]
    payload = payload.encode() if isinstance(payload, str) else payload
    limits = LIMITS._replace(body_events_max=limit)
    if limit == 200:
        assert decode(payload, content_type, limits).events == 200
    else:
        assert refusal(payload, content_type, limits=limits)[:2] == (413, "too_many_events")


def test_one_bad_event_among_as_many_as_a_body_may_hold_costs_itself_alone():
    good = {**GOOD, "tags": {f"t{i}": "v" for i in range(16)}}
    for bad, reason in (({"metric": "m", "value": 1}, None), ({**GOOD, "value": []}, "not_a_number")):
        body = decode(json.dumps([*[good] * (LIMITS.body_events_max - 1), bad]).encode(), "application/json", LIMITS)
        assert body.events == LIMITS.body_events_max and [each.reason for each in body.refused] == [reason][: reason is not None]


def test_a_body_of_very_many_tiny_values_is_refused_before_it_is_parsed():
    assert refusal(b"[" + b"{}," * 2_000_000 + b"{}]")[:2] == (413, "too_many_events")
    assert refusal(b"[" + b"1," * 2_000_000 + b"1]")[:2] == (413, "too_many_values")


# ---- Arrow ---------------------------------------------------------------------------------------------------------------------


MOMENT = dt.datetime(2026, 1, 1, 0, 0, 0, 56_000)


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_names_of_any_text_type(text):
    names = pa.array(["r1", "r2", "r1"], pa.string()).cast(text)
    assert [row["device"] for row in rows(stream(device=names, metric=["m"] * 3, value=[1.0] * 3), ARROW)] == ["r1", "r2", "r1"]


@pytest.mark.parametrize("number", [pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.float32(), pa.float64(), pa.bool_()])
def test_values_of_any_numeric_type(number):
    values = pa.array([1, 0], pa.int8()).cast(number)
    assert [row["value"] for row in rows(stream(device=["d"] * 2, metric=["m"] * 2, value=values), ARROW)] == [1.0, 0.0]


@pytest.mark.parametrize(
    "times",
    [
        *(pa.array([MOMENT], pa.timestamp(unit)) for unit in ("ms", "us", "ns")),
        pa.array([MOMENT], pa.timestamp("us", "Europe/Berlin")),
        *(pa.array([1_767_225_600_056], number) for number in (pa.int64(), pa.uint64(), pa.float64())),
        pa.array(["2026-01-01T01:00:00.056+01:00"]),
    ],
)
def test_times_of_any_type_mean_the_same_moment(times):
    from pipeline.core.validate import Limits, validate

    body = decode(stream(device=["d"], metric=["m"], value=[1.0], timestamp=times), ARROW, LIMITS)
    events = validate(coded([body], [ARRIVAL])[0], ARRIVAL, Limits()).events
    assert events.rows["event_time"].to_list() == [1_767_225_600_056_000]


@pytest.mark.parametrize(
    "times", [pa.array([2**63 - 1, 1, None], pa.int64()), pa.array([2**64 - 1, 1, None], pa.uint64()), pa.array([200, 1, None], pa.uint8())]
)
def test_a_whole_number_that_is_no_time_costs_no_other_its_own(times):
    raw, _ = coded([decode(stream(device=["d"] * 3, metric=["m"] * 3, value=[1.0] * 3, timestamp=times), ARROW, LIMITS)], [ARRIVAL])
    first, second, third = raw.rows["event_time"].to_list()
    assert first == (200_000 if times.type == pa.uint8() else pytest.approx(2**62, rel=1e-12)) and (second, third) == (1000, ARRIVAL + 2)


def test_seconds_that_would_overflow_are_far_in_the_future_instead():
    times = pa.array([2**62, -(2**62)], pa.timestamp("s"))
    far = [row["event_time"] for row in rows(stream(device=["d"] * 2, metric=["m"] * 2, value=[1.0] * 2, timestamp=times), ARROW)]
    assert far[0] > 2**61 and far[1] < -(2**61)


@pytest.mark.parametrize(
    "tags",
    [
        pa.array([[("b", "2"), ("a", "1")], None], pa.map_(pa.string(), pa.string())),
        pa.array([{"b": "2", "a": "1"}, None], pa.struct([("b", pa.string()), ("a", pa.string())])),
        pa.array(['{"a":"1","b":"2"}', None]),
    ],
)
def test_tags_as_map_struct_or_json_text(tags):
    found = rows(stream(device=["d"] * 2, metric=["m"] * 2, value=[1.0] * 2, tags=tags), ARROW)
    assert found[0]["tags"] == '{"a":"1","b":"2"}' and not found[1]["tags"]


def test_nulls_of_arrow_are_absent_fields():
    null = pa.nulls(1)
    [row] = rows(stream(device=null, interface=null, metric=["m"], value=pa.nulls(1, pa.float64()), timestamp=null), ARROW)
    assert (row["device"], row["interface"], row["value"], row["event_time"]) == (None, None, None, ARRIVAL)


def test_a_dictionary_may_repeat_a_name_or_hold_a_null():
    odd = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None]), pa.array(["d", None, "d"]))
    raw, _ = coded([decode(stream(device=odd, metric=["m"] * 4, value=[1.0] * 4), ARROW, LIMITS)], [ARRIVAL])
    assert raw.rows["device"].to_list() == [0, None, 0, None] and raw.names["device"].to_list() == ["d"]


def test_names_of_a_dictionary_that_no_row_has_are_not_looked_at():
    """They cost their sender's bytes, and would cost everybody's time."""
    codes = pa.array([7, None, 9_000, 7], pa.int32())
    tags = pa.DictionaryArray.from_arrays(codes, pa.array([f'{{"a":"{n}"}}' for n in range(10_000)]))
    raw, _ = coded([decode(stream(device=["d"] * 4, metric=["m"] * 4, value=[1.0] * 4, tags=tags), ARROW, LIMITS)], [ARRIVAL])
    assert raw.rows["tags"].to_list() == [0, None, 1, 0] and raw.names["tags"].to_list() == ['{"a":"7"}', '{"a":"9000"}']


def test_fields_that_may_be_null_and_fields_that_may_not_are_in_one_group():
    def body(nullable: bool):
        types = {"device": pa.string(), "metric": pa.string(), "value": pa.float64()}
        schema = pa.schema([pa.field(name, dtype, nullable) for name, dtype in types.items()])
        sink = io.BytesIO()
        with ipc.new_stream(sink, schema) as writer:
            writer.write_table(pa.table({"device": ["d"], "metric": ["m"], "value": [1.0]}, schema))
        return decode(sink.getvalue(), ARROW, LIMITS)

    raw, _ = coded([body(True), body(False), body(True)], [ARRIVAL] * 3)
    assert raw.rows["body"].to_list() == [0, 1, 2] and raw.names["device"].to_list() == ["d"]


def test_a_file_is_read_as_the_stream_in_it():
    """Its footer may lead to messages that lie behind what looks like the end, and that nobody has counted."""
    big = pa.DictionaryArray.from_arrays(pa.array([0] * 50, pa.int32()), pa.array(["x" * 4_000_000]))
    table = pa.table({"device": ["d"] * 50, "metric": ["m"] * 50, "value": [1.0] * 50, "kind": big})
    sink = io.BytesIO()
    with ipc.new_file(sink, table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    assert refusal(sink.getvalue(), ARROW)[:2] == (413, "body_too_large")
    hidden = bytearray(sink.getvalue())
    struct.pack_into("<Ii", hidden, 8, 0xFFFFFFFF, 0)
    assert refusal(bytes(hidden), ARROW)[:2] == (400, "bad_arrow")


def test_what_a_batch_of_an_old_format_expands_to_is_not_hidden_in_its_metadata():
    """Before the format had a field for it, a batch said in its metadata that it is compressed; pyarrow goes by that still."""
    batch = pa.record_batch({"device": ["x" * 100_000_000], "metric": ["m"], "value": [1.0]})
    options = ipc.IpcWriteOptions(compression="zstd", metadata_version=ipc.MetadataVersion.V4)
    sink = io.BytesIO()
    with ipc.new_stream(sink, batch.schema, options=options) as writer:
        start = sink.tell()
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
    payload = bytearray(sink.getvalue())
    assert refusal(bytes(payload), ARROW)[0] in (400, 413)
    message = start + 8 + struct.unpack_from("<I", payload, start + 8)[0]
    vtable = message - struct.unpack_from("<i", payload, message)[0]
    header = message + struct.unpack_from("<H", payload, vtable + 4 + 2 * 2)[0]
    records = header + struct.unpack_from("<I", payload, header)[0]
    compression = records - struct.unpack_from("<i", payload, records)[0] + 4 + 2 * 3
    struct.pack_into("<H", payload, compression, 0)  # the field is not there, as before there was one
    assert refusal(bytes(payload), ARROW)[:2] == (400, "bad_arrow")


def test_dictionaries_of_narrow_codes_may_have_more_names_together_than_these_can_count():
    """As those of categories in pandas, of 8 bits; in the batches of a body, and in the bodies of a group."""

    def batch(first: int) -> pa.RecordBatch:
        names = pa.array([f"d{first + n}" for n in range(100)])
        device = pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), names)
        return pa.record_batch({"device": device, "metric": ["m"] * 100, "value": [1.0] * 100})

    def body(*firsts: int):
        sink = io.BytesIO()
        with ipc.new_stream(sink, batch(0).schema) as writer:
            for first in firsts:
                writer.write_batch(batch(first))
        return decode(sink.getvalue(), ARROW, LIMITS)

    for bodies in ([body(0, 100)], [body(0), body(100)]):
        raw, _ = coded(bodies, [ARRIVAL] * len(bodies))
        assert raw.names["device"].gather(raw.rows["device"]).to_list() == [f"d{n}" for n in range(200)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"device": ["d"], "value": [1.0]}, "column 'metric' is missing; needed are device, metric, value"),
        ({"device": [1], "metric": ["m"], "value": [1.0]}, "column 'device' has type int64: must be text, plain or as a dictionary"),
        ({"device": ["d"], "metric": ["m"], "value": ["1"]}, "column 'value' has type string: must be a number or a boolean"),
        ({"device": ["d"], "metric": ["m"], "value": [1], "timestamp": [[1]]},
         "column 'timestamp' has type list<item: int64>: must be a timestamp, epoch milliseconds as a number, or RFC 3339 text"),
        ({"device": ["d"], "metric": ["m"], "value": [1], "tags": [1]},
         "column 'tags' has type int64: must be a map or a struct of text, or JSON text"),
    ],
)  # fmt: skip
def test_a_column_that_cannot_be_used_is_named(columns, message):
    assert refusal(stream(**columns), ARROW) == (422, "bad_columns", message)


def test_columns_that_are_not_known_are_ignored_and_a_file_is_as_good_as_a_stream():
    batch = pa.record_batch({"extra": [[1]], "device": ["d"], "metric": ["m"], "value": [1.0]})
    sink = io.BytesIO()
    with ipc.new_file(sink, batch.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    assert rows(sink.getvalue(), "")[0]["device"] == "d"


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_buffers_are_bounded_too(codec):
    batch = pa.record_batch({"device": ["d"] * 1000, "metric": ["m"] * 1000, "value": np.zeros(1000)})
    sink = io.BytesIO()
    with ipc.new_stream(sink, batch.schema, options=ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(batch)
    payload = sink.getvalue()
    assert len(rows(payload, ARROW)) == 1000
    assert refusal(payload, ARROW, limits=LIMITS._replace(body_decompressed_bytes_max=8000))[:2] == (413, "body_too_large")
    huge = payload.replace(struct.pack("<q", 8000), struct.pack("<q", 2**40))  # the declared length of the values
    assert huge != payload and refusal(huge, ARROW)[:2] == (413, "body_too_large")


def test_a_view_column_that_shows_one_long_text_many_times_is_refused():
    text = b"x" * 1_000_000
    view = struct.pack("<i4sii", len(text), text[:4], 0, 0)
    views = pa.Array.from_buffers(pa.string_view(), 1000, [None, pa.py_buffer(view * 1000), pa.py_buffer(text)])
    views.validate(full=True)
    assert refusal(stream(device=views, metric=["m"] * 1000, value=[1.0] * 1000), ARROW)[:2] == (413, "body_too_large")


@pytest.mark.parametrize("column", ["device", "interface", "kind", "timestamp", "tags"])
@pytest.mark.parametrize("names", [1, 2])
def test_a_dictionary_that_shows_one_long_text_many_times_is_refused(column, names):
    """Repeated or not: somebody would write it out row by row."""
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), pa.array(["x" * 100_000] * names))
    columns = {"device": ["d"] * 1000, "metric": ["m"] * 1000, "value": [1.0] * 1000, column: shared}
    assert refusal(stream(**columns), ARROW) == (413, "body_too_large", f"column {column!r} holds more than 67108864 bytes of text")


def test_tags_are_bounded_also_where_no_buffer_bounds_them():
    """A struct of null columns, a map whose keys share one text: millions of tags of hardly a byte."""
    rows = {"device": ["d"] * 1000, "metric": ["m"] * 1000, "value": [1.0] * 1000}
    wide = pa.StructArray.from_arrays([pa.nulls(1000)] * 2000, [f"t{i}" for i in range(2000)])
    keys = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000_000, pa.int8()), pa.array(["k"]))
    long = pa.MapArray.from_arrays(pa.array([0] * 1000 + [2_000_000], pa.int32()), keys, pa.nulls(2_000_000))
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), pa.array(["x" * 100_000]))
    loud = pa.MapArray.from_arrays(pa.array(range(1001), pa.int32()), pa.array(["k"] * 1000), shared)
    for tags, code in ((wide, "too_many_tags"), (long, "too_many_tags"), (loud, "body_too_large")):
        assert refusal(stream(**rows, tags=tags), ARROW)[:2] == (413, code)


def test_a_body_of_very_many_values_is_refused_before_they_are_made():
    """Tags, unknown fields or array items: a minute of Python objects in a body that is allowed to be large."""
    for unit in (b'"%d":""', b'{"device":"d","metric":"m","value":1,"x":[%d'):
        body = b'{"device":"d","metric":"m","value":1,"tags":{' + b",".join(unit % i for i in range(1_600_001)) + b"}}"
        assert refusal(body)[1] in ("too_many_values", "too_many_events")


def test_an_event_of_very_many_tags_costs_itself_alone():
    many = {**GOOD, "tags": {str(i): "" for i in range(1001)}}
    body = decode(json.dumps([GOOD, many]).encode(), "application/json", LIMITS)
    assert (body.count, [(each.index, each.field, each.reason) for each in body.refused]) == (1, [(1, "tags", "too_many")])


def test_an_arrow_stream_that_is_cut_or_damaged_is_refused_and_never_crashes():
    payload = stream(device=pa.array(["r1", "r2"]).dictionary_encode(), metric=["m"] * 2, value=[1.0, 2.0], timestamp=[1, 2])
    rng = np.random.default_rng(7)
    for _ in range(3000):
        damaged = bytearray(payload[: rng.integers(1, len(payload))] if rng.random() < 0.3 else payload)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            coded([decode(bytes(damaged), ARROW, LIMITS)], [ARRIVAL])
        except Refusal as refusal:
            assert refusal.status in (400, 413, 422)
