"""GET /v1/status: how the whole stands now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from api.docs import answer_of, refusal
from pipeline.errors import PipelineError

_PARTS = {
    "admission": {"type": "object"},
    "lag_seconds": {"type": "number"},
    "backlog_events": {"type": "integer"},
    "partitions": {"type": "array", "items": {"type": "object"}},
    "workers": {"type": "object"},
    "fleet": {"type": "object"},
    "redis": {"type": "object"},
    "rules_version": {"type": "integer"},
    "books": {"type": ["object", "null"]},
}
_ANSWERS = {200: answer_of("As it is now", list(_PARTS), **_PARTS), 503: refusal("Redis cannot be reached now: come again", retry=True)}


def status_router(look: Callable[[], dict[str, Any]]) -> APIRouter:
    """The endpoint; `look` is called in a thread."""
    router = APIRouter(tags=["status"])

    @router.get("/v1/status", summary="Partitions, workers, devices, admission and the books, as they stand", responses=_ANSWERS)
    async def shown() -> Response:
        try:
            return JSONResponse(await run_in_threadpool(look))
        except PipelineError:
            told = {"code": "unavailable", "message": "the status cannot be reached now"}
            return JSONResponse({"error": told}, 503, headers={"Retry-After": "1"})

    return router
