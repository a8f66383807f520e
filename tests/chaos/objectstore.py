"""An S3 server (moto's, a process); and behind a TCP proxy that bends what passes: errors, delays, replies that get lost."""

from __future__ import annotations

import contextlib
import http.client
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.harness import eventually, free_port

BUCKET = "lake"
ERRORS, SLOW, CUT = "errors", "slow", "cut"
_SHARE = {ERRORS: 0.5, SLOW: 0.5, CUT: 0.5}  # of the requests that are bent while it lasts
_HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


class _Proxy(ThreadingHTTPServer):
    """Its clients are killed in the middle of a word: that is no news."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Bucket:
    """A bucket on a server of its own. Use as a context manager."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._port = free_port()
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Bucket:
        with (self._logs / "moto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.moto", str(self._port)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=Path(__file__).parents[2],
            )  # fmt: skip
        eventually(self._bucket_made, 60, "the S3 server answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _bucket_made(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.put(f"http://127.0.0.1:{self._port}/{BUCKET}", timeout=2).status_code == 200
        return False

    @property
    def location(self) -> str:
        return f"s3://{BUCKET}/telemetry"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """How Delta, Polars and DuckDB find it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "chaos",
            "AWS_SECRET_ACCESS_KEY": "chaos",
            "AWS_CONDITIONAL_PUT": "etag",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


class ObjectStore(Bucket):
    """It behind the proxy. `bend` and `straighten` are the faults; `bent` counts what met one.

    The proxy is in this process: what asks for the bucket here must let other threads run, as `is_deltatable` does not.
    """

    def __init__(self, logs: Path, seed: str) -> None:
        super().__init__(logs)
        self._rng = random.Random(f"{seed}/s3")
        self._bend: str | None = None
        self._delay_seconds = 0.0
        self.bent: Counter = Counter()
        self.server: ThreadingHTTPServer | None = None

    def __enter__(self) -> ObjectStore:
        super().__enter__()
        self.server = _Proxy(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, daemon=True, name="s3-proxy").start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        super().__exit__()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def bend(self, how: str, delay_seconds: float = 0.0) -> None:
        self._delay_seconds, self._bend = delay_seconds, how

    def straighten(self) -> None:
        self._bend = None

    def _fate(self, method: str) -> str | None:
        """How this request is bent; what is cut are PUTs."""
        how = self._bend
        if how is None or (how == CUT and method != "PUT") or self._rng.random() > _SHARE[how]:
            return None
        self.bent[how] += 1
        return how

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes

            def log_message(self, *_: object) -> None:
                pass

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fate = store._fate(self.command)
                if fate == ERRORS:
                    status = 503 if store._rng.random() < 0.5 else 500
                    self._answer(status, [], b"<Error><Code>SlowDown</Code><Message>bent</Message></Error>")
                    return
                if fate == SLOW:
                    time.sleep(store._delay_seconds)
                upstream = http.client.HTTPConnection("127.0.0.1", store._port, timeout=30)
                upstream.request(self.command, self.path, body, dict(self.headers))
                reply = upstream.getresponse()
                content = reply.read()
                upstream.close()
                if fate == CUT:  # it is done, and nobody is told
                    self.close_connection = True
                    with contextlib.suppress(OSError):
                        self.connection.shutdown(2)
                    return
                self._answer(reply.status, [(k, v) for k, v in reply.getheaders() if k.lower() not in _HOP], content)

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response(status)
                named = {name.lower() for name, _ in headers}
                for name, value in headers:
                    self.send_header(name, value)
                if "content-length" not in named:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    with contextlib.suppress(OSError):  # the client was killed meanwhile
                        self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

        return Handler
