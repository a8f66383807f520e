"""The ingest API as an application, and as a process."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, MutableMapping, Sequence
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from api import docs, requestid
from api.admission import Gate
from api.crowd import Crowd
from api.door import PUBLIC_PATHS, Door, Load
from api.endpoint import EventsEndpoint, Receive, Scope, Send, answer_with, count_answer, told_as
from api.health import add_health
from api.ingest import Ingest, Store
from api.models import Refusal
from api.protocol import guarded
from api.rules import rules_router
from api.server import Server, room_for
from api.status import status_router
from api.tls import tls_of
from pipeline.errors import Invalid
from pipeline.ops import cannot_listen
from pipeline.settings import Settings
from pipeline.status import status
from pipeline.stores.admission import Desk
from pipeline.stores.alertlog import AlertLog
from pipeline.stores.connection import connect, connect_async, copies_of, process_name
from pipeline.stores.rulebook import Rulebook, limits_of
from pipeline.stores.streams import Appender
from pipeline.stores.tokenbook import Tokenbook

_log = logging.getLogger(__name__)

BACKLOG = 2048
SWITCH_SECONDS = 0.001  # for so long the event loop may wait for the thread that builds groups, whenever both have Python to run


class IngestApp(FastAPI):
    """FastAPI with one door in front of it. Every request comes through it, whatever its path, so that no route is without a lock.
    And events go no further: what FastAPI does per request (routing, middleware, exit stacks) costs more than taking an event."""

    def __init__(self, door: Door, endpoint: EventsEndpoint, **options: Any) -> None:
        super().__init__(**options)
        self._door = door
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        requestid.begin(scope)
        events = scope["path"] == docs.EVENTS_PATH and scope["method"] == "POST"
        try:
            scope["guest"] = self._door.enter(scope)
        except Refusal as refusal:
            if events:
                count_answer(refusal.status)
            headers: list[tuple[bytes, bytes]] = []
            answer = told_as(refusal, headers)
            await answer_with(send, refusal.status, headers, answer)
            return
        if events:
            await self._endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, _named(send))


def _named(send: Send) -> Send:
    """`send`, with the request's id in the head of an answer that says that we failed."""

    async def named(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 500 and (request_id := requestid.current()):
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
        await send(message)

    return named


def create_app(
    settings: Settings, appender: Store, routers: Sequence[APIRouter] = (), tokens: Load | None = None, gate: Gate | None = None
) -> FastAPI:
    """The application over a store, which is closed with it; further endpoints, the tokens and a gate where there are any."""
    door = Door(settings.auth_required, tokens, settings.rules_reload_seconds)
    ingest = Ingest(settings, appender, gate)
    endpoint = EventsEndpoint(settings, ingest)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await door.start()
        await ingest.start()
        try:
            yield
        finally:
            await ingest.stop()
            await door.stop()
            endpoint.close()
            await appender.close()

    app = IngestApp(door, endpoint, title="Telemetry ingest", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.router.routes.append(Route(docs.EVENTS_PATH, endpoint, methods=["POST"]))  # other methods get their 405 here
    add_health(app, ingest, appender, settings.redis_timeout_seconds)
    for router in routers:
        app.include_router(router)
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = docs.described(generated(), PUBLIC_PATHS if settings.auth_required else None)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def page(request: Request) -> Response:
        return HTMLResponse(docs.page(openapi(), str(request.base_url)))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse({"error": {"code": code, "message": message}}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        message = f"{'.'.join(map(str, problem['loc']))}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
        return JSONResponse({"error": {"code": "invalid", "message": message}}, 422)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        message = "the request could not be processed"
        return JSONResponse({"error": {"code": "internal", "message": message, "request_id": requestid.current()}}, 500)

    app.state.ingest = ingest
    return app


def bind(settings: Settings) -> socket.socket:
    """A listening socket; port 0 takes any that is free (`getsockname()[1]`). Invalid: the port is taken, or it or the host not ours."""
    family = socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.api_host, settings.api_port))
        listener.listen(BACKLOG)
    except (OSError, TypeError) as error:
        listener.close()
        remedy = "choose another port (PIPELINE_API_PORT, 0 for any)"
        raise cannot_listen(settings.api_host, settings.api_port, error, "PIPELINE_API_HOST", remedy) from None
    return listener


def serve(settings: Settings, listener: socket.socket | None = None, appender: Store | None = None) -> int:
    """Serve until SIGINT or SIGTERM, then answer what was accepted; the exit code."""
    sys.setswitchinterval(SWITCH_SECONDS)
    tls = tls_of(settings)
    if settings.exposed and not settings.auth_required:
        _log.warning("PIPELINE_AUTH=off: whoever reaches %s may send events and change rules", settings.api_host)
    if settings.exposed and tls is None:
        _log.warning("no TLS: what reaches %s can be read on its way; set PIPELINE_TLS_CERT_FILE, or let a proxy do it", settings.api_host)
    crowd = Crowd(room_for(settings.connections_max), settings.connections_per_client_max)
    routers: list[APIRouter] = []
    tokens = gate = None
    if appender is None:
        if settings.redis_url is None:
            raise Invalid("PIPELINE_REDIS_URL is not set: which Redis takes the events?")
        client = connect_async(settings.redis_url, settings.redis_timeout_seconds)
        appender = Appender(client, settings.partitions, settings.idempotency_seconds, copies_of(settings))
        stores = connect(settings.redis_url, settings.redis_timeout_seconds)
        rulebook = Rulebook(stores)
        routers = [rules_router(rulebook, AlertLog(stores), settings.partitions), status_router(lambda: status(settings, stores))]
        tokens = Tokenbook(stores).load
        desk = Desk(client, settings.partitions, process_name())
        gate = Gate(settings.partitions, desk, lambda: limits_of(rulebook), settings.rules_reload_seconds)
    listener = listener or bind(settings)
    config = uvicorn.Config(
        create_app(settings, appender, routers, tokens, gate),
        loop="uvloop",
        http=guarded(settings.request_seconds_max, crowd),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,  # its lines go where ours go
        log_level="warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]  # it is waited for, not counted
        timeout_graceful_shutdown=max(1, round(settings.ingest_stop_seconds)),
    )
    server = Server(config, tls, settings.request_seconds_max)
    # Uvicorn raises the signal again once it has stopped, for whoever handled it before: that is us, and we are done.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if server.started else 1
