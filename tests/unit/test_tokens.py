"""What a token is, keeps and allows."""

from __future__ import annotations

import fnmatch
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.buckets import BURST_SECONDS, Bucket, filled, refilled
from pipeline.core.tokens import (
    SCOPES,
    Token,
    allows,
    checked,
    devices_permitted,
    digest_of,
    from_record,
    matches,
    parts_of,
    spelled,
    to_record,
    wait_seconds,
)  # fmt: skip
from pipeline.errors import Invalid

ID, SECRET = "0123456789ab", "s" * 43
TOKEN = Token(ID, "core", ("ingest",), digest_of(SECRET.encode()))


def test_a_token_is_read_as_it_is_spelled():
    assert parts_of(spelled(ID, SECRET).encode()) == (ID, SECRET.encode())


WHOLE = spelled(ID, SECRET).encode()


@pytest.mark.parametrize("text", [b"", b"tp_", WHOLE[:16], b"TP" + WHOLE[2:], WHOLE[:-1], WHOLE + b"s", WHOLE + b"\n", b"\xff" * 59])
def test_what_is_no_token_is_none(text):
    assert parts_of(text) is None


def test_what_is_kept_does_not_hold_the_secret_and_only_it_matches():
    kept = to_record(TOKEN)
    assert SECRET not in kept and ID not in kept
    assert matches(TOKEN, SECRET.encode()) and not matches(TOKEN, b"t" * 43)


def test_admin_is_good_for_all_and_the_others_for_themselves():
    able = {scope: [needed for needed in SCOPES if TOKEN._replace(scopes=(scope,)).may(needed)] for scope in SCOPES}
    assert able == {"ingest": ["ingest"], "read": ["read"], "admin": ["ingest", "read", "admin"]}


def test_it_ends_by_time_and_by_revocation():
    token = TOKEN._replace(expires_at_us=100)
    assert [token.state(99), token.state(100), token._replace(revoked_at_us=50).state(99)] == ["valid", "expired", "revoked"]
    assert TOKEN.state(2**62) == "valid"


TOKENS = st.builds(
    Token,
    st.just(ID),
    st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=64),
    st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3, unique=True).map(tuple),
    st.binary(min_size=32, max_size=32),
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), max_size=4).map(tuple),
    st.none() | st.floats(min_value=0.001, max_value=1e9),
    st.integers(0, 2**60),
    st.none() | st.integers(1, 2**60),
    st.none() | st.integers(1, 2**60),
)


@given(TOKENS)
def test_a_record_gives_the_token_back(token):
    assert from_record(ID, to_record(token)) == token


PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


@given(st.sampled_from(sorted(set(Token._fields) - {"id"})), JSON)
def test_a_damaged_record_is_refused_or_makes_a_token_that_makes_sense(field, value):
    """Whoever can write to Redis cannot break an API by it."""
    record = json.loads(to_record(TOKEN)) | {field: value}
    try:
        token = from_record(ID, json.dumps(record))
    except Invalid as error:
        assert "\n" not in str(error)
    else:
        assert checked(token) == token and token.state(1) in ("valid", "expired", "revoked")


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", b"\xff\xff", "[" * 100_000])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(Invalid, match="cannot be read"):
        from_record(ID, text)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"name": ""}, "a token's name"), ({"name": "a\nb"}, "printable"), ({"name": "x" * 65}, "1 to 64"), ({"scopes": ()}, "scopes none"),
     ({"scopes": ("root",)}, "must be of ingest, read, admin"), ({"devices": ("",)}, "device patterns"),
     ({"devices": ("a",) * 101}, "at most 100"), ({"rate": 0.0}, "rate 0"),
     ({"rate": float("nan")}, "rate nan"), ({"rate": float("inf")}, "more than 0")],
)  # fmt: skip
def test_a_token_that_makes_no_sense_is_refused(change, said):
    with pytest.raises(Invalid, match=said):
        checked(TOKEN._replace(**change))


@given(st.text("ab[.*?", max_size=8), st.text("ab[.\n", max_size=10))
def test_patterns_are_globs_of_star_and_question_mark(pattern, device):
    """As fnmatch has them, but that a bracket is a bracket."""
    assert allows((pattern,), device) == fnmatch.fnmatchcase(device, pattern.replace("[", "[[]"))


def test_a_device_needs_one_pattern_that_matches():
    told = {device: allows(("core-*", "edge-?"), device) for device in ("core-1", "edge-1", "edge-12", "lab", "xcore-1")}
    assert [device for device, allowed in told.items() if allowed] == ["core-1", "edge-1"]
    pairs = [((), "lab"), (("core-*",), "lab"), (("core-*",), "core-1"), (("core-*",), None)]
    assert devices_permitted(pairs) == [True, False, True, None]


def test_a_name_that_is_made_to_take_long_does_not():
    """Strangers choose names: a hundred thousand characters against many stars."""
    began = time.process_time()
    assert not allows(("*a" * 60 + "b",), "a" * 100_000)
    assert time.process_time() - began < 1


@given(st.floats(0.1, 1e6), st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50_000)), max_size=40))
def test_a_rate_holds_over_any_time(rate, arrivals):
    """What was let in is never more than the burst, the rate over the time that passed, and the one body that overdrew it."""
    bucket, now, taken, largest = filled(rate, 0.0), 0.0, 0, 0
    for pause, events in arrivals:
        now += pause
        bucket = refilled(bucket, rate, now)
        if wait_seconds(bucket, rate) == 0:
            bucket, taken, largest = Bucket(bucket.level - events, bucket.at_seconds), taken + events, max(largest, events)
    assert taken <= rate * (BURST_SECONDS + now) * (1 + 1e-9) + largest


@given(st.floats(0.1, 1e6), st.floats(-1e6, 0))
def test_whoever_waits_as_told_gets_in(rate, level):
    wait = wait_seconds(Bucket(level, 0.0), rate)
    assert wait >= 1
    assert refilled(Bucket(level, 0.0), rate, wait + 1e-3).level > 0


def test_a_clock_that_goes_back_gives_nothing():
    assert refilled(Bucket(-5.0, 100.0), 10, 50.0).level == -5.0
