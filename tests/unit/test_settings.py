"""Settings: what is wrong is said per field, in one line, with its variable and its value."""

from __future__ import annotations

import pytest

from pipeline.errors import Invalid
from pipeline.settings import Settings, load, semantics_of
from pipeline.stores.connection import connect, redact


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No variable of the person who runs the tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PIPELINE_{name.upper()}", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)


def complaints(monkeypatch, **variables: str) -> list[str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Invalid) as refused:
        load()
    return str(refused.value).splitlines()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("PIPELINE_WINDOW_SECONDS", "-5", "must be at least 1"),
        ("PIPELINE_WINDOW_SECONDS", "301", "must be at most 300"),
        ("PIPELINE_WINDOW_SECONDS", "ten", "must be a whole number"),
        ("PIPELINE_WINDOW_SECONDS", "1.5", "must be a whole number"),
        ("PIPELINE_WINDOW_SECONDS", "", "must be a whole number"),
        ("PIPELINE_PARTITIONS", "0", "must be at least 1"),
        ("PIPELINE_DISORDER_SECONDS", "long", "must be a number"),
        ("PIPELINE_DISORDER_SECONDS", "3601", "must be at most 3600"),
        ("PIPELINE_DISORDER_SECONDS", "nan", "must be at most 3600"),
        ("PIPELINE_BACKOFF_MAX_SECONDS", "0", "must be more than 0"),
        ("PIPELINE_FUTURE_SKEW_MAX_SECONDS", "inf", "must be at most 315360000"),
        ("PIPELINE_API_PORT", "65536", "must be at most 65535"),
        ("PIPELINE_RETENTION_DAYS", "740000", "must be at most 36500"),
        ("PIPELINE_VACUUM_RETENTION_HOURS", "1" + "0" * 14, "must be at most 876000"),
        ("PIPELINE_COMPACT_INTERVAL_SECONDS", "1e-9", "must be at least 0.1"),
        ("PIPELINE_REDIS_TIMEOUT_SECONDS", "1e-9", "must be at least 0.01"),
        ("PIPELINE_IDEMPOTENCY_SECONDS", "1" + "0" * 20, "must be at most 315360000"),
        ("PIPELINE_EMBEDDED_MEMORY_MAX_MB", "99999999999999", "must be at most 16777216"),
        ("PIPELINE_STEP_ROWS_MAX", "9" * 19, "must be at most 1000000000"),
        ("PIPELINE_INGEST_QUEUE_BYTES_MAX", "9" * 19, "must be at most 100000000000"),
        ("PIPELINE_DATA_DIR", "", "must name a folder"),
        ("PIPELINE_EMBEDDED_FSYNC", "never", "must be 'always' or 'everysec'"),
        ("PIPELINE_COUNTER_METRICS", "many", 'must be a JSON object, such as {"vendor-*-count": 32}'),
        ("PIPELINE_COUNTER_METRICS", "[1]", "must be a JSON object"),
        ("PIPELINE_REDIS_TIMEOUT_SECONDS", "soon", "must be a number"),
    ],
)
def test_a_bad_value_is_said_in_one_line(monkeypatch, variable, value, said):
    (line,) = complaints(monkeypatch, **{variable: value})
    shown = "[1]" if value == "[1]" else value
    assert line == f"{variable}={shown}: {said}"


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)])
def test_every_number_has_a_bound(monkeypatch, name):
    """One beyond all sense is refused at the start, and not by an overflow at some later hour."""
    (line,) = complaints(monkeypatch, **{f"PIPELINE_{name.upper()}": "9" * 19})
    assert ": must be at most " in line


def test_a_value_that_would_break_its_line_is_escaped_and_cut(monkeypatch):
    (line,) = complaints(monkeypatch, PIPELINE_LEASE_MS="1\n2")
    assert line == r"PIPELINE_LEASE_MS='1\n2': must be a whole number"
    (line,) = complaints(monkeypatch, PIPELINE_LEASE_MS="x" * 1000)
    assert line == f"PIPELINE_LEASE_MS={'x' * 100}...: must be a whole number"


@pytest.mark.parametrize("json", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_no_parser_takes_is_no_json(monkeypatch, json):
    (line,) = complaints(monkeypatch, PIPELINE_COUNTER_METRICS=json)
    assert line.endswith('...: must be a JSON object, such as {"vendor-*-count": 32}')


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("PIPELINE_WINDOW_SECOND", "did you mean PIPELINE_WINDOW_SECONDS?"),
        ("PIPELINE_WINDOWS_SECONDS", "did you mean PIPELINE_WINDOW_SECONDS?"),
        ("pipeline_window", "did you mean PIPELINE_WINDOW_SECONDS?"),
        ("PIPELINE_QUX", "the README lists those that there are"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(monkeypatch, variable, hint):
    """It would be ignored in silence, and its writer would believe in it."""
    assert complaints(monkeypatch, **{variable: "5"}) == [f"{variable}: there is no such setting; {hint}"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PIPELINE_PARENT_PID", "1"), ("PIPELINE_IMAGE", "x"), ("PIPELINE_PORT", "tcp://10.0.0.1:80"),
        ("PIPELINE_SERVICE_HOST", "10.0.0.1"),
        ("PIPELINE_API_SERVICE_PORT_HTTP", "80"), ("PIPELINE_API_PORT_80_TCP_ADDR", "10.0.0.1"),
    ],
)  # fmt: skip
def test_variables_that_others_set_are_let_be(monkeypatch, variable, value):
    """The supervisor, docker compose, Kubernetes for services whose names begin like ours."""
    monkeypatch.setenv(variable, value)
    load()


def test_several_bad_fields_are_several_lines(monkeypatch):
    """All at once: nobody mends them one by one."""
    found = complaints(monkeypatch, PIPELINE_WINDOW_SECONDS="-5", PIPELINE_LEASE_MS="x", PIPELINE_API_PORT="-1")
    assert sorted(found) == [
        "PIPELINE_API_PORT=-1: must be at least 0",
        "PIPELINE_LEASE_MS=x: must be a whole number",
        "PIPELINE_WINDOW_SECONDS=-5: must be at least 1",
    ]


def test_counter_metrics_wrap_at_widths_that_exist(monkeypatch):
    monkeypatch.setenv("PIPELINE_COUNTER_METRICS", '{"vendor-*-count": 32, "level": 0}')
    assert load().counter_metrics == {"vendor-*-count": 32, "level": 0}
    (line,) = complaints(monkeypatch, PIPELINE_COUNTER_METRICS='{"vendor-*-count": 48}')
    assert line == "PIPELINE_COUNTER_METRICS[vendor-*-count]=48: must be 0, 32, 53 or 64"


def test_overrides_are_complained_of_by_the_same_names():
    """What an argument of the command line sets, too."""
    with pytest.raises(Invalid, match=r"^PIPELINE_WINDOW_SECONDS=0: must be at least 1$"):
        load(window_seconds=0)


@pytest.mark.parametrize(
    ("name", "value", "queue", "most"),
    [("group_events_max", 500_000, "EVENTS", 400_000), ("body_events_max", 500_000, "EVENTS", 400_000),
     ("body_bytes_max", 2**28 + 1, "BYTES", 2**28)],
)  # fmt: skip
def test_no_body_and_no_group_is_larger_than_the_queue(name, value, queue, most):
    """It could never be admitted."""
    with pytest.raises(Invalid) as refused:
        load(**{name: value})
    assert str(refused.value) == f"PIPELINE_{name.upper()}={value}: must be at most PIPELINE_INGEST_QUEUE_{queue}_MAX, which is {most}"
    assert load(body_bytes_max=1000, ingest_queue_bytes_max=1000).ingest_queue_bytes_max == 1000


def test_an_event_that_is_too_late_has_a_closed_window():
    """Else a row could be set aside while its window is open."""
    with pytest.raises(Invalid) as refused:
        load(lateness_max_seconds=10)
    least = "PIPELINE_WINDOW_SECONDS + PIPELINE_DISORDER_SECONDS, which is 80"
    assert str(refused.value) == f"PIPELINE_LATENESS_MAX_SECONDS=10: must be at least {least}"
    assert semantics_of(load(window_seconds=2, disorder_seconds=0.5)).disorder == 500_000
    semantics_of(load(window_seconds=60, disorder_seconds=20.1, lateness_max_seconds=80.1))


def test_the_variable_is_the_field(monkeypatch):
    """PIPELINE_X for field x; for the Redis REDIS_URL too, as others name it, and ours before theirs."""
    monkeypatch.setenv("PIPELINE_WINDOW_SECONDS", "30")
    monkeypatch.setenv("REDIS_URL", "redis://theirs:6379")
    assert (load().window_seconds, load().redis_url) == (30, "redis://theirs:6379")
    monkeypatch.setenv("PIPELINE_REDIS_URL", "redis://ours:6379")
    assert load().redis_url == "redis://ours:6379"
    assert load(redis_url="redis://told:1").redis_url == "redis://told:1"


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if field.default is None])
def test_an_empty_variable_of_what_may_be_unset_is_unset(monkeypatch, name):
    """A path of no letters would be the folder that a command runs in, and an empty URL would hide one that is set by another name."""
    monkeypatch.setenv(f"PIPELINE_{name.upper()}", "")
    assert getattr(load(), name) is None and name not in load().model_fields_set
    monkeypatch.setenv("REDIS_URL", "")
    assert load().redis_url is None
    monkeypatch.setenv("REDIS_URL", "redis://theirs:6379")
    assert load().redis_url == "redis://theirs:6379"


def test_the_lake_lies_in_the_data_folder_unless_told(monkeypatch):
    monkeypatch.setenv("PIPELINE_DATA_DIR", "here")
    assert load().lake == "here/lake"
    monkeypatch.setenv("PIPELINE_LAKE_URL", "s3://bucket/lake")
    assert load().lake == "s3://bucket/lake"


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3cret@host:port",
        "redis://:s3cr/s3cret@host:6379",
        "http://:s3cret@host",
        "//u:p@s3cret@host",
        "redis://:a@s3cret@h:x",
        "h:1?password=s3cret",
    ],
)
def test_a_password_is_never_shown(url):
    """Also where the URL is wrong: what the library says of it may quote a part of the password."""
    with pytest.raises(Invalid) as refused:
        connect(url, 1)
    said = str(refused.value)
    assert "s3cret" not in said and "s3cr/" not in said and "'s3cr'" not in said
    assert said.startswith("PIPELINE_REDIS_URL=") and "must be like redis://USER:PASSWORD@HOST:6379/0" in said


def test_a_password_is_cut_out_of_texts():
    text = "Error 111 connecting to rediss://user:s3cret@host:6379/0. Connection refused."
    assert redact(text) == "Error 111 connecting to rediss://***@host:6379/0. Connection refused."
    assert redact("to redis://host?db=1&password=s3cret&x=1, refused") == "to redis://host?db=1&password=***&x=1, refused"
    assert redact("Timeout connecting to host:6379") == "Timeout connecting to host:6379"


@pytest.mark.parametrize("url", ["", "localhost:6379", "redis://host:port", "tcp://host"])
def test_a_bad_url_is_said_in_one_line(url):
    """No traceback, and how it must be."""
    with pytest.raises(Invalid, match=r"^PIPELINE_REDIS_URL=.*: must be like redis://"):
        connect(url, 1)


@pytest.mark.parametrize(
    ("host", "auth", "required"),
    [("127.0.0.1", "auto", False), ("127.8.8.8", "auto", False), ("::1", "auto", False), ("localhost", "auto", False),
     ("0.0.0.0", "auto", True), ("::", "auto", True), ("192.0.2.1", "auto", True), ("collector", "auto", True), ("", "auto", True),
     ("127.0.0.1", "required", True), ("0.0.0.0", "off", False)],
)  # fmt: skip
def test_a_token_is_required_as_soon_as_others_may_reach_the_api(host, auth, required):
    assert Settings(api_host=host, auth=auth).auth_required == required


def test_a_token_is_not_shown():
    assert "tp_secret" not in repr(Settings(token="tp_secret"))
