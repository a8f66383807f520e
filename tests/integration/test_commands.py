"""The questions that a person asks on the command line: answers, exit codes, and errors in one line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipeline import statusview
from pipeline.__main__ import _parser, main
from pipeline.errors import Unavailable
from pipeline.settings import semantics_of
from pipeline.stores import connection as keys
from pipeline.stores.alertlog import NAMED, AlertLog
from pipeline.stores.lake import Lake
from pipeline.stores.leases import Leases
from pipeline.stores.rulebook import DEFAULT, Rulebook
from pipeline.supervisor import Supervisor
from tests.harness import ALLOCATOR, Stack, free_port
from tests.unit.test_tidy import commands

RULES = "rules:\n  - name: hot\n    metric: temperature\n    upper: {warning: 70, critical: 80}\n"
BAD_RULES = RULES.replace("warning: 70", "warning: high")


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with Stack(tmp_path_factory.mktemp("stack"), fsync="everysec") as running:
        yield running


@pytest.fixture
def telemetry(stack, tmp_path, monkeypatch, capsys):
    """Run a command in this process, with an empty Redis and no lake yet: (exit code, stdout, stderr)."""
    stack.client.flushall()
    for name in [name for name in os.environ if name.startswith("PIPELINE_") or name == "REDIS_URL"]:
        monkeypatch.delenv(name)
    for name, value in stack.environment.items():
        if name.startswith("PIPELINE_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse's way
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def refused(answer: tuple[int, str, str], text: str) -> None:
    """Exit code 2 and one line on stderr that ends all."""
    code, out, err = answer
    assert (code, out) == (2, ""), err
    assert err.startswith("telemetry: ") and err.count("\n") == 1 and text in err


def made(stack, tmp_path) -> Lake:
    lake = Lake(str(tmp_path / "data" / "lake"))
    lake.create(stack.semantics, stack.settings.partitions)
    return lake


@pytest.mark.parametrize("command", sorted({part for whole in commands(_parser()) for part in (whole, whole.split()[0])} | {""}))
def test_every_command_explains_itself(command, capsys):
    """--help of each, and of each group of them."""
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    said = capsys.readouterr()
    assert ended.value.code == 0 and said.err == ""
    assert said.out.startswith(f"usage: telemetry {command}".rstrip()) and "--help" in said.out


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["rules"], ["up", "--window", "soon"], ["up", "--without", "everything"], ["rules", "show", "x"]]
)
def test_a_wrong_call_is_exit_code_2(telemetry, arguments):
    code, out, err = telemetry(*arguments)
    assert (code, out) == (2, "") and err.startswith("usage: telemetry") and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--window", "1h"], "PIPELINE_WINDOW_SECONDS=3600: must be at most 300"),
        (["--window", "1.5s"], "--window 1.5s: must be a whole number of seconds, at least 1"),
        (["--port", "70000"], "PIPELINE_API_PORT=70000: must be at most 65535"),
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--simulate", "--seed '7"], "--simulate --seed '7: No closing quotation"),
    ],
)
def test_up_refuses_what_cannot_be_before_it_starts_anything(telemetry, tmp_path, arguments, text):
    refused(telemetry("up", *arguments), text)
    assert not (tmp_path / "data").exists()


def test_a_window_on_the_command_line_is_compared_with_the_lake_and_nothing_beside_it(telemetry, monkeypatch):
    """A new lake gets a patience that goes with its window; one that is there keeps its own. Ticks are nobody's past."""
    asked = []

    class Made(Supervisor):
        def run(self) -> int:
            Lake(self._settings.lake).create(semantics_of(self._settings), self._settings.partitions)
            asked.append((self._settings.window_seconds, self._settings.disorder_seconds, self._settings.tick_interval_seconds))
            return 0

    monkeypatch.setattr("pipeline.supervisor.Supervisor", Made)
    for name in ("WINDOW", "DISORDER", "IDLE_AFTER"):
        monkeypatch.delenv(f"PIPELINE_{name}_SECONDS")
    for arguments in ([], ["--window", "60s"], ["--data", "other", "--window", "10s"], ["--data", "other", "--window", "10s"]):
        assert telemetry("up", *arguments)[0] == 0
    assert asked == [(60, 20, 5), (60, 20, 12), (10, 5, 2), (10, 5, 2)]
    refused(telemetry("up", "--window", "10s"), "was made with PIPELINE_WINDOW_SECONDS=60, not 10")


@pytest.mark.parametrize(
    "arguments", [["sql", "SELECT '\udcff'"], ["tokens", "revoke", "\udcff"], ["deadletters", "show", "--device", "\udcff"],
                  ["check", "--data", "\udcff"], ["rules", "diff", "1", "2", "--data=\udcff"]],
)  # fmt: skip
def test_an_argument_that_is_no_text_is_refused(telemetry, arguments):
    """As a terminal in another encoding sends it."""
    refused(telemetry(*arguments), r"\udcff")


def test_a_folder_of_the_environment_that_is_no_text_is_refused(telemetry, monkeypatch):
    monkeypatch.setenv("PIPELINE_DATA_DIR", "\udcff")
    refused(telemetry("check"), r"PIPELINE_DATA_DIR='\udcff': must be UTF-8 text")


def test_it_is_a_program_too(stack, tmp_path):
    """As a process: the same answer, the same exit code."""
    done = stack.telemetry("rules", "show", "99")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("telemetry: there is no version 99")
    module = subprocess.run([sys.executable, "-m", "pipeline", "--help"], capture_output=True, text=True, cwd=tmp_path, check=True)
    script = subprocess.run(
        [f"{os.path.dirname(sys.executable)}/telemetry", "--help"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert module.stdout == script.stdout


# check


def test_check_says_what_is_there(telemetry, stack, tmp_path):
    """Without starting or making anything."""
    place = tmp_path / "data" / "lake"
    code, out, err = telemetry("check")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "settings: valid",
        f"api: on 127.0.0.1:{stack.port} no TLS, no token needed",
        "alerts: to console",
        f"redis: usable ({stack.settings.redis_url})",
        "tokens: none",
        f"lake: none yet at {place}; the first worker makes it",
    ]
    assert not place.exists()
    made(stack, tmp_path)
    assert telemetry("check")[1].splitlines()[-1] == f"lake: readable ({place})"


def test_check_warns_of_a_redis_that_forgets_and_refuses_one_that_evicts(telemetry, stack):
    client = stack.client
    client.config_set("appendonly", "no")
    client.config_set("maxmemory-policy", "noeviction")
    try:
        code, out, _ = telemetry("check")
        assert code == 0 and "redis: Redis has no append-only file: what it holds is lost when it stops" in out
        client.config_set("maxmemory-policy", "allkeys-lru")
        code, out, err = telemetry("check")
        assert (code, out.splitlines()[:1]) == (2, ["settings: valid"]) and "usable" not in out
        assert "may evict events (maxmemory-policy allkeys-lru): run `redis-cli config set maxmemory-policy noeviction`" in err
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")


def test_check_names_every_bad_setting(telemetry, monkeypatch):
    monkeypatch.setenv("PIPELINE_WINDOW_SECONDS", "-5")
    monkeypatch.setenv("PIPELINE_LEASE_MS", "soon")
    code, out, err = telemetry("check")
    assert (code, out) == (2, "")
    lines = err.removeprefix("telemetry: ").splitlines()
    assert sorted(lines) == ["PIPELINE_LEASE_MS=soon: must be a whole number", "PIPELINE_WINDOW_SECONDS=-5: must be at least 1"]


def test_check_compares_the_lake_with_the_settings(telemetry, stack, tmp_path, monkeypatch):
    """What is set must be as the lake was made; what is not set is taken from it."""
    made(stack, tmp_path)
    monkeypatch.delenv("PIPELINE_WINDOW_SECONDS")
    assert telemetry("check")[0] == 0
    monkeypatch.setenv("PIPELINE_WINDOW_SECONDS", "60")
    code, _, err = telemetry("check")
    assert code == 2 and "was made with PIPELINE_WINDOW_SECONDS=10, not 60: set that, or choose another --data" in err


def test_check_refuses_tables_that_something_else_made(telemetry, stack, tmp_path):
    """Or that a later release made in another way."""
    place = tmp_path / "data" / "lake"
    DeltaTable.create(str(place / "aggregates"), schema=pa.schema([("x", pa.int64())]), description="of my own")
    code, _, err = telemetry("check")
    assert code == 2 and f"{place} holds tables of another format (None, not 1): choose another --data" in err


@pytest.mark.parametrize("arguments", [["alerts"], ["books"], ["rules", "show"], ["rules", "set", "rules.yaml"], ["check"]])
def test_a_redis_that_is_away_is_said_in_one_line(telemetry, stack, tmp_path, monkeypatch, arguments):
    """Without its password."""
    made(stack, tmp_path)
    (tmp_path / "rules.yaml").write_text(RULES)
    monkeypatch.setenv("PIPELINE_REDIS_URL", f"redis://:s3cret@127.0.0.1:{free_port()}")
    code, _, err = telemetry(*arguments)
    assert code == 2 and err.startswith("telemetry: Redis: Error 111 connecting to 127.0.0.1:") and err.count("\n") == 1
    assert "s3cret" not in err


@pytest.mark.parametrize("arguments", [["alerts"], ["books"], ["rules", "history"], ["worker"], ["notify"], ["maintain"], ["ingest"]])
def test_without_any_redis_the_remedy_is_said(telemetry, monkeypatch, arguments):
    monkeypatch.delenv("PIPELINE_REDIS_URL")
    refused(telemetry(*arguments), "no Redis: set REDIS_URL, or start `telemetry up` on the data folder")


# rules


def test_rules_from_file_to_rollback(telemetry, stack, tmp_path):
    """set, show, history, diff, rollback; what is shown is what was set, to the last byte."""
    Rulebook(stack.client).set_default()
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    assert telemetry("rules", "check", str(file)) == (0, f"{file}: 1 rule, valid\n", "")
    said = "version 2, 1 rule; workers apply it within seconds\n"
    assert telemetry("rules", "set", str(file), "--comment", "lab is noisy") == (0, said, "")
    assert telemetry("rules", "show") == (0, RULES, "")
    assert telemetry("rules", "show", "1") == (0, DEFAULT.read_text(encoding="utf-8"), "")
    first, second = telemetry("rules", "history")[1].splitlines()
    assert first.split(None, 2)[::2] == ["1", "shipped with the pipeline"] and second.split(None, 2)[::2] == ["2", "lab is noisy"]
    diff = telemetry("rules", "diff", "1", "2")[1]
    assert diff.startswith("--- version 1\n+++ version 2\n") and "\n+  - name: hot\n" in diff
    assert telemetry("rules", "diff", "2", "2") == (0, "", "")
    said = "version 3 is a copy of version 1; workers apply it within seconds\n"
    assert telemetry("rules", "rollback", "1") == (0, said, "")


def test_rules_from_standard_input(telemetry, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(RULES))
    assert telemetry("rules", "set", "-")[0] == 0
    assert telemetry("rules", "show")[1] == RULES


def test_bad_rules_change_nothing(telemetry, stack, tmp_path):
    """The line and the field are named, by `check` and by `set` alike."""
    file = tmp_path / "rules.yaml"
    file.write_text(BAD_RULES)
    for action in ("check", "set"):
        refused(telemetry("rules", action, str(file)), "line 4: rules[0].upper.warning: must be a finite number, not text")
    assert Rulebook(stack.client).version() == 0


def test_a_file_that_cannot_be_read_is_said(telemetry, tmp_path):
    """Missing, a folder, not UTF-8."""
    (tmp_path / "latin").write_bytes("rules: [] # über".encode("latin-1"))
    refused(telemetry("rules", "set", "nowhere.yaml"), "cannot read nowhere.yaml: No such file or directory")
    refused(telemetry("rules", "set", str(tmp_path)), f"cannot read {tmp_path}: Is a directory")
    refused(telemetry("rules", "check", "latin"), "telemetry: cannot read latin: it is not UTF-8 text")


@pytest.mark.parametrize("arguments", [["show"], ["show", "7"], ["diff", "1", "7"], ["rollback", "7"]])
def test_a_version_that_is_not_there_is_said(telemetry, arguments):
    refused(telemetry("rules", *arguments), "of the rules; the newest is 0")


# alerts and books


def test_alerts_lists_what_stands(telemetry, stack):
    """The worst first: what, where, how bad, since when; as text or as JSON."""
    assert telemetry("alerts") == (0, "nothing fires\n", "")
    assert telemetry("alerts", "--json") == (0, "", "")
    began = 1_700_000_000_000_000
    common = {"interface": "", "metric": "temperature", "tags": "", "rule": "hot", "time": began + 100_000_000}
    rows = [
        {**common, "device": "r1", "severity": 1, "firing": False, "since": began + 50_000_000, "value": 71.0, "bound": 70.0},
        {**common, "device": "r2", "interface": "eth0", "severity": 2, "firing": True, "since": began, "value": 95.5, "bound": 80.0},
    ]  # fmt: skip
    token = Leases(stack.client, "test", 60_000).acquire(3)
    AlertLog(stack.client).apply(3, token, 1, NAMED.to_frame(), pl.DataFrame(rows, schema=NAMED), [])
    code, out, _ = telemetry("alerts")
    worst, milder = out.splitlines()
    assert code == 0 and " ".join(worst.split()) == "firing CRITICAL hot r2 eth0 temperature 95.5 > 80 since 2023-11-14 22:13:20"
    assert " ".join(milder.split()) == "pending WARNING hot r1 temperature 71 > 70 since 2023-11-14 22:14:10"
    found = [json.loads(line) for line in telemetry("alerts", "--json")[1].splitlines()]
    assert [(alert["device"], alert["phase"], alert["severity"], alert["value"]) for alert in found] == [
        ("r2", "firing", "critical", 95.5),
        ("r1", "pending", "warning", 71.0),
    ]
    assert [(alert["since"], alert["time"]) for alert in found] == [
        ("2023-11-14T22:13:20.000Z", "2023-11-14T22:15:00.000Z"),
        ("2023-11-14T22:14:10.000Z", "2023-11-14T22:15:00.000Z"),
    ]


def test_books_balance_or_not(telemetry, stack, tmp_path):
    """Exit code 0 where every accepted event is accounted for, else 1."""
    made(stack, tmp_path)
    code, out, err = telemetry("books")
    books = json.loads(out)
    assert (code, err) == (0, "") and books["balanced"] is True and books["accepted"] == 0
    stack.client.hincrby(keys.books_key(2), "accepted", 3)
    code, out, _ = telemetry("books")
    assert code == 1 and json.loads(out)["balanced"] is False and json.loads(out)["accepted"] == 3


def test_books_without_a_lake_are_refused(telemetry):
    refused(telemetry("books"), "there is no table aggregates under")


def test_status_as_json_once_or_a_line_a_second(telemetry, monkeypatch):
    """While Redis is away standard error tells, and the next line comes when it is back."""
    code, out, _ = telemetry("status", "--json")
    assert code == 0 and len(json.loads(out)["partitions"]) == 16
    times, real = [], statusview.status

    def slept(seconds: float) -> None:
        times.append(seconds)
        if len(times) == 3:
            raise KeyboardInterrupt

    def now(*arguments) -> dict:
        if len(times) == 1:
            raise Unavailable("Redis: away")
        return real(*arguments)

    monkeypatch.setattr(statusview.time, "sleep", slept)
    monkeypatch.setattr(statusview, "status", now)
    code, out, err = telemetry("status", "--watch", "--json")
    assert (code, err, times) == (130, "Redis: away; trying again\n", [1.0] * 3)
    assert [len(json.loads(line)["partitions"]) for line in out.splitlines()] == [16, 16]


@pytest.mark.parametrize("arguments", [["sql", "SELECT 1"], ["deadletters"], ["deadletters", "show"]])
def test_questions_to_a_lake_that_is_not_there(telemetry, arguments):
    """Says where it looked."""
    code, out, err = telemetry(*arguments)
    assert code == 2 and out == "" and err.startswith("telemetry: there is no lake under ") and err.count("\n") == 1


def test_a_role_sets_polars_up_before_it_is_loaded():
    """Building the parser loads Polars, which reads its environment then and never again. In a process of its own: here it is loaded."""
    code = """
import contextlib, os
from pipeline.__main__ import main
with contextlib.suppress(SystemExit):
    main(["worker", "--help"])
import polars
print(polars.thread_pool_size(), os.environ["_RJEM_MALLOC_CONF"])
"""
    kept = {name: value for name, value in os.environ.items() if name not in ("POLARS_MAX_THREADS", ALLOCATOR)}
    said = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, timeout=60).stdout.splitlines()[-1]
    assert said.startswith("1 ") and said.endswith("dirty_decay_ms:10000,muzzy_decay_ms:-1"), said
