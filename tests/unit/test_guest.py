"""What a token's guest has left of its rate, and that a token that is kept otherwise does not change that."""

from __future__ import annotations

import pytest

from api.door import Guest
from api.models import Refusal
from pipeline.core.tokens import Token


def token(rate: float | None, devices: tuple[str, ...] = ()) -> Token:
    return Token("abc", "test", ("ingest",), b"", devices=devices, rate=rate)


def test_what_is_given_back_after_the_token_was_renewed_is_there():
    guest = Guest(token(10.0))
    in_flight = guest
    guest.spend(1000)
    guest.renew(token(10.0, ("r*",)))
    assert guest.devices == ("r*",)
    with pytest.raises(Refusal, match="may send 10 events per second"):
        guest.spend(1)
    in_flight.spend(-1000)
    guest.spend(1)


def test_another_rate_begins_anew():
    guest = Guest(token(10.0))
    guest.spend(1000)
    guest.renew(token(5.0))
    guest.spend(1000)
    guest.renew(token(None))
    guest.spend(1_000_000)
