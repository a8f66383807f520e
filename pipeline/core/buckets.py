"""Token buckets that may go into debt: of a token's rate, and of a device's share."""

from __future__ import annotations

from typing import NamedTuple

BURST_SECONDS = 1.0  # of the rate may come at once


class Bucket(NamedTuple):
    """How many events may come, and when that was so. Below zero a body took more than there was, and is paid off first:
    so a body larger than the burst passes too, and the rate holds all the same."""

    level: float
    at_seconds: float


def filled(rate: float, now_seconds: float) -> Bucket:
    """A bucket of which nothing was taken."""
    return Bucket(rate * BURST_SECONDS, now_seconds)


def refilled(bucket: Bucket, rate: float, now_seconds: float) -> Bucket:
    """The bucket as it is now. A clock that went back adds nothing."""
    passed = max(0.0, now_seconds - bucket.at_seconds)
    return Bucket(min(rate * BURST_SECONDS, bucket.level + rate * passed), now_seconds)
