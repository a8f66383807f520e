"""What the roles say: one line each, as text for people or as JSON objects for machines; libraries' lines go the same way.

The same line again and again is told a few times, then counted, and the count is told. A line's context is given as `extra`
(partitions, ...); what holds for the whole process (the version of its rules) is set once, by `context`.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TextIO

import structlog

FORMATS = ("text", "json")
BURST = 10  # lines of one kind within WINDOW_SECONDS
WINDOW_SECONDS = 10.0
KINDS_MAX = 500
_FIRST = ("time", "level", "role", "event")

_context: dict[str, object] = {}


def context(**values: object) -> None:
    """What every line of this process tells from now on, as JSON."""
    _context.update(values)


def configure(role: str, form: str, level: str, *, managed: bool, more: Callable[[], Mapping[str, object]] = dict) -> None:
    """Log to stderr. `managed`: a supervisor puts time and role before each line. `more`: the context of the line that is being said."""

    def placed(logger, method, event: dict) -> dict:
        event |= {name: value for name, value in {**_context, **more()}.items() if name not in event}
        return event | {"role": role}

    as_json = [placed, structlog.processors.dict_tracebacks, _ordered, structlog.processors.JSONRenderer(_dumps)]
    as_text = [structlog.processors.format_exc_info, _text(managed)]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processors=[_timed, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *(as_json if form == "json" else as_text)],
        )
    )
    limit = RateLimit()
    handler.addFilter(limit)
    atexit.register(limit.tell, everything=True)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("httpx", "uvicorn"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a run that is left out while the last one goes on is no news
    log = logging.getLogger(role)
    sys.excepthook = lambda kind, error, trace: log.critical("a defect ended this process", exc_info=(kind, error, trace))
    threading.excepthook = lambda told: log.critical(
        "a defect ended the thread %s", told.thread and told.thread.name, exc_info=(told.exc_type, told.exc_value, told.exc_traceback)
    )


def line(role: str, event: str, level: str = "info") -> str:
    """One JSON object as `configure` writes it, for who prints by himself."""
    return _dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "role": role, "event": event})


def let_go(stream: TextIO) -> None:
    """Whoever read this stream is gone, as `head` is when it had enough: what is still written to it goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _dumps(event: dict, **_: object) -> str:
    return json.dumps(event, default=str, ensure_ascii=False)


def _timed(logger, method, event: dict) -> dict:
    record: logging.LogRecord = event["_record"]
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return event | {"time": moment, "logger": record.name}


def _ordered(logger, method, event: dict) -> dict:
    return {name: event[name] for name in _FIRST} | {name: value for name, value in event.items() if name not in _FIRST}


def _text(managed: bool) -> Callable[..., str]:
    def render(logger, method, event: dict) -> str:
        trace = f"\n{event['exception']}" if event.get("exception") else ""
        if managed:
            return f"{event['event']}{trace}"
        moment = datetime.fromisoformat(event["time"]).astimezone().replace(tzinfo=None).isoformat(" ", "milliseconds")
        return f"{moment.replace('.', ',')} {event['logger']} {event['level'].upper()} {event['event']}{trace}"

    return render


class RateLimit(logging.Filter):
    """Lets a few lines of one kind through in each window, counts the rest, and tells how many they were when the window is over.

    A kind is a logger, a level and the text before values are put in. There are at most KINDS_MAX: the one that was silent
    longest is forgotten.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: OrderedDict[tuple[str, int, str], list] = OrderedDict()  # kind -> began, lines, the last one
        self._lock = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "suppressed", 0):
            return True
        self.tell()
        with self._lock:
            kind = (record.name, record.levelno, str(record.msg))
            seen = self._kinds.setdefault(kind, [self._clock(), 0, ""])
            self._kinds.move_to_end(kind)
            if len(self._kinds) > KINDS_MAX:
                self._kinds.popitem(last=False)
            seen[1] += 1
            if seen[1] > BURST:
                seen[2] = record.getMessage()
            return seen[1] <= BURST

    def tell(self, *, everything: bool = False) -> None:
        """Forget the windows that are over, and say how many lines each has left out."""
        with self._lock:
            now = self._clock()
            over = [kind for kind, (began, _, _) in self._kinds.items() if everything or now - began >= WINDOW_SECONDS]
            told = [(*kind, *self._kinds.pop(kind)) for kind in over]
        for name, level, _, began, lines, last in told:
            if lines > BURST:
                left_out = lines - BURST
                text = "%d more such lines within %.0f s, the last: %s"
                logging.getLogger(name).log(level, text, left_out, now - began, last, extra={"suppressed": left_out})
