"""The door of events: POST /v1/events, whatever the bytes."""

from __future__ import annotations

import json
import random
import threading
from typing import NamedTuple

from tests.fuzz import arrow_streams, json_texts, packing, wire
from tests.fuzz.door import Verdict, rng_of
from tests.fuzz.ground import Ground, eventually_right
from tests.fuzz.json_texts import CLOSER_MS
from tests.fuzz.wire import Answer, Client, Exchange, Hangs

TYPES = {
    False: [
        b"application/json",
        b"application/json; charset=utf-8",
        b"text/json",
        b"application/octet-stream",
        b"text/plain",
        b"application/x+json",
    ],
    True: [b"application/x-ndjson", b"application/jsonl", b"application/ndjson"],
}
ARROW_TYPE = b"application/vnd.apache.arrow.stream"


class Case(NamedTuple):
    """One exchange, and what is known of its answer."""

    exchange: Exchange
    good: int | None = None
    bad: int | None = None
    good_device: str = ""


def strict(body: bytes) -> bool:
    """Whether another parser takes this for one JSON text. It is lenient where it differs: lone surrogates, very long numbers."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        json.loads(body.decode().removeprefix("\ufeff"), parse_constant=refuse, parse_int=str, parse_float=str)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


class Bodies:
    """Bodies in all forms and frames, several clients at once."""

    name = "bodies"
    threads = 4

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._local = threading.local()
        self._promised: dict[str, tuple[int, int]] = {}  # device -> (the input's number, its rows)
        self._lock = threading.Lock()

    def case(self, seed: int, number: int) -> Case:
        rng = rng_of(seed, self.name, number)
        turn = rng.random()
        if turn < 0.25:
            return Case(wire.framed(rng, json_texts.valid(rng)[1]))
        if turn < 0.55:
            made = arrow_streams.make(rng, number)
            return self._sent(rng, made.kind, made.body, ARROW_TYPE, made.malformed, made.good, made.bad, made.good_device)
        text = json_texts.make(rng, number)
        malformed = text.malformed
        if text.kind == "damaged" and text.body[:1] == b"[" and not text.lines and _is_utf8(text.body):
            malformed = not strict(text.body)
        kind = rng.choice(TYPES[text.lines and text.body.count(b"\n") > 0])
        return self._sent(rng, text.kind, text.body, kind, malformed, text.good, text.bad, text.good_device)

    def _sent(
        self, rng: random.Random, kind: str, body: bytes, media: bytes, malformed: bool, good: int | None, bad: int | None, device: str
    ) -> Case:
        headers = [(b"Content-Type", media)]
        if rng.random() < 0.25 and body:
            packed = packing.pack(rng, body) if rng.random() < 0.5 else packing.bent(rng, body)
            body = packed.body
            headers.append((b"Content-Encoding", packed.encoding))
            kind = f"{kind}/{packed.kind}"
            malformed = malformed or packed.malformed
            if not packed.sound:
                good, bad, device = None, None, ""
        if rng.random() < 0.1:
            headers.append((b"Idempotency-Key", b"%s-%d" % (kind.encode(), rng.randrange(10**12))))
        exchange = Exchange(kind, (wire.request(body, *headers),), 1, malformed)
        return Case(exchange, good, bad, device)

    def show(self, seed: int, number: int) -> tuple[str, bytes]:
        exchange = self.case(seed, number).exchange
        return exchange.kind, exchange.raw()

    def attempt(self, seed: int, number: int) -> Verdict:
        case = self.case(seed, number)
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = Client(self._ground.stack.port)
        try:
            answers = client.send(case.exchange)
        except Hangs as error:
            return Verdict("hangs", str(error))
        except OSError as error:
            return Verdict("closed", f"the connection broke: {error}")
        if not answers:
            wrong = "no answer" if case.exchange.answers and not case.exchange.malformed else ""
            return Verdict("closed", wrong)
        for answer in answers:
            if wrong := self._judge(case, answer):
                return Verdict(class_of(answer.status), f"{wrong}; answered {answer.status} {answer.body[:300]!r}")
        if case.exchange.answers and len(answers) < case.exchange.answers:
            return Verdict("closed", f"{len(answers)} answers, {case.exchange.answers} are due")
        if case.good_device and answers[0].status == 202:
            with self._lock:
                self._promised[case.good_device] = (number, case.good)
        return Verdict(class_of(answers[0].status))

    def _judge(self, case: Case, answer: Answer) -> str:
        status = answer.status
        if status >= 500 and status != 503:
            return "a server error"
        if answer.headers.get("content-type") != "application/json":
            return f"no JSON but {answer.headers.get('content-type')}"
        try:
            told = json.loads(answer.body)
        except ValueError:
            return "the answer is no JSON"
        if status == 202:
            if case.exchange.malformed:
                return "taken, although malformed"
            if {"accepted", "rejected", "errors"} - set(told):
                return "an answer of another shape"
            if case.good is not None and (told["accepted"], told["rejected"]) != (case.good, case.bad):
                return f"not {case.good} accepted and {case.bad} rejected"
            if len(told["errors"]) != min(20, told["rejected"]) or not all(each["reason"] and each["field"] for each in told["errors"]):
                return "an event was set aside without a reason"
            return ""
        error = told.get("error") if isinstance(told, dict) else None
        if not isinstance(error, dict) or not error.get("code") or not error.get("message"):
            return "a refusal without a reason"
        if status == 503:
            return "" if "retry-after" in answer.headers and error["code"] == "busy" else "503, and the queue is not full"
        if not 400 <= status < 500:
            return "neither taken nor refused"
        if error["code"] == "unprocessable":
            return "refused without saying what is wrong"
        if case.good is not None:
            return f"refused, although {case.good} events of it are good"
        return ""

    def finish(self) -> list[str]:
        """What the answers promised is in the lake; every event that was set aside has a reason; the books balance."""
        return eventually_right(self._wrong)

    def _wrong(self) -> list[str]:
        stack, wrong = self._ground.stack, []
        rows = stack.sql(
            "SELECT device, sum(count)::BIGINT AS n FROM aggregates WHERE (device LIKE 'mix-%' OR device LIKE 'amix-%') "
            f"AND epoch_ms(window_start) < {CLOSER_MS} GROUP BY device"
        )
        found = dict(rows.iter_rows())
        for device, (number, good) in self._promised.items():
            if found.get(device, 0) != good - 1:  # its last event keeps its window open
                wrong.append(f"input {number}: {found.get(device, 0)} rows of {device} in the aggregates, {good - 1} were accepted")
        nameless = stack.sql("SELECT count(*) FROM dead_letters WHERE coalesce(reason, '') = ''").item()
        if nameless:
            wrong.append(f"{nameless} dead letters have no reason")
        books = stack.books()
        if not books["balanced"]:
            wrong.append(f"the books do not balance: {books}")
        return wrong


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def class_of(status: int) -> str:
    return str(status) if status in (429, 503) else f"{status // 100}xx"
