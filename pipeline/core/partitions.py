"""Which partition a device belongs to: the same in every process and release.

All series of a device meet in one partition, in order: counter rates and device-level watermarks need that.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import polars as pl


@lru_cache(maxsize=1 << 17)
def device_hash(device: str) -> int:
    """A 64-bit hash of the device's UTF-8 name (BLAKE2b, 8 bytes, big endian)."""
    return int.from_bytes(blake2b(device.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def partition_of(device: str, partitions: int) -> int:
    """The partition, 0 to `partitions` - 1, that holds every series of `device`."""
    return device_hash(device) % partitions


def partitions_of(devices: pl.Series, partitions: int) -> pl.Series:
    """The partition of each of these names."""
    return pl.Series("partition", [partition_of(device, partitions) for device in devices.to_list()], dtype=pl.UInt32)
