"""The clients: a thread per gang sends its bodies over HTTP, each again until it is answered, and writes down what it was told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.chaos import traffic
from tests.chaos.ledger import ACCEPTED, REFUSED, UNKNOWN, Ledger, Record
from tests.chaos.traffic import Body

TIMEOUT_SECONDS = 4.0
RETRY_SECONDS = 0.25
BODY_INTERVAL_SECONDS = 1.0  # of one gang: event time goes as fast as time does


class Clients:
    """All gangs of a leg. `urls`: the APIs, between which a client changes when one does not answer."""

    def __init__(self, seed: str, urls: Sequence[str], ledger: Ledger, clock: Callable[[], float]) -> None:
        self._seed, self._urls, self._ledger, self._clock = seed, list(urls), ledger, clock
        self._stopping, self._closing = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(gang,), name=f"gang-{gang}") for gang in range(traffic.GANGS)]
        self._copies = ThreadPoolExecutor(traffic.GANGS, "copy")

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, patience_seconds: float) -> None:
        """No new bodies; what is on its way is sent again for `patience_seconds`, then nobody knows."""
        self._stopping.set()
        deadline = time.monotonic() + patience_seconds
        begun = [thread for thread in self._threads if thread.ident is not None]
        for thread in begun:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._closing.set()
        for thread in begun:
            thread.join()
        self._copies.shutdown()

    def flush(self, patience_seconds: float) -> None:
        """One event of each device far later: it closes all windows but its own."""
        deadline = time.monotonic() + patience_seconds
        names = [device for gang in range(traffic.GANGS) for device in traffic.devices(gang)]
        body = [{"device": name, "metric": "flush", "timestamp": traffic.FLUSH_MS, "value": 1} for name in names]
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
            turn = 0
            while self._post(client, turn, json.dumps(body), "flush")[0] != 202:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the last events were not taken within {patience_seconds:g} s")
                time.sleep(RETRY_SECONDS)
                turn += 1

    def _run(self, gang: int) -> None:
        due = time.monotonic() + BODY_INTERVAL_SECONDS * gang / traffic.GANGS
        newest = -1
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
            for body in traffic.order(self._seed, gang):
                if self._stopping.wait(max(0.0, due - time.monotonic())):
                    return
                due = max(due + BODY_INTERVAL_SECONDS, time.monotonic())
                record = self._ledger.sent(gang, body.number, self._clock())
                self._send(client, body, record)
                if record.outcome == ACCEPTED and body.number < newest:
                    self._ledger.landed("bodies out of order" if body.how == "swap" else "late bodies")
                newest = max(newest, body.number)

    def _send(self, client: httpx.Client, body: Body, record: Record) -> None:
        text = json.dumps(body.wire())
        if body.how == "broken":
            text = text[: len(text) // 2]
        turn = body.gang + body.number
        copy = self._copies.submit(self._copy, body, text, turn + 1) if body.how == "at_once" else None
        self._until_answered(client, body, record, text, turn)
        if body.how == "twice" and record.outcome == ACCEPTED:
            self._until_answered(client, body, record, text, turn + 1)
            if record.attempts[-1] == "202 again":
                self._ledger.landed("same body twice")
        if copy is not None and "202" in copy.result() and record.outcome == ACCEPTED:
            self._ledger.landed("same body at once")

    def _copy(self, body: Body, text: str, turn: int) -> str:
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
            return self._post(client, turn, text, body.key)[1]

    def _until_answered(self, client: httpx.Client, body: Body, record: Record, text: str, turn: int) -> None:
        while True:
            record.last_sent = self._clock()
            status, what = self._post(client, turn, text, body.key)
            self._ledger.meet(record, what)
            if status == 202:
                record.outcome = UNKNOWN if body.how == "reuse" else ACCEPTED  # the key may have been taken, and its answer lost
                record.answered = record.answered if record.answered is not None else self._clock()
                return
            if status is not None and 400 <= status < 500 and status != 429:
                record.outcome = REFUSED
                return
            if body.how == "give_up" or self._closing.is_set():
                return
            turn += 1
            self._closing.wait(RETRY_SECONDS)

    def _post(self, client: httpx.Client, turn: int, text: str, key: str) -> tuple[int | None, str]:
        """(status, what to call it); None: no answer."""
        url = f"{self._urls[turn % len(self._urls)]}/v1/events"
        try:
            answer = client.post(url, content=text, headers={"Content-Type": "application/json", "Idempotency-Key": key})
        except httpx.HTTPError:
            return None, "no answer"
        again = " again" if "Idempotent-Replay" in answer.headers else ""
        return answer.status_code, f"{answer.status_code}{again}"
