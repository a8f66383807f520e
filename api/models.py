"""Wire shapes: what a client sends, and what it is told."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

TAGS_READ_MAX = 1000  # of one event; rules on how many are taken come later, and look at each


TIME_MS_MAX = 10**15  # further ahead than any that is taken: nanoseconds, most likely


class Loose(msgspec.Struct, gc=False):
    """What is read as an event. Fields that are not named here are ignored; a null is the same as an absent field."""

    device: str | None = None
    interface: str | None = None
    metric: str | None = None
    value: bool | int | float | str | None = None  # as text: how JSON of YANG writes 64-bit integers (RFC 7951)
    timestamp: int | float | str | None = None
    kind: str | None = None
    tags: Annotated[dict[str, str], msgspec.Meta(max_length=TAGS_READ_MAX)] | None = None


_MsInteger = Annotated[int, msgspec.Meta(gt=-TIME_MS_MAX, lt=TIME_MS_MAX)]
_MsFloat = Annotated[float, msgspec.Meta(gt=-TIME_MS_MAX, lt=TIME_MS_MAX)]


class Event(Loose, gc=False, kw_only=True):
    """One measurement as JSON that has all that it needs; whether that can be taken is judged later."""

    device: str
    metric: str
    value: bool | int | float
    timestamp: _MsInteger | _MsFloat | str | None = None


class Envelope(Loose, gc=False):
    """A JSON object as a body: an event itself, or a list of them."""

    events: list[Event] | msgspec.UnsetType | None = msgspec.UNSET


class Refusal(Exception):
    """The request as a whole cannot be taken. `status` says whose move it is; the message names what is wrong.

    `challenge` is what a client without a good token is told to come with.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after_seconds: int | None = None, challenge: bytes | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.challenge = challenge

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Those that belong to this refusal alone."""
        found = [] if self.retry_after_seconds is None else [(b"retry-after", b"%d" % self.retry_after_seconds)]
        return found if self.challenge is None else [*found, (b"www-authenticate", self.challenge)]

    def body(self, **more: str) -> bytes:
        return msgspec.json.encode({"error": {"code": self.code, "message": str(self), **more}})


class Refused(msgspec.Struct, gc=False):
    """One event set aside: its place in the body, the field and the reason, and its text."""

    index: int
    device: str
    field: str
    reason: str
    event: str


ERRORS_SHOWN_MAX = 20
ACCEPTED_ONE = b'{"accepted":1,"rejected":0,"errors":[]}'


def answer(
    accepted: int, rejected: int, errors: list[tuple[int, str, str]], not_admitted: list[int] | None = None, wait_seconds: float = 0.0
) -> bytes:
    """The answer to a body of which something was taken or set aside."""
    if not_admitted is None and accepted == 1 and not rejected:
        return ACCEPTED_ONE
    shown = [{"index": index, "field": field, "reason": reason} for index, field, reason in errors[:ERRORS_SHOWN_MAX]]
    told = b'"accepted":%d,"rejected":%d,"errors":%b' % (accepted, rejected, msgspec.json.encode(shown))
    if not_admitted is not None:
        told += b',"not_admitted":%b,"retry_after_seconds":%d' % (msgspec.json.encode(not_admitted), max(1, round(wait_seconds)))
    return b"{%b}" % told


_RETRY_AFTER = re.compile(rb'"retry_after_seconds":(\d+)}$')


def retry_after(answer: bytes) -> bytes | None:
    """How long an answer says to wait with what was not admitted; None: all was."""
    found = None if answer is ACCEPTED_ONE else _RETRY_AFTER.search(answer, max(0, len(answer) - 40))
    return None if found is None else found.group(1)
