"""What watches the pipeline: alert rules that promtool has tried, a dashboard that is generated, and no metric that is not there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import yaml

from monitoring.grafana.dashboard import FILE, ROWS, build
from pipeline import metrics
from tests.promtool import promtool

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "monitoring" / "prometheus"
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
QUERIES = [query for row in ROWS.values() for panel in row for query in panel.queries.values()]


def exposed() -> set[str]:
    """Every name of a sample that some role shows."""
    found = set()
    for registry in (metrics.INGEST, metrics.WORKER, metrics.NOTIFIER, metrics.MAINTENANCE, metrics.LEADER):
        for metric in registry._collector_to_names:
            family = next(iter(metric.describe()))
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            found |= {family.name + suffix for suffix in suffixes}
    return found


def used(queries) -> set[str]:
    return {name for query in queries for name in re.findall(r"\bpipeline_\w+", query)}


def checked(*arguments: str) -> str:
    """Run promtool to its end."""
    done = subprocess.run([promtool(), *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_and_dashboard_use_metrics_that_there_are():
    assert used(rule["expr"] for rule in RULES) <= exposed()
    assert used(QUERIES) <= exposed()


def test_every_metric_is_on_the_dashboard():
    """Under one of its names."""
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used(QUERIES)}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed()} - shown == set()


def test_the_dashboard_is_the_generated_one():
    """If not: `python monitoring/grafana/dashboard.py`."""
    assert json.loads(FILE.read_text()) == build()


def test_panels_have_a_place_of_their_own():
    taken = set()
    for panel in build()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells


def test_the_rules_are_valid():
    assert f"{len(RULES)} rules found" in checked("check", "rules", "rules.yml")
    checked("check", "config", "--syntax-only", "prometheus.yml")  # the token that it names is made by compose


def test_each_rule_fires_when_it_should():
    checked("test", "rules", "rules_test.yml")


def test_each_rule_is_tried_and_says_what_to_do():
    tried = set(re.findall(r'alertname="(\w+)"', (PROMETHEUS / "rules_test.yml").read_text()))
    assert tried == {rule["alert"] for rule in RULES}
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical") and set(rule["annotations"]) == {"summary", "action"}


def test_each_query_of_the_dashboard_is_promql(tmp_path):
    """As far as promtool can tell: each as a recording rule."""
    queries = [query.replace("$__rate_interval", "1m") for query in QUERIES]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked("check", "rules", str(tmp_path / "panels.yml"))
