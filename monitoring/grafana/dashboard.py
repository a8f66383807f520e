"""The Grafana dashboard as code: `python monitoring/grafana/dashboard.py` writes dashboard.json beside it.

A panel is a title, a unit and its queries. Rows follow an event: in, through, out; then what keeps house, and alerts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("dashboard.json")
WIDTH, HEIGHT = 8, 8  # three panels a row of Grafana's 24 columns
SOURCE = {"type": "prometheus", "uid": "${source}"}
RATE = "[$__rate_interval]"
LOOKS = "[5m]"  # for what the housekeeping looks at once a minute


class Panel(NamedTuple):
    """`queries`: legend -> PromQL. `kind`: timeseries or stat."""

    title: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    help: str = ""


def quantiles(metric: str, by: str = "") -> dict[str, str]:
    """The median and the 99th percentile of a histogram."""
    names = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return {
        f"{legend}p{round(q * 100)}": f"histogram_quantile({q}, sum by ({names}) (rate({metric}_bucket{RATE})))" for q in (0.5, 0.99)
    }


ROWS: dict[str, list[Panel]] = {
    "At a glance": [
        Panel("Roles that answer", "short", {"{{role}}": 'sum by (role) (up{job="pipeline"})'}, "stat"),
        Panel("Accepted", "cps", {"events/s": f"sum(rate(pipeline_events_accepted_total{RATE}))"}, "stat"),
        Panel("Longest lag", "s", {"lag": "max(pipeline_read_lag_seconds)"}, "stat"),
        Panel("Partitions without a holder", "short", {"partitions": "max(pipeline_partitions_unheld)"}, "stat"),
        Panel("Books: imbalance", "short", {"events": "max(pipeline_books_imbalance_events)"}, "stat", "0, or something is wrong"),
        Panel("Admission", "short", {"state": "max(pipeline_admission_state)"}, "stat", "0 open, 1 fair, 2 closed"),
    ],
    "In: the API": [
        Panel(
            "Events",
            "cps",
            {
                "accepted": f"sum(rate(pipeline_events_accepted_total{RATE}))",
                "rejected: {{reason}}": f"sum by (reason) (rate(pipeline_events_rejected_total{RATE}))",
                "not admitted, {{state}}": f"sum by (state) (rate(pipeline_events_not_admitted_total{RATE}))",
            },
        ),
        Panel(
            "Admission",
            "short",
            {"{{instance}}": "pipeline_admission_state"},
            help="Of the strictest partition: 0 open, 1 fair, 2 closed",
        ),
        Panel("Requests", "reqps", {"{{status}}": f"sum by (status) (rate(pipeline_http_requests_total{RATE}))"}),
        Panel("Request duration", "s", quantiles("pipeline_http_request_duration_seconds")),
        Panel(
            "Writes to Redis",
            "s",
            quantiles("pipeline_append_duration_seconds"),
            help="The part of a request's duration that Redis takes",
        ),
        Panel(
            "Group size",
            "short",
            {"events": f"sum(rate(pipeline_group_events_sum{RATE})) / sum(rate(pipeline_group_events_count{RATE}))"},
            help="Events that share one write",
        ),
        Panel("Bodies", "Bps", {"received": f"sum(rate(pipeline_body_bytes_total{RATE}))"}),
        Panel("Waiting in the API: events", "short", {"{{instance}}": "pipeline_ingest_queue_events"}),
        Panel("Waiting in the API: bodies", "bytes", {"{{instance}}": "pipeline_ingest_queue_bytes"}),
        Panel("Entries that Redis did not take", "cps", {"entries": f"sum(rate(pipeline_append_failures_total{RATE}))"}),
    ],
    "Through: the workers": [
        Panel("Lag per partition", "s", {"{{partition}}": "max by (partition) (pipeline_read_lag_seconds)"}),
        Panel("Backlog: events", "short", {"{{partition}}": "max by (partition) (pipeline_backlog_events)"}),
        Panel("Backlog: entries", "short", {"{{partition}}": "max by (partition) (pipeline_backlog_entries)"}),
        Panel("Events applied", "cps", {"{{instance}}": f"sum by (instance) (rate(pipeline_events_applied_total{RATE}))"}),
        Panel("Partitions held", "short", {"{{instance}}": "pipeline_partitions_held"}),
        Panel(
            "Taken over, and lost",
            "short",
            {
                "taken over": f"sum(increase(pipeline_recovery_duration_seconds_count{RATE}))",
                "lost": f"sum(increase(pipeline_partitions_lost_total{RATE}))",
            },
        ),
        Panel("Taking over", "s", quantiles("pipeline_recovery_duration_seconds")),
        Panel("Step", "s", quantiles("pipeline_step_duration_seconds")),
        Panel(
            "Late, repeated, set aside",
            "cps",
            {
                "late": f"sum(rate(pipeline_events_late_total{RATE}))",
                "repeated": f"sum(rate(pipeline_events_repeated_total{RATE}))",
                "set aside: {{reason}}": f"sum by (reason) (rate(pipeline_dead_letters_total{RATE}))",
            },
        ),
        Panel("Devices that are silent", "short", {"devices": "sum(pipeline_devices_silent)"}),
        Panel("In memory: series", "short", {"{{instance}}": "pipeline_series_known"}),
        Panel("In memory: rows of open windows", "short", {"{{instance}}": "pipeline_open_rows"}),
        Panel(
            "Series, of their limit",
            "percentunit",
            {"fullest partition": "max(pipeline_partition_series_share)", "fullest device": "max(pipeline_device_series_share)"},
        ),
    ],
    "Out: the lake": [
        Panel("Commit duration", "s", quantiles("pipeline_commit_duration_seconds", "table")),
        Panel("Rows committed", "cps", {"{{table}}": f"sum by (table) (rate(pipeline_rows_committed_total{RATE}))"}),
        Panel("Commits that failed", "cps", {"{{table}}": f"sum by (table) (rate(pipeline_commit_failures_total{RATE}))"}),
        Panel("Windows closed", "cps", {"windows": f"sum(rate(pipeline_windows_closed_total{RATE}))"}),
        Panel("Rows that wait for a commit", "short", {"{{instance}}": "pipeline_uncommitted_rows"}),
        Panel("Files", "short", {"{{table}}": "max by (table) (pipeline_lake_files)"}),
        Panel("Rows", "short", {"{{table}}": "max by (table) (pipeline_lake_rows)"}),
        Panel("Size", "bytes", {"{{table}}": "max by (table) (pipeline_lake_bytes)"}),
        Panel("Commits", "cps", {"{{table}}": f"max by (table) (deriv(pipeline_lake_version{LOOKS}))"}),
    ],
    "Books, Redis, machines": [
        Panel(
            "The books",
            "short",
            {
                "accepted": "max(pipeline_books_accepted_events)",
                "aggregated": "max(pipeline_books_aggregated_events)",
                "late": "max(pipeline_books_late_events)",
                "repeated": "max(pipeline_books_repeated_events)",
                "dead-lettered": "max(pipeline_books_dead_lettered_events)",
                "in flight": "max(pipeline_books_in_flight_events)",
            },
        ),
        Panel(
            "Memory of Redis",
            "bytes",
            {"used": "max(pipeline_redis_memory_used_bytes)", "limit": "max(pipeline_redis_memory_max_bytes)"},
        ),
        Panel("Memory of the roles", "bytes", {"{{role}} {{instance}}": 'process_resident_memory_bytes{job="pipeline"}'}),
        Panel("CPU of the roles", "percentunit", {"{{role}} {{instance}}": f'rate(process_cpu_seconds_total{{job="pipeline"}}{RATE})'}),
        Panel(
            "Housekeeping",
            "s",
            {"{{task}}": f"sum by (task) (rate(pipeline_housekeeping_duration_seconds_sum{RATE}))"},
            help="Seconds of work a second",
        ),
        Panel(
            "Files merged and removed",
            "cps",
            {
                "merged: {{table}}": f"sum by (table) (rate(pipeline_files_compacted_total{RATE}))",
                "removed: {{table}}": f"sum by (table) (rate(pipeline_files_vacuumed_total{RATE}))",
            },
        ),
        Panel("Housekeeping that failed", "cps", {"{{task}}": f"sum by (task) (rate(pipeline_housekeeping_failures_total{RATE}))"}),
        Panel("Leader", "short", {"{{instance}}": "pipeline_leader"}),
        Panel("Workers that live", "short", {"workers": "max(pipeline_workers_live)"}),
    ],
    "Alerts": [
        Panel(
            "Transitions",
            "short",
            {"{{phase}} {{severity}}": f"sum by (phase, severity) (increase(pipeline_alert_transitions_total{RATE}))"},
        ),
        Panel(
            "Deliveries",
            "short",
            {
                "delivered: {{sink}}": f"sum by (sink) (increase(pipeline_notifications_delivered_total{RATE}))",
                "failed: {{sink}}": f"sum by (sink) (increase(pipeline_notification_failures_total{RATE}))",
                "given up: {{sink}}": f"sum by (sink) (increase(pipeline_notifications_set_aside_total{RATE}))",
            },
        ),
        Panel("Rules in force", "short", {"{{instance}}": "pipeline_rules_version"}, help="All workers have the same within seconds"),
    ],
}


def build() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels, y = [], 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": []})
        y += 1
        height, width = (4, 4) if row[0].kind == "stat" else (HEIGHT, WIDTH)
        across = 24 // width
        for number, panel in enumerate(row):
            place = {"x": number % across * width, "y": y + number // across * height, "w": width, "h": height}
            panels.append(_panel(panel, place))
        y += -(-len(row) // across) * height
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}, "hide": 0}
    return {
        "uid": "telemetry-pipeline", "title": "Telemetry pipeline", "tags": ["telemetry"], "schemaVersion": 39, "version": 1,
        "editable": True, "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "utc",
        "templating": {"list": [source]}, "annotations": {"list": []}, "panels": panels,
    }  # fmt: skip


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query, "legendFormat": legend}
        for number, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind, "title": panel.title, "description": panel.help, "datasource": SOURCE, "gridPos": place, "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": None if "imbalance" in panel.title else 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {"colorMode": "value"},
    }  # fmt: skip


if __name__ == "__main__":
    FILE.write_text(json.dumps(build(), indent=1) + "\n")
