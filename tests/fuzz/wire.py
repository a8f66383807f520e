"""HTTP/1.1 byte by byte: requests with honest and dishonest framing, and a client that sends them at its own pace."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from typing import NamedTuple

ANSWER_SECONDS = 20.0  # longer than any timeout of the server: beyond, it hangs

SHUT, CLOSE = "shut", "close"
Step = bytes | float | str  # to send, to wait, to half-close or to leave


class Exchange(NamedTuple):
    """What a client does on one connection. `answers`: how many are due, None: any or none."""

    kind: str
    steps: tuple[Step, ...]
    answers: int | None = 1
    malformed: bool = False

    def raw(self) -> bytes:
        """As it is saved."""
        return b"".join(step if isinstance(step, bytes) else b"\n<<%b>>\n" % str(step).encode() for step in self.steps)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def request(
    body: bytes, *headers: tuple[bytes, bytes], path: bytes = b"/v1/events", method: bytes = b"POST", length: bytes | None = None
) -> bytes:
    """One request with its length."""
    lines = [b"%b %b HTTP/1.1" % (method, path), b"Host: x", *(b"%b: %b" % header for header in headers)]
    lines.append(b"Content-Length: " + (length if length is not None else b"%d" % len(body)))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body: bytes, sizes: list[int], *headers: tuple[bytes, bytes]) -> bytes:
    lines = [b"POST /v1/events HTTP/1.1", b"Host: x", *(b"%b: %b" % header for header in headers), b"Transfer-Encoding: chunked"]
    parts, at = [b"\r\n".join(lines) + b"\r\n\r\n"], 0
    for size in [*sizes, len(body)]:
        if piece := body[at : at + size]:
            parts.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        at += size
    return b"".join(parts) + b"0\r\n\r\n"


JSON = (b"Content-Type", b"application/json")


def framed(rng: random.Random, body: bytes) -> Exchange:
    """A good body in a frame that is odd, or wrong."""
    whole = request(body, JSON)
    head, _, _ = whole.partition(b"\r\n\r\n")
    bare = [b"POST /v1/events HTTP/1.1", b"Host: x", b"Content-Type: application/json"]

    def raw(*lines: bytes, content: bytes = body) -> bytes:
        return b"\r\n".join([*bare, *lines]) + b"\r\n\r\n" + content

    sizes = [rng.choice([1, 1, 7, 4096]) for _ in range(rng.choice([1, 20]))]
    good = chunked(body, sizes, JSON)
    half = rng.randrange(len(whole))
    odd: dict[str, tuple[tuple[Step, ...], int | None, bool]] = {
        "chunked": ((good,), 1, False),
        "chunk-extensions": ((good.replace(b"\r\n0\r\n\r\n", b"\r\n0;" + b"e" * 500 + b"\r\nTrailer: x\r\n\r\n"),), None, False),
        "chunk-bad-size": (
            (
                raw(
                    b"Transfer-Encoding: chunked",
                    content=rng.choice([b"zz\r\n", b"-5\r\n", b"FFFFFFFFFFFFFFFFF\r\n", b"\r\n\r\n", b"5\r\nabc"]),
                ),
                0.05,
                SHUT,
            ),
            None,
            True,
        ),
        "chunk-no-end": ((good[:-5], CLOSE), None, False),
        "chunk-huge": ((raw(b"Transfer-Encoding: chunked", content=b"7fffffffffffffff\r\n" + body), SHUT), None, False),
        "trailer-flood": ((good[:-2] + b"".join(b"T%d: %b\r\n" % (i, b"t" * 1000) for i in range(300)) + b"\r\n",), None, False),
        "length-short": ((request(body, JSON, length=b"%d" % (len(body) // 2)),), None, False),
        "length-long": ((request(body, JSON, length=b"%d" % (len(body) + 100)), SHUT), None, False),
        "length-bad": (
            (request(body, JSON, length=rng.choice([b"-1", b"x", b"1e3", b"99999999999999999999", b"", b"0x10", b"1,1", b"5 5"])),),
            1,
            True,
        ),
        "length-too-large": ((request(b"", JSON, length=b"%d" % (9 * 1024**2)),), 1, True),
        "length-twice": ((raw(b"Content-Length: %d" % len(body), b"Content-Length: %d" % (len(body) + 1)),), 1, True),
        "length-and-chunked": ((raw(b"Content-Length: 4", b"Transfer-Encoding: chunked", content=b"0\r\n\r\n"),), 1, True),
        "transfer-unknown": (
            (raw(b"Transfer-Encoding: " + rng.choice([b"gzip", b"chunked, chunked", b"identity", b"xchunked"])), 0.05, SHUT),
            None,
            True,
        ),
        "no-length": ((raw(content=b""), b"", SHUT), None, True),
        "header-huge": (
            (
                b"\r\n".join([*bare, b"X: " + b"h" * rng.choice([10_000, 100_000, 1_000_000]), b"Content-Length: %d" % len(body)])
                + b"\r\n\r\n"
                + body,
            ),
            None,
            False,
        ),
        "headers-many": (
            (
                b"\r\n".join([*bare, *(b"X-%d: y" % i for i in range(rng.choice([100, 20_000]))), b"Content-Length: %d" % len(body)])
                + b"\r\n\r\n"
                + body,
            ),
            None,
            False,
        ),
        "header-odd": (
            (
                raw(
                    rng.choice([b"No colon here", b": empty", b"A b: c", b"X: a\x00b", b"\xff\xfe: x", b" folded: x", b"X: \xff"]),
                    b"Content-Length: %d" % len(body),
                ),
            ),
            None,
            False,
        ),
        "url-huge": (
            (b"POST /v1/events?" + b"q" * rng.choice([5000, 200_000]) + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",),
            None,
            True,
        ),
        "url-odd": (
            (
                rng.choice(
                    [
                        b"POST \xff\xfe HTTP/1.1",
                        b"POST * HTTP/1.1",
                        b"POST http://[::1 HTTP/1.1",
                        b"POST //v1//events HTTP/1.1",
                        b"POST /v1/events%00 HTTP/1.1",
                        b"POST /v1/%ff HTTP/1.1",
                        b"CONNECT x:1 HTTP/1.1",
                        b"GET /v1/rules?version=1e9 HTTP/1.1",
                        b"GET /v1/rules?version=99999999999999999999999 HTTP/1.1",
                    ]
                )
                + b"\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
            ),
            None,
            True,
        ),
        "start-odd": (
            (
                rng.choice(
                    [
                        b"\x16\x03\x01\x02\x00\x01",
                        b"GARBAGE\r\n\r\n",
                        b"POST /v1/events HTTP/9.9\r\n\r\n",
                        b"POST /v1/events\r\n\r\n",
                        b"\r\n" * 50 + b"x\r\n\r\n",
                        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                        b"\x00" * 100,
                        b"POST  /v1/events HTTP/1.1\r\n\r\n",
                    ]
                ),
                0.05,
                SHUT,
            ),
            None,
            True,
        ),
        "upgrade": ((raw(b"Upgrade: websocket", b"Connection: Upgrade", b"Content-Length: %d" % len(body)),), 1, False),
        "expect": ((raw(b"Expect: 100-continue", b"Content-Length: %d" % len(body)),), 1, False),
        "expect-unknown": ((raw(b"Expect: the-unexpected", b"Content-Length: %d" % len(body)),), None, False),
        "method": ((request(body, JSON, method=rng.choice([b"PUT", b"DELETE", b"PATCH", b"GET", b"OPTIONS", b"TRACE"])),), 1, True),
        "http-1.0": ((whole.replace(b"HTTP/1.1", b"HTTP/1.0", 1),), 1, False),
        "pipelined": ((whole * rng.choice([2, 20]),), whole.count(b"HTTP/1.1"), False),
        "pipelined-bad": ((whole + b"GARBAGE\r\n\r\n", SHUT), None, False),
        "pipelined-left": ((whole * 5, CLOSE), None, False),
        "cut": ((whole[:half], CLOSE), None, False),
        "half-closed": ((whole, SHUT), None, False),
        "slow-body": (
            (head + b"\r\n\r\n", *(part for i in range(4) for part in (0.1, body[i * len(body) // 4 : (i + 1) * len(body) // 4]))),
            1,
            False,
        ),
        "slow-head": ((*tuple(part for byte in whole[:20] for part in (bytes([byte]), 0.01)), whole[20:]), 1, False),
        "stalled-head": ((whole[: rng.randrange(1, len(head))], 6.0), None, True),
        "stalled-body": ((head + b"\r\n\r\n" + body[:-1], 6.0), None, True),
        "key": (
            (
                request(
                    body,
                    JSON,
                    (b"Idempotency-Key", rng.choice([b"", b"k" * 256, b"k" * 257, b"\xff\xfe", b"a b", b"\t", b"a,b", b"k" * 60_000])),
                ),
            ),
            None,
            False,
        ),
        "keys-two": (
            (request(body, JSON, (b"Idempotency-Key", b"%d" % rng.randrange(10**9)), (b"Idempotency-Key", b"%d" % rng.randrange(10**9))),),
            1,
            False,
        ),
        "type": (
            (
                request(
                    body,
                    (
                        b"Content-Type",
                        rng.choice(
                            [
                                b"",
                                b"x",
                                b"application/xml",
                                b"text/html; charset=utf-16",
                                b"\xff",
                                b"application/json" * 1000,
                                b"multipart/form-data; boundary=x",
                                b"image/png",
                                b"application/" + b"x" * 50_000 + b"+json",
                            ]
                        ),
                    ),
                ),
            ),
            1,
            False,
        ),
        "types-two": ((request(body, JSON, (b"Content-Type", b"application/vnd.apache.arrow.stream")),), 1, True),
        "no-type": ((request(body),), 1, False),
    }
    kind = rng.choice(list(odd))
    if kind in ("stalled-head", "stalled-body") and rng.random() < 0.8:  # each takes seconds
        kind = "chunked"
    steps, answers, malformed = odd[kind]
    if kind == "pipelined":
        answers = steps[0].count(b"POST /v1/events HTTP/1.1")
    return Exchange(f"wire-{kind}", steps, answers, malformed)


class Hangs(Exception):
    """The server neither answers nor closes."""


class Client:
    """One connection at a time to one port, kept while the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, exchange: Exchange) -> list[Answer]:
        """Do what it says, and read what comes back. Hangs: neither an answer nor the end within the time."""
        plain = len(exchange.steps) == 1 and exchange.answers == 1 and not exchange.kind.startswith("wire-")
        try:
            if plain and self._socket is not None:
                with contextlib.suppress(OSError):
                    if answers := self._once(exchange):
                        return answers
            self.close()  # the server may have closed it meanwhile, which large bodies learn when they look for an answer: once again
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=ANSWER_SECONDS)
            return self._once(exchange)
        finally:
            if not plain:
                self.close()

    def _once(self, exchange: Exchange) -> list[Answer]:
        for step in exchange.steps:
            if isinstance(step, float):
                time.sleep(step)
            elif step == SHUT:
                try:
                    self._socket.shutdown(socket.SHUT_WR)
                except OSError:
                    break
            elif step == CLOSE:
                return []
            else:
                try:
                    self._socket.sendall(step)
                except TimeoutError:
                    raise Hangs(f"it takes nothing for {ANSWER_SECONDS:g} s") from None
                except OSError:  # refused in the middle: its answer may be there to read
                    if not exchange.kind.startswith("wire-") and exchange.answers == 1 and len(step) < 100_000:
                        raise
                    break
        answers: list[Answer] = []
        wanted = exchange.answers if exchange.answers is not None else 1
        stream = self._socket.makefile("rb")
        while len(answers) < wanted:
            answer = self._answer(stream)
            if answer is None:
                break
            if answer.status >= 200:
                answers.append(answer)
        return answers

    def _answer(self, stream) -> Answer | None:
        """The next answer; None: the server has closed."""
        try:
            start = stream.readline(65_536)
            if not start:
                return None
            status = int(start.split()[1])
            headers: dict[str, str] = {}
            while (line := stream.readline(65_536)) not in (b"\r\n", b""):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if status < 200:
                return Answer(status, headers, b"")
            size = int(headers.get("content-length", "0"))
            body = stream.read(size)
        except TimeoutError:
            raise Hangs(f"no answer within {ANSWER_SECONDS:g} s") from None
        except (ConnectionError, IndexError, ValueError):
            return None
        return Answer(status, headers, body)
