"""Every metric: name, help and labels, declared once. What a role does not know it does not say.

Labels are bounded: partitions, tables, reasons, sinks; never a device or a series. Each role shows the registries that are its
own, so that a worker tells no zero of things that only the API counts; and what only the leader of the housekeeping knows
is shown by the leader alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE  # noqa: F401 (it belongs to `shown`)

prometheus_client.disable_created_metrics()  # a series more for each counter, that nobody reads

PROCESS, INGEST, WORKER, NOTIFIER, MAINTENANCE, LEADER = (CollectorRegistry() for _ in range(6))
ROLES = {
    "ingest": (INGEST, PROCESS),
    "worker": (WORKER, PROCESS),
    "notifier": (NOTIFIER, PROCESS),
    "maintenance": (MAINTENANCE, PROCESS),
}
ProcessCollector(registry=PROCESS)  # process_resident_memory_bytes, process_cpu_seconds_total, process_open_fds, ...

_QUICK_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SLOW_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EVENTS = (1, 10, 100, 1_000, 5_000, 10_000, 25_000, 50_000)

# Ingest API
HTTP_REQUESTS = Counter(
    "pipeline_http_requests", "POSTs of events, by class of the answer (2xx, 4xx, 5xx); denied: 401 and 403", ["status"], registry=INGEST
)
HTTP_SECONDS = Histogram(
    "pipeline_http_request_duration_seconds", "From a POST's head to its answer", buckets=_QUICK_SECONDS, registry=INGEST
)
BODY_BYTES = Counter("pipeline_body_bytes", "Bytes of bodies as they came, compressed or not", registry=INGEST)
EVENTS_ACCEPTED = Counter("pipeline_events_accepted", "Events answered with 202 that go into windows", registry=INGEST)
EVENTS_REJECTED = Counter("pipeline_events_rejected", "Events set aside by the API, by reason", ["reason"], registry=INGEST)
GROUP_EVENTS = Histogram("pipeline_group_events", "Events that one write to Redis takes", buckets=_EVENTS, registry=INGEST)
APPEND_SECONDS = Histogram("pipeline_append_duration_seconds", "One write of a group to Redis", buckets=_QUICK_SECONDS, registry=INGEST)
APPEND_FAILURES = Counter("pipeline_append_failures", "Entries that Redis did not take", registry=INGEST)
QUEUE_EVENTS = Gauge("pipeline_ingest_queue_events", "Events that wait in the API or are on their way to Redis", registry=INGEST)
QUEUE_BYTES = Gauge("pipeline_ingest_queue_bytes", "Bytes of bodies that are being read or decoded", registry=INGEST)
ADMISSION_STATE = Gauge("pipeline_admission_state", "0: all are let in, 1: a fair share of each, 2: priority metrics only", registry=INGEST)
EVENTS_NOT_ADMITTED = Counter(
    "pipeline_events_not_admitted", "Events to be sent again, by the state of their partition", ["state"], registry=INGEST
)

# Worker
EVENTS_APPLIED = Counter("pipeline_events_applied", "Events put through a step; those of a replay again", registry=WORKER)
WINDOWS_CLOSED = Counter("pipeline_windows_closed", "Windows of a series that closed", registry=WORKER)
EVENTS_LATE = Counter("pipeline_events_late", "Events whose window was closed already", registry=WORKER)
EVENTS_REPEATED = Counter("pipeline_events_repeated", "Samples that a later one of the same time replaced", registry=WORKER)
DEAD_LETTERS = Counter("pipeline_dead_letters", "Events set aside, by the API or by the worker, by reason", ["reason"], registry=WORKER)
STEP_SECONDS = Histogram("pipeline_step_duration_seconds", "One step over what was read", buckets=_QUICK_SECONDS, registry=WORKER)
ROWS_COMMITTED = Counter("pipeline_rows_committed", "Rows made durable, by table", ["table"], registry=WORKER)
COMMIT_SECONDS = Histogram(
    "pipeline_commit_duration_seconds", "One commit to a table that succeeded", ["table"], buckets=_SLOW_SECONDS, registry=WORKER
)
COMMIT_FAILURES = Counter("pipeline_commit_failures", "Commits that failed and are tried again, by table", ["table"], registry=WORKER)
READ_LAG_SECONDS = Gauge("pipeline_read_lag_seconds", "Age of the oldest entry not read yet; 0: none", ["partition"], registry=WORKER)
BACKLOG_ENTRIES = Gauge("pipeline_backlog_entries", "Entries that are not read yet", ["partition"], registry=WORKER)
BACKLOG_EVENTS = Gauge("pipeline_backlog_events", "Events in them", ["partition"], registry=WORKER)
PARTITIONS_HELD = Gauge("pipeline_partitions_held", "Partitions that this worker holds", registry=WORKER)
PARTITIONS_LOST = Counter("pipeline_partitions_lost", "Partitions that turned out to be another's (fenced)", registry=WORKER)
RECOVERY_SECONDS = Histogram("pipeline_recovery_duration_seconds", "One taking over of partitions", buckets=_SLOW_SECONDS, registry=WORKER)
OPEN_ROWS = Gauge("pipeline_open_rows", "Rows of windows that are open", registry=WORKER)
UNCOMMITTED_ROWS = Gauge("pipeline_uncommitted_rows", "Rows that wait for the next commit", registry=WORKER)
SERIES_KNOWN = Gauge("pipeline_series_known", "Series in the worker's memory", registry=WORKER)
PARTITION_SERIES_SHARE = Gauge(
    "pipeline_partition_series_share", "Of its limit on series, what the fullest partition has; 1: new ones are refused", registry=WORKER
)
DEVICE_SERIES_SHARE = Gauge("pipeline_device_series_share", "The same of the fullest device", registry=WORKER)
DEVICES_SILENT = Gauge("pipeline_devices_silent", "Devices of which nothing came for PIPELINE_IDLE_AFTER_SECONDS", registry=WORKER)
RULES_VERSION = Gauge("pipeline_rules_version", "The version of the rules in force here", registry=WORKER)
ALERT_TRANSITIONS = Counter(
    "pipeline_alert_transitions", "Alerts that became pending, firing or resolved", ["phase", "severity"], registry=WORKER
)

# Notifier
NOTIFIED = Counter("pipeline_notifications_delivered", "Transitions delivered, by sink", ["sink"], registry=NOTIFIER)
NOTIFY_FAILURES = Counter("pipeline_notification_failures", "Attempts to deliver that failed, by sink", ["sink"], registry=NOTIFIER)
NOTIFY_SET_ASIDE = Counter("pipeline_notifications_set_aside", "Transitions given up on, by sink", ["sink"], registry=NOTIFIER)

# Maintenance
LEADS = Gauge("pipeline_leader", "1: this process leads the housekeeping", registry=MAINTENANCE)
HOUSEKEEPING_SECONDS = Histogram(
    "pipeline_housekeeping_duration_seconds", "One task of the housekeeping", ["task"], buckets=_SLOW_SECONDS, registry=MAINTENANCE
)
HOUSEKEEPING_FAILURES = Counter("pipeline_housekeeping_failures", "Tasks that failed and are tried again", ["task"], registry=MAINTENANCE)
FILES_COMPACTED = Counter("pipeline_files_compacted", "Small files merged into larger ones, by table", ["table"], registry=MAINTENANCE)
FILES_VACUUMED = Counter("pipeline_files_vacuumed", "Files removed that no version needs, by table", ["table"], registry=MAINTENANCE)

# What the leader finds; others don't look
LAKE_FILES = Gauge("pipeline_lake_files", "Files of a table's newest version", ["table"], registry=LEADER)
LAKE_ROWS = Gauge("pipeline_lake_rows", "Rows of a table's newest version", ["table"], registry=LEADER)
LAKE_BYTES = Gauge("pipeline_lake_bytes", "Bytes of a table's newest version", ["table"], registry=LEADER)
LAKE_VERSION = Gauge("pipeline_lake_version", "A table's newest version", ["table"], registry=LEADER)
WORKERS_LIVE = Gauge("pipeline_workers_live", "Workers that say they live", registry=LEADER)
PARTITIONS_UNHELD = Gauge("pipeline_partitions_unheld", "Partitions that no worker holds", registry=LEADER)
BOOKS_ACCEPTED = Gauge("pipeline_books_accepted_events", "Events accepted since the lake was made, but for expired ones", registry=LEADER)
BOOKS_AGGREGATED = Gauge("pipeline_books_aggregated_events", "Of these, in windows that closed", registry=LEADER)
BOOKS_LATE = Gauge("pipeline_books_late_events", "Of these, late", registry=LEADER)
BOOKS_REPEATED = Gauge("pipeline_books_repeated_events", "Of these, repeated", registry=LEADER)
BOOKS_DEAD_LETTERED = Gauge("pipeline_books_dead_lettered_events", "Of these, set aside", registry=LEADER)
BOOKS_IN_FLIGHT = Gauge("pipeline_books_in_flight_events", "Of these, in open windows or not read yet", registry=LEADER)
BOOKS_IMBALANCE = Gauge("pipeline_books_imbalance_events", "Accepted events that are none of these: 0, or a defect", registry=LEADER)
REDIS_MEMORY_USED = Gauge("pipeline_redis_memory_used_bytes", "Memory that Redis uses; of a cluster, the fullest node", registry=LEADER)
REDIS_MEMORY_MAX = Gauge("pipeline_redis_memory_max_bytes", "Memory that it may use; 0: no limit is set", registry=LEADER)

# What a stranger writes into a stream may say anything: a reason that is none of these is `other`.
REASONS = frozenset(
    {
        "bad_json", "bad_kind", "bad_tags", "bad_timestamp", "bad_utf8", "control_character", "future", "missing", "not_a_number",
        "not_permitted",
        "not_a_string", "not_an_object", "not_finite", "out_of_range", "series_limit", "too_late", "too_long", "too_many", "too_old",
        "undecodable_entry", "unprocessable_entry",
    }
)  # fmt: skip


def show_reasons(counter: Counter) -> None:
    """Let it count each from 0 on: of a counter that begins at its first count, no rate shows that."""
    for reason in (*REASONS, "other"):
        counter.labels(reason)


def count_reasons(counter: Counter, reasons: Mapping[str, int]) -> None:
    """Add events set aside (reason -> how many) under the reasons that there are."""
    for reason, count in reasons.items():
        counter.labels(reason if reason in REASONS else "other").inc(count)


def shown(role: str, *, leads: bool = False) -> bytes:
    """What `/metrics` of a role says, in Prometheus' text format."""
    registries = (*ROLES[role], *([LEADER] if leads else []))
    return b"".join(map(prometheus_client.generate_latest, registries))
