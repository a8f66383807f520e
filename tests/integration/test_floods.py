"""Strangers that cost as much as they can, over real sockets, beside a good client that is served on. The figures are printed."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from pipeline.core.tokens import Token, spelled
from pipeline.stores.tokenbook import Tokenbook
from tests.harness import Stack, eventually, held_mb

SECONDS = 6.0  # of each flood
P99_MS_MAX = 2000.0  # two shared cores, with the flood on them; without it a few
GROWTH_MB_MAX = 250
CONNECTIONS, PER_CLIENT = 400, 300
EVENT = {"device": "good-1", "metric": "cpu_pct", "value": 1.5}
HEAD = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Ground:
    """An API that asks for tokens, with few places, and the token of the good client."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        _, self.token = Tokenbook(stack.client).create(Token("", "good", ("ingest",), b""))
        eventually(lambda: self._post().status_code == 202, 10, "the good client is known")

    def _post(self) -> httpx.Response:
        return httpx.post(f"{self.stack.url}/v1/events", json=EVENT, headers={"Authorization": f"Bearer {self.token}"})

    def memory_mb(self) -> int:
        return held_mb(self.stack.api.pid)

    async def connect(self, address: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.stack.port, local_addr=(address, 0))


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Iterator[Ground]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192) if hard != resource.RLIM_INFINITY else 8192, hard))
    settings = {
        "PIPELINE_AUTH": "required", "PIPELINE_RULES_RELOAD_SECONDS": "0.5", "PIPELINE_REQUEST_SECONDS_MAX": "3",
        "PIPELINE_CONNECTIONS_MAX": str(CONNECTIONS), "PIPELINE_CONNECTIONS_PER_CLIENT_MAX": str(PER_CLIENT),
    }  # fmt: skip
    try:
        with Stack(tmp_path_factory.mktemp("floods"), fsync="everysec", **settings) as stack:
            stack.start()
            yield Ground(stack)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


Flood = Callable[[Ground, Counter], Awaitable[None]]


async def idle(ground: Ground, seen: Counter) -> None:
    await asyncio.sleep(3600)


async def slow_loris(ground: Ground, seen: Counter) -> None:
    """Hundreds of heads, a byte each second, from many addresses; whoever is hung up on comes again."""

    async def drip(number: int) -> None:
        while True:
            try:
                _, writer = await ground.connect(f"127.0.{1 + number % 5}.1")
                seen["connected"] += 1
                for byte in itertools.cycle(HEAD[:20] + b"X-A: b\r\n"):
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1)
            except OSError:
                seen["hung up on"] += 1
                await asyncio.sleep(0.2)

    await asyncio.gather(*(drip(number) for number in range(600)))


async def connections(ground: Ground, seen: Counter) -> None:
    """As many as it gets, which say nothing."""
    held = []
    while True:
        try:
            held.append(await ground.connect(f"127.0.2.{1 + len(held) % 3}"))
            seen["connected"] += 1
        except OSError:
            seen["refused"] += 1
        if len(held) > 3000:
            for _, writer in held[:500]:
                writer.close()
            del held[:500]
        await asyncio.sleep(0.001)


async def bodies(ground: Ground, seen: Counter, headers: Iterator[dict[str, str]], content: bytes, clients: int) -> None:
    """Requests with these headers, as fast as so many clients can."""

    async def go(client: httpx.AsyncClient) -> None:
        while True:
            try:
                seen[(await client.post(f"{ground.stack.url}/v1/events", content=content, headers=next(headers))).status_code] += 1
            except httpx.TransportError:
                seen["hung up on"] += 1

    async with httpx.AsyncClient(timeout=20, transport=httpx.AsyncHTTPTransport(local_address="127.0.3.1")) as client:
        await asyncio.gather(*(go(client) for _ in range(clients)))


async def bad_tokens(ground: Ground, seen: Counter) -> None:
    """Each another one, well made and unknown."""
    headers = ({"Authorization": f"Bearer {spelled('ab' * 6, f'{number:043}')}"} for number in itertools.count())
    await bodies(ground, seen, headers, b"[" + b" " * 20_000 + b"]", 8)


async def zip_bombs(ground: Ground, seen: Counter) -> None:
    """From one who has a token: 100 MB of blanks in 100 KB."""
    bomb = gzip.compress(b"[" + b" " * 100 * 2**20 + b"]")
    headers = {"Authorization": f"Bearer {ground.token}", "Content-Encoding": "gzip", "Content-Type": "application/json"}
    await bodies(ground, seen, itertools.repeat(headers), bomb, 4)


@asynccontextmanager
async def beside(flood: Flood, ground: Ground, seen: Counter) -> AsyncIterator[None]:
    task = asyncio.create_task(flood(ground, seen))
    await asyncio.sleep(1.5)  # it has begun
    try:
        yield
    finally:
        assert not task.done() or task.exception() is None, task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def good(ground: Ground) -> tuple[list[float], Counter]:
    """What a client sees that posts twenty times a second, on a connection that it keeps and on new ones: delays in ms, and failures."""
    delays, failures, until = [], Counter(), time.monotonic() + SECONDS
    headers = {"Authorization": f"Bearer {ground.token}"}
    options = {"timeout": 10, "headers": headers, "verify": False}  # over HTTP: nothing to verify, and no time to load certificates
    async with httpx.AsyncClient(**options) as kept:
        for number in itertools.count():
            if time.monotonic() > until:
                return delays, failures
            fresh = httpx.AsyncClient(**options) if number % 2 else None
            began = time.monotonic()
            try:
                answer = await (fresh or kept).post(f"{ground.stack.url}/v1/events", json={**EVENT, "value": number})
                failures[answer.status_code] += answer.status_code != 202
            except httpx.TransportError as error:
                failures[type(error).__name__] += 1
            delays.append((time.monotonic() - began) * 1000)
            if fresh is not None:
                await fresh.aclose()
            await asyncio.sleep(0.05)
    raise AssertionError("not reached")


@pytest.mark.parametrize("flood", [idle, slow_loris, connections, bad_tokens, zip_bombs], ids=lambda flood: flood.__name__)
def test_a_good_client_is_served_on(ground, flood, capsys):
    """All but a few of its requests at once; the process lives, and does not swell."""
    seen: Counter = Counter()
    before = ground.memory_mb()

    async def run() -> tuple[list[float], Counter]:
        async with beside(flood, ground, seen):
            return await good(ground)

    delays, failures = asyncio.run(run())
    failures = +failures
    ranked = sorted(delays)
    p50, p99 = ranked[len(ranked) // 2], ranked[int(len(ranked) * 0.99)]
    grown = ground.memory_mb() - before
    with capsys.disabled():
        told = ", ".join(f"{count} {what}" for what, count in sorted(seen.items(), key=str)) or "nobody else"
        print(f"\n{flood.__name__}: {told}")
        print(f"  good client: {len(delays)} posts, p50 {p50:.0f} ms, p99 {p99:.0f} ms, failed {dict(failures)}; API +{grown:.0f} MB")
    assert len(delays) > 20 and sum(failures.values()) <= len(delays) * 0.02
    assert p99 < P99_MS_MAX and grown < GROWTH_MB_MAX
    assert ground.stack.api.poll() is None
    if flood is bad_tokens:
        assert set(seen) == {401} and seen[401] > 100
    if flood is zip_bombs:
        assert set(seen) <= {413, 503} and seen[413] > 0


def test_a_connection_too_many_is_told_so(ground):
    """In JSON, as all else; the log of the API holds no line per stranger."""

    async def run() -> Counter:
        held = [await ground.connect("127.0.4.1") for _ in range(PER_CLIENT + 50)]
        await asyncio.sleep(0.5)
        told = Counter()
        for reader, writer in held[:50]:
            answer = await asyncio.wait_for(reader.read(), 5)
            head, _, body = answer.partition(b"\r\n\r\n")
            told[head.split()[1], json.loads(body)["error"]["code"], b"retry-after: 1" in head.lower()] += 1
            writer.close()
        for _, writer in held[50:]:
            writer.close()
        return told

    assert asyncio.run(run()) == {(b"503", "too_many_connections", True): 50}
    [log] = Path(ground.stack.folder / "logs").glob("*-ingest.log")
    assert len(log.read_text().splitlines()) < 30, log.read_text()[-2000:]
