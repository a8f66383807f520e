"""Prometheus' own checker, which Debian has; `make test` unpacks it where it can."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.missing import leave_out

TOOLS = Path(__file__).parents[1] / ".venv" / "tools" / "usr" / "bin"


def debian_tool(name: str, package: str) -> str:
    """Where it is. Where it is missing the test that asks is left out, but fails in CI."""
    tool = shutil.which(name) or shutil.which(name, path=TOOLS)
    if tool is None:
        leave_out(f"{name} is not here: apt-get install {package}")
    return tool


def promtool() -> str:
    return debian_tool("promtool", "prometheus")
