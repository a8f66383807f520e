"""The one table of metric facts: which dialect of device reports what, and how it behaves.

`signal` says which function of signals.py makes the value; metrics of two dialects with one signal mean the same.
A device speaks one dialect: OpenConfig names, IF-MIB names, or IF-MIB names of an old box whose octet counters
have 32 bits and wrap for real.
"""

import polars as pl

OPENCONFIG, IF_MIB, IF_MIB_32 = "openconfig", "if-mib", "if-mib-32"

_INTERFACE = [
    # metric, signal, kind
    (OPENCONFIG, "in-octets", "in-octets", "counter64"),
    (OPENCONFIG, "out-octets", "out-octets", "counter64"),
    (OPENCONFIG, "in-errors", "errors", "counter64"),
    (OPENCONFIG, "out-discards", "discards", "counter64"),
    (OPENCONFIG, "oper-status", "status", "gauge"),  # 1 up, 0 down
    (OPENCONFIG, "input-power", "optics", "gauge"),  # dBm
    (IF_MIB, "ifHCInOctets", "in-octets", "counter64"),
    (IF_MIB, "ifHCOutOctets", "out-octets", "counter64"),
    (IF_MIB, "ifInErrors", "errors", "counter32"),
    (IF_MIB, "ifOutDiscards", "discards", "counter32"),
    (IF_MIB, "ifOperStatus", "status", "gauge"),  # 1 up, 2 down
    (IF_MIB_32, "ifInOctets", "in-octets", "counter32"),
    (IF_MIB_32, "ifOutOctets", "out-octets", "counter32"),
    (IF_MIB_32, "ifInErrors", "errors", "counter32"),
    (IF_MIB_32, "ifOutDiscards", "discards", "counter32"),
    (IF_MIB_32, "ifOperStatus", "status", "gauge"),
]
_DEVICE = [
    ("cpu-utilization", "cpu", "gauge"),  # percent
    ("memory-utilization", "memory", "gauge"),  # percent
    ("temperature", "temperature", "gauge"),  # degrees Celsius
]

METRICS = pl.DataFrame(
    [(dialect, "interface", metric, signal, kind) for dialect, metric, signal, kind in _INTERFACE]
    + [(dialect, "device", *facts) for dialect in (OPENCONFIG, IF_MIB, IF_MIB_32) for facts in _DEVICE],
    schema=["dialect", "level", "metric", "signal", "kind"],
    orient="row",
)

SIGNALS = ["in-octets", "out-octets", "errors", "discards", "status", "optics", "cpu", "memory", "temperature"]
COUNTERS = ["in-octets", "out-octets", "errors", "discards"]
STATUS_DOWN = {"oper-status": 0.0, "ifOperStatus": 2.0}
