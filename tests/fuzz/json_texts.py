"""JSON and NDJSON that starts valid and is then bent: a field, the structure, the bytes, the encoding, the size."""

from __future__ import annotations

import random
from typing import NamedTuple

START_MS = 1_760_000_000_000  # a fixed moment: an input may not depend on the clock
CLOSER_MS = START_MS + 3_600_000

NUMBERS = [
    b"1e400",
    b"-1e400",
    b"1e-400",
    b"-0.0",
    b"-0",
    b"5e-324",
    b"1.7976931348623157e308",
    b"18446744073709551615",
    b"18446744073709551616",
    b"-9223372036854775808",
    b"-9223372036854775809",
    b"9007199254740993",
    b"123456789012345678901234567890",
    b"1" * 400,
    b"9" * 5000,
    b"1e999999999999",
    b"0.1e-99999",
    b"4e12",
    b"1.0",
    b"1E5",
    b"01",
    b"+1",
    b".5",
    b"1.",
    b"0x10",
    b"1_000",
    b"--1",
    b"1e",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"nan",
    b"inf",
]
TEXTS = [
    b'""',
    b'" "',
    b'"\\u0000"',
    b'"a\\u0000b"',
    b'"\\ud800"',
    b'"\\udfff\\ud800"',
    b'"\\ud83d\\ude00"',
    b'"\xff\xfe"',
    b'"\xc0\x80"',
    b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"',
    b'"\x00"',
    b'"\t"',
    b'"a\nb"',
    b'"\\x"',
    b'"\\u12"',
    b'"unfinished',
    b'"\\"',
    b"'single'",
    b'"\xe2\x80\xa8"',
    b'"\xef\xbb\xbf"',
    b'"\xe2\x80\xae"',
    b'"' + b"x" * 257 + b'"',
    b'"' + "ä".encode() * 256 + b'"',
    b'"' + b"y" * 100_000 + b'"',
    b'"NaN"',
    b'"1e400"',
    b'"../../etc/passwd"',
    b'"{}"',
    b'"\\/"',
    b'"<script>"',
    b'"%s%n%d"',
    b'"; DROP TABLE"',
    b'"__proto__"',
]
OTHERS = [
    b"null",
    b"true",
    b"false",
    b"[]",
    b"{}",
    b"[1]",
    b'{"a":1}',
    b"[[[]]]",
    b"nul",
    b"",
    b",",
    b"undefined",
    b'{"":""}',
    b'[{"a":[]}]',
]
TIMES = [
    b'"0000-01-01T00:00:00Z"',
    b'"9999-12-31T23:59:59Z"',
    b'"275760-09-13T00:00:00Z"',
    b'"+275760-09-13T00:00:00Z"',
    b'"-000001-01-01T00:00:00Z"',
    b'"2026-02-30T00:00:00Z"',
    b'"2026-01-01T25:00:00Z"',
    b'"2026-01-01T23:59:60Z"',
    b'"2026-01-01T00:00:00"',
    b'"2026-01-01"',
    b'"2026-01-01T00:00:00+99:99"',
    b'"2026-01-01T00:00:00.123456789123Z"',
    b'"1767225600"',
    b'"now"',
    b'""',
    b"0",
    b"-1",
    b"-62135596800000",
    b"253402300799999",
    b"8640000000000001",
    b"1767225600",
    b"1767225600000000",
    b"1767225600000000000",
    b"9223372036854775807",
    b"18446744073709551616",
    b"1e308",
    b"-1e308",
    b"0.5",
    b"true",
    b'"2026-01-01T00:00:00\\u0000Z"',
    b'"\xd9\xa2\xd9\xa0\xd9\xa2\xd9\xa6-01-01T00:00:00Z"',
    b"[2026,1,1]",
]
KINDS = [b'"gauge"', b'"counter"', b'"counter32"', b'"counter53"', b'"counter64"', b'"Counter"', b'"counter16"', b'"gauge "', b"0", b'""']
TAGS = [
    b"{}",
    b'{"a":"b"}',
    b'{"a":1}',
    b'{"a":null}',
    b'{"a":{"b":"c"}}',
    b'{"":"x"}',
    b'{"a":""}',
    b'{"a":"1","a":"2"}',
    b"[]",
    b'["a"]',
    b'"text"',
    b"1",
    b'{"a":"\\ud800"}',
    b'{"\\u0000":"x"}',
    b'{"a":"' + b"t" * 300 + b'"}',
    b'{"' + b"k" * 300 + b'":"v"}',
    b"{" + b",".join(b'"k%d":"v"' % i for i in range(17)) + b"}",
    b"{" + b",".join(b'"k%d":"v"' % i for i in range(50_000)) + b"}",
]
FIELDS = (b"device", b"interface", b"metric", b"value", b"timestamp", b"kind", b"tags")
BAD_TOKENS = {  # each costs exactly its own event, in whatever form the body comes
    b"device": [b"5", b"null", b"[]", b"{}", b'""', b'"\\u0007"', b'"' + b"x" * 257 + b'"'],
    b"metric": [b"5", b"null", b"true", b'""', b'"\\u0000"'],
    b"interface": [b"5", b"[]", b'"' + b"x" * 300 + b'"'],
    b"value": [b'"x"', b"null", b"[]", b"18446744073709551616", b"-9223372036854775809"],
    b"timestamp": [b'"0000-01-01T00:00:00Z"', b'"nope"', b"[]", b"0", b"-1", b"253402300799999", b"1e300"],
    b"kind": [b'"counter16"', b"7"],
    b"tags": [b"[]", b'{"a":1}', b'{"":"x"}', b'"text"'],
}

Fields = list[tuple[bytes, bytes]]


class Text(NamedTuple):
    """A body. `good` and `bad`: how many events are to be taken and set aside, where that is known; `good_device`: of those taken."""

    kind: str
    body: bytes
    malformed: bool = False  # nothing of it may be taken
    good: int | None = None
    bad: int | None = None
    good_device: str = ""
    lines: bool = False


def event(rng: random.Random, device: bytes | None = None, time_ms: int | None = None) -> Fields:
    """A valid event, as fields of JSON text."""
    fields = [
        (b"device", b'"%b"' % (device or b"fuzz-%d" % rng.randrange(50))),
        (b"metric", b'"%b"' % rng.choice([b"cpu_pct", b"in-octets"])),
    ]
    fields.append((b"value", rng.choice([b"%d" % rng.randrange(10**6), b"%f" % rng.random(), b"true"])))
    if time_ms is not None:
        fields.append((b"timestamp", b"%d" % time_ms))
    if rng.random() < 0.5:
        fields.append((b"interface", b'"eth%d"' % rng.randrange(4)))
    return fields


def render(fields: Fields) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % field for field in fields) + b"}"


def join(rng: random.Random, events: list[bytes]) -> tuple[bytes, bool]:
    """Events as an array, an envelope or lines; whether as lines."""
    form = rng.randrange(3)
    if form == 0:
        return b"[" + b",".join(events) + b"]", False
    if form == 1:
        return b'{"events":[' + b",".join(events) + b"]}", False
    return b"\n".join(events) + b"\n", True


def valid(rng: random.Random) -> tuple[list[bytes], bytes, bool]:
    events = [render(event(rng)) for _ in range(rng.choice([1, 2, 5, 40, 200]))]
    body, lines = join(rng, events)
    return events, body, lines


def field(rng: random.Random) -> Text:
    """One field of one event is any token at all."""
    events = [event(rng) for _ in range(rng.choice([1, 3, 60]))]
    victim = rng.choice(events)
    name = rng.choice(FIELDS)
    own = {b"timestamp": TIMES, b"kind": KINDS, b"tags": TAGS, b"value": NUMBERS}.get(name, TEXTS)
    token = rng.choice(rng.choice([own, own, NUMBERS, TEXTS, OTHERS]))
    kept = [(key, text) for key, text in victim if key != name]
    kept.insert(rng.randrange(len(kept) + 1), (name, token))
    victim[:] = kept
    body, lines = join(rng, [render(each) for each in events])
    return Text("field", body, lines=lines)


def keys(rng: random.Random) -> Text:
    """Keys that are repeated, unknown, long, empty, or odd."""
    fields = event(rng)
    key = rng.choice(
        [b"device", b"value", b"x" * rng.choice([300, 100_000]), b"", b"\\u0000", b"\xff", b"de\\u0076ice", b"DEVICE", b"events"]
    )
    for _ in range(rng.choice([1, 2, 1000])):
        fields.insert(rng.randrange(len(fields) + 1), (key, rng.choice(NUMBERS + OTHERS)))
    body, lines = join(rng, [render(fields), render(event(rng))])
    return Text("keys", body, lines=lines)


def deep(rng: random.Random) -> Text:
    """Nested far beyond what a stack holds."""
    levels = rng.choice([64, 1000, 100_000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"tags":', b"}]"), (b'{"events":', b"}"), (b'{"events":[', b"]}")])
    middle = rng.choice([b"", b"1", b"{}"])
    body = opening * levels + middle + (closing * levels if rng.random() < 0.7 else b"")
    place = rng.randrange(3)
    if place == 1:
        body = b"[" + render([*event(rng), (rng.choice([b"tags", b"value", b"extra"]), body)]) + b"]"
    return Text("deep", body)


def damaged(rng: random.Random) -> Text:
    """Bytes flipped, cut, put in, repeated."""
    _, body, lines = valid(rng)
    return Text("damaged", damage(rng, body), lines=lines)


def damage(rng: random.Random, body: bytes) -> bytes:
    out = bytearray(body)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = rng.choice(
                    [b"\x00", b"\xff", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\n", b"\r", b"\xef\xbb\xbf", b"\xe2\x80\xa8"]
                )
            case 3:
                del out[at : at + rng.randrange(1, 9)]
            case 4:
                out[at:at] = out[at : at + rng.randrange(1, 200)]
            case _:
                out[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(out)


def broken(rng: random.Random) -> Text:
    """Surely no JSON."""
    events, _, _ = valid(rng)
    whole = b"[" + b",".join(events) + b"]"
    body = rng.choice(
        [
            whole[: rng.randrange(1, len(whole))],
            whole + b"]",
            whole + b"x",
            b"[" + b" ".join(events * 2) + b"]",
            whole.replace(b":", b"=", 1),
            b"[,]",
            b"[" + events[0] + b",]",
            b"{" + whole,
            b"nothing",
            b"\x00" + whole,
            whole.replace(b'"', b"'"),
            b"[NaN]x",
            b"<xml/>",
            b"device=r1&value=1",
        ]
    )
    return Text("broken", body, malformed=True)


def empty(rng: random.Random) -> Text:
    body = rng.choice(
        [
            b"",
            b" ",
            b"\n\n\n",
            b"\t" * 1000,
            b"[]",
            b'{"events":[]}',
            b"null",
            b"1",
            b'"x"',
            b"true",
            b"[[]]",
            b"[null]",
            b"[1,2,3]",
            b"\xef\xbb\xbf",
        ]
    )
    return Text("empty", body, malformed=True)


def encoded(rng: random.Random) -> Text:
    """UTF-8 with a mark, and what is no UTF-8."""
    _, body, lines = valid(rng)
    text = body.decode()
    form = rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"])
    return Text("encoded", text.encode(form), malformed=form not in ("utf-8-sig", "utf-7"), lines=lines)


def many(rng: random.Random) -> Text:
    """Very many tiny things, up to the bounds and beyond."""
    count = rng.choice([50_000, 50_001, 300_000, 1_000_000])
    unit = rng.choice([b"{}", b"0", b"[]", b'""', b"null", b'{"device":"d","metric":"m","value":1}'])
    lines = rng.random() < 0.3
    text = (unit + b"\n") * count if lines else b"[" + b",".join([unit] * count) + b"]"
    return Text("many", text[: 8 * 1024**2 + rng.choice([0, 0, 1])], lines=lines)


def long(rng: random.Random) -> Text:
    """One string, key, number or blank of megabytes."""
    size = rng.choice([70_000, 1_000_000, 7_000_000])
    piece = rng.choice(
        [
            b'{"device":"' + b"d" * size + b'","metric":"m","value":1}',
            b'{"device":"d","metric":"' + rng.choice([b"[", b"]", b"/", b"_", b":", b"-"]) * size + b'","value":1}',
            b'{"' + b"k" * size + b'":1}',
            b'{"device":"d","metric":"m","value":' + b"1" * size + b"}",
            b" " * size,
            b'{"device":"d","metric":"m","value":1,"tags":{' + b",".join(b'"%d":""' % i for i in range(size // 12)) + b"}}",
            b'{"device":"d","metric":"m","value":1,"kind":"' + b"k" * size + b'"}',
            b'{"device":"d","metric":"m","value":1,"timestamp":"' + b"2" * size + b'"}',
            b'{"device":"d","metric":"m","value":1e' + b"9" * size + b"}",
            b'{"device":"d","metric":"m","value":0.' + b"0" * size + b"1}",
        ]
    )
    return Text("long", piece)


def mixed(rng: random.Random, number: int) -> Text:
    """Bad events among good ones. How many of each is known, and the good ones have a device of their own."""
    device = b"mix-%d-%d" % (number, rng.randrange(10**9))
    good = rng.choice([1, 3, 30, 150])
    made = [(True, render(event(rng, device, START_MS + 10 * i))) for i in range(good)]
    bad = rng.choice([1, 2, 20])
    for _ in range(bad):
        name = rng.choice(list(BAD_TOKENS))
        fields = [(key, text) for key, text in event(rng) if key != name]
        fields.append((name, rng.choice(BAD_TOKENS[name])))
        made.insert(rng.randrange(len(made) + 1), (False, render(fields)))
    made.append((True, render(event(rng, device, CLOSER_MS))))  # closes the windows of the others
    body, lines = join(rng, [text for _, text in made])
    return Text("mixed", body, good=good + 1, bad=bad, good_device=device.decode(), lines=lines)


def plain(rng: random.Random) -> Text:
    events, body, lines = valid(rng)
    return Text("valid", body, good=len(events), bad=0, lines=lines)


def make(rng: random.Random, number: int) -> Text:
    """Any of these."""
    weights = {field: 12, keys: 4, deep: 3, damaged: 10, broken: 5, empty: 2, encoded: 3, many: 1, long: 1, plain: 2}
    if rng.random() < 0.2:
        return mixed(rng, number)
    return rng.choices(list(weights), list(weights.values()))[0](rng)
