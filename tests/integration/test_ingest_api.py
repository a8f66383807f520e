"""The ingest API over real HTTP: over a store in memory whose failures are told, and over a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import polars as pl
import pytest
import redis
import uvicorn
import zstandard

from api import endpoint, ingest, requestid
from api.app import bind, create_app
from api.crowd import Crowd
from api.decode import DecodeLimits
from api.decode import decode as decode_body
from api.door import Load
from api.group import build
from api.protocol import guarded
from pipeline.core.partitions import partition_of
from pipeline.core.tokens import Token, digest_of, spelled
from pipeline.errors import Invalid, Unavailable
from pipeline.settings import Settings
from pipeline.stores.codec import DEAD_LETTERS_ARROW, EVENTS_ARROW, decode
from pipeline.stores.connection import GROUP, connect_async, stream_key
from pipeline.stores.streams import Appender, Group, Repeated, Streams
from pipeline.stores.tokenbook import Tokens
from tests.harness import Stack

PARTITIONS = 4
EVENT = {"device": "r1", "interface": "eth0", "metric": "cpu_pct", "value": 1.5}


class MemoryStore:
    """The twin of Appender. `away` partitions are Unavailable; `gate` holds appends back while it is set."""

    def __init__(self) -> None:
        self.entries: list[Group] = []
        self.keys: dict[int, dict[bytes, bytes]] = {}  # partition -> key -> what was left out
        self.answers: dict[bytes, bytes] = {}
        self.away: set[int] = set()
        self.gate = threading.Event()
        self.forget_answers = False
        self.appends = 0

    async def append(self, groups: Sequence[Group]) -> list[int | Repeated | Unavailable]:
        self.appends += 1
        while self.gate.is_set():
            await asyncio.sleep(0.005)
        return [self._one(group) for group in groups]

    def _one(self, group: Group) -> int | Repeated | Unavailable:
        if group.partition in self.away:
            return Unavailable(f"partition {group.partition} is away: redis://user:secret@host")
        keys = self.keys.setdefault(group.partition, {})
        if seen := tuple(key for key in group.keys if key in keys):
            left = tuple(keys[key] for key in seen)
            return Repeated(seen, left if any(left) else ())
        keys.update(zip(group.keys, group.left or (b"",) * len(group.keys), strict=True))
        if group.event_count or group.dead_letter_count:
            self.entries.append(group)
        return len(self.entries)

    async def answer(self, key: bytes) -> bytes | None:
        return self.answers.get(key)

    async def store_answer(self, key: bytes, answer: bytes) -> None:
        if not self.forget_answers:
            self.answers.setdefault(key, answer)

    async def ready(self) -> None:
        if self.away:
            raise Unavailable(f"partition {min(self.away)} is away")

    async def close(self) -> None:
        pass

    def events(self) -> list[dict]:
        return decode([group.events for group in self.entries if group.events], EVENTS_ARROW).to_pylist()

    def letters(self) -> list[dict]:
        return decode([group.dead_letters for group in self.entries if group.dead_letters], DEAD_LETTERS_ARROW).to_pylist()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Api:
    """A running API, its client and its store."""

    def __init__(self, store, tokens: Load | None = None, **settings) -> None:
        options = {"api_port": 0, "partitions": PARTITIONS, "group_linger_ms": 2, "ingest_stop_seconds": 5, **settings}
        self.settings, self.store = Settings(**options), store
        listener = bind(self.settings)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1/events"
        app = create_app(self.settings, store, tokens=tokens)
        self.ingest = app.state.ingest
        crowd = Crowd(self.settings.connections_max, self.settings.connections_per_client_max)
        http = guarded(self.settings.request_seconds_max, crowd)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="critical", http=http))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10)
        until(lambda: self.server.started)

    def post(self, body: object, key: str | None = None, content_type: str | None = "application/json", **headers: str) -> httpx.Response:
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        headers |= {"content-type": content_type} if content_type else {}
        headers |= {"idempotency-key": key} if key else {}
        return self.client.post("/v1/events", content=content, headers=headers)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.client.close()


@contextlib.contextmanager
def running(store=None, **settings) -> Iterator[Api]:
    api = Api(store or MemoryStore(), **settings)
    try:
        yield api
    finally:
        if isinstance(api.store, MemoryStore):
            api.store.gate.clear()
        api.stop()


@contextlib.contextmanager
def paying(rate: float) -> Iterator[Api]:
    """An API whose client comes with a token that has this rate."""
    secret = "s" * 43
    token = Token("0123456789ab", "test", ("ingest",), digest_of(secret.encode()), rate=rate)
    with running(auth="required", tokens=lambda known: known or Tokens(b"", {token.id: token})) as api:
        api.client.headers["authorization"] = f"Bearer {spelled(token.id, secret)}"
        yield api


@pytest.fixture
def api() -> Iterator[Api]:
    with running() as api:
        yield api


def spread(count: int) -> list[dict]:
    return [{**EVENT, "device": f"r{i}", "value": i + 0.5} for i in range(count)]


def device_in(partition: int) -> str:
    return next(f"d{i}" for i in range(1000) if partition_of(f"d{i}", PARTITIONS) == partition)


def error(response: httpx.Response) -> tuple[int, str, str]:
    told = response.json()["error"]
    named = {"request_id"} if response.status_code >= 500 else set()
    assert set(told) == {"code", "message"} | named and response.headers["content-type"] == "application/json"
    assert told.get("request_id") == response.headers.get("x-request-id")
    return response.status_code, told["code"], told["message"]


def test_one_event_is_answered_once_it_is_stored(api):
    response = api.post(EVENT)
    assert (response.status_code, response.json()) == (202, {"accepted": 1, "rejected": 0, "errors": []})
    [row] = api.store.events()
    assert abs(row.pop("event_time") / 1e6 - time.time()) < 5
    assert row == {"device": "r1", "interface": "eth0", "metric": "cpu_pct", "tags": "", "counter_bits": 0, "value": 1.5, "exact": None}


def test_good_events_are_taken_and_bad_ones_are_told_and_kept(api):
    bad = [5, {**EVENT, "value": "x"}, {**EVENT, "device": ""}, {**EVENT, "timestamp": "2001-01-01"}, {**EVENT, "timestamp": 4e12}]
    response = api.post([EVENT, *bad, EVENT])
    reasons = [("event", "not_an_object"), ("value", "not_a_number"), ("device", "missing")]
    reasons += [("timestamp", "bad_timestamp"), ("timestamp", "future")]
    assert response.status_code == 202
    assert response.json() == {
        "accepted": 2,
        "rejected": 5,
        "errors": [{"index": i, "field": field, "reason": reason} for i, (field, reason) in enumerate(reasons, 1)],
    }
    letters = api.store.letters()
    assert sorted((each["field"], each["reason"]) for each in letters) == sorted(reasons)
    assert {each["event"] for each in letters} >= {"5", json.dumps(bad[1])}
    homes = {group.partition for group in api.store.entries if group.dead_letter_count}
    assert homes == {partition_of("r1", PARTITIONS), partition_of("", PARTITIONS)}


def test_only_the_first_20_errors_are_shown(api):
    told = api.post([{**EVENT, "value": "x"}] * 30).json()
    assert (told["accepted"], told["rejected"], [each["index"] for each in told["errors"]]) == (0, 30, list(range(20)))


def test_every_row_lies_in_its_device_s_partition_in_order_of_arrival(api):
    for start in range(5):
        api.post([{**EVENT, "device": f"r{i % 10}", "value": start * 100 + i, "timestamp": 1_767_225_600_000} for i in range(100)])
    seen: dict[str, list[float]] = {}
    for group in api.store.entries:
        for row in decode([group.events], EVENTS_ARROW).to_pylist():
            assert partition_of(row["device"], PARTITIONS) == group.partition
            seen.setdefault(row["device"], []).append(row["value"])
    assert len(seen) == 10 and all(values == sorted(values) and len(values) == 50 for values in seen.values())


def test_an_entry_s_dictionaries_hold_only_the_names_it_uses(api):
    assert api.post(spread(500)).status_code == 202
    for group in api.store.entries:
        table = decode([group.events], EVENTS_ARROW)
        assert set(table["device"].chunk(0).dictionary.to_pylist()) == set(table["device"].to_pylist())


def test_bodies_that_come_together_share_an_entry():
    with running(group_linger_ms=100) as api:
        threads = [threading.Thread(target=httpx.post, args=(api.url,), kwargs={"json": EVENT}) for _ in range(10)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert sum(group.event_count for group in api.store.entries) == 10
        assert len(api.store.entries) <= 3


def test_where_building_is_slow_small_groups_wait_as_long_again(monkeypatch):
    """A body every 5 ms, and 24 ms to build a group: one every 24 ms and a little without the wait, one every 48 ms with it."""

    def slowly(*arguments):
        time.sleep(0.024)
        return build(*arguments)

    monkeypatch.setattr("api.ingest.build", slowly)
    monkeypatch.setattr("api.ingest.INLINE_EVENTS_MAX", 0)
    body = decode_body(json.dumps(EVENT).encode(), "application/json", DecodeLimits())

    async def forty(store: MemoryStore) -> None:
        gathered = ingest.Ingest(Settings(partitions=PARTITIONS, group_linger_ms=1), store)
        await gathered.start()
        answers = []
        for _ in range(40):
            answers.append(gathered.submit(body, time.time_ns() // 1000))
            await asyncio.sleep(0.005)
        await asyncio.gather(*answers)
        await gathered.stop()

    def seconds_a_group() -> float:
        store, began = MemoryStore(), time.monotonic()
        asyncio.run(forty(store))
        assert sum(group.event_count for group in store.entries) == 40
        return (time.monotonic() - began) / len(store.entries)

    waiting = seconds_a_group()
    monkeypatch.setattr("api.ingest.LINGER_SECONDS_MAX", 0)
    assert waiting > max(0.042, 1.2 * seconds_a_group())


def test_refusals_are_uniform_and_tell_what_to_do(api):
    assert error(api.post("{", content_type=None)) == (400, "bad_json", "Input data was truncated")
    assert error(api.post("[]")) == (422, "no_events", "the body holds no event")
    assert error(api.post("a,b", content_type="text/csv"))[:2] == (415, "unsupported_media_type")
    assert error(api.post("x", **{"content-encoding": "br"}))[:2] == (415, "unsupported_encoding")
    assert error(api.client.get("/v1/events")) == (405, "method_not_allowed", "GET /v1/events: Method Not Allowed")
    assert error(api.client.get("/nothing")) == (404, "not_found", "GET /nothing: Not Found")
    assert error(api.post(EVENT, key="k" * 300)) == (400, "bad_idempotency_key", "Idempotency-Key must have 1 to 256 characters")
    assert api.store.entries == []


def test_bodies_are_bounded_while_they_are_read():
    with running(body_bytes_max=10_000, body_decompressed_bytes_max=50_000, body_events_max=50) as api:
        told = (413, "body_too_large", "the body is larger than 10000 bytes")
        assert error(api.post("[" + " " * 20_000)) == told
        assert error(api.client.post("/v1/events", content=(b" " * 1000 for _ in range(1000)))) == told  # chunked: no length is told
        assert error(api.post(gzip.compress(b" " * 60_000), **{"content-encoding": "gzip"}))[:2] == (413, "body_too_large")
        assert error(api.post(spread(51)))[:2] == (413, "too_many_events")
        assert api.post(spread(50)).status_code == 202


def test_large_and_compressed_bodies_are_decoded_beside_the_loop(api):
    events = spread(20_000)
    assert api.post(events).json()["accepted"] == 20_000
    assert api.post(gzip.compress(json.dumps(events).encode()), key="z", **{"content-encoding": "gzip"}).json()["accepted"] == 20_000
    assert len(api.store.events()) == 40_000


@pytest.mark.parametrize("field", ["metric", "unknown"])
def test_a_few_bytes_that_stand_for_many_are_handled_beside_the_loop(api, monkeypatch, field):
    """It would stand still for all others, for a second per body."""
    at_work = []

    def noting(function, name):
        def noted(*arguments):
            at_work.append((name, threading.current_thread() is api.thread))
            return function(*arguments)

        return noted

    monkeypatch.setattr(endpoint, "decode", noting(endpoint.decode, "decode"))
    monkeypatch.setattr(ingest, "build", noting(ingest.build, "build"))
    packed = zstandard.compress(json.dumps([{**EVENT, field: "x" * 20_000_000}]).encode())
    assert len(packed) < 5000
    assert api.post(packed, **{"content-encoding": "zstd"}).status_code == 202
    assert at_work == [("decode", False), ("build", False)]
    assert api.post(zstandard.compress(json.dumps(EVENT).encode()), **{"content-encoding": "zstd"}).status_code == 202
    assert at_work[2:] == [("decode", True), ("build", True)]


def test_a_full_queue_says_when_to_come_again():
    with running(ingest_queue_events_max=1000, body_events_max=1000, group_events_max=1000) as api:
        api.store.gate.set()
        waiting = threading.Thread(target=api.post, args=(spread(900),))
        waiting.start()
        until(lambda: api.store.appends)
        response = httpx.post(api.url, json=spread(200))
        assert error(response) == (429, "busy", "900 events wait to be stored already")
        assert response.headers["retry-after"] == "1"
        api.store.gate.clear()
        waiting.join()
        assert api.post(spread(200)).status_code == 202


# ---- when Redis cannot take it ---------------------------------------------------------------------------------------------------


def test_a_body_whose_rows_cannot_all_be_stored_is_not_answered_with_202(api):
    api.store.away = {1}
    lost, kept = {**EVENT, "device": device_in(1)}, {**EVENT, "device": device_in(2)}
    response = api.post([lost, kept])
    assert error(response) == (503, "unavailable", "events cannot be stored now")
    assert response.headers["retry-after"] == "1"
    assert api.post(kept).status_code == 202
    api.store.away = set()
    assert api.post([lost, kept]).status_code == 202


def test_a_retry_with_a_key_adds_only_what_was_missing(api):
    """One partition took its share of the first attempt, the other did not."""
    api.store.away = {1}
    body = [{**EVENT, "device": device_in(1)}, {**EVENT, "device": device_in(2)}, {**EVENT, "device": device_in(2), "value": "x"}]
    assert api.post(body, key="k1").status_code == 503
    api.store.away = set()
    response = api.post(body, key="k1")
    assert response.json() == {"accepted": 2, "rejected": 1, "errors": [{"index": 2, "field": "value", "reason": "not_a_number"}]}
    assert Counter(row["device"] for row in api.store.events()) == {device_in(1): 1, device_in(2): 1}
    assert len(api.store.letters()) == 1


def test_a_repeated_body_does_not_hold_up_the_others_in_its_group():
    with running(group_linger_ms=150) as api:
        api.store.forget_answers = True  # as after a crash between append and answer
        first = api.post([EVENT] * 3, key="k1")
        again: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: again.append(httpx.post(api.url, json=[EVENT] * 3, headers={"idempotency-key": "k1"}))),
            threading.Thread(target=lambda: again.append(httpx.post(api.url, json=[EVENT] * 2))),
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert first.json()["accepted"] == 3 and sorted(each.json()["accepted"] for each in again) == [2, 3]
        assert len(api.store.events()) == 5


def test_the_same_key_gives_the_first_answer_and_adds_nothing(api):
    body = [EVENT, {**EVENT, "value": "x"}]
    first, again = api.post(body, key="k1"), api.post(body, key="k1")
    assert (again.status_code, again.content) == (202, first.content)
    assert (first.headers.get("idempotent-replay"), again.headers.get("idempotent-replay")) == (None, "true")
    assert len(api.store.events()) == 1
    packed = api.post(gzip.compress(json.dumps(body).encode()), key="k1", **{"content-encoding": "gzip"})
    assert packed.headers["idempotent-replay"] == "true"  # the same events, packed or not
    told = (422, "idempotency_key_reused", "Idempotency-Key 'k1' was used with another body")
    assert error(api.post(EVENT, key="k1")) == told


def test_the_same_key_is_paid_for_once():
    """What comes again adds nothing, and takes nothing from its token's rate."""
    with paying(rate=1000) as api:
        answers = [api.post(spread(900), key="k") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [202] * 4
        assert [answer.headers.get("idempotent-replay") for answer in answers] == [None, "true", "true", "true"]
        api.post(spread(20_000), key="another")  # for 20 s
        assert error(api.post(EVENT))[:2] == (429, "rate_exceeded")


def test_the_same_key_at_the_same_time_waits_for_the_first(api):
    api.store.gate.set()
    answers: list[httpx.Response] = []

    def post(value: float) -> None:
        answers.append(httpx.post(api.url, json={**EVENT, "value": value}, headers={"idempotency-key": "k"}))

    threads = [threading.Thread(target=post, args=(1.0,)) for _ in range(5)]
    for each in threads:
        each.start()
    until(lambda: api.store.appends)
    time.sleep(0.05)
    post(2.0)
    assert error(answers[0])[:2] == (422, "idempotency_key_reused")
    api.store.gate.clear()
    for each in threads:
        each.join()
    assert Counter(each.headers.get("idempotent-replay") for each in answers[1:]) == {None: 1, "true": 4}
    assert len(api.store.events()) == 1


# ---- bodies that break the machinery ---------------------------------------------------------------------------------------------


def at_once(api: Api, bodies: Sequence[dict]) -> list[httpx.Response]:
    """Post bodies (arguments of httpx.post) together, so that they share a group: the gate is up until all of them wait."""
    answers: list[httpx.Response | None] = [None] * len(bodies)

    def post(number: int) -> None:
        answers[number] = httpx.post(api.url, timeout=10, **bodies[number])

    api.store.gate.set()
    first = threading.Thread(target=httpx.post, args=(api.url,), kwargs={"json": {**EVENT, "device": "first"}, "timeout": 10})
    first.start()
    until(lambda: api.store.appends)
    threads = [threading.Thread(target=post, args=(number,)) for number in range(len(bodies))]
    for number, thread in enumerate(threads, 1):  # one after the other, so that the order in the group is known
        thread.start()
        until(lambda number=number: api.ingest.waiting() >= number)
    api.store.gate.clear()
    for thread in (first, *threads):
        thread.join(10)
    assert None not in answers
    return answers


def devices(data: list | pl.DataFrame) -> list[str]:
    """The devices of a decoded body."""
    return data["device"].unique().to_list() if isinstance(data, pl.DataFrame) else [event.device for event in data]


class Fuse:
    """`api.ingest.build` that breaks on a group for which `blows` holds."""

    def __init__(self, monkeypatch, error: type[BaseException], blows: Callable[[set[str]], bool]) -> None:
        self.blown = 0
        real = ingest.build

        def build(bodies, *rest):
            if blows({device for body in bodies for device in devices(body.data)}):
                self.blown += 1
                raise error("injected: redis://user:secret@host")
            return real(bodies, *rest)

        monkeypatch.setattr(ingest, "build", build)


ERRORS = [RuntimeError, pl.exceptions.PanicException]  # the second is no Exception


@pytest.mark.parametrize("count", [1, 600], ids=["on the loop", "beside the loop"])
@pytest.mark.parametrize("error_type", ERRORS)
def test_a_body_that_breaks_its_group_costs_no_other(api, monkeypatch, error_type, count):
    """It alone is refused; its neighbours' rows are all there, once and in order, and the service goes on."""
    fuse = Fuse(monkeypatch, error_type, lambda found: "poison" in found)
    bodies = [[{**EVENT, "device": "poison" if number == 3 else "same", "value": number + 0.5}] * count for number in range(6)]
    answers = at_once(api, [{"json": rows} for rows in bodies])
    assert [each.status_code for each in answers] == [202, 202, 202, 422, 202, 202]
    assert error(answers[3]) == (422, "unprocessable", "the body could not be processed")
    values = [row["value"] for row in api.store.events() if row["device"] == "same"]
    assert values == [number + 0.5 for number in (0, 1, 2, 4, 5) for _ in range(count)]
    assert fuse.blown > 1
    assert api.post(EVENT).status_code == 202 and api.client.get("/healthz").status_code == 200
    assert api.post({**EVENT, "device": "poison"}, key="k").status_code == 422


@pytest.mark.parametrize("error_type", ERRORS)
def test_bodies_that_break_only_together_are_all_taken(api, monkeypatch, error_type):
    fuse = Fuse(monkeypatch, error_type, lambda found: {"a", "b"} <= found)
    answers = at_once(api, [{"json": {**EVENT, "device": name}} for name in "xaybz"])
    assert [each.status_code for each in answers] == [202] * 5 and fuse.blown
    assert sorted(row["device"] for row in api.store.events()) == ["a", "b", "first", "x", "y", "z"]


def test_a_lack_of_memory_is_not_the_body_s_fault(api, monkeypatch):
    Fuse(monkeypatch, MemoryError, lambda found: "r1" in found)
    response = api.post(EVENT)
    assert error(response)[:2] == (503, "unavailable") and response.headers["retry-after"] == "1"


@pytest.mark.parametrize("error_type", ERRORS)
def test_a_store_that_breaks_is_answered_with_503_and_tried_again(api, monkeypatch, error_type):
    async def broken(groups):
        raise error_type("injected: redis://user:secret@host")

    with monkeypatch.context() as patch:
        patch.setattr(api.store, "append", broken)
        for key in (None, "k"):
            response = api.post(EVENT, key=key)
            assert error(response) == (503, "unavailable", "events cannot be stored now") and response.headers["retry-after"] == "1"
    assert api.post(EVENT, key="k").status_code == 202 and len(api.store.events()) == 1


@pytest.mark.parametrize("error_type", ERRORS)
@pytest.mark.parametrize("size", [1, 5000], ids=["on the loop", "beside the loop"])
def test_a_body_that_breaks_the_decoder_is_refused(api, monkeypatch, error_type, size):
    def broken(*_):
        raise error_type("injected: /home/somebody")

    with monkeypatch.context() as patch:
        patch.setattr(endpoint, "decode", broken)
        assert error(api.post(spread(size))) == (422, "unprocessable", "the body could not be processed")
    assert api.post(spread(size)).status_code == 202


def test_a_flusher_that_has_died_is_told_and_holds_nobody(api, monkeypatch):
    """Whatever kills it: what comes then is refused at once, and the process says that it is not well."""
    with monkeypatch.context() as patch:
        patch.setattr(api.ingest, "_take", lambda: 1 / 0)
        assert error(api.post(EVENT))[:2] == (503, "unavailable")
    assert error(api.post(EVENT))[:2] == (503, "unavailable")
    assert api.client.get("/healthz").status_code == 503


# ---- health, docs, stop ----------------------------------------------------------------------------------------------------------


def test_health_and_readiness_tell_the_truth(api):
    assert (api.client.get("/healthz").json(), api.client.get("/readyz").json()) == ({"status": "ok"}, {"status": "ready"})
    api.store.away = {3}
    ready = api.client.get("/readyz")
    assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
    assert ready.json() == {"status": "not_ready", "reason": "partition 3 is away"}
    assert api.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_balancer_may_ask_for_the_head_alone(api, path):
    """It is told what GET tells, without the body."""
    for away in (set(), set(range(PARTITIONS))):
        api.store.away = away
        whole, head = api.client.get(path), api.client.head(path)
        told = [(each.status_code, each.headers["content-length"], each.headers.get("retry-after")) for each in (whole, head)]
        assert told[0] == told[1] and not head.content


def test_the_examples_of_the_docs_work_and_need_no_other_host(api):
    page = api.client.get("/docs").text
    assert "POST /v1/events" in page and "src=" not in page and "cdn" not in page
    document = api.client.get("/openapi.json").json()
    operation = document["paths"]["/v1/events"]["post"]
    assert set(operation["responses"]) == {"202", "400", "408", "413", "415", "422", "429", "431", "503"}
    tried = 0
    for media, content in operation["requestBody"]["content"].items():
        for example in content.get("examples", {}).values():
            assert api.post(example["value"], content_type=media).json()["rejected"] == 0
            tried += 1
    assert tried == 4


def test_a_taken_port_is_one_clear_line(api):
    with pytest.raises(Invalid, match=rf"cannot listen on 127.0.0.1:{api.port}: Address already in use; choose another port"):
        bind(Settings(api_port=api.port))


def test_a_stop_answers_what_was_accepted():
    with running() as api:
        api.store.gate.set()
        answers: list[int] = []
        waiting = threading.Thread(target=lambda: answers.append(api.post(EVENT).status_code))
        waiting.start()
        until(lambda: api.store.appends)
        api.server.should_exit = True
        time.sleep(0.1)
        api.store.gate.clear()
        waiting.join(5)
        assert answers == [202] and len(api.store.events()) == 1


def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(api):
    for sent in (b"", b"[", b'[{"device":"r1"'):
        with socket.create_connection(("127.0.0.1", api.port)) as connection:
            connection.sendall(b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n" + sent)
    assert api.post(EVENT).status_code == 202 and len(api.store.events()) == 1


# ---- the real thing --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory) -> Iterator[str]:
    with Stack(tmp_path_factory.mktemp("redis"), fsync="everysec") as stack:
        yield stack.settings.redis_url


@pytest.fixture
def streams(redis_url) -> redis.Redis:
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    Streams(client).agree(PARTITIONS)
    for partition in range(PARTITIONS):
        client.xgroup_create(stream_key(partition), GROUP, "0", mkstream=True)
    return client


def stored(client: redis.Redis) -> list[dict]:
    entries = [fields for partition in range(PARTITIONS) for _, fields in client.xrange(stream_key(partition))]
    return decode([fields[b"e"] for fields in entries if fields[b"e"]], EVENTS_ARROW).to_pylist()


def test_events_reach_redis_once_each(redis_url, streams):
    async def appender_of() -> Appender:
        return Appender(connect_async(redis_url, 5), PARTITIONS, 300)

    with running(asyncio.run(appender_of())) as api:
        assert api.client.get("/readyz").status_code == 200
        assert api.post(spread(1000), key="a").json()["accepted"] == 1000
        assert api.post(spread(1000), key="a").headers["idempotent-replay"] == "true"
        assert api.post(EVENT).status_code == 202
        rows = stored(streams)
        assert Counter(row["device"] for row in rows) == Counter(each["device"] for each in [*spread(1000), EVENT])
        # the answer got lost, the rows did not: the retry is told the same and adds nothing
        streams.delete(*streams.keys("answer:*"))
        assert api.post(spread(1000), key="a").json()["accepted"] == 1000
        assert len(stored(streams)) == 1001
        streams.delete(stream_key(2))
        response = api.client.get("/readyz")
        assert (response.status_code, response.json()["status"]) == (503, "not_ready")
        assert error(api.post(spread(100)))[:2] == (503, "unavailable")


def test_the_process_stops_on_sigterm_with_everything_answered(redis_url, streams):
    code = "import sys; from api.app import bind, serve; from pipeline.settings import load; s = load(); l = bind(s);" \
           " print(l.getsockname()[1], flush=True); sys.exit(serve(s, l))"  # fmt: skip
    environment = os.environ | {"PIPELINE_REDIS_URL": redis_url, "PIPELINE_API_PORT": "0", "PIPELINE_PARTITIONS": str(PARTITIONS)}
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    base = f"http://127.0.0.1:{int(process.stdout.readline())}"
    answers: list[int] = []

    def post() -> None:
        with contextlib.suppress(httpx.TransportError), httpx.Client(base_url=base, timeout=10) as client:
            while True:
                answers.append(client.post("/v1/events", json=EVENT).status_code)

    threads = [threading.Thread(target=post) for _ in range(4)]
    for each in threads:
        each.start()
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    for each in threads:
        each.join(10)
    assert process.stderr.read() == ""
    assert answers.count(202) > 10
    assert len(stored(streams)) >= answers.count(202)


# ---- which request it was ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["abc-123", "x" * 65, "a b", "a;b"])
def test_a_failed_answer_and_the_log_name_the_request(api, monkeypatch, caplog, given):
    """By the client's name for it where that is short and plain; else by one of ours."""
    monkeypatch.setattr(endpoint.EventsEndpoint, "_decode", lambda *_: (_ for _ in ()).throw(RuntimeError("injected")))
    named: list[str | None] = []
    caplog.handler.addFilter(lambda record: named.append(requestid.current()) or True)
    response = api.post(EVENT, **{"x-request-id": given})
    told = response.json()["error"]["request_id"]
    assert response.headers["x-request-id"] == told and told in named
    assert (told == given) == (given == "abc-123") and len(told) <= requestid.CHARS_MAX


@pytest.mark.parametrize("size", [1, 5000], ids=["on the loop", "beside the loop"])
def test_a_body_that_cannot_be_built_is_logged_with_its_request(api, monkeypatch, caplog, size):
    """Although another task builds it."""

    def broken(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(ingest, "build", broken)
    named: list[str | None] = []
    caplog.handler.addFilter(lambda record: named.append(requestid.current()) or True)
    assert api.post(spread(size), **{"x-request-id": "abc-123"}).status_code == 422
    assert "abc-123" in named


def test_every_other_failed_answer_names_its_request_too(api):
    api.store.away = set(range(PARTITIONS))
    response = api.client.get("/readyz", headers={"X-Request-Id": "abc-123"})
    assert (response.status_code, response.headers["x-request-id"]) == (503, "abc-123")
    assert "x-request-id" not in api.client.get("/healthz", headers={"X-Request-Id": "abc-123"}).headers


@pytest.mark.parametrize("path", ["/v1/events", "/openapi.json"])
def test_an_answer_of_the_door_that_says_that_we_failed_names_its_request(path):
    """It has not seen the tokens yet."""
    given = {"authorization": "Bearer tp_x_y", "x-request-id": "abc-123"}
    with running(auth="required") as api:
        response = api.client.request("POST" if path == "/v1/events" else "GET", path, headers=given)
        assert error(response) == (503, "unavailable", "tokens cannot be checked now")
        assert response.headers["x-request-id"] == "abc-123"


# ---- what it counts ------------------------------------------------------------------------------------------------------------


def counted(api) -> dict[str, float]:
    lines = api.client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_metrics_tell_of_requests_events_and_groups(api):
    before = counted(api)
    api.post([EVENT, EVENT, {**EVENT, "device": ""}])
    api.post("{")
    api.store.away = set(range(PARTITIONS))
    api.post(EVENT)
    after = counted(api)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert [grown[f'pipeline_http_requests_total{{status="{hundreds}xx"}}'] for hundreds in (2, 4, 5)] == [1, 1, 1]
    assert grown["pipeline_events_accepted_total"] == 2 and grown['pipeline_events_rejected_total{reason="missing"}'] == 1
    assert grown["pipeline_http_request_duration_seconds_count"] == 3 and grown["pipeline_group_events_count"] == 2
    assert grown["pipeline_append_duration_seconds_count"] == 2 and grown["pipeline_append_failures_total"] == 1
    assert grown["pipeline_body_bytes_total"] > 100 and after["pipeline_ingest_queue_events"] == 0
