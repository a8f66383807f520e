"""`telemetry sql`: ask the lake in SQL, once or at a prompt.

A table on a terminal, aligned text in a pipe, JSON, CSV or Parquet where asked. Rows travel as Arrow batches, so that an
answer larger than memory can pass through. 0: done. 1: DuckDB refuses the query. 2: nothing to ask, or wrongly asked.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import settings
from pipeline.alerttexts import counted
from pipeline.errors import Invalid, PipelineError
from pipeline.stores.catalog import MACROS, VIEWS, open_catalog
from pipeline.stores.extensions import install_extensions

BATCH_ROWS = 10_000
TERMINAL_ROWS = 40  # shown on a terminal unless told; in a pipe, all
COUNTED_ROWS_MAX = 5_000_000  # beyond, an answer is said to have "more than" so many rows
CELL_CHARS_MAX = 60  # of a column on a terminal
HISTORY_LINES_MAX = 1000
INTERRUPTED = 130

_HELP = """Statements end with ';' and may span lines. Times are UTC.
  .tables   what there is to ask     .help   this     .quit   leave (or Ctrl-D)
  Ctrl-C stops a query, or forgets what was typed.
  DESCRIBE aggregates;  shows a table's columns."""


_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)


@dataclass
class Answer:
    """What a statement gives, as Arrow batches. `schema` is None for one that has no rows to show."""

    schema: pa.Schema | None
    batches: Iterator[pa.RecordBatch]

    @property
    def names(self) -> list[str]:
        return self.schema.names

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [any(is_kind(field.type) for is_kind in _NUMBERS) for field in self.schema]

    def rows(self) -> Iterator[tuple]:
        for batch in self.batches:
            yield from zip(*(_values(column) for column in batch.columns), strict=True)


def add_sql(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `sql`; its `func` takes the parsed arguments and returns an exit code."""
    parser = subparsers.add_parser(
        "sql",
        help="ask the lake in SQL",
        description="Ask the lake in SQL: one query, or a prompt. It sees what is committed, while the pipeline works.",
        epilog="tables: " + ", ".join(VIEWS) + "; functions: " + ", ".join(MACROS),
    )
    parser.add_argument("query", nargs="?", help="one or more statements; without it a prompt, or what stands on standard input")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="an array of objects; times as RFC 3339")
    form.add_argument("--csv", action="store_true", help="with a header")
    form.add_argument("--parquet", type=Path, metavar="FILE", help="write the answer to a file")
    parser.add_argument("--rows", type=int, default=TERMINAL_ROWS, metavar="N", help="shown on a terminal (default %(default)s)")
    parser.add_argument("--install", action="store_true", help="let every DuckDB client of this user find the extensions, and end")
    add_place(parser)
    parser.set_defaults(func=run_sql)


def add_place(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which lake is meant."""
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data folder (default: PIPELINE_DATA_DIR, else data)")
    parser.add_argument("--lake", metavar="URL", help="folder or URL of the lake (default: PIPELINE_LAKE_URL, else DATA/lake)")


def connect(args: argparse.Namespace) -> duckdb.DuckDBPyConnection:
    """The catalog that the arguments of `add_place`, else the environment, mean."""
    overrides = {"data_dir": args.data, "lake_url": args.lake}
    return open_catalog(settings.load(**{name: value for name, value in overrides.items() if value is not None}))


def run_sql(args: argparse.Namespace) -> int:
    if args.install:
        install_extensions()
        print(f"DuckDB {duckdb.__version__} finds the extensions delta and httpfs by itself now", file=sys.stderr)
        return 0
    with connect(args) as connection:
        if args.query is None and sys.stdin.isatty():
            return _prompt(connection, args)
        return _run(connection, _piped() if args.query is None else args.query, args)


def _piped() -> str:
    """What stands on standard input."""
    try:
        text = sys.stdin.read()
        text.encode()  # some locales let pass what is no text
    except UnicodeError:
        raise Invalid("standard input: must be UTF-8 text") from None
    return text


def _run(connection: duckdb.DuckDBPyConnection, text: str, args: argparse.Namespace) -> int:
    try:
        statements = connection.extract_statements(text)
        if not statements:
            raise Invalid("there is no query")
        for statement in statements[:-1]:
            connection.execute(statement)
        show(ask(connection, statements[-1]), **_form(args))
        sys.stdout.flush()
        return 0
    except duckdb.Error as error:
        print(f"telemetry sql: {one_line(error)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, RuntimeError) as error:
        _stop(connection, error)
        print("telemetry sql: interrupted", file=sys.stderr)
        return INTERRUPTED


def _stop(connection: duckdb.DuckDBPyConnection, error: BaseException) -> None:
    """End the query that Ctrl-C broke off; an error that means anything else goes on its way.

    DuckDB tells of Ctrl-C by a plain RuntimeError, and its other threads work on until they are told too: the next query
    would wait for them.
    """
    if not isinstance(error, KeyboardInterrupt) and "interrupt" not in str(error).lower():
        raise error
    connection.interrupt()


def one_line(error: BaseException) -> str:
    """DuckDB's message without the excerpt of the query."""
    lines = itertools.takewhile(lambda line: not line.startswith("LINE "), str(error).splitlines())
    return " ".join(line.strip() for line in lines if line.strip())


def ask(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement | str, parameters: Sequence[Any] | None = None) -> Answer:
    """Run one statement; as text it is a query."""
    connection.execute(statement, parameters)
    names = [column[0] for column in connection.description or []]
    selects = isinstance(statement, str) or statement.type == duckdb.StatementType.SELECT
    if not names or (names == ["Success"] and not selects):  # so DuckDB says that there is nothing to say
        return Answer(None, iter(()))
    reader = connection.to_arrow_reader(BATCH_ROWS)
    names = _distinct(names)
    schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
    return Answer(schema, (batch.rename_columns(names) for batch in reader))


def _distinct(names: list[str]) -> list[str]:
    """`a, a` as `a, a_1`, or a later number where that is a name already: an object has each key once."""
    told: dict[str, None] = {}
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        told[name if name not in told else next(other for other in numbered if other not in told and other not in names)] = None
    return list(told)


def _values(column: pa.Array) -> list:
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    try:
        return column.to_pylist()
    except (OverflowError, ValueError):  # infinity, a year that Python has not, or nanoseconds inside a list
        what = "finer than microseconds, or not of the years 1 to 9999"
        raise Invalid(f"a time in the answer is {what}: make it text, by CAST(... AS VARCHAR)") from None


# Forms


def show(
    answer: Answer,
    *,
    as_json: bool = False,
    as_csv: bool = False,
    parquet: Path | None = None,
    rows: int = TERMINAL_ROWS,
    seconds: float | None = None,
) -> None:
    """Write an answer to standard output, or to a file. `rows`: shown on a terminal. `seconds`: it took, where that is to be said."""
    if answer.schema is None:
        print("ok", file=sys.stderr)
    elif parquet is not None:
        print(f"{_to_parquet(answer, parquet):,} rows in {parquet}", file=sys.stderr)
    elif as_json:
        write_json(answer, sys.stdout)
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(answer.names)
        shown = _visible if sys.stdout.isatty() else str  # a file is read by programs, which look for the very name
        writer.writerows([_exact(value, "", shown) for value in row] for row in answer.rows())
    elif sys.stdout.isatty():
        show_table(answer, Console(highlight=False), rows, seconds)
    else:
        write_aligned(answer, sys.stdout)


def _form(args: argparse.Namespace) -> dict[str, Any]:
    return {"as_json": args.json, "as_csv": args.csv, "parquet": args.parquet, "rows": args.rows}


def write_json(answer: Answer, out: TextIO) -> None:
    """An array of objects, one a line."""
    begin, unicode = "[", (out.encoding or "utf-8").lower() == "utf-8"
    for row in answer.rows():
        out.write(begin + "\n" + json.dumps(dict(zip(answer.names, map(_jsonable, row), strict=True)), ensure_ascii=not unicode))
        begin = ","
    out.write("[]\n" if begin == "[" else "\n]\n")


def _to_parquet(answer: Answer, path: Path) -> int:
    """Write a file that appears whole or not at all; the number of rows."""
    if path.is_dir():
        raise Invalid(f"cannot write {path}: it is a folder; name a file")
    partial = path.with_name(path.name + ".partial")
    rows = 0
    try:
        with pq.ParquetWriter(partial, answer.schema, compression="zstd") as writer:
            for batch in answer.batches:
                writer.write_batch(batch)
                rows += batch.num_rows
        partial.replace(path)
    except (OSError, pa.ArrowException) as error:
        raise Invalid(f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return rows


def write_aligned(answer: Answer, out: TextIO) -> None:
    """Text in columns, as wide as the first rows need; values to their last digit."""
    rows = ([_exact(value, "NULL") for value in row] for row in answer.rows())
    first = list(itertools.islice(rows, BATCH_ROWS))
    widths = [max(map(len, column)) for column in zip(answer.names, *first, strict=True)]
    for row in itertools.chain([answer.names], first, rows):
        cells = (cell.rjust(n) if right else cell.ljust(n) for cell, n, right in zip(row, widths, answer.numeric, strict=True))
        out.write("  ".join(cells).rstrip() + "\n")


def show_table(answer: Answer, console: Console, rows_max: int, seconds: float | None = None) -> None:
    """What fits on a terminal, and a line that says what does not."""
    rows, total = [], 0
    for batch in answer.batches:
        if total < rows_max:
            part = batch.slice(0, rows_max - total)
            rows += [[_short(value) for value in row] for row in zip(*map(_values, part.columns), strict=True)]
        total += batch.num_rows
        if total > COUNTED_ROWS_MAX:
            break
    widths = [
        min(CELL_CHARS_MAX, max(cell.cell_len for cell in column)) + 3  # rich pads each column by two, and the box by one
        for column in zip(map(Text, answer.names), *rows, strict=True)
    ]
    fitting = max(1, sum(end <= console.width for end in itertools.accumulate(widths)))
    if fitting < len(widths) and len(rows) == 1:
        _show_one(answer.names, rows[0], console)
        fitting = len(widths)
    else:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for name, right in list(zip(answer.names, answer.numeric, strict=True))[:fitting]:
            table.add_column(Text(name), justify="right" if right else "left", no_wrap=True, overflow="ellipsis", max_width=CELL_CHARS_MAX)
        for row in rows:
            table.add_row(*row[:fitting])
        console.print(table)
    told = f"… {len(rows):,} of " if total > len(rows) else ""
    told += f"{'more than ' if total > COUNTED_ROWS_MAX else ''}{counted(total, 'row')}"
    if fitting < len(widths):
        told += f", {fitting} of {len(widths)} columns: name the ones to see, or use --json or --csv"
    if seconds is not None:
        told += f" ({seconds:.2f} s)"
    console.print(Text(told, "dim"))


def _show_one(names: list[str], row: list[Text], console: Console) -> None:
    """One wide row, a line per column."""
    grid = Table.grid(padding=(0, 2))
    for name, cell in zip(names, row, strict=True):
        grid.add_row(Text(name, "bold"), cell)
    console.print(grid)


def _jsonable(value: Any) -> Any:
    """As JSON has it; what it has no form for is text, or null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, pa.MonthDayNano):
        return _interval(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return _time(value, "T", "Z") or (value.hex() if isinstance(value, bytes) else str(value))


def _time(value: Any, between: str, zone: str) -> str | None:
    """A moment, day or time of day as text; None: it is none."""
    if isinstance(value, datetime):
        value = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        return value.isoformat(between) + zone
    return value.isoformat() if isinstance(value, date | time_of_day) else None


def _interval(value: pa.MonthDayNano) -> str:
    """An ISO 8601 duration."""
    months, days, nanoseconds = value
    seconds, fraction = divmod(abs(nanoseconds), 1_000_000_000)
    sign, decimals = "-" if nanoseconds < 0 else "", f".{fraction:09}".rstrip("0") if fraction else ""
    return f"P{months}M{days}DT{sign}{seconds}{decimals}S"


def _visible(text: str) -> str:
    """Text from a device must not steer the terminal that shows it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _exact(value: Any, null: str, shown: Callable[[str], str] = _visible) -> str:
    """A value to its last digit; on one line, unless `shown` has another mind about what cannot be printed."""
    if value is None:
        return null
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, pa.MonthDayNano):
        return _interval(value)
    if isinstance(value, list | dict | tuple):
        return shown(json.dumps(_jsonable(value), ensure_ascii=False))
    return shown(_time(value, "T", "Z") or (value.hex() if isinstance(value, bytes) else str(value)))


def _short(value: Any) -> Text:
    """A value as a person reads it."""
    if value is None:
        return Text("NULL", "dim")
    if isinstance(value, float) and math.isfinite(value):
        whole = value.is_integer() and abs(value) < 1e15
        return Text(str(int(value)) if whole else f"{value:.3f}" if 1 <= abs(value) < 1e15 else f"{value:.4g}")
    return Text(_time(value, " ", "") or _exact(value, ""))


# The prompt


def _prompt(connection: duckdb.DuckDBPyConnection, args: argparse.Namespace) -> int:
    print("SQL over the lake; .tables says what there is, .help the rest", file=sys.stderr)
    with _history():
        typed = ""
        while True:
            try:
                line = input("    ...> " if typed else "telemetry> ")
                line.encode()
            except EOFError:
                print(file=sys.stderr)
                return 0
            except UnicodeError:
                print("a line must be UTF-8 text", file=sys.stderr)
                continue
            except KeyboardInterrupt:
                print(file=sys.stderr)
                typed = ""
                continue
            command = line.strip().lower()
            if (not typed and command.startswith(".")) or command in ("exit", "quit"):
                if command in (".quit", ".exit", "exit", "quit"):
                    return 0
                print(_tables() if command == ".tables" else _HELP)
                continue
            typed = f"{typed}\n{line}" if typed else line
            if complete(typed):
                _answer(connection, typed, args)
                typed = ""
            elif not typed.strip():
                typed = ""


# Strings, names and comments: what they hold ends nothing.
_HELD = re.compile(
    r"""[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | \$(\w*)\$.*?\$\1\$ | --[^\n]* | /\*.*?\*/""", re.VERBOSE | re.DOTALL
)


def complete(typed: str) -> bool:
    """Whether what was typed ends a statement: with ';' that stands in no string and no comment, and none of these is open."""
    rest = _HELD.sub(" ", typed)
    return rest.rstrip().endswith(";") and not any(opening in rest for opening in ("'", '"', "$$", "/*"))


def _answer(connection: duckdb.DuckDBPyConnection, text: str, args: argparse.Namespace) -> None:
    try:
        for statement in connection.extract_statements(text):
            began = time.monotonic()
            answer = ask(connection, statement)
            show(answer, **_form(args), seconds=time.monotonic() - began)
    except (duckdb.Error, PipelineError) as error:
        print(one_line(error), file=sys.stderr)
    except (KeyboardInterrupt, RuntimeError) as error:
        _stop(connection, error)
        print("interrupted", file=sys.stderr)


def _tables() -> str:
    width = max(map(len, itertools.chain(VIEWS, MACROS)))
    return "\n".join(f"  {name:<{width}}  {comment}" for name, (comment, _) in itertools.chain(VIEWS.items(), MACROS.items()))


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines typed before, where this Python has readline and the user a folder for them."""
    try:
        import readline
    except ImportError:
        yield
        return
    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "telemetry-sql-history"
    readline.set_history_length(HISTORY_LINES_MAX)
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
