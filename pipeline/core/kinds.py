"""Metric name -> the width in bits at which a counter of that name wraps; 0 is a gauge.

Collectors seldom say what is a counter (gnmic calls everything a gauge, or everything a counter), so the name decides:
OpenConfig and IOS-XR leaves with or without their path, IF-MIB objects, and the `*_total` of the Prometheus world.
A name that the table does not know is a gauge: a gauge taken for a counter invents resets, the reverse loses only a rate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

import polars as pl

WIDTHS = (0, 32, 53, 64)
KINDS = {"gauge": 0, "counter": None, "counter32": 32, "counter53": 53, "counter64": 64}  # None: the width known by name, else 64

Patterns = tuple[tuple[str, int], ...]  # glob -> bits; the first that matches wins, before the table

# The last part of a path, words joined by "_". OpenConfig counters are all counter64; IOS-XR's are uint64.
_COUNTER64_LEAVES = frozenset(
    f"{direction}_{unit}"
    for direction in ("in", "out")
    for unit in [
        "octets",
        "pkts",
        "packets",
        "unicast_pkts",
        "broadcast_pkts",
        "multicast_pkts",
        "errors",
        "discards",
        "fcs_errors",
        "crc_errors",
        "drops",
        "mac_control_frames",
        "mac_pause_frames",
        "oversize_frames",
        "undersize_frames",
        "jabber_frames",
        "fragment_frames",
        "8021q_frames",
        "mac_errors_rx",
        "distribution_errors",
        "forwarded_pkts",
        "forwarded_octets",
        "discarded_pkts",
        "error_pkts",
    ]
) | frozenset(
    [
        "in_unknown_protos",
        "in_crc_errors",
        "in_block_errors",
        "carrier_transitions",
        "interface_transitions",
        "link_transitions",
        "resets",
        "established_transitions",
        "transmit_octets",
        "transmit_pkts",
        "dropped_octets",
        "dropped_pkts",
        "conforming_octets",
        "conforming_pkts",
        "exceeding_octets",
        "exceeding_pkts",
        "matched_octets",
        "matched_packets",
        "update_messages_received",
        "update_messages_sent",
        "notifications_received",
        "notifications_sent",
        "bytes_recv",
        "packets_recv",
        "bytes_sent",
        "packets_sent",
        "err_in",
        "err_out",
        "drop_in",
        "drop_out",
    ]
)

# IF-MIB, EtherLike-MIB and IP-MIB objects, without their letter case. Counter32 unless named HC.
_COUNTER32_OBJECTS = frozenset(
    [
        "ifinoctets",
        "ifinucastpkts",
        "ifinnucastpkts",
        "ifindiscards",
        "ifinerrors",
        "ifinunknownprotos",
        "ifoutoctets",
        "ifoutucastpkts",
        "ifoutnucastpkts",
        "ifoutdiscards",
        "ifouterrors",
        "ifinmulticastpkts",
        "ifinbroadcastpkts",
        "ifoutmulticastpkts",
        "ifoutbroadcastpkts",
        "dot3statsalignmenterrors",
        "dot3statsfcserrors",
        "dot3statssinglecollisionframes",
        "dot3statsmultiplecollisionframes",
        "dot3statslatecollisions",
        "dot3statsexcessivecollisions",
        "dot3statsinternalmactransmiterrors",
        "dot3statscarriersenseerrors",
        "dot3statsframetoolongs",
        "dot3statsinternalmacreceiveerrors",
        "dot3statssymbolerrors",
        "ipinreceives",
        "ipinhdrerrors",
        "ipindelivers",
        "ipoutrequests",
        "ipoutdiscards",
        "ipoutnoroutes",
        "tcpinsegs",
        "tcpoutsegs",
        "tcpretranssegs",
        "udpindatagrams",
        "udpoutdatagrams",
        "udpinerrors",
    ]
)
_COUNTER64_OBJECT = re.compile(r"ifhc(in|out)(octets|ucastpkts|multicastpkts|broadcastpkts)|(dot3|ip(system|if)?stats)hc\w+")

# Containers whose every leaf counts, except the leaves that plainly do not.
_COUNTER64_CONTAINERS = ("generic-counters", "fib-drops", "bfd-packets", "state/counters", "statistics/counters")
_NOT_COUNTERS = re.compile(
    r"(^|_)(seconds_since|last|max|min|avg|average|age|time|timestamp|load|utilization|temperature|discontinuity)(_|$)"
    r"|(^|_)(rate|pct|percent|percentage|ratio|per_second|per_sec|bps|pps|kbps|mbps|delta|util)$"
)
_LIST_KEYS = re.compile(r"\[[^\[\]]*\]")  # interface[name=eth0/1]; with "[" in it, many of them would cost as their number's square
_PREFIXES = ("interfaces_interface_state_counters_", "interface_state_counters_", "state_counters_", "counters_", "net_", "interface_")


def counter_bits(metric: str, patterns: Patterns = ()) -> int:
    """The width at which a counter of this name wraps, or 0: it is a gauge."""
    for pattern, bits in patterns:
        if fnmatchcase(metric, pattern):
            return bits
    path = _LIST_KEYS.sub("", metric).strip("/ ")
    container, _, leaf = path.replace("__", "/").rpartition("/")
    total = leaf.endswith("_total")
    words = leaf.rpartition(":")[2].lower().replace("-", "_").replace(".", "_").strip("_").removesuffix("_total")
    if _NOT_COUNTERS.search(words):
        return 0
    bits = _known(words)
    if bits or total:
        return bits or 64
    parents = f"/{container.lower()}"
    return 64 if container and any(parents.endswith("/" + name) for name in _COUNTER64_CONTAINERS) else 0


def _known(words: str) -> int:
    bare = next((words.removeprefix(prefix) for prefix in _PREFIXES if words.startswith(prefix)), words)
    return _width(words) or _width(bare)


def _width(words: str) -> int:
    if words in _COUNTER64_LEAVES:
        return 64
    squeezed = words.replace("_", "")
    if _COUNTER64_OBJECT.fullmatch(squeezed):
        return 64
    return 32 if squeezed in _COUNTER32_OBJECTS else 0


@lru_cache(maxsize=1 << 16)
def _cached(metric: str, patterns: Patterns) -> int:
    return counter_bits(metric, patterns)


def counter_bits_of(metrics: Sequence[str], patterns: Patterns = ()) -> pl.Series:
    """The bits of distinct metric names, as UInt8, in their order: name them once, then gather by code."""
    return pl.Series("counter_bits", [_cached(metric, patterns) for metric in metrics], dtype=pl.UInt8)
