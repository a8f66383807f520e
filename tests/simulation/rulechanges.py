"""The same machine while the rules change: which version judges an event depends on when a worker looks, so there is no oracle of alerts.

But whatever the versions: an alert that stands in Redis is one that its worker knows, and what was told of each makes sense. It fires
once, and again only where it has grown; it is resolved once, and only where it fires.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from pipeline.core.rules import SEVERITIES
from pipeline.stores.alertlog import KEY
from tests.simulation.machine import RULES, Machine, faults_seen

STRICTER = """
rules:
  - {name: high, metric: x, upper: {warning: 4, critical: 6, clear: 2}}
  - {name: mean, metric: "*", on: window, statistic: mean, lower: {warning: 3}}
"""
DOCUMENTS = (RULES, STRICTER, "rules: []\n")


class RuleChanges(Machine):
    """A new version may come at any time, and each worker learns of it when it looks."""

    @rule(
        document=st.sampled_from(DOCUMENTS), first=st.sampled_from("abc"), value=st.sampled_from((1, 5, 9)), then=st.sampled_from("abc"),
        number=st.integers(0, 5), after=st.integers(0, 12), how=st.sampled_from(("", "", "refused", "lost", "dies after")),
    )  # fmt: skip
    def change(self, document: str, first: str, value: int, then: str, number: int, after: int, how: str) -> None:
        """One worker learns of it after one entry and before another, perhaps of another partition, while a call of it goes wrong."""
        faults_seen["rules"] += 1
        self.send([(first, "x", 0, value)])
        self.work(number, after=after, how=how)
        self.redis.documents.append(document)
        self.look(number)
        self.send([(then, "y", 0, 5)])
        self.work(number)

    @rule(number=st.integers(0, 5))
    def look(self, number: int) -> None:
        if self.processes:
            process = self._pick(number)
            self._run(process, process.worker._reload_rules)

    def _judge_alerts(self) -> None:
        stands = self._judge_standing(self.last)
        fires: dict[tuple, int] = {}  # rule and series -> severity, 0: it does not
        for transition in (each for of_partition in self.redis.transitions.values() for each in of_partition):
            key = _key(transition)
            before, severity = fires.get(key, 0), 1 + SEVERITIES.index(transition["severity"])
            assert {"firing": severity > before, "resolved": before == severity, "pending": not before}[transition["phase"]], transition
            fires[key] = severity if transition["phase"] == "firing" else 0
        assert {key for key, severity in fires.items() if severity} == {_key(each) for each in stands if each["firing"]}


def _key(each: dict) -> tuple:
    return tuple(each[name] for name in KEY)
