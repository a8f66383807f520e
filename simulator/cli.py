"""The commands `simulate` and `replay`: arguments in, exit code out.

0: done. 2: something its user can mend, said in one line. 130: stopped by Ctrl-C or SIGTERM, after the summary.
"""

import argparse
import asyncio
import json
import math
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from simulator.client import token_of
from simulator.console import ReplayConsole, RunConsole
from simulator.errors import UserError
from simulator.manners import GOOD, Manners
from simulator.replay import ReplayOptions, replay
from simulator.run import SimulateOptions, simulate
from simulator.wire import FORMS

NUMBER_MAX = 1e9


def add_simulate(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `simulate`; its `func` takes the parsed arguments and returns an exit code."""
    words = "A fleet of devices that do not exist lives, has faults, and sends its telemetry to the API."
    parser = subparsers.add_parser("simulate", help="a fleet of devices that do not exist, with faults", description=words)
    simulate_arguments(parser)
    parser.set_defaults(func=run_simulate)


def add_replay(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `replay`; its `func` takes the parsed arguments and returns an exit code."""
    words = "Send recordings to the API, all files together in order of time; gaps of over 5 s are jumped."
    parser = subparsers.add_parser("replay", help="send recordings to the API", description=words)
    replay_arguments(parser)
    parser.set_defaults(func=run_replay)


def simulate_arguments(parser: argparse.ArgumentParser) -> None:
    default = SimulateOptions()
    _sending_arguments(parser, default)
    add = parser.add_argument
    add("--seed", type=int, default=default.seed, help="same seed, same fleet, values and faults (default %(default)s)")
    add("--sites", type=int, default=default.sites)
    add("--devices", type=int, help="in all (default: what --rate needs, else 20)")
    add("--interfaces", type=int, default=default.interfaces, help="per device (default %(default)s)")
    add("--interval", type=_real, default=default.interval_seconds, metavar="S", help="simulated, between polls (default %(default)s)")
    add("--rate", type=_real, metavar="N", help="events per second to send; sets the number of devices, or the interval if they are given")
    add("--speed", type=_real, default=default.speed, metavar="N", help="above 1: time runs faster, from a start in the past")
    add("--for", dest="duration", type=_duration, metavar="TIME", help="stop after 90, 90s, 5m or 1h (default: never)")
    add("--fault-every", type=_real, default=default.fault_every_seconds, metavar="S", help="simulated, 0: none (default %(default)s)")
    add("--good-manners", action="store_true", help="no late, repeated, disordered or malformed events")
    for name in ("late", "repeated", "disordered", "malformed"):
        add(f"--{name}", type=_real, default=getattr(Manners(), name), metavar="SHARE", help="of events, 0 to 1 (default %(default)s)")
    add("--no-tags", dest="tags", action="store_false", help="leave out the tags site and role")
    add("--truth", type=Path, metavar="FILE", help="write what faults there were, as NDJSON")


def replay_arguments(parser: argparse.ArgumentParser) -> None:
    default = ReplayOptions([])
    columns = "columns device, interface, metric, value, timestamp, kind, tags"
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=f".parquet, .csv or .ndjson, {columns}")
    _sending_arguments(parser, default)
    add = parser.add_argument
    add("--speed", type=_real, default=default.speed, metavar="N", help="1: as recorded, 0: as fast as it goes (default %(default)s)")
    add("--shift-to-now", action="store_true", help="move all times by one distance, so that the last event is of now")
    add("--start", type=_moment, metavar="TIME", help="first time to send, like 2017-06-29T16:40:00Z")
    add("--end", type=_moment, metavar="TIME", help="time before which to stop")


def run_simulate(args: argparse.Namespace) -> int:
    rates = {name: getattr(args, name) for name in ("late", "repeated", "disordered", "malformed")}

    def start(stop: asyncio.Event) -> Awaitable[dict]:
        options = SimulateOptions(
            **_sending(args),
            seed=args.seed, sites=args.sites, devices=args.devices, interfaces=args.interfaces, interval_seconds=args.interval,
            rate=args.rate, speed=args.speed, duration_seconds=args.duration, fault_every_seconds=args.fault_every,
            manners=GOOD if args.good_manners else Manners(**rates), tags=args.tags, truth=args.truth,
        )  # fmt: skip
        return simulate(options, on_progress=console.show, stop=stop)

    with RunConsole() as console:
        return _run(start, args.json)


def run_replay(args: argparse.Namespace) -> int:

    def start(stop: asyncio.Event) -> Awaitable[dict]:
        pace = {"speed": args.speed, "shift_to_now": args.shift_to_now, "start": args.start, "end": args.end}
        options = ReplayOptions(args.files, **_sending(args), **pace)
        return replay(options, on_progress=console.show, on_notice=console.note, stop=stop)

    with ReplayConsole() as console:
        return _run(start, args.json)


def _sending_arguments(parser: argparse.ArgumentParser, default: SimulateOptions | ReplayOptions) -> None:
    add = parser.add_argument
    add("--url", default=default.url, help="of the API (default %(default)s)")
    add("--token-file", type=Path, metavar="FILE", help="holds the bearer token (default: the environment variable PIPELINE_TOKEN)")
    add("--ca-file", type=Path, metavar="FILE", help="certificates to believe for https (default: SSL_CERT_FILE, or this machine's)")
    add("--form", choices=FORMS, default=default.form, help="of the bodies (default %(default)s)")
    add("--body-events", type=int, default=default.body_events, metavar="N", help="in one body at most (default %(default)s)")
    add("--concurrency", type=int, default=default.concurrency, metavar="N", help="requests in flight at most (default %(default)s)")
    add("--wait", type=_real, default=default.wait_seconds, metavar="S", help="for a server that is not up yet (default %(default)s)")
    add("--deadline", type=_real, default=default.deadline_seconds, metavar="S", help="for a body that is not taken (default %(default)s)")
    add("--json", action="store_true", help="end with the summary as one JSON object on stdout")


def _sending(args: argparse.Namespace) -> dict:
    return {
        "url": args.url, "token": token_of(args.token_file), "ca_file": args.ca_file,
        "form": args.form, "body_events": args.body_events, "concurrency": args.concurrency,
        "wait_seconds": args.wait, "deadline_seconds": args.deadline,
    }  # fmt: skip


def _run(start: Callable[[asyncio.Event], Awaitable[dict]], as_json: bool) -> int:
    try:
        summary, stopped = asyncio.run(_until_signal(start))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps(summary))
    else:
        print(_sentence(summary), file=sys.stderr)
    return 130 if stopped else 0


async def _until_signal(start: Callable[[asyncio.Event], Awaitable[dict]]) -> tuple[dict, bool]:
    """Run; the first SIGINT or SIGTERM asks it to finish, a second one kills as usual."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def ask() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    summary = await start(stop)
    return summary, stop.is_set()


def _sentence(summary: dict) -> str:
    parts = [
        f"{summary['sent']:,} events sent in {summary['seconds']:.1f} s ({summary['events_per_second']:,.0f}/s): "
        f"{summary['accepted']:,} accepted, {summary['rejected']:,} rejected"
    ]
    if "faults" in summary:
        faults = summary["faults"]
        parts.append(f"{faults['injected']} faults injected, {faults['expected_visible']} of them for thresholds to find")
        parts.append(", ".join(f"{summary[name]:,} {name}" for name in ("late", "repeated", "disordered", "malformed", "skewed")))
    parts += [f"{summary[name]:,} {name}" for name in ("refused", "undelivered", "unaccounted", "retries") if summary[name]]
    parts += [f"refused with {status}: {reason}" for status, reason in summary["refusals"].items()]
    return "; ".join(parts)


def _real(text: str) -> float:
    """No nan, and nothing that is too large to reckon with."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= NUMBER_MAX:
        raise argparse.ArgumentTypeError(f"{text}: expected a number of at most {NUMBER_MAX:,.0f}")
    return number


def _duration(text: str) -> float:
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(text[-1:], 0)
    try:
        return _real(text[:-1]) * unit if unit else _real(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text}: expected seconds, or a number with s, m, h or d") from None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a time like 2017-06-29T16:40:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
