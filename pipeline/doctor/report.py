"""All findings, in the order in which a person would ask."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pipeline.doctor import machine, server, tables, work
from pipeline.doctor.finding import MARKS, Finding
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from pipeline.stores.connection import connect


def examine(settings: Settings, without_redis: str) -> Iterator[Finding]:
    """Every finding. What cannot be reached is one, too. `without_redis`: what to say where none is set."""
    yield Finding("settings", "ok", "valid")
    yield from machine.examine(settings)
    if settings.redis_url is None:
        yield Finding("redis", "warn", without_redis)
    else:
        try:
            client = connect(settings.redis_url, settings.redis_timeout_seconds)
            yield from server.examine(settings, client)
            yield from work.examine(settings, client)
        except PipelineError as error:
            yield Finding("redis", "bad", str(error), "start it, or mend PIPELINE_REDIS_URL")
    yield from tables.examine(settings)


def report(settings: Settings, without_redis: str, *, as_json: bool) -> int:
    """Print the findings; the exit code: 1 where something is bad."""
    findings = []
    for finding in examine(settings, without_redis):
        findings.append(finding)
        if not as_json:
            print(finding, flush=True)
    worst = max((each.mark for each in findings), key=MARKS.index)
    if as_json:
        print(json.dumps({"worst": worst, "findings": [each._asdict() for each in findings]}))
    else:
        count = {mark: sum(each.mark == mark for each in findings) for mark in MARKS}
        print(f"{count['bad']} bad, {count['warn']} to look at, {count['ok']} fine")
    return 1 if worst == "bad" else 0
