"""`python -m tests.chaos`: the command. Exit code 1: something was lost, doubled, or broke by itself."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.chaos import clocks, report, schedule
from tests.chaos.leg import DISK_BYTES, failed, lines_of, run
from tests.chaos.profiles import PROFILES

LEG_SECONDS_MAX = 300
_NAMESPACE = "CHAOS_NAMESPACE"  # set in the process that has mounts of its own; or why there is none


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    _enter_namespace()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes are ended on the way out
    seed = args.seed if args.seed is not None else random.randrange(1 << 30)
    seconds = args.hours * 3600 + args.minutes * 60 + args.seconds or 120
    legs = schedule.legs(seed, seconds, args.profile or list(PROFILES), LEG_SECONDS_MAX)
    chosen = legs if args.leg is None else [leg for leg in legs if leg.number == args.leg]
    told, lock = sys.stderr if args.json else sys.stdout, threading.Lock()

    def tell(line: str) -> None:
        with lock:
            print(line, file=told, flush=True)

    tell(f"seed {seed}: {len(chosen)} legs of {legs[0].seconds:.0f} s; replay with --seed {seed} and the same times and profiles")
    began, results = time.monotonic(), []
    folder = Path(tempfile.mkdtemp(prefix="telemetry-chaos-"))
    obstacles = _obstacles(folder)
    stopped = False
    try:
        for leg in chosen:
            tell(f"-- leg {leg.number}: {leg.profile}")
            results.append(run(leg, folder / f"leg-{leg.number}", obstacles, tell))
            tell(f"-- leg {leg.number}: {'FAILED ' + str(results[-1].verdict.wrong()) if failed(results[-1]) else 'ok'}")
            for finding in results[-1].verdict.findings:
                tell("\n".join(lines_of(finding, results[-1])))
            if failed(results[-1]) and not args.keep_going:
                break
    except KeyboardInterrupt:
        stopped = True
        tell("stopped; what follows is of the legs that ended")
    if not any(map(failed, results)):
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - began
    if args.json:
        print(json.dumps(report.as_json(seed, results, seconds)))
    else:
        print(report.as_text(seed, results, seconds))
    return 1 if any(map(failed, results)) else 130 if stopped else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Break a real pipeline, then look for every event.")
    parser.add_argument("--seed", type=int, help="of the faults and the traffic (default: any, printed)")
    parser.add_argument("--seconds", type=float, default=0, help="how long in all (default 120)")
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--hours", type=float, default=0)
    parser.add_argument("--profile", action="append", choices=list(PROFILES), help="only this one; may be repeated")
    parser.add_argument("--leg", type=int, help="only this leg of the run")
    parser.add_argument("--keep-going", action="store_true", help="go on after a leg that failed")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on stdout; progress goes to stderr")
    return parser


def _enter_namespace() -> None:
    """Run again where mounts are ours alone and processes end with us, if this machine allows it."""
    if _NAMESPACE in os.environ:
        return
    unshare = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        probe = subprocess.run([*unshare, "true"], capture_output=True, text=True)
        problem = (probe.stderr.strip().splitlines() or ["unshare failed"])[-1] if probe.returncode else None
    except OSError as error:
        problem = f"unshare: {error.strerror}"
    if problem is not None:
        os.environ[_NAMESPACE] = problem
        return
    command = [*unshare, sys.executable, "-m", "tests.chaos", *sys.argv[1:]]
    os.execvpe(unshare[0], command, {**os.environ, _NAMESPACE: "entered"})


def _obstacles(folder: Path) -> dict[str, str]:
    """What this machine does not allow, and why."""
    found = {}
    (disk := folder / "probe").mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], capture_output=True, text=True
        )
        if mounted.returncode:
            found["disk"] = mounted.stderr.strip() or "tmpfs cannot be mounted"
        else:
            subprocess.run(["umount", str(disk)], check=False)
    except OSError as error:
        found["disk"] = f"mount: {error.strerror}"
    if "disk" in found and os.environ[_NAMESPACE] != "entered":
        found["disk"] += f" ({os.environ[_NAMESPACE]})"
    if (problem := clocks.obstacle(disk)) is not None:
        found["clocks"] = problem
    return found


if __name__ == "__main__":
    sys.exit(main())
