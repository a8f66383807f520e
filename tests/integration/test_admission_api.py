"""What a client is told while its partition is not open, and that it loses nothing by doing what it is told."""

from __future__ import annotations

import asyncio

from api.admission import Gate
from pipeline.core.admission import CLOSED, FAIR, Decision
from pipeline.core.partitions import partition_of
from pipeline.stores.admission import Decisions
from tests.integration.test_ingest_api import PARTITIONS, error, paying, running

LENIENT = {"Prefer": "handling=lenient"}
HEAVY, CALM = "r1", "r2"  # of different partitions


def events(device: str, count: int, metric: str = "in-octets") -> list[dict]:
    return [{"device": device, "interface": f"eth{n}", "metric": metric, "value": n} for n in range(count)]


def standing(api, state: str, level: float = 10.0, **more) -> None:
    """The partition of HEAVY is in this state, all others are open."""
    decision = Decision(state, "too much", level=level, **more)
    api.ingest.gate.standing = Decisions(1, 0.0, {partition_of(HEAVY, PARTITIONS): decision})


def test_the_devices_are_of_different_partitions():
    assert partition_of(HEAVY, PARTITIONS) != partition_of(CALM, PARTITIONS)


def test_a_heavy_device_waits_and_nobody_else_does():
    with running() as api:
        standing(api, FAIR)
        assert api.post(events(HEAVY, 100)).status_code == 202  # its bucket was full; it pays after
        refused = api.post(events(HEAVY, 100))
        assert error(refused)[:2] == (429, "overloaded") and 1 <= int(refused.headers["retry-after"]) <= 6
        assert api.post(events(CALM, 100)).json()["accepted"] == 100
        assert len(api.store.events()) == 200


def test_a_part_is_taken_where_the_client_asks_for_it_and_the_rest_can_be_sent_again():
    with running() as api:
        standing(api, FAIR)
        api.post(events(HEAVY, 100))
        body = [*events(CALM, 2), *events(HEAVY, 3), *events(HEAVY, 1, "oper-status"), {"device": CALM, "metric": "x", "value": "no"}]
        answer = api.post(body, **LENIENT)
        said = answer.json()
        assert (answer.status_code, said["accepted"], said["rejected"], said["not_admitted"]) == (202, 3, 1, [2, 3, 4])
        assert said["retry_after_seconds"] >= 1 and answer.headers["retry-after"] == str(said["retry_after_seconds"])
        api.ingest.gate.standing = Decisions()
        assert api.post([body[at] for at in said["not_admitted"]]).json()["accepted"] == 3
        assert len(api.store.events()) == 100 + 6


def test_a_body_is_taken_whole_or_not_at_all_unless_asked():
    with running() as api:
        standing(api, FAIR)
        api.post(events(HEAVY, 100))
        assert api.post([*events(CALM, 2), *events(HEAVY, 3)]).status_code == 429
        assert len(api.store.events()) == 100


def test_what_is_not_admitted_costs_a_token_nothing():
    """It is paid for when it is taken. Else who sends it again as told would pay for it each time."""
    with paying(rate=1000) as api:
        standing(api, FAIR)
        api.post(events(HEAVY, 100))
        for _ in range(4):
            answer = api.post([*events(CALM, 1), *events(HEAVY, 800)], **LENIENT)
            assert (answer.status_code, len(answer.json()["not_admitted"])) == (202, 800)
        api.ingest.gate.standing = Decisions()
        assert [api.post(events(HEAVY, 800)).status_code for _ in range(3)] == [202, 202, 429]


def test_a_wish_may_come_in_a_header_of_several():
    """Whichever of them it is in."""
    with running() as api:
        standing(api, FAIR)
        api.post(events(HEAVY, 100))
        for wishes in (("handling=lenient", "respond-async"), ("respond-async, wait=10", "Handling=Lenient")):
            headers = [("content-type", "application/json"), *(("prefer", wish) for wish in wishes)]
            answer = api.client.post("/v1/events", json=[*events(CALM, 2), *events(HEAVY, 3)], headers=headers)
            assert (answer.status_code, answer.json()["not_admitted"]) == (202, [2, 3, 4])


def test_closed_admits_priority_metrics_alone_and_at_last_not_even_those():
    with running() as api:
        standing(api, CLOSED)
        assert api.post(events(HEAVY, 1)).status_code == 429
        assert api.post(events(HEAVY, 1, "/interfaces/interface/state/oper-status")).status_code == 202
        standing(api, CLOSED, shut=True)
        assert api.post(events(HEAVY, 1, "oper-status")).status_code == 429


def test_dead_letters_wait_as_events_do():
    with running() as api:
        standing(api, CLOSED)
        assert api.post([{"device": HEAVY, "metric": "x", "value": "no number"}]).status_code == 429
        assert not api.store.letters()


def test_a_key_that_comes_again_gets_the_answer_of_the_first_time_also_where_that_was_never_given():
    """The API died between the append and the answer; meanwhile all is open."""
    with running() as api:
        api.store.forget_answers = True
        standing(api, FAIR)
        api.post(events(HEAVY, 100))
        body = [*events(CALM, 2), *events(HEAVY, 2), *events(HEAVY, 1, "oper-status")]
        first = api.post(body, key="k", **LENIENT).json()
        assert (first["accepted"], first["not_admitted"]) == (3, [2, 3])
        api.ingest.gate.standing = Decisions()
        again = api.post(body, key="k", **LENIENT).json()
        assert (again["accepted"], again["not_admitted"]) == (3, [2, 3]), "they were not taken then, and cannot be under this key"
        assert len(api.store.events()) == 103


def test_what_was_taken_before_a_failure_is_not_named_when_all_of_its_partition_has_to_wait_by_then():
    """Who sends again what is named, under another key, would have it counted twice."""
    with running() as api:
        api.store.away = {partition_of(CALM, PARTITIONS)}
        body = [*events(HEAVY, 2), *events(CALM, 3)]
        assert api.post(body, key="k", **LENIENT).status_code == 503
        api.store.away = set()
        standing(api, CLOSED)
        assert api.post(body, key="k", **LENIENT).json() == {"accepted": 5, "rejected": 0, "errors": []}
        assert len(api.store.events()) == 5


def test_what_has_to_wait_in_one_of_two_requests_of_a_key_is_taken_by_neither():
    """Each may have been sent to another replica: what the client is told must be so, whichever of the answers it gets."""
    with running() as api:
        api.store.forget_answers = True
        standing(api, CLOSED)
        body = [*events(HEAVY, 2), *events(CALM, 3)]
        first = api.post(body, key="k", **LENIENT).json()
        assert (first["accepted"], first["not_admitted"]) == (3, [0, 1])
        api.ingest.gate.standing = Decisions()
        assert api.post(body, key="k", **LENIENT).json()["not_admitted"] == [0, 1]
        assert api.post(events(HEAVY, 2), key="other").json()["accepted"] == 2
        assert len(api.store.events()) == 5


def test_a_turn_that_breaks_is_not_the_last_one(monkeypatch):
    """As where a replica of another release says what this one does not know: else admission would stay as it is until a restart."""

    class Odd:
        turns = 0

        async def turn(self, demands, limits) -> Decisions:
            self.turns += 1
            if self.turns == 1:
                raise TypeError("what is that?")
            return Decisions(7)

    async def two_turns() -> int:
        gate = Gate(1, Odd())
        gate.start()
        while gate.standing.number != 7:
            await asyncio.sleep(0.01)
        await gate.stop()
        return gate.standing.number

    monkeypatch.setattr("api.admission.DECIDE_SECONDS", 0.01)
    assert asyncio.run(asyncio.wait_for(two_turns(), 10)) == 7


def test_nobody_knows_what_came_before_where_a_partition_does_not_answer():
    with running() as api:
        standing(api, CLOSED)
        api.store.away = {partition_of(HEAVY, PARTITIONS)}
        assert api.post([*events(HEAVY, 2), *events(CALM, 3)], key="k", **LENIENT).status_code == 503


def test_what_waited_is_not_taken_for_repeated_when_its_key_comes_again():
    with running() as api:
        standing(api, CLOSED)
        assert api.post(events(HEAVY, 5), key="k").status_code == 429
        api.ingest.gate.standing = Decisions()
        assert api.post(events(HEAVY, 5), key="k").json()["accepted"] == 5
        assert len(api.store.events()) == 5
