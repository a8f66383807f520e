"""Prometheus' own checker, which Debian has; `make test` unpacks it where it can."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.missing import leave_out

TOOLS = Path(__file__).parents[1] / ".venv" / "tools" / "usr" / "bin"


def promtool() -> str:
    """Where it is. Where it is missing the test that asks is left out, but fails in CI."""
    tool = shutil.which("promtool") or shutil.which("promtool", path=TOOLS)
    if tool is None:
        leave_out("promtool is not here: apt-get install prometheus")
    return tool
