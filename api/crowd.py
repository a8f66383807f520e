"""The connections of one API process: how many there are, from where, and which of them wait for their client.

A client that connects and sends little, or nothing, costs a place. So where there is none left, whoever has been waited for the
longest makes room for the newcomer: a flood of slow clients pushes out its own, and one that sends whole requests is served on.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol


class Member(Protocol):
    """A connection, as the crowd sees it."""

    address: str

    def make_room(self) -> None: ...


class Crowd:
    """Counts connections, of all and of each address. A place is free again at once when its connection was asked to make room."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._inside: set[Member] = set()
        self._of_address: Counter[str] = Counter()
        self._waiting: dict[Member, None] = {}  # in the order in which the waiting began

    def __len__(self) -> int:
        return len(self._inside)

    def enter(self, member: Member) -> bool:
        """Whether there is a place for it, or could be made one: not where all others are being answered."""
        if self._of_address[member.address] >= self._most_per_address and not self._make_room(member.address):
            return False
        if len(self._inside) >= self._most and not self._make_room(None):
            return False
        self._inside.add(member)
        self._of_address[member.address] += 1
        self._waiting[member] = None
        return True

    def leave(self, member: Member) -> None:
        """It is gone, or as good as gone."""
        if member in self._inside:
            self._inside.remove(member)
            self._waiting.pop(member, None)
            self._of_address[member.address] -= 1
            if not self._of_address[member.address]:
                del self._of_address[member.address]

    def waits(self, member: Member) -> None:
        """From now on its client has to do something."""
        if member in self._inside:
            self._waiting.pop(member, None)
            self._waiting[member] = None

    def works(self, member: Member) -> None:
        """Its client has sent a whole request, and waits for us."""
        self._waiting.pop(member, None)

    def _make_room(self, address: str | None) -> bool:
        longest = next((member for member in self._waiting if address is None or member.address == address), None)
        if longest is None:
            return False
        self.leave(longest)
        longest.make_room()
        return True
