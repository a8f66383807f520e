"""One class per next move of the caller; the message names the bad thing and the remedy."""

from __future__ import annotations


class PipelineError(Exception):
    """Base of every error that is ours. `str(error)` is one line that a user can act on."""


class Invalid(PipelineError):
    """The input is wrong. Fix it; a retry of the same input cannot help."""


class Outdated(Invalid):
    """The input is meant for a version that is not the newest. Read the newest, and decide again."""


class Unavailable(PipelineError):
    """A store does not answer, or is not ready. Back off with jitter and try again, bounded."""


class Restarted(Unavailable):
    """Redis was started again, or another one took over: open the partition again, then try again."""


class Fenced(PipelineError):
    """A newer worker holds this partition. Drop the batch and stop; a retry cannot help."""

    def __init__(self, partition: int, detail: str) -> None:
        super().__init__(f"partition {partition}: {detail}")
        self.partition = partition
