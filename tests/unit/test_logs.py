"""What is logged, and how: lines for people as they were, objects for machines, and not the same line without end."""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings

import pytest

from pipeline import logs


@pytest.fixture
def said(monkeypatch, capsys):
    """configure(...) with what is said gathered; undone afterwards."""
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    before, level = root.handlers[:], root.level
    monkeypatch.setattr(logs, "_context", {})

    def configured(form: str, level: str = "info", **options):
        logs.configure("worker", form, level, **{"managed": False, **options})
        return lambda: capsys.readouterr().err.splitlines()

    yield configured
    logging.captureWarnings(False)
    root.handlers[:], (sys.excepthook, threading.excepthook) = before, hooks
    root.setLevel(level)


def test_a_line_for_machines_is_one_object(said):
    lines = said("json", more=lambda: {"request_id": "r-1"})
    logs.context(rules_version=7)
    logging.getLogger("worker").warning("lost partitions %s", "1, 2", extra={"partitions": [1, 2]})
    (told,) = map(json.loads, lines())
    assert list(told)[:4] == ["time", "level", "role", "event"] and told.pop("time").endswith("+00:00")
    assert told == {
        "level": "warning", "role": "worker", "event": "lost partitions 1, 2", "logger": "worker",
        "partitions": [1, 2], "rules_version": 7, "request_id": "r-1",
    }  # fmt: skip


def test_lines_of_libraries_warnings_and_defects_go_the_same_way(said):
    lines = said("json")
    logging.getLogger("redis.connection").error("gone")
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        sys.excepthook(*sys.exc_info())
    told = [json.loads(line) for line in lines()]
    assert [each["level"] for each in told] == ["error", "warning", "critical"]
    assert told[-1]["exception"][0]["exc_type"] == "ValueError"


@pytest.mark.parametrize("managed", [True, False])
def test_a_line_for_people_is_as_it_was(said, managed):
    """Under the supervisor the text alone: it puts time and role before it."""
    lines = said("text", managed=managed)
    logging.getLogger("worker").info("took %d partitions", 3, extra={"partitions": [1, 2, 3]})
    (line,) = lines()
    assert line == "took 3 partitions" if managed else line.endswith(" worker INFO took 3 partitions")


def test_the_level_is_kept(said):
    lines = said("text", "error", managed=True)
    logging.getLogger("worker").warning("no news")
    logging.getLogger("httpx").warning("no news")
    logging.getLogger("worker").error("news")
    assert lines() == ["news"]


def test_what_is_said_again_and_again_is_counted(said):
    lines = said("text", managed=True)
    now = [0.0]
    limit = logs.RateLimit(lambda: now[0])
    logging.getLogger().handlers[0].filters[:] = [limit]
    for number in range(logs.BURST + 5):
        logging.getLogger("worker").warning("try %d", number)
    logging.getLogger("worker").info("another kind")
    assert len(lines()) == logs.BURST + 1
    now[0] = 30.0
    logging.getLogger("worker").info("later")
    assert lines()[-2:] == [f"5 more such lines within 30 s, the last: try {logs.BURST + 4}", "later"]


def test_kinds_of_lines_are_bounded():
    limit = logs.RateLimit(lambda: 0.0)
    for number in range(3 * logs.KINDS_MAX):
        limit.filter(logging.LogRecord("x", 20, "", 0, f"kind {number}", (), None))
    assert len(limit._kinds) == logs.KINDS_MAX
