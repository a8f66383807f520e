"""The notebook, executed by a kernel on lakes that the pipeline's own step has made."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pipeline.core.rules import Rules
from tests.integration.test_catalog import make_lake, run_through, signal

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "anomaly_analysis.ipynb"
PLOTS = ("plot-series", "plot-devices", "plot-time")


def execute(data: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict]]:
    """The outputs of each cell, by its id. A cell that fails fails the test."""
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(data))
    monkeypatch.delenv("PIPELINE_LAKE_URL", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return {cell["id"]: cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"}


def kinds(outputs: list[dict]) -> set[str]:
    return {kind for output in outputs for kind in output.get("data", {})}


def text(outputs: list[dict]) -> str:
    return "".join(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs)


def test_it_shows_what_was_odd(tmp_path, monkeypatch):
    """A breach: its series is the one shown, with plots and tables; late events and dead letters are there too."""
    dead = [("calm", "value", "not a number", '{"device":"calm","value":"?"}')]
    cells = execute(make_lake(tmp_path, run_through(signal(), dead=dead)), monkeypatch)
    for name in PLOTS:
        assert "image/png" in kinds(cells[name]), name
    for name in ("came", "metrics", "choose", "worst", "plot-devices", "late", "dead", "turn"):
        assert "text/html" in kinds(cells[name]), name
    assert "hot" in text(cells["choose"]) and "critical" in text(cells["worst"])
    assert "slow" in text(cells["late"]) and "not a number" in text(cells["dead"])


def test_it_says_so_where_nothing_is_odd(tmp_path, monkeypatch):
    """A few rows and no anomaly: the longest series is shown, and the rest says that there is nothing."""
    output = run_through([(t, [("calm", "temp", t, 20)]) for t in range(0, 30, 5)], Rules())
    cells = execute(make_lake(tmp_path, output), monkeypatch)
    assert "There are no anomalies" in text(cells["choose"]) and "image/png" in kinds(cells["plot-series"])
    assert "No device has anomalies" in text(cells["plot-devices"]) and "No event was set aside" in text(cells["dead"])


def test_it_runs_before_the_first_window_has_closed(tmp_path, monkeypatch):
    cells = execute(make_lake(tmp_path), monkeypatch)
    assert "no closed window yet" in text(cells["choose"])


def test_it_is_kept_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4)["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell["id"]
