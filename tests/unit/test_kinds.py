"""Which names count, and where they wrap."""

from __future__ import annotations

import time

import pytest

from pipeline.core.kinds import counter_bits, counter_bits_of


@pytest.mark.parametrize(
    ("metric", "bits"),
    [
        # OpenConfig, in each form that collectors give it
        ("in-octets", 64),
        ("in_octets", 64),
        ("/interfaces/interface/state/counters/in-octets", 64),
        ("/interfaces/interface[name=eth0/1]/state/counters/out-unicast-pkts", 64),
        ("openconfig-interfaces:/interfaces/interface/state/counters/openconfig-if:in-errors", 64),
        ("interfaces_interface_state_counters_in_octets", 64),
        ("_interfaces_interface_state_counters_in_octets", 64),
        ("carrier-transitions", 64),
        ("/interfaces/interface/state/counters/last-clear", 0),
        ("/interfaces/interface/state/oper-status", 0),
        # IF-MIB: 32 bits unless HC
        ("ifInOctets", 32),
        ("ifHCInOctets", 64),
        ("ifHCOutBroadcastPkts", 64),
        ("ifInErrors", 32),
        ("ifOutDiscards", 32),
        ("interface_ifInOctets", 32),
        ("interface-transitions", 64),
        ("IF-MIB::ifHCInOctets", 64),
        ("IF-MIB::ifInErrors", 32),
        ("ifOperStatus", 0),
        ("ifHighSpeed", 0),
        ("ifSpeed", 0),
        # IOS-XR: everything in generic-counters but the clocks
        ("generic-counters/bytes-received", 64),
        ("Cisco-IOS-XR-infra-statsd-oper:infra-statistics/interfaces/interface/latest/generic-counters/packets-sent", 64),
        ("generic-counters/resets", 64),
        ("generic-counters/seconds-since-packet-received", 0),
        ("generic-counters/seconds-since-last-clear-counters", 0),
        ("generic-counters-delta/bytes-received", 0),
        ("fib-drops/no-route-packets", 64),
        ("data-rate/input-data-rate", 0),
        ("data-rate/input-load", 0),
        ("bgp/global__established-neighbors-count-total", 0),
        ("bgp/vrf/update-messages-received", 64),
        # *_total
        ("http_requests_total", 64),
        ("ifHCInOctets_total", 64),
        ("ifInOctets_total", 32),
        # gauges that look like counters
        ("in_octets_rate", 0),
        ("in-octets-rate", 0),
        ("in_errors_pct", 0),
        ("cpu_pct", 0),
        ("latency_ms", 0),
        ("net_bytes_recv", 64),
        ("", 0),
        ("/", 0),
    ],
)
def test_the_name_tells_the_width(metric, bits):
    assert counter_bits(metric) == bits


def test_a_name_of_nothing_but_brackets_takes_no_longer_than_another():
    began = time.perf_counter()
    assert counter_bits("[" * 1_000_000) == 0  # took minutes
    assert time.perf_counter() - began < 5


def test_settings_come_before_the_table_and_the_first_pattern_wins():
    patterns = (("in-octets", 32), ("vendor/*", 53), ("vendor/special", 64), ("*_total", 0))
    names = ["in-octets", "vendor/special", "x_total", "out-octets"]
    assert [counter_bits(name, patterns) for name in names] == [32, 53, 0, 64]


def test_a_column_of_names_gives_a_column_of_bits():
    bits = counter_bits_of(["ifInOctets", "cpu_pct", "ifInOctets"])
    assert (bits.to_list(), str(bits.dtype)) == ([32, 0, 32], "UInt8")
    assert counter_bits_of([]).to_list() == []
