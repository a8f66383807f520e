"""The rules that a worker goes by: the newest version that is valid, kept up to date."""

from __future__ import annotations

import logging

from pipeline import logs
from pipeline.core.rules import Rules
from pipeline.errors import Invalid
from pipeline.stores.rulebook import Rulebook, read_document

log = logging.getLogger("worker")


class RuleKeeper:
    """`rules` is swapped as a whole; who works with them takes them once per micro-batch."""

    def __init__(self, rulebook: Rulebook) -> None:
        self._rulebook = rulebook
        self.rules = Rules()
        self._document: str | None = None  # the text of these: a Redis that lost its memory gets it back

    def load(self) -> None:
        """Take over the newest version; a document that is not valid changes nothing. Unavailable: Redis is away."""
        if self._document is None:
            self._rulebook.set_default()
        elif self._rulebook.version() == 0:
            self._rulebook.restore(self._document)
        newest = self._rulebook.get()
        if (newest.number, newest.document) == (self.rules.version, self._document):
            return
        try:
            self.rules = read_document(newest.document, newest.number)
        except Invalid as error:
            log.warning("rules stay at version %d: %s", self.rules.version, error)
            return
        self._document = newest.document
        logs.context(rules_version=newest.number)
        log.info("rules version %d", newest.number)
