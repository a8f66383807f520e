"""A small server beside a role's work, on a port of its own: /metrics, /healthz and /readyz. The API has these on its own port."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pipeline import metrics
from pipeline.errors import Invalid
from pipeline.health import Health
from pipeline.settings import Settings

CONNECTIONS_MAX = 16
REQUEST_SECONDS = 5


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(listener.getsockname(), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)

    def process_request(self, request, client_address) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request, client_address) -> None:
        """Nothing: a client that hangs up is no news."""


def serve(role: str, health: Health, listener: socket.socket, leads: Callable[[], bool] = lambda: False) -> int:
    """Answer from a thread of its own until the process ends; the port."""

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_SECONDS
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, metrics.shown(role, leads=leads()), metrics.CONTENT_TYPE)
            elif path == "/healthz":
                self._state(health.why_not_alive(), "ok", "failing")
            elif path == "/readyz":
                self._state(health.why_not_ready(), "ready", "not_ready")
            else:
                error = {"code": "not_found", "message": "there are /metrics, /healthz and /readyz"}
                self._answer(404, json.dumps({"error": error}).encode(), "application/json")

        def _state(self, reason: str | None, good: str, bad: str) -> None:
            told = {"status": good} if reason is None else {"status": bad, "reason": reason}
            self._answer(200 if reason is None else 503, json.dumps(told).encode(), "application/json")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: one line per question would be all that the log says."""

    server = _Server(listener, Handler)
    threading.Thread(target=server.serve_forever, name="ops", daemon=True).start()
    return listener.getsockname()[1]


def listener_of(settings: Settings, port: int | None = None) -> socket.socket | None:
    """A socket on the metrics port, or None where none is set. Invalid: it is taken or not ours to take, or the host is not ours."""
    port = settings.metrics_port if port is None else port
    if port is None:
        return None
    family = socket.AF_INET6 if ":" in settings.metrics_host else socket.AF_INET
    try:
        return socket.create_server((settings.metrics_host, port), family=family, backlog=CONNECTIONS_MAX)
    except (OSError, TypeError) as error:
        remedy = "choose another PIPELINE_METRICS_PORT (0: any free)"
        raise cannot_listen(settings.metrics_host, port, error, "PIPELINE_METRICS_HOST", remedy) from None


def cannot_listen(host: str, port: int, error: OSError | TypeError, host_setting: str, remedy: str) -> Invalid:
    """What is said where a socket cannot be bound: the remedy, unless it is the host that is none of this machine's."""
    number = getattr(error, "errno", None)
    if number is None or number < 0 or number == errno.EADDRNOTAVAIL:  # no text, no such name, or another machine's
        remedy = f"{host_setting} must be an address (without brackets) or a name of this machine"
    why = str(getattr(error, "strerror", error)).partition(" (while")[0]  # what follows is the address again
    return Invalid(f"cannot listen on {ascii(host)[1:-1]}:{port}: {why}; {remedy}")
