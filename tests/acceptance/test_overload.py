"""Five times what the worker takes, most of it by one device: less is accepted, nothing that was is lost. Figures are `make overload`'s."""

from __future__ import annotations

from benchmarks.overload import measure

SECONDS = 20


def test_what_is_accepted_under_overload_is_aggregated(tmp_path):
    found = measure(SECONDS, tmp_path, print)
    print({name: value for name, value in found.items() if name != "samples"})
    assert found["books"]["balanced"] and found["books"]["accepted"] >= found["accepted_events"]
    assert found["redis_memory_share_max"] < 0.9
    assert not any(status >= 500 for status in found["answers"]), found["answers"]
    assert "fair" in {sample["state"] for sample in found["samples"]}, "it was no overload"
    assert found["samples"][-1]["state"] == "open" and not found["samples"][-1]["backlog_events"]
    assert found["heavy_first_time"] < found["others_first_time"]
