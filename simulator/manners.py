"""Bad manners of devices and networks between: events late, repeated, out of order, malformed. Each counted under one label.

What befalls an event depends on (seed, series, time polled) only. A repeat or a malformed copy is sent besides its
original; a late or disordered event is the original, held back.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from simulator.hashing import unit

ON_TIME, LATE, REPEATED, DISORDERED, MALFORMED = range(5)
LABELS = ["on_time", "late", "repeated", "disordered", "malformed"]
FLAWS = ["device", "metric", "value", "text", "future"]  # of malformed events: the first three missing, no number, 10 years ahead
_LATE_MS = (40_000, 150_000)  # beyond any tolerated disorder and a 10 s window
_DISORDER_MS = (1_000, 12_000)  # within the tolerance of 20 s
_TEN_YEARS_MS = 315_576_000_000


@dataclass(frozen=True)
class Manners:
    """Share of events with each flaw, 0 to 1. All zero: a well-behaved fleet."""

    late: float = 0.002
    repeated: float = 0.002
    disordered: float = 0.01
    malformed: float = 0.001


GOOD = Manners(0, 0, 0, 0)


def misbehave(events: pl.DataFrame, seed: int, manners: Manners) -> pl.DataFrame:
    """Give each event its `due` time (ms) and `label`, and add copies. In order of `due`; `flaw` is null or one of FLAWS."""
    series, polled = events["series"].to_numpy(), events["polled"].to_numpy()
    dice, extent = unit(seed, 8, series, polled), unit(seed, 9, series, polled)
    edges = np.cumsum([manners.late, manners.repeated, manners.disordered, manners.malformed])
    fate = np.array([LATE, REPEATED, DISORDERED, MALFORMED, ON_TIME], dtype=np.int8)[np.searchsorted(edges, dice, "right")]
    held = np.zeros(len(dice))
    for label, (least, most) in ((LATE, _LATE_MS), (DISORDERED, _DISORDER_MS)):
        held = np.where(fate == label, least + (most - least) * extent, held)
    copied = (fate == REPEATED) | (fate == MALFORMED)
    label = pl.Series(np.where(copied, ON_TIME, fate)).cast(pl.Int8)
    originals = events.with_columns(due=pl.Series(polled + held.astype(np.int64)), label=label, flaw=pl.lit(None, pl.String))
    flaw = pl.Series(FLAWS).gather((extent[copied] * len(FLAWS)).astype(np.int64))
    copies = originals.filter(pl.Series(copied)).with_columns(label=pl.Series(fate[copied]), flaw=flaw)
    copies = copies.with_columns(flaw=pl.when(pl.col("label") == MALFORMED).then("flaw"))
    return pl.concat([originals, copies]).sort("due", maintain_order=True)


def spoil(events: pl.DataFrame) -> pl.DataFrame:
    """Do to each row what its `flaw` says: a null or nonsense where a rule of the API is."""
    flaw = pl.col("flaw")
    keep = {name: flaw.ne_missing(name) for name in ("device", "metric")}
    has_value = ~flaw.is_in(["value", "text"]).fill_null(False)
    return events.with_columns(
        *(pl.when(keep[name]).then(name) for name in keep),
        pl.when(has_value).then("integer"),
        pl.when(has_value).then("number"),
        text=pl.when(flaw == "text").then(pl.lit("n/a")),
        timestamp=pl.when(flaw == "future").then(pl.col("timestamp").dt.offset_by(f"{_TEN_YEARS_MS}ms")).otherwise("timestamp"),
    )
