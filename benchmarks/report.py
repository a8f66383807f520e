"""What was measured, as a table, a file and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

# CPU-s per million events of others on the same work, measured once, on a machine of the same kind: for scale, no ratio is made of them.
PEERS = {"VictoriaMetrics 1.79": 2.3, "Prometheus 2.42": 4.15, "InfluxDB 1.6": 13.3, "Bytewax 0.21": 23.8, "Spark 4 streaming": 24.4}


def rows(results: dict) -> list[tuple[str, str, str]]:
    """(what, figure, asked) of everything that was measured."""
    found: list[tuple[str, str, str]] = []
    if w1 := results.get("w1"):
        found.append(("in-memory limit, one Polars query", f"{w1['limit']:.2f} CPU-s per M events", ""))
        for form, asked in (("json", "at most 2.5x the limit"), ("arrow", "at most 1.3")):
            run = w1[form]
            parts = ", ".join(f"{name} {cost:.2f}" for name, cost in run["parts"].items())
            cost = f"{run['cpu']:.2f} CPU-s per M events = {run['ratio']:.2f}x the limit ({parts})"
            found.append((f"W1, {form} over HTTP to tables", cost, asked))
            peak = ", ".join(f"{name} {size} MB" for name, size in run["peak_mb"].items())
            found.append(("", f"{run['events_per_second']:,.0f} events/s to the last commit; peak {peak}", ""))
    for connections, small in results.get("small_requests", {}).items():
        ratio = f"{small['ratio']:.2f}x an empty endpoint ({small['microseconds']:.0f} us a request)"
        found.append((f"one event per POST, {connections} connections", ratio, "at most 1.5x"))
    if half := results.get("half_load"):
        for name, what, asked in (
            ("answer_seconds", "POST to 202", "p99 under 50 ms"), ("alert_seconds", "POST to the alert in the sink", "p99 under 1 s"),
            ("row_seconds", "event that closes a window to its row in SQL", "under 3 s"),
        ):  # fmt: skip
            figures = half[name]
            delays = f"p50 {figures['p50'] * 1e3:.0f} ms, p99 {figures['p99'] * 1e3:.0f} ms, n {figures['n']}"
            found.append((f"{what}, at {half['events_per_second']:,.0f} events/s", delays, asked))
    for name, run in results.get("recovery", {}).items():
        asked = f"under {run['lease_seconds'] + 1:.0f} s"
        found.append((f"recovery after kill -9, lake {name} ({run['rows']:,} rows)", f"{run['seconds']:.2f} s", asked))
    if drained := results.get("backlog"):
        one, two = drained[1], drained[2]
        found.append(("backlog of 4 M events, 1 and 2 workers", f"{one:,.0f} and {two:,.0f} events/s: {two / one:.2f}x", "at least 1.6x"))
    for kind, runs in results.get("scaling", {}).items():
        for number, run in runs.items():
            workers = max(size for name, size in run["peak_mb"].items() if name.startswith("worker"))
            asked = "within 20 %" if kind == "series" else ""
            found.append((f"{number:,} {kind}", f"{run['cpu']:.2f} CPU-s per M events, worker at most {workers} MB", asked))
    if memory := results.get("series"):
        for number, run in memory["series"].items():
            found.append((f"{number:,} series in one worker", f"{run['rest_mb']} MB at rest, {run['peak_mb']} MB at most", ""))
        invented = memory["invented"]
        at_rest = ", ".join(map(str, invented["rest_mb"]))
        found.append(("a device invents series without end", f"{at_rest} MB; {invented['dead_lettered']:,} events set aside", "flat"))
    if queries := results.get("queries"):
        for name, took in queries["milliseconds"].items():
            found.append((f"SQL over {queries['rows']:,} rows: {name}", f"{took:.0f} ms", ""))
    return found


def write(results: dict, folder: Path) -> None:
    """results.json and results.png in `folder`, and the table on the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    table = Table("what", "measured", "asked", title="The pipeline beside the limit of this machine")
    for row in rows(results):
        table.add_row(*row)
    Console(width=170).print(table)
    if "w1" in results:
        draw(results["w1"], folder / "results.png")


def draw(w1: dict, path: Path) -> None:
    """CPU per million events of the limit, of ours by process, and of others."""
    figure, axes = plt.subplots(figsize=(9, 4.5))
    axes.barh("limit: one Polars query in memory", w1["limit"], color="grey")
    for form in ("arrow", "json"):
        left = 0.0
        for number, (name, cost) in enumerate(w1[form]["parts"].items()):
            label = name if form == "json" and number < 3 else None
            axes.barh(f"ours, {form} over HTTP", cost, left=left, color=f"C{min(number, 2)}", label=label)
            left += cost
    for name, cost in PEERS.items():
        axes.barh(name, cost, color="lightgrey")
    axes.set_xscale("log")
    axes.set_xlabel("CPU seconds per million events (log), all processes")
    axes.legend(loc="lower right")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
