"""How an alert reads, a number, a moment; and which transition of an alert one is. It knows no sink: who only shows alerts loads none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta


def transition_id(transition: dict) -> str:
    """Which transition this is: the same in every delivery of it."""
    parts = ("rule", "device", "interface", "metric", "tags", "since", "phase", "severity")
    return "|".join(str(transition[part]) for part in parts)


def since(microseconds: int) -> str:
    """A moment as a person reads it, UTC."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")


def rfc3339(microseconds: float) -> str:
    """A moment as programs read it, UTC, to the millisecond."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def counted(number: int, thing: str) -> str:
    """How many of what; `thing` for one of it."""
    several = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else several}"


def as_json(alert: dict) -> dict:
    """An alert that stands, with its moments as programs read them."""
    return {**alert, "since": rfc3339(alert["since"]), "time": rfc3339(alert["time"])}


def describe(transition: dict) -> str:
    """What, where, how bad, since when, in one line."""
    tags = " ".join(f"{name}={text}" for name, text in json.loads(transition["tags"] or "{}").items())
    place = " ".join(filter(None, (transition["device"], transition["interface"], transition["metric"], tags and f"({tags})")))
    value, bound = transition["value"], transition["bound"]
    resolved = transition["phase"] == "resolved"
    if resolved and value is None:
        how = "no rule asks for it any more"
    elif resolved:
        how = f"back at {value:.6g}, after {duration(transition['time'] - transition['since'])}"
    else:
        how = f"{value:.6g}" if bound is None else f"{value:.6g} {'>' if value > bound else '<'} {bound:.6g}"
    word = "RESOLVED" if resolved else transition["severity"].upper()
    return f"{word:8} {transition['rule']}  {place}  {how}  since {since(transition['since'])}"


def duration(microseconds: int) -> str:
    """A length of time as a person reads it."""
    seconds = microseconds / 1e6
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
