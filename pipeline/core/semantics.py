"""What time means: the numbers that decide which window an event falls into, and when that window closes.

The first four are fixed when a lake is made. Recovery judges by them what was closed at a position, so that other numbers
over the same lake would lose or double events. By the bounds it judges nothing, so these may change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

NEVER = -(1 << 62)  # a moment before every moment: the event time of a device that has sent nothing


@dataclass(frozen=True)
class Semantics:
    """All times in microseconds."""

    width: int  # of a tumbling window
    disorder: int  # how far behind its device's newest event an event may be and still be on time
    idle_after: int  # log time after which a device that sends nothing is silent
    lateness_max: int  # older than this, behind its device's newest event, and an event becomes a dead letter
    open_rows_max: int  # open rows of one partition
    partition_series_max: int  # beyond as many known series of a partition, or of a device, new ones are refused
    device_series_max: int
    counter_gap: int  # samples of a counter further apart have a gap between them

    def without_series_limits(self) -> Semantics:
        """For events of which it is known already that they were taken."""
        return replace(self, partition_series_max=1 << 62, device_series_max=1 << 62)

    def __post_init__(self) -> None:
        if self.lateness_max < self.disorder + self.width:
            raise ValueError("lateness_max must be at least disorder + width: an event too late must have a closed window")
