"""Sends bodies to `POST /v1/events`: in order per lane, again where asked to, each event counted once.

A lane has one request in flight. Whoever keeps a device on one lane keeps the order of its events, across retries too:
the pipeline judges lateness against the device's own newest time, so bodies of one device must never overtake each other.
"""

import asyncio
import logging
import os
import random
import ssl
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import polars as pl

from simulator.errors import UserError
from simulator.wire import CONTENT_TYPES, Body, bodies

_BACKOFF_FIRST_S, _BACKOFF_MOST_S = 0.2, 10.0
_LANE_BODIES_MAX = 2  # waiting per lane, besides the one in flight
_ASK_AGAIN = {408, 425, 500, 502, 503, 504, 429}
_REFUSED = {400, 413, 415, 422}


@dataclass
class Counts:
    """In events, `retries` and `bodies` in requests. sent = accepted + rejected, as the answers said.

    refused      in bodies that the server will not take (400, 413, 415, 422); `refusals` holds the first reason of each status
    undelivered  never answered: given up after the deadline, or left when the run was stopped or failed
    unaccounted  in answered bodies, but missing from the answer's numbers: 0 unless the server is wrong
    """

    sent: int = 0
    accepted: int = 0
    rejected: int = 0
    refused: int = 0
    undelivered: int = 0
    unaccounted: int = 0
    retries: int = 0
    bodies: int = 0
    refusals: dict[int, str] = field(default_factory=dict)

    def summary(self) -> dict[str, int]:
        names = ["sent", "accepted", "rejected", "refused", "undelivered", "unaccounted", "retries", "bodies"]
        return {name: getattr(self, name) for name in names}


class Sender:
    """`async with Sender(...) as sender: await sender.send(lane, body)`. Leaving the block waits until all is answered.

    deadline_s   how long one body is tried while the server takes nothing of it; then it is given up, which ends the run with a UserError
    drain_s      how long bodies are still tried once `stop` is set; then the rest is counted as undelivered
    parts        whether the server may take a part of a body: what waits then comes after what the same device sent later
    on_answered  gets the rows of each body (or part of one) that the server has taken or set aside
    """

    def __init__(
        self,
        url: str,
        *,
        lanes: int = 8,
        token: str | None = None,
        ca_file: Path | None = None,
        deadline_s: float = 240.0,
        drain_s: float = 10.0,
        timeout_s: float = 30.0,
        stop: asyncio.Event | None = None,
        on_answered: Callable[[pl.DataFrame], None] = lambda rows: None,
        parts: bool = True,
    ) -> None:
        self.counts = Counts()
        self.waiting = ""  # why lanes wait right now, for the progress line
        self.lanes = lanes
        self._url = check_url(url) + "/v1/events"
        self._deadline_s, self._drain_s = deadline_s, drain_s
        self._stop = stop or asyncio.Event()
        self._cut: asyncio.Task[None] | None = None  # done when the time to drain is over
        self._on_answered = on_answered
        self._prefer = {"Prefer": "handling=lenient"} if parts else {}
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=lanes, max_keepalive_connections=lanes)
        self._client = _client(ca_file, headers=headers, limits=limits, timeout=timeout_s)
        self._queues: list[asyncio.Queue[Body | None]] = [asyncio.Queue(_LANE_BODIES_MAX) for _ in range(lanes)]
        self._workers: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None

    async def __aenter__(self) -> "Sender":
        logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per request is no progress display
        self._cut = asyncio.create_task(self._drained())
        self._workers = [asyncio.create_task(self._work(queue, self._cut)) for queue in self._queues]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and not issubclass(kind, UserError):
            for worker in self._workers:
                worker.cancel()
        else:
            for queue in self._queues:
                await queue.put(None)
        await asyncio.gather(*self._workers, return_exceptions=kind is not None)
        if self._cut is not None:
            self._cut.cancel()
        await self._client.aclose()
        if kind is None:
            self.check()

    async def send(self, lane: int, body: Body) -> None:
        """Put a body on its lane; waits while the lane is full. Raises UserError once the run cannot go on."""
        self.check()
        await self._queues[lane].put(body)

    async def send_events(self, events: pl.DataFrame, form: str, body_events: int) -> None:
        """Cut events into bodies by their column `lane` and send them, in turn lane by lane, so that no lane starves the others."""
        parts = events.partition_by("lane", as_dict=True, maintain_order=True)
        streams = {lane: bodies(part, form, body_events) for (lane,), part in parts.items()}
        while streams:
            for lane in list(streams):
                if (body := next(streams[lane], None)) is None:
                    del streams[lane]
                else:
                    await self.send(lane, body)

    def check(self) -> None:
        """Raise what ended the run, if anything did."""
        if self._failure is not None:
            raise self._failure

    async def _drained(self) -> None:
        await self._stop.wait()
        await asyncio.sleep(self._drain_s)

    async def _work(self, queue: asyncio.Queue[Body | None], cut: asyncio.Task[None]) -> None:
        while (body := await queue.get()) is not None:
            if self._failure is not None or cut.done():
                self.counts.undelivered += body.rows.height
                continue
            delivery = asyncio.create_task(self._deliver(body))
            try:
                await asyncio.wait({delivery, cut}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                delivery.cancel()  # no effect once it is done
            await asyncio.wait({delivery})
            if not delivery.cancelled() and (failure := delivery.exception()) is not None:
                self._failure = failure  # for whoever feeds the lanes; a lane that ends here would block them

    async def _deliver(self, body: Body) -> None:
        """Send until answered for good; the part a server did not admit is a new body with a new key."""
        began, attempt, key = time.monotonic(), 0, uuid.uuid4().hex
        rest: Body | None = body
        try:
            while rest is not None:
                answer, why = await self._post(rest, key)
                left = rest if answer is None else self._take(rest, answer)
                if left is None:
                    rest = None
                    break
                if left.rows.height < rest.rows.height:
                    began = time.monotonic()  # a server that takes part after part is no reason to give up
                if left is not rest:
                    rest, attempt, key = left, 0, uuid.uuid4().hex
                pause = _pause_s(answer, attempt)
                if time.monotonic() + pause > began + self._deadline_s:
                    tried = f"given up after {time.monotonic() - began:.0f} s"
                    told = "is the API running there? (--url, " if answer is None else "it answers, but takes no more for now ("
                    raise UserError(f"{self._url}: {why}, {tried}; {told}--deadline)")
                self.waiting = f"{why}, again in {pause:.1f} s"
                self.counts.retries += 1
                attempt += 1
                await asyncio.sleep(pause)
            self.waiting = ""
        finally:
            if rest is not None:
                self.counts.undelivered += rest.rows.height

    async def _post(self, body: Body, key: str) -> tuple[httpx.Response | None, str]:
        """The answer, or None where the connection failed; and either in words."""
        headers = {"Content-Type": CONTENT_TYPES[body.form], "Idempotency-Key": key, **self._prefer}
        try:
            answer = await self._client.post(self._url, content=body.content, headers=headers)
        except httpx.TransportError as error:
            return None, f"{type(error).__name__} {error}".strip()
        return answer, f"{answer.status_code} {answer.reason_phrase}"

    def _take(self, body: Body, answer: httpx.Response) -> Body | None:
        """Count an answer. None: nothing is left to send; else the body, or the part of it that is to be sent again."""
        status = answer.status_code
        if status in (401, 403):
            raise UserError(f"{self._url}: {status}, {answer.text[:300]}; the token comes from PIPELINE_TOKEN or --token-file")
        if status in _REFUSED:
            self.counts.refused += body.rows.height
            self.counts.bodies += 1
            self.counts.refusals.setdefault(status, answer.text[:200])
            return None
        if not answer.is_success and status not in _ASK_AGAIN:
            raise UserError(f"{self._url}: {status} {answer.reason_phrase}, not the telemetry API; check --url")
        said = _object(answer)
        if answer.is_success and "accepted" not in said:
            raise UserError(f"{self._url}: {status} without a count of accepted events, not the telemetry API; check --url")
        again = sorted({index for index in said.get("not_admitted") or [] if 0 <= index < body.rows.height})
        if not answer.is_success and not again:
            return body
        done = body.rows
        if again:
            done = body.rows.with_row_index("_at").filter(~pl.col("_at").is_in(again)).drop("_at")
        accepted, rejected = int(said.get("accepted", done.height)), int(said.get("rejected", 0))
        self.counts.accepted += accepted
        self.counts.rejected += rejected
        self.counts.sent += accepted + rejected
        self.counts.unaccounted += done.height - accepted - rejected
        self.counts.bodies += 1
        self._on_answered(done)
        return next(bodies(body.rows[again], body.form, len(again))) if again else None


def _object(answer: httpx.Response) -> dict:
    try:
        said = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _pause_s(answer: httpx.Response | None, attempt: int) -> float:
    """What Retry-After asks for and up to a quarter more, so that clients do not come back together; else a doubling pause."""
    asked = "" if answer is None else answer.headers.get("Retry-After", "")
    if asked.isdecimal():
        return int(asked) + random.uniform(0.05, 0.05 + 0.25 * int(asked))
    return min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2**attempt) * random.uniform(0.5, 1)


def check_url(url: str) -> str:
    """The URL without its trailing slash. UserError for one that is not http(s)://HOST..."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"--url {url}: {error}; expected something like http://127.0.0.1:8000") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or not 0 <= (parsed.port or 0) < 2**16:
        raise UserError(f"--url {url}: expected something like http://127.0.0.1:8000")
    return url.rstrip("/")


async def stopped(stop: asyncio.Event, seconds: float) -> bool:
    """Wait `seconds`, or less if `stop` is set meanwhile; whether it is set."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def wait_for_server(
    url: str, wait_s: float, stop: asyncio.Event, on_wait: Callable[[str], None] = lambda why: None, ca_file: Path | None = None
) -> None:
    """Return once the server answers anything at all, or `stop` is set; UserError after `wait_s`."""
    until = time.monotonic() + wait_s
    async with _client(ca_file, timeout=5) as client:
        while not stop.is_set():
            try:
                await client.get(check_url(url) + "/healthz")
                return
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
            if "CERTIFICATE_VERIFY_FAILED" in why:
                raise UserError(f"{url}: {why}; name the certificate of who signed it: --ca-file, or SSL_CERT_FILE")
            if time.monotonic() > until:
                raise UserError(f"{url}: not reachable after {wait_s:g} s ({why}); start the API, or point --url at it")
            on_wait(f"waiting for {url}: {why}")
            await stopped(stop, 0.3)


def _client(ca_file: Path | None, **options: Any) -> httpx.AsyncClient:
    """UserError: a proxy of the environment that cannot be used."""
    verify = trusted(ca_file)
    try:
        return httpx.AsyncClient(verify=verify, **options)
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # a SOCKS proxy needs a package; a scheme, or a URL, that is none
        raise UserError(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY: {error}") from None


def trusted(ca_file: Path | None) -> ssl.SSLContext:
    """Whose certificates are believed: those of this file, else those of SSL_CERT_FILE or of this machine. UserError: no such file."""
    file = os.environ.get("SSL_CERT_FILE") if ca_file is None else str(ca_file)
    try:
        return ssl.create_default_context(cafile=file or None)
    except OSError as error:  # an SSLError is one too
        place = "SSL_CERT_FILE" if ca_file is None else "--ca-file"
        raise UserError(f"{place} {file}: {error.strerror or error}; expected certificates as PEM") from None


def token_of(file: Path | None) -> str | None:
    """The token of a file, else that of the environment: in a command line, everybody on the machine could read it.

    UserError: there is none. It does not show what is there: a secret with one character too many is still one.
    """
    place = "PIPELINE_TOKEN" if file is None else f"--token-file {file}"
    try:
        text = os.environ.get("PIPELINE_TOKEN", "") if file is None else file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: {getattr(error, 'strerror', None) or 'it holds no token'}") from None
    text = text.strip()  # a file, and a secret that is mounted as a variable, often ends with a newline
    if not text and file is None:
        return None
    if not text.isascii() or not text.isprintable() or not text or " " in text:
        raise UserError(f"{place}: it holds no token")
    return text
