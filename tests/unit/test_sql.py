"""`telemetry sql` and `telemetry deadletters`: what they print, what they send, and how they fail."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import httpx
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline import deadletters, sql
from pipeline.core.semantics import Semantics
from pipeline.core.tokens import spelled
from pipeline.deadletters import add_deadletters, bodies, send
from pipeline.errors import Invalid, Unavailable
from pipeline.sql import add_sql, ask, complete, one_line, show, show_table, write_aligned, write_json
from pipeline.stores.lake import Lake

SEMANTICS = Semantics(
    width=10, disorder=0, idle_after=1, lateness_max=10, open_rows_max=1, partition_series_max=1000, device_series_max=1000, counter_gap=1
)


def answer(query: str):
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return ask(connection, query)


def as_json(query: str) -> list[dict]:
    out = io.StringIO()
    write_json(answer(query), out)
    return json.loads(out.getvalue())


def on_terminal(query: str, rows: int, width: int = 80) -> str:
    out = io.StringIO()
    show_table(answer(query), Console(file=out, width=width), rows)
    return out.getvalue()


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    Lake(str(data / "lake")).create(SEMANTICS, 1)
    return data


def telemetry(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    add_sql(commands)
    add_deadletters(commands)
    args = parser.parse_args(arguments)
    return args.func(args)


# Forms


def test_json_has_a_form_for_every_type():
    """Times are RFC 3339, what is no number is null, names are told apart; no rows are an empty array."""
    [row] = as_json("""
        SELECT TIMESTAMP '2026-01-31 12:00:00.5' AS t, TIMESTAMPTZ '2026-01-31 12:00:00+02' AS z, DATE '2026-01-31' AS d,
            'nan'::DOUBLE AS n, 18446744073709551615::UBIGINT AS big, sum(2::BIGINT) AS huge, 1.25::DECIMAL(5, 2) AS x,
            {'a': [1, NULL]} AS nested, INTERVAL 90 SECOND AS i, TIMESTAMP_NS '2026-01-31 12:00:00.123456789' AS ns, 1 AS x, true AS yes
    """)
    assert row == {
        "t": "2026-01-31T12:00:00.500000Z", "z": "2026-01-31T10:00:00Z", "d": "2026-01-31", "n": None, "big": 2**64 - 1, "huge": 2,
        "x": 1.25, "nested": {"a": [1, None]}, "i": "P0M0DT90S", "ns": "2026-01-31T12:00:00.123456Z", "x_1": 1, "yes": True,
    }  # fmt: skip
    assert as_json("FROM range(0)") == []
    assert len(as_json("FROM range(25000)")) == 25_000


def test_no_column_is_lost_and_none_is_taken_for_an_answer_without_rows(lake, capsys):
    """Names that are there twice are numbered past those that there are; a column may be called as DuckDB calls nothing."""
    assert as_json("SELECT 1 a, 2 a, 3 a_1, 4 a") == [{"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}]
    assert as_json("SELECT 1 a_1, 2 a, 3 a") == [{"a_1": 1, "a": 2, "a_2": 3}]
    assert telemetry("sql", 'SELECT 1 AS "Success"', "--json", "--data", str(lake)) == 0
    assert json.loads(capsys.readouterr().out) == [{"Success": 1}]
    assert telemetry("sql", "SET VARIABLE x = 1", "--json", "--data", str(lake)) == 0
    assert capsys.readouterr() == ("", "ok\n")


def test_csv_holds_what_is_there_and_a_terminal_what_can_be_shown(capsys, monkeypatch):
    """A name that was exported is the name: whoever looks for it finds it."""
    query = "SELECT 'a' || chr(160) || 'b' AS d, chr(27) || '[2J' AS e, 'x' || chr(10) || '\"y\"' AS f, ['a' || chr(155)] AS g"
    show(answer(query), as_csv=True)
    [names, row] = csv.reader(io.StringIO(capsys.readouterr().out))
    assert (names, row) == (["d", "e", "f", "g"], ["a\xa0b", "\x1b[2J", 'x\n"y"', '["a\x9b"]'])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show(answer(query), as_csv=True)
    [_, row] = csv.reader(io.StringIO(capsys.readouterr().out))
    assert row == ["a\\xa0b", "\\x1b[2J", 'x\\n"y"', '["a\\x9b"]']


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        ("1234567.891234 seconds", "P0M0DT1234567.891234S"),
        ("-0.000001 seconds", "P0M0DT-0.000001S"),
        ("100 seconds", "P0M0DT100S"),
        ("-1 month -3 days", "P-1M-3DT0S"),
    ],
)
def test_an_interval_is_told_to_its_last_digit(interval, told):
    assert as_json(f"SELECT INTERVAL '{interval}' AS i") == [{"i": told}]


def test_a_terminal_is_told_what_it_does_not_show():
    assert on_terminal("FROM range(1234)", 20).splitlines()[-1] == "… 20 of 1,234 rows"
    assert on_terminal("FROM range(2)", 20).splitlines()[-1] == "2 rows"
    wide = ", ".join(f"repeat('x', 20) AS c{i}" for i in range(9))
    assert "3 of 9 columns" in on_terminal(f"SELECT {wide} FROM range(2)", 20)
    upright = on_terminal(f"SELECT {wide}", 20)  # one row that does not fit: a line per column
    assert all(f"c{i} " in upright for i in range(9))


def test_a_value_cannot_steer_the_terminal():
    """Escape sequences and markup in a device's name are shown, not obeyed."""
    shown = on_terminal("SELECT chr(27) || '[2J' AS a, '[bold]x[/bold]' AS b", 20)
    assert "\x1b" not in shown and "\\x1b[2J" in shown and "[bold]x[/bold]" in shown


def test_in_a_pipe_values_are_whole_and_aligned():
    out = io.StringIO()
    write_aligned(answer("SELECT * FROM (VALUES ('a', 0.1 + 0.2::DOUBLE), ('long', NULL)) t(name, value)"), out)
    assert out.getvalue().splitlines() == ["name                value", "a     0.30000000000000004", "long                 NULL"]


@pytest.mark.parametrize(
    ("typed", "ends"),
    [
        ("SELECT 1;", True), ("SELECT 1", False), ("SELECT ';", False), ("SELECT ';';", True), ("SELECT 1; \n", True), ('SELECT ";', False),
        ("SELECT 1 -- it's\n;", True), ("SELECT 1; -- it's", True), ("SELECT 1 -- it's;", False), ("SELECT /* ' */ 1;", True),
        ("SELECT /* 1;", False), ("SELECT $$it's$$;", True), ("SELECT $$;", False), ("SELECT $a$it's$a$;", True),
        ("SELECT E'it\\'s';", True), ("SELECT '--', 'it''s';", True), ("SELEC 'x;';", True),
    ],
)  # fmt: skip
def test_a_statement_ends_with_a_semicolon_outside_strings_and_comments(typed, ends):
    assert complete(typed) is ends


# The command


def test_the_command_answers_in_the_form_asked_for(lake, capsys, tmp_path, monkeypatch):
    where = ("--data", str(lake))
    assert telemetry("sql", "SELECT 1 AS a, NULL AS b", "--csv", *where) == 0
    assert capsys.readouterr().out == "a,b\n1,\n"
    assert telemetry("sql", "SET VARIABLE x = 7; SELECT getvariable('x') AS x", "--json", *where) == 0
    assert json.loads(capsys.readouterr().out) == [{"x": 7}]
    file = tmp_path / "a.parquet"
    assert telemetry("sql", "FROM range(25000)", "--parquet", str(file), *where) == 0
    assert pq.read_metadata(file).num_rows == 25_000 and "25,000 rows" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("SELECT count(*) AS n FROM devices;"))
    assert telemetry("sql", *where) == 0
    assert capsys.readouterr().out == "n\n0\n"


@pytest.mark.parametrize(("form", "read"), [([], str), (["--json"], json.loads)])
def test_output_that_knows_less_than_unicode_gets_escapes(lake, form, read):
    """Strangers name devices. JSON stays JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "sql", "--data", str(lake), *form, "SELECT 'Zürich-☃' AS device"],
        capture_output=True, text=True, timeout=30, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    told = read(done.stdout)
    assert told == [{"device": "Zürich-☃"}] if form else "Z\\xfcrich-\\u2603" in told


def test_what_duckdb_refuses_is_one_line_and_exit_code_1(lake, capsys):
    assert telemetry("sql", "SELECT *\nFROM devicess", "--data", str(lake)) == 1
    told = capsys.readouterr().err
    assert told == 'telemetry sql: Catalog Error: Table with name devicess does not exist! Did you mean "devices"?\n'
    assert one_line(duckdb.Error("Parser Error: bad\n\nLINE 1: x\n ^")) == "Parser Error: bad"


@pytest.mark.parametrize("piped", [b"SELECT '\xff'", "\udcff"], ids=["a locale of UTF-8", "one that lets pass all"])
def test_a_query_that_is_no_text_is_one_line(lake, monkeypatch, piped):
    text = io.TextIOWrapper(io.BytesIO(piped), encoding="utf-8") if isinstance(piped, bytes) else io.StringIO(piped)
    monkeypatch.setattr("sys.stdin", text)
    with pytest.raises(Invalid, match=r"^standard input: must be UTF-8 text$"):
        telemetry("sql", "--data", str(lake))


NANOSECONDS = "TIMESTAMP_NS '2024-01-01 00:00:00.123456789'"


@pytest.mark.parametrize(
    "value",
    [
        f"[{NANOSECONDS}]",
        f"{{'a': {NANOSECONDS}}}",
        "TIME_NS '00:00:00.123456789'",
        "'infinity'::TIMESTAMP",
        "DATE '20000-01-01'",
        "[TIMESTAMPTZ '-infinity']",
    ],
)
def test_a_time_that_no_calendar_here_has_is_the_users_to_cast(value, tmp_path, capsys):
    """Parquet has a form for it."""
    query = f"SELECT {value} AS t"
    for form in ({}, {"as_json": True}, {"as_csv": True}):
        with pytest.raises(Invalid, match="finer than microseconds, or not of the years 1 to 9999: make it text"):
            show(answer(query), **form)
        show(answer(f"SELECT CAST(t AS VARCHAR) FROM ({query})"), **form)
    show(answer(query), parquet=tmp_path / "a.parquet")
    assert capsys.readouterr().err.startswith("1 rows in")


@pytest.mark.parametrize("folder", [".", "/"])
def test_an_answer_is_not_written_where_a_folder_is(folder):
    with pytest.raises(Invalid, match=f"cannot write {folder}: it is a folder"):
        show(answer("SELECT 1 AS a"), parquet=Path(folder))


@pytest.mark.parametrize("since", ["999999d", "99999999999d", "0001-01-01T00:00:00+14:00", "yesterday"])
def test_a_time_before_all_years_is_no_time(lake, capsys, since):
    with pytest.raises(SystemExit) as ended:
        telemetry("deadletters", "list", "--since", since, "--data", str(lake))
    assert ended.value.code == 2 and "is neither an age like" in capsys.readouterr().err.splitlines()[-1]


def test_no_lake_and_no_query_are_the_users_to_mend(lake, tmp_path):
    with pytest.raises(Unavailable, match="there is no lake under"):
        telemetry("sql", "SELECT 1", "--data", str(tmp_path))
    with pytest.raises(Invalid, match="no query"):
        telemetry("sql", "/* nothing */", "--data", str(lake))


def test_the_prompt_goes_on_after_errors(lake, capsys, monkeypatch, tmp_path):
    """A statement over two lines, an error, Ctrl-C in the middle of typing, help; Ctrl-D leaves."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    lines = iter(["SELECT 40 +", "\udcff", "2 AS answer;", "FROM nowhere;", "SELECT", KeyboardInterrupt, ".tables", "SELECT 43 AS other;"])

    def typed(prompt: str) -> str:
        line = next(lines, EOFError)
        if isinstance(line, type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    assert telemetry("sql", "--data", str(lake)) == 0
    told = capsys.readouterr()
    assert "answer\n    42" in told.out and "other\n   43" in told.out and "series_of(a_device, a_metric)" in told.out
    assert "nowhere does not exist" in told.err and "a line must be UTF-8 text" in told.err


def test_ctrl_c_ends_a_query_and_not_the_next(lake):
    """The threads of the query that was broken off stop too: one that comes after it does not wait for them."""
    program = f"""
import os, signal, threading
from argparse import Namespace
from pipeline.sql import _answer
from pipeline.stores.catalog import open_catalog
form = Namespace(json=False, csv=True, parquet=None, rows=9)
connection = open_catalog({str(lake)!r}, threads=4)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
_answer(connection, "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b;", form)
_answer(connection, "SELECT count(*) AS n FROM devices;", form)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("n\n0\n", "interrupted\n", 0)


# Dead letters


def letters(*texts: str, entry: int = 7) -> list[tuple[int, int, str]]:
    return [(0, entry, text) for text in texts]


def test_the_key_of_a_body_is_made_of_its_rows():
    """The same rows have the same key, whatever came later; other rows, or mended ones, have another."""
    one, two = letters('{"device":"a"}'), letters('{"device":"b"}', entry=8)
    unusable = Counter()
    keys = [body.key for body in bodies(one, {}, unusable)]
    assert [body.key for body in bodies(one + two, {}, unusable)][:1] == keys
    assert [body.key for body in bodies(one, {"value": 1}, unusable)] != keys
    assert [body.key for body in bodies(letters('{"device":"a"}', entry=9), {}, unusable)] != keys
    assert not unusable


def test_only_objects_are_sent_and_the_rest_is_counted():
    """Cut text, arrays and numbers stay; a mend replaces or takes away; tags that had become text are an object again."""
    unusable = Counter()
    rows = letters('{"device":"a","value":"x","timestamp":1,"tags":"{\\"k\\":\\"v\\"}"}', '{"device":"b","tags":""}', '{"devi', "[1]", "5")
    [body] = bodies(rows, {"value": 3, "timestamp": None}, unusable)
    assert [json.loads(line) for line in body.content.splitlines()] == [
        {"device": "a", "value": 3, "tags": {"k": "v"}},
        {"device": "b", "value": 3},
    ]
    assert sum(unusable.values()) == 3 and body.events == 2


def test_what_is_nested_too_deep_to_be_read_stops_no_other():
    """As long as a dead letter may be; strangers choose its text."""
    unusable = Counter()
    deep = "[" * 2048
    [body] = bodies(letters(deep, '{"device":"a"}', json.dumps({"device": "b", "tags": deep})), {}, unusable)
    assert [json.loads(line) for line in body.content.splitlines()] == [{"device": "a"}, {"device": "b"}]
    assert sum(unusable.values()) == 1


@pytest.mark.parametrize("odd", ['"value":NaN', '"value":-1e999', '"tags":{"k":Infinity}', '"device":"\\ud800"', '"\\udfff":1'])
def test_what_json_has_no_form_for_stops_no_other(odd):
    """NDJSON may hold it and still be read; sent, it would be refused with all that is in its body. It can be mended."""
    unusable = Counter()
    bad = f'{{"device":"a",{odd}}}'
    [body] = bodies(letters(bad, '{"device":"b"}') + letters(bad, entry=8), {}, unusable)
    assert (body.content, sum(unusable.values())) == (b'{"device":"b"}', 2) and "--set" in next(iter(unusable))
    [body] = bodies(letters('{"device":"a","value":NaN}'), {"value": 1}, unusable)
    assert body.content == b'{"device":"a","value":1}'


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_body_that_is_refused_stops_no_other(status):
    """Its events are counted, with what the API says of it."""
    answers = [(status, {"error": {"message": "not this one"}}), (202, {"accepted": 1, "rejected": 0, "errors": []})]
    made = list(bodies(letters('{"device":"a"}', '{"device":"b"}') + letters('{"device":"c"}', entry=8), {}, Counter()))

    def handle(request: httpx.Request) -> httpx.Response:
        code, told = answers.pop(0)
        return httpx.Response(code, json=told)

    with httpx.Client(base_url="http://api", transport=httpx.MockTransport(handle)) as client:
        told = send(client, made)
    assert (told.sent, told.accepted, told.rejected) == (3, 1, 2)
    assert told.reasons == {(f"the body, {status}", "not this one"): 2}


def test_an_address_or_certificates_of_no_use_are_said_in_one_line(lake, monkeypatch, tmp_path):
    for url in ("http://127.0.0.1:abc", "http://h/\udcff", "http://xn--/", "h:80", "ftp://h", "http://h:99999"):
        with pytest.raises(Invalid, match=r"^--url .*: must be like http://HOST:PORT$"):
            _retry_one(url)
    with monkeypatch.context() as environment, pytest.raises(Invalid, match=r"^HTTP_PROXY, HTTPS_PROXY or ALL_PROXY: "):
        environment.setenv("ALL_PROXY", "ftp://x")
        _retry_one("http://h")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with pytest.raises(Invalid, match=r"^SSL_CERT_FILE or SSL_CERT_DIR: No such file or directory; expected"):
        telemetry("deadletters", "retry", "--data", str(lake))


def _retry_one(url: str) -> None:
    with deadletters._client(argparse.Namespace(url=url, token_file=None, ca_file=None)) as client:
        send(client, bodies(letters('{"device":"a"}'), {}, Counter()))


def test_a_refusal_for_now_is_tried_again_and_one_for_good_is_not(monkeypatch):
    """503 waits as long as it is told; the answers are added up; 403 stops, and says how far it came."""
    waits, answers = [], [(503, {}, "2"), (202, {"accepted": 1, "rejected": 0, "errors": []}, "")]
    monkeypatch.setattr(deadletters.time, "sleep", waits.append)
    seen = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["idempotency-key"])
        status, told, after = answers.pop(0)
        return httpx.Response(status, json=told, headers={"retry-after": after} if after else {})

    made = list(bodies(letters('{"device":"a"}') + letters('{"device":"b"}', entry=8), {}, Counter()))
    with httpx.Client(base_url="http://api", transport=httpx.MockTransport(handle)) as client:
        told = send(client, made[:1])
        assert (told.sent, told.accepted, told.rejected, waits) == (1, 1, 0, [2.0])
        assert seen == [made[0].key] * 2
        error = {"field": "device", "reason": "missing"}
        answers += [(202, {"accepted": 0, "rejected": 1, "errors": [error]}, ""), (403, {"error": {"message": "not you"}}, "")]
        with pytest.raises(Invalid, match=r"answers 403: not you; sent before: 1, of them accepted: 0"):
            send(client, made)
        answers += [(503, {}, "")] * deadletters.ATTEMPTS_MAX
        with pytest.raises(Unavailable, match="answers 503"):
            send(client, made)


def test_a_token_goes_along_without_the_space_around_it_and_is_never_shown(lake, monkeypatch, tmp_path, capsys):
    """A mounted secret ends with a newline; what is no token stops the command before it sends anything."""
    text, file = spelled("0123456789ab", "s" * 43), tmp_path / "token"
    sent = []
    monkeypatch.setattr(deadletters, "send", lambda client, made: sent.append(client.headers.get("authorization")) or deadletters.Told())
    retry = ("deadletters", "retry", "--data", str(lake))
    monkeypatch.setenv("PIPELINE_TOKEN", f"{text}\n")
    assert telemetry(*retry) == 0
    file.write_text(f" {text}\r\n")
    assert telemetry(*retry, "--token-file", str(file)) == 0
    monkeypatch.setenv("PIPELINE_TOKEN", "\n")
    assert telemetry(*retry) == 0
    assert sent == [f"Bearer {text}"] * 2 + [None]
    for bad in (f"{text}x", f"{text}\nx", f"{text}é", f"{text}\udcff"):
        monkeypatch.setenv("PIPELINE_TOKEN", bad)
        with pytest.raises(Invalid, match=r"^PIPELINE_TOKEN: it holds no token, which is like tp_ID_SECRET$"):
            telemetry(*retry)
    file.write_bytes(b"")
    with pytest.raises(Invalid, match="it holds no token"):
        telemetry(*retry, "--token-file", str(file))
    for option in ("--token-file", "--ca-file"):
        monkeypatch.setenv("PIPELINE_TOKEN", "")
        with pytest.raises(Invalid, match=f"^{option} .*: No such file or directory"):
            telemetry(*retry, option, str(tmp_path / "none"))
    assert text not in "".join(capsys.readouterr())


def test_dead_letters_of_an_empty_lake(lake, capsys, monkeypatch):
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(lake))
    assert telemetry("deadletters") == 0
    assert telemetry("deadletters", "show", "--json", "--device", "edge-*", "--since", "2h", "--reason", "x") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == []
    assert telemetry("deadletters", "retry", "--dry-run") == 0
    with pytest.raises(Invalid, match="must be FIELD=VALUE"):
        telemetry("deadletters", "retry", "--set", "colour=red")


def test_arguments_mean_the_same_lake_everywhere(monkeypatch, tmp_path):
    """As those of all other commands: a lake of the environment is meant whatever the data folder; --lake wins over both."""
    asked = []
    monkeypatch.setattr(sql, "open_catalog", lambda settings: asked.append(settings.lake))
    monkeypatch.setenv("PIPELINE_LAKE_URL", "s3://bucket/lake")
    for data, url in ((None, None), (tmp_path, None), (tmp_path, "elsewhere")):
        sql.connect(argparse.Namespace(data=data, lake=url))
    assert asked == ["s3://bucket/lake", "s3://bucket/lake", "elsewhere"]
    monkeypatch.delenv("PIPELINE_LAKE_URL")
    sql.connect(argparse.Namespace(data=tmp_path, lake=None))
    assert asked[-1] == str(tmp_path / "lake")
