"""What a power cut of the chaos runs takes from the file of Redis: the last second, and never the file's soundness."""

from __future__ import annotations

import time

from tests.chaos.powercut import AppendOnlyFile


def test_a_second_cut_soon_after_the_first_makes_the_file_no_longer(tmp_path):
    """By a size from before the first it would: zeros, which Redis takes for a broken file and does not start with."""
    folder = tmp_path / "appendonlydir"
    folder.mkdir()
    (folder / "appendonly.aof.manifest").write_text("file a.rdb seq 1 type b\nfile a.incr.aof seq 1 type i\n")
    path = folder / "a.incr.aof"
    path.write_bytes(b"x" * 1000)
    watched = AppendOnlyFile(tmp_path)
    watched.start()
    time.sleep(1.6)
    with path.open("ab") as file:
        file.write(b"y" * 500)
    time.sleep(0.6)
    assert (watched.cut(time.monotonic()), path.stat().st_size) == (500, 1000)  # what it was 1 to 1.5 s ago
    time.sleep(0.7)
    assert (watched.cut(time.monotonic()), path.stat().st_size) == (0, 1000)
    watched.stop()
