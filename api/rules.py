"""GET and PUT /v1/rules: the thresholds as they stand, and a new version of them. GET /v1/alerts: what stands now."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from api.docs import answer_of, refusal
from pipeline.alerttexts import as_json
from pipeline.errors import Invalid, Outdated, PipelineError, Unavailable
from pipeline.stores.alertlog import AlertLog, told
from pipeline.stores.rulebook import DOCUMENT_CHARS_MAX, Rulebook

_AWAY = {503: refusal("Redis cannot be reached now: come again", retry=True)}
_VERSION = {"ETag": {"schema": {"type": "string"}, "description": "the version's number, in quotes"}}
_SHOWN = _AWAY | {
    200: {
        "description": "The document",
        "content": {"application/yaml": {"schema": {"description": "a rules document"}}},
        "headers": _VERSION | {"X-Rules-Version": {"schema": {"type": "string"}, "description": "the same"}},
    },
    404: refusal("There is no such version"),
    422: refusal("The version is no number"),
}
_CHANGED = _AWAY | {
    200: answer_of("It is in force within seconds", ["version"], version={"type": "integer"}) | {"headers": _VERSION},
    400: refusal("The document is no UTF-8, or If-Match is no number"),
    412: refusal("The newest version is another than If-Match says"),
    413: refusal("The document is too large"),
    422: refusal("The document is not valid; the message names line and field"),
}
_MOMENT = {"type": "string", "format": "date-time"}
_ALERT = {
    "type": "object",
    "required": ["rule", "device", "interface", "metric", "tags", "severity", "phase", "since", "time"],
    "properties": {
        "severity": {"enum": ["warning", "critical"]}, "phase": {"enum": ["pending", "firing"]}, "since": _MOMENT, "time": _MOMENT,
    },
}
_STANDING = _AWAY | {200: answer_of("Those that stand", ["alerts"], alerts={"type": "array", "items": _ALERT})}
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "take it only over this version; *, as without it: over any",
}


def rules_router(rulebook: Rulebook, alertlog: AlertLog, partitions: int) -> APIRouter:
    """The endpoints, over stores that are called in a thread."""
    router = APIRouter(tags=["rules"])

    @router.get(
        "/v1/rules", summary="The rules document as it stands, as YAML; its version is the ETag", responses=_SHOWN, response_class=Response
    )
    async def show(version: int | None = None) -> Response:
        try:
            found = await run_in_threadpool(rulebook.get, version)
        except PipelineError as error:
            return _failed(error, 404)
        headers = {"ETag": f'"{found.number}"', "X-Rules-Version": str(found.number)}
        return PlainTextResponse(found.document, headers=headers, media_type="application/yaml")

    @router.put(
        "/v1/rules",
        summary="A new version, from YAML or JSON; valid as a whole or refused, naming line and field",
        responses=_CHANGED,
        openapi_extra={
            "parameters": [_IF_MATCH],
            "requestBody": {"required": True, "content": {"application/yaml": {"schema": {"type": "string"}}}},
        },
    )
    async def change(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > 4 * DOCUMENT_CHARS_MAX:
                return _answer(413, "too_large", f"a rules document has at most {DOCUMENT_CHARS_MAX} characters")
        match = request.headers.get("if-match", "*")
        try:
            expected = None if match == "*" else int(match.removeprefix("W/").strip('"'))
            document = body.decode()
        except ValueError:
            return _answer(400, "not_text", "the document must be UTF-8, and If-Match the number of a version")
        try:
            guest = request.scope["guest"].id
            comment = f"PUT /v1/rules by token {guest}" if guest else "PUT /v1/rules"
            number = await run_in_threadpool(rulebook.set, document, comment, only_if_version=expected)
        except PipelineError as error:
            return _failed(error, 412 if isinstance(error, Outdated) else 422)
        return JSONResponse({"version": number}, headers={"ETag": f'"{number}"'})

    @router.get("/v1/alerts", summary="Alerts that stand now: pending and firing", responses=_STANDING)
    async def alerts() -> Response:
        try:
            standing = await run_in_threadpool(alertlog.standing, range(partitions))
        except PipelineError as error:
            return _failed(error, 503)
        return JSONResponse({"alerts": [as_json(alert) for alert in told(standing.sort("since"))]})

    return router


def _failed(error: PipelineError, status: int) -> JSONResponse:
    if isinstance(error, Unavailable):
        return _answer(503, "unavailable", "the rules cannot be reached now", {"Retry-After": "1"})
    return _answer(status, "invalid" if isinstance(error, Invalid) else "failed", str(error))


def _answer(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers=headers)
