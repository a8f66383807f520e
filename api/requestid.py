"""Which request a log line or a failed answer is about: the client's X-Request-Id where it is a sensible one, else one of ours.

A request that goes well costs one assignment: the id is looked for, or made, when somebody asks.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

CHARS_MAX = 64
_SENSIBLE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,%d}" % CHARS_MAX)
_KEY = "telemetry.request_id"

_scope: ContextVar[MutableMapping[str, Any] | None] = ContextVar("scope", default=None)
begin = _scope.set  # this task is about the request of this ASGI scope


def current() -> str | None:
    """The id of the request that this task is about; None: of none."""
    scope = _scope.get()
    if scope is None:
        return None
    if _KEY not in scope:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        scope[_KEY] = given.decode() if _SENSIBLE.fullmatch(given) else secrets.token_hex(8)
    return scope[_KEY]


def log_context() -> dict[str, str]:
    """What a log line tells of the request that it is about."""
    request_id = current()
    return {} if request_id is None else {"request_id": request_id}
