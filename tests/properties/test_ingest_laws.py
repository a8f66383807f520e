"""Laws of the ingest door: the two ways through JSON agree, and no event is lost on the way."""

from __future__ import annotations

import json
import math
from fnmatch import fnmatchcase

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from api.columns import coded
from api.decode import Body, DecodeLimits, _exact_array, _exact_lines, decode
from api.fast import fast_frame
from api.group import build
from api.models import Refusal
from pipeline.core.validate import Limits, validate
from pipeline.stores.codec import DEAD_LETTERS_ARROW, EVENTS_ARROW
from pipeline.stores.codec import decode as unpack

NOW = 1_767_225_600_000_000
LIMITS = DecodeLimits()

# Names that look like something else: numbers, booleans, syntax; times and values at every edge
odd_names = ["1", "true", "null", "", ":", " x", '"', "\\", "::1", "{", "}\n{", "\u00fc", "a,b", "x" * 300, "events"]
names = st.sampled_from(["r1", "eth0", *odd_names])
floats = st.floats(allow_nan=False, allow_infinity=False)
edges = st.sampled_from([0, 1, -1, 2**53, 2**64, -(2**53), 10**30, True, False, 1e308, -0.0])
numbers = st.one_of(edges, st.integers(-(2**60), 2**65), floats)
odd_times = st.sampled_from([0, 1, True, None, "2026-01-01T00:00:00Z", "x", 10**30])
times = st.one_of(st.just(1_767_225_600_056), st.integers(0, 2**42), st.floats(1e12, 2e12), odd_times)
anything = st.one_of(names, numbers, st.none(), st.just([]), st.just(["a"]), st.just({}), st.just({"device": "q"}))
FIELDS = ("device", "interface", "metric", "value", "timestamp")
wild_pairs = st.tuples(st.sampled_from([*FIELDS, "kind", "tags", "extra", "events"]), anything)
plain_pairs = st.tuples(names, names, names, numbers, times).map(lambda row: list(zip(FIELDS, row, strict=True)))
objects = st.one_of(
    plain_pairs,
    st.tuples(plain_pairs, st.lists(wild_pairs, max_size=2)).map(lambda both: both[0] + both[1]),
    plain_pairs.flatmap(st.permutations),
    st.lists(wild_pairs, max_size=6),
)
blanks = st.sampled_from(["", "", "", " ", "\n", "\t"])


@st.composite
def documents(draw, lines: bool = False) -> bytes:
    """JSON written by hand, so that keys may repeat and blanks may stand anywhere."""
    ascii_only = draw(st.booleans())
    colon = draw(st.sampled_from([":", ":", ": ", " :"]))
    texts = []
    for pairs in draw(st.lists(objects, min_size=1, max_size=5)):
        cells = [f"{json.dumps(key)}{colon}{json.dumps(value, ensure_ascii=ascii_only)}" for key, value in pairs]
        texts.append(draw(blanks) * (not lines) + "{" + f",{'' if lines else draw(blanks)}".join(cells) + "}")
    if lines:
        between = [draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\n\n", " ", "", "\n "])) for _ in texts]
        return "".join(text + after for text, after in zip(texts, between, strict=True)).encode()
    return ("[" + ",".join(texts) + "]" + draw(blanks)).encode()


def outcome(body) -> tuple[list, list]:
    raw, huge = coded([body], [NOW])
    assert not huge
    events = validate(raw, NOW, Limits())
    taken, listed = events.events
    texts = [pl.lit(names).gather(pl.col(field)).alias(field) for field, names in listed.items()] if taken.height else []
    rows = taken.with_columns(texts).rows()
    return [(*row[:7], repr(row[7]), *row[8:]) for row in rows], events.refused.drop("event").rows()


def agree(payload: bytes, lines: bool) -> None:
    frame = fast_frame(payload, lines)
    if frame is None:
        return
    fast = Body(("frame", *frame.columns, frame["timestamp"].dtype), frame, frame.height)
    exact = (_exact_lines if lines else _exact_array)(payload, LIMITS)
    assert not exact.refused
    assert outcome(fast) == outcome(exact)


@settings(max_examples=400, deadline=None)
@given(documents())
def test_what_the_fast_way_takes_the_exact_way_takes_the_same(payload):
    agree(payload, lines=False)


@settings(max_examples=400, deadline=None)
@given(documents(lines=True))
def test_the_same_for_lines(payload):
    agree(payload, lines=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(names, names, floats, st.floats(1e12, 1.8e12)), min_size=1, max_size=20), st.booleans())
def test_plain_bodies_do_take_the_fast_way(rows, lines):
    """Or the law above would hold for nothing."""
    rows = [(device.strip('"\\{}\n '), metric.strip('"\\{}\n '), value, time) for device, metric, value, time in rows]
    events = [{"device": f"d{d}", "metric": f"m{m}", "value": math.fmod(v, 2**52), "timestamp": t} for d, m, v, t in rows]
    texts = [json.dumps(event, ensure_ascii=False) for event in events]
    payload = "\n".join(texts) if lines else "[" + ",".join(texts) + "]"
    assert fast_frame(payload.encode(), lines) is not None
    agree(payload.encode(), lines)


@settings(max_examples=200, deadline=None)
@given(st.lists(documents(), min_size=1, max_size=4), st.integers(1, 20))
def test_every_event_is_in_one_entry_or_one_dead_letter(payloads, partitions):
    """Events in = events + dead letters of the entries; each body is told its own share."""
    bodies, sent = [], []
    for payload in payloads:
        try:
            bodies.append(decode(payload, "application/json", LIMITS))
        except Refusal:
            continue
        sent.append(len(json.loads(payload)))
    if not bodies:
        return
    built = build(bodies, [NOW] * len(bodies), [None] * len(bodies), NOW, Limits(), partitions)
    groups = built.groups()
    events = unpack([group.events for group in groups if group.events], EVENTS_ARROW)
    letters = unpack([group.dead_letters for group in groups if group.dead_letters], DEAD_LETTERS_ARROW)
    assert events.num_rows == sum(group.event_count for group in groups)
    assert letters.num_rows == sum(group.dead_letter_count for group in groups)
    assert events.num_rows + letters.num_rows == sum(sent)
    assert [told.accepted + told.rejected for told in built.outcomes()] == sent
    assert sum(told.accepted for told in built.outcomes()) == events.num_rows


patterns = st.lists(st.sampled_from(["core-*", "*-1", "lab-?", "core-1", "*"]), max_size=2).map(tuple)
devices = st.sampled_from(["core-1", "core-12", "lab-1", "lab-22", "edge-3", "", None])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(patterns, st.lists(devices, min_size=1, max_size=8)), min_size=1, max_size=6))
def test_a_body_gets_in_with_the_devices_of_its_token_alone(sent):
    """Event by event as fnmatch says, whatever the other bodies of its group may do."""
    payloads = [json.dumps([{"device": device, "metric": "m", "value": 1} for device in named]).encode() for _, named in sent]
    bodies = [decode(payload, "", LIMITS)._replace(devices=allowed) for payload, (allowed, _) in zip(payloads, sent, strict=True)]
    built = build(bodies, [NOW] * len(bodies), [None] * len(bodies), NOW, Limits(), 4)
    for (allowed, named), told in zip(sent, built.outcomes(), strict=True):
        free = [not allowed or any(fnmatchcase(device or "", pattern) for pattern in allowed) for device in named]
        assert told.accepted == sum(bool(device) and may for device, may in zip(named, free, strict=True))
        expected = [
            (index, "device", "not_permitted" if device else "missing")
            for index, (device, may) in enumerate(zip(named, free, strict=True))
            if not device or not may
        ]
        assert told.errors == expected
    events = unpack([group.events for group in built.groups() if group.events], EVENTS_ARROW)
    assert events.num_rows == sum(told.accepted for told in built.outcomes())
