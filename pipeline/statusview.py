"""`telemetry status`: how the whole stands, for a person to look at; with --watch, again and again. As JSON, for programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.core.cardinality import NEAR_SHARE
from pipeline.errors import Unavailable
from pipeline.settings import Settings
from pipeline.status import status
from pipeline.stores.connection import connect

WATCH_SECONDS = 1.0
PIPED_COLUMNS = 200  # where it goes into a file or another command: whoever looks for a name finds it whole
_COLOURS = {"open": "green", "fair": "yellow", "closed": "red"}


def show(args: argparse.Namespace, settings: Settings) -> int:
    """Print it once, or watch until Ctrl-C."""
    client = connect(settings.redis_url, settings.redis_timeout_seconds)
    if args.json:
        if not args.watch:
            print(json.dumps(status(settings, client)))
            return 0
        while True:
            try:
                print(json.dumps(status(settings, client)), flush=True)
            except Unavailable as error:
                print(f"{error}; trying again", file=sys.stderr)
            time.sleep(WATCH_SECONDS)
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_COLUMNS)
    if not args.watch:
        console.print(drawn(status(settings, client)))
        return 0
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            try:
                live.update(drawn(status(settings, client)), refresh=True)
            except Unavailable as error:
                live.update(Text(f"{error}; trying again", style="red"), refresh=True)
            time.sleep(WATCH_SECONDS)


def drawn(now: dict[str, Any]) -> Group:
    """The whole as a picture of text."""
    return Group(_head(now), Text(), _partitions(now), Text(), _workers(now), Text(), *_fleet(now["fleet"]))


def _head(now: dict[str, Any]) -> Table:
    head = Table.grid(padding=(0, 2))
    admission, books, memory = now["admission"], now["books"], now["redis"]
    state = admission["state"]
    since = "" if state == "open" or not admission["since"] else f" for {now['at'] - admission['since']:.0f} s"
    head.add_row("admission", Text(f"{state}{since}", style=f"bold {_COLOURS[state]}").append(f"  {admission['reason']}", style="default"))
    head.add_row("behind", f"{now['lag_seconds']:.1f} s, {now['backlog_events']:,} events")
    limit = memory["memory_max_bytes"]
    share = f" of {limit / 1e6:,.0f} MB ({memory['memory_bytes'] / limit:.0%})" if limit else ", without a limit"
    head.add_row("Redis", f"{memory['memory_bytes'] / 1e6:,.0f} MB{share}")
    head.add_row("rules", f"version {now['rules_version']}")
    if books is None:
        head.add_row("books", "not looked at yet: the leader of the housekeeping does")
    else:
        accounts = ("aggregated", "late", "repeated", "dead_lettered", "in_flight")
        parts = ", ".join(f"{books[name]:,} {name.replace('_', '-')}" for name in accounts)
        told = Text(f"{books['accepted']:,} accepted = {parts}  ({max(0, now['at'] - books['at']):.0f} s ago)")
        if books["imbalance"]:
            told = Text(f"THEY DO NOT BALANCE, by {books['imbalance']:,} events: ", style="bold red").append(told)
        head.add_row("books", told)
    return head


def _partitions(now: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("part", "behind s", "unread", "MB", "watermark", "admission", "holder"):
        table.add_column(name, justify="left" if name in ("holder", "admission") else "right", overflow="fold")
    for each in now["partitions"]:
        state = each["admission"]
        holder = Text(each["holder"]) if each["holder"] else Text("nobody", style="red")
        table.add_row(
            str(each["partition"]), f"{each['lag_seconds']:.1f}", f"{each['backlog_events']:,}", f"{each['stream_bytes'] / 1e6:.1f}",
            _time(each["watermark"]), Text(state, style=_COLOURS[state]), holder,
        )  # fmt: skip
    return table


def _workers(now: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("worker", "parts", "rules", "series", "open rows", "waiting", "commit s", "MB"):
        table.add_column(name, justify="left" if name == "worker" else "right", overflow="fold")
    for name, said in now["workers"].items():
        if said is None:
            table.add_row(name, "", "", "", "", "", "", "")  # it lives, and has not reported yet
            continue
        memory = said["memory_bytes"]
        table.add_row(
            name, str(len(said["partitions"])), str(said["rules_version"]), _series(said), f"{said['open_rows']:,}",
            f"{said['uncommitted_rows']:,}", f"{said['committing_seconds']:.1f}", f"{memory / 1e6:,.0f}" if memory else "",
        )  # fmt: skip
    if not now["workers"]:
        table.add_row(Text("none lives", style="red"))
    return table


def _series(said: dict[str, Any]) -> Text:
    """How many, and how close the fullest partition or device is to its limit where it is near."""
    full = said.get("fullest") or {}
    for kind in ("device", "partition"):
        share = full.get(f"{kind}_share", 0)
        if share >= NEAR_SHARE:
            return Text(f"{said['series']:,} ({kind} {full[kind]} has {share:.0%} of its limit)", style="red" if share >= 1 else "yellow")
    return Text(f"{said['series']:,}")


def _fleet(fleet: dict[str, Any]) -> list[Text]:
    lines = [Text(f"{fleet['devices']:,} devices")]
    for kind, words in (("behind", "send what is old"), ("ahead", "have a clock that is ahead"), ("silent", "are silent")):
        if fleet[kind]["devices"]:
            worst = ", ".join(f"{device} ({seconds:,.0f} s)" for device, seconds in fleet[kind]["worst"])
            lines.append(Text(f"  {fleet[kind]['devices']:,} {words}: {worst}"))
    return lines


def _time(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")
