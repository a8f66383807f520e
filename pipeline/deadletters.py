"""`telemetry deadletters`: the events that were set aside: how many and why, which, and send them again.

A dead letter is never taken back: it stays as the record of what came. Sending it again makes a new event, or a new dead
letter where it is still wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import httpx

from pipeline.core.tokens import parts_of
from pipeline.errors import Invalid, PipelineError, Unavailable
from pipeline.httpclient import http_client, is_http
from pipeline.sql import add_place, ask, connect, one_line, show

FIELDS = ("device", "interface", "metric", "value", "timestamp", "kind", "tags")
SHOWN = 50
BODY_EVENTS_MAX = 1000  # with events of at most a few KB, far below what the API takes
ATTEMPTS_MAX = 6
WAIT_SECONDS_MAX = 10.0
TIMEOUT_SECONDS = 30.0
REFUSED = (400, 413, 422)  # of one body: the next may be taken

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_deadletters(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `deadletters`; its `func` takes the parsed arguments and returns an exit code."""
    parser = subparsers.add_parser(
        "deadletters", help="events that were set aside: list, show, retry", description="Events that were set aside, and why."
    )
    actions = parser.add_subparsers(metavar="list | show | retry")
    listing = actions.add_parser("list", help="how many, by field and reason, with an example (the default)")
    showing = actions.add_parser("show", help="the events themselves, newest first")
    retrying = actions.add_parser("retry", help="send them to the API again", description=_RETRY)
    for one, run in ((parser, _list), (listing, _list), (showing, _show), (retrying, _retry)):
        one.set_defaults(func=_guarded, run=run)
        if one is not parser:
            _filters(one)
            add_place(one)
    for one in (listing, showing):
        one.add_argument("--json", action="store_true", help="an array of objects")
    listing.add_argument("--by-device", action="store_true", help="count each device on its own")
    showing.add_argument("--limit", type=int, default=SHOWN, metavar="N", help="at most so many (default %(default)s)")
    retrying.add_argument("--url", default="http://127.0.0.1:8000", help="of the API (default %(default)s)")
    retrying.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="mends",
        help="mend a field of each event: a JSON value, else text; null takes it away, and an event without timestamp is of now",
    )  # fmt: skip
    retrying.add_argument("--token-file", type=Path, metavar="FILE", help="holds the bearer token (default: PIPELINE_TOKEN)")
    retrying.add_argument("--ca-file", type=Path, metavar="FILE", help="certificates to believe for https (default: SSL_CERT_FILE)")
    retrying.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")


_RETRY = """Send dead letters to the API again, mended or not. Sent twice within the API's time for Idempotency-Keys (5 minutes
unless set), with the same filters and --set, they count once; after that they are new events."""


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", metavar="TEXT", help="whose reason contains it")
    parser.add_argument("--field", metavar="NAME", help="whose fault lies in this field")
    parser.add_argument("--device", metavar="GLOB", help="of these devices: edge-1, edge-*")
    parser.add_argument("--since", type=_moment, metavar="TIME", help="received since: 30m, 2h, 7d, or 2026-01-31T12:00:00Z")


def _moment(text: str) -> datetime:
    """A moment in UTC, from an age or as it stands."""
    try:
        if found := re.fullmatch(r"(\d+)([smhd])", text):
            return datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=int(found[1]) * _UNITS[found[2]])
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):  # it is no time, or one before all years
        raise argparse.ArgumentTypeError(f"{text!r} is neither an age like 30m, 2h or 7d, nor a time like 2026-01-31T12:00:00Z") from None


def _guarded(args: argparse.Namespace) -> int:
    try:
        return args.run(args)
    except duckdb.Error as error:
        print(f"telemetry deadletters: {one_line(error)}", file=sys.stderr)
        return 1


def _where(args: argparse.Namespace) -> tuple[str, list[Any]]:
    """A WHERE clause and its parameters."""
    wanted = {
        "contains(lower(reason), lower(?))": getattr(args, "reason", None),
        "field = ?": getattr(args, "field", None),
        "device GLOB ?": getattr(args, "device", None),
        "received_at >= ?": getattr(args, "since", None),
        "date >= ?": since.date() if (since := getattr(args, "since", None)) else None,
    }
    wanted = {clause: value for clause, value in wanted.items() if value is not None}
    return " AND ".join(wanted) or "true", list(wanted.values())


def _list(args: argparse.Namespace) -> int:
    where, parameters = _where(args)
    by_device = getattr(args, "by_device", False)
    device = "device" if by_device else "count(DISTINCT device) AS devices"
    query = f"""SELECT field, reason, {device}, count(*) AS events, max(received_at) AS last_received,
        {"" if by_device else "arg_max(device, received_at) AS example_device, "}arg_max(event, received_at) AS example
        FROM dead_letters WHERE {where} GROUP BY field, reason{", device" if by_device else ""} ORDER BY events DESC, field, reason"""
    with _place(args) as connection:
        show(ask(connection, query, parameters), as_json=getattr(args, "json", False))
    return 0


def _show(args: argparse.Namespace) -> int:
    where, parameters = _where(args)
    query = f"SELECT received_at, device, field, reason, event FROM dead_letters WHERE {where} ORDER BY received_at DESC, device LIMIT ?"
    with _place(args) as connection:
        show(ask(connection, query, [*parameters, args.limit]), as_json=args.json, rows=args.limit)
    return 0


def _place(args: argparse.Namespace) -> duckdb.DuckDBPyConnection:
    return connect(argparse.Namespace(data=getattr(args, "data", None), lake=getattr(args, "lake", None)))


# Retry


@dataclass
class Told:
    """What the API said of all that was sent."""

    sent: int = 0
    accepted: int = 0
    rejected: int = 0
    repeated: int = 0  # of those sent: the API had them from an earlier retry, and counted them then
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)  # of those rejected that an answer names


@dataclass(frozen=True)
class Body:
    """Events of one stream entry as NDJSON, and the key under which they count once."""

    key: str
    content: bytes
    events: int


def _retry(args: argparse.Namespace) -> int:
    mends = _mends(args.mends)
    where, parameters = _where(args)
    # The order of an entry's rows, and where it is cut, must be the same each time: the key is made of them.
    query = f"SELECT partition, entry, event FROM dead_letters WHERE {where} ORDER BY partition, entry, event"
    unusable: Counter[str] = Counter()
    with _place(args) as connection:
        rows = ask(connection, query, parameters).rows()
        made = bodies(rows, mends, unusable)
        if args.dry_run:
            found = list(made)
            print(f"would send {sum(body.events for body in found):,} events in {len(found):,} bodies")
            if found:
                print(found[0].content.splitlines()[0].decode())
            told = Told()
        else:
            with _client(args) as client:
                told = send(client, made)
            print(f"sent {told.sent:,}: {told.accepted:,} accepted, {told.rejected:,} rejected")
            if told.repeated:
                print(f"  of these {told.repeated:,} were sent before, and count once")
    for (name, reason), count in told.reasons.most_common():
        print(f"  rejected, {name}: {reason} ({count:,})")
    for reason, count in unusable.most_common():
        print(f"  not sent, {reason} ({count:,})")
    return 1 if told.rejected or unusable else 0


def _client(args: argparse.Namespace) -> httpx.Client:
    """Of the API, with the token and the certificates that were named. Invalid: what of them cannot be used."""
    token = _token(args.token_file)
    try:
        verify = True if args.ca_file is None else ssl.create_default_context(cafile=str(args.ca_file))
    except OSError as error:
        raise Invalid(f"--ca-file {args.ca_file}: {error.strerror or error}; expected certificates as PEM") from None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if not is_http(args.url):
        raise Invalid(f"--url {ascii(args.url)[1:-1]}: must be like http://HOST:PORT")
    return http_client(base_url=args.url.rstrip("/"), timeout=TIMEOUT_SECONDS, headers=headers, verify=verify)


def _token(file: Path | None) -> str:
    """The token of a file, else that of the environment; empty: none. Invalid: what is there is no token, and is not shown."""
    place = "PIPELINE_TOKEN" if file is None else f"--token-file {file}"
    try:
        text = os.fsencode(os.environ.get("PIPELINE_TOKEN", "")) if file is None else file.read_bytes()
    except OSError as error:
        raise Invalid(f"{place}: {error.strerror}") from None
    text = text.strip()  # a file, and a secret that is mounted as a variable, often ends with a newline
    if not text and file is None:
        return ""
    if parts_of(text) is None:
        raise Invalid(f"{place}: it holds no token, which is like tp_ID_SECRET")
    return text.decode()


def _mends(texts: Iterable[str]) -> dict[str, Any]:
    """{field: value} of `FIELD=VALUE`."""
    mends = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in FIELDS:
            raise Invalid(f"--set {text}: must be FIELD=VALUE with one of {', '.join(FIELDS)}")
        try:
            mends[name] = json.loads(value)
        except (ValueError, RecursionError):
            mends[name] = value
    return mends


def bodies(rows: Iterable[tuple[int, int, str]], mends: dict[str, Any], unusable: Counter[str]) -> Iterator[Body]:
    """Bodies of rows (partition, entry, event text) in that order; those of no use are counted by reason in `unusable`.

    A body holds rows of one entry only. Entries do not change, so that dead letters which came in the meantime
    do not change the keys of those that were sent before.
    """
    for (partition, entry), group in itertools.groupby(rows, key=lambda row: row[:2]):
        events = [event for _, _, text in group if (event := _event(text, mends, unusable)) is not None]
        for at in range(0, len(events), BODY_EVENTS_MAX):
            lines = events[at : at + BODY_EVENTS_MAX]
            content = b"\n".join(lines)
            digest = hashlib.sha256(f"{partition} {entry} {at} ".encode() + content).hexdigest()
            yield Body(f"deadletters-{digest}", content, len(lines))


def _event(text: str, mends: dict[str, Any], unusable: Counter[str]) -> bytes | None:
    """The event of a dead letter, mended, as JSON; None where its text is none, or holds what JSON has no form for."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):  # strangers choose how deep it is nested
        unusable["its text is no JSON that can be read, or was cut"] += 1
        return None
    if not isinstance(event, dict):
        unusable["its text is no JSON object"] += 1
        return None
    if isinstance(event.get("tags"), str):  # set aside after its tags were made canonical: text of JSON
        try:
            event["tags"] = json.loads(event["tags"] or "null")
        except (ValueError, RecursionError):
            del event["tags"]
    mended = {name: value for name, value in (event | mends).items() if value is not None}
    try:  # one that is sent all the same takes its whole body with it
        return json.dumps(mended, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        unusable["it holds a number or a text that JSON cannot (NaN, half a character): mend it with --set"] += 1
        return None


def send(client: httpx.Client, made: Iterable[Body]) -> Told:
    """Post each body until it is taken or refused. Unavailable, Invalid: what the API said, and how much it took before."""
    told = Told()
    for body in made:
        try:
            response = _post(client, body)
        except PipelineError as error:
            raise type(error)(f"{error}; sent before: {told.sent:,}, of them accepted: {told.accepted:,}") from error
        told.sent += body.events
        if response.status_code != 202:
            told.rejected += body.events
            told.reasons[f"the body, {response.status_code}", _message(response)] += body.events
            continue
        answer = response.json()
        told.repeated += body.events if response.headers.get("idempotent-replay") == "true" else 0
        told.accepted += answer["accepted"]
        told.rejected += answer["rejected"]
        told.reasons.update((error["field"], error["reason"]) for error in answer["errors"])
    return told


def _post(client: httpx.Client, body: Body) -> httpx.Response:
    """What the API says of this body. Unavailable, Invalid: it takes none now, or none at all."""
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": body.key}
    problem = ""
    for attempt in range(ATTEMPTS_MAX):
        wait = min(0.25 * 2**attempt, WAIT_SECONDS_MAX)
        try:
            response = client.post("/v1/events", content=body.content, headers=headers)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Invalid(f"--url {client.base_url}: {error}") from error
        except httpx.HTTPError as error:
            problem = f"{client.base_url} does not answer ({error})"
        else:
            if response.status_code in (202, *REFUSED):
                return response
            problem = f"{client.base_url} answers {response.status_code}: {_message(response)}"
            if response.status_code not in (429, 500, 502, 503, 504):
                raise Invalid(problem)
            if (told := response.headers.get("retry-after", "")).isdigit():
                wait = min(float(told), WAIT_SECONDS_MAX)
        if attempt + 1 < ATTEMPTS_MAX:
            time.sleep(wait)
    raise Unavailable(problem)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
