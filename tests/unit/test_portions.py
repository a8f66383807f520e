"""A step is bounded by its rows, whatever the entries are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.stores.entries import portions
from pipeline.stores.streams import Entry


@given(st.dictionaries(st.integers(0, 3), st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=6)), st.integers(1, 60))
def test_portions_are_bounded_and_lose_nothing(sizes, rows_max):
    """In the order of each stream; more than the bound only where a single entry holds more, be it of events or of dead letters."""
    entries = {
        partition: [Entry(number, event_count=events, dead_letter_count=letters) for number, (events, letters) in enumerate(found)]
        for partition, found in sizes.items()
    }
    cut = list(portions(entries, rows_max))
    for portion in cut:
        rows = [entry.event_count + entry.dead_letter_count for found in portion.values() for entry in found]
        assert sum(rows) <= rows_max or len(rows) == 1
    joined = {partition: [entry for portion in cut for entry in portion.get(partition, [])] for partition in entries}
    assert joined == entries
