"""`telemetry tokens`: make, list and revoke what clients of the API come in with."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pipeline.core.tokens import SCOPES, Token, matches, parts_of
from pipeline.errors import Invalid
from pipeline.stores.tokenbook import Tokenbook

Open = Callable[[argparse.Namespace], Tokenbook]

EXPIRES_DAYS_MAX = 36_500

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_tokens(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], open_book: Open) -> None:
    """Add the command `tokens`; its `func` takes the parsed arguments and returns an exit code."""
    parser = subparsers.add_parser("tokens", help="who may come in: create, list, revoke")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="a new token; its secret is shown this once")
    create.add_argument("--name", required=True, help="whose it is")
    create.add_argument("--scope", required=True, action="append", choices=SCOPES, help="may be repeated; admin includes the others")
    create.add_argument("--device", action="append", default=[], metavar="PATTERN", help="only events of these: core-*; may be repeated")
    create.add_argument("--rate", type=float, metavar="N", help="events per second at most, in each API process")
    create.add_argument("--expires", type=_seconds, metavar="TIME", help="after which it is good for nothing: 12h, 90d (default: never)")
    create.add_argument("--file", type=Path, help="write it there, readable by its owner alone, instead of showing it")
    create.add_argument("--keep", action="store_true", help="nothing to do where --file holds a valid token like this one")
    create.set_defaults(func=lambda args: _create(open_book(args), args))
    listing = actions.add_parser("list", help="all tokens, without what is secret")
    listing.add_argument("--json", action="store_true", help="one JSON object per line")
    listing.set_defaults(func=lambda args: _list(open_book(args), args.json))
    revoke = actions.add_parser("revoke", help="from now on it is good for nothing")
    revoke.add_argument("id", help="as `list` shows it")
    revoke.set_defaults(func=lambda args: _revoke(open_book(args), args.id))
    for action in (create, listing, revoke):
        action.add_argument("--data", type=Path, metavar="DIR", help="the data folder (default: PIPELINE_DATA_DIR, or data)")


def ensure_token(book: Tokenbook, path: Path, name: str, *scopes: str) -> None:
    """The file holds a valid token with this name and these scopes: as it did, or a new one."""
    if _kept_in(book, path, name, scopes) is None:
        _create_in(book, path, Token("", name, scopes, b""))


def _create_in(book: Tokenbook, path: Path, draft: Token) -> Token:
    token, text = book.create(draft)
    try:
        _write_secret(path, text)
    except Invalid:
        book.revoke(token.id)  # nobody has it
        raise
    return token


def _held_in(book: Tokenbook, path: Path) -> Token | None:
    """The valid token that the file holds, or None."""
    try:
        parts = parts_of(path.read_bytes().strip())
    except OSError:
        return None
    token = None if parts is None else book.load().by_id.get(parts[0])
    return token if token is not None and matches(token, parts[1]) and token.state(_now_us()) == "valid" else None


def _kept_in(book: Tokenbook, path: Path, name: str, scopes: tuple[str, ...]) -> Token | None:
    """The valid token with this name and these scopes that the file holds, or None."""
    token = _held_in(book, path)
    return token if token is not None and (token.name, token.scopes) == (name, scopes) else None


def _differing(kept: Token, asked: Token) -> list[str]:
    """The options of `create` by which these differ. How long one lasts is counted in seconds: the two were not made at once."""

    def lasts(token: Token) -> int | None:
        return None if token.expires_at_us is None else round((token.expires_at_us - token.created_at_us) / 1_000_000)

    differs = {
        "--device": set(kept.devices) != set(asked.devices), "--rate": kept.rate != asked.rate, "--expires": lasts(kept) != lasts(asked),
    }  # fmt: skip
    return [option for option, differing in differs.items() if differing]


def _write_secret(path: Path, text: str) -> None:
    """A file that its owner alone may read, whole or not there. Invalid: it cannot be written."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 600 from the start
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{text}\n")
            os.replace(name, path)
        except OSError:  # the disk is full, or the path a folder: no secret stays behind
            os.unlink(name)
            raise
    except OSError as error:
        raise Invalid(f"cannot write {path}: {error.strerror}; choose another --file") from None


def _create(book: Tokenbook, args: argparse.Namespace) -> int:
    if args.keep and args.file is None:
        raise Invalid("--keep: needs --file")
    scopes, devices, now_us = tuple(dict.fromkeys(args.scope)), tuple(dict.fromkeys(args.device)), _now_us()
    expires = None if args.expires is None else now_us + round(args.expires * 1_000_000)
    draft = Token("", args.name, scopes, b"", devices, args.rate, now_us, expires)
    if args.keep and (kept := _kept_in(book, args.file, args.name, scopes)) is not None:
        if others := _differing(kept, draft):
            raise Invalid(f"token {kept.id} in {args.file} has another {', another '.join(others)}: revoke it first, or leave out --keep")
        print(f"token {kept.id} of {kept.name} is in {args.file} already, and valid")
        return 0
    if args.file is not None:
        if not args.keep and (held := _held_in(book, args.file)) is not None:
            raise Invalid(f"{args.file} holds token {held.id} of {held.name}: choose another --file, or revoke it first")
        token = _create_in(book, args.file, draft)
        print(f"token {token.id} of {token.name} is in {args.file}; APIs know it within seconds")
    else:
        token, text = book.create(draft)
        print(text)
        print(f"token {token.id} of {token.name}: shown this once, keep it safe; APIs know it within seconds", file=sys.stderr)
    return 0


def _list(book: Tokenbook, as_json: bool) -> int:
    tokens, now_us = book.load(), _now_us()
    for token in sorted(tokens.by_id.values(), key=lambda token: token.created_at_us):
        row = {
            "id": token.id, "name": token.name, "state": token.state(now_us), "scopes": list(token.scopes), "devices": list(token.devices),
            "rate": token.rate, "created": _moment(token.created_at_us), "expires": _moment(token.expires_at_us),
            "revoked": _moment(token.revoked_at_us),
        }  # fmt: skip
        print(json.dumps(row) if as_json else _line(row))
    for identity in tokens.unreadable:
        print(f"{identity}  its record cannot be read, and it is good for nothing", file=sys.stderr)
    if not tokens.by_id and not as_json:
        print("no tokens yet; `telemetry tokens create` makes one")
    return 0


def _line(row: dict) -> str:
    parts = [f"{row['id']}  {row['state']:7}  {','.join(row['scopes']):7}  {row['name']}"]
    parts += [f"devices {' '.join(row['devices'])}"] if row["devices"] else []
    parts += [f"{row['rate']:g} events/s"] if row["rate"] is not None else []
    parts += [f"{name} {row[name]}" for name in ("created", "expires", "revoked") if row[name]]
    return "  ".join(parts)


def _revoke(book: Tokenbook, identity: str) -> int:
    token = book.revoke(identity)
    print(f"token {token.id} of {token.name} is revoked; APIs refuse it within seconds")
    return 0


def _moment(at_us: int | None) -> str | None:
    if at_us is None:
        return None
    try:
        return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # one that is kept may lie beyond the year 9999; it hides no other token
        return f"{at_us // 1_000_000} s after 1970"


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 12h or 90d")
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds > EXPIRES_DAYS_MAX * _UNITS["d"]:
        raise argparse.ArgumentTypeError(f"{text} is more than {EXPIRES_DAYS_MAX}d; leave it out for a token that never expires")
    return seconds


def _now_us() -> int:
    return time.time_ns() // 1000
