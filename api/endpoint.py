"""POST /v1/events as a plain ASGI callable: nothing between the socket and the queue but what the request needs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from api import models, requestid
from api.compression import decompress
from api.decode import Body, DecodeLimits, decode
from api.door import Guest
from api.ingest import Ingest
from api.models import Refusal
from api.poison import ENDING, told
from pipeline import metrics
from pipeline.errors import PipelineError
from pipeline.settings import Settings

_log = logging.getLogger(__name__)

INLINE_BYTES_MAX = 256 * 1024  # larger bodies, by what they hold, are decoded beside the event loop
_COMPRESSION = 16
_ANSWERS = {hundreds: metrics.HTTP_REQUESTS.labels(f"{hundreds}xx") for hundreds in (2, 4, 5)}
_DENIED = metrics.HTTP_REQUESTS.labels("denied")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def count_answer(status: int) -> None:
    """Of a POST of events."""
    (_DENIED if status in (401, 403) else _ANSWERS[status // 100]).inc()


async def answer_with(send: Send, status: int, headers: list[tuple[bytes, bytes]], answer: bytes) -> None:
    """A whole JSON answer."""
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class Disconnected(Exception):
    """The client went away in the middle of its body."""


class EventsEndpoint:
    """Reads, decodes, queues, answers."""

    def __init__(self, settings: Settings, ingest: Ingest) -> None:
        self._ingest = ingest
        self._bytes_max = settings.body_bytes_max
        self._reading_bytes_max = settings.ingest_queue_bytes_max
        self._reading_bytes = 0
        self._limits = DecodeLimits(
            settings.body_decompressed_bytes_max, settings.body_events_max, settings.name_chars_max, settings.dead_letter_chars_max
        )
        self._small_bytes_max = min(INLINE_BYTES_MAX, settings.body_decompressed_bytes_max)
        self._decoder = ThreadPoolExecutor(1, "decode")
        metrics.QUEUE_BYTES.set_function(lambda: self._reading_bytes)

    def close(self) -> None:
        self._decoder.shutdown(wait=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = []
        began = time.perf_counter()
        try:
            status, answer = 202, await self._take(scope, receive, headers)
            if (wait := models.retry_after(answer)) is not None:
                headers.append((b"retry-after", wait))
        except Refusal as refusal:
            status, answer = refusal.status, told_as(refusal, headers)
        except PipelineError:  # Redis: what it said is for the log, not for the client
            status, answer = 503, told_as(Refusal(503, "unavailable", "events cannot be stored now", 1), headers)
        except Disconnected:
            return
        except ENDING:
            raise
        except BaseException:  # a panic in Polars is no Exception
            _log.exception("a request failed")
            status, answer = 503, told_as(Refusal(503, "unavailable", "the request could not be processed", 1), headers)
        count_answer(status)
        metrics.HTTP_SECONDS.observe(time.perf_counter() - began)
        await answer_with(send, status, headers, answer)

    async def _take(self, scope: Scope, receive: Receive, headers: list[tuple[bytes, bytes]]) -> bytes:
        guest: Guest = scope["guest"]
        guest.check_rate()  # before its body costs anything
        content_type, encoding, key, whole = b"", b"", None, True
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"content-encoding":
                encoding = value
            elif name == b"idempotency-key":
                key = value
            elif name == b"prefer" and b"handling=lenient" in value.lower():  # a client may send several
                whole = False
            elif name == b"content-length" and value.isdigit() and int(value) > self._bytes_max:
                raise self._too_large()
        message = await receive()
        arrival_us = time.time_ns() // 1000
        payload = message.get("body", b"")
        if message.get("more_body") or message["type"] != "http.request":
            payload = await self._read(message, receive)
            arrival_us = time.time_ns() // 1000
        elif len(payload) > self._bytes_max:
            raise self._too_large()
        metrics.BODY_BYTES.inc(len(payload))
        media, packing = content_type.decode("latin-1"), encoding.decode("latin-1")
        if (plain := _small(payload, packing, self._small_bytes_max)) is not None:
            payload, body = plain, self._decode(plain, media)
        else:
            payload, body = await self._decode_beside(payload, media, packing, key is not None)
        if guest.devices:
            body = body._replace(devices=guest.devices)
        guest.spend(body.events)
        try:
            if key is None:
                outcome = await self._ingest.submit(body, arrival_us, whole=whole)
                answer, taken = models.answer(*outcome), outcome.taken
            else:
                answer, taken, replay = await self._ingest.once(key.decode("latin-1"), payload, body, arrival_us, whole, guest.id)
                if replay:
                    headers.append((b"idempotent-replay", b"true"))
        except (Refusal, PipelineError):
            guest.spend(-body.events)  # it will send them again
            raise
        guest.spend(taken - body.events)  # so it will what was not admitted; and what a replay repeats was paid for
        return answer

    def _decode(self, payload: bytes, content_type: str) -> Body:
        try:
            return decode(payload, content_type, self._limits)._replace(size=len(payload))
        except (Refusal, *ENDING):
            raise
        except BaseException as error:
            raise told(error, "decoded") from None

    async def _read(self, message: MutableMapping[str, Any], receive: Receive) -> bytes:
        """The whole body; never more than the bound of one, nor of all together, in memory."""
        parts, size = [], 0
        try:
            while True:
                if message["type"] != "http.request":
                    raise Disconnected
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                self._reading_bytes += len(part)
                if size > self._bytes_max:
                    raise self._too_large()
                if self._reading_bytes > self._reading_bytes_max:
                    raise Refusal(429, "busy", "too many large bodies are being read already", retry_after_seconds=1)
                if not message.get("more_body"):
                    return b"".join(parts)
                message = await receive()
        finally:
            self._reading_bytes -= size

    async def _decode_beside(self, payload: bytes, content_type: str, encoding: str, keyed: bool) -> tuple[bytes, Body]:
        def work() -> tuple[bytes, Body]:
            plain = decompress(payload, encoding, self._limits.body_decompressed_bytes_max) if encoding else payload
            return plain if keyed else b"", self._decode(plain, content_type)

        size = len(payload) * (_COMPRESSION if encoding else 1)
        if self._reading_bytes + size > self._reading_bytes_max and self._reading_bytes:
            raise Refusal(429, "busy", "too many large bodies are being decoded already", retry_after_seconds=1)
        self._reading_bytes += size
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoder, copy_context().run, work)
        finally:
            self._reading_bytes -= size

    def _too_large(self) -> Refusal:
        return Refusal(413, "body_too_large", f"the body is larger than {self._bytes_max} bytes")


def _small(payload: bytes, encoding: str, bytes_max: int) -> bytes | None:
    """What a body holds that may be decoded on the event loop; None: it is too large for that, or compressed to so much that it may be."""
    if not encoding:
        return payload if len(payload) <= bytes_max else None
    if len(payload) > bytes_max // _COMPRESSION:
        return None
    try:
        return decompress(payload, encoding, bytes_max)
    except Refusal as refusal:
        if refusal.status == 413:
            return None
        raise


def told_as(refusal: Refusal, headers: list[tuple[bytes, bytes]]) -> bytes:
    """What is answered, and what its head says; where it is our fault, also by which name the log knows the request."""
    headers += refusal.headers()
    if refusal.status < 500 or (request_id := requestid.current()) is None:
        return refusal.body()
    headers.append((b"x-request-id", request_id.encode()))
    return refusal.body(request_id=request_id)
