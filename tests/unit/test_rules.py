"""A rules document: valid as a whole, or one complaint that names line and field; then bounds per series."""

from __future__ import annotations

import textwrap
import time

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.rules import BOUNDS, PATTERNS_CHARS_MAX, Rules
from pipeline.errors import Invalid
from pipeline.stores.rulebook import DEFAULT, DOCUMENT_CHARS_MAX, read_document
from simulator.fleet import build_fleet


def complaint(text: str) -> str:
    with pytest.raises(Invalid) as refused:
        read_document(textwrap.dedent(text))
    return str(refused.value)


def rule(*lines: str) -> str:
    """A document of one rule that is valid but for `lines`, the first of which is its line 4."""
    return "\n".join(["rules:", "  - name: a", "    metric: m", *(f"    {line}" for line in lines)])


ANY = "upper: {warning: 1}"
KNOWN = "name, metric, on, statistic, for, description, overrides, device, interface, upper, lower, disabled"
STATISTICS = "mean, max, min, sum, count, last, stddev, p50, p95, p99, increase, rate"
NAME = "must be a name of letters, digits, _ . : -, at most 100 characters"
DURATION = "must be a duration such as 500ms, 30s, 5m or 1h, not"
PATTERN = "must be a pattern or a list of patterns, not"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # its shape
        ("just words", "line 1: document: must be a mapping, not text"),
        ("- a", "line 1: document: must be a mapping, not a list"),
        ("rule: []", "line 1: rule: is not known here; known are rules, admission"),
        ("rules: 5", "line 1: rules: must be a list, not 5"),
        ("rules:\n  a: b", "line 1: rules: must be a list, not a mapping"),
        ("rules:\n  - a", "line 2: rules[0]: must be a mapping, not text"),
        ("rules:\n  -", "line 2: rules[0]: must be a mapping, not nothing"),
        # the rule itself
        ("rules:\n  - metric: m", "line 2: rules[0].name: " + NAME),
        ("rules:\n  - name: a b", "line 2: rules[0].name: " + NAME),
        ("rules:\n  - name: 5", "line 2: rules[0].name: " + NAME),
        ("rules:\n  - name: " + "a" * 101, "line 2: rules[0].name: " + NAME),
        ("rules:\n  - name: a", "line 2: rules[0]: needs metric"),
        (rule(ANY, "treshold: 5"), f"line 5: rules[0].treshold: is not known here; known are {KNOWN}"),
        (rule(ANY, "description: 5"), "line 5: rules[0].description: must be text"),
        (rule("on: windows", ANY), "line 4: rules[0].on: must be event or window, not 'windows'"),
        (rule("on: true", ANY), "line 4: rules[0].on: must be event or window, not true/false"),
        (rule("statistic: mean", ANY), "line 4: rules[0].statistic: belongs to on: window"),
        (rule("on: window", "statistic: p9", ANY), f"line 5: rules[0].statistic: must be one of {STATISTICS}, not 'p9'"),
        (rule("disabled: maybe"), "line 4: rules[0].disabled: must be true or false"),
        # patterns
        (rule("device: 5", ANY), f"line 4: rules[0].device: {PATTERN} 5"),
        (rule("device: []", ANY), "line 4: rules[0].device: must not be empty"),
        (rule("interface: ['']", ANY), f"line 4: rules[0].interface: {PATTERN} text"),
        (rule("interface:", ANY), f"line 4: rules[0].interface: {PATTERN} nothing"),
        (rule("device: " + "?" * 4001, ANY), "line 4: rules[0].device: has 4001 characters of patterns; 4000 are allowed"),
        # bounds
        (rule(), "line 2: rules[0]: needs upper or lower"),
        (rule("upper:"), "line 4: rules[0].upper: must be a mapping, not nothing"),
        (rule("upper: 5"), "line 4: rules[0].upper: must be a mapping, not 5"),
        (rule("upper: {}"), "line 4: rules[0].upper: needs warning or critical"),
        (rule("upper: {clear: 1}"), "line 4: rules[0].upper: needs warning or critical"),
        (rule("upper:", "  warm: 1"), "line 5: rules[0].upper.warm: is not known here; known are warning, critical, clear"),
        (rule("upper:", "  warning: much"), "line 5: rules[0].upper.warning: must be a finite number, not text"),
        (rule("upper:", "  warning: .inf"), "line 5: rules[0].upper.warning: must be a finite number, not text"),
        (rule("upper:", "  warning: 1" + "0" * 400), "line 5: rules[0].upper.warning: must be a finite number, not inf"),
        (rule("upper:", "  warning: true"), "line 5: rules[0].upper.warning: must be a finite number, not true/false"),
        (rule("upper:", "  critical: 5", "  warning: 9"), "line 5: rules[0].upper.critical: must not be below warning"),
        (rule("lower:", "  critical: 9", "  warning: 5"), "line 5: rules[0].lower.critical: must not be above warning"),
        (rule("upper: {warning: 5, critical: 9,", "  clear: 6}"), "line 5: rules[0].upper.clear: must not be above warning"),
        (rule("upper: {critical: 9,", "  clear: 10}"), "line 5: rules[0].upper.clear: must not be above critical"),
        (rule("lower: {warning: 5,", "  clear: 4}"), "line 5: rules[0].lower.clear: must not be below warning"),
        # durations
        (rule("for: 5", ANY), f"line 4: rules[0].for: {DURATION} 5"),
        (rule("for: -5s", ANY), f"line 4: rules[0].for: {DURATION} '-5s'"),
        (rule("for: soon", ANY), f"line 4: rules[0].for: {DURATION} 'soon'"),
        (rule("for: false", ANY), f"line 4: rules[0].for: {DURATION} true/false"),
        (rule("for:", ANY), f"line 4: rules[0].for: {DURATION} nothing"),
        (rule("for: 99999999999999h", ANY), "line 4: rules[0].for: must be at most 720h"),
        # overrides
        (rule(ANY, "overrides: {}"), "line 5: rules[0].overrides: must be a list, not a mapping"),
        (rule("disabled: true", "overrides:", "  - device: a"), "line 6: rules[0].overrides[0]: needs upper or lower, or disabled: true"),
        (
            rule(ANY, "overrides:", "  - disabled: true", "  - {metric: b, upper: {warning: 1}}"),
            "line 7: rules[0].overrides[1].metric: is not known here; known are device, interface, upper, lower, disabled",
        ),
        # across rules
        (
            "rules:\n- {name: a, metric: m, upper: {warning: 1}}\n- {name: a, metric: n, upper: {warning: 1}}",
            "line 3: rules[1].name: 'a' is there twice",
        ),
        ("rules:\n" + "- {name: a, metric: m, upper: {warning: 1}}\n" * 1001, "line 1: rules: has 1001 rules; 1000 are allowed"),
        # YAML itself
        ("rules:\n\t- name: a", "line 2: not YAML: found character '\\t' that cannot start any token"),
        ("rules: [", "line 1: not YAML: expected the node content, but found '<stream end>'"),
        ("rules:\n- {name: a, metric: m, upper: {warning: 1}, overrides: [" + "{disabled: true}, " * 1000 + "]}",
         "line 1: rules: has 1001 rules and overrides; 1000 are allowed"),
        ("rules: [" + "a, " * 50_000 + "]", "line 1: the document holds more than any 1000 rules need"),
        (rule("on: " + "x" * 1000, ANY), f"line 4: rules[0].on: must be event or window, not '{'x' * 100}...'"),
        ("rules: []\nrules: []", "line 2: rules: is there twice"),
        (rule(ANY, "metric: n"), "line 5: metric: is there twice"),
        (rule("upper: &u {warning: 1}", "lower: *u"), "line 5: *u: aliases are not supported"),
        (rule("<<: {upper: {warning: 1}}"), f"line 4: rules[0].<<: is not known here; known are {KNOWN}"),
        (rule("upper: {warning: !!float '1'}"), "line 4: !!float: tags are not supported"),
        (rule('upper: {warning: !!int ""}'), "line 4: !!int: tags are not supported"),
        (rule("description: !!python/object:os.system x"), "line 4: !!python/object:os.system: tags are not supported"),
        (rule("5: x", ANY), "line 4: a key must be a word"),
        (rule("true: event", ANY), "line 4: a key must be a word"),
        ("rules:\n- ? [a]\n  : b", "line 2: a key must be a word"),
        ("rules: []\n---\nrules: []", "line 2: not YAML: but found another document"),
        ("rules: []\n# \0", "line 2: not YAML: the character #x0000 is not allowed"),
        ("rules:\n" + "- " * 30, "line 2: nested deeper than 20"),
        ("rules:\n- {name: a, metric: m, upper: {critical: 1},\n   lower: {warning: 5}}",
         "line 3: rules[0].lower: must not be above upper: every value would be beyond one of them"),
        ("#" * (DOCUMENT_CHARS_MAX + 1), "the document has 500001 characters; 500000 are allowed"),
    ],
)  # fmt: skip
def test_a_complaint_names_line_and_field(text, said):
    assert complaint(text) == said


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!?,#|>'\"%@` \n\t0159.e<~rules", max_size=60), st.booleans())
def test_any_text_is_a_document_or_a_complaint(text, inside):
    """Nothing that a person types ends in another error: it would end the worker that reads it."""
    document = "rules:\n- {name: a, metric: m, upper: {warning: " + text + "}}" if inside else text
    try:
        assert isinstance(read_document(document), Rules)
    except Invalid as refused:
        assert str(refused).startswith("line ") and "\n" not in str(refused)


@pytest.mark.parametrize(
    ("text", "number"),
    [("5", 5), ("-5.5", -5.5), ("010", 10), ("1e3", 1000), ("1E-3", 0.001), ("+.5", 0.5), ("5.", 5), ("0", 0), ("-0", 0)],
)
def test_numbers_are_read_as_people_write_them(text, number):
    """YAML 1.1 would read 010 as eight and 1e3 as text."""
    (read,) = read_document(rule(f"upper: {{warning: {text}}}")).rules
    assert read.scope.upper.warning == number


@pytest.mark.parametrize("text", ["1:30", "0x10", "1_000", "2026-01-31", "yes", "~"])
def test_what_only_looks_like_a_number_is_refused(text):
    """YAML 1.1 would take 1:30 for ninety."""
    assert "rules[0].upper.warning: must be a finite number, not" in complaint(rule(f"upper: {{warning: {text}}}"))


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n", "null-route", "2026-01-31x"])
def test_words_are_words(word):
    """`on:` is a key and `no` may name a device: only true and false are booleans."""
    text = rule(f"device: {word}", "on: window", ANY)
    (read,) = read_document(text).rules
    assert read.scope.device == (word,) and not read.event


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [("0", 0), ("500ms", 500_000), ("1.5s", 1_500_000), ("5m", 300_000_000), ("1h", 3_600_000_000), ("720h", 2_592_000_000_000)],
)
def test_durations(text, microseconds):
    (read,) = read_document(rule(f"for: {text}", ANY)).rules
    assert read.for_us == microseconds


@pytest.mark.parametrize("text", ["", "# nothing yet", "{}", "admission: {calm: 60s}"])
def test_a_document_that_names_no_rules_is_an_oversight(text):
    """Of a file that is not there curl makes an empty body."""
    assert complaint(text) == "line 1: document: has no list `rules`: write `rules: []` where no rule is meant"


@pytest.mark.parametrize("text", ["rules: []", '{"rules": []}', "---\nrules: []\n...\n", "﻿rules: []"])
def test_a_document_without_rules_is_valid(text):
    """To judge nothing is a choice. JSON is YAML."""
    assert read_document(text, 7) == Rules(7)


def series(*names: tuple[str, str, str]) -> pl.DataFrame:
    """Series 0, 1, ... of (device, interface, metric)."""
    columns = ["device", "interface", "metric"]
    frame = pl.DataFrame(names, schema=dict.fromkeys(columns, pl.Categorical), orient="row")
    return frame.with_columns(series=pl.int_range(frame.height, dtype=pl.UInt32))


def matched(metric: object, *names: str) -> list[str]:
    """Which of these metrics a rule on `metric` concerns."""
    rules = read_document(rule(ANY).replace("metric: m", f"metric: {metric}"))
    bounds = rules.resolve(series(*(("r1", "", name) for name in names)))
    return [names[n] for n in bounds["series"].to_list()]


def test_patterns():
    """* is any text and ? one character; everything else is itself, and the whole name must match."""
    assert matched("cpu", "cpu", "cpux", "xcpu", "CPU") == ["cpu"]
    assert matched("cpu*", "cpu", "cpu-load", "a cpu") == ["cpu", "cpu-load"]
    assert matched('"cp?"', "cpu", "cp", "cpuu") == ["cpu"]
    assert matched("[a, 'b*']", "a", "bb", "c") == ["a", "bb"]
    odd = 'a.b+c(d)[e]{f}^$|#&~ -<é>"'
    assert matched(f"'{odd}'", odd, 'axb+c(d)[e]{f}^$|#&~ -<é>"') == [odd]
    assert matched("'a*'", "a\nb", "a/b") == ["a\nb", "a/b"]


def test_a_pattern_without_a_slash_also_matches_the_last_part_of_a_path():
    """Collectors give the same leaf with and without its path."""
    path = "/interfaces/interface/state/oper-status"
    assert matched("oper-status", "oper-status", path, f"{path}-old", "state/x-oper-status") == ["oper-status", path]
    assert matched("state/oper-status", path, "state/oper-status") == ["state/oper-status"]
    assert matched("'*/state/oper-status'", path) == [path]


def test_device_and_interface_patterns_do_not_look_into_paths():
    """Interface names have slashes of their own: 0/1 is not the last part of xe-0/0/1."""
    rules = read_document(rule("interface: '0/1'", "device: 'core-*'", ANY))
    names = series(("core-1", "0/1", "m"), ("core-1", "xe-0/0/1", "m"), ("edge-1", "0/1", "m"), ("core-1", "", "m"))
    assert rules.resolve(names)["series"].to_list() == [0]


def test_the_longest_patterns_that_are_allowed_still_resolve():
    """A document that validates must not fail in a worker."""
    chars = PATTERNS_CHARS_MAX
    for patterns in (["?" * chars], ["?"] * chars, ["?*"] * (chars // 2), ["é"] * chars):
        assert matched(patterns, "m", "é", "?" * chars) != []


def test_a_hostile_document_costs_little():
    """Nesting is refused as it is read; a reader that followed it would be busy for hours."""
    began = time.monotonic()
    assert complaint("rules:\n" + "[" * 400_000).startswith("line 2: ")
    assert complaint("rules:\n" + "- " * 200_000) == "line 2: nested deeper than 20"
    assert time.monotonic() - began < 5


def bounds_of(text: str, *names: tuple[str, str, str]) -> dict[int, tuple]:
    """(upper warning, critical, clear, lower critical) of each series that the rule concerns."""
    found = read_document(text).resolve(series(*names))
    assert found.schema == BOUNDS
    rows = found.select("series", "upper_warning", "upper_critical", "upper_clear", "lower_critical").rows()
    return {number: tuple(bounds) for number, *bounds in rows}


def test_the_first_override_that_matches_replaces_the_bounds():
    """All of them: a side that it does not name is unbounded there. One that is disabled asks nothing."""
    text = rule(
        "upper: {warning: 80, critical: 95, clear: 70}",
        "lower: {critical: 1}",
        "overrides:",
        "  - {device: 'lab-*', disabled: true}",
        "  - {device: '*-1', upper: {critical: 99}}",
        "  - {interface: 'eth*', upper: {warning: 50}}",
    )
    names = [("lab-1", "eth0", "m"), ("core-1", "eth0", "m"), ("core-2", "eth0", "m"), ("core-2", "", "m"), ("core-2", "", "other")]
    assert bounds_of(text, *names) == {1: (None, 99, 99, None), 2: (50, None, 50, None), 3: (80, 95, 70, 1)}


def test_a_rule_may_be_off_but_for_its_overrides():
    text = rule("disabled: true", "overrides:", "  - {device: core-1, upper: {warning: 1}}")
    assert bounds_of(text, ("core-1", "", "m"), ("core-2", "", "m")) == {0: (1, None, 1, None)}


def test_the_clear_level_is_the_mildest_bound_unless_given():
    text = rule("upper: {warning: 5, critical: 9}", "lower: {critical: -9}")
    (read,) = read_document(text).rules
    assert (read.scope.upper.clear, read.scope.lower.clear) == (5, -9)


# Names of the standards that the shipped rules mean besides those of the simulated fleet.
STANDARD_NAMES = [
    "/components/component/cpu/utilization/state/instant",
    "cpmCPUTotal5minRev",
    "/components/component/state/temperature/instant",
    "/interfaces/interface/state/counters/in-errors",
    "/interfaces/interface/state/counters/out-discards",
    "/interfaces/interface/state/oper-status",
    "/network-instances/network-instance/protocols/protocol/bgp/neighbors/neighbor/state/session-state",
    "bgpPeerState",
    "ifInErrors",
    "ifOperStatus",
    "ifOutDiscards",
    "latency_ms",
    "interfaces_interface_state_counters_in_errors",
    "interfaces_interface_state_oper_status",
    "interface_ifOperStatus",
    "interface_ifInErrors",
    "/network-instances/network-instance/protocols/protocol/bgp/neighbors/neighbor/state/session-state",
]  # fmt: skip


def test_the_shipped_rules_are_valid_and_each_concerns_something():
    """A series of the simulated fleet, or a name of a standard."""
    rules = read_document(DEFAULT.read_text(encoding="utf-8"))
    fleet = build_fleet(1, 2, 20, 4).series.select("device", "interface", "metric").rows()
    concerned = set(rules.resolve(series(*fleet))["rule"])
    of_fleet = "cpu-high memory-high temperature-high link-down if-oper-down interface-errors interface-discards optical-power-low"
    assert concerned >= set(of_fleet.split())
    by_name = rules.resolve(series(*(("r1", "", name) for name in STANDARD_NAMES)))
    unheeded = [name for n, name in enumerate(STANDARD_NAMES) if n not in set(by_name["series"])]
    assert not unheeded
    assert {one.name for one in rules.rules} == concerned | set(by_name["rule"])
