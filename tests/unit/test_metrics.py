"""Metrics as declared: their names, their labels, and that the README tells of each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pipeline import metrics
from pipeline.core.validate import RULES

ROOT = Path(__file__).parents[2]
OURS = (metrics.INGEST, metrics.WORKER, metrics.NOTIFIER, metrics.MAINTENANCE, metrics.LEADER)
LABELS = {"state", "status", "reason", "partition", "table", "phase", "severity", "sink", "task"}


def declared(*registries: CollectorRegistry) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name as it is queried -> type and labels."""
    found = {}
    for registry in registries or OURS:
        for metric in registry._collector_to_names:
            family = next(iter(metric.describe()))
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert name not in found, name
            found[name] = family.type, tuple(metric._labelnames)
    return found


def test_names_say_what_is_counted_and_in_which_unit():
    for name, (kind, _) in declared().items():
        assert re.fullmatch(r"pipeline_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter")
        assert not re.search(r"_(ms|mb|kb|minutes|hours)(_|$)", name)
        assert "duration" not in name or name.endswith("_seconds")


def test_labels_are_bounded():
    """None is a device, a series, a client or a message."""
    assert {label for _, labels in declared().values() for label in labels} == LABELS


def test_every_metric_is_in_the_readme_and_the_reverse():
    told = re.findall(r"^\| [^|]* \| `(pipeline_\w+)(?:\{(.*?)\})?` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name: tuple(labels.split(", ")) if labels else () for name, labels in told} == {
        name: labels for name, (_, labels) in declared().items()
    }
    assert len(told) == len(declared())


def test_every_reason_of_the_validator_is_known_and_an_odd_one_is_other():
    assert {reason for _, reason in RULES} <= metrics.REASONS
    before = metrics.DEAD_LETTERS.labels("other")._value.get()
    metrics.count_reasons(metrics.DEAD_LETTERS, {"what a stranger wrote": 3, "too_late": 1})
    assert metrics.DEAD_LETTERS.labels("other")._value.get() == before + 3
    assert "stranger" not in metrics.shown("worker").decode()


@pytest.mark.parametrize("role", metrics.ROLES)
def test_a_role_shows_its_own_and_its_process(role):
    text = metrics.shown(role).decode()
    assert "process_resident_memory_bytes" in text
    others = [registry for registry in OURS if registry not in metrics.ROLES[role]]
    assert not any(f"# TYPE {name} " in text for name in declared(*others))
    assert ("pipeline_books_imbalance_events" in metrics.shown(role, leads=True).decode()) and "_created" not in text
