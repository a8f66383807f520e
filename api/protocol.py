"""HTTP/1.1 from strangers: Uvicorn's protocol with bounds on the head of a request, on the time it takes to arrive, and on
how many connections there are.

A client that sends a head without end, or a body and never its last byte, would otherwise hold memory, or a share of what may
be read at once, for as long as it likes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.crowd import Crowd
from api.models import Refusal

HEAD_BYTES_MAX = 64 * 1024
_FULL = Refusal(503, "too_many_connections", "there are too many connections now", retry_after_seconds=1)
_WISHES = (b"upgrade", b"http2-settings")
_EARNED = 9  # what a byte of a body gives back: itself, and the frame of a chunk that holds it alone


def guarded(request_seconds: float, connections: Crowd) -> type[HttpToolsProtocol]:
    """The protocol for requests that have to be here whole within so many seconds, over connections that have found a place."""

    class Guarded(_Guarded):
        seconds = request_seconds
        crowd = connections

    return Guarded


class _Guarded(HttpToolsProtocol):
    """What is no body is paid from a budget of `HEAD_BYTES_MAX`: head, chunk sizes and extensions, trailers."""

    seconds: float
    crowd: Crowd

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._budget = HEAD_BYTES_MAX
        self._whole = False  # the newest request has arrived whole; before the first none has
        self._timer: asyncio.TimerHandle | None = None
        self._received = 0  # bytes of the piece at hand
        self._active: RequestResponseCycle | None = None  # the request that is being answered; `cycle` is the newest
        self._again = b""  # the head of a request that wished for another protocol, without that wish

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        if not self.crowd.enter(self):
            self._refuse(_FULL)
            return
        self._timer = self.loop.call_later(self.seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.crowd.leave(self)
        self.pipeline.clear()
        if self._active is not None and not self._active.response_complete:  # Uvicorn tells the newest alone
            self._active.disconnected = True
            self._active.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        self._received = len(data)
        self._budget -= len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        if self.transport.is_closing():
            return
        if self._budget < 0:
            self._refuse(Refusal(431, "head_too_large", f"the head of the request is larger than {HEAD_BYTES_MAX} bytes"))
        elif not self._whole:
            if self._timer is None:
                self._timer = self.loop.call_later(self.seconds, self._late)
        elif self.cycle.response_complete and self.timeout_keep_alive_task is None:  # blank lines between requests
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _feed(self, data: bytes) -> None:
        """Nothing is upgraded here, but a client may wish for it with any request, as `curl --http2` and Java do with their first. The
        parser ends there, and the body would be taken for the next request: so that one is read again, without its wish."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as end:
                data = self._again + data[end.args[0] :] if self._again else b""
                self._again = b""
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as Uvicorn's own

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers):
            head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
            for name, value in self.headers:
                if name == b"connection":
                    value = b",".join(each for each in value.split(b",") if each.strip().lower() not in _WISHES)
                if name not in _WISHES:
                    head.append(b"%b: %b" % (name, value))
            self._again = b"\r\n".join([*head, b"", b""])
            return
        super().on_headers_complete()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._whole = False
        self._budget = HEAD_BYTES_MAX + self._received  # a request may begin anywhere in the piece

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.cycle is None or self.cycle.scope is not self.scope:  # else a trailer: nobody asked for it
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._budget = min(HEAD_BYTES_MAX + self._received, self._budget + _EARNED * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._again:
            return
        self._whole = True
        self._budget = HEAD_BYTES_MAX + self._received
        self._disarm()
        super().on_message_complete()
        if self.cycle.response_complete:  # it was refused before it was here
            self.crowd.waits(self)
        else:
            self.crowd.works(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._whole or self.cycle.response_complete:  # else a pipelined request is here whole, and its turn
            self.crowd.waits(self)

    def make_room(self) -> None:
        """Its place is given to another. A request that has begun is told; between two requests, a plain end is what clients expect."""
        if self._timer is None:
            self.transport.close()
        else:
            self._refuse(_FULL)

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal(400, "bad_request", "this is no HTTP/1.1 request that can be read"))

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # it is us who don't read: an earlier request of the connection is being answered
            self._timer = self.loop.call_later(self.seconds, self._late)
            return
        self._refuse(Refusal(408, "too_slow", f"the request did not arrive within {self.seconds:g} s"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, and hang up. Whole requests before this one get their answers first, and this one none: nothing is out of order."""
        active, newest = self._active, self.cycle
        if active is not None and not active.response_complete and not (active is newest and newest.more_body):
            newest.keep_alive = False
            self.flow.pause_reading()
            return
        if newest is None or newest.response_complete or not newest.response_started:
            body = refusal.body()
            head = [STATUS_LINE[refusal.status], b"content-type: application/json\r\n", b"content-length: %d\r\n" % len(body)]
            head += [b"%b: %b\r\n" % header for header in refusal.headers()]
            self.transport.write(b"".join([*head, b"connection: close\r\n\r\n", body]))
        if newest is not None:
            newest.disconnected = True
            newest.message_event.set()
        self.transport.close()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
