"""What a test needs and this machine has not: left out at a user's, a failure in CI."""

from __future__ import annotations

import os

import pytest


def leave_out(reason: str) -> None:
    """End the test that asks."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
