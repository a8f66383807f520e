"""The three ways in which a pipeline stands here, and what is done to each: the deck of kinds that a schedule deals from."""

from __future__ import annotations

from dataclasses import dataclass

BARRIERS = {
    "worker": ("after_read", "before_commit", "between_tables", "after_commit", "hand_over",
               "before_alert", "after_alert", "after_recovery"),
    "maintain": ("in_compaction", "after_compaction", "after_series"),
    "ingest": ("after_append",),
}
OFTEN = 3  # a kind that only one profile has lies in its deck so often
COMMON = (
    *(f"kill {barrier}" for barriers in BARRIERS.values() for barrier in barriers),
    "kill worker", "freeze worker", "worker leaves", "worker joins", "kill redis", "full redis",
    "clock of workers", "clock of APIs", "clock of housekeeping", "clock of Redis",
)  # fmt: skip
MANNERS = ("same body twice", "same body at once", "bodies out of order", "late bodies")  # what the traffic does all the time


@dataclass(frozen=True)
class Profile:
    """Where the lake lies, how Redis writes, and the kinds of faults that make sense there."""

    name: str
    fsync: str
    lake: str  # tmpfs, folder or s3
    own: tuple[str, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*COMMON, *self.own)

    def deck(self) -> tuple[str, ...]:
        return (*COMMON, *self.own * OFTEN)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("local-always", "always", "tmpfs", ("disk full", "lost reply")),
        Profile("local-everysec", "everysec", "folder", ("power cut",)),
        Profile("s3", "always", "s3", ("s3 errors", "s3 slow", "s3 cut")),
    )
}
