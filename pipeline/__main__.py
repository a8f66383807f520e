"""The `telemetry` command. Each role is a subcommand; so are the questions a person asks of the whole."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import Invalid, PipelineError
from pipeline.settings import Settings, is_utf8, load, semantics_of

Commands = argparse._SubParsersAction  # of ArgumentParser
ROLES = ("simulator", "ingest", "worker", "notifier", "maintenance")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn what a user can mend into one line and exit code 2."""
    _tune_polars()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # strangers name devices, and a terminal may know less than Unicode
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser(given[0] if given else None).parse_args(given)
    try:
        if odd := [argument for argument in given if not is_utf8(argument)]:  # nothing that it may go to can hold it
            raise Invalid(f"{odd[0]!a}: must be UTF-8 text")
        return args.func(args)
    except PipelineError as error:
        print(f"telemetry: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        from pipeline import logs

        logs.let_go(sys.stdout)
        return 0


class _Version(argparse.Action):
    """argparse has one that wants to know before it is asked: to look it up takes as long as a light command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        parser.exit(message=f"telemetry {version('telemetry-pipeline')}\n")


def _tune_polars() -> None:
    """Polars and its allocator read this when they are loaded, which building the parser does: so it comes before."""
    # A process is one of several that share the cores, and its frames are small: threads of Polars' own cost more than they save.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    # Memory that one frame gave back serves the next: returned to the system and faulted in again it costs a tenth of a worker's time.
    os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:10000,muzzy_decay_ms:-1")


def _parser(called: str | None = None) -> argparse.ArgumentParser:
    """All commands; where `called` is one, those of other modules are left out that it is not: to load them takes half a second."""
    parser = argparse.ArgumentParser(prog="telemetry", description="Network telemetry from an HTTP POST to a row in SQL, exactly once.")
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="everything on this machine, with a Redis of its own")
    _data_argument(up)
    up.add_argument("--port", type=int, metavar="N", help="of the API; 0: any free (default 8000)")
    up.add_argument("--window", type=_seconds, metavar="TIME", help="window width, such as 10s or 1m (default 60s, or the lake's)")
    up.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes (default %(default)s)")
    up.add_argument("--without", action="append", default=[], choices=ROLES, help="leave a role out; may be repeated")
    up.add_argument("--for", dest="duration", type=_seconds, metavar="TIME", help="end by itself so long after the start; check the books")
    _log_argument(up)
    up.add_argument("--json", action="store_true", help="end with one JSON object on stdout; the rest goes to stderr")
    up.add_argument("--simulate", default="", metavar="ARGS", help='arguments for the simulator, such as "--rate 5000 --seed 7"')
    up.set_defaults(func=_up)

    for name, words, run in (
        ("worker", "a worker: reads, aggregates, raises alerts, commits", _worker),
        ("maintain", "housekeeping of the lake, by one leader", _maintain),
    ):
        role = commands.add_parser(name, help=words)
        _data_argument(role)
        _role_arguments(role)
        role.set_defaults(func=run)
    ingest = commands.add_parser("ingest", help="the ingest API")
    ingest.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    _log_argument(ingest)
    ingest.set_defaults(func=_ingest)
    notify = commands.add_parser("notify", help="the notifier: alerts to the console, Alertmanager, a webhook")
    notify.add_argument("--json", action="store_true", help="one JSON object per line")
    _role_arguments(notify)
    notify.add_argument("--colour", action="store_true", default=None, help="colour also where stdout is no terminal")
    notify.set_defaults(func=_notify)

    _rules_commands(commands)
    alerts = commands.add_parser("alerts", help="alerts that stand now")
    _data_argument(alerts)
    alerts.add_argument("--json", action="store_true", help="one JSON object per line")
    alerts.set_defaults(func=_alerts)
    status = commands.add_parser("status", help="partitions, workers, devices, admission and the books, as they stand")
    _data_argument(status)
    status.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    status.add_argument("--json", action="store_true", help="one JSON object; with --watch, one a line")
    status.set_defaults(func=_status)
    books = commands.add_parser("books", help="is every accepted event accounted for? exact when nothing moves")
    _data_argument(books)
    books.set_defaults(func=_books)
    check = commands.add_parser("check", help="check the settings, Redis and the lake without starting anything")
    _data_argument(check)
    check.set_defaults(func=_check)

    doctor = commands.add_parser("doctor", help="look at all that a pipeline stands on, and say what to do")
    _data_argument(doctor)
    doctor.add_argument("--json", action="store_true", help="one JSON object")
    doctor.set_defaults(func=_doctor)

    if called not in commands.choices:
        for name, add in _ELSEWHERE.items():
            if called == name or called not in _ELSEWHERE:
                add(commands)
    return parser


def _rules_commands(commands) -> None:
    rules = commands.add_parser("rules", help="the thresholds: show, set, check, history, diff, rollback")
    actions = rules.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("show", help="a version of the document, or the newest")
    show.add_argument("version", type=int, nargs="?")
    put = actions.add_parser("set", help="a new version, valid as a whole or refused")
    put.add_argument("file", type=Path, help="YAML or JSON; - for standard input")
    put.add_argument("--comment", default="", help="why")
    check = actions.add_parser("check", help="is this file valid? changes nothing")
    check.add_argument("file", type=Path)
    history = actions.add_parser("history", help="all versions")
    diff = actions.add_parser("diff", help="what changed between two versions")
    diff.add_argument("old", type=int)
    diff.add_argument("new", type=int)
    rollback = actions.add_parser("rollback", help="an earlier version as the new one")
    rollback.add_argument("version", type=int)
    runs = {show: _rules_show, put: _rules_set, check: _rules_check, history: _rules_history, diff: _rules_diff, rollback: _rules_rollback}
    for action, run in runs.items():
        _data_argument(action)
        action.set_defaults(func=run)


def _role_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metrics-fd", type=int, help=argparse.SUPPRESS)
    _log_argument(parser)


def _log_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-format", choices=("text", "json"), help="json: one object per line (default: PIPELINE_LOG_FORMAT, or text)")


def _add_sql(commands: Commands) -> None:
    from pipeline.sql import add_sql

    add_sql(commands)


def _add_deadletters(commands: Commands) -> None:
    from pipeline.deadletters import add_deadletters

    add_deadletters(commands)


def _add_tokens(commands: Commands) -> None:
    from pipeline.tokens import add_tokens

    add_tokens(commands, _tokenbook)


def _add_simulate(commands: Commands) -> None:
    from simulator.cli import add_simulate

    add_simulate(commands)


def _add_replay(commands: Commands) -> None:
    from simulator.cli import add_replay

    add_replay(commands)


_ELSEWHERE = {
    "sql": _add_sql, "deadletters": _add_deadletters, "tokens": _add_tokens, "simulate": _add_simulate, "replay": _add_replay,
}  # fmt: skip


def _data_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data folder (default: PIPELINE_DATA_DIR, or data)")


def _seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    for unit, factor in units.items():
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return float(number) * factor
    raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 5m or 1h")


def _settings(args: argparse.Namespace, **overrides: object) -> Settings:
    """The settings of this environment and command line. What is fixed when a lake is made, and not set, is as it was made."""
    from pipeline.stores.lake import lake_settings

    if data := getattr(args, "data", None):
        overrides["data_dir"] = data
    settings = load(**overrides)
    made_with = {name: value for name, value in lake_settings(settings.lake).items() if name not in settings.model_fields_set}
    return load(**made_with, **overrides) if made_with else settings


def _with_redis(args: argparse.Namespace) -> Settings:
    """Settings with the Redis that is set, or the one that `telemetry up` runs on this data folder."""
    return _and_redis(_settings(args))


def _and_redis(settings: Settings) -> Settings:
    from pipeline.stores.embedded import EmbeddedRedis

    if settings.redis_url:
        return settings
    embedded = EmbeddedRedis(Path(settings.data_dir) / "redis", settings.embedded_memory_max_mb, settings.embedded_fsync)
    if not Path(embedded.url.removeprefix("unix://")).exists():
        raise Invalid(f"no Redis: set REDIS_URL, or start `telemetry up` on the data folder {settings.data_dir} first")
    return settings.model_copy(update={"redis_url": embedded.url})


def _log_to_stderr(role: str, args: argparse.Namespace, settings: Settings, more=dict) -> None:
    from pipeline import logs

    managed = bool(os.environ.get("PIPELINE_PARENT_PID"))  # the supervisor adds time and role
    logs.configure(role, args.log_format or settings.log_format, settings.log_level, managed=managed, more=more)


def _run_role(name: str, role, args: argparse.Namespace, settings: Settings) -> int:
    """Run an object with run(), stop() and health until SIGTERM or SIGINT, and answer for it where a port is set for that."""
    from pipeline import ops
    from pipeline.stops import die_with_parent, on_signal

    listener = ops.listener_of(settings) if args.metrics_fd is None else socket.socket(fileno=args.metrics_fd)
    if listener is not None:
        port = ops.serve(name, role.health, listener, getattr(role, "tells", lambda: False))
        if settings.metrics_port == 0:
            logging.getLogger(name).info("metrics: http://%s:%d/metrics", settings.metrics_host, port)
    on_signal(role.stop)
    die_with_parent(role.stop)
    role.run()
    return 0


def _up(args: argparse.Namespace) -> int:
    import shlex

    from pipeline.stores.lake import lake_settings
    from pipeline.supervisor import Supervisor

    overrides: dict[str, object] = {} if args.port is None else {"api_port": args.port}
    if args.window is not None:
        if args.window != int(args.window) or args.window < 1:
            raise Invalid(f"--window {args.window:g}s: must be a whole number of seconds, at least 1")
        # Short windows ask for a shorter patience too, unless it is set, or the lake was made with another.
        patience = {"disorder_seconds": args.window / 2, "idle_after_seconds": args.window * 1.5, "tick_interval_seconds": args.window / 5}
        plain = load(**({"data_dir": args.data} if args.data else {}))
        given = plain.model_fields_set | lake_settings(plain.lake).keys()
        overrides |= {"window_seconds": int(args.window), **{name: value for name, value in patience.items() if name not in given}}
    if args.workers < 1:
        raise Invalid(f"--workers {args.workers}: must be at least 1; `--without worker` leaves them out")
    try:
        simulate = shlex.split(args.simulate)
    except ValueError as error:
        raise Invalid(f"--simulate {args.simulate}: {error}") from None
    if args.log_format:
        overrides["log_format"] = args.log_format
    settings = _settings(args, **overrides)
    _log_to_stderr("up", args, settings)
    supervisor = Supervisor(
        settings, without=set(args.without), workers=args.workers, simulate=simulate, as_json=args.json, duration_seconds=args.duration,
    )  # fmt: skip
    return supervisor.run()


def _worker(args: argparse.Namespace) -> int:
    from pipeline.worker import Worker

    settings = _with_redis(args)
    _log_to_stderr("worker", args, settings)
    return _run_role("worker", Worker(settings), args, settings)


def _maintain(args: argparse.Namespace) -> int:
    from pipeline.maintenance import Maintenance

    settings = _with_redis(args)
    _log_to_stderr("maintenance", args, settings)
    return _run_role("maintenance", Maintenance(settings), args, settings)


def _ingest(args: argparse.Namespace) -> int:
    from api import requestid
    from api.app import serve
    from pipeline.stops import die_with_parent

    settings = _with_redis(args)
    _log_to_stderr("ingest", args, settings, requestid.log_context)
    die_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    return serve(settings, socket.socket(fileno=args.fd) if args.fd is not None else None)


def _notify(args: argparse.Namespace) -> int:
    from pipeline.notifier import Notifier
    from pipeline.sinks import sinks_of

    settings = _with_redis(args)
    _log_to_stderr("notifier", args, settings)
    colour = sys.stdout.isatty() if args.colour is None else args.colour
    return _run_role("notifier", Notifier(settings, sinks_of(settings, as_json=args.json, colour=colour)), args, settings)


def _rulebook(args: argparse.Namespace):
    from pipeline.stores.connection import connect
    from pipeline.stores.rulebook import Rulebook

    settings = _with_redis(args)
    return Rulebook(connect(settings.redis_url, settings.redis_timeout_seconds))


def _tokenbook(args: argparse.Namespace):
    from pipeline.stores.connection import connect
    from pipeline.stores.tokenbook import Tokenbook

    settings = _with_redis(args)
    return Tokenbook(connect(settings.redis_url, settings.redis_timeout_seconds))


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None


def _rules_show(args: argparse.Namespace) -> int:
    print(_rulebook(args).get(args.version).document, end="")
    return 0


def _rules_set(args: argparse.Namespace) -> int:
    document, rules = _document(args.file)
    number = _rulebook(args).set(document, args.comment or f"set from {args.file.name}")
    print(f"version {number}, {rules}; workers apply it within seconds")
    return 0


def _rules_check(args: argparse.Namespace) -> int:
    print(f"{args.file}: {_document(args.file)[1]}, valid")
    return 0


def _document(file: Path) -> tuple[str, str]:
    """A rules document, and how many rules it holds, in words. Invalid: what is wrong in it, and the file's name."""
    from pipeline.alerttexts import counted
    from pipeline.stores.rulebook import read_document

    text = _read(file)
    try:
        return text, counted(len(read_document(text).rules), "rule")
    except Invalid as error:
        raise Invalid(f"{file}: {error}") from None


def _rules_history(args: argparse.Namespace) -> int:
    for version in _rulebook(args).history():
        print(f"{version.number:>4}  {version.created_at}  {version.comment}")
    return 0


def _rules_diff(args: argparse.Namespace) -> int:
    print(_rulebook(args).diff(args.old, args.new), end="")
    return 0


def _rules_rollback(args: argparse.Namespace) -> int:
    print(f"version {_rulebook(args).rollback(args.version)} is a copy of version {args.version}; workers apply it within seconds")
    return 0


def _alerts(args: argparse.Namespace) -> int:
    from pipeline.alerttexts import as_json, describe
    from pipeline.stores.alertlog import AlertLog, told
    from pipeline.stores.connection import connect

    settings = _with_redis(args)
    log = AlertLog(connect(settings.redis_url, settings.redis_timeout_seconds))
    rows = told(log.standing(range(settings.partitions)).sort("severity", "since", descending=[True, False]))
    for row in rows:
        print(json.dumps(as_json(row)) if args.json else f"{row['phase']:8} {describe(row)}")
    if not rows and not args.json:
        print("nothing fires")
    return 0


def _status(args: argparse.Namespace) -> int:
    from pipeline.statusview import show

    return show(args, _with_redis(args))


def _books(args: argparse.Namespace) -> int:
    from pipeline.books import balance
    from pipeline.stores.connection import connect
    from pipeline.stores.lake import Lake

    settings = _with_redis(args)
    client = connect(settings.redis_url, settings.redis_timeout_seconds)
    books = balance(client, Lake(settings.lake), semantics_of(settings), settings.partitions)
    print(json.dumps(books))
    return 0 if books["balanced"] else 1


def _check(args: argparse.Namespace) -> int:
    from api.tls import tls_of
    from pipeline.sinks import sinks_of
    from pipeline.stores.connection import check_server, connect, redact
    from pipeline.stores.lake import Lake
    from pipeline.stores.tokenbook import Tokenbook

    settings = _settings(args)
    semantics = semantics_of(settings)
    print("settings: valid")
    tls = "no TLS" if tls_of(settings) is None else "with TLS"
    print(f"api: on {settings.api_host}:{settings.api_port} {tls}, {'a token is needed' if settings.auth_required else 'no token needed'}")
    print(f"alerts: to {', '.join(sink.name for sink in sinks_of(settings))}")
    if settings.redis_url:
        client = connect(settings.redis_url, settings.redis_timeout_seconds)
        for warning in check_server(client):
            print(f"redis: {warning}")
        print(f"redis: usable ({redact(settings.redis_url)})")
        states = Counter(token.state(time.time_ns() // 1000) for token in Tokenbook(client).load().by_id.values())
        print(f"tokens: {', '.join(f'{count} {state}' for state, count in sorted(states.items())) or 'none'}")
    else:
        print("redis: none set; `telemetry up` starts its own")
    lake = Lake(settings.lake)
    if lake.exists():
        lake.check(semantics, settings.partitions)
        print(f"lake: readable ({redact(settings.lake)})")
    else:
        print(f"lake: none yet at {redact(settings.lake)}; the first worker makes it")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from pipeline.doctor.report import report
    from pipeline.errors import Unavailable

    try:
        settings = _settings(args)
    except Unavailable:  # the lake cannot be read: a finding, not the end
        settings = load(**({"data_dir": args.data} if args.data else {}))
    without_redis = ""
    try:
        settings = _and_redis(settings)
    except Invalid as error:
        without_redis = str(error)
    return report(settings, without_redis, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
