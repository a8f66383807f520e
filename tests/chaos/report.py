"""What a person, or a program, reads at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.chaos.leg import Result, failed, lines_of
from tests.chaos.profiles import MANNERS, PROFILES

_FIGURES = (
    ("accepted", "events accepted"),
    ("unknown", "events nobody knows of"),
    ("unknown_and_there", "  of them in the lake"),
    ("refused", "events refused"),
    ("late", "late, and merged in"),
    ("anomalies", "anomalies"),
    ("transitions", "alert transitions"),
    ("dead_letters", "dead letters, as sent"),
    ("lost_in_cut", "lost to a power cut (accepted within 2 s before it)"),
    ("books_off", "in the lake, and accepted before what a cut left of the books"),
    ("doubled_over_cut", "sent again over a power cut that took their key"),
)


def as_json(seed: int, results: Sequence[Result], seconds: float) -> dict:
    """The verdict for a program."""
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "ok": not any(map(failed, results)),
        "events": dict(sum((result.verdict.events for result in results), Counter())),
        "landed": dict(sum((result.landed for result in results), Counter())),
        "missed": dict(sum((result.missed for result in results), Counter())),
        "impossible": {kind: why for result in results for kind, why in result.impossible.items()},
        "legs": [
            {
                "number": result.leg.number,
                "profile": result.leg.profile,
                "seed": result.leg.seed,
                "ok": not failed(result),
                "bodies": result.bodies,
                "answers": dict(result.met),
                "events": dict(result.verdict.events),
                "landed": dict(result.landed),
                "missed": dict(result.missed),
                "wrong": result.verdict.wrong(),
                "findings": [line for finding in result.verdict.findings for line in lines_of(finding, result)],
                "kept": str(result.kept) if result.kept else None,
            }
            for result in results
        ],
    }


def as_text(seed: int, results: Sequence[Result], seconds: float) -> str:
    """The verdict for a person: what landed, by kind and profile; what became of the events; what is wrong."""
    names = [name for name in PROFILES if any(result.leg.profile == name for result in results)]
    of = {name: [result for result in results if result.leg.profile == name] for name in names}
    lines = ["", f"{'landed (of tried)':<28}" + "".join(f"{name:>18}" for name in names)]
    kinds = dict.fromkeys(kind for name in names for kind in (*PROFILES[name].kinds, *MANNERS))
    for kind in kinds:
        cells = []
        for name in names:
            landed, missed = (sum(getattr(result, what)[kind] for result in of[name]) for what in ("landed", "missed"))
            if any(kind in result.impossible for result in of[name]):
                cells.append("not possible here")
            elif kind in PROFILES[name].kinds or kind in MANNERS:
                cells.append(f"{landed}" + (f" ({landed + missed})" if missed else ""))
            else:
                cells.append("-")
        lines.append(f"{kind:<28}" + "".join(f"{cell:>18}" for cell in cells))
    lines.append("")
    for figure, words in _FIGURES:
        counts = [sum(result.verdict.events[figure] for result in of[name]) for name in names]
        if any(counts):
            lines.append(f"{words:<52}" + "".join(f"{count:>14,}" for count in counts))
    for kind, why in {kind: why for result in results for kind, why in result.impossible.items()}.items():
        lines.append(f"NOT POSSIBLE HERE: {kind}: {why}")
    wrong = sum((Counter(result.verdict.wrong()) for result in results), Counter())
    for result in filter(failed, results):
        lines += ["", f"leg {result.leg.number} ({result.leg.profile}) failed: {result.verdict.wrong()}"]
        lines += [line for finding in result.verdict.findings for line in lines_of(finding, result)]
        lines.append(f"logs and lake: {result.kept}; again: the same command with --seed {seed} --leg {result.leg.number}")
    events = sum(result.verdict.events["accepted"] for result in results)
    faults = sum(sum(count for kind, count in result.landed.items() if kind not in MANNERS) for result in results)
    verdict = f"WRONG: {dict(wrong)}" if wrong else "nothing lost, nothing doubled"
    lines += ["", f"seed {seed}: {events:,} events accepted under {faults} faults in {seconds:.0f} s: {verdict}"]
    return "\n".join(lines)
