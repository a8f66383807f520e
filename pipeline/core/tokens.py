"""Bearer tokens: their shape, what is kept of them, what they allow. No clock and no randomness: both come as arguments.

A token is `tp_<id>_<secret>`. The id is public: logs and lists show it. Of the secret only its SHA-256 is kept. No slow hash
is needed, as there is nothing to guess: the secret is 256 random bits, not a word that somebody chose, and a slow hash would
cost each request what it costs a thief.
"""

from __future__ import annotations

import hmac
import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

from pipeline.core.buckets import Bucket
from pipeline.errors import Invalid

INGEST, READ, ADMIN = "ingest", "read", "admin"
SCOPES = (INGEST, READ, ADMIN)
ID_HEX, SECRET_CHARS = 12, 43  # 43 characters of base64 are 256 bits
NAME_CHARS_MAX = 64
DEVICES_MAX = 100  # patterns of one token
DEVICE_CHARS_MAX = 256

_ID = re.compile(f"[0-9a-f]{{{ID_HEX}}}")
_SHAPE = re.compile(rb"tp_([0-9a-f]{%d})_([A-Za-z0-9_-]{%d})" % (ID_HEX, SECRET_CHARS))
_CACHED_CHARS_MAX = 256  # longer names are refused by most settings, and not remembered here


class Token(NamedTuple):
    """What is kept of a token. Times are microseconds since the epoch; None: no bound, or it has not happened."""

    id: str
    name: str
    scopes: tuple[str, ...]
    digest: bytes
    devices: tuple[str, ...] = ()  # patterns with * and ?; none: every device
    rate: float | None = None  # events per second
    created_at_us: int = 0
    expires_at_us: int | None = None
    revoked_at_us: int | None = None

    def may(self, scope: str) -> bool:
        """Whether it is good for what asks for this scope; admin is good for all."""
        return scope in self.scopes or ADMIN in self.scopes

    def state(self, now_us: int) -> str:
        """`valid`, `expired` or `revoked`."""
        if self.revoked_at_us is not None:
            return "revoked"
        return "expired" if self.expires_at_us is not None and now_us >= self.expires_at_us else "valid"


def spelled(identity: str, secret: str) -> str:
    """The text that a client sends, and that is shown once."""
    return f"tp_{identity}_{secret}"


def digest_of(secret: bytes) -> bytes:
    """What is kept of a secret."""
    return sha256(secret).digest()


def parts_of(text: bytes) -> tuple[str, bytes] | None:
    """(id, secret) of a token's text, or None: it is no token."""
    found = _SHAPE.fullmatch(text)
    return None if found is None else (found[1].decode(), found[2])


def matches(token: Token, secret: bytes) -> bool:
    """Whether this is its secret, in the same time wherever they differ."""
    return hmac.compare_digest(token.digest, digest_of(secret))


def checked(token: Token) -> Token:
    """The token, where all of it makes sense. Invalid: what does not."""
    if not 0 < len(token.name) <= NAME_CHARS_MAX or not token.name.isprintable():
        raise Invalid(f"a token's name has 1 to {NAME_CHARS_MAX} printable characters")
    if not token.scopes or not set(token.scopes) <= set(SCOPES):
        raise Invalid(f"scopes {', '.join(token.scopes) or 'none'}: must be of {', '.join(SCOPES)}")
    if len(token.devices) > DEVICES_MAX or not all(0 < len(pattern) <= DEVICE_CHARS_MAX for pattern in token.devices):
        raise Invalid(f"a token has at most {DEVICES_MAX} device patterns, each of 1 to {DEVICE_CHARS_MAX} characters")
    if token.rate is not None and not 0 < token.rate < math.inf:
        raise Invalid(f"rate {token.rate:g}: must be more than 0 events per second")
    return token


# ---- as it is kept -------------------------------------------------------------------------------------------------------------


def to_record(token: Token) -> str:
    """The JSON text that is kept under the token's id."""
    kept = token._asdict() | {"digest": token.digest.hex()}
    del kept["id"]
    return json.dumps(kept)


def from_record(identity: str, text: str | bytes) -> Token:
    """The token of a kept text. Invalid: it is none."""
    try:
        kept = json.loads(text)
        ends = [kept[name] for name in ("expires_at_us", "revoked_at_us") if kept[name] is not None]
        token = Token(
            identity, str(kept["name"]), tuple(map(str, kept["scopes"])), bytes.fromhex(kept["digest"]), tuple(map(str, kept["devices"])),
            None if kept["rate"] is None else float(kept["rate"]), kept["created_at_us"], kept["expires_at_us"], kept["revoked_at_us"],
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Invalid(f"token {identity}: what is kept of it cannot be read") from None
    whole = all(type(time) is int for time in (token.created_at_us, *ends))
    if not whole or not _ID.fullmatch(identity) or len(token.digest) != sha256().digest_size:
        raise Invalid(f"token {identity}: what is kept of it cannot be read")
    return checked(token)


# ---- which devices -------------------------------------------------------------------------------------------------------------


def allows(patterns: tuple[str, ...], device: str) -> bool:
    """Whether some pattern matches this device."""
    return _allows(patterns, device) if len(device) <= _CACHED_CHARS_MAX else _compiled(patterns).fullmatch(device) is not None


@lru_cache(maxsize=1 << 16)
def _allows(patterns: tuple[str, ...], device: str) -> bool:
    return _compiled(patterns).fullmatch(device) is not None


@lru_cache(maxsize=1 << 14)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("(?s:" + "|".join(map(_regex, patterns)) + ")")


def _regex(pattern: str) -> str:
    """As a regex that never looks back over a `*`: strangers choose the names, and backtracking would let them choose the time too."""
    first, *rest = (re.escape(part).replace(r"\?", ".") for part in pattern.split("*"))
    return first + "".join(f"(?>.*?{part})" for part in rest[:-1] if part) + (f".*{rest[-1]}" if rest else "")


# ---- how much ------------------------------------------------------------------------------------------------------------------


def wait_seconds(bucket: Bucket, rate: float) -> int:
    """0: a body may come. Else the whole seconds after which one may."""
    return 0 if bucket.level > 0 else max(1, math.ceil(-bucket.level / rate))


def devices_permitted(pairs: Sequence[tuple[tuple[str, ...], str | None]]) -> list[bool | None]:
    """Of distinct (patterns, device): may they meet? No patterns: every device; no device: nothing to say."""
    return [None if device is None else not patterns or allows(patterns, device) for patterns, device in pairs]
