"""Bytes -> columns or structs, by content. What cannot be typed is set aside here, event by event; rules on values come later.

Large plain JSON is read as columns at once (fast.py). Everything else is decoded into structs, and where that fails, event by
event, so that each bad one is told by itself and costs no good one.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from api.arrow import read_arrow
from api.fast import ENVELOPE, fast_frame
from api.models import TIME_MS_MAX, Envelope, Event, Loose, Refusal, Refused

FAST_BYTES_MIN = 4096
_VALUES_PER_EVENT = 32  # on average, tags and unknown fields among them
_COUNTED_BYTES_MIN = 1 << 20  # from this size on, what a body may expand to is estimated before it is parsed


class DecodeLimits(NamedTuple):
    """The bounds of one body."""

    body_decompressed_bytes_max: int = 64 * 1024**2
    body_events_max: int = 50_000
    name_chars_max: int = 256
    dead_letter_chars_max: int = 2048


class Body(NamedTuple):
    """The events of one body. Bodies of one `shape` are turned into columns together.

    `indexes` are the places of the events in the body where some were set aside, else None: they are all there.
    `devices` are patterns of those that its sender may speak for, empty: all. `size`: bytes that it has when decompressed.
    `texts`: of events that cannot but be refused later, as they were sent, by their places: what is set aside is to be mended.
    """

    shape: Hashable
    data: Any
    count: int
    indexes: list[int] | None = None
    refused: tuple[Refused, ...] = ()
    devices: tuple[str, ...] = ()
    size: int = 0
    texts: Mapping[int, str] = {}

    @property
    def events(self) -> int:
        return self.count + len(self.refused)


# ---- which form --------------------------------------------------------------------------------------------------------------

_JSON, _NDJSON, _ARROW = "json", "ndjson", "arrow"
_MEDIA = {
    "application/json": _JSON,
    "text/json": _JSON,
    "application/x-ndjson": _NDJSON,
    "application/ndjson": _NDJSON,
    "application/jsonlines": _NDJSON,
    "application/x-jsonlines": _NDJSON,
    "application/jsonl": _NDJSON,
    "application/vnd.apache.arrow.stream": _ARROW,
    "application/vnd.apache.arrow.file": _ARROW,
    # told nothing: look at the first bytes. `curl -d` says the second of these unasked
    "": "",
    "application/x-www-form-urlencoded": "",
    "application/octet-stream": "",
    "text/plain": "",
    "*/*": "",
}
_BLANK = re.compile(rb"[ \t\r\n]*")


def decode(payload: bytes, content_type: str, limits: DecodeLimits) -> Body:
    """The events of a body, decompressed. Refusal 400, 413, 415 or 422 where nothing of it can be taken."""
    media = content_type.partition(";")[0].strip().lower()
    form = _MEDIA.get(media, _JSON if media.endswith("+json") else None)
    if form is None:
        wanted = "send JSON, NDJSON (application/x-ndjson) or an Arrow IPC stream"
        raise Refusal(415, "unsupported_media_type", f"content type {media[:80]!r}: {wanted}")
    if payload.startswith(b"\xef\xbb\xbf"):
        payload = payload[3:]
    start = _BLANK.match(payload).end()
    if start == len(payload):
        raise Refusal(422, "no_events", "the body is empty")
    if form == _ARROW or (not form and payload[:4] in (b"\xff\xff\xff\xff", b"ARRO")):
        table = read_arrow(payload, limits.body_decompressed_bytes_max, limits.body_events_max)
        return Body(("arrow", *table.schema), table, table.num_rows)
    if len(payload) >= _COUNTED_BYTES_MIN:
        octets = np.frombuffer(payload, np.uint8)
        _bounded(np.count_nonzero(octets == ord("{")), limits)
        if np.count_nonzero(octets == ord(",")) > limits.body_events_max * _VALUES_PER_EVENT:
            raise Refusal(413, "too_many_values", f"the body holds more values than {limits.body_events_max} events do")
    array = payload[start] == ord("[")
    lines = form == _NDJSON and not array
    if len(payload) >= FAST_BYTES_MIN:
        frame = fast_frame(payload, lines or not (array or ENVELOPE.match(payload)))
        if frame is not None:
            _within(frame.height, limits)
            return Body(("frame", *frame.columns, frame["timestamp"].dtype), frame, frame.height)
    exact = _exact_array if array else _exact_lines if lines else _exact_object
    return exact(payload, limits)


def _within(events: int, limits: DecodeLimits) -> None:
    if events > limits.body_events_max:
        raise Refusal(413, "too_many_events", f"{events} events in one body; at most {limits.body_events_max} are taken")


def _bounded(objects: int, limits: DecodeLimits) -> None:
    if objects > limits.body_events_max * 4:
        raise Refusal(413, "too_many_events", f"more than {limits.body_events_max} events in one body")


# ---- the exact way -----------------------------------------------------------------------------------------------------------

_EVENTS = msgspec.json.Decoder(list[Event])
_EVENT = msgspec.json.Decoder(Event)
_LOOSE_EVENTS = msgspec.json.Decoder(list[Loose])
_LOOSE = msgspec.json.Decoder(Loose)
_ENVELOPES = msgspec.json.Decoder(Envelope)
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])
_SHAPE = ("events",)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")  # of a character beyond 16 bits, which are two such escapes
_INTEGER_CHARS_MAX = 40  # a longer one is beyond 64 bits
_NO_EVENT = "the body holds no event: send an object, an array of objects, or NDJSON"
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Device(msgspec.Struct):
    device: Any = None


class _Events(msgspec.Struct):
    events: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_DEVICES = msgspec.json.Decoder(_Device)
_WRAPPERS = msgspec.json.Decoder(_Events)


def _exact_object(payload: bytes, limits: DecodeLimits) -> Body:
    """One event, `{"events": [...]}`, or lines that were not announced as such."""
    malformed = None
    try:
        body = _ENVELOPES.decode(payload)
    except msgspec.ValidationError:
        pass
    except _MALFORMED as error:
        if b"\n" in payload.strip() and "trailing characters" in str(error):
            return _exact_lines(payload, limits)
        malformed = error  # all of it, or the text of one event of many?
    else:
        if body.events is msgspec.UNSET:
            return Body(_SHAPE, [body], 1) if _whole(body) else _sifted([body], None, (), limits, lambda: [payload])
        if body.events is not None:
            return _taken(body.events, limits)
    try:
        wrapped = _texts(payload, _wrapped)
    except msgspec.ValidationError:
        raise Refusal(422, "no_events", _NO_EVENT) from None
    except _MALFORMED as error:
        raise _unparseable(error, payload) from None
    if not wrapped:
        if malformed is not None:
            raise _unparseable(malformed, payload)
        return _one_by_one([payload], limits)
    events = bytes(wrapped[0])
    if not events.lstrip().startswith(b"["):
        raise Refusal(422, "no_events", '"events" must be an array of objects')
    return _exact_array(events, limits)


def _exact_array(payload: bytes, limits: DecodeLimits) -> Body:
    try:
        return _taken(_EVENTS.decode(payload), limits)
    except msgspec.ValidationError:  # some event is no good one: which one, and why?
        with contextlib.suppress(*_MALFORMED):
            return _sifted(_LOOSE_EVENTS.decode(payload), None, (), limits, lambda: _RAWS.decode(payload))
    except _MALFORMED:  # all of it, or the text of one event?
        pass
    try:
        raws = _texts(payload, _RAWS.decode)
    except _MALFORMED as error:
        raise _unparseable(error, payload) from None
    return _one_by_one(raws, limits)


def _wrapped(payload: bytes) -> list[msgspec.Raw]:
    events = _WRAPPERS.decode(payload).events
    return [] if events is msgspec.UNSET else [events]


def _texts(payload: bytes, parts: Callable[[bytes], list[msgspec.Raw]]) -> Sequence[bytes | msgspec.Raw]:
    """The parts of a body, unparsed. Half a character as an escape, as Python writes what was no UTF-8, spoils its own part alone."""
    try:
        return parts(payload)
    except msgspec.DecodeError:
        whole = _HALF.sub(rb"\\ufffd", payload)
        if whole == payload:
            raise
    texts, place = [], 0
    for raw in map(bytes, parts(whole)):
        place = whole.index(raw, place)
        texts.append(payload[place : place + len(raw)])
        place += len(raw)
    return texts


def _exact_lines(payload: bytes, limits: DecodeLimits) -> Body:
    _bounded(payload.count(b"\n"), limits)
    lines = [line for line in payload.split(b"\n") if line and not line.isspace()]
    with contextlib.suppress(*_MALFORMED):
        events = _EVENT.decode_lines(payload)
        if len(events) == len(lines):
            return _taken(events, limits)
    body = _one_by_one(lines, limits)
    if not body.count and all(refused.field == "event" for refused in body.refused):  # no line is an event, not even a bad one
        try:
            _LOOSE.decode(lines[0])
        except _MALFORMED as error:
            raise _unparseable(error, lines[0], "line 1: ") from None
    return body


def _is_text(payload: bytes) -> bool:
    """Which error the parser names bytes by that are not UTF-8 depends on its version."""
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unparseable(error: Exception, payload: bytes, where: str = "") -> Refusal:
    if not _is_text(payload):
        return Refusal(400, "bad_json", f"{where}the body is not UTF-8")
    if isinstance(error, RecursionError):
        return Refusal(400, "bad_json", f"{where}the body is nested too deeply")
    return Refusal(400, "bad_json", f"{where}{str(error)[:200]}")


_REASONS = {
    "device": "not_a_string",
    "interface": "not_a_string",
    "metric": "not_a_string",
    "value": "not_a_number",
    "timestamp": "bad_timestamp",
    "kind": "bad_kind",
    "tags": "bad_tags",
}
_AT = re.compile(r"at `\$\.(\w+)")


def _one_by_one(texts: list, limits: DecodeLimits) -> Body:
    """Each event by itself, so that a bad one costs no good one."""
    _within(len(texts), limits)
    events, indexes, refused = [], [], []
    for index, text in enumerate(texts):
        try:
            events.append(_LOOSE.decode(text))
            indexes.append(index)
        except _MALFORMED as error:
            refused.append(_refused(index, bytes(text), *_cause(error, bytes(text)), limits))
    if not events and all(each.reason == "not_an_object" for each in refused):
        raise Refusal(422, "no_events", _NO_EVENT)
    return _sifted(events, indexes, tuple(refused), limits, lambda: texts)


def _cause(error: Exception, text: bytes) -> tuple[str, str]:
    if not isinstance(error, msgspec.ValidationError):
        return "event", "bad_json" if _is_text(text) else "bad_utf8"
    found = _AT.search(str(error))
    if found is None:
        return "event", "not_an_object"
    field = found.group(1)
    if field == "tags" and "length" in str(error):
        return field, "too_many"
    return field, "out_of_range" if field == "value" and "out of range" in str(error) else _REASONS.get(field, "bad_json")


def _refused(index: int, raw: bytes, field: str, reason: str, limits: DecodeLimits) -> Refused:
    try:
        device = _DEVICES.decode(raw).device
    except _MALFORMED:
        device = None
    return Refused(index, device[: limits.name_chars_max] if isinstance(device, str) else "", field, reason, _text(raw, limits))


def _text(raw: bytes, limits: DecodeLimits) -> str:
    """As much of an event as is kept where it is set aside."""
    return raw[: 4 * limits.dead_letter_chars_max].decode("utf-8", "replace").strip()[: limits.dead_letter_chars_max]


def _taken(events: list[Event], limits: DecodeLimits) -> Body:
    _within(len(events), limits)
    if not events:
        raise Refusal(422, "no_events", "the body holds no event")
    return Body(_SHAPE, events, len(events))


def _sifted(
    events: list[Loose], indexes: list[int] | None, refused: tuple[Refused, ...], limits: DecodeLimits, texts: Callable[[], Sequence]
) -> Body:
    """Values that came as text become numbers, or are refused; of an event that will be refused as it is, the text is kept.

    `texts`: all events of the body as they were sent.
    """
    _within(len(events) + len(refused), limits)
    if events and not refused and not any(map(_named, events)):
        told = "no object in the body has a device, a metric or a value"
        raise Refusal(422, "no_events", f'{told}: an event is like {{"device": "r1", "metric": "cpu_pct", "value": 1.5}}')
    raws: Sequence = ()
    good, places, bad, kept = [], [], [], {}
    for place, event in enumerate(events):
        index, reason = place if indexes is None else indexes[place], None
        if event.value.__class__ is str:
            event.value, reason = _number(event.value)
        if reason is not None or not _whole(event):
            raws = raws or texts()
            if reason is not None:
                bad.append(_refused(index, bytes(raws[index]), "value", reason, limits))
                continue
            text = bytes(raws[index]).decode("utf-8", "replace").strip()
            if len(text) <= limits.dead_letter_chars_max:  # else its fields are kept: a text that was cut could not be sent again
                kept[index] = text
        good.append(event)
        places.append(index)
    all_refused = tuple(sorted((*refused, *bad), key=lambda each: each.index))
    return Body(_SHAPE, good, len(good), places if indexes is not None or bad else None, all_refused, texts=kept)


def _named(event: Loose) -> bool:
    return event.device is not None or event.metric is not None or event.value is not None


def _whole(event: Loose) -> bool:
    """Whether nothing that it needs is missing, its value is a number, and its time one that is kept as it is."""
    time, value = event.timestamp, event.value
    far = time is not None and time.__class__ is not str and not -TIME_MS_MAX < time < TIME_MS_MAX
    return event.device is not None and event.metric is not None and value is not None and value.__class__ is not str and not far


def _number(text: str) -> tuple[int | float | None, str | None]:
    """Of a text that JSON would take for a number without its quotes; or the reason why there is none."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None, "not_a_number"
    if not found.group(1) and not found.group(2):
        return (int(text), None) if len(text) <= _INTEGER_CHARS_MAX else (None, "out_of_range")
    number = float(text)
    return (number, None) if math.isfinite(number) else (None, "out_of_range")
