"""The tokens, as the command line writes them and every API reads them, on a real server."""

from __future__ import annotations

import re

import pytest

from pipeline.core.tokens import Token, matches, parts_of
from pipeline.errors import Invalid, Unavailable
from pipeline.stores import tokenbook
from pipeline.stores.connection import connect, servers
from pipeline.stores.tokenbook import KEY, Tokenbook
from tests.harness import free_port

DRAFT = Token("", "core", ("ingest",), b"", ("core-*",), 100.0)


@pytest.fixture
def book(client):
    return Tokenbook(client)


def test_there_are_no_tokens_before_the_first(book):
    assert book.load().by_id == {}


def test_a_token_is_found_again_and_its_secret_is_nowhere(book, client):
    token, text = book.create(DRAFT)
    identity, secret = parts_of(text.encode())
    assert book.load().by_id == {identity: token} and matches(token, secret)
    assert (token.name, token.scopes, token.devices, token.rate) == ("core", ("ingest",), ("core-*",), 100.0)
    kept = b"".join(part for pair in client.hgetall(KEY).items() for part in pair)
    assert secret not in kept and text.encode() not in kept


def test_no_two_tokens_are_alike(book):
    assert len({book.create(DRAFT)[1] for _ in range(50)}) == 50 and len(book.load().by_id) == 50


def test_who_knows_the_newest_gets_it_again_without_reading_all(book, client):
    book.create(DRAFT)
    known = book.load()
    assert book.load(known) is known
    book.create(DRAFT)
    changed = book.load(known)
    assert changed is not known and len(changed.by_id) == 2
    client.delete(KEY)  # Redis lost its memory: nobody comes in by what it once knew
    assert book.load(changed).by_id == {}


def test_a_revoked_token_is_known_as_that_by_all(book):
    token, _ = book.create(DRAFT)
    known = book.load()
    assert book.revoke(token.id).revoked_at_us is not None
    found = book.load(known).by_id[token.id]
    assert found.state(token.created_at_us) == "revoked"
    assert book.revoke(token.id) == found  # again: the first time stands


@pytest.mark.parametrize("identity", ["", "000000000000", "x" * 1000])
def test_what_is_not_there_cannot_be_revoked(book, identity):
    with pytest.raises(Invalid, match="there is no token"):
        book.revoke(identity)


def test_a_record_that_nobody_can_read_harms_no_other(book, client):
    token, _ = book.create(DRAFT)
    client.hset(KEY, mapping={"111111111111": "{", b"\xff": "x"})
    found = book.load()
    assert found.by_id == {token.id: token} and len(found.unreadable) == 2


def test_their_number_has_a_bound_and_the_dead_make_room(book, monkeypatch):
    monkeypatch.setattr(tokenbook, "TOKENS_MAX", 3)
    first, *_ = [book.create(DRAFT)[0] for _ in range(3)]
    with pytest.raises(Invalid, match="3 valid tokens, and no room"):
        book.create(DRAFT)
    book.revoke(first.id)
    newest, _ = book.create(DRAFT)
    assert len(book.load().by_id) == 3 and newest.id in book.load().by_id and first.id not in book.load().by_id


def test_every_change_is_one_command_on_one_key(book, client):
    """So that it is whole or not there, on a Redis Cluster as well."""
    for server in servers(client):
        server.config_resetstat()
    token, _ = book.create(DRAFT)
    book.revoke(token.id)
    book.load(book.load())
    stats = [server.info("commandstats") for server in servers(client)]
    counts = {name.removeprefix("cmdstat_"): told["calls"] for each in stats for name, told in each.items()}
    used = {name: calls for name, calls in counts.items() if re.match("h|del|set|eval|multi|exec", name) and name != "hello"}
    assert used == {"hlen": 1, "hset": 2, "hget": 2, "hgetall": 1}


def test_a_server_that_is_away_is_unavailable():
    with pytest.raises(Unavailable):
        Tokenbook(connect(f"redis://127.0.0.1:{free_port()}", 1)).load()
