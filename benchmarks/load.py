"""Clients over plain sockets: bodies as fast as they are answered, or at a pace. They cost little, and no share of what is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

ANSWER_SECONDS_MAX = 60


async def _post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, content_type: str, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        answer = await reader.readuntil(b"\r\n\r\n")
        status, *fields = answer.split(b"\r\n")
        length = next(int(field.split(b":")[1]) for field in fields if field.lower().startswith(b"content-length"))
        text = await reader.readexactly(length)
    if status.split()[1] not in (b"200", b"202"):
        raise RuntimeError(f"{status.decode()}: {text[:200].decode()}")


async def _all(port: int, bodies: Sequence[bytes], content_type: str, connections: int, path: str) -> None:
    waiting = iter(bodies)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in waiting:
            await _post(reader, writer, body, content_type, path)
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))


def post_all(port: int, bodies: Sequence[bytes], content_type: str, connections: int = 16, path: str = "/v1/events") -> float:
    """Send all, each client its next body when the last is answered; seconds it took."""
    began = time.perf_counter()
    asyncio.run(_all(port, bodies, content_type, connections, path))
    return time.perf_counter() - began


async def _paced(port: int, bodies: Sequence[bytes], content_type: str, per_second: float, connections: int) -> np.ndarray:
    due = iter(enumerate(bodies))
    took = np.zeros(len(bodies))
    began = time.perf_counter() + 0.1

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number, body in due:
            at = began + number / per_second
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            await _post(reader, writer, body, content_type, "/v1/events")
            took[number] = time.perf_counter() - at  # from when it was due: a client that waits hides nothing
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return took


def post_paced(port: int, bodies: Sequence[bytes], content_type: str, per_second: float, connections: int = 32) -> np.ndarray:
    """Send so many bodies a second, whether answered or not; seconds from when each was due to its answer."""
    return asyncio.run(_paced(port, bodies, content_type, per_second, connections))
