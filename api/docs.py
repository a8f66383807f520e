"""The description of POST /v1/events, and /docs: one page, rendered here, without anything from another host."""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Sequence
from typing import Any

EVENTS_PATH = "/v1/events"
_EVENT = {"device": "r1", "interface": "eth0", "metric": "in-octets", "value": 1234567, "timestamp": "2026-01-01T00:00:00Z"}
_FIVE = {"device": "r1", "metric": "cpu_pct", "value": 37.5, "tags": {"site": "fra1"}}


def _event_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["device", "metric", "value"],
        "properties": {
            "device": {"type": "string", "minLength": 1, "maxLength": 256, "description": "who measured"},
            "interface": {"type": ["string", "null"], "description": "where on the device; absent: the device itself"},
            "metric": {"type": "string", "minLength": 1, "maxLength": 256, "description": "what was measured"},
            "value": {
                "type": ["number", "boolean", "string"],
                "description": "finite; integers up to 2^64-1 are kept exactly; true is 1; a string holds a number as JSON writes it",
            },
            "timestamp": {
                "type": ["string", "number", "null"],
                "description": "RFC 3339 with an offset, or milliseconds since the epoch; absent: the moment of arrival",
            },
            "kind": {
                "type": ["string", "null"],
                "enum": ["gauge", "counter", "counter32", "counter53", "counter64", None],
                "description": "absent: known by the metric's name",
            },
            "tags": {
                "type": ["object", "null"],
                "additionalProperties": {"type": "string"},
                "description": "a few texts that tell series apart",
            },
        },
    }


def _answer_schema() -> dict[str, Any]:
    error = {"type": "object", "properties": {"index": {"type": "integer"}, "field": {"type": "string"}, "reason": {"type": "string"}}}
    return {
        "type": "object",
        "required": ["accepted", "rejected", "errors"],
        "properties": {
            "accepted": {"type": "integer"},
            "rejected": {"type": "integer", "description": "events set aside with a reason, kept as dead letters"},
            "errors": {"type": "array", "items": error, "maxItems": 20, "description": "the first of them"},
        },
    }


def refusal(description: str, retry: bool = False) -> dict[str, Any]:
    """How an answer is described that refuses; all of them have one shape."""
    schema = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "request_id": {"type": "string", "description": "of a 5xx: by which name our log knows the request"},
                },
            }
        },
    }
    response: dict[str, Any] = {"description": description, "content": {"application/json": {"schema": schema}}}
    if retry:
        response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return response


def events_operation() -> dict[str, Any]:
    """The OpenAPI operation of the ingest door."""
    event = {"$ref": "#/components/schemas/Event"}
    events = {"type": "array", "items": event}
    forms = [event, events, {"type": "object", "required": ["events"], "properties": {"events": events}}]
    lines = "\n".join(map(json.dumps, (_EVENT, _FIVE))) + "\n"
    return {
        "tags": ["events"],
        "summary": "Take events",
        "operationId": "post_events",
        "description": "Good events of a body are taken, bad ones are set aside with a reason. 202 is answered once all of them are "
        "stored. Bodies may be compressed (Content-Encoding: gzip or zstd).",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "minLength": 1, "maxLength": 256},
                "description": "the same key again within its time adds nothing and gives the first answer, with Idempotent-Replay: true",
            },
            {
                "name": "Prefer",
                "in": "header",
                "required": False,
                "schema": {"type": "string"},
                "description": "handling=lenient: under overload take a part, and say which events are to be sent again (not_admitted)",
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"oneOf": forms},
                    "examples": {"one": {"value": _EVENT}, "array": {"value": [_EVENT, _FIVE]}, "wrapped": {"value": {"events": [_EVENT]}}},
                },
                "application/x-ndjson": {"schema": {"type": "string"}, "examples": {"lines": {"value": lines}}},
                "application/vnd.apache.arrow.stream": {
                    "schema": {
                        "type": "string",
                        "format": "binary",
                        "description": "An Arrow IPC stream whose columns are the event's fields: text plain or as dictionaries, "
                        "timestamps of any unit (without a zone: UTC) or integer milliseconds, tags as map, struct or JSON text",
                    }
                },
            },
        },
        "responses": {
            "202": {
                "description": "Something was taken or set aside",
                "content": {
                    "application/json": {
                        "schema": {"$ref": "#/components/schemas/Answer"},
                        "example": {"accepted": 999, "rejected": 1, "errors": [{"index": 17, "field": "value", "reason": "not_a_number"}]},
                    }
                },
            },
            "400": refusal("The body cannot be parsed; the message says where"),
            "408": refusal("The request did not arrive in time"),
            "413": refusal("Too many bytes, also after decompression, or too many events or tags"),
            "415": refusal("A content type or content encoding that is not known"),
            "422": refusal(
                "No event in the body; an Arrow column missing or of a wrong type; a key that was used for another body; "
                "a body that cannot be processed"
            ),
            "429": refusal("More than can be taken in now, or than the token's rate allows: come again", retry=True),
            "431": refusal("The head of the request is too large"),
            "503": refusal("Cannot be stored now: come again", retry=True),
        },
    }


def answer_of(description: str, required: Sequence[str], **properties: dict[str, Any]) -> dict[str, Any]:
    """How a JSON answer is described."""
    schema = {"type": "object", "required": list(required), "properties": properties}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_LOCKED = {"401": "No token, or one that is not known, revoked or expired", "403": "The token has not the scope that is needed"}


def _lock(document: dict[str, Any], open_paths: Collection[str]) -> None:
    """Say of each operation but those of the open paths that it needs a token, and what is answered without."""
    scheme = {"type": "http", "scheme": "bearer", "description": "made by `telemetry tokens create`: tp_ID_SECRET"}
    document.setdefault("components", {})["securitySchemes"] = {"token": scheme}
    challenge = {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "Bearer, and what is wrong"}}
    for path, operations in document["paths"].items():
        for operation in operations.values() if path not in open_paths else ():
            operation["security"] = [{"token": []}]
            operation["responses"] |= {status: refusal(told) | {"headers": challenge} for status, told in _LOCKED.items()}


def described(document: dict[str, Any], open_paths: Collection[str] | None) -> dict[str, Any]:
    """The generated OpenAPI document with the ingest door in it. `open_paths`: those that need no token; None: none does."""
    document.setdefault("paths", {})[EVENTS_PATH] = {"post": events_operation()}
    document.setdefault("components", {}).setdefault("schemas", {}).update({"Event": _event_schema(), "Answer": _answer_schema()})
    if open_paths is not None:
        _lock(document, open_paths)
    return document


_STYLE = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
_STYLE += "pre{background:#f4f4f4;padding:.7rem;overflow:auto}h2 code{background:#e8f0fe;padding:.1rem .4rem}"
_STYLE += "td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0}"


def page(document: dict[str, Any], base_url: str) -> str:
    """The OpenAPI document as HTML, with a line to type for each example."""
    title = html.escape(document["info"]["title"])
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{title}</h1><p>Machine-readable: <a href=/openapi.json>/openapi.json</a></p>")
    if "securitySchemes" in document.get("components", {}):
        parts.append("<p>Every request but those for health needs a token: <code>Authorization: Bearer tp_ID_SECRET</code></p>")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code> {html.escape(operation.get('summary', ''))}</h2>")
            parts.append(f"<p>{html.escape(operation.get('description', ''))}</p>")
            parts += _parameters(operation)
            parts += _bodies(operation, f"{base_url.rstrip('/')}{path}")
            parts.append("<h3>Answers</h3><table>")
            for status, answer in operation.get("responses", {}).items():
                parts.append(f"<tr><th>{html.escape(status)}<td>{html.escape(answer.get('description', ''))}{_example(answer)}")
            parts.append("</table>")
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        if "properties" not in schema:
            continue
        parts.append(f"<h2>{html.escape(name)}</h2><table>")
        for field, details in schema["properties"].items():
            kind = details.get("type", "")
            kind = " or ".join(kind) if isinstance(kind, list) else str(kind)
            need = "required" if field in schema.get("required", ()) else ""
            parts.append(f"<tr><th>{html.escape(field)}<td>{html.escape(kind)}<td>{need}<td>{html.escape(details.get('description', ''))}")
        parts.append("</table>")
    return "".join(parts)


def _parameters(operation: dict[str, Any]) -> list[str]:
    rows = [
        f"<tr><th>{html.escape(each['name'])}<td>{html.escape(each['in'])}<td>{html.escape(each.get('description', ''))}"
        for each in operation.get("parameters", [])
    ]
    return ["<table>", *rows, "</table>"] if rows else []


def _example(answer: dict[str, Any]) -> str:
    example = answer.get("content", {}).get("application/json", {}).get("example")
    return "" if example is None else f"<pre>{html.escape(json.dumps(example))}</pre>"


def _bodies(operation: dict[str, Any], url: str) -> list[str]:
    parts = []
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h3>{html.escape(media)}</h3>")
        if description := content.get("schema", {}).get("description"):
            parts.append(f"<p>{html.escape(description)}</p>")
        for name, example in content.get("examples", {}).items():
            value = example["value"]
            text = value if isinstance(value, str) else json.dumps(value)
            command = f"curl -sS {url} -H 'content-type: {media}' --data-binary @- <<'END'\n{text.rstrip()}\nEND"
            parts.append(f"<p>{html.escape(name)}</p><pre>{html.escape(command)}</pre>")
    return parts
