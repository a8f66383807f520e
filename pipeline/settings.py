"""Settings: what is fixed at the start of a process, read from the environment. Rules are data: they live in Redis.

Every bound, wait and retry of the system has its field here, with the unit last in its name.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.core.semantics import Semantics
from pipeline.errors import Invalid

PREFIX = "PIPELINE_"
SECOND_US = 1_000_000

# Beyond these, something below us overflows or wraps: a time, an allocation, a number of Redis'.
Positive = Annotated[int, Field(ge=1, le=10**9)]
Bytes = Annotated[int, Field(ge=1, le=10**11)]
LONGEST_SECONDS = 10 * 365 * 86_400
LONGEST_DAYS = 36_500
Seconds = Annotated[float, Field(gt=0, le=LONGEST_SECONDS)]
Interval = Annotated[float, Field(ge=0.1, le=LONGEST_SECONDS)]  # of a job that comes again and again


class Settings(BaseSettings):
    """All settings of all roles. A field `x` is the variable `PIPELINE_X`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, populate_by_name=True)

    # Where things are
    redis_url: Annotated[str | None, Field(validation_alias=AliasChoices("PIPELINE_REDIS_URL", "REDIS_URL"))] = None
    data_dir: Path = Path("data")
    lake_url: str | None = None  # default: DATA_DIR/lake; s3://, gs:// and az:// work too
    partitions: Annotated[int, Field(ge=1, le=4096)] = 16

    # Windows: these four and `partitions` are written into the lake when it is made, and cannot change after
    window_seconds: Annotated[int, Field(ge=1, le=300)] = 60
    disorder_seconds: Annotated[float, Field(ge=0, le=3600)] = 20
    idle_after_seconds: Seconds = 60
    lateness_max_seconds: Seconds = 86_400
    tick_interval_seconds: Seconds = 5
    counter_gap_seconds: Seconds = 300
    open_rows_max: Positive = 2_000_000  # per partition
    # Series that a worker knows, for good; new ones beyond become dead letters
    partition_series_max: Positive = 100_000
    device_series_max: Positive = 20_000  # so that one device that invents series leaves room to others

    # Worker
    lease_ms: Annotated[int, Field(ge=300, le=600_000)] = 3000
    poll_interval_ms: Annotated[int, Field(ge=1, le=600_000)] = 250
    step_rows_max: Positive = 400_000
    read_entries_max: Positive = 256  # entries of one partition in one read
    commit_interval_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 1000
    commit_retries_max: Positive = 100
    uncommitted_rows_max: Positive = 2_000_000
    rules_reload_seconds: Seconds = 2
    progress_timeout_seconds: Seconds = 60  # a main loop that stands still for longer loses its leases
    shutdown_timeout_seconds: Seconds = 30

    # Ingest API
    api_host: str = "127.0.0.1"
    api_port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    request_seconds_max: Seconds = 30  # within which a request has to have arrived whole
    body_bytes_max: Bytes = 8 * 1024**2
    body_decompressed_bytes_max: Bytes = 64 * 1024**2
    body_events_max: Positive = 50_000
    name_chars_max: Positive = 256
    tags_max: Positive = 16
    dead_letter_chars_max: Positive = 2048
    future_skew_max_seconds: Annotated[float, Field(ge=0, le=LONGEST_SECONDS)] = 60
    group_linger_ms: Annotated[int, Field(ge=0, le=1000)] = 5
    group_events_max: Positive = 50_000
    ingest_queue_events_max: Positive = 400_000
    ingest_queue_bytes_max: Bytes = 256 * 1024**2  # of bodies being read or decoded
    ingest_stop_seconds: Seconds = 30  # how long a stop waits for the requests that were accepted
    idempotency_seconds: Annotated[int, Field(ge=1, le=LONGEST_SECONDS)] = 300
    # further metric name patterns -> the bits at which their counters wrap (0: gauge); in the environment as JSON
    counter_metrics: Annotated[dict[str, Literal[0, 32, 53, 64]], NoDecode] = Field(default_factory=dict)

    # The lock on its door
    auth: Literal["auto", "required", "off"] = "auto"  # auto: required unless only this machine can reach the API
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    connections_max: Annotated[int, Field(ge=8, le=1_000_000)] = 2048
    connections_per_client_max: Positive = 1024  # of one address, which may be a balancer's
    keep_alive_seconds: Seconds = 5  # how long a connection may be idle between two requests
    token: SecretStr | None = None  # of the commands that are clients of an API: simulate, replay, deadletters retry

    # Redis
    embedded_memory_max_mb: Annotated[int, Field(ge=1, le=1 << 24)] = 1024  # of the server that `telemetry up` starts when no URL is set
    embedded_fsync: Literal["always", "everysec"] = "everysec"
    redis_timeout_seconds: Annotated[float, Field(ge=0.01, le=3600)] = 5
    redis_replicas_min: Annotated[int, Field(ge=0, le=5)] = 0  # that have an event before it is answered, and before it is counted
    backoff_max_seconds: Seconds = 5

    # Maintenance and the lake
    compact_interval_seconds: Interval = 60
    compact_files_min: Positive = 8
    vacuum_retention_hours: Annotated[int, Field(ge=1, le=24 * LONGEST_DAYS)] = 1
    retention_days: Annotated[int, Field(ge=1, le=LONGEST_DAYS)] = 400

    # Notifier
    notify_retries_max: Positive = 5
    notify_timeout_seconds: Annotated[float, Field(gt=0, le=15)] = 5  # of one call
    alertmanager_url: str | None = None  # several of a cluster: with commas
    webhook_url: str | None = None

    # Seeing inside
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int | None, Field(ge=0, le=65_535)] = None  # of worker, notifier, maintenance; none: no server
    books_interval_seconds: Interval = 60
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, env_settings: EnvSettingsSource, **_: object
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """An empty variable of what may be unset is unset: so a compose file passes on what nobody has set."""
        optional = {f"{PREFIX}{name}".lower() for name, field in cls.model_fields.items() if field.default is None} | {"redis_url"}
        found = env_settings.env_vars
        env_settings.env_vars = {name: value for name, value in found.items() if value or name.lower() not in optional}
        return init_settings, env_settings

    @field_validator("data_dir", "lake_url", mode="before")
    @classmethod
    def _a_place(cls, value: object) -> object:
        if value == "":  # as a path it is the folder that a command happens to run in
            raise ValueError("must name a folder")
        if not is_utf8(str(value)):  # neither Delta nor DuckDB can name it
            raise ValueError("must be UTF-8 text")
        return value

    @field_validator("counter_metrics", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            raise ValueError('must be a JSON object, such as {"vendor-*-count": 32}') from None

    @model_validator(mode="after")
    def _relations(self) -> Self:
        events, size = "ingest_queue_events_max", "ingest_queue_bytes_max"
        for name, queue in (("group_events_max", events), ("body_events_max", events), ("body_bytes_max", size)):
            if (value := getattr(self, name)) > (most := getattr(self, queue)):
                raise ValueError(f"{PREFIX}{name.upper()}={value}: must be at most {PREFIX}{queue.upper()}, which is {most}")
        for name, other in (("TLS_CERT_FILE", "TLS_KEY_FILE"), ("TLS_KEY_FILE", "TLS_CERT_FILE")):
            if getattr(self, name.lower()) is not None and getattr(self, other.lower()) is None:
                raise ValueError(f"{PREFIX}{name} is set and {PREFIX}{other} is not: TLS needs both")
        least = self.window_seconds + self.disorder_seconds
        if round(self.lateness_max_seconds * SECOND_US) < round(least * SECOND_US):
            sum_of = f"{PREFIX}WINDOW_SECONDS + {PREFIX}DISORDER_SECONDS, which is {least:.12g}"
            raise ValueError(f"{PREFIX}LATENESS_MAX_SECONDS={self.lateness_max_seconds:.12g}: must be at least {sum_of}")
        return self

    @property
    def lake(self) -> str:
        """The folder or URL under which the tables lie."""
        return self.lake_url or str(self.data_dir / "lake")

    @property
    def exposed(self) -> bool:
        """Whether others than this machine may reach the API."""
        return not _is_loopback(self.api_host)

    @property
    def auth_required(self) -> bool:
        """Whether the API asks for a token."""
        return self.auth == "required" or (self.auth == "auto" and self.exposed)


def is_utf8(text: str) -> bool:
    """Whether text that came from the system is text, and no bytes that Python could not read as such."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # any other name may mean any address


def backoff_seconds(failures: int, most_seconds: float) -> float:
    """How long to wait after so many failures in a row: doubling from a tenth of a second, bounded, with jitter."""
    return random.uniform(0.5, 1) * min(most_seconds, 0.1 * 2 ** min(failures, 10))


def semantics_of(settings: Settings) -> Semantics:
    """What time means under these settings."""
    return Semantics(
        width=settings.window_seconds * SECOND_US,
        disorder=round(settings.disorder_seconds * SECOND_US),
        idle_after=round(settings.idle_after_seconds * SECOND_US),
        lateness_max=round(settings.lateness_max_seconds * SECOND_US),
        open_rows_max=settings.open_rows_max,
        partition_series_max=settings.partition_series_max,
        device_series_max=settings.device_series_max,
        counter_gap=round(settings.counter_gap_seconds * SECOND_US),
    )


def load(**overrides: object) -> Settings:
    """The settings of this environment. Invalid: one line per bad field, `PIPELINE_X=value: what is wrong`."""
    lines = _unknown(os.environ)
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        lines += [_line(problem) for problem in error.errors()]
    if lines:
        raise Invalid("\n".join(lines))
    return settings


# Variables with our prefix that others set: docker compose, the supervisor, and Kubernetes for a service called `pipeline`.
_FOREIGN = re.compile(r"IMAGE|PARENT_PID|(?:\w+_)?SERVICE_(?:HOST|PORT)\w*|(?:\w+_)?PORT_\d+_(?:TCP|UDP)\w*")
_LINK = re.compile(r"(?:tcp|udp)://")


def _unknown(environment: Mapping[str, str]) -> list[str]:
    """A line for each variable that looks like a setting and is none: most likely it is mistyped, and would change nothing."""
    known = {name.upper() for name in Settings.model_fields}
    lines = []
    for name in sorted(environment):
        prefix, told = name[: len(PREFIX)].upper(), name[len(PREFIX) :].upper()
        if prefix == PREFIX and told not in known and not _FOREIGN.fullmatch(told) and not _LINK.match(environment[name]):
            near = difflib.get_close_matches(told, known, 1)
            hint = f"did you mean {PREFIX}{near[0]}?" if near else "the README lists those that there are"
            lines.append(f"{_shown(name)}: there is no such setting; {hint}")
    return lines


SHOWN_CHARS_MAX = 100


def _shown(value: object) -> str:
    """A value as part of a line: what breaks it is escaped, what is too long is cut."""
    text = str(value)
    text = text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}..."
    return text if text.isprintable() else ascii(text)


_COMPLAINTS = {
    "greater_than_equal": "must be at least {ge:.12g}",
    "greater_than": "must be more than {gt:.12g}",
    "less_than_equal": "must be at most {le:.12g}",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "literal_error": "must be {expected}",
    "dict_type": "must be a JSON object",
}


def _line(problem: dict) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    complaint = _COMPLAINTS.get(problem["type"])
    message = complaint.format(**problem.get("ctx", {})) if complaint else problem["msg"].removeprefix("Value error, ")
    if not name:
        return message  # of a relation, which names its fields itself
    variable = name.upper() if name.upper().startswith((PREFIX, "REDIS_URL")) else PREFIX + name.upper()
    place = "".join(f"[{_shown(part)}]" for part in problem["loc"][1:])
    shown = "***" if "url" in name.lower() or name.lower().endswith("token") else _shown(problem["input"])
    return f"{variable}{place}={shown}: {message[0].lower()}{message[1:]}"
