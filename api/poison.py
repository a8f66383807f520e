"""A body that breaks what it meets: a defect of ours, or of a library under us, that only this body brings out."""

from __future__ import annotations

import asyncio
import logging

from api.models import Refusal

_log = logging.getLogger(__name__)

ENDING = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)  # what ends a task or the process, and is no failure


def told(error: BaseException, what: str) -> Refusal:
    """What the sender of a body is told that could not be decoded or built, all by itself: not to send it again.

    A panic in a Rust library is a BaseException that is no Exception, so `error` is anything but ENDING.
    """
    if isinstance(error, MemoryError):
        return Refusal(503, "unavailable", "the body cannot be processed now", retry_after_seconds=1)
    _log.error("a body could not be %s", what, exc_info=error)
    return Refusal(422, "unprocessable", "the body could not be processed")
