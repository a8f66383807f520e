"""Where alerts go: the console, Alertmanager, a webhook.

Alertmanager holds what it is told in memory, and takes an alert for over that it hears nothing of: so what stands is said again and
again, as Prometheus does. Routing, grouping and silences are its work. A webhook gets each transition in the form in which
Alertmanager itself calls one (payload version 4), so that whatever receives those receives these.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import httpx

from pipeline.alerttexts import describe, rfc3339, transition_id
from pipeline.core.rules import SEVERITIES
from pipeline.errors import Invalid
from pipeline.httpclient import http_client, is_http
from pipeline.settings import Settings

REFRESH_SECONDS = 60.0  # between two times that what stands is said again
VALID_SECONDS = 10 * REFRESH_SECONDS  # after which it is taken for over: a notifier that is away for less resolves nothing
TOGETHER_MAX = 500  # alerts in one request
ANSWER_BYTES_MAX = 4096  # that are read of an answer
_NO_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time, as Alertmanager writes an end that is not known


class Sink(Protocol):
    """Where alerts go. `deliver` raises, best an OSError, where it was not taken. `refreshes`: what stands is to be said again and
    again, to its `refresh`, which raises the same."""

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
    if url := (settings.webhook_url or "").strip():
        found.append(WebhookSink(_checked(url, "PIPELINE_WEBHOOK_URL"), settings.notify_timeout_seconds))
    return found


def _checked(url: str, setting: str) -> str:
    if not is_http(url):
        raise Invalid(f"{setting}: it is not like http://HOST:PORT/PATH, and not shown, as it may hold a secret")
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

    def __init__(self, url: str, timeout_seconds: float, *, answer_shown: bool) -> None:
        self._url, self._named = url, "{0.scheme}://{0.host}".format(httpx.URL(url))  # its path may be a secret
        self._timeout_seconds, self._answer_shown = timeout_seconds, answer_shown
        self._client = http_client(timeout=timeout_seconds)

    def _post(self, payload: Any) -> None:
        try:
            with self._client.stream("POST", self._url, json=payload) as response:
                answer = self._start_of(response)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # the last two: of where it says that we should go
            raise OSError(f"{self._named}: {error or type(error).__name__}") from None
        if not response.is_success:
            told = " ".join(answer.decode("utf-8", "replace").split())[:200] if self._answer_shown else ""
            raise OSError(f"{self._named} answers {response.status_code}{told and f': {told}'}")

    def _start_of(self, response: httpx.Response) -> bytes:
        """Most answers are short: read to their end, their connection serves the next one as well. The status has said all that counts."""
        ends, answer = time.monotonic() + self._timeout_seconds, b""
        with contextlib.suppress(httpx.HTTPError):
            for chunk in response.iter_raw():
                answer += chunk
                if len(answer) >= ANSWER_BYTES_MAX or time.monotonic() > ends:
                    break
        return answer


class AlertmanagerSink(_Http):
    """Alertmanager's API v2. An alert that grows to critical is another one there, as `severity` is a label: the milder one ends."""

    refreshes = True

    def __init__(self, name: str, url: str, timeout_seconds: float) -> None:
        super().__init__(f"{url.rstrip('/')}/api/v2/alerts", timeout_seconds, answer_shown=True)
        self.name = name

    def deliver(self, transition: dict) -> None:
        now = time.time()
        if transition["phase"] == "resolved":
            self._post([_alert(transition, min(_over(transition), now))])
            return
        milder = SEVERITIES[: SEVERITIES.index(transition["severity"])]
        self._post([_alert(transition, now + VALID_SECONDS), *(_alert(transition | {"severity": each}, now) for each in milder)])

    def refresh(self, standing: Sequence[dict]) -> None:
        """Say again what stands: alerts like transitions that fire. What of it is refused keeps nothing from the rest."""
        ends, refused = time.time() + VALID_SECONDS, None
        for start in range(0, len(standing), TOGETHER_MAX):
            try:
                self._post([_alert(each, ends) for each in standing[start : start + TOGETHER_MAX]])
            except OSError as error:
                refused = refused or error
        if refused is not None:
            raise refused


class WebhookSink(_Http):
    """A call per transition. Its fingerprint is that of the alert from its first call to its last, however bad it gets between. What
    it answers is not shown: many an answer repeats the path."""

    name = "webhook"
    refreshes = False

    def __init__(self, url: str, timeout_seconds: float) -> None:
        super().__init__(url, timeout_seconds, answer_shown=False)

    def deliver(self, transition: dict) -> None:
        alert = _alert(transition, _over(transition))
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


def _over(transition: dict) -> float:
    """When it was over: by its last sample, or now where no rule asks for it any more."""
    return time.time() if transition["value"] is None else transition["time"] / 1e6


def _alert(transition: dict, ends_seconds: float) -> dict:
    """As Alertmanager knows one. Its labels are which one it is; what changes while it stands is told in annotations."""
    starts = transition["since"]
    return {
        "labels": _labels(transition),
        "annotations": {
            "summary": _text(describe(transition)),
            **{name: f"{transition[name]:.12g}" for name in ("value", "bound") if transition[name] is not None},
        },
        "startsAt": rfc3339(starts),
        "endsAt": rfc3339(max(starts, ends_seconds * 1e6)),
        "generatorURL": "",
    }


def _labels(transition: dict) -> dict[str, str]:
    tags = json.loads(transition["tags"] or "{}")
    names = {name: f"tag_{_NO_LABEL.sub('_', name)}" for name in tags}
    shared = Counter(names.values())
    told = {"alertname": transition["rule"], "severity": transition["severity"]}
    told |= {name: transition[name] for name in ("device", "interface", "metric")}
    for name, text in tags.items():  # two names that become one would make two series one
        told[names[name] if shared[names[name]] == 1 else f"{names[name]}_{_hash(name)[:8]}"] = text
    return {name: _text(text) for name, text in told.items() if text}


def _text(text: str) -> str:
    """Without halves of characters, which JSON in UTF-8 has no form for."""
    return text.encode("utf-8", "replace").decode()


def _fingerprint(labels: dict[str, str]) -> str:
    return _hash(json.dumps({name: text for name, text in labels.items() if name != "severity"}, sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
