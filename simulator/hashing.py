"""Random numbers by counting: the same key gives the same number, in any order, in any process.

A generator with a state would make a value depend on how many were drawn before it; here the value at any
time can be computed without the values before it.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Scramble uint64s one to one (Steele, Lea, Flood 2014)."""
    x = x + _GAMMA
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix(*parts: int | np.ndarray) -> np.ndarray:
    """Hash integers (arrays broadcast) to uint64. Negative ones count modulo 2^64."""
    h = np.zeros(1, dtype=np.uint64)
    for part in parts:
        if isinstance(part, int):
            part = np.uint64(part % 2**64)
        h = splitmix64(h ^ np.asarray(part).astype(np.uint64))
    return h


def unit(*parts: int | np.ndarray) -> np.ndarray:
    """Hash integers to floats in [0, 1)."""
    return (mix(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def smooth(keys: np.ndarray, t_ms: np.ndarray, width_ms: int) -> np.ndarray:
    """Noise in [0, 1) per key that is continuous in time: hashes every `width_ms`, straight lines between them."""
    cell = t_ms // width_ms
    part = (t_ms - cell * width_ms) / width_ms
    return unit(keys, width_ms, cell) * (1 - part) + unit(keys, width_ms, cell + 1) * part
