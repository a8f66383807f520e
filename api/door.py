"""Who may come in: what a request needs, and the tokens as they were a moment ago.

All tokens are in memory, so that a request costs a look-up and one hash, and an unknown token costs no more: nothing is asked
of Redis, nothing is remembered of it. A task looks for changes every few seconds; while Redis is away the last known stay in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from api.docs import EVENTS_PATH
from api.models import Refusal
from pipeline.core.buckets import Bucket, filled, refilled
from pipeline.core.tokens import ADMIN, INGEST, READ, Token, matches, parts_of, wait_seconds
from pipeline.errors import PipelineError
from pipeline.stores.tokenbook import Tokens

_log = logging.getLogger(__name__)

PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})  # for balancers: they tell nothing that is worth a token
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
REPORT_SECONDS = 30.0
_CHALLENGE = b'Bearer error="invalid_token"'

Load = Callable[[Tokens | None], Tokens]


class Guest:
    """Whoever sent a request: a token, and what is left of its rate in this process. Without a token: nobody asks for one."""

    __slots__ = ("_bucket", "devices", "id", "token")

    def __init__(self, token: Token | None = None) -> None:
        self.token = token
        self.id = "" if token is None else token.id
        self.devices = () if token is None else token.devices
        self._bucket = None if token is None or token.rate is None else filled(token.rate, time.monotonic())

    def check_rate(self) -> None:
        """Refusal 429: it has sent more than its rate allows, and when to come again."""
        if self._bucket is not None:
            rate = self.token.rate
            self._bucket = refilled(self._bucket, rate, time.monotonic())
            if wait := wait_seconds(self._bucket, rate):
                raise Refusal(429, "rate_exceeded", f"token {self.id} may send {rate:g} events per second", retry_after_seconds=wait)

    def spend(self, events: int) -> None:
        """Take so many events from its rate, or refuse; a negative number gives them back."""
        if self._bucket is not None:
            if events > 0:
                self.check_rate()
            self._bucket = Bucket(self._bucket.level - events, self._bucket.at_seconds)

    def renew(self, token: Token) -> None:
        """Its token is kept otherwise now. It stays the same guest: a request that is being answered gives back to it, too."""
        if token.rate != self.token.rate:
            self._bucket = None if token.rate is None else filled(token.rate, time.monotonic())
        self.token, self.devices = token, token.devices


ANYBODY = Guest()


def scope_needed(method: str, path: str) -> str | None:
    """The scope for a request; None: no token is needed. What is not named here is for an admin, or to be read."""
    if path in PUBLIC_PATHS:
        return None
    if path == EVENTS_PATH:
        return INGEST
    return READ if method in SAFE_METHODS else ADMIN


class Door:
    """Lets a request in as a Guest, or refuses it."""

    def __init__(self, required: bool, load: Load | None, reload_seconds: float) -> None:
        self._required = required
        self._load = load
        self._reload_seconds = reload_seconds
        self._tokens: Tokens | None = None
        self._guests: dict[str, Guest] = {}
        self._task: asyncio.Task[None] | None = None
        self._refused = 0
        self._reported = time.monotonic()
        self._away = False

    async def start(self) -> None:
        """Read the tokens, where Redis answers; and go on doing so."""
        if self._required and self._load is not None:
            await self._renew()
            self._task = asyncio.create_task(self._watch(), name="tokens")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def enter(self, scope: dict[str, Any]) -> Guest:
        """The guest that sent a request. Refusal: 401 no good token, 403 not with this one, 503 nobody can tell yet."""
        if not self._required or (needed := scope_needed(scope["method"], scope["path"])) is None:
            return ANYBODY
        try:
            guest = self._known(scope["headers"], needed)
        except Refusal:
            self._refused += 1
            raise
        if not guest.token.may(needed):
            self._refused += 1
            told = f"token {guest.id} has scope {', '.join(guest.token.scopes)}; this needs {needed}"
            raise Refusal(403, "forbidden", told, challenge=b'Bearer error="insufficient_scope", scope="%b"' % needed.encode())
        return guest

    def _known(self, headers: list[tuple[bytes, bytes]], needed: str) -> Guest:
        given = None
        for name, value in headers:
            if name == b"authorization":
                given = value
        if given is None:
            told = f"a token with scope {needed} is needed: Authorization: Bearer tp_... (`telemetry tokens create` makes one)"
            raise Refusal(401, "unauthorized", told, challenge=b"Bearer")
        if self._tokens is None:
            raise Refusal(503, "unavailable", "tokens cannot be checked now", retry_after_seconds=1)
        parts = parts_of(given[7:].strip()) if given[:7].lower() == b"bearer " else None
        if parts is None:
            raise Refusal(401, "unauthorized", "the Authorization header is not like Bearer tp_ID_SECRET", challenge=_CHALLENGE)
        guest = self._guests.get(parts[0])
        if guest is None or not matches(guest.token, parts[1]):
            raise Refusal(401, "unauthorized", "the token is not known here", challenge=_CHALLENGE)
        if (state := guest.token.state(time.time_ns() // 1000)) != "valid":
            raise Refusal(401, "unauthorized", f"token {guest.id} is {state}", challenge=_CHALLENGE)
        return guest

    # ---- the tokens as they are kept -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._reload_seconds)
            await self._renew()
            if self._refused and time.monotonic() - self._reported >= REPORT_SECONDS:
                _log.warning("%d requests were refused for want of a good token", self._refused)
                self._refused, self._reported = 0, time.monotonic()

    async def _renew(self) -> None:
        try:
            tokens = await asyncio.to_thread(self._load, self._tokens)
        except PipelineError as error:
            if not self._away:
                _log.warning("tokens cannot be read, the last known stay in force: %s", error)
            self._away = True
            return
        self._away = False
        if tokens is self._tokens:
            return
        for identity in tokens.unreadable:
            _log.warning("what is kept of token %s cannot be read, and it is good for nothing: make another", identity[:12])
        before, self._guests = self._guests, {}
        for identity, token in tokens.by_id.items():
            self._guests[identity] = before.get(identity) or Guest(token)
            self._guests[identity].renew(token)
        self._tokens = tokens
