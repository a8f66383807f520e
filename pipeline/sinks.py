"""Where alerts go: the console, Alertmanager, a webhook.

Alertmanager holds what it is told in memory, and takes an alert for over that it hears nothing of: so what stands is said again and
again, as Prometheus does. Routing, grouping and silences are its work. A webhook gets each transition in the form in which
Alertmanager itself calls one (payload version 4), so that whatever receives those receives these.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Protocol

import httpx

from pipeline.alerttexts import describe, transition_id
from pipeline.core.rules import SEVERITIES
from pipeline.errors import Invalid
from pipeline.httpclient import http_client, is_http
from pipeline.settings import Settings
from pipeline.stores.connection import redact

REFRESH_SECONDS = 60.0  # between two times that what stands is said again
VALID_SECONDS = 10 * REFRESH_SECONDS  # after which it is taken for over: a notifier that is away for less resolves nothing
TOGETHER_MAX = 500  # alerts in one request
_NO_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time, as Alertmanager writes an end that is not known


class Sink(Protocol):
    """Where alerts go. `deliver` raises OSError for what a retry may mend. `refreshes`: what stands is to be said again and again,
    to its `refresh`, which raises the same."""

    name: str
    refreshes: bool

    def deliver(self, transition: dict) -> None: ...


def sinks_of(settings: Settings, *, as_json: bool = False, colour: bool = False) -> list[Sink]:
    """The console, and what is set. Invalid: a URL is none, or what the environment says of proxies and certificates."""
    found: list[Sink] = [ConsoleSink(as_json=as_json, colour=colour)]
    urls = [url.strip() for url in (settings.alertmanager_url or "").split(",") if url.strip()]
    for number, url in enumerate(urls, 1):
        name = "alertmanager" if number == 1 else f"alertmanager-{number}"
        found.append(AlertmanagerSink(name, _checked(url, "PIPELINE_ALERTMANAGER_URL"), settings.notify_timeout_seconds))
    if settings.webhook_url:
        found.append(WebhookSink(_checked(settings.webhook_url, "PIPELINE_WEBHOOK_URL"), settings.notify_timeout_seconds))
    return found


def _checked(url: str, setting: str) -> str:
    if not is_http(url):
        raise Invalid(f"{setting}={redact(url)}: must be like http://HOST:PORT/PATH")
    return url


class ConsoleSink:
    """One line per alert on standard output: coloured on a terminal, JSON with `as_json`."""

    name = "console"
    refreshes = False
    _COLOURS: ClassVar = {"CRITICAL": "\x1b[1;31m", "WARNING": "\x1b[33m", "RESOLVED": "\x1b[32m"}

    def __init__(self, *, as_json: bool = False, colour: bool = False) -> None:
        self._as_json, self._colour = as_json, colour

    def deliver(self, transition: dict) -> None:
        if self._as_json:
            line = json.dumps({"id": transition_id(transition), **transition})
        else:
            line = describe(transition)
            if self._colour:
                line = f"{self._COLOURS.get(line.split()[0], '')}{line}\x1b[0m"
        print(line, flush=True)


class _Http:
    """A receiver of JSON by POST. Whatever it answers but a 2xx may be mended, if only by whoever set it up."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._url, self._named = url, "{0.scheme}://{0.host}".format(httpx.URL(url))  # its path may be a secret
        self._client = http_client(timeout=timeout_seconds)

    def _post(self, payload: Any) -> None:
        try:
            response = self._client.post(self._url, json=payload)
        except httpx.HTTPError as error:
            raise OSError(f"{self._named}: {error or type(error).__name__}") from None
        if not response.is_success:
            raise OSError(f"{self._named} answers {response.status_code}: {' '.join(response.text.split())[:200]}")


class AlertmanagerSink(_Http):
    """Alertmanager's API v2. An alert that grows to critical is another one there, as `severity` is a label: the milder one ends."""

    refreshes = True

    def __init__(self, name: str, url: str, timeout_seconds: float) -> None:
        super().__init__(f"{url.rstrip('/')}/api/v2/alerts", timeout_seconds)
        self.name = name

    def deliver(self, transition: dict) -> None:
        now = time.time()
        if transition["phase"] == "resolved":
            self._post([_alert(transition, min(transition["time"] / 1e6, now))])
            return
        milder = SEVERITIES[: SEVERITIES.index(transition["severity"])]
        self._post([_alert(transition, now + VALID_SECONDS), *(_alert(transition | {"severity": each}, now) for each in milder)])

    def refresh(self, standing: Sequence[dict]) -> None:
        """Say again what stands: alerts like transitions that fire."""
        ends = time.time() + VALID_SECONDS
        for start in range(0, len(standing), TOGETHER_MAX):
            self._post([_alert(each, ends) for each in standing[start : start + TOGETHER_MAX]])


class WebhookSink(_Http):
    """A call per transition."""

    name = "webhook"
    refreshes = False

    def deliver(self, transition: dict) -> None:
        alert = _alert(transition, transition["time"] / 1e6)
        resolved = transition["phase"] == "resolved"
        alert |= {"status": "resolved" if resolved else "firing", "fingerprint": _fingerprint(alert["labels"])}
        if not resolved:
            alert["endsAt"] = _NEVER
        grouped = {"alertname": transition["rule"]}
        self._post(
            {
                "version": "4", "groupKey": f"{{}}:{{alertname={json.dumps(transition['rule'])}}}", "truncatedAlerts": 0,
                "status": alert["status"], "receiver": "telemetry", "groupLabels": grouped, "commonLabels": alert["labels"],
                "commonAnnotations": alert["annotations"], "externalURL": "", "alerts": [alert],
            }
        )  # fmt: skip


def _alert(transition: dict, ends_seconds: float) -> dict:
    """As Alertmanager knows one. Its labels are which one it is; what changes while it stands is told in annotations."""
    starts = transition["since"] / 1e6
    return {
        "labels": _labels(transition),
        "annotations": {
            "summary": _text(describe(transition)),
            "value": f"{transition['value']:.12g}",
            **({} if transition["bound"] is None else {"bound": f"{transition['bound']:.12g}"}),
        },
        "startsAt": _rfc3339(starts),
        "endsAt": _rfc3339(max(starts, ends_seconds)),
        "generatorURL": "",
    }


def _labels(transition: dict) -> dict[str, str]:
    tags = json.loads(transition["tags"] or "{}")
    told = {"alertname": transition["rule"], "severity": transition["severity"]}
    told |= {name: transition[name] for name in ("device", "interface", "metric")}
    told |= {f"tag_{_NO_LABEL.sub('_', name)}": text for name, text in tags.items()}
    return {name: _text(text) for name, text in told.items() if text}


def _text(text: str) -> str:
    """Without halves of characters, which JSON in UTF-8 has no form for."""
    return text.encode("utf-8", "replace").decode()


def _fingerprint(labels: dict[str, str]) -> str:
    return hashlib.blake2b(json.dumps(labels, sort_keys=True).encode(), digest_size=8).hexdigest()


def _rfc3339(seconds: float) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
