"""Requests byte by byte: what is no HTTP, never ends or comes too slowly is answered in JSON, in order, and costs nobody else."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from api.app import create_app
from api.protocol import HEAD_BYTES_MAX
from api.rules import rules_router
from pipeline.settings import Settings
from tests.integration.test_ingest_api import EVENT, Api, MemoryStore, running, until

BODY = json.dumps(EVENT).encode()
HEAD = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture
def api() -> Iterator[Api]:
    with running(request_seconds_max=0.5) as api:
        yield api


def exchange(api: Api, *pieces: bytes, pause: float = 0.0) -> list[tuple[int, str]]:
    """(status, error code) of all answers until the server hangs up."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        except OSError:
            pass  # it has hung up already; what it said is there to read
        stream, answers = connection.makefile("rb"), []
        try:
            while start := stream.readline():
                headers = {}
                while (line := stream.readline().strip()) != b"":
                    name, _, value = line.lower().partition(b": ")
                    headers[name] = value
                assert headers[b"content-type"] == b"application/json"
                told = json.loads(stream.read(int(headers[b"content-length"])))
                answers.append((int(start.split()[1]), told.get("error", {}).get("code", "")))
        except ConnectionError:
            pass
        return answers


@pytest.mark.parametrize(
    "garbage", [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02", HEAD + b"Content-Length: x\r\n\r\n", HEAD + b"No colon\r\n\r\n"]
)
def test_what_is_no_http_is_refused_in_json(api, garbage):
    assert exchange(api, garbage) == [(400, "bad_request")]


@pytest.mark.parametrize("tail", [b"X: " + b"h" * 10 * HEAD_BYTES_MAX, b"".join(b"X-%d: y\r\n" % i for i in range(50_000))])
def test_a_head_has_a_bound(api, tail):
    """One header without end, and headers without end."""
    assert exchange(api, HEAD, tail) in ([(431, "head_too_large")], [])  # [] where our own reset overtook the answer
    assert api.post(EVENT).status_code == 202


def test_trailers_and_chunk_extensions_have_a_bound_and_one_byte_chunks_are_no_attack(api):
    chunked = HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    single = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY[:-1] + b" " * 100_000 + BODY[-1:])
    assert exchange(api, chunked, single, b"0\r\nTrailer: x\r\n\r\n") == [(202, "")]
    assert exchange(api, chunked, b"1;" + b"e" * 20 * HEAD_BYTES_MAX) in ([(431, "head_too_large")], [])
    assert exchange(api, chunked, single, b"0\r\nT: " + b"t" * 20 * HEAD_BYTES_MAX) in ([(431, "head_too_large")], [])


@pytest.mark.parametrize("part", [b"", b"POST /v1", HEAD, WHOLE[:-1], HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"])
def test_a_request_that_never_ends_is_told_so(api, part):
    began = time.monotonic()
    assert exchange(api, part) == [(408, "too_slow")]
    assert 0.4 < time.monotonic() - began < 5


def test_drops_do_not_win_time_and_many_that_wait_hold_nothing(api):
    """The whole request counts, however it trickles; the share of what may be read at once is given back."""
    assert exchange(api, *[bytes([byte]) for byte in WHOLE], pause=0.05) == [(408, "too_slow")]
    until(lambda: api.post(b" " * 100 + BODY).status_code == 202)


def test_a_client_that_is_slow_but_in_time_is_served(api):
    with_end = WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close")
    assert exchange(api, with_end[:40], with_end[40:-5], with_end[-5:], pause=0.1) == [(202, "")]


def test_answers_of_one_connection_come_in_order_before_a_refusal(api):
    """Three good requests and garbage in one piece: the good ones are answered; what was taken is told."""
    assert exchange(api, WHOLE * 3 + b"GARBAGE\r\n\r\n") == [(202, "")] * 3


def test_blank_lines_keep_no_connection(api):
    began = time.monotonic()
    assert exchange(api, WHOLE, b"\r\n") == [(202, "")]
    assert time.monotonic() - began < 8  # the keep-alive time of five seconds


WISH = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


LAST = WHOLE.replace(b"Content-Type", b"Connection: close\r\nContent-Type")


@pytest.mark.parametrize("cut", [0, 40, len(HEAD) + len(WISH) + 21, -3])
def test_who_wishes_for_another_protocol_is_served_in_this_one(api, cut):
    """Its body is a body, however it comes, and what comes behind it is the next request."""
    wishing = WHOLE.replace(b"Content-Type", WISH + b"Content-Type")
    chunked = HEAD + WISH + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert exchange(api, wishing[:cut], wishing[cut:] + LAST, pause=0.1) == [(202, "")] * 2
    assert exchange(api, wishing * 3 + chunked + LAST) == [(202, "")] * 5
    assert sum(group.event_count for group in api.store.entries) == 7


def test_a_body_is_no_request_whatever_its_head_wishes_for(api):
    inner = b"PUT /v1/rules HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nrules: []\n"
    head = HEAD + WISH + b"Content-Length: %d\r\n\r\n" % len(inner)
    assert exchange(api, head, inner, LAST, pause=0.1) == [(400, "bad_json"), (202, "")]


def test_a_client_that_leaves_before_its_answers_is_no_error(api, caplog):
    """Pipelined requests, and nobody there any more."""
    api.store.gate.set()
    with caplog.at_level(logging.ERROR), socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(WHOLE * 5)
        until(lambda: api.store.appends)
    api.store.gate.clear()
    assert api.post(EVENT).status_code == 202
    assert caplog.text == ""


def test_a_query_that_is_wrong_is_refused_like_all_else():
    """In the shape of every other refusal; over stores that are never asked."""
    app = create_app(Settings(), MemoryStore(), [rules_router(None, None, 4)])

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.get("/v1/rules?version=x")

    response = asyncio.run(ask())
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith("query.version: input should be a valid integer")
