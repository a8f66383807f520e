"""The tokens in Redis: one hash, id -> record, and under "" a mark that every change renews.

Each change is one command on one key, so it is whole or not there, on a Redis Cluster as well. A revoked token keeps its
record, as a note of when: so a change never has to take anything away.
"""

from __future__ import annotations

import secrets
import time
from typing import NamedTuple

import redis

from pipeline.core.tokens import ID_HEX, Token, checked, digest_of, from_record, spelled, to_record
from pipeline.errors import Invalid
from pipeline.stores.connection import translated

KEY = "tokens"
TOKENS_MAX = 10_000  # each API process holds all of them
_MARK = ""


class Tokens(NamedTuple):
    """All tokens as of one moment. `mark` tells two such moments apart; `unreadable` are ids whose record nobody can read."""

    mark: bytes
    by_id: dict[str, Token]
    unreadable: tuple[str, ...] = ()


class Tokenbook:
    """Make, list, revoke. The secret of a token is in what `create` returns, and nowhere else."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def create(self, draft: Token) -> tuple[Token, str]:
        """A token like the draft, whose id, digest and time of making are given here; and its text. Invalid: what is wrong."""
        identity, secret = secrets.token_hex(ID_HEX // 2), secrets.token_urlsafe(32)
        token = checked(draft._replace(id=identity, digest=digest_of(secret.encode()), created_at_us=_now_us()))
        with translated():
            if self._redis.hlen(KEY) > TOKENS_MAX:
                self._drop_dead()
            self._put(token)
        return token, spelled(identity, secret)

    def revoke(self, identity: str) -> Token:
        """From now on it is good for nothing. Invalid: there is no such token, or it is revoked already."""
        with translated():
            record = self._redis.hget(KEY, identity) if identity != _MARK else None
            if record is None:
                raise Invalid(f"there is no token {identity}; `telemetry tokens list` shows those that there are")
            token = from_record(identity, record)
            if token.revoked_at_us is None:
                token = token._replace(revoked_at_us=_now_us())
                self._put(token)
        return token

    def load(self, known: Tokens | None = None) -> Tokens:
        """All tokens; `known` itself where nothing has changed since."""
        with translated():
            if known is not None and (self._redis.hget(KEY, _MARK) or b"") == known.mark:
                return known
            kept = self._redis.hgetall(KEY)
        mark = kept.pop(_MARK.encode(), b"")
        found, unreadable = {}, []
        for raw, record in kept.items():
            identity = raw.decode(errors="replace")
            try:
                found[identity] = from_record(identity, record)
            except Invalid:
                unreadable.append(identity)
        return Tokens(mark, found, tuple(unreadable))

    def _drop_dead(self) -> None:
        """Make room. Invalid: every token that is kept is a valid one."""
        now_us = _now_us()
        dead = [identity for identity, token in self.load().by_id.items() if token.state(now_us) != "valid"]
        if not dead:
            raise Invalid(f"there are {TOKENS_MAX} valid tokens, and no room for more: revoke some")
        self._redis.hdel(KEY, *dead)

    def _put(self, token: Token) -> None:
        self._redis.hset(KEY, mapping={token.id: to_record(token), _MARK: secrets.token_hex(8)})


def _now_us() -> int:
    return time.time_ns() // 1000
