"""/healthz: is this process alive. /readyz: would a body be taken now. /metrics: what it counts."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from api.docs import answer_of
from api.ingest import Ingest, Store
from pipeline import metrics
from pipeline.errors import PipelineError, Unavailable

_TEXT = {"type": "string"}
_ALIVE = {
    200: answer_of("It gets on", ["status"], status={"const": "ok"}),
    503: answer_of("It does not", ["status", "reason"], status={"const": "failing"}, reason=_TEXT),
}
_READY = {
    200: answer_of("Yes", ["status"], status={"const": "ready"}),
    503: answer_of("Not now", ["status", "reason"], status={"const": "not_ready"}, reason=_TEXT)
    | {"headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}},
}
_METRICS = {200: {"description": "Every metric", "content": {"text/plain": {"schema": _TEXT}}}}


def add_health(app: FastAPI, ingest: Ingest, store: Store, timeout_seconds: float) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", tags=["health"], summary="Alive: the process runs and its flusher gets on", responses=_ALIVE)
    async def healthz() -> Response:
        if ingest.alive():
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "failing", "reason": "the flusher does not get on"}, 503)

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", tags=["health"], summary="Ready: Redis answers and every partition has its stream", responses=_READY)
    async def readyz() -> Response:
        if not ingest.alive():
            return _not_ready(Unavailable("the flusher does not get on"))
        try:
            await asyncio.wait_for(store.ready(), timeout_seconds)
        except TimeoutError:
            return _not_ready(Unavailable(f"Redis did not answer within {timeout_seconds:g} s"))
        except PipelineError as error:
            return _not_ready(error)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["health"], summary="Prometheus' text format", responses=_METRICS, response_class=Response)
    async def shown() -> Response:
        return Response(metrics.shown("ingest"), headers={"Content-Type": metrics.CONTENT_TYPE})

    def _not_ready(error: PipelineError) -> Response:
        told = str(error)
        reason = "Redis cannot be used now" if told.startswith("Redis") else told  # it names its address, which strangers need not know
        return JSONResponse({"status": "not_ready", "reason": reason}, 503, headers={"Retry-After": "1"})
