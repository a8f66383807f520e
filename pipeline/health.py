"""What a role says of itself: whether its main loop moves, and what keeps it from its work."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.settings import Settings

COMMIT_PATIENCE_SECONDS = 10.0  # a lake that is away for less delays rows, and costs nobody anything


class Health:
    """Kept by the role's threads, read by whoever asks. A role that has not begun yet is not ready."""

    def __init__(self, stalled_seconds_max: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stalled_max = stalled_seconds_max
        self._clock = clock
        self._moved = clock()
        self._failing: dict[str, tuple[float, float, str]] = {"start": (self._moved, 0.0, "it has not begun yet")}

    def moved(self) -> None:
        """The main loop gets on."""
        self._moved = self._clock()

    @property
    def standing_seconds(self) -> float:
        """For how long the main loop has not moved."""
        return self._clock() - self._moved

    def failed(self, what: str, why: object, patience_seconds: float = 0.0) -> None:
        """Some part of the work fails: from now on, unless it does already. It counts when it has lasted for the patience."""
        since, _, _ = self._failing.get(what, (self._clock(), 0.0, ""))
        self._failing[what] = (since, patience_seconds, str(why))

    def worked(self, what: str) -> None:
        """That part works."""
        self._failing.pop(what, None)

    def at_rest(self) -> None:
        """It stands by: what failed was another's work."""
        self._failing.clear()

    def why_not_alive(self) -> str | None:
        """Why the process is of no use any more; None: it lives."""
        standing = self.standing_seconds
        return f"the main loop has not moved for {standing:.0f} s" if standing > self._stalled_max else None

    def why_not_ready(self) -> str | None:
        """What keeps it from its work now; None: nothing."""
        if reason := self.why_not_alive():
            return reason
        for what, (since, patience, why) in reversed(list(self._failing.items())):  # what kept it from beginning before that it has not
            if (lasted := self._clock() - since) >= patience:
                return why if what == "start" else f"{what} fails for {lasted:.0f} s: {why}"
        return None


def health_of(settings: Settings) -> Health:
    """The health of a role whose main loop must move as often as a worker's."""
    return Health(settings.progress_timeout_seconds)
