"""Bodies into entries: where a bad event lies, and how its body was cut, changes nothing."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from api.decode import Body, DecodeLimits, decode
from api.group import Built, build
from pipeline.core.validate import Limits
from pipeline.stores.codec import DEAD_LETTERS_ARROW
from pipeline.stores.codec import decode as decode_entry

NOW_US = 1_767_225_700_000_000
EVENT = {"device": "r1", "interface": "eth0", "metric": "cpu_pct", "value": 1.5, "timestamp": 1_767_225_600_000.0, "kind": "gauge"}
BAD = [
    ("value", float("nan"), "not_finite", {**EVENT, "value": "NaN"}),
    ("timestamp", 4e12, "future", {**EVENT, "timestamp": 4_000_000_000_000}),
    ("kind", "other", "bad_kind", {**EVENT, "kind": "other"}),
    ("device", None, "missing", {name: value for name, value in EVENT.items() if name != "device"}),
]


def arrow(*batches: list[dict]) -> Body:
    """An Arrow body of several record batches."""
    schema = pa.RecordBatch.from_pylist([EVENT]).schema
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for rows in batches:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return decode(sink.getvalue().to_pybytes(), "application/vnd.apache.arrow.stream", DecodeLimits())


def large_json(rows: list[dict]) -> Body:
    body = decode(json.dumps(rows).encode(), "application/json", DecodeLimits())
    assert body.shape[0] == "frame"  # the fast way
    return body


def built(*bodies: Body) -> Built:
    return build(bodies, [NOW_US] * len(bodies), [None] * len(bodies), NOW_US, Limits(), 4)


def letters(built: Built) -> list[dict]:
    return decode_entry([group.dead_letters for group in built.groups() if group.dead_letters], DEAD_LETTERS_ARROW).to_pylist()


@pytest.mark.parametrize("batch", range(3))
@pytest.mark.parametrize(("field", "value", "reason", "text"), BAD)
def test_bad_events_may_lie_in_any_record_batch(batch, field, value, reason, text):
    """The column of such a body is in pieces, of which those without a bad event would be empty once these are parted."""
    batches = [[EVENT] * 3 for _ in range(3)]
    batches[batch][1:] = [{**EVENT, field: value}] * 2
    made = built(arrow(*batches))
    places = (3 * batch + 1, 3 * batch + 2)
    assert [each[:3] for each in made.outcomes()] == [(7, 2, [(place, field, reason) for place in places])]
    told = [(letter["field"], letter["reason"], json.loads(letter["event"])) for letter in letters(made)]
    assert told == [(field, reason, text)] * 2


@pytest.mark.parametrize("form", [arrow, large_json])
@pytest.mark.parametrize("place", range(3))
def test_bad_events_may_lie_in_any_body_of_a_group(form, place):
    rows = [[{**EVENT, "device": f"b{number}-{i}"} for i in range(100)] for number in range(3)]
    for row in rows[place][7:9]:
        row["timestamp"] = 4e12
    made = built(*map(form, rows))
    errors = [(7, "timestamp", "future"), (8, "timestamp", "future")]
    assert [each[:3] for each in made.outcomes()] == [(98, 2, errors) if number == place else (100, 0, []) for number in range(3)]
    told = sorted((json.loads(letter["event"]) for letter in letters(made)), key=lambda event: event["device"])
    assert told == rows[place][7:9]
    assert sum(group.event_count for group in made.groups()) == 298


@pytest.mark.parametrize("media", ["application/json", "application/x-ndjson"])
def test_what_is_set_aside_is_kept_as_it_was_sent(media):
    """Under another name is what its sender meant, most likely; and a time far from all others is to be told by its digits."""
    sent = [
        {"host": "r1", "metric": "cpu_pct", "value": 1.5},
        EVENT,
        {"device": "r1", "metric": "cpu_pct", "val": 7, "unit": "%"},
        {**EVENT, "timestamp": 1_767_225_600_000_000_001},
        {**EVENT, "timestamp": 1_767_225_600_000_000_002, "value": "5"},
        {"device": "r1", "metric": "cpu_pct", "value": "UP"},
    ]
    payload = json.dumps(sent) if media == "application/json" else "\n".join(map(json.dumps, sent))
    many = json.dumps([{**EVENT, "timestamp": 1_767_225_600_000_000_000 + n} for n in range(100)])
    made = built(decode(payload.encode(), media, DecodeLimits()), decode(many.encode(), media, DecodeLimits()))
    assert [(each.accepted, each.rejected) for each in made.outcomes()] == [(1, 5), (0, 100)]
    told = [letter["event"] for letter in letters(made)]
    assert sorted(told) == sorted(json.dumps(each) for each in [*sent[:1], *sent[2:], *json.loads(many)])


def test_what_is_too_long_to_be_kept_as_it_was_sent_is_kept_by_its_fields_so_that_it_can_be_sent_again():
    (told,) = letters(built(decode(json.dumps([{"extra": "x" * 3000, "device": "r1", "value": 7}]).encode(), "", DecodeLimits())))
    kept = json.loads(told["event"])
    assert kept.pop("timestamp") and kept == {"device": "r1", "value": 7}  # with the time at which it came
