"""The versions of the rules, as workers, the API and the command line see them, on a real server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from pipeline.errors import Invalid, Outdated, Unavailable
from pipeline.stores.connection import connect
from pipeline.stores.rulebook import DEFAULT, Rulebook, read_document
from tests.harness import free_port


@pytest.fixture
def book(client):
    return Rulebook(client)


def document(bound: int, *, end: str = "\n") -> str:
    return f"# höher als früher\nrules:\n  - name: a\n    metric: m\n    upper: {{warning: {bound}}}{end}"


def test_there_are_no_rules_before_the_first_version(book):
    assert book.version() == 0 and book.history() == []
    with pytest.raises(Invalid, match="there is no version 0 of the rules; the newest is 0"):
        book.get()


def test_versions_are_appended_and_kept_as_they_were(book):
    """To the last byte, with who says why and when, by Redis' clock."""
    assert [book.set(document(1), "first"), book.set(document(2)), book.set(document(3, end=""))] == [1, 2, 3]
    assert book.version() == 3
    first, second, third = book.history()
    assert (first.number, first.document, first.comment) == (1, document(1), "first")
    assert (second, third) == (book.get(2), book.get())
    assert third.document == document(3, end="")
    age = datetime.now(UTC) - datetime.fromisoformat(first.created_at)
    assert first.created_at.endswith("Z") and abs(age.total_seconds()) < 10
    assert read_document(third.document, third.number).version == 3


@pytest.mark.parametrize("number", [0, -1, 3, 10**9])
def test_a_version_that_is_not_there_is_said(book, number):
    """Redis' own lists would take -1 for the last."""
    book.set(document(1))
    book.set(document(2))
    with pytest.raises(Invalid, match=f"there is no version {number} of the rules; the newest is 2"):
        book.get(number)
    with pytest.raises(Invalid, match="there is no version"):
        book.rollback(number)
    with pytest.raises(Invalid, match="there is no version"):
        book.diff(1, number)
    assert book.version() == 2


def test_a_bad_document_changes_nothing(book):
    book.set(document(1))
    with pytest.raises(Invalid, match=r"^line 5: rules\[0\].upper.warning: must be a finite number"):
        book.set(document(1).replace("{warning: 1}", "{warning: much}"))
    assert book.version() == 1


def test_a_rollback_is_a_new_version(book):
    """History only grows: the version that was left is there to go back to."""
    for bound in (1, 2):
        book.set(document(bound))
    assert book.rollback(1) == 3
    assert [version.document for version in book.history()] == [document(1), document(2), document(1)]
    assert book.get().comment == "rollback to version 1"


def test_a_diff_shows_what_changed(book):
    """As a unified diff; with or without a line's end at the document's."""
    book.set(document(1))
    book.set(document(2, end=""))
    assert book.diff(1, 2).splitlines() == [
        "--- version 1",
        "+++ version 2",
        "@@ -2,4 +2,4 @@",
        " rules:",
        "   - name: a",
        "     metric: m",
        "-    upper: {warning: 1}",
        "+    upper: {warning: 2}",
    ]
    assert book.diff(1, 1) == ""


def test_two_who_change_the_same_version_do_not_overwrite_each_other(book):
    """The second is told, and nothing is appended."""
    book.set(document(1))
    assert book.set(document(2), only_if_version=1) == 2
    with pytest.raises(Outdated, match="the rules are at version 2, not 1: somebody else changed them"):
        book.set(document(3), only_if_version=1)
    assert book.version() == 2


def test_of_many_at_once_one_wins(stack, book):
    """The comparison and the append are one step in Redis."""
    book.set(document(0))

    def attempt(bound: int) -> bool:
        try:
            return Rulebook(stack.client).set(document(bound), only_if_version=1) == 2
        except Invalid:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(1, 17))) == 1
    assert book.version() == 2


def test_the_shipped_rules_are_version_1_where_there_are_none(stack, book):
    """However many workers start at once; never over somebody's own."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Rulebook(stack.client).set_default(), range(8)))
    assert [version.document for version in book.history()] == [DEFAULT.read_text(encoding="utf-8")]
    book.set(document(1))
    book.set_default()
    assert book.version() == 2


def test_a_redis_that_lost_its_memory_gets_the_rules_back(stack, book):
    """From the first worker that notices, once; not where somebody was faster."""
    for bound in (1, 2):
        book.set(document(bound))
    stack.client.flushall()
    book.restore(document(2))
    Rulebook(stack.client).restore(document(2))
    (restored,) = book.history()
    assert (restored.number, restored.document, restored.comment) == (1, document(2), "restored: Redis had lost the rules")
    stack.client.flushall()
    book.set(document(3))
    book.restore(document(2))
    assert book.get().document == document(3)


def test_json_is_a_document_too(book):
    text = json.dumps({"rules": [{"name": "a", "metric": ["x/y", "ü"], "upper": {"warning": 1}}]})
    book.set(text)
    assert book.get().document == text


def test_a_redis_that_is_away_is_unavailable():
    away = Rulebook(connect(f"redis://127.0.0.1:{free_port()}", 1))
    for ask in (away.version, away.get, away.history, lambda: away.set(document(1))):
        with pytest.raises(Unavailable, match="Redis"):
            ask()
